//! What a kernel needs before programs run: file systems, control groups, modules, device nodes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, mount, mount_bind_recursive, mount_move};

/// What the image says about its driver: modules, one path a line, in order; and nodes.
const MODULES: &str = "/etc/gpu-zone/modules";
const NODES: &str = "/etc/gpu-zone/nodes";
const GROUPS: &str = "/sys/fs/cgroup";

/// Why the machine cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error("cannot {what}: {source}")]
    Step { what: String, source: io::Error },
    #[error("{file}, line {line}: {reason}")]
    Line { file: &'static str, line: usize, reason: String },
}

fn step<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> PrepareError {
    let what = what.into();
    move |source| PrepareError::Step { what, source: source.into() }
}

pub(crate) fn prepare() -> Result<(), PrepareError> {
    leave_the_first_root()?;
    for (kind, at, data) in [
        ("proc", "/proc", None),
        ("sysfs", "/sys", None),
        ("devtmpfs", "/dev", None),
        ("tmpfs", "/dev/shm", None),
        ("tmpfs", "/run", Some(c"mode=0755")),
        ("tmpfs", "/tmp", None),
        ("cgroup2", GROUPS, None),
    ] {
        fs::create_dir_all(at).map_err(step(format!("make {at}")))?;
        let mounted = mount(kind, at, kind, MountFlags::empty(), data);
        mounted.map_err(step(format!("mount {kind} at {at}")))?;
    }
    groups()?;
    modules()?;
    nodes()
}

/// What a kernel keeps of its free memory, and a driver zone has no use for: file below `/proc/sys/vm`, value.
const KEPT: [(&str, &str); 2] = [
    // Free pages that a processor holds back for its own next allocations. How many grows with what is given back in a
    // row, as a start does, and they are lacking elsewhere; with so small a part of the memory they are as few as can be.
    ("percpu_pagelist_high_fraction", "4096"),
    // In the first 16 MiB, for devices that reach no further (ISA's). There are none.
    ("lowmem_reserve_ratio", "0"),
];

/// Has the kernel keep no more free memory for itself than it needs here.
pub(crate) fn keep_little() {
    for (file, value) in KEPT {
        // A kernel without one keeps more, and nothing else is different.
        let _ = fs::write(Path::new("/proc/sys/vm").join(file), value);
    }
}

/// The kernel's first root can be no sandbox's old one (pivot_root(2)), so its files are bound
/// once more, over it.
fn leave_the_first_root() -> Result<(), PrepareError> {
    let new = "/newroot";
    fs::create_dir_all(new).map_err(step("make a root"))?;
    mount_bind_recursive("/", new).map_err(step("bind the root"))?;
    rustix::process::chdir(new).map_err(step("enter the root"))?;
    mount_move(".", "/").map_err(step("move the root"))?;
    rustix::process::chroot(".").map_err(step("take the root"))?;
    rustix::process::chdir("/").map_err(step("enter the root"))
}

/// Passes controllers down to zones' groups; this process sits in a group of its own, for one that
/// passes controllers down has no processes.
fn groups() -> Result<(), PrepareError> {
    let own = Path::new(GROUPS).join("driver-zone/init");
    fs::create_dir_all(&own).map_err(step("make a control group"))?;
    fs::write(own.join("cgroup.procs"), "1").map_err(step("enter a control group"))?;
    for group in [GROUPS.into(), PathBuf::from(GROUPS).join("driver-zone")] {
        for controller in ["cpu", "memory", "pids"] {
            // A kernel without one has zones without its limit, and zones say so themselves.
            let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    Ok(())
}

fn lines(path: &'static str) -> Result<Vec<(usize, String)>, PrepareError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(step(format!("read {path}"))(error)),
    };
    let lines = text.lines().enumerate().map(|(n, line)| (n + 1, line.trim().to_owned()));
    Ok(lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).collect())
}

fn modules() -> Result<(), PrepareError> {
    for (_, line) in lines(MODULES)? {
        let (path, parameters) = line.split_once(' ').unwrap_or((&line, ""));
        let file = fs::File::open(path).map_err(step(format!("open the module {path}")))?;
        let parameters = std::ffi::CString::new(parameters).unwrap_or_default();
        match rustix::system::finit_module(&file, &parameters, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(step(format!("load the module {path}"))(error)),
        }
    }
    Ok(())
}

/// Device nodes that no driver asks the kernel for: NVIDIA's. A line is a path, the name under
/// which `/proc/devices` has its number, and the minor number.
fn nodes() -> Result<(), PrepareError> {
    let wanted = lines(NODES)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let known = fs::read_to_string("/proc/devices").map_err(step("read /proc/devices"))?;
    for (line, text) in wanted {
        let wrong = |reason: String| PrepareError::Line { file: NODES, line, reason };
        let node = Node::parse(&text, &known).map_err(wrong)?;
        let (kind, mode) = (FileType::CharacterDevice, Mode::from_raw_mode(0o666));
        mknodat(CWD, &node.path, kind, mode, makedev(node.major, node.minor))
            .map_err(step(format!("make {}", node.path)))?;
    }
    Ok(())
}

/// Where those are that were made so.
pub(crate) fn node_paths() -> io::Result<Vec<PathBuf>> {
    let lines = lines(NODES).map_err(io::Error::other)?;
    let path = |(_, line): (usize, String)| line.split_whitespace().next().map(PathBuf::from);
    Ok(lines.into_iter().filter_map(path).collect())
}

#[derive(Debug, PartialEq, Eq)]
struct Node {
    path: String,
    major: u32,
    minor: u32,
}

impl Node {
    fn parse(line: &str, devices: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let (Some(path), Some(name), Some(minor), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err("a node is a path, a driver's name and a minor number".to_owned());
        };
        let minor = minor.parse().map_err(|_| format!("'{minor}' is no minor number"))?;
        let numbers = devices.lines().filter_map(|line| line.trim().split_once(' '));
        let mut major = numbers.filter(|(_, found)| found.trim() == name).map(|(major, _)| major);
        let major = major.next_back().and_then(|major| major.parse().ok());
        let major =
            major.ok_or_else(|| format!("no driver is called '{name}' in /proc/devices"))?;
        Ok(Self { path: path.to_owned(), major, minor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: &str =
        "Character devices:\n  1 mem\n195 nvidia\n511 nvidia-uvm\n\nBlock devices:\n";

    #[test]
    fn a_node_has_the_number_that_its_driver_got() {
        let node = Node::parse("/dev/nvidia-uvm nvidia-uvm 0", DEVICES).unwrap();
        assert_eq!(node, Node { path: "/dev/nvidia-uvm".to_owned(), major: 511, minor: 0 });
        for wrong in ["/dev/x", "/dev/x nothing 0", "/dev/x nvidia y", "/dev/x nvidia 0 1"] {
            assert!(Node::parse(wrong, DEVICES).is_err(), "{wrong}");
        }
    }
}
