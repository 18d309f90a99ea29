//! Mounts that are not attached anywhere yet, and places in a root to attach them to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::system_calls::mount_setattr;

/// Attributes of a mount (mount_setattr(2)).
pub(super) const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
pub(super) const NO_SETUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub(super) const NO_DEVICES: u64 = libc::MOUNT_ATTR_NODEV;

/// A copy of what is mounted at `path` and below, attached nowhere.
pub(super) fn copy(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

/// The folder `name` of an attached file system as a mount of its own, attached nowhere.
pub(super) fn part(whole: BorrowedFd<'_>, name: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(whole, name, flags)?)
}

/// Sets attributes on a mount and on all below it.
pub(super) fn set(mount: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    // What the host mounts there later does not appear.
    let propagation = libc::MS_PRIVATE;
    let wanted = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation, userns_fd: 0 };
    mount_setattr(mount, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, &wanted)
}

/// Makes the files of a mount, and of all below it, those of the same users in `namespace`.
pub(super) fn map_users(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?;
    let attr_set = libc::MOUNT_ATTR_IDMAP;
    let wanted = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd };
    mount_setattr(mount, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, &wanted)
}

/// A new file system of a kind that needs no device, attached nowhere.
pub(super) fn fresh(kind: &str, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    make(kind, options, MountAttrFlags::MOUNT_ATTR_NODEV)
}

/// The same for device nodes.
pub(super) fn fresh_nodes(options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    make("tmpfs", options, MountAttrFlags::MOUNT_ATTR_NOEXEC)
}

fn make(kind: &str, options: &[(&str, &str)], more: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | more;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Attaches a mount at an open place.
pub(super) fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", place, "", flags)?)
}

/// Opens `path` in `root`, whose links lead nowhere out of it.
pub(super) fn open(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?)
}

/// Opens `path` in `root` as something of the kind of `like`, which is made if it is not there.
pub(super) fn place(root: BorrowedFd<'_>, path: &Path, like: FileType) -> io::Result<OwnedFd> {
    let mut at = open(root, Path::new("/"))?;
    let mut so_far = std::path::PathBuf::from("/");
    let mut rest = path.components().filter(|part| *part != Component::RootDir).peekable();
    while let Some(part) = rest.next() {
        let Component::Normal(name) = part else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        so_far.push(name);
        at = match open(root, &so_far) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = rest.peek().is_some() || like == FileType::Directory;
                if folder {
                    rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755))?;
                } else {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    rustix::fs::openat(&at, name, flags, Mode::from_raw_mode(0o644))?;
                }
                open(root, &so_far)?
            }
            other => other?,
        };
    }
    Ok(at)
}

/// Whether it is a folder, a device, and so on.
pub(super) fn kind(file: BorrowedFd<'_>) -> io::Result<FileType> {
    let stat = rustix::fs::statat(file, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}
