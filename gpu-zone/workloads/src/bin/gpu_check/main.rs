//! What can only be shown on a machine with a GPU: the corpus on the driver itself and through
//! the mediated path, the figures of both, and the promises that depend on the device.
//!
//! `cargo xtask gpu-check` makes a folder with this and all it needs, to be carried there.
#![forbid(unsafe_code)]

mod checks;
mod node;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use gpuzone_core::MemoryBytes;

use crate::node::Node;

/// Which driver the GPUs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Driver {
    /// The machine's own, of NVIDIA.
    Nvidia,
    /// Simulated GPUs: shows that the check itself works, and nothing else.
    Simulated,
}

/// Checks gpu-zone on this machine's GPU.
#[derive(Debug, Parser)]
#[command(name = "gpuzone-gpu-check", version)]
pub(crate) struct Arguments {
    /// Which driver the GPUs have.
    #[arg(long, value_enum, default_value_t = Driver::Nvidia)]
    pub(crate) driver: Driver,
    /// Folder that was carried here; without it, the one that this program is in.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Folder of the programs, if not `bin` in the other one.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Folder of the kernels, if not `kernels` in the other one.
    #[arg(long)]
    kernels: Option<PathBuf>,
    /// libcuda.so.1 of the driver, if it is not where installations put it.
    #[arg(long)]
    pub(crate) cuda_library: Option<PathBuf>,
    /// libnvidia-ml.so.1 of the driver.
    #[arg(long)]
    pub(crate) nvml_library: Option<PathBuf>,
    /// Memory of the leases. Left out: 8Gi, for a context takes half a GiB of it; of simulated
    /// GPUs, whose memory is the machine's, 2Gi.
    #[arg(long)]
    memory: Option<MemoryBytes>,
    /// Few of everything: a trial, whose figures say nothing.
    #[arg(long)]
    pub(crate) quick: bool,
}

impl Arguments {
    pub(crate) fn memory(&self) -> MemoryBytes {
        let usual = match self.driver {
            Driver::Nvidia => MemoryBytes::gib(8),
            Driver::Simulated => MemoryBytes::gib(2),
        };
        self.memory.unwrap_or(usual)
    }
}

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) folder: PathBuf,
    pub(crate) programs: PathBuf,
    pub(crate) kernels: PathBuf,
}

impl Places {
    fn of(arguments: &Arguments) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("this program's own place is not known")?;
        let carried = own.parent().and_then(|bin| bin.parent());
        let folder = arguments.folder.clone().or_else(|| carried.map(PathBuf::from));
        let folder =
            folder.context("where is the folder? Name it with --folder")?.canonicalize()?;
        Ok(Self {
            programs: arguments.programs.clone().unwrap_or_else(|| folder.join("bin")),
            kernels: arguments.kernels.clone().unwrap_or_else(|| folder.join("kernels")),
            folder,
        })
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = || -> anyhow::Result<bool> {
        let node = Node::start(&arguments, Places::of(&arguments)?)?;
        checks::all(&node, &arguments)
    };
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
