//! Nodes that are guests themselves: our programs, some tools of this host and modules of the guest's kernel
//! are on their first file system, and a script is their first process.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use gpuzone_image::cpio::Archive;
use gpuzone_testkit::Artifacts;

use super::image::{libraries, stripped};
use super::suite::{Wanted, say};

/// What a node's first process does before what is its suite's.
const BEGINNING: &str = include_str!("node.sh");
const OURS: [&str; 11] = [
    "gpu-zone",
    "gpu-zoned",
    "gpu-zone-broker",
    "gpu-zone-worker",
    "gpu-zone-sandbox",
    "gpu-zone-vm",
    "gpuzone-workload",
    "libgpuzone_cuda.so",
    "libgpuzone_nvml.so",
    "libgpuzone_sim_cuda.so",
    "libgpuzone_sim_nvml.so",
];
/// Of the host's, in the node.
const TOOLS: [&str; 9] = [
    "/bin/sh",
    "/usr/bin/cat",
    "/usr/bin/grep",
    "/usr/bin/mkdir",
    "/usr/bin/mount",
    "/usr/bin/rm",
    "/usr/bin/sleep",
    "/usr/sbin/chroot",
    "/usr/sbin/insmod",
];
/// The configuration of the simulated GPU that a node has.
const SIMULATED: &str = "state_dir = \"/dev/shm/sim\"\n\n[[gpu]]\nname = \"gpu-zone Simulated GPU\"\nmemory = \"1Gi\"\n";

/// What is in a node beside what all have.
pub(super) struct Contents<'a> {
    /// Who runs microVMs there, and where it is then.
    pub(super) hypervisor: (&'a Path, String),
    /// Modules, in the order in which one needs the other. Not all kernels have all of them.
    pub(super) modules: &'a [&'a str],
    /// What its first process does in the end.
    pub(super) script: String,
}

/// A node's first file system, made with the help of the folders `work` and `node`.
pub(super) fn archive(
    wanted: &Wanted,
    work: &Path,
    node: &Path,
    contents: &Contents<'_>,
) -> anyhow::Result<Archive> {
    let (mut archive, artifacts) = (Archive::default(), Artifacts::build()?);
    for folder in ["proc", "sys", "node", "dev", "run", "tmp", "newroot", "var/lib", "modules"] {
        archive.directory(folder);
    }
    for name in ["bin", "sbin", "lib", "lib32", "lib64"] {
        if let Ok(to) = std::fs::read_link(Path::new("/").join(name)) {
            archive.link(&format!("/{name}"), &to.display().to_string());
        }
    }
    let mut needed = BTreeSet::new();
    for name in OURS {
        let file = artifacts.file(name)?;
        needed.extend(libraries(file)?);
        archive.file(&format!("/opt/gpu-zone/{name}"), stripped(file, work)?, 0o755);
    }
    for tool in TOOLS.map(Path::new) {
        needed.extend(libraries(tool)?);
        archive.file(&real(tool)?, std::fs::canonicalize(tool)?, 0o755);
    }
    let (hypervisor, place) = &contents.hypervisor;
    needed.extend(libraries(hypervisor)?);
    archive.file(place, stripped(hypervisor, work)?, 0o755);
    for library in needed {
        archive.file(&real(&library)?, std::fs::canonicalize(&library)?, 0o755);
    }
    let modules = modules(&wanted.kernel, node, contents.modules)?;
    for (number, file) in modules.into_iter().enumerate() {
        archive.file(&format!("/modules/{number}"), file, 0o644);
    }
    let script = node.join("node.sh");
    std::fs::write(&script, format!("{BEGINNING}{}", contents.script))?;
    archive.file("/init", script.clone(), 0o755);
    archive.file("/node.sh", script, 0o755);
    archive.text("/etc/gpu-zone/simulated.toml", SIMULATED.to_owned());
    Ok(archive)
}

/// Programs, each as (its path, its file, whose libraries it needs), in the root of a machine in the node.
pub(super) fn root(
    archive: &mut Archive,
    programs: &[(&str, PathBuf, &Path)],
) -> anyhow::Result<()> {
    let mut needed = BTreeSet::new();
    for (path, file, of) in programs {
        archive.file(&format!("/guest/root{path}"), std::fs::canonicalize(file)?, 0o755);
        needed.extend(libraries(of)?);
    }
    for library in needed {
        let path = format!("/guest/root{}", library.display());
        archive.file(&path, std::fs::canonicalize(&library)?, 0o755);
    }
    Ok(())
}

/// A file's own place, where the host has links to folders.
pub(super) fn real(file: &Path) -> anyhow::Result<String> {
    let folder = std::fs::canonicalize(file.parent().context("a file's folder")?)?;
    Ok(folder.join(file.file_name().context("a file's name")?).display().to_string())
}

/// Modules of the kernel's package, as far as it has them, unpacked into `node`.
pub(super) fn modules(kernel: &Path, node: &Path, wanted: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let name = kernel.file_name().and_then(|name| name.to_str()).context("the kernel's name")?;
    let version = name.strip_prefix("vmlinuz-").context("a kernel is called vmlinuz-VERSION")?;
    let package = kernel.ancestors().nth(2).context("the kernel is in its package's boot")?;
    let folders = ["usr/lib/modules", "lib/modules"].map(|folder| package.join(folder));
    let folder = folders.iter().map(|folder| folder.join(version)).find(|folder| folder.is_dir());
    let folder = folder.context("the kernel's package has no modules beside it")?;
    let mut found = Vec::new();
    for wanted in wanted {
        let mut folders = vec![folder.clone()];
        while let Some(next) = folders.pop() {
            for entry in std::fs::read_dir(&next)? {
                let path = entry?.path();
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if path.is_dir() {
                    folders.push(path);
                } else if name.strip_prefix(*wanted).is_some_and(|rest| rest.starts_with(".ko")) {
                    found.push(unpacked(&path, &node.join(format!("{wanted}.ko")))?);
                }
            }
        }
    }
    ensure!(!found.is_empty(), "the kernel's package has none of {wanted:?}");
    Ok(found)
}

fn unpacked(module: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    let program = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return Ok(module.to_owned()),
    };
    let output = Command::new(program).arg("-dc").arg(module).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} cannot unpack {}", module.display());
    std::fs::write(to, output.stdout)?;
    Ok(to.to_owned())
}

/// The emulated machine that a node is.
pub(super) struct Machine<'a> {
    /// When it is ended.
    pub(super) limit_seconds: &'a str,
    /// Of which kind its processors are.
    pub(super) processor: &'a str,
    /// Its memory in MiB.
    pub(super) memory: &'a str,
    /// Words for its kernel beside those that all have.
    pub(super) words: &'a str,
}

/// The command that runs it.
pub(super) fn command(
    wanted: &Wanted,
    machine: &Machine<'_>,
    kernel: &Path,
    initrd: &Path,
) -> Command {
    let words = format!(
        "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable cryptomgr.notests {} rdinit=/init",
        machine.words
    );
    let mut node = Command::new("timeout");
    node.arg(machine.limit_seconds)
        .arg(&wanted.qemu)
        .args(["-machine", "q35,accel=tcg", "-cpu", machine.processor, "-smp", "2"])
        .args(["-m", machine.memory, "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", &words])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    node
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Well,
    Wrong,
    /// An emulated machine on a busy host can lose its timer: its kernel says so, and nothing goes on.
    LostTimer,
}

/// Runs a node, and passes on what it says of itself; all is well where it says so.
pub(super) fn listen(mut node: Command) -> anyhow::Result<End> {
    let mut node = node.spawn().context("cannot run QEMU")?;
    let output = node.stdout.take().context("no output")?;
    let (mut all, mut well) = (Vec::new(), false);
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        if let Some(said) = line.strip_prefix("node: ") {
            say("", said.trim());
            well |= said == "ok";
        }
        if line.contains("rcu_preempt kthread timer wakeup didn't happen") {
            // `timeout` passes it on.
            let process = rustix::process::Pid::from_child(&node);
            rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
            node.wait()?;
            return Ok(End::LostTimer);
        }
        all.push(line);
    }
    node.wait()?;
    if !well {
        std::io::stderr().write_all(all.join("\n").as_bytes())?;
    }
    Ok(if well { End::Well } else { End::Wrong })
}
