//! What was measured, against what it is measured against.
//!
//! A neighbour is **entitled** to a part of what it gets done alone:
//!
//! * beside who wants the GPU, to its share of the GPU's time;
//! * beside who does not, to what `spin` leaves it: a tenant that computes on a processor of its
//!   own, and shares nothing with it but the machine.
//!
//! A promise is kept where the neighbour has at least nine tenths of what it is entitled to.

use gpuzone_testkit::hostile::{Attack, NEIGHBOURS_SHARE};

use super::say;

/// How much of what it is entitled to a neighbour is to get done.
const ENOUGH: f64 = 0.9;

/// What a neighbour got done, in launches a second.
pub(super) struct Row {
    pub(super) attack: Attack,
    pub(super) before: f64,
    /// From the attack's beginning to its end.
    pub(super) during: f64,
    /// From before its zone was made until its lease was gone.
    pub(super) around: f64,
    pub(super) after: f64,
    pub(super) end: String,
}

/// How a row stands to what is promised.
#[derive(Debug, PartialEq)]
struct Standing {
    /// Of what is got done alone.
    part: f64,
    /// The part that there is a right to.
    entitled: f64,
    kept: bool,
}

impl Standing {
    /// `spin` is the part that is left beside the honest tenant of that name.
    fn of(row: &Row, spin: f64) -> Self {
        let part = row.during / row.before.max(1.0);
        let entitled = match row.attack.like.as_str() {
            "work" => f64::from(NEIGHBOURS_SHARE) / 100.0,
            _ => spin.min(1.0),
        };
        Self { part, entitled, kept: part >= ENOUGH * entitled }
    }
}

pub(super) fn print(rows: &[Row], together: bool) {
    let spin = rows.iter().find(|row| row.attack.name == "spin");
    let spin = spin.map_or(1.0, |row| row.during / row.before.max(1.0));
    let apart = if together { "sharing all processors" } else { "on processors apart" };
    say(&format!(
        "\nLaunches a second of the neighbour, all over all of the time; the two tenants {apart}.\n\n\
         | attack | alone | during | part | entitled to | of that | within 10 % | with its zone's beginning and end | after | it ended |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    ));
    for row in rows {
        say(&line(row, &Standing::of(row, spin)));
    }
    let missed = rows.iter().filter(|row| !Standing::of(row, spin).kept);
    let missed: Vec<&str> = missed.map(|row| row.attack.name.as_str()).collect();
    let list = if missed.is_empty() { "none".to_owned() } else { missed.join(", ") };
    say(&format!("\n{} of {} met; missed: {list}\n", rows.len() - missed.len(), rows.len()));
}

fn line(row: &Row, standing: &Standing) -> String {
    let Row { attack, before, during, around, after, end } = row;
    let Standing { part, entitled, kept } = standing;
    let whole = around / before.max(1.0);
    let right = match attack.like.as_str() {
        "work" => "its share",
        _ => "spin",
    };
    format!(
        "| {} | {before:.0} | {during:.0} | {part:.2} | {right} {entitled:.2} | {:.2} | {} | {whole:.2} | {after:.0} | {end} |",
        attack.name,
        part / entitled.max(0.01),
        if *kept { "met" } else { "missed" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(like: &str, during: f64) -> Row {
        let attack = Attack {
            name: "x".into(),
            about: String::new(),
            seconds: 1.0,
            like: like.into(),
            zone: false,
        };
        Row { attack, before: 1000.0, during, around: during, after: 1000.0, end: String::new() }
    }

    #[test]
    fn who_wants_the_gpu_leaves_a_share_and_who_does_not_as_much_as_spin() {
        let kept = |like, during, spin| Standing::of(&row(like, during), spin).kept;
        assert!(kept("work", 811.0, 0.5) && !kept("work", 809.0, 0.5));
        assert!(kept("spin", 829.0, 0.92) && !kept("spin", 827.0, 0.92));
        // A spin that was lucky asks for no more than all.
        assert!(kept("spin", 901.0, 1.1));
    }
}
