//! What a child does with its order.

use std::io::{Read, Write};
use std::path::Path;

use super::cuda::{CallError, Cuda};
use super::launch::MARK;
use super::nvml::Nvml;
use super::{Answer, Api, Device, Order, Residue, Taken, Task};

/// Largest piece that is read at once, bytes.
const WINDOW: u64 = 4 << 20;
/// What allocations are rounded up to, so that no path rounds further, bytes.
const ROUND: u64 = 2 << 20;
/// Largest single allocation, bytes.
const LARGEST_PIECE: u64 = 1 << 30;

/// Carries an order out, writes the answer to standard output, and waits for the end of
/// standard input when the order says so. What was taken goes with the process.
///
/// # Errors
/// When the order is none, or nobody takes the answer.
pub(crate) fn serve(order: &str, mut out: impl Write) -> std::io::Result<()> {
    let order: Order = serde_json::from_str(order)?;
    let holds = matches!(order.task, Task::Hold { .. });
    // The library stays open for as long as memory is to be held.
    let (answer, _keep) = carry_out(&order);
    let text = serde_json::to_string(&answer)?;
    // A line of its own, whatever the library wrote before.
    writeln!(out, "\n{MARK}{text}")?;
    out.flush()?;
    if holds {
        std::io::stdin().read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

fn carry_out(order: &Order) -> (Answer, Option<Cuda>) {
    if let Task::Nvml | Task::Administer { .. } = order.task {
        return (ask_nvml(&order.task), None);
    }
    let cuda = match Cuda::open(order.library.as_deref()) {
        Ok(cuda) => cuda,
        Err(None) => return (Answer::NoLibrary(shown(order.library.as_deref())), None),
        Err(Some(error)) => return (Answer::Failed(format!("cuInit: {error}")), None),
    };
    let answer = ask_cuda(&cuda, &order.task);
    (answer.unwrap_or_else(|error| Answer::Failed(error.to_string())), Some(cuda))
}

fn shown(library: Option<&Path>) -> String {
    library.map_or_else(|| "libcuda.so.1".to_owned(), |path| path.display().to_string())
}

fn ask_nvml(task: &Task) -> Answer {
    match Nvml::open() {
        Ok(nvml) => match task {
            Task::Administer { destructive } => Answer::Administered(nvml.administer(*destructive)),
            _ => Answer::Nvml(nvml.gpus()),
        },
        Err(None) => Answer::NoLibrary("libnvidia-ml.so.1".to_owned()),
        Err(Some(reason)) => Answer::Failed(reason),
    }
}

fn ask_cuda(cuda: &Cuda, task: &Task) -> Result<Answer, CallError> {
    match *task {
        Task::Devices => devices(cuda).map(Answer::Devices),
        Task::Take { api, device, bytes } => take(cuda, api, device, bytes).map(Answer::Taken),
        Task::Hold { device, bytes } => take(cuda, Api::Alloc, device, bytes).map(Answer::Taken),
        Task::Residue { device, bytes } => residue(cuda, device, bytes).map(Answer::Residue),
        Task::Peers => peers(cuda),
        Task::Nvml | Task::Administer { .. } => Ok(ask_nvml(task)),
    }
}

fn devices(cuda: &Cuda) -> Result<Vec<Device>, CallError> {
    let mut found = Vec::new();
    for ordinal in 0..cuda.count()? {
        let device = cuda.device(ordinal)?;
        let free = cuda.enter(device).and_then(|()| cuda.free_bytes()).ok();
        found.push(Device { name: cuda.name(device)?, total: cuda.total(device)?, free });
    }
    Ok(found)
}

fn take(cuda: &Cuda, api: Api, ordinal: u16, bytes: u64) -> Result<Taken, CallError> {
    let device = cuda.device(ordinal)?;
    cuda.enter(device)?;
    let rounded = |size: u64| size.div_ceil(ROUND).saturating_mul(ROUND);
    let piece = rounded(bytes / 2).clamp(ROUND, LARGEST_PIECE);
    let mut taken = 0;
    while taken < bytes {
        match cuda.take(api, device, piece.min(rounded(bytes - taken))) {
            Ok(got) => taken += got,
            Err(error) => return Ok(Taken { taken, refused: Some(error.to_string()) }),
        }
    }
    Ok(Taken { taken, refused: None })
}

fn residue(cuda: &Cuda, ordinal: u16, bytes: u64) -> Result<Residue, CallError> {
    cuda.enter(cuda.device(ordinal)?)?;
    let mut found = Residue { read: 0, nonzero: 0 };
    while found.read < bytes {
        let size = WINDOW.min(bytes - found.read);
        // What is full ends the search, and what was read until then counts.
        let Ok(address) = cuda.alloc(size) else { break };
        let mut window = vec![0; usize::try_from(size).map_err(|_| CallError::Size)?];
        cuda.read(address, &mut window)?;
        let nonzero = window.iter().filter(|byte| **byte != 0).count();
        found.nonzero += u64::try_from(nonzero).map_err(|_| CallError::Size)?;
        found.read += size;
    }
    Ok(found)
}

fn peers(cuda: &Cuda) -> Result<Answer, CallError> {
    let count = cuda.count()?;
    let mut reachable = Vec::new();
    for from in 0..count {
        for to in (0..count).filter(|to| *to != from) {
            if cuda.can_reach(cuda.device(from)?, cuda.device(to)?).unwrap_or(false) {
                reachable.push((from, to));
            }
        }
    }
    let mut exports = false;
    if count > 0 {
        cuda.enter(cuda.device(0)?)?;
        exports = cuda.alloc(WINDOW / 2).is_ok_and(|address| cuda.exports(address));
    }
    Ok(Answer::Peers { reachable, exports })
}
