use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::finding::{Code, Finding};

/// Findings that are accepted. They are shown and do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baseline {
    accepted: BTreeSet<Code>,
}

/// Why a baseline cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The file cannot be read.
    #[error("the baseline {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is neither a list of codes nor a report.
    #[error(
        "the baseline {} is no list of codes like [\"GZP001\"] and no report of --format json: {source}",
        path.display()
    )]
    NotABaseline {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

#[derive(Deserialize)]
struct Report {
    findings: Vec<Reported>,
}

#[derive(Deserialize)]
struct Reported {
    code: Code,
}

impl Baseline {
    /// Reads a baseline: a JSON list of codes, or an earlier report as JSON.
    ///
    /// # Errors
    /// When it cannot be read, or is neither.
    pub fn read(path: &Path) -> Result<Self, BaselineError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| BaselineError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text)
            .map_err(|source| BaselineError::NotABaseline { path: path.to_owned(), source })
    }

    fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let accepted = if text.trim_start().starts_with('{') {
            let report: Report = serde_json::from_str(text)?;
            report.findings.into_iter().map(|finding| finding.code).collect()
        } else {
            serde_json::from_str(text)?
        };
        Ok(Self { accepted })
    }

    /// Marks what is accepted.
    pub(crate) fn mark(&self, finding: &mut Finding) {
        finding.accepted = self.accepted.contains(&finding.code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_reports_are_read_and_nothing_else() {
        let list = Baseline::parse(r#"["GZP001", "GZP302"]"#).unwrap();
        let report = r#"{"worst": "high", "findings": [{"code": "GZP302"}, {"code": "GZP001"}]}"#;
        assert_eq!(Baseline::parse(report).unwrap(), list);
        for wrong in [r#"["GZP998"]"#, "{}", "", "[1]", r#"{"findings": [{}]}"#] {
            assert!(Baseline::parse(wrong).is_err(), "{wrong}");
        }
    }
}
