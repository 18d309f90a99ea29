//! How much a program got done in a time, by the pieces of time that it tells of.

use std::time::SystemTime;

/// A time, from and to a moment of the wall clock, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) from: f64,
    pub(super) to: f64,
}

/// Now, in microseconds of the wall clock.
pub(super) fn now() -> anyhow::Result<f64> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() * 1e6)
}

fn number(line: &str, key: &str) -> Option<f64> {
    let mut words = line.split_whitespace();
    words.find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

impl Span {
    /// The last one that a program printed.
    pub(super) fn told(text: &str) -> Option<Self> {
        let mut lines = text.lines().rev();
        lines.find_map(|line| Some(Self { from: number(line, "from")?, to: number(line, "to")? }))
    }

    /// How long both last at once.
    fn shared(&self, other: &Self) -> f64 {
        (self.to.min(other.to) - self.from.max(other.from)).max(0.0)
    }
}

/// What a meter said.
#[derive(Debug)]
pub(super) struct Pace {
    windows: Vec<(Span, f64)>,
}

impl Pace {
    pub(super) fn told(text: &str) -> Self {
        let window = |line: &str| {
            let (to, length) = (number(line, "at")?, number(line, "microseconds")?);
            Some((Span { from: to - length, to }, number(line, "launches")?))
        };
        let lines = text.lines().filter(|line| line.starts_with("meter: window="));
        Self { windows: lines.filter_map(window).collect() }
    }

    /// Whether it has told of all up to a moment.
    pub(super) fn reaches(&self, moment: f64) -> bool {
        self.windows.last().is_some_and(|(window, _)| window.to >= moment)
    }

    /// Launches a second within a span: all of them, over all of it.
    pub(super) fn within(&self, span: Span) -> f64 {
        let part = |(window, launches): &(Span, f64)| {
            launches * span.shared(window) / (window.to - window.from).max(1.0)
        };
        let launches: f64 = self.windows.iter().map(part).sum();
        launches * 1e6 / (span.to - span.from).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_its_part_of_each_window() {
        let text = "hello\nmeter: window=0 launches=10 microseconds=1000000 at=1000000\n\
                    meter: window=1 launches=40 microseconds=2000000 at=3000000\n";
        let pace = Pace::told(text);
        let within = |from: f64, to: f64| pace.within(Span { from, to });
        assert!((within(0.0, 3e6) - 50.0 / 3.0).abs() < 1e-9);
        assert!((within(0.5e6, 2e6) - 25.0 / 1.5).abs() < 1e-9);
        // A time in which nothing was done counts.
        assert!((within(0.0, 6e6) - 50.0 / 6.0).abs() < 1e-9);
        assert!(pace.reaches(3e6) && !pace.reaches(3e6 + 1.0));
    }

    #[test]
    fn the_last_span_counts() {
        let text = "x from=1 to=2\nconnect: from=5 to=9\nconnect: ended, connected=3";
        assert_eq!(Span::told(text), Some(Span { from: 5.0, to: 9.0 }));
        assert_eq!(Span::told("connect: ended, from=1"), None);
    }
}
