use super::{Context, Outcome};
use crate::catalog as c;
use crate::driver::launch::{Change, Launcher};
use crate::driver::{Answer, Device, NvmlGpu, Task};
use crate::finding::Finding;

/// What the workload is shown of its GPUs.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) devices: Vec<Device>,
    /// Why there are none.
    pub(crate) no_cuda: Option<String>,
    pub(crate) gpus: Vec<NvmlGpu>,
    /// Why there are none.
    pub(crate) no_nvml: Option<String>,
}

impl Seen {
    /// Asks CUDA and NVML.
    pub(crate) fn ask(launcher: &Launcher) -> Self {
        let mut seen = Self::default();
        match launcher.ask(Task::Devices, &Change::default()) {
            Answer::Devices(devices) if devices.is_empty() => {
                seen.no_cuda = Some("CUDA shows no device".to_owned());
            }
            Answer::Devices(devices) => seen.devices = devices,
            other => seen.no_cuda = Some(reason(other)),
        }
        match launcher.ask(Task::Nvml, &Change::default()) {
            Answer::Nvml(gpus) => seen.gpus = gpus,
            other => seen.no_nvml = Some(reason(other)),
        }
        seen
    }

    /// The GPU behind a device, when NVML shows one of that name.
    pub(crate) fn gpu_of(&self, device: &Device) -> Option<&NvmlGpu> {
        self.gpus.iter().find(|gpu| gpu.name == device.name)
    }
}

/// Why an answer is not the one that was hoped for.
pub(crate) fn reason(answer: Answer) -> String {
    match answer {
        Answer::NoLibrary(name) => format!("{name} cannot be opened"),
        Answer::Failed(reason) => reason,
        Answer::Taken(taken) => taken.refused.unwrap_or_default(),
        Answer::Devices(_)
        | Answer::Residue(_)
        | Answer::Peers { .. }
        | Answer::Nvml(_)
        | Answer::Administered(_) => "the answer is of another kind".to_owned(),
    }
}

pub(super) fn peers(context: &mut Context<'_>, outcome: &mut Outcome) {
    if let Some(why) = &context.seen.no_cuda {
        return outcome.untested(why.clone());
    }
    match context.launcher.ask(Task::Peers, &Change::default()) {
        Answer::Peers { reachable, exports } => {
            if let Some((from, to)) = reachable.first() {
                let seen = format!("{} pairs, device {from} to {to} among them", reachable.len());
                outcome.found(Finding::new(&c::PEERS, seen));
            }
            if exports {
                outcome.found(Finding::new(&c::IPC_HANDLES, "cuIpcGetMemHandle gives a handle"));
            }
        }
        other => outcome.untested(reason(other)),
    }
}
