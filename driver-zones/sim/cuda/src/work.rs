//! What an executor does.

use std::sync::{Arc, LazyLock};

use gpuzone_cuda_abi::CuResult;
use gpuzone_sim_device::DeviceMap;
use gpuzone_sim_ptx::{Dim3, Fault, Launch, execute};

use crate::Answer;
use crate::abi::{HostBytes, HostFunction};
use crate::context::Context;
use crate::driver::report;
use crate::engine::transfer;
use crate::event::Event;
use crate::function::Function;

pub(crate) enum Work {
    Launch(LaunchWork),
    ToDevice { to: u64, from: Source },
    ToHost { to: HostBytes, from: u64 },
    OnDevice { to: u64, from: u64, bytes: u64 },
    Fill { at: u64, bytes: u64, pattern: Pattern },
    Record { event: Arc<Event>, number: u64 },
    WaitFor { event: Arc<Event>, number: u64 },
    Free { address: u64 },
    Call(HostFunction),
}

/// Where a copy to the device reads from.
pub(crate) enum Source {
    /// The program's memory, which it leaves alone until the copy is done.
    Direct(HostBytes),
    /// A copy, because the program may change its own at once.
    Staged(Vec<u8>),
}

/// A value that is repeated: the low `width` bytes of `value`.
#[derive(Clone, Copy)]
pub(crate) struct Pattern {
    pub(crate) value: u32,
    pub(crate) width: Width,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    One,
    Two,
    Four,
}

impl Width {
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
        }
    }
}

pub(crate) struct LaunchWork {
    pub(crate) function: Arc<Function>,
    pub(crate) grid: Dim3,
    pub(crate) block: Dim3,
    pub(crate) dynamic_shared_bytes: u32,
    pub(crate) cooperative: bool,
    pub(crate) params: Vec<u8>,
}

/// Does one piece of work. After a fault, or while the context goes, nothing touches memory
/// any more, but whoever waits is told that its turn came, by what is returned.
pub(crate) fn perform(context: &Context, work: Work) -> Option<impl FnOnce() + use<>> {
    let done = match work {
        Work::Record { event, number } => return Some(move || event.reach(number)),
        Work::WaitFor { event, number } => {
            event.wait_unless(number, || context.is_over());
            Ok(())
        }
        Work::Free { address } => context.memory().free(address),
        _ if context.is_over() => Ok(()),
        Work::Call(function) => {
            function.call();
            Ok(())
        }
        Work::Launch(launch) => busy(context, || run_kernel(context, &launch)),
        Work::ToDevice { to, from } => busy(context, || copy_to_device(context, to, &from)),
        Work::ToHost { to, from } => busy(context, || copy_to_host(context, to, from)),
        Work::OnDevice { to, from, bytes } => {
            busy(context, || copy_on_device(context, to, from, bytes))
        }
        Work::Fill { at, bytes, pattern } => busy(context, || fill(context, at, bytes, pattern)),
    };
    if let Err(result) = done {
        context.stick(result);
    }
    None
}

fn busy(context: &Context, action: impl FnOnce() -> Answer) -> Answer {
    let _guard = context.gpu().attachment.busy();
    action()
}

/// Host threads for a kernel. To ask for it takes several system calls.
static THREADS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));

fn run_kernel(context: &Context, work: &LaunchWork) -> Answer {
    let function = &work.function;
    let module = function.module();
    let clock_mhz = u64::from(context.gpu().config().clock_mhz);
    let launch = Launch {
        grid: work.grid,
        block: work.block,
        dynamic_shared_bytes: work.dynamic_shared_bytes,
        cooperative: work.cooperative,
        params: &work.params,
        globals: module.global_addresses(),
        prints: context.prints(),
        cancel: context.cancel_flag(),
        threads: *THREADS,
        clock_hz: clock_mhz * 1_000_000,
    };
    let memory = context.memory().view();
    match execute(module.code(), function.kernel()?, &launch, &memory) {
        Ok(_) => Ok(()),
        Err(fault) => {
            let gpu = context.gpu().ordinal;
            if fault != Fault::Cancelled {
                report(&format!("GPU {gpu}: kernel '{}' ended: {fault}", function.name()));
            }
            if let Some(xid) = xid_of(&fault)
                && let Err(error) = context.gpu().attachment.gpu().report_xid(xid)
            {
                report(&format!("GPU {gpu}: Xid {xid} is not reported: {error}"));
            }
            Err(result_of(&fault))
        }
    }
}

/// What a driver reports of it.
fn xid_of(fault: &Fault) -> Option<u64> {
    match fault {
        Fault::IllegalAddress { .. } => Some(31),
        Fault::MisalignedAddress { .. } | Fault::InvalidProgram(_) | Fault::Trap => Some(13),
        Fault::LaunchTimeout => Some(8),
        Fault::Assert(_) | Fault::BarrierDeadlock | Fault::InvalidLaunch(_) | Fault::Cancelled => {
            None
        }
    }
}

fn result_of(fault: &Fault) -> CuResult {
    match fault {
        Fault::IllegalAddress { .. } => CuResult::ILLEGAL_ADDRESS,
        Fault::MisalignedAddress { .. } => CuResult::MISALIGNED_ADDRESS,
        Fault::InvalidProgram(_) => CuResult::ILLEGAL_INSTRUCTION,
        Fault::Assert(_) => CuResult::ASSERT,
        Fault::LaunchTimeout => CuResult::LAUNCH_TIMEOUT,
        Fault::Trap | Fault::BarrierDeadlock | Fault::InvalidLaunch(_) | Fault::Cancelled => {
            CuResult::LAUNCH_FAILED
        }
    }
}

/// Where a live range lies in this process. It was live when the call was made; whoever freed
/// it in the meantime made the copy an illegal access.
fn live(context: &Context, address: u64, bytes: u64) -> Answer<(*mut u8, usize)> {
    context.memory().host(address, bytes).map_err(|_| CuResult::ILLEGAL_ADDRESS)
}

fn copy_to_device(context: &Context, to: u64, from: &Source) -> Answer {
    let (source, len) = match from {
        Source::Direct(bytes) => (bytes.as_ptr(), bytes.len),
        Source::Staged(bytes) => (bytes.as_ptr(), bytes.len()),
    };
    let (target, len) = live(context, to, u64::try_from(len).unwrap_or(u64::MAX))?;
    // SAFETY: the target is mapped, and only this thread touches this context's memory now; the
    // program promised the source until the copy is done, or it is our own. They may overlap
    // only if the program passed an address of the map itself, which `transfer` allows.
    unsafe { transfer(source, target, len) };
    Ok(())
}

fn copy_to_host(context: &Context, to: HostBytes, from: u64) -> Answer {
    let (source, len) = live(context, from, u64::try_from(to.len).unwrap_or(u64::MAX))?;
    // SAFETY: as in `copy_to_device`, with the roles exchanged.
    unsafe { transfer(source, to.as_mut_ptr(), len) };
    Ok(())
}

fn copy_on_device(context: &Context, to: u64, from: u64, bytes: u64) -> Answer {
    let (source, len) = live(context, from, bytes)?;
    let (target, _) = live(context, to, bytes)?;
    // SAFETY: both ranges are mapped, and only this thread touches this context's memory now.
    unsafe { std::ptr::copy(source.cast_const(), target, len) };
    Ok(())
}

fn fill(context: &Context, at: u64, bytes: u64, pattern: Pattern) -> Answer {
    live(context, at, bytes)?;
    let bytes = context.gpu().memset_fault.map_or(bytes, |fault| fault.bytes(bytes));
    let map = context.gpu().attachment.map();
    if pattern.value == 0
        && let Some((start, punched)) = DeviceMap::punchable(at, bytes)
        && map.punch(start, punched)
    {
        let end = start + punched;
        write_pattern(context, at, start - at, pattern)?;
        return write_pattern(context, end, at + bytes - end, pattern);
    }
    write_pattern(context, at, bytes, pattern)
}

fn write_pattern(context: &Context, at: u64, bytes: u64, pattern: Pattern) -> Answer {
    if bytes == 0 {
        return Ok(());
    }
    let (target, len) = live(context, at, bytes)?;
    let [a, b, c, d] = pattern.value.to_le_bytes();
    // A multiple of every width, so that each piece begins where the pattern does. The range
    // begins at a multiple of the width, as do page boundaries.
    let piece: Vec<u8> = match pattern.width {
        Width::One => [a].repeat(4096),
        Width::Two => [a, b].repeat(2048),
        Width::Four => [a, b, c, d].repeat(1024),
    };
    let mut done = 0;
    while done < len {
        let n = piece.len().min(len - done);
        // SAFETY: within the live range, which is mapped and touched by this thread only.
        unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), target.add(done), n) };
        done += n;
    }
    Ok(())
}
