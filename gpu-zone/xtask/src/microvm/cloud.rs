//! `cargo xtask microvm-suite --cloud-hypervisor FILE`: driver and workload zones in machines of Cloud
//! Hypervisor's, from end to end. It needs KVM, so the node is a guest itself, whose processor's
//! virtualization is emulated; agent, command, sandboxes and Cloud Hypervisor in it are those of a real node.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use gpuzone_image::cpio::Archive;
use gpuzone_testkit::Artifacts;

use super::image::{self, Contents, For, libraries, stripped};
use super::kernel;
use super::nested::{End, listen, modules, real};
use super::suite::{Wanted, say};

/// What the node's first process does.
const SCRIPT: &str = include_str!("cloud.sh");
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
const TOOLS: [&str; 8] = [
    "/bin/sh",
    "/usr/bin/cat",
    "/usr/bin/grep",
    "/usr/bin/mkdir",
    "/usr/bin/mount",
    "/usr/bin/sleep",
    "/usr/sbin/chroot",
    "/usr/sbin/insmod",
];
/// The node's, in the order in which one needs the other.
const MODULES: [&str; 3] = ["irqbypass", "kvm", "kvm-amd"];
/// Those of the machines in it, where the kernel has no vsock built in.
const GUESTS_MODULES: [&str; 3] =
    ["vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];
const LIMIT_SECONDS: &str = "840";
const AGENT: &str = r#"[driver]
kind = "simulated"
simulated_config = "simulated.toml"
[tenants.default]
[zone.microvm]
kernel = "/guest/vmlinux"
image = "/guest/zone.cpio"
hypervisor = "cloud-hypervisor"
cloud_hypervisor = "/usr/bin/cloud-hypervisor"
memory = "384Mi"
windows = 4
[zone.workload_microvm]
kernel = "/guest/vmlinux"
image = "/guest/workload.cpio"
hypervisor = "cloud-hypervisor"
cloud_hypervisor = "/usr/bin/cloud-hypervisor"
cpus = 1
windows = 2
"#;
const SIMULATED: &str = "state_dir = \"/dev/shm/sim\"\n\n[[gpu]]\nname = \"gpu-zone Simulated GPU\"\nmemory = \"1Gi\"\n";

/// Runs it, with the Cloud Hypervisor at `program`.
///
/// # Errors
/// With what did not hold.
pub(crate) fn run(repository: &Path, wanted: &Wanted, program: &Path) -> anyhow::Result<()> {
    let missing = [&wanted.qemu, program].into_iter().find(|file| !file.exists());
    if let Some(missing) = missing {
        say("SKIPPED", &format!("{} is not there", missing.display()));
        return Ok(());
    }
    let work = repository.join("target/guest-image");
    let node = work.join("cloud");
    std::fs::create_dir_all(&node)?;
    let vsock = modules(&wanted.kernel, &node, &GUESTS_MODULES)?;
    for (what, name) in [(For::Driver, "zone.cpio"), (For::Workloads, "workload.cpio")] {
        let modules = wanted.modules.iter().chain(&vsock).cloned().collect();
        let output = node.join(name);
        image::build(repository, &Contents { what, output, driver: None, modules })?;
    }
    kernel::unpack(&wanted.kernel, &work.join("vmlinux"))?;
    let archive = archive(wanted, &work, &node, program)?;
    let initrd = node.join("node.cpio");
    archive.write(&mut std::io::BufWriter::new(std::fs::File::create(&initrd)?))?;
    boot(wanted, &work.join("vmlinux"), &initrd)
}

/// The node's first file system.
fn archive(wanted: &Wanted, work: &Path, node: &Path, program: &Path) -> anyhow::Result<Archive> {
    let (mut archive, artifacts) = (Archive::default(), Artifacts::build()?);
    for folder in ["proc", "sys", "dev", "run", "tmp", "newroot", "var/lib", "modules"] {
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
    needed.extend(libraries(program)?);
    archive.file("/usr/bin/cloud-hypervisor", stripped(program, work)?, 0o755);
    for library in needed {
        archive.file(&real(&library)?, std::fs::canonicalize(&library)?, 0o755);
    }
    for (number, file) in modules(&wanted.kernel, node, &MODULES)?.into_iter().enumerate() {
        archive.file(&format!("/modules/{number}"), file, 0o644);
    }
    archive.file("/guest/vmlinux", work.join("vmlinux"), 0o644);
    for image in ["zone.cpio", "workload.cpio"] {
        archive.file(&format!("/guest/{image}"), node.join(image), 0o644);
    }
    root(&mut archive, artifacts, work)?;
    // The kernels' PTX, where the programs look for it.
    let mut kernels: Vec<PathBuf> = Vec::new();
    for file in std::fs::read_dir(artifacts.kernels())? {
        kernels.push(file?.path());
    }
    kernels.sort();
    for file in kernels {
        let name = file.file_name().and_then(|name| name.to_str()).context("a kernel's name")?;
        for folder in ["/usr/share/kernels", "/guest/root/usr/share/kernels"] {
            archive.file(&format!("{folder}/{name}"), file.clone(), 0o644);
        }
    }
    let script = node.join("cloud.sh");
    std::fs::write(&script, SCRIPT)?;
    archive.file("/init", script.clone(), 0o755);
    archive.file("/cloud.sh", script, 0o755);
    archive.text("/etc/gpu-zone/agent.toml", AGENT.to_owned());
    archive.text("/etc/gpu-zone/simulated.toml", SIMULATED.to_owned());
    Ok(archive)
}

/// The root of programs in machines of their own: a shell, and what computes.
fn root(archive: &mut Archive, artifacts: &Artifacts, work: &Path) -> anyhow::Result<()> {
    let workload = artifacts.file("gpuzone-workload")?;
    let inside = [
        ("/bin/sh", Path::new("/bin/sh").to_owned(), Path::new("/bin/sh")),
        ("/opt/gpu-zone/gpuzone-workload", stripped(workload, work)?, workload),
    ];
    let mut needed = BTreeSet::new();
    for (path, file, of) in inside {
        archive.file(&format!("/guest/root{path}"), std::fs::canonicalize(file)?, 0o755);
        needed.extend(libraries(of)?);
    }
    for library in needed {
        let path = format!("/guest/root{}", library.display());
        archive.file(&path, std::fs::canonicalize(&library)?, 0o755);
    }
    Ok(())
}

/// Runs the node; what it says is passed on.
fn boot(wanted: &Wanted, kernel: &Path, initrd: &Path) -> anyhow::Result<()> {
    let words =
        "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable cryptomgr.notests rdinit=/init";
    let mut node = Command::new("timeout");
    node.arg(LIMIT_SECONDS)
        .arg(&wanted.qemu)
        .args(["-machine", "q35,accel=tcg", "-cpu", "max,la57=off,svm=on", "-smp", "2"])
        .args(["-m", "4096", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-serial", "stdio", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", words])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    ensure!(
        listen(node, "node: ")? == End::Well,
        "Cloud Hypervisor's machines are not what they should be"
    );
    say("ok", "driver and workload zones in machines of Cloud Hypervisor's");
    Ok(())
}
