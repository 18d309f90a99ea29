use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::{Context, Outcome};
use crate::catalog as c;
use crate::catalog::Entry;
use crate::driver::raw;
use crate::finding::Finding;
use crate::host::{self, Host};

/// NVIDIA's major device number.
const NVIDIA_MAJOR: u32 = 195;
/// The control node's minor device number.
const NVIDIA_CONTROL: u32 = 255;

fn nvidia(host: &Host) -> Vec<PathBuf> {
    let is_node = |path: &PathBuf| host::name(path).starts_with("nvidia") && !path.is_dir();
    host.entries("/dev").into_iter().filter(is_node).collect()
}

fn dri(host: &Host) -> Vec<PathBuf> {
    let is_node =
        |path: &PathBuf| ["card", "renderD"].iter().any(|kind| host::name(path).starts_with(kind));
    host.entries("/dev/dri").into_iter().filter(is_node).collect()
}

fn vfio(host: &Host) -> Vec<PathBuf> {
    let mut found = host.entries("/dev/vfio");
    found.extend(host.entries("/dev/vfio/devices"));
    found.push(host.path("/dev/iommu"));
    found.retain(|path| path.exists() && !path.is_dir());
    found
}

/// Opens a node to see whether that is possible. But a VFIO group and a display can be opened by
/// one program at a time, which the probe must not disturb: there the file's mode has to do.
fn can_open(path: &Path) -> bool {
    let alone = path.parent().is_some_and(|folder| host::name(folder) == "vfio")
        || host::name(path).starts_with("card");
    if alone { Host::writable(path) } else { host::opens(path, false).is_ok() }
}

pub(super) fn nodes(context: &mut Context<'_>, outcome: &mut Outcome) {
    let host = context.host;
    let groups: [(&Entry, Vec<PathBuf>); 5] = [
        (&c::NVIDIA_NODES, nvidia(host)),
        (&c::DRI_NODES, dri(host)),
        (&c::VFIO_NODES, vfio(host)),
        (&c::KFD_NODE, vec![host.path("/dev/kfd")]),
        (&c::MEMORY_NODES, ["/dev/mem", "/dev/port", "/proc/kcore"].map(|p| host.path(p)).into()),
    ];
    for (entry, paths) in groups {
        let open: Vec<String> =
            paths.iter().filter(|path| can_open(path)).map(|path| host.shown(path)).collect();
        if !open.is_empty() {
            outcome.found(Finding::new(entry, open.join(", ")));
        }
    }
    // The capability to change partitions; those of single instances have higher numbers.
    let capability = host.path("/dev/nvidia-caps/nvidia-cap1");
    if host::opens(&capability, false).is_ok() {
        outcome.found(Finding::new(&c::MIG_CAPABILITY, host.shown(&capability)));
    }
}

pub(super) fn ioctls(context: &mut Context<'_>, outcome: &mut Outcome) {
    let mut paths = vec![context.host.path("/dev/nvidiactl"), context.host.path("/dev/kfd")];
    // Whoever opens a card may become the display's master; a render node does not.
    paths.extend(
        dri(context.host).into_iter().filter(|path| host::name(path).starts_with("render")),
    );
    for path in paths {
        if let Some(answer) = raw::version(&path) {
            let seen = format!("{} answers: {answer}", context.host.shown(&path));
            outcome.found(Finding::new(&c::RAW_IOCTL, seen));
        }
    }
}

/// Makes NVIDIA's control node where the workload may write, opens it, and removes it.
pub(super) fn make_nodes(context: &mut Context<'_>, outcome: &mut Outcome) {
    for folder in ["/tmp", "/dev/shm", "/var/tmp"] {
        let name = format!("gpu-zone-probe-{}", std::process::id());
        let path = context.host.path(folder).join(name);
        (context.announce)(&format!("making and removing the node {}", path.display()));
        let device = makedev(NVIDIA_MAJOR, NVIDIA_CONTROL);
        let mode = Mode::RUSR | Mode::WUSR;
        if mknodat(CWD, &path, FileType::CharacterDevice, mode, device).is_err() {
            continue;
        }
        let opened = host::opens(&path, true);
        if let Err(error) = std::fs::remove_file(&path) {
            outcome.untested(format!("{} could not be removed: {error}", path.display()));
        }
        report(opened.map(drop), &path, context, outcome);
        return;
    }
}

fn report(opened: std::io::Result<()>, path: &Path, context: &Context<'_>, outcome: &mut Outcome) {
    let missing = [rustix::io::Errno::NXIO, rustix::io::Errno::NODEV].map(|e| e.raw_os_error());
    match opened {
        Ok(()) => outcome.found(Finding::new(&c::NODES_CAN_BE_MADE, context.host.shown(path))),
        // Nothing stood in the way but that no such driver is there.
        Err(error) if error.raw_os_error().is_some_and(|code| missing.contains(&code)) => {
            let seen =
                format!("{}; there is no NVIDIA driver behind it now", context.host.shown(path));
            let finding = Finding::new(&c::NODES_CAN_BE_MADE, seen);
            outcome.found(finding.at(crate::Severity::Medium));
        }
        Err(_) => {}
    }
}
