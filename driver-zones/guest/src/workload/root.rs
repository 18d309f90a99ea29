//! The program's root: its files, which are this machine's alone, and what a kernel shows.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use gpuzone_wire::workload_link::{LIBRARIES, LIBRARIES_SEEN, Order, ROOT, SLOT_SEEN};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat, symlink};
use rustix::mount::{MountFlags, mount, mount_bind};

/// Device nodes that every program may use, and their numbers.
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// A path of the program's, as this process sees it.
pub(super) fn seen(path: &str) -> PathBuf {
    Path::new(ROOT).join(path.trim_start_matches('/'))
}

pub(super) fn lay_out(order: &Order) -> io::Result<()> {
    let size = order.scratch.map(|bytes| format!("size={bytes},")).unwrap_or_default();
    let read_only = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    let private = MountFlags::NOSUID | MountFlags::NODEV;
    let (open, closed) = (format!("{size}mode=1777"), format!("{size}mode=0755"));
    for (kind, at, flags, data) in [
        ("proc", "/proc", read_only, ""),
        // Not to be written to: rings of other processes lie there as devices.
        ("sysfs", "/sys", read_only, ""),
        ("tmpfs", "/dev", MountFlags::NOSUID, "mode=0755"),
        ("tmpfs", "/dev/shm", private, &open),
        ("tmpfs", "/tmp", private, &open),
        ("tmpfs", "/var/tmp", private, &open),
        ("tmpfs", "/run", private, &closed),
    ] {
        let at = seen(at);
        fs::create_dir_all(&at)?;
        let data = std::ffi::CString::new(data)?;
        mount(kind, &at, kind, flags, Some(data.as_c_str()))?;
    }
    for (name, major, minor) in NODES {
        let mode = Mode::from_raw_mode(0o666);
        let at = seen("/dev").join(name);
        mknodat(CWD, &at, FileType::CharacterDevice, mode, makedev(major, minor))?;
    }
    for (name, to) in LINKS {
        symlink(to, seen("/dev").join(name))?;
    }
    if !order.devices.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(seen(SLOT_SEEN))?;
    fs::create_dir_all(seen(LIBRARIES_SEEN))?;
    Ok(mount_bind(LIBRARIES, seen(LIBRARIES_SEEN))?)
}
