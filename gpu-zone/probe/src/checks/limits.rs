use gpuzone_core::MemoryBytes;

use super::devices::reason;
use super::{Context, Outcome};
use crate::Severity;
use crate::catalog as c;
use crate::catalog::Entry;
use crate::driver::launch::Change;
use crate::driver::{Answer, Api, Task};
use crate::finding::Finding;
use crate::options::shown;

/// More than a driver rounds up, bytes.
const MARGIN: u64 = 16 << 20;

/// Variables in which others announce a limit of each device's memory. The number of the device
/// follows the first.
const LIMIT_VARIABLES: [&str; 3] =
    ["CUDA_DEVICE_MEMORY_LIMIT_", "CUDA_DEVICE_MEMORY_LIMIT", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"];

/// What a device's limit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// Less than the GPU has, bytes.
    Of(u64),
    /// All of the GPU.
    None,
}

fn limit(context: &Context<'_>, ordinal: u16) -> Limit {
    if let Some(limit) = context.options.limit {
        return Limit::Of(limit.get());
    }
    if let Some(limit) = in_variable(context, ordinal) {
        return Limit::Of(limit);
    }
    let Some(device) = context.seen.devices.get(usize::from(ordinal)) else { return Limit::None };
    // A lease of gpu-zone's has a limit, and its NVML shows the lease as if it were a GPU.
    if context.host.variable("GPUZONE_SLOT").is_some() {
        return Limit::Of(device.total);
    }
    match context.seen.gpu_of(device) {
        // The driver keeps some of the memory that NVML shows.
        Some(gpu) if device.total >= gpu.total / 10 * 9 => Limit::None,
        Some(_) | None => Limit::Of(device.total),
    }
}

/// A limit like HAMi's `CUDA_DEVICE_MEMORY_LIMIT_0=3000m`.
fn in_variable(context: &Context<'_>, ordinal: u16) -> Option<u64> {
    let names = [format!("{}{ordinal}", LIMIT_VARIABLES[0]), LIMIT_VARIABLES[1].to_owned()];
    names.iter().find_map(|name| parse(&context.host.variable(name)?))
}

fn parse(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(factor)?;
    (bytes > 0).then_some(bytes)
}

/// Whether the environment has a variable that a limit is read from.
pub(super) fn variables<'a>(context: &'a Context<'_>) -> Vec<&'a String> {
    let is_one = |name: &&String| LIMIT_VARIABLES.iter().any(|limit| name.starts_with(limit));
    context.host.variables().keys().filter(is_one).collect()
}

pub(super) fn announced(context: &mut Context<'_>, outcome: &mut Outcome) {
    if let Some(why) = &context.seen.no_cuda {
        return outcome.untested(why.clone());
    }
    for (ordinal, device) in (0_u16..).zip(&context.seen.devices) {
        if limit(context, ordinal) != Limit::None {
            continue;
        }
        let used = context.seen.gpu_of(device).map_or(0, |gpu| gpu.processes.len());
        let total = shown(device.total);
        let seen = format!("device {ordinal} ({}) offers all of its {total}", device.name);
        // Alone on a GPU there is nobody to be starved.
        let severity = if used > 0 { Severity::High } else { c::NO_LIMIT.severity };
        outcome.found(Finding::new(&c::NO_LIMIT, seen).at(severity));
    }
    for name in variables(context) {
        outcome.found(Finding::new(&c::LIMIT_IN_VARIABLE, format!("variable {name}")));
    }
}

const fn entry(api: Api) -> &'static Entry {
    match api {
        Api::Alloc => &c::PAST_ALLOC,
        Api::Pitch => &c::PAST_PITCH,
        Api::Async => &c::PAST_ASYNC,
        Api::Vmm => &c::PAST_VMM,
        Api::Managed => &c::PAST_MANAGED,
        Api::Globals => &c::PAST_GLOBALS,
        Api::Array => &c::PAST_ARRAY,
    }
}

/// The devices that have a limit which may be tried, and the limits in bytes.
fn triable(context: &Context<'_>, outcome: &mut Outcome) -> Vec<(u16, u64)> {
    if let Some(why) = &context.seen.no_cuda {
        outcome.untested(why.clone());
    }
    let mut found = Vec::new();
    for (ordinal, _) in (0_u16..).zip(&context.seen.devices) {
        match limit(context, ordinal) {
            Limit::None => {
                outcome.untested(format!("device {ordinal}: there is no limit; --limit names one"))
            }
            Limit::Of(bytes) if bytes > context.options.most.get() => outcome.untested(format!(
                "device {ordinal}: its limit {} is more than --most {}",
                shown(bytes),
                shown(context.options.most.get())
            )),
            Limit::Of(bytes) => found.push((ordinal, bytes)),
        }
    }
    found
}

pub(super) fn every_path(context: &mut Context<'_>, outcome: &mut Outcome) {
    for (ordinal, limit) in triable(context, outcome) {
        for api in Api::ALL {
            let bytes = limit.saturating_add(MARGIN);
            let what = shown(bytes);
            (context.announce)(&format!("asking {} for {what} of device {ordinal}", api.name()));
            let task = Task::Take { api, device: ordinal, bytes };
            match context.launcher.ask(task, &Change::default()) {
                Answer::Taken(taken) if taken.refused.is_none() => {
                    let (got, limit) = (shown(taken.taken), shown(limit));
                    let seen = format!("device {ordinal}: {got}, the limit is {limit}");
                    outcome.found(Finding::new(entry(api), seen));
                }
                Answer::Taken(_) => {}
                other => outcome.untested(format!("{}: {}", api.name(), reason(other))),
            }
        }
    }
}

pub(super) fn two_processes(context: &mut Context<'_>, outcome: &mut Outcome) {
    for (ordinal, limit) in triable(context, outcome) {
        // Each alone is below the limit, together they are above it.
        let bytes = limit / 8 * 5;
        let what = shown(bytes);
        (context.announce)(&format!(
            "asking for {what} of device {ordinal} in each of two processes"
        ));
        let hold = Task::Hold { device: ordinal, bytes };
        let first = context.launcher.start(hold.clone(), &Change::default());
        let second = match &first {
            Ok((Answer::Taken(taken), _)) if taken.refused.is_none() => {
                context.launcher.ask(hold, &Change::default())
            }
            Ok((other, _)) => {
                outcome.untested(format!("one process alone: {}", reason(other.clone())));
                continue;
            }
            Err(why) => {
                outcome.untested(why.clone());
                continue;
            }
        };
        if let Answer::Taken(taken) = second
            && taken.refused.is_none()
        {
            let seen = format!("device {ordinal}: twice {what}, the limit is {}", shown(limit));
            outcome.found(Finding::new(&c::PAST_SECOND_PROCESS, seen));
        }
    }
}

/// Whether a device offers clearly more than before, bytes.
pub(super) fn is_more(now: u64, before: u64) -> bool {
    now > before.saturating_add(before / 100).max(MemoryBytes::ZERO.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_others_are_read() {
        assert_eq!(parse("3000m"), Some(3000 << 20));
        assert_eq!(parse("2G"), Some(2 << 30));
        assert_eq!(parse("1024"), Some(1024));
        for none in ["", "0", "m", "12x", "99999999999999999999"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }
}
