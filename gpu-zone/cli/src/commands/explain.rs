use std::collections::BTreeMap;

use gpuzone_ledger::printable;
use serde::{Deserialize, Serialize};

use super::extender::ask;
use crate::arguments::{self, Format};
use crate::commands::Context;
use crate::error::CliError;
use crate::output;

/// More sets of nodes are not printed; `--format json` has those that follow, too.
const MOST_LACKING: usize = 5;

/// What nodes lack, in numbers.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Lacking {
    /// Some of those that lack just this.
    nodes: Vec<String>,
    /// How many they are.
    number: usize,
    says: String,
}

/// What the extender says of a pod.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Why {
    pod: String,
    stands: String,
    asks: Option<String>,
    group: Option<String>,
    holds: Vec<String>,
    quota: Option<String>,
    /// What nodes say, each with how many say it.
    nodes: BTreeMap<String, u64>,
    /// The nearest to serving it first.
    lacking: Vec<Lacking>,
    changes: Vec<String>,
}

pub(crate) async fn explain(
    context: &Context,
    arguments: &arguments::Explain,
) -> Result<(), CliError> {
    let arguments::PodPath { namespace, name } = &arguments.pod;
    context.say(|| format!("asking {}", arguments.extender.extender));
    let why: Why = ask(&arguments.extender, &format!("/explain/{namespace}/{name}")).await?;
    match context.format {
        Format::Table | Format::Csv => output::print(&text(&why)),
        Format::Json => output::print_json(&why),
    }
}

fn text(why: &Why) -> String {
    let mut lines = vec![format!("{} {}", printable(&why.pod), printable(&why.stands))];
    let part = |name: &str, said: &str| format!("  {name:<8}{}", printable(said));
    lines.extend(why.asks.iter().map(|asks| part("asks", asks)));
    lines.extend(why.group.iter().map(|group| part("group", group)));
    lines.extend(why.holds.iter().map(|held| part("holds", held)));
    lines.extend(why.quota.iter().map(|quota| part("quota", quota)));
    let mut nodes: Vec<(&String, &u64)> = why.nodes.iter().collect();
    nodes.sort_by_key(|(_, number)| std::cmp::Reverse(**number));
    lines.extend(nodes.iter().map(|(said, number)| {
        let word = if **number == 1 { "node" } else { "nodes" };
        part("nodes", &format!("{number} {word}: {said}"))
    }));
    lines.extend(why.lacking.iter().take(MOST_LACKING).map(|lacking| {
        let more = match lacking.number.saturating_sub(lacking.nodes.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        part("lacks", &format!("{}{more}: {}", lacking.nodes.join(", "), lacking.says))
    }));
    if !why.changes.is_empty() {
        lines.push("what would have to change:".to_owned());
        lines.extend(why.changes.iter().map(|change| format!("  - {}", printable(change))));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_waits_is_told_why_and_what_would_help() {
        let why = Why {
            pod: "team/train".into(),
            stands: "waits for a place\u{1b}[2J".into(),
            asks: Some("1 whole GPU".into()),
            group: Some("'train' of 3 pods".into()),
            nodes: BTreeMap::from([("few".into(), 1), ("no GPU".into(), 12)]),
            lacking: vec![
                Lacking { nodes: vec!["n1".into()], number: 1, says: "12Gi".into() },
                Lacking { nodes: vec!["n2".into(), "n3".into()], number: 7, says: "24Gi".into() },
            ],
            changes: vec!["pods have to end".into()],
            ..Why::default()
        };
        let text = text(&why);
        assert!(!text.contains('\u{1b}'));
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "  asks    1 whole GPU",
                "  group   'train' of 3 pods",
                "  nodes   12 nodes: no GPU",
                "  nodes   1 node: few",
                "  lacks   n1: 12Gi",
                "  lacks   n2, n3 and 5 more: 24Gi",
                "what would have to change:",
                "  - pods have to end"
            ]
        );
    }
}
