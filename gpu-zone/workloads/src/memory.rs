//! Programs that go to the limits of their memory, and beyond.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cudarc::driver::{CudaSlice, DriverError, LaunchConfig, PushKernelArg, sys};
use gpuzone_core::MemoryBytes;

use crate::device::{Device, name, named};

/// What `crash` exits with when the access was caught as it should be.
const CAUGHT: u8 = 42;
/// What `hold` fills its memory with.
const PATTERN: u8 = 0xA5;

/// Everything that could be had, and the error that ended it.
struct Hoard {
    memory: Vec<CudaSlice<u8>>,
    bytes: u64,
    refusal: DriverError,
}

/// Allocates `step` again and again; when that is refused, halves of it, down to one byte.
fn hoard(device: &Device, step: MemoryBytes) -> anyhow::Result<Hoard> {
    let mut size = usize::try_from(step.get())?;
    ensure!(size > 0, "--step 0 would never be refused; write a size above zero");
    let (mut memory, mut bytes) = (Vec::new(), 0);
    loop {
        match device.allocate(size) {
            Ok(slice) => {
                bytes += u64::try_from(size)?;
                memory.push(slice);
            }
            Err(refusal) if refusal.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                return Err(named(refusal).context(format!("after {bytes} bytes")));
            }
            Err(refusal) if size == 1 => return Ok(Hoard { memory, bytes, refusal }),
            Err(_) => size /= 2,
        }
    }
}

#[expect(clippy::print_stdout, reason = "a program's output")]
pub(crate) fn hog(
    device: &Device,
    step: MemoryBytes,
    expect: Option<MemoryBytes>,
    rounds: u32,
    seconds: f64,
) -> anyhow::Result<String> {
    let pause = duration(seconds)?;
    let mut line = String::new();
    let rounds = rounds.max(1);
    for round in 1..=rounds {
        let got = hoard(device, step)?;
        line = format!(
            "hog: got_bytes={} allocations={} refused={}",
            got.bytes,
            got.memory.len(),
            name(got.refusal)
        );
        if let Some(expect) = expect.filter(|expect| expect.get() != got.bytes) {
            bail!("{line} expected_bytes={} round={round}", expect.get());
        }
        if round == rounds && !pause.is_zero() {
            println!("hog: full got_bytes={}", got.bytes);
            std::thread::sleep(pause);
        }
    }
    Ok(line)
}

fn duration(seconds: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(seconds).context("--seconds is no length of time")
}

#[expect(clippy::print_stdout, reason = "a program's output")]
pub(crate) fn crash(device: &Device, memory: Option<MemoryBytes>) -> anyhow::Result<u8> {
    let _held = memory.map(|memory| filled(device, memory)).transpose()?;
    let kernel = device.kernel("faults.ptx", "write_out_of_bounds")?;
    let mut words = device.upload(&[0_u32; 16])?;
    let distance = 1_u64 << 44;
    let mut launch = device.stream.launch_builder(&kernel);
    launch.arg(&mut words).arg(&distance);
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the arguments are the kernel's. That it writes outside its memory is its purpose;
    // the device catches it, and the host's memory is out of its reach.
    let launched = unsafe { launch.launch(config) }.map(drop);
    let Err(error) = launched.and_then(|()| device.stream.synchronize()) else {
        bail!("crash: the stray write went through, nothing caught it");
    };
    println!("crash: {}", name(error));
    ensure!(
        error.0 == sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
        "crash: expected CUDA_ERROR_ILLEGAL_ADDRESS"
    );
    match device.allocate(16) {
        Err(again) if again == error => Ok(CAUGHT),
        Err(other) => bail!("crash: the context's next error was {}", name(other)),
        Ok(_) => bail!("crash: the context went on as if nothing had happened"),
    }
}

#[expect(clippy::print_stdout, reason = "a program's output")]
pub(crate) fn hold(device: &Device, memory: MemoryBytes, seconds: f64) -> anyhow::Result<String> {
    let pause = duration(seconds)?;
    let slice = filled(device, memory)?;
    let bytes = slice.num_bytes();
    println!("hold: holding bytes={bytes}");
    std::thread::sleep(pause);
    Ok(format!("hold: done bytes={bytes}"))
}

fn filled(device: &Device, memory: MemoryBytes) -> anyhow::Result<CudaSlice<u8>> {
    let bytes = usize::try_from(memory.get())?;
    let slice = device.allocate(bytes).map_err(named).context("cannot get the memory")?;
    fill(device, &slice)?;
    Ok(slice)
}

fn fill(device: &Device, slice: &CudaSlice<u8>) -> anyhow::Result<()> {
    use cudarc::driver::{DevicePtr, result};
    let (pointer, _recorded) = slice.device_ptr(&device.stream);
    // SAFETY: the range is the slice's own, which outlives the synchronisation below.
    unsafe {
        result::memset_d8_async(pointer, PATTERN, slice.num_bytes(), device.stream.cu_stream())
    }
    .map_err(named)?;
    device.stream.synchronize().map_err(named)
}

pub(crate) fn leak_check(device: &Device, memory: Option<MemoryBytes>) -> anyhow::Result<String> {
    const CHUNK: u64 = 64 << 20;
    let mut left = memory.map_or_else(|| device.free_memory(), Ok)?.get();
    // Kept until the end, so that no chunk is the one before.
    let (mut chunks, mut checked) = (Vec::new(), 0_u64);
    while left > 0 {
        let size = left.min(CHUNK);
        let chunk = match device.allocate(usize::try_from(size)?) {
            Ok(chunk) => chunk,
            // The last bit may go to the driver's own bookkeeping.
            Err(error)
                if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY && memory.is_none() =>
            {
                break;
            }
            Err(error) => return Err(named(error)),
        };
        let bytes = device.download(&chunk)?;
        if let Some(position) = bytes.iter().position(|byte| *byte != 0) {
            let offset = checked + u64::try_from(position)?;
            bail!("leak-check: byte {offset} is {:#04x}: another's data", bytes[position]);
        }
        checked += size;
        left -= size;
        chunks.push(chunk);
    }
    ensure!(checked > 0, "leak-check: there was no memory to look at");
    Ok(format!("leak-check: ok bytes={checked} all zero"))
}
