//! Clears what an ended lease gave back, and shows that it is clear.
//!
//! The driver does not say which of the free bytes were whose, so all free memory is taken, as
//! far as no other lease may ask for it meanwhile: in pieces that get smaller until nothing more
//! is to be had. Then, on each GPU:
//!
//! 1. canaries, a different one at each of many random places, are written by the device and
//!    read back: what is read is what was written, to the place where it was written;
//! 2. every byte is overwritten with zeros by the device;
//! 3. those places and as many fresh ones are read back: all zero.
//!
//! **What that proves**: this driver writes and reads where it says, at the places looked at, of
//! which each allocation has at least one. A stretch that it left out would have to hide between
//! random places: of the 128 that 8 MiB are, one of a hundredth of the memory is missed by all
//! with a chance of about one in four, one of a tenth with one in seven hundred thousand. When the
//! sample is as large as the memory, every byte is compared.
//! **What it does not**: bytes that other leases may ask for at any moment are left alone and
//! reported; so are those under this process's own context. Each worker zeroes what it gives out.

mod memory;
mod places;
mod turn;

use std::io::{BufRead, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpuzone_core::{ComputeShare, GpuUuid, Grant, MemoryBytes};
use gpuzone_cuda_abi::{CUdevice, CuResult};
use gpuzone_wire::scrub::{SCRUB_TURNS_FD, ScrubGpu, ScrubReport, ScrubSpec};

use crate::driver::{DeviceError, Driver, LoadError, devices, show_instances};
use crate::nvml::OwnUse;
use crate::turns::Turns;
use memory::Held;
use places::Places;
use turn::Turn;

/// Why nothing was scrubbed.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// No orders.
    #[error("cannot read the orders: {0}")]
    Orders(#[source] std::io::Error),
    /// Orders that are none.
    #[error("the orders are no orders: {0}")]
    Json(#[from] serde_json::Error),
    /// No driver.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No such GPU.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No turns.
    #[error("cannot take turns: {0}")]
    Turns(#[source] std::io::Error),
    /// Nobody to tell.
    #[error("cannot report: {0}")]
    Report(#[source] std::io::Error),
}

/// Why it is not shown that a GPU's memory is clear.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the driver cannot {action}: {result}")]
    Driver { action: &'static str, result: CuResult },
    #[error(
        "only {held} of at least {wanted} were free; something that is no lease holds the rest"
    )]
    TooLittle { held: MemoryBytes, wanted: MemoryBytes },
    #[error("what was written as {wrote:#010x} was read back as {read:#010x} at {at:#x}")]
    Canary { wrote: u32, read: u32, at: u64 },
    #[error("byte {at:#x} is {value:#04x} after it was overwritten with zeros")]
    Residue { at: u64, value: u8 },
    #[error(
        "it was not done within {} s, of which it waited {:.1} s for its turns beside other leases",
        .limit.as_secs(), .waited.as_secs_f32()
    )]
    Late { limit: Duration, waited: Duration },
}

fn ask(action: &'static str, result: CuResult) -> Result<(), Failure> {
    result.ok().map_err(|result| Failure::Driver { action, result })
}

/// Reads orders from standard input, does them, and writes the reports to standard output.
///
/// # Errors
/// When nothing could be done.
pub fn run() -> Result<(), ScrubError> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(ScrubError::Orders)?;
    let spec: ScrubSpec = serde_json::from_str(&line)?;
    // SAFETY: the first thread is started below, and the driver is opened after it.
    unsafe { show_instances(spec.order.gpus.iter().map(|gpu| gpu.gpu)) };
    std::thread::spawn(end_with_the_broker);
    let driver = Driver::open(&spec.cuda_library)?;
    let own_use = OwnUse::open(&spec.nvml_library);
    let grant =
        |gpu: &ScrubGpu| Grant { gpu: gpu.gpu, memory: gpu.at_most, share: ComputeShare::WHOLE };
    let grants: Vec<Grant> = spec.order.gpus.iter().map(grant).collect();
    let (_, devices) = devices(&driver, &grants)?;
    let limit = Duration::from_millis(spec.order.limit_ms);
    let turns = if spec.arbitrated { Some(turns(devices.len())?) } else { None };
    let turns = turns.as_deref();
    let sample = spec.order.sample;
    let scrub = Scrub { driver: &driver, own_use: &own_use, sample, limit, turns };
    let reports: Vec<ScrubReport> = std::thread::scope(|scope| {
        let each = spec.order.gpus.iter().zip(&devices).enumerate();
        let scrub = &scrub;
        let started: Vec<_> = each
            .map(|(number, (gpu, device))| {
                (gpu.gpu, scope.spawn(move || scrub.gpu(number, gpu, device.ordinal)))
            })
            .collect();
        let ended = started.into_iter().map(|(gpu, thread)| {
            thread.join().unwrap_or_else(|_| report(gpu, Some("its thread panicked".to_owned())))
        });
        ended.collect()
    });
    let mut stdout = std::io::stdout();
    serde_json::to_writer(&mut stdout, &reports)?;
    stdout.write_all(b"\n").and_then(|()| stdout.flush()).map_err(ScrubError::Report)
}

/// The socket for turns that the broker handed over.
fn turns(gpus: usize) -> Result<Arc<Turns>, ScrubError> {
    // SAFETY: the orders say that the broker handed it over, and nobody else in this process has
    // touched it.
    let listener = unsafe { OwnedFd::from_raw_fd(SCRUB_TURNS_FD) };
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)
        .map_err(|errno| ScrubError::Turns(errno.into()))?;
    let turns = Turns::new(gpus);
    turns.listen(listener).map_err(ScrubError::Turns)?;
    Ok(turns)
}

/// Memory that nobody waits for any more must not stay taken.
fn end_with_the_broker() {
    let mut rest = Vec::new();
    let _ = std::io::stdin().lock().read_to_end(&mut rest);
    eprintln!("the broker is gone, and nobody waits for this scrub any more");
    std::process::exit(1);
}

fn report(gpu: GpuUuid, failure: Option<String>) -> ScrubReport {
    ScrubReport {
        gpu,
        overwritten: MemoryBytes::ZERO,
        compared: MemoryBytes::ZERO,
        left: MemoryBytes::ZERO,
        method: "none".to_owned(),
        nanoseconds: 0,
        failure,
    }
}

struct Scrub<'a> {
    driver: &'a Driver,
    own_use: &'a OwnUse,
    sample: MemoryBytes,
    limit: Duration,
    turns: Option<&'a Turns>,
}

impl Scrub<'_> {
    fn gpu(&self, number: usize, gpu: &ScrubGpu, ordinal: CUdevice) -> ScrubReport {
        let began = Instant::now();
        let mut done = report(gpu.gpu, None);
        // What is left of the limit is enough without turns, or it never was.
        let turn = Turn::new(self.turns, number, self.limit / 2);
        let cleared = self.context(gpu, ordinal, began, &turn, &mut done);
        done.failure = cleared.err().map(|error| error.to_string());
        done.nanoseconds = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        done
    }

    /// All in a context of its own; what it took goes with it.
    fn context(
        &self,
        gpu: &ScrubGpu,
        ordinal: CUdevice,
        began: Instant,
        turn: &Turn<'_>,
        done: &mut ScrubReport,
    ) -> Result<(), Failure> {
        let mut context = std::ptr::null_mut();
        // SAFETY: a place for the answer, and a GPU that the driver named.
        let made = unsafe { (self.driver.context_create)(&raw mut context, 0, ordinal) };
        ask("make a context", made)?;
        let cleared = self.clear(gpu, began, turn, done);
        // SAFETY: the context made above, on the thread that made it; nothing of it is used after.
        let ended = unsafe { (self.driver.context_destroy)(context) };
        cleared.and(ask("end the context", ended))
    }

    fn clear(
        &self,
        gpu: &ScrubGpu,
        began: Instant,
        turn: &Turn<'_>,
        done: &mut ScrubReport,
    ) -> Result<(), Failure> {
        let in_time = || match began.elapsed() <= self.limit {
            true => Ok(()),
            false => Err(Failure::Late { limit: self.limit, waited: turn.waited() }),
        };
        let own = self.own_use.bytes(gpu.gpu).unwrap_or(0);
        let held = Held::take(self.driver, gpu, own, &in_time)?;
        done.overwritten = held.bytes();
        done.left = held.left();
        let whole = self.sample >= held.bytes();
        let places = Places::choose(&held, self.sample);
        turn.with(|| places.write_canaries(&held))?;
        in_time()?;
        places.read_canaries(&held)?;
        held.zero(turn, &in_time)?;
        in_time()?;
        let compared = if whole {
            held.compare_all(turn, &in_time)?
        } else {
            places.compare_zeros(&held)?
                + Places::choose(&held, self.sample).compare_zeros(&held)?
        };
        done.compared = MemoryBytes::saturating(compared);
        done.method = format!(
            "canaries at {} places, zeros over all, zeros read back {}",
            places.count(),
            if whole { "everywhere".to_owned() } else { format!("at {}", 2 * places.count()) },
        );
        if turn.is_out_of_patience() {
            done.method += ", in part without turns";
        }
        in_time()
    }
}
