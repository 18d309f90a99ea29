//! `cargo xtask guest-image`: the initial file system of a microVM.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use gpuzone_image::cpio::Archive;
use gpuzone_testkit::Artifacts;
use serde_json::Value;

use crate::elf;

/// The profile of what lies in a guest's memory.
const PROFILE: &str = "guest";
/// Where the image has its driver.
const DRIVER: &str = "/usr/lib/gpu-zone";
const PROGRAMS: [&str; 3] = ["gpu-zone-broker", "gpu-zone-worker", "gpu-zone-sandbox"];
const SIMULATED: [&str; 2] = ["libgpuzone_sim_cuda.so", "libgpuzone_sim_nvml.so"];

/// What a microVM is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// A driver zone: broker, workers, and a driver.
    Driver,
    /// Workload zones: the first process alone. A zone's files are put behind it when it starts.
    Workloads,
}

/// What goes into an image.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    /// What it is for.
    pub(crate) what: For,
    /// Where it is written.
    pub(crate) output: PathBuf,
    /// A vendor's driver: all files of this folder, at the same paths below the image's root.
    pub(crate) driver: Option<PathBuf>,
    /// Kernel modules, loaded in this order.
    pub(crate) modules: Vec<PathBuf>,
}

/// Builds the image.
///
/// # Errors
/// When something is not there, or cannot be built.
#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
pub(crate) fn build(repository: &Path, contents: &Contents) -> anyhow::Result<()> {
    let work = repository.join("target/guest-image");
    let first = static_program(repository, PROFILE, &["--package", "gpuzone-guest"])?;
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev", "run", "tmp", "newroot", "var/tmp", "etc/gpu-zone"] {
        archive.directory(folder);
    }
    archive.file("/init", stripped(&first, &work)?, 0o755);
    match contents.what {
        For::Driver => driver_zone(&mut archive, contents, &work)?,
        For::Workloads => {
            ensure!(contents.driver.is_none(), "no driver is in a workload zone's image");
        }
    }
    modules(&mut archive, &contents.modules)?;
    let making = contents.output.with_extension("new");
    let file = File::create(&making).with_context(|| making.display().to_string())?;
    let mut out = BufWriter::new(file);
    let bytes = archive.write(&mut out)?;
    out.into_inner().context("cannot write the image")?.sync_all()?;
    std::fs::rename(&making, &contents.output)?;
    println!("image      {} ({} KiB)", contents.output.display(), bytes >> 10);
    Ok(())
}

fn driver_zone(archive: &mut Archive, contents: &Contents, work: &Path) -> anyhow::Result<()> {
    let artifacts = artifacts()?;
    let mut needed = BTreeSet::new();
    for name in PROGRAMS {
        let program = artifacts.file(name)?;
        needed.extend(libraries(program)?);
        archive.file(&format!("/usr/bin/{name}"), stripped(program, work)?, 0o755);
    }
    for name in SIMULATED {
        let library = artifacts.file(name)?;
        needed.extend(libraries(library)?);
        archive.file(&format!("{DRIVER}/{name}"), stripped(library, work)?, 0o755);
    }
    if let Some(driver) = &contents.driver {
        vendor(archive, driver, driver)?;
    }
    for library in needed {
        let path = library.display().to_string();
        if !archive.has(&path) {
            archive.file(&path, std::fs::canonicalize(&library)?, 0o755);
        }
    }
    Ok(())
}

/// What is in the image beside the first process: in a build that is to be used, in a guest's profile.
fn artifacts() -> anyhow::Result<Artifacts> {
    let packages = [
        "gpuzone-broker",
        "gpuzone-worker",
        "gpuzone-zone",
        "gpuzone-sim-cuda",
        "gpuzone-sim-nvml",
    ];
    let profile = if cfg!(debug_assertions) { "dev" } else { PROFILE };
    Ok(Artifacts::of_packages(&packages, profile)?)
}

/// A program that can be a guest's first process, so static: nothing is mounted yet when it starts. `what` is cargo's
/// words for it.
pub(super) fn static_program(
    repository: &Path,
    profile: &str,
    what: &[&str],
) -> anyhow::Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(repository).arg("build").args(what);
    cargo.args(["--message-format=json-render-diagnostics", "--target", &target, "--target-dir"]);
    cargo.arg(repository.join("target/guest-image"));
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    // Whatever this program was built in: it lies in each machine's memory, and emulation runs it.
    cargo.args(["--profile", profile]).stderr(Stdio::inherit());
    let output = cargo.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "{what:?} was not built: {}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut built =
        messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    let program = built.next_back().with_context(|| format!("{what:?} is no program"))?;
    elf::is_static(&program)?;
    Ok(program)
}

/// A copy without what only a debugger reads: all of it would be memory in each guest.
pub(super) fn stripped(file: &Path, work: &Path) -> anyhow::Result<PathBuf> {
    let name = file.file_name().context("a file has a name")?;
    let copy = work.join("stripped").join(name);
    std::fs::create_dir_all(work.join("stripped"))?;
    let status = Command::new("strip").arg("-o").arg(&copy).arg(file).status();
    let status = status.context("cannot run strip, which comes with a C compiler")?;
    ensure!(status.success(), "cannot strip {}: {status}", file.display());
    Ok(copy)
}

/// The shared libraries that a file needs, and the loader, as this machine has them.
pub(super) fn libraries(file: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(file).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found = Vec::new();
    for line in text.lines() {
        if line.contains("not found") {
            bail!("{} needs what is not here: {}", file.display(), line.trim());
        }
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        found.extend(path.map(PathBuf::from));
    }
    ensure!(output.status.success(), "ldd cannot read {}", file.display());
    Ok(found)
}

/// An image whose first process is a shell that does `attack` with the host's control port as its output.
pub(super) fn hostile(work: &Path, output: &Path, attack: &str) -> anyhow::Result<()> {
    std::fs::create_dir_all(work)?;
    let script = work.join("init");
    let text = format!(
        "#!/bin/sh\nmount -t devtmpfs dev /dev\nuntil [ -e /dev/vport0p1 ]; do :; done\nwhile :; do\n{{ {attack}; }} >/dev/vport0p1\ndone\n"
    );
    std::fs::write(&script, text)?;
    let mut archive = Archive::default();
    archive.directory("dev");
    archive.file("/init", script, 0o755);
    for tool in ["/bin/sh", "/usr/bin/mount", "/usr/bin/head"].map(Path::new) {
        archive.file(&tool.display().to_string(), std::fs::canonicalize(tool)?, 0o755);
        for library in libraries(tool)? {
            archive.file(&library.display().to_string(), std::fs::canonicalize(&library)?, 0o755);
        }
    }
    archive.write(&mut BufWriter::new(File::create(output)?))?;
    Ok(())
}

/// All files of a vendor's driver, links as links.
fn vendor(archive: &mut Archive, root: &Path, folder: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        let inside = format!("/{}", path.strip_prefix(root)?.display());
        let kind = std::fs::symlink_metadata(&path)?;
        if kind.is_dir() {
            archive.directory(&inside);
            vendor(archive, root, &path)?;
        } else if kind.is_symlink() {
            let to = std::fs::read_link(&path)?;
            archive.link(&inside, &to.display().to_string());
        } else {
            archive.file(&inside, path, 0o755);
        }
    }
    Ok(())
}

fn modules(archive: &mut Archive, modules: &[PathBuf]) -> anyhow::Result<()> {
    let mut list = String::new();
    for module in modules {
        let name = module.file_name().and_then(|name| name.to_str()).context("a module's name")?;
        let plain = module.extension().is_some_and(|extension| extension == "ko");
        ensure!(plain, "{name} is compressed; unpack it first (xz -d, zstd -d)");
        let inside = format!("/usr/lib/modules/{name}");
        archive.file(&inside, module.clone(), 0o644);
        list.push_str(&inside);
        list.push('\n');
    }
    if !list.is_empty() {
        archive.text("/etc/gpu-zone/modules", list);
    }
    Ok(())
}
