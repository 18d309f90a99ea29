use std::fs::read_to_string;
use std::path::Path;

use anyhow::{Context, ensure};

/// Means and deviations of the published simulator, over the ten seeds: `reference_default.csv`
/// with the columns policy, tie, metric, stat and one for each bin. It has no figures by seed.
#[derive(Debug)]
pub struct Reference(Vec<Vec<String>>);

impl Reference {
    /// Reads the table in `folder`.
    ///
    /// # Errors
    /// When it is missing or has no bins.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("reference_default.csv");
        let text =
            read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let rows: Vec<Vec<String>> = text
            .lines()
            .map(|line| line.split(',').map(|cell| cell.trim().to_owned()).collect())
            .collect();
        let head = rows.first().is_some_and(|head| head.iter().any(|cell| cell == "130"));
        ensure!(head, "{} has no column 130", path.display());
        Ok(Self(rows))
    }

    /// Allocation of `policy` in a bin, in per cent: mean and standard deviation.
    pub fn allocation(&self, policy: &str, by_rank: bool, bin: usize) -> Option<(f64, f64)> {
        let column = self.0.first()?.iter().position(|cell| *cell == bin.to_string())?;
        let tie = if by_rank { "rank" } else { "coin" };
        let of = |stat: &str| {
            let wanted = [policy, tie, "alloc_pct", stat];
            let row = self.0.iter().find(|row| row.iter().zip(wanted).all(|(a, b)| a == b))?;
            row.get(column)?.parse::<f64>().ok()
        };
        Some((of("mean")?, of("sd")?))
    }
}
