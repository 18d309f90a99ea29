use super::devices::reason;
use super::{Context, Outcome};
use crate::catalog as c;
use crate::driver::launch::Change;
use crate::driver::{Answer, Task};
use crate::finding::Finding;

pub(super) fn calls(context: &mut Context<'_>, outcome: &mut Outcome) {
    let destructive = context.options.destructive;
    let what = if destructive { ", and ending locked clocks" } else { "" };
    if let Some(why) = &context.seen.no_nvml {
        return outcome.untested(why.clone());
    }
    (context.announce)(&format!("setting modes of the GPUs by NVML to what they are{what}"));
    match context.launcher.ask(Task::Administer { destructive }, &Change::default()) {
        Answer::Administered(attempts) => {
            for attempt in attempts.iter().filter(|attempt| attempt.permitted) {
                let seen = format!("{} of GPU {}", attempt.call, attempt.gpu);
                outcome.found(Finding::new(&c::ADMINISTRATION, seen));
            }
            if attempts.is_empty() {
                outcome.untested("NVML does not say what is set");
            }
        }
        other => outcome.untested(reason(other)),
    }
}

pub(super) fn profiling(context: &mut Context<'_>, outcome: &mut Outcome) {
    let Some(parameters) = context.host.text("/proc/driver/nvidia/params") else {
        return outcome.untested("/proc/driver/nvidia/params is not there");
    };
    let restricted = parameters.lines().find_map(|line| line.strip_prefix("RmProfilingAdminOnly:"));
    if restricted.map(str::trim) == Some("0") {
        outcome.found(Finding::new(&c::PROFILING, "RmProfilingAdminOnly: 0"));
    }
}
