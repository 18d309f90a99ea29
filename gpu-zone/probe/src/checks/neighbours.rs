use super::{Context, Outcome};
use crate::catalog as c;
use crate::finding::Finding;
use crate::options::shown;

pub(super) fn check(context: &mut Context<'_>, outcome: &mut Outcome) {
    if let Some(why) = &context.seen.no_nvml {
        return outcome.untested(why.clone());
    }
    for (index, gpu) in context.seen.gpus.iter().enumerate() {
        // The child that asked has no context and so is not among them.
        if !gpu.processes.is_empty() {
            let known =
                gpu.processes.iter().map(|(_, used)| *used).filter(|used| *used != u64::MAX);
            let memory = shown(known.sum());
            let count = gpu.processes.len();
            let seen = format!("GPU {index} ({}): {count} process(es) with {memory}", gpu.name);
            outcome.found(Finding::new(&c::NEIGHBOURS, seen));
        }
        let device = context.seen.devices.iter().find(|device| device.name == gpu.name);
        let smaller = device.is_none_or(|device| device.total < gpu.total / 10 * 9);
        if !gpu.processes.is_empty() || (smaller && gpu.used > 0) {
            let seen = format!(
                "GPU {index} ({}): {} of {} in use",
                gpu.name,
                shown(gpu.used),
                shown(gpu.total)
            );
            outcome.found(Finding::new(&c::WHOLE_GPU_STATE, seen));
        }
    }
}
