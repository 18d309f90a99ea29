use std::fmt::Write as _;

use serde::Serialize;

use crate::catalog::CATALOG;
use crate::finding::{Code, Finding, Severity};

/// What the probe found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The worst finding that no baseline accepts; none without findings.
    pub worst: Option<Severity>,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// Each check and what it could not test.
    pub checks: Vec<Checked>,
    /// What the codes mean that are among the findings.
    pub explanations: Vec<Explanation>,
}

/// A check that was made.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// Which.
    pub name: &'static str,
    /// How many findings it has.
    pub findings: usize,
    /// What it could not test, and why.
    pub untested: Vec<String>,
}

/// What a code means.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Which.
    pub code: Code,
    /// In a few words.
    pub title: &'static str,
    /// Why it matters.
    pub why: &'static str,
    /// What to do.
    pub fix: &'static str,
}

impl Report {
    pub(crate) fn new(mut findings: Vec<Finding>, checks: Vec<Checked>) -> Self {
        findings.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.code.cmp(&b.code)));
        let counted = findings.iter().filter(|finding| !finding.accepted);
        let worst = counted.map(|finding| finding.severity).max();
        let is_among = |code: Code| findings.iter().any(|finding| finding.code == code);
        let explanations = CATALOG.iter().filter(|entry| is_among(entry.code));
        let explanations = explanations
            .map(|entry| Explanation {
                code: entry.code,
                title: entry.title,
                why: entry.why,
                fix: entry.fix,
            })
            .collect();
        Self { worst, findings, checks, explanations }
    }

    /// The exit code that follows from the worst finding.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.worst.map_or(0, Severity::exit_code)
    }

    /// The report for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail, here and below.
        let _ = writeln!(text, "SEVERITY  CODE    FINDING");
        for finding in &self.findings {
            let title = finding.code.entry().map_or("", |entry| entry.title);
            let accepted = if finding.accepted { " (accepted)" } else { "" };
            let (severity, code) = (finding.severity, finding.code);
            let _ = writeln!(text, "{severity:<8}  {code:<6}  {title}{accepted}");
            let _ = writeln!(text, "{:18}{}", "", printable(&finding.seen));
        }
        if self.findings.is_empty() {
            let _ = writeln!(text, "{:18}nothing was found", "");
        }
        for explanation in &self.explanations {
            let Explanation { code, title, why, fix } = explanation;
            let _ = write!(text, "\n{code}: {title}\n  why: {why}\n  fix: {fix}\n");
        }
        let untested = self.checks.iter().filter(|check| !check.untested.is_empty());
        for (index, check) in untested.enumerate() {
            if index == 0 {
                let _ = writeln!(text, "\nNot tested:");
            }
            for why in &check.untested {
                let _ = writeln!(text, "  {}: {}", check.name, printable(why));
            }
        }
        let clean =
            self.checks.iter().filter(|check| check.findings == 0 && check.untested.is_empty());
        let clean: Vec<&str> = clean.map(|check| check.name).collect();
        if !clean.is_empty() {
            let _ = writeln!(text, "\nTested without a finding: {}", clean.join(", "));
        }
        let worst = self.worst.map_or("nothing", Severity::name);
        let _ = writeln!(text, "\nworst: {worst}; exit code {}", self.exit_code());
        text
    }
}

/// Names of files and devices are others' choice: nothing of them may steer a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baseline::Baseline;
    use crate::catalog as c;

    #[test]
    fn the_worst_finding_that_is_not_accepted_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"["GZP401"]"#).unwrap();
        let baseline = Baseline::read(file.path()).unwrap();
        let mut findings =
            vec![Finding::new(&c::NO_LIMIT, "a"), Finding::new(&c::RESIDUE, "b\u{1b}[2J")];
        assert_eq!(Report::new(findings.clone(), vec![]).exit_code(), 3);
        findings.iter_mut().for_each(|finding| baseline.mark(finding));
        let report = Report::new(findings, vec![]);
        assert_eq!((report.worst, report.exit_code()), (Some(Severity::Medium), 1));
        let text = report.text();
        assert!(text.contains("(accepted)") && !text.contains('\u{1b}'), "{text}");
        assert_eq!(Report::new(vec![], vec![]).exit_code(), 0);
    }
}
