//! Figures over rounds.

/// The middle of them; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value that a part of them is not above.
pub(crate) fn percentile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let at = (values.len() as f64 * part).ceil() as usize;
    values.get(at.clamp(1, values.len().max(1)) - 1).copied().unwrap_or_default()
}

pub(crate) fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

pub(crate) fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// A line of the table.
pub(crate) fn row(what: &str, measured: &str, wanted: &str, met: bool) {
    let verdict = if met { "met" } else { "MISSED" };
    println!("| {what:<62} | {measured:<34} | {wanted:<15} | {verdict:<6} |");
}

/// A line about what nothing is promised of.
pub(crate) fn note(what: &str, measured: &str) {
    println!("| {what:<62} | {measured:<34} | {:<15} | {:<6} |", "", "");
}
