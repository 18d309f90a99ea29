//! Tasks of the project: `cargo demo`, and what `cargo xtask` lists.
#![forbid(unsafe_code)]

mod chart;
mod clients;
mod demo;
mod dist;
mod elf;
mod gpu_check;
mod hostile;
mod kernels;
mod kills;
mod microvm;
mod probe;
mod python;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};

/// The project's own tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Two tenants share one simulated GPU: the main job, checked from end to end.
    Demo,
    /// Build the static probe, `target/probe/gpu-zone-probe`.
    Probe {
        /// Also show that it is static and starts in an empty root.
        #[arg(long)]
        check: bool,
    },
    /// What an honest tenant gets done beside each attack of a hostile one, as a table.
    Hostile {
        /// The long set: as much of each attack as a machine bears, for ten seconds.
        #[arg(long)]
        long: bool,
        /// Only attacks whose names begin so.
        #[arg(long)]
        only: Option<String>,
        /// Let the two tenants' programs and workers share all processors.
        #[arg(long)]
        together: bool,
    },
    /// Kill programs, workers, brokers and agents at random moments of a load.
    Kills {
        /// How often.
        #[arg(long, default_value_t = 200)]
        rounds: u32,
        /// The same moments again.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Build the kernels' PTX again from their CUDA C++ sources, with the nvcc that pip installs.
    Kernels {
        /// Change nothing; fail when the PTX that is checked in is not what nvcc makes.
        #[arg(long)]
        check: bool,
    },
    /// Install the CUDA clients that nobody here wrote, below `target/clients`, for their tests.
    Clients,
    /// Write the table of what of the driver API is supported, `docs/cuda-support.md`.
    CudaSupport,
    /// Write what the chart has of generated files: custom resources and roles.
    Crds,
    /// Lint the chart, render it with each file of values in its ci folder, and read the objects.
    Chart,
    /// Make `target/gpu-check`, to be carried to a machine with a GPU.
    GpuCheck,
    /// Build what the images have, in release, below `target/dist`.
    Dist,
    /// Build the initial file system of a microVM.
    GuestImage {
        /// Of workload zones; left out: of a driver zone.
        #[arg(long)]
        workload: bool,
        /// Where it is written; left out: zone.cpio or workload.cpio below target/guest-image.
        #[arg(long)]
        output: Option<PathBuf>,
        /// A folder with a vendor's driver, copied to the image's root as it is.
        #[arg(long)]
        driver: Option<PathBuf>,
        /// Kernel modules that are loaded, in this order.
        #[arg(long)]
        module: Vec<PathBuf>,
        /// A bzImage that is written unpacked, too, as vmlinux beside the image: it starts sooner.
        #[arg(long)]
        kernel: Option<PathBuf>,
    },
    /// Driver and workload zones in microVMs from end to end, under QEMU.
    MicrovmSuite {
        #[command(flatten)]
        machine: Machine,
        /// The part about workload zones, in place of the one about driver zones.
        #[arg(long)]
        workloads: bool,
        /// The part about a device by passthrough, in a node that is a guest itself.
        #[arg(long, conflicts_with = "workloads")]
        nested: bool,
        /// Both parts in short, under the Cloud Hypervisor at this path, in a node that is a guest itself.
        #[arg(long, conflicts_with_all = ["workloads", "nested"])]
        cloud_hypervisor: Option<PathBuf>,
        /// So many sessions more that come and go in one machine of Cloud Hypervisor's.
        #[arg(long, requires = "cloud_hypervisor", default_value_t = 0)]
        sessions: u32,
    },
    /// What a driver zone in a microVM takes, beside a bare boot of the same kernel.
    MicrovmBench {
        #[command(flatten)]
        machine: Machine,
        /// So many zones are started on this machine at once at the end.
        #[arg(long, default_value_t = 0)]
        zones: usize,
    },
}

/// What a microVM is made of.
#[derive(Debug, clap::Args)]
struct Machine {
    /// The guest's kernel, like a distribution's cloud kernel.
    #[arg(long)]
    kernel: PathBuf,
    /// Kernel modules that are loaded, in this order: what the kernel does not have built in of
    /// virtio-serial over PCI.
    #[arg(long)]
    module: Vec<PathBuf>,
    /// QEMU.
    #[arg(long, default_value = "/usr/bin/qemu-system-x86_64")]
    qemu: PathBuf,
    /// What makes its processors: "auto", "kvm" or "tcg".
    #[arg(long, default_value = "auto")]
    accelerator: String,
}

impl From<Machine> for microvm::Wanted {
    fn from(machine: Machine) -> Self {
        let Machine { kernel, module: modules, qemu, accelerator } = machine;
        Self { kernel, modules, qemu, accelerator }
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Demo => demo::demo(),
        Task::Probe { check } => probe::build(&repository(), check),
        Task::Hostile { long, only, together } => {
            hostile::hostile(&hostile::Wanted { long, only, together })
        }
        Task::Kills { rounds, seed } => kills::kills(rounds, seed),
        Task::Kernels { check } => {
            let stale = if check { kernels::Stale::Refuse } else { kernels::Stale::Rewrite };
            kernels::build(&repository(), stale)
        }
        Task::Clients => clients::install(&repository()),
        Task::CudaSupport => cuda_support(&repository()),
        Task::Crds => crds(&repository()),
        Task::Chart => chart::check(&repository()),
        Task::GpuCheck => gpu_check::assemble(&repository()),
        Task::Dist => dist::build(&repository()),
        Task::GuestImage { workload, output, driver, module: modules, kernel } => {
            let (what, name) = match workload {
                true => (microvm::For::Workloads, "workload.cpio"),
                false => (microvm::For::Driver, "zone.cpio"),
            };
            let output =
                output.unwrap_or_else(|| repository().join("target/guest-image").join(name));
            let vmlinux = output.with_file_name("vmlinux");
            let contents = microvm::Contents { what, output, driver, modules };
            microvm::build(&repository(), &contents)
                .and_then(|()| kernel.map_or(Ok(()), |kernel| microvm::unpack(&kernel, &vmlinux)))
        }
        Task::MicrovmSuite { machine, cloud_hypervisor: Some(program), sessions, .. } => {
            microvm::run_cloud_hypervisor(&repository(), &machine.into(), &program, sessions)
        }
        Task::MicrovmSuite { machine, workloads, nested, cloud_hypervisor: None, .. } => {
            let run = match (workloads, nested) {
                (true, _) => microvm::run_workloads,
                (false, true) => microvm::run_nested,
                (false, false) => microvm::run,
            };
            run(&repository(), &machine.into())
        }
        Task::MicrovmBench { machine, zones } => {
            microvm::bench(&repository(), &machine.into(), zones)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Another program writes them: this one would have to be built with a Kubernetes client.
fn crds(repository: &Path) -> anyhow::Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(repository).args(["run", "--quiet", "--package", "gpuzone-crds", "--"]);
    let status = cargo.arg("charts/gpu-zone").status().context("cannot run cargo")?;
    anyhow::ensure!(status.success(), "the chart's files were not written: {status}");
    Ok(())
}

/// The crate that has the table writes it, so that this program need not be built with it.
fn cuda_support(repository: &Path) -> anyhow::Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(repository).args(["run", "--quiet", "--package", "gpuzone-wire"]);
    let output = cargo.args(["--example", "cuda_support"]).output().context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "the table was not made: {said}");
    let page = repository.join("docs/cuda-support.md");
    std::fs::write(&page, output.stdout).with_context(|| format!("cannot write {}", page.display()))
}

/// The workspace: this crate is in `gpu-zone/xtask` of it.
fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}
