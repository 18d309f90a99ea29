//! `cargo xtask clients`: the CUDA clients that nobody here wrote, for the tests that run them.

use std::path::Path;

use crate::python::environment;

/// Exact versions, without what they would install for machines that have GPUs: compilers of the
/// CUDA version whose PTX the simulated GPU reads, and no linker but the driver's.
const PACKAGES: [&str; 13] = [
    "--no-deps",
    "cuda-bindings==13.5.0",
    "cuda-core==1.2.2",
    "cuda-pathfinder==1.9.1",
    "llvmlite==0.50.0",
    "numba==0.68.1",
    "numba-cuda==0.30.4",
    "numpy==2.4.6",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-ml-py==13.580.126",
    "nvidia-nvvm==13.0.88",
    "packaging==26.4",
];

/// Installs them into `target/clients`, where the tests look.
///
/// # Errors
/// When Python lacks something, or no package index is reached.
#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
pub(crate) fn install(repository: &Path) -> anyhow::Result<()> {
    let folder = repository.join("target/clients");
    let mark = folder.join("packages");
    let wanted = PACKAGES.join("\n");
    if std::fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
        println!("unchanged  {}", folder.display());
        return Ok(());
    }
    environment(&folder, &PACKAGES)?;
    std::fs::write(&mark, wanted)?;
    println!("installed  {}", folder.display());
    Ok(())
}
