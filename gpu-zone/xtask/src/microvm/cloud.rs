//! `cargo xtask microvm-suite --cloud-hypervisor FILE`: driver and workload zones in machines of Cloud
//! Hypervisor's, from end to end. It needs KVM, so the node is a guest itself, whose processor's
//! virtualization is emulated; agent, command, sandboxes and Cloud Hypervisor in it are those of a real node.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use gpuzone_image::cpio::Archive;
use gpuzone_testkit::Artifacts;

use super::image::{self, Contents, For, stripped};
use super::kernel;
use super::node::{self, End, listen, modules};
use super::suite::{Wanted, say};

/// What the node's first process does in the end.
const SCRIPT: &str = include_str!("cloud.sh");
/// The node's.
const MODULES: [&str; 3] = ["irqbypass", "kvm", "kvm-amd"];
/// Those of the machines in it, where the kernel has no vsock built in.
const GUESTS_MODULES: [&str; 3] =
    ["vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];
/// How long all but sessions that were asked for may take, and each of those.
const LIMIT_SECONDS: u32 = 840;
const SESSIONS_SECONDS: u32 = 30;
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

/// Runs it, with the Cloud Hypervisor at `program`, and has so many `sessions` more come and go.
///
/// # Errors
/// With what did not hold.
pub(crate) fn run(
    repository: &Path,
    wanted: &Wanted,
    program: &Path,
    sessions: u32,
) -> anyhow::Result<()> {
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
    boot(wanted, &work.join("vmlinux"), &initrd, sessions)
}

/// The node's first file system.
fn archive(wanted: &Wanted, work: &Path, node: &Path, program: &Path) -> anyhow::Result<Archive> {
    let contents = node::Contents {
        hypervisor: (program, "/usr/bin/cloud-hypervisor".to_owned()),
        modules: &MODULES,
        script: SCRIPT.to_owned(),
    };
    let mut archive = node::archive(wanted, work, node, &contents)?;
    let artifacts = Artifacts::build()?;
    archive.file("/guest/vmlinux", work.join("vmlinux"), 0o644);
    for image in ["zone.cpio", "workload.cpio"] {
        archive.file(&format!("/guest/{image}"), node.join(image), 0o644);
    }
    // The root of programs in machines of their own: a shell, and what computes.
    let (shell, workload) = (Path::new("/bin/sh"), artifacts.file("gpuzone-workload")?);
    let programs = [
        ("/bin/sh", shell.to_owned(), shell),
        ("/opt/gpu-zone/gpuzone-workload", stripped(workload, work)?, workload),
    ];
    node::root(&mut archive, &programs)?;
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
    archive.text("/etc/gpu-zone/agent.toml", AGENT.to_owned());
    Ok(archive)
}

/// Runs the node; what it says is passed on.
fn boot(wanted: &Wanted, kernel: &Path, initrd: &Path, sessions: u32) -> anyhow::Result<()> {
    let machine = node::Machine {
        limit_seconds: &(LIMIT_SECONDS + sessions * SESSIONS_SECONDS).to_string(),
        processor: "max,la57=off,svm=on",
        memory: "4096",
        // A word that the kernel does not know is a variable of the first process's.
        words: &format!("sessions={sessions}"),
    };
    let node = node::command(wanted, &machine, kernel, initrd);
    ensure!(listen(node)? == End::Well, "Cloud Hypervisor's machines are not what they should be");
    say("ok", "driver and workload zones in machines of Cloud Hypervisor's");
    Ok(())
}
