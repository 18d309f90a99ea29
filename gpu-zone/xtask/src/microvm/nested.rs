//! `cargo xtask microvm-suite --nested`: a device goes by passthrough into a workload zone that is a
//! microVM. The node is a guest itself, with an IOMMU, an NVMe controller and a processor with AMD's
//! virtualization, all of which QEMU emulates: so the inner machine is one of KVM's, and nothing is emulated
//! twice. Agent, command, sandbox and QEMU in it are those of a real node, and the inner kernel's own
//! driver has the controller.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use gpuzone_image::cpio::Archive;
use gpuzone_testkit::Artifacts;

use super::image::{self, Contents, For, libraries, stripped};
use super::kernel;
use super::suite::{Wanted, say};

/// What the node's first process does.
const SCRIPT: &str = include_str!("nested.sh");
/// Where the controller is put.
const ADDRESS: &str = "0000:00:04.0";
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
/// In the order in which one needs the other. Not all kernels have all of them.
const MODULES: [&str; 7] =
    ["irqbypass", "kvm", "kvm-amd", "vfio", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci"];
/// What QEMU reads to start a kernel by PVH.
const FIRMWARE: [(&str, &str); 5] = [
    ("/usr/share/seabios", "bios-256k.bin"),
    ("/usr/share/qemu", "kvmvapic.bin"),
    ("/usr/share/qemu", "linuxboot_dma.bin"),
    ("/usr/share/qemu", "pvh.bin"),
    ("/usr/share/qemu", "qboot.rom"),
];
const TRIES: u32 = 3;
/// Of the machines in it.
const IMAGES: [(For, &str); 2] = [(For::Workloads, "workload.cpio"), (For::Driver, "zone.cpio")];
/// A machine in an emulated machine, on a busy host.
const LIMIT_SECONDS: &str = "420";

/// Runs it.
///
/// # Errors
/// With what did not hold.
pub(crate) fn run(repository: &Path, wanted: &Wanted) -> anyhow::Result<()> {
    if !wanted.qemu.exists() {
        say("SKIPPED", &format!("{} is not there", wanted.qemu.display()));
        return Ok(());
    }
    let work = repository.join("target/guest-image");
    for (what, name) in IMAGES {
        let (output, modules) = (work.join(name), wanted.modules.clone());
        image::build(repository, &Contents { what, output, driver: None, modules })?;
    }
    let vmlinux = work.join("vmlinux");
    kernel::unpack(&wanted.kernel, &vmlinux)?;
    let node = work.join("nested");
    std::fs::create_dir_all(&node)?;
    let archive = archive(wanted, &work, &node, &vmlinux)?;
    let initrd = node.join("node.cpio");
    archive.write(&mut std::io::BufWriter::new(std::fs::File::create(&initrd)?))?;
    let disk = node.join("disk");
    for left in (0..TRIES).rev() {
        // A disk of a megabyte, which begins with a line.
        let mut bytes = b"from-outside\n".to_vec();
        bytes.resize(1 << 20, 0);
        std::fs::write(&disk, bytes)?;
        if boot(wanted, &vmlinux, &initrd, &disk)? {
            return Ok(());
        }
        ensure!(left > 0, "the emulated node lost its timer {TRIES} times");
        say("again", "the emulated node lost its timer, which says nothing");
    }
    Ok(())
}

/// The node's first file system.
fn archive(wanted: &Wanted, work: &Path, node: &Path, vmlinux: &Path) -> anyhow::Result<Archive> {
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
    needed.extend(libraries(&wanted.qemu)?);
    archive.file(&real(&wanted.qemu)?, stripped(&wanted.qemu, work)?, 0o755);
    for library in needed {
        archive.file(&real(&library)?, std::fs::canonicalize(&library)?, 0o755);
    }
    for (folder, name) in FIRMWARE {
        let file = Path::new(folder).join(name);
        if !file.exists() {
            continue;
        }
        archive.file(&file.display().to_string(), file, 0o644);
    }
    for (number, file) in modules(&wanted.kernel, node, &MODULES)?.into_iter().enumerate() {
        archive.file(&format!("/modules/{number}"), file, 0o644);
    }
    // The inner machine's, and its program's root: a shell.
    archive.file("/guest/vmlinux", vmlinux.to_owned(), 0o644);
    for (_, name) in IMAGES {
        archive.file(&format!("/guest/{name}"), work.join(name), 0o644);
    }
    let shell = Path::new("/bin/sh");
    archive.file("/guest/root/bin/sh", std::fs::canonicalize(shell)?, 0o755);
    for library in libraries(shell)? {
        let inside = format!("/guest/root{}", library.display());
        archive.file(&inside, std::fs::canonicalize(&library)?, 0o755);
    }
    let script = node.join("nested.sh");
    let address = format!("ADDRESS={ADDRESS}\ncd /\n");
    std::fs::write(&script, SCRIPT.replacen("cd /\n", &address, 1))?;
    archive.file("/init", script.clone(), 0o755);
    archive.file("/nested.sh", script, 0o755);
    let qemu = real(&wanted.qemu)?;
    for (name, bind) in [("agent.toml", true), ("given-back.toml", false)] {
        archive.text(&format!("/etc/gpu-zone/{name}"), configuration(&qemu, bind));
    }
    let machine = format!(
        "[zone.microvm]\nkernel = \"/guest/vmlinux\"\nimage = \"/guest/zone.cpio\"\nqemu = {qemu:?}\naccelerator = \"kvm\"\nmemory = \"384Mi\"\nwindows = 4\n"
    );
    for (name, zone) in [("sandbox.toml", ""), ("machine.toml", machine.as_str())] {
        archive.text(&format!("/etc/gpu-zone/{name}"), format!("{MEDIATED}{zone}"));
    }
    archive.text("/etc/gpu-zone/simulated.toml", "state_dir = \"/dev/shm/sim\"\n\n[[gpu]]\nname = \"gpu-zone Simulated GPU\"\nmemory = \"1Gi\"\n".to_owned());
    Ok(archive)
}

/// The agent's: a simulated GPU, and the controller as one that is handed over whole; with `bind`, the
/// agent takes it from its driver.
fn configuration(qemu: &str, bind: bool) -> String {
    format!(
        "[node]\nsysfs = \"/node\"\n{MEDIATED}[[gpu]]\nuuid = \"GPU-00000000-0000-0000-0000-0000000000ab\"\nexposure = \"passthrough\"\naddress = \"{ADDRESS}\"\nmodel = \"gpu-zone Simulated GPU\"\nmemory = \"1Gi\"\nbind = {bind}\nreset = {bind}\n[zone.workload_microvm]\nkernel = \"/guest/vmlinux\"\nimage = \"/guest/workload.cpio\"\nqemu = {qemu:?}\naccelerator = \"kvm\"\ncpus = 1\n"
    )
}

const MEDIATED: &str =
    "[driver]\nkind = \"simulated\"\nsimulated_config = \"simulated.toml\"\n[tenants.default]\n";

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

/// Runs the node; what it says is passed on. False where it lost its timer.
fn boot(wanted: &Wanted, kernel: &Path, initrd: &Path, disk: &Path) -> anyhow::Result<bool> {
    let drive = format!("driver=file,node-name=disk,filename={}", disk.display());
    let slot = ADDRESS.rsplit_once(':').map_or(ADDRESS, |(_, slot)| slot);
    let mut node = Command::new("timeout");
    node.arg(LIMIT_SECONDS)
        .arg(&wanted.qemu)
        .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "2048"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-serial", "stdio", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable cryptomgr.notests nohz=off highres=off intel_iommu=on rdinit=/init"])
        .args(["-device", "intel-iommu,intremap=on,caching-mode=on"])
        .args(["-blockdev", &drive])
        .args(["-device", &format!("nvme,serial=gpuzone,drive=disk,addr={slot}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    match listen(node, "nested: ")? {
        End::Well => {
            say("ok", "a device is passed through to a program in a machine of its own");
            Ok(true)
        }
        End::LostTimer => Ok(false),
        End::Wrong => bail!(
            "the device did not reach the program, or did not come back; what the node said is above"
        ),
    }
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Well,
    Wrong,
    /// An emulated machine on a busy host can lose its timer: its kernel says so, and nothing goes on.
    LostTimer,
}

/// Runs a node, and passes on what it says behind `prefix`; all is well where it says so.
pub(super) fn listen(mut node: Command, prefix: &str) -> anyhow::Result<End> {
    let mut node = node.spawn().context("cannot run QEMU")?;
    let output = node.stdout.take().context("no output")?;
    let (mut all, mut well) = (Vec::new(), false);
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        if let Some(said) = line.strip_prefix(prefix) {
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
