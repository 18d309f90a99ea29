use std::collections::BTreeMap;

use gpuzone_ledger::printable;
use serde::{Deserialize, Serialize};

use super::extender::ask;
use crate::arguments::{self, Format};
use crate::commands::Context;
use crate::error::{CliError, Kind};
use crate::output;

/// Amounts of what pods hold, as `GpuQuota` objects have them.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Amounts {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpus: Option<u32>,
    /// Per cent of a GPU's time.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<u32>,
}

/// What the extender says of a quota.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Report {
    used: Amounts,
    limits: Amounts,
    #[serde(skip_serializing_if = "Option::is_none")]
    borrowed: Option<Amounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cohort: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guaranteed: Option<Amounts>,
    tenants: BTreeMap<String, Amounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub(crate) async fn quota(context: &Context, arguments: &arguments::Quota) -> Result<(), CliError> {
    context.say(|| format!("asking {}", arguments.extender.extender));
    let mut quotas: BTreeMap<String, Report> = ask(&arguments.extender, "/quotas").await?;
    if let Some(wanted) = &arguments.quota {
        quotas.retain(|name, _| name == wanted);
        if quotas.is_empty() {
            let message = format!("there is no GpuQuota '{wanted}'");
            return Err(CliError::new(Kind::NotFound, message)
                .hint("`gpu-zone quota` without a name lists all of them"));
        }
    }
    match context.format {
        Format::Table | Format::Csv => output::print(&text(&quotas)),
        Format::Json => output::print_json(&serde_json::json!({ "quotas": quotas })),
    }
}

/// One row for each quota, and below it one for each tenant that holds something of it.
fn text(quotas: &BTreeMap<String, Report>) -> String {
    if quotas.is_empty() {
        return "There is no GpuQuota; what namespaces get then is the extender's --without-quota.\n"
            .to_owned();
    }
    let headings = ["QUOTA", "TENANT", ">MEMORY", ">GPUS", ">TIME", ">PODS", "COHORT", ">BORROWED"];
    let mut table = output::table(&headings);
    for (name, report) in quotas {
        let cohort = report.cohort.as_deref().map_or_else(String::new, printable);
        let borrowed = report.borrowed.as_ref().map_or_else(String::new, |borrowed| {
            format!("{} GPUs, {}", borrowed.gpus.unwrap_or(0), memory(borrowed))
        });
        let [memory, gpus, time, pods] = of(&report.used, Some(&report.limits));
        table.add_row([printable(name), "all".into(), memory, gpus, time, pods, cohort, borrowed]);
        for (tenant, held) in &report.tenants {
            let [memory, gpus, time, pods] = of(held, None);
            let row = [String::new(), printable(tenant), memory, gpus, time, pods];
            table.add_row(row.into_iter().chain([String::new(), String::new()]));
        }
    }
    let problems = quotas.iter().filter_map(|(name, report)| {
        let problem = printable(report.problem.as_deref()?);
        let name = printable(name);
        Some(format!("\nGpuQuota {name} cannot be read and lets nothing through: {problem}"))
    });
    format!("{}{}\n", table.trim_fmt(), problems.collect::<String>())
}

fn memory(amounts: &Amounts) -> String {
    printable(amounts.memory.as_deref().unwrap_or("0"))
}

/// What is held, and of how much, where that is limited.
fn of(held: &Amounts, limits: Option<&Amounts>) -> [String; 4] {
    let limit = |limit: Option<String>| match (limits, limit) {
        (None, _) => String::new(),
        (Some(_), Some(limit)) => format!(" / {limit}"),
        (Some(_), None) => " / -".to_owned(),
    };
    let number = |held: Option<u32>, most: Option<u32>, unit: &str| {
        format!("{}{unit}{}", held.unwrap_or(0), limit(most.map(|most| format!("{most}{unit}"))))
    };
    let most = limits.cloned().unwrap_or_default();
    let most_memory = most.memory.as_deref().map(printable);
    [
        format!("{}{}", memory(held), limit(most_memory)),
        number(held.gpus, most.gpus, ""),
        number(held.share, most.share, "%"),
        number(held.pods, most.pods, ""),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_stands_beside_what_is_granted() {
        let said = serde_json::json!({ "team": {
            "used": { "memory": "24Gi", "gpus": 2, "share": 150, "pods": 3 },
            "limits": { "memory": "64Gi", "gpus": 4 },
            "cohort": "batch", "borrowed": { "gpus": 1, "memory": "8Gi" },
            "tenants": { "acme\u{1b}": { "memory": "24Gi", "gpus": 2 } },
            "problem": "limits: what", "observedGeneration": 3, "unknown": true,
        } });
        let text = text(&serde_json::from_value(said).unwrap());
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1][..8], ["team", "all", "24Gi", "/", "64Gi", "2", "/", "4"]);
        assert_eq!(rows[1][8..], ["150%", "/", "-", "3", "/", "-", "batch", "1", "GPUs,", "8Gi"]);
        assert_eq!(rows[2][1..4], ["24Gi", "2", "0%"]);
        assert!(text.contains("lets nothing through: limits: what") && !text.contains('\u{1b}'));
    }

    #[test]
    fn no_quota_is_said() {
        assert!(text(&BTreeMap::new()).contains("--without-quota"));
    }
}
