//! Devices that the program has itself: the nodes by which this kernel's drivers show them.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::root::seen;
use crate::machine;

const FUNCTIONS: &str = "/sys/bus/pci/devices";
/// Where a kernel has devices that are on no bus: a disk that may be reached by several controllers is one.
const VIRTUAL: &str = "/sys/devices/virtual";
/// How long drivers may take to have all devices up. A program is started all the same then: its device
/// may come late.
const PATIENCE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(200);
/// Between two looks once the program runs.
const LATER: Duration = Duration::from_secs(2);
/// How the class of a bridge between buses begins.
const BRIDGE: &str = "0x0604";
/// Folders below a function's own; no driver has more.
const DEPTH: usize = 8;

/// A node that a driver asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    /// Below `/dev`.
    name: PathBuf,
    kind: FileType,
    number: (u32, u32),
}

/// Shows the program the nodes of what is behind `bridges`, waiting for the drivers; and what comes later,
/// on a thread of its own.
pub(super) fn show(bridges: &[String]) -> io::Result<()> {
    if bridges.is_empty() {
        return Ok(());
    }
    let bridges: Vec<PathBuf> =
        bridges.iter().map(|at| Path::new(FUNCTIONS).join(format!("0000:00:{at}"))).collect();
    let end = Instant::now() + PATIENCE;
    let mut before = None;
    while Instant::now() < end {
        let up = bridges.iter().all(|bridge| is_driven(bridge));
        let now = all(&bridges, Path::new(VIRTUAL));
        if up && before.as_ref() == Some(&now) {
            break;
        }
        before = up.then_some(now);
        std::thread::sleep(AGAIN);
    }
    for node in machine::node_paths()? {
        let (found, name) = (fs::metadata(&node)?, node.strip_prefix("/dev").unwrap_or(&node));
        let number = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
        let block = found.file_type().is_block_device();
        let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
        make(&Node { name: name.to_owned(), kind, number })?;
    }
    all(&bridges, Path::new(VIRTUAL)).iter().try_for_each(make)?;
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(LATER);
            // One that cannot be made is not there, as without a driver.
            let _ = all(&bridges, Path::new(VIRTUAL)).iter().try_for_each(make);
        }
    });
    Ok(())
}

/// The functions behind a bridge, or the one that is in its place.
fn behind(bridge: &Path) -> Vec<PathBuf> {
    let functions = folders(bridge).into_iter().filter(|folder| folder.join("vendor").exists());
    let functions: Vec<PathBuf> = functions.collect();
    let class = fs::read_to_string(bridge.join("class")).unwrap_or_default();
    match class.trim() {
        class if functions.is_empty() && !class.is_empty() && !class.starts_with(BRIDGE) => {
            vec![bridge.to_owned()]
        }
        _ => functions,
    }
}

fn is_driven(bridge: &Path) -> bool {
    let functions = behind(bridge);
    !functions.is_empty() && functions.iter().all(|function| function.join("driver").exists())
}

fn all(bridges: &[PathBuf], without_bus: &Path) -> Vec<Node> {
    let mut nodes = Vec::new();
    let functions = bridges.iter().flat_map(|bridge| behind(bridge));
    for folder in functions.chain(joined(bridges, without_bus)) {
        collect(&folder, DEPTH, &mut nodes);
    }
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    nodes
}

/// Devices on no bus that a link ties to what is behind a bridge.
fn joined(bridges: &[PathBuf], without_bus: &Path) -> Vec<PathBuf> {
    let functions = bridges.iter().flat_map(|bridge| behind(bridge));
    let functions: Vec<PathBuf> =
        functions.filter_map(|function| fs::canonicalize(function).ok()).collect();
    let is_ours = |link: PathBuf| {
        let to = fs::canonicalize(link).unwrap_or_default();
        functions.iter().any(|function| to.starts_with(function))
    };
    let devices = folders(without_bus).into_iter().flat_map(|class| folders(&class));
    devices.filter(|device| links(device).into_iter().any(is_ours)).collect()
}

fn links(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    links.map(|entry| entry.path()).collect()
}

/// Folders of a folder, links left out: they lead to other devices.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}

fn collect(folder: &Path, depth: usize, nodes: &mut Vec<Node>) {
    let event = fs::read_to_string(folder.join("uevent")).unwrap_or_default();
    let subsystem = fs::read_link(folder.join("subsystem")).unwrap_or_default();
    nodes.extend(node(&event, subsystem.ends_with("block")));
    if depth > 0 {
        folders(folder).iter().for_each(|folder| collect(folder, depth - 1, nodes));
    }
}

/// What a device's `uevent` says of its node, if it has one.
fn node(event: &str, block: bool) -> Option<Node> {
    let value = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
    let number = (value("MAJOR=")?.parse().ok()?, value("MINOR=")?.parse().ok()?);
    let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
    Some(Node { name: value("DEVNAME=")?.into(), kind, number })
}

fn make(node: &Node) -> io::Result<()> {
    let at = seen("/dev").join(&node.name);
    if let Some(folder) = at.parent() {
        fs::create_dir_all(folder)?;
    }
    let (mode, (major, minor)) = (Mode::from_raw_mode(0o666), node.number);
    match mknodat(CWD, &at, node.kind, mode, makedev(major, minor)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_a_function_are_found_and_those_of_others_are_not() {
        let root = tempfile::tempdir().unwrap();
        let bridge = root.path().join("0000:00:08.0");
        let function = bridge.join("0000:01:00.0");
        let (controller, space) =
            (function.join("nvme/nvme0"), function.join("nvme/nvme0/nvme0n1"));
        fs::create_dir_all(&space).unwrap();
        fs::create_dir_all(function.join("drm/card0")).unwrap();
        fs::create_dir_all(bridge.join("power")).unwrap();
        fs::write(function.join("vendor"), "0x1234").unwrap();
        fs::write(function.join("uevent"), "DRIVER=nvme\nPCI_CLASS=10802\n").unwrap();
        fs::write(controller.join("uevent"), "MAJOR=241\nMINOR=0\nDEVNAME=nvme0\n").unwrap();
        fs::write(space.join("uevent"), "MAJOR=259\nMINOR=3\nDEVNAME=nvme0n1\nDEVTYPE=disk\n")
            .unwrap();
        let card = "MAJOR=226\nMINOR=0\nDEVNAME=dri/card0\n";
        fs::write(function.join("drm/card0/uevent"), card).unwrap();
        std::os::unix::fs::symlink("/sys/class/block", space.join("subsystem")).unwrap();
        // Another device's, which a link leads to.
        let other = root.path().join("other");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("uevent"), "MAJOR=1\nMINOR=1\nDEVNAME=mem\n").unwrap();
        std::os::unix::fs::symlink(&other, function.join("consumer")).unwrap();

        let bridges = [bridge.clone()];
        // The controller's disk, as kernels with more than one way to it show it; and another's.
        let without_bus = root.path().join("virtual");
        for (group, disk, number, controller) in
            [("subsys0", "nvme1n1", 4, &controller), ("subsys1", "nvme2n1", 5, &other)]
        {
            let group = without_bus.join("nvme-subsystem").join(group);
            fs::create_dir_all(group.join(disk)).unwrap();
            let event = format!("MAJOR=259\nMINOR={number}\nDEVNAME={disk}\n");
            fs::write(group.join(disk).join("uevent"), event).unwrap();
            std::os::unix::fs::symlink("/sys/class/block", group.join(disk).join("subsystem"))
                .unwrap();
            std::os::unix::fs::symlink(controller, group.join("member")).unwrap();
        }
        let found = all(&bridges, &without_bus);
        let (block, character) = (FileType::BlockDevice, FileType::CharacterDevice);
        let node = |name: &str, kind, number| Node { name: name.into(), kind, number };
        let expected = [
            node("dri/card0", character, (226, 0)),
            node("nvme0", character, (241, 0)),
            node("nvme0n1", block, (259, 3)),
            node("nvme1n1", block, (259, 4)),
        ];
        assert_eq!(found, expected);
        assert!(!is_driven(&bridge));
        fs::create_dir(function.join("driver")).unwrap();
        assert!(is_driven(&bridge) && !is_driven(root.path()));
    }
}
