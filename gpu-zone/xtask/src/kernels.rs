//! `cargo xtask kernels`: compiles the simulated GPU's kernels from CUDA C++ to
//! the PTX that is checked in, with the nvcc that pip installs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::python::{self, run};

/// What makes a working nvcc, without the rest of the toolkit. Another version
/// writes other PTX, so these are exact.
const PACKAGES: [&str; 5] = [
    // The headers of half precision ask it for the compiler's target.
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
];
/// The oldest architecture that nvcc 13 compiles for: its PTX is the plainest,
/// and every GPU since can run it. A source that needs another says so in its
/// first line.
const ARCHITECTURE: &str = "compute_75";
const ARCHITECTURE_LINE: &str = "// nvcc: -arch ";

/// Whether PTX that is out of date is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stale {
    /// By what nvcc makes now.
    Rewrite,
    /// No: it is an error.
    Refuse,
}

/// Compiles each `driver-zones/sim/kernels/*.cu` to `ptx/*.ptx` beside it, and
/// says which of them changed.
///
/// # Errors
///
/// Python, pip or nvcc is missing or fails, a file cannot be read or written, or PTX is out of
/// date and is to be refused. The PTX of a kernel is replaced only after it was compiled.
#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
pub(crate) fn build(repo_root: &Path, stale: Stale) -> anyhow::Result<()> {
    let kernels = repo_root.join("driver-zones/sim/kernels");
    let work = repo_root.join("target/nvcc");
    let sources = sources(&kernels)?;
    let nvcc = install(&work.join("venv"))?;
    let fresh = work.join("ptx");
    std::fs::create_dir_all(&fresh)
        .with_context(|| format!("cannot create the folder {}", fresh.display()))?;
    let mut differing = 0;
    for source in sources {
        let name = source.file_name().context("a kernel's source has no name")?;
        let output = Path::new(name).with_extension("ptx");
        let compiled = fresh.join(&output);
        // Run beside the source and name it alone, so that no path of this
        // machine can get into the PTX.
        let text = std::fs::read_to_string(&source)
            .with_context(|| format!("cannot read {}", source.display()))?;
        let first = text.lines().next().unwrap_or_default();
        let architecture = first.strip_prefix(ARCHITECTURE_LINE).unwrap_or(ARCHITECTURE);
        let mut command = Command::new(&nvcc);
        command.current_dir(&kernels).args(["-ptx", "-arch", architecture, "-o"]);
        run(command.arg(&compiled).arg(name))?;
        let text = std::fs::read(&compiled)
            .with_context(|| format!("nvcc left no {}", compiled.display()))?;
        let target = kernels.join("ptx").join(&output);
        if std::fs::read(&target).is_ok_and(|old| old == text) {
            println!("unchanged  {}", output.display());
            continue;
        }
        match stale {
            Stale::Rewrite => {
                std::fs::write(&target, text)
                    .with_context(|| format!("cannot write {}", target.display()))?;
                println!("rewritten  {}", output.display());
            }
            Stale::Refuse => {
                println!("differs    {}", output.display());
                differing += 1;
            }
        }
    }
    if differing > 0 {
        bail!(
            "{differing} file(s) are not what nvcc makes of their sources; run `cargo xtask kernels`"
        );
    }
    Ok(())
}

fn sources(kernels: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(kernels)
        .with_context(|| format!("cannot list the kernels in {}", kernels.display()))?;
    let mut sources = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", kernels.display()))?.path();
        if path.extension() == Some(OsStr::new("cu")) {
            sources.push(path);
        }
    }
    if sources.is_empty() {
        bail!("there is no .cu file in {}: is this the repository's root?", kernels.display());
    }
    sources.sort();
    Ok(sources)
}

/// Installs nvcc into a Python environment of its own, unless it is there.
fn install(environment: &Path) -> anyhow::Result<PathBuf> {
    let packages: Vec<&str> = std::iter::once("--no-deps").chain(PACKAGES).collect();
    python::environment(environment, &packages).context("installing nvcc")?;
    let libraries = environment.join("lib");
    let entries = std::fs::read_dir(&libraries)
        .with_context(|| format!("cannot list {}", libraries.display()))?;
    let nvcc = entries
        .filter_map(Result::ok)
        .map(|python| python.path().join("site-packages/nvidia/cu13/bin/nvcc"))
        .find(|nvcc| nvcc.exists());
    nvcc.with_context(|| format!("pip installed no nvcc below {}", libraries.display()))
}
