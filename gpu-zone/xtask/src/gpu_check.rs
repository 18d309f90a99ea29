//! `cargo xtask gpu-check`: a folder with all that shows, on a machine with a GPU, what cannot
//! be shown here.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::dist::copy;

const PACKAGES: [&str; 9] = [
    "gpuzone-cli",
    "gpuzone-agent",
    "gpuzone-broker",
    "gpuzone-worker",
    "gpuzone-zone",
    "gpuzone-cuda",
    "gpuzone-nvml",
    "gpuzone-sim-cuda",
    "gpuzone-sim-nvml",
];
const PROGRAMS: [&str; 7] = [
    "gpu-zone",
    "gpu-zoned",
    "gpu-zone-broker",
    "gpu-zone-worker",
    "gpu-zone-sandbox",
    "gpuzone-workload",
    "gpuzone-gpu-check",
];
const LIBRARIES: [&str; 4] = [
    "libgpuzone_cuda.so",
    "libgpuzone_nvml.so",
    "libgpuzone_sim_cuda.so",
    "libgpuzone_sim_nvml.so",
];
const SCRIPT: &str = "#!/bin/sh\n\
    # Checks gpu-zone on this machine's GPU, as root; --help says what can be named.\n\
    # With --driver simulated it needs no GPU, and shows only that the check works.\n\
    exec \"$(dirname \"$0\")/bin/gpuzone-gpu-check\" \"$@\"\n";

/// Builds in release and lays out `target/gpu-check`.
///
/// # Errors
/// When something cannot be built or copied.
#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
pub(crate) fn assemble(repository: &Path) -> anyhow::Result<()> {
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(repository).args(["build", "--release", "--locked"]);
    for package in PACKAGES.iter().chain(&["gpuzone-workloads"]) {
        build.args(["--package", package]);
    }
    let status = build.status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo failed: {status}");
    let (built, to) = (repository.join("target/release"), repository.join("target/gpu-check"));
    if to.exists() {
        std::fs::remove_dir_all(&to).context("cannot remove the folder that is there")?;
    }
    for program in PROGRAMS {
        copy(&built.join(program), &to.join("bin").join(program))?;
    }
    for library in LIBRARIES {
        copy(&built.join(library), &to.join("lib/gpu-zone").join(library))?;
    }
    for kernel in std::fs::read_dir(repository.join("driver-zones/sim/kernels/ptx"))? {
        let kernel = kernel?;
        copy(&kernel.path(), &to.join("kernels").join(kernel.file_name()))?;
    }
    let script = to.join("run.sh");
    std::fs::write(&script, SCRIPT)?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    println!("carry {} to a machine with a GPU and run run.sh there", to.display());
    Ok(())
}
