//! Tenant programs: a plain client of CUDA's driver API that knows nothing of gpu-zone. The
//! demo and the tests run it in a lease; with a real driver it runs on a real GPU as well.
//!
//! Each program checks its results against the CPU. Exit codes: 0 all right, 1 a wrong result
//! or an error of CUDA, 42 the illegal access that `crash` is there for.

mod compute;
mod device;
mod figures;
mod input;
mod memory;
mod meter;
mod numbers;
mod smi;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gpuzone_core::MemoryBytes;

use crate::device::Device;

/// CUDA programs that check their own results.
#[derive(Debug, Parser)]
#[command(name = "gpuzone-workload", version)]
struct Arguments {
    /// Folder of the kernels' PTX files.
    #[arg(long, global = true, env = "GPUZONE_KERNELS", value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// Index of the device.
    #[arg(long, global = true, default_value_t = 0)]
    device: u16,
    #[command(subcommand)]
    program: Program,
}

#[derive(Debug, Subcommand)]
enum Program {
    /// Print the devices and their memory.
    Info,
    /// Add two vectors.
    VectorAdd {
        /// Elements.
        #[arg(short, long, default_value_t = 100_000)]
        n: u32,
    },
    /// Scale a vector and add another one.
    Saxpy {
        /// Elements.
        #[arg(short, long, default_value_t = 100_000)]
        n: u32,
    },
    /// Multiply two square matrices in tiles of shared memory.
    Matmul {
        /// Rows and columns.
        #[arg(short, long, default_value_t = 128)]
        n: u32,
    },
    /// Softmax of each row of a matrix.
    Softmax {
        /// Rows.
        #[arg(long, default_value_t = 64)]
        rows: u32,
        /// Columns.
        #[arg(long, default_value_t = 500)]
        columns: u32,
    },
    /// Sum up a vector with warp shuffles.
    Reduce {
        /// Elements.
        #[arg(short, long, default_value_t = 100_000)]
        n: u32,
    },
    /// Count bytes with atomics.
    Histogram {
        /// Bytes.
        #[arg(short, long, default_value_t = 100_000)]
        n: u32,
    },
    /// Allocate until it is refused, then say how much that was.
    Hog {
        /// Size of each allocation; the last ones are smaller.
        #[arg(long, default_value = "64Mi")]
        step: MemoryBytes,
        /// Exit with 1 unless it was exactly this much.
        #[arg(long)]
        expect: Option<MemoryBytes>,
        /// Free everything and start over so many times.
        #[arg(long, default_value_t = 1)]
        rounds: u32,
        /// Keep the memory for so long at the end.
        #[arg(long, default_value_t = 0.0)]
        seconds: f64,
    },
    /// Write where nothing is allocated.
    Crash {
        /// Allocate so much and fill it before.
        #[arg(long)]
        memory: Option<MemoryBytes>,
    },
    /// Launch one kernel that runs for very long, and wait for it.
    Spin {
        /// Rounds; a thousand million take seconds or more.
        #[arg(long, default_value_t = u64::MAX)]
        rounds: u64,
    },
    /// Multiply matrices, and check them, for a time.
    Loop {
        /// For how long; until the standard input ends, if it is not said.
        #[arg(long)]
        seconds: Option<f64>,
        /// Rows and columns.
        #[arg(short, long, default_value_t = 64)]
        n: u32,
    },
    /// Launch grids whose blocks wait for each other, and check them, for a time.
    Together {
        /// For how long.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Launch a small kernel again and again, check each result, and say how often that was,
    /// until the standard input ends.
    Meter {
        /// How often to say it, in milliseconds.
        #[arg(long, default_value_t = 100)]
        every: u32,
    },
    /// Fill memory with a pattern and keep it for a time.
    Hold {
        /// How much.
        #[arg(long)]
        memory: MemoryBytes,
        /// For how long.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Measure what calls cost, as JSON.
    Figures {
        /// Launches of an empty kernel in a row.
        #[arg(long, default_value_t = 100_000)]
        launches: u32,
        /// Calls of other kinds.
        #[arg(long, default_value_t = 20_000)]
        calls: u32,
        /// Size of copies.
        #[arg(long, default_value = "32Mi")]
        copy: MemoryBytes,
        /// How often what takes long is done.
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// Rows and columns of matrices to multiply; several times for several sizes.
        #[arg(long)]
        matmul: Vec<u32>,
        /// Only those with this in their names; several times for several.
        #[arg(long)]
        only: Vec<String>,
    },
    /// List GPUs and processes by NVML, as JSON; with memory in use, if any is named.
    Smi {
        /// Allocate this much before.
        #[arg(long)]
        memory: Option<MemoryBytes>,
    },
    /// Allocate nearly all free memory and check that it holds nothing but zeros.
    LeakCheck {
        /// Look at this much instead.
        #[arg(long)]
        memory: Option<MemoryBytes>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    if let Program::Smi { memory: None } = arguments.program {
        // Who only looks opens no device.
        println!("{}", smi::smi(None, None)?);
        return Ok(0);
    }
    let device = Device::open(arguments.device, arguments.kernels.clone())?;
    let line = match arguments.program {
        Program::Info => device.describe()?,
        Program::VectorAdd { n } => compute::vector_add(&device, n)?,
        Program::Saxpy { n } => compute::saxpy(&device, n)?,
        Program::Matmul { n } => compute::matmul(&device, n)?,
        Program::Softmax { rows, columns } => compute::softmax(&device, rows, columns)?,
        Program::Reduce { n } => compute::reduce(&device, n)?,
        Program::Histogram { n } => compute::histogram(&device, n)?,
        Program::Hog { step, expect, rounds, seconds } => {
            memory::hog(&device, step, expect, rounds, seconds)?
        }
        Program::Crash { memory } => return memory::crash(&device, memory),
        Program::Spin { rounds } => compute::spin(&device, rounds)?,
        Program::Loop { seconds, n } => compute::matmul_loop(&device, n, seconds)?,
        Program::Together { seconds } => compute::together(&device, seconds)?,
        Program::Meter { every } => meter::meter(&device, every)?,
        Program::Hold { memory, seconds } => memory::hold(&device, memory, seconds)?,
        Program::Figures { launches, calls, copy, rounds, ref matmul, ref only } => {
            let copy_bytes = usize::try_from(copy.get())?;
            let (matmul, only) = (matmul.clone(), only.clone());
            let wanted = figures::Wanted { launches, calls, copy_bytes, rounds, matmul, only };
            figures::figures(&device, &wanted)?
        }
        Program::Smi { memory } => smi::smi(Some(&device), memory)?,
        Program::LeakCheck { memory } => memory::leak_check(&device, memory)?,
    };
    println!("{line}");
    Ok(0)
}
