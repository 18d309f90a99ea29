use std::fs::{self, File};
use std::path::Path;

use gpuzone_core::engine::BEST_RANK;
use gpuzone_ledger::printable;
use gpuzone_replay::{Figures, Host, Setting, Ties, Trace, replay, svg};
use serde_json::json;

use crate::arguments::{Format, Simulate};
use crate::commands::Context;
use crate::error::{CliError, Kind};
use crate::output;

pub(crate) fn simulate(context: &Context, arguments: &Simulate) -> Result<(), CliError> {
    let trace = Trace::read(open(&arguments.nodes)?, open(&arguments.pods)?)
        .map_err(|error| CliError::caused(Kind::Usage, &error))?;
    let (policy, seed) = (arguments.policy, arguments.seed);
    let (ties, host) = (Ties::Ranks, Host::Engine);
    let setting = Setting { policy, ties, seed, oracle: false, host };
    context.say(|| format!("ranks of 0 to {BEST_RANK}, a coin from {seed} among equals"));
    let figures = replay(&trace, &setting, 0..trace.pods.len(), |_, _| {});
    if let Some(path) = &arguments.svg {
        let drawing = svg(trace.capacity(), &[(policy.as_str(), &figures)]);
        fs::write(path, drawing).map_err(|error| {
            CliError::new(Kind::Usage, format!("cannot write {}: {error}", path.display()))
        })?;
    }
    match context.format {
        Format::Table | Format::Csv => output::print(&table(&trace, &figures, policy.as_str())),
        Format::Json => {
            let tenants = figures.tenants.iter().map(|(name, of)| {
                json!({
                    "tenant": name, "pods": of.pods, "dropped": of.dropped,
                    "asked_gpu_milli": of.asked, "placed_gpu_milli": of.placed,
                })
            });
            let last = figures.steps.last().copied().unwrap_or_default();
            output::print_json(&json!({
                "policy": policy.as_str(), "capacity_gpu_milli": trace.capacity(),
                "asked_gpu_milli": last.arrived, "placed_gpu_milli": last.placed,
                "fairness": figures.fairness(), "tenants": tenants.collect::<Vec<_>>(),
            }))
        }
    }
}

fn open(path: &Path) -> Result<File, CliError> {
    File::open(path).map_err(|error| {
        CliError::new(Kind::NotFound, format!("cannot read {}: {error}", path.display()))
    })
}

fn table(trace: &Trace, figures: &Figures, policy: &str) -> String {
    let gpus = |milli: u64| format!("{}.{:03}", milli / 1000, milli % 1000);
    let part = |milli: u64, of: u64| match milli.saturating_mul(10_000).checked_div(of) {
        Some(part) => format!("{}.{:02} %", part / 100, part % 100),
        None => "-".to_owned(),
    };
    let last = figures.steps.last().copied().unwrap_or_default();
    let mut rows =
        output::table(&["TENANT", ">PODS", ">DROPPED", ">GPUS ASKED", ">PLACED", ">PART"]);
    for (name, of) in &figures.tenants {
        let name = if name.is_empty() { "-".to_owned() } else { printable(name) };
        rows.add_row(vec![
            name,
            of.pods.to_string(),
            of.dropped.to_string(),
            gpus(of.asked),
            gpus(of.placed),
            part(of.placed, of.asked),
        ]);
    }
    let fairness = figures.fairness().map_or_else(|| "-".to_owned(), |index| format!("{index:.3}"));
    format!(
        "policy {policy}: {} of {} GPUs allocated ({}), {} asked for; fairness {fairness}\n\n{}\n",
        gpus(last.placed),
        gpus(trace.capacity()),
        part(last.placed, trace.capacity()),
        gpus(last.arrived),
        rows.trim_fmt(),
    )
}
