//! `cargo xtask microvm-suite --nested`: a device goes by passthrough into a workload zone that is a
//! microVM. The node is a guest itself, with an IOMMU, an NVMe controller and a processor with AMD's
//! virtualization, all of which QEMU emulates: so the inner machine is one of KVM's, and nothing is emulated
//! twice. Agent, command, sandbox and QEMU in it are those of a real node, and the inner kernel's own
//! driver has the controller.

use std::path::Path;

use anyhow::{bail, ensure};
use gpuzone_image::cpio::Archive;

use super::image::{self, Contents, For};
use super::kernel;
use super::node::{self, End, listen};
use super::suite::{Wanted, say};

/// What the node's first process does in the end.
const SCRIPT: &str = include_str!("nested.sh");
/// Where the controller is put.
const ADDRESS: &str = "0000:00:04.0";
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
/// The driver zone's image, whose first process begins with [`FIRST`].
const WITH_DEVICE: &str = "zone-with-device.cpio";
/// What is done there before the zone's own first process takes over: it waits for the disk that the driver zone
/// was given, and writes to it. Where there is none, it goes on without.
const FIRST: &str = "#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
until [ -b /dev/nvme0n1 ] || { read -r up _ </proc/uptime; [ ${up%.*} -ge 20 ]; }; do :; done
[ ! -b /dev/nvme0n1 ] || echo from-driver-zone >/dev/nvme0n1
umount /dev /proc
exec /zone
";
/// With a machine in it, on a busy host.
const MACHINE: node::Machine<'_> = node::Machine {
    limit_seconds: "420",
    processor: "max",
    memory: "2048",
    words: "nohz=off highres=off intel_iommu=on",
};

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
    image_with_device(&work, &node)?;
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

/// A file system is unpacked over the one before it, so what comes first is put behind the driver zone's image.
fn image_with_device(work: &Path, node: &Path) -> anyhow::Result<()> {
    let (mut over, script) = (Archive::default(), node.join("first"));
    std::fs::write(&script, FIRST)?;
    over.file("/init", script, 0o755);
    over.file("/zone", work.join("stripped/gpu-zone-guest"), 0o755);
    for tool in ["/bin/sh", "/usr/bin/mount", "/usr/bin/umount"].map(Path::new) {
        over.file(&tool.display().to_string(), std::fs::canonicalize(tool)?, 0o755);
        for library in image::libraries(tool)? {
            let path = library.display().to_string();
            over.file(&path, std::fs::canonicalize(&library)?, 0o755);
        }
    }
    let output = work.join(WITH_DEVICE);
    std::fs::copy(work.join("zone.cpio"), &output)?;
    over.write(&mut std::fs::File::options().append(true).open(&output)?)?;
    Ok(())
}

/// The node's first file system.
fn archive(wanted: &Wanted, work: &Path, node: &Path, vmlinux: &Path) -> anyhow::Result<Archive> {
    let qemu = node::real(&wanted.qemu)?;
    let contents = node::Contents {
        hypervisor: (&wanted.qemu, qemu.clone()),
        modules: &MODULES,
        script: format!("ADDRESS={ADDRESS}\n{SCRIPT}"),
    };
    let mut archive = node::archive(wanted, work, node, &contents)?;
    for (folder, name) in FIRMWARE {
        let file = Path::new(folder).join(name);
        if !file.exists() {
            continue;
        }
        archive.file(&file.display().to_string(), file, 0o644);
    }
    // The inner machine's, and its program's root: a shell.
    archive.file("/guest/vmlinux", vmlinux.to_owned(), 0o644);
    for name in [IMAGES[0].1, WITH_DEVICE] {
        archive.file(&format!("/guest/{name}"), work.join(name), 0o644);
    }
    let shell = Path::new("/bin/sh");
    node::root(&mut archive, &[("/bin/sh", shell.to_owned(), shell)])?;
    for (name, bind) in [("agent.toml", true), ("given-back.toml", false)] {
        archive.text(&format!("/etc/gpu-zone/{name}"), configuration(&qemu, bind));
    }
    let machine = format!(
        "[zone.microvm]\nkernel = \"/guest/vmlinux\"\nimage = \"/guest/{WITH_DEVICE}\"\nqemu = {qemu:?}\naccelerator = \"kvm\"\nmemory = \"384Mi\"\nwindows = 4\ndevices = [{ADDRESS:?}]\n"
    );
    for (name, zone) in [("sandbox.toml", ""), ("machine.toml", machine.as_str())] {
        archive.text(&format!("/etc/gpu-zone/{name}"), format!("{MEDIATED}{zone}"));
    }
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

/// Runs the node; what it says is passed on. False where it lost its timer.
fn boot(wanted: &Wanted, kernel: &Path, initrd: &Path, disk: &Path) -> anyhow::Result<bool> {
    let drive = format!("driver=file,node-name=disk,filename={}", disk.display());
    let slot = ADDRESS.rsplit_once(':').map_or(ADDRESS, |(_, slot)| slot);
    let mut node = node::command(wanted, &MACHINE, kernel, initrd);
    node.args(["-device", "intel-iommu,intremap=on,caching-mode=on"])
        .args(["-blockdev", &drive])
        .args(["-device", &format!("nvme,serial=gpuzone,drive=disk,addr={slot}")]);
    match listen(node)? {
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
