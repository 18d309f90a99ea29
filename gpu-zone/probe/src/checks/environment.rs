//! What becomes of the limits when the workload changes its environment.

use super::limits::{is_more, variables};
use super::{Context, Outcome, libraries};
use crate::Severity;
use crate::catalog as c;
use crate::driver::launch::Change;
use crate::driver::{Answer, Device, Task};
use crate::finding::Finding;
use crate::options::shown;

struct Variant {
    name: String,
    change: Change,
}

fn variants(context: &Context<'_>) -> Vec<Variant> {
    let host = context.host;
    let remove = |names: &[String]| Change { remove: names.to_vec(), ..Change::default() };
    let mut found = Vec::new();
    if host.variable("LD_PRELOAD").is_some() {
        let change = remove(&["LD_PRELOAD".to_owned()]);
        found.push(Variant { name: "without LD_PRELOAD".to_owned(), change });
    }
    let change = Change {
        set: vec![("CUDA_DISABLE_CONTROL".to_owned(), "true".to_owned())],
        ..Change::default()
    };
    found.push(Variant { name: "with CUDA_DISABLE_CONTROL=true".to_owned(), change });
    let limits: Vec<String> = variables(context).into_iter().cloned().collect();
    if !limits.is_empty() {
        let name = format!("without {}", limits.join(", "));
        found.push(Variant { name, change: remove(&limits) });
    }
    let choice: Vec<String> = ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"]
        .into_iter()
        .filter(|name| host.variable(name).is_some())
        .map(str::to_owned)
        .collect();
    if !choice.is_empty() {
        let name = format!("without {}", choice.join(", "));
        found.push(Variant { name, change: remove(&choice) });
    }
    if host.variable("LD_LIBRARY_PATH").is_some() {
        let names = ["LD_LIBRARY_PATH", "LD_PRELOAD"].map(str::to_owned);
        let name = "without LD_LIBRARY_PATH".to_owned();
        found.push(Variant { name, change: remove(&names) });
        for library in libraries::of_the_system(host) {
            let name = format!("without LD_LIBRARY_PATH, by {}", library.display());
            let change = Change { library: Some(library), ..remove(&names) };
            found.push(Variant { name, change });
        }
    }
    found
}

pub(super) fn check(context: &mut Context<'_>, outcome: &mut Outcome) {
    preloads(context, outcome);
    if context.host.variable("CUDA_MPS_PIPE_DIRECTORY").is_some()
        || context.host.variable("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE").is_some()
    {
        outcome.found(Finding::new(&c::MPS, "variables of an MPS client are set"));
    }
    for variant in variants(context) {
        let Answer::Devices(now) = context.launcher.ask(Task::Devices, &variant.change) else {
            continue;
        };
        if let Some(gained) = gained(&context.seen.devices, &now) {
            let seen = format!("{}: {gained}", variant.name);
            outcome.found(Finding::new(&c::UNDONE_BY_VARIABLE, seen));
        }
    }
}

/// What a workload has more of than before.
fn gained(before: &[Device], now: &[Device]) -> Option<String> {
    if now.len() > before.len() {
        return Some(format!("{} device(s) instead of {}", now.len(), before.len()));
    }
    let mut pairs = before.iter().zip(now);
    let (before, now) = pairs.find(|(before, now)| is_more(now.total, before.total))?;
    Some(format!("{} of memory instead of {}", shown(now.total), shown(before.total)))
}

fn preloads(context: &Context<'_>, outcome: &mut Outcome) {
    let file = context.host.text("/etc/ld.so.preload").unwrap_or_default();
    let variable = context.host.variable("LD_PRELOAD").unwrap_or_default();
    for (place, text) in [("/etc/ld.so.preload", file), ("LD_PRELOAD", variable)] {
        let words = ["cuda", "gpu", "nvidia", "hami"];
        let lower = text.to_ascii_lowercase();
        if words.iter().any(|word| lower.contains(word)) {
            let shown: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
            outcome.found(Finding::new(&c::PRELOAD, format!("{place}: {shown}")));
        } else if !text.is_empty() {
            let finding = Finding::new(&c::PRELOAD, format!("{place} preloads a library"));
            outcome.found(finding.at(Severity::Info));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(total: u64) -> Device {
        Device { name: "a".to_owned(), total, free: None }
    }

    #[test]
    fn more_memory_or_more_devices_is_a_gain() {
        assert_eq!(gained(&[device(1000)], &[device(1000)]), None);
        assert_eq!(gained(&[device(1000)], &[device(10)]), None);
        assert!(gained(&[device(1000)], &[device(2000)]).is_some());
        assert!(gained(&[], &[device(1)]).is_some());
    }
}
