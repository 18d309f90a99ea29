//! Texts of a report that come from tenants, made harmless for where they are shown.

use std::fmt::Write;

/// Whether a character moves a terminal's cursor or turns the direction of the text around.
pub fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` without control characters: a program's name must not move an operator's cursor.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            // Writing into a string cannot fail.
            let _ = write!(shown, "{}", c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// `text` as a cell of a table file: a spreadsheet runs what begins with these characters.
pub(crate) fn cell(text: &str) -> String {
    let first = text.trim_start_matches(' ').chars().next();
    match first {
        Some('=' | '+' | '-' | '@' | '\t' | '\r' | '\n') => format!("'{text}"),
        Some(_) | None => text.to_owned(),
    }
}

/// Bytes with one decimal and a binary unit.
pub(crate) fn bytes(bytes: u128) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = ratio(bytes, 1024);
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A stretch of time, as coarse as a person wants it.
pub(crate) fn duration(nanoseconds: u128) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    match seconds {
        0..60 => format!("{:.2} s", ratio(nanoseconds, 1_000_000_000)),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600.. => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `value / unit` for people to read.
#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
pub(crate) fn ratio(value: u128, unit: u128) -> f64 {
    value as f64 / unit as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        assert_eq!(printable("train \u{1b}[2J\n"), "train \\u{1b}[2J\\u{a}");
        assert_eq!(printable("Übung-7 数"), "Übung-7 数");
    }

    #[test]
    fn a_name_is_no_formula() {
        for text in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1"] {
            assert_eq!(cell(text), format!("'{text}"));
        }
        assert_eq!(cell("train.py --a=1"), "train.py --a=1");
    }

    #[test]
    fn amounts_are_short() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(8 << 30), "8.0 GiB");
        assert_eq!(bytes((1 << 30) - 1), "1.0 GiB");
        assert_eq!(duration(1_500_000_000), "1.50 s");
        assert_eq!(duration(3_661_000_000_000), "1 h 01 min");
    }
}
