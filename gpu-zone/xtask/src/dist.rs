//! `cargo xtask dist`: what the images and a node's installation have, below `target/dist`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::elf;

/// They load the driver's libraries, or are loaded beside it: linked with the system's libc.
const NODE: [&str; 6] = [
    "gpuzone-cli",
    "gpuzone-agent",
    "gpuzone-broker",
    "gpuzone-worker",
    "gpuzone-zone",
    "gpuzone-vm",
];
const NODE_PROGRAMS: [&str; 6] = [
    "gpu-zone",
    "gpu-zoned",
    "gpu-zone-broker",
    "gpu-zone-worker",
    "gpu-zone-sandbox",
    "gpu-zone-vm",
];
const LIBRARIES: [(&str, &str); 4] = [
    ("gpuzone-cuda", "libgpuzone_cuda.so"),
    ("gpuzone-nvml", "libgpuzone_nvml.so"),
    ("gpuzone-sim-cuda", "libgpuzone_sim_cuda.so"),
    ("gpuzone-sim-nvml", "libgpuzone_sim_nvml.so"),
];
/// They speak to sockets only, and start in an empty image.
const STATIC: [(&str, &str); 2] = [
    ("gpuzone-device-plugin", "gpu-zone-device-plugin"),
    ("gpuzone-scheduler-ext", "gpu-zone-scheduler-ext"),
];

/// Builds `node/` (programs below `bin`, libraries below `lib/gpu-zone`) and `static/`.
///
/// # Errors
/// When something cannot be built or copied, or a program that has to be static is not.
#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
pub(crate) fn build(repository: &Path) -> anyhow::Result<()> {
    let work = repository.join("target/dist");
    let mut node = build_command(repository, &work);
    for package in NODE.into_iter().chain(LIBRARIES.map(|(package, _)| package)) {
        node.args(["--package", package]);
    }
    run(&mut node)?;
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut empty = build_command(repository, &work);
    empty.args(["--target", &target]).env("RUSTFLAGS", "-C target-feature=+crt-static");
    for (package, _) in STATIC {
        empty.args(["--package", package]);
    }
    run(&mut empty)?;

    let built = work.join("release");
    for program in NODE_PROGRAMS {
        copy(&built.join(program), &work.join("node/bin").join(program))?;
    }
    for (_, library) in LIBRARIES {
        copy(&built.join(library), &work.join("node/lib/gpu-zone").join(library))?;
    }
    for (_, program) in STATIC {
        let to = work.join("static").join(program);
        copy(&work.join(&target).join("release").join(program), &to)?;
        elf::is_static(&to)?;
    }
    println!("built      {}", work.display());
    Ok(())
}

fn build_command(repository: &Path, work: &Path) -> Command {
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(repository).args(["build", "--release", "--locked", "--target-dir"]);
    // An image need not carry the lines of its sources.
    build.arg(work).env_remove("RUSTFLAGS").env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    build
}

fn run(build: &mut Command) -> anyhow::Result<()> {
    let status = build.status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo failed: {status}");
    Ok(())
}

pub(crate) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}
