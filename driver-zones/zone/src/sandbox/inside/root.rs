//! The zone's root.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, symlinkat};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use super::files::{
    NO_DEVICES, NO_SETUID, READ_ONLY, attach, copy, fresh, fresh_nodes, kind, map_users, part,
    place, set,
};
use super::{Setup, SetupError, step, users};
use crate::sandbox::spec::{Feature, Root, Spec};

/// Every zone has these device nodes.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// Links that programs expect in a `/dev` with a `/proc` beside it.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];
/// What a small file system of folders and empty files may hold at most.
const SMALL: &[(&str, &str)] = &[("size", "256k"), ("nr_inodes", "4096"), ("mode", "0755")];
/// Files in all private folders together; each is kernel memory.
const MOST_FILES: &str = "65536";
/// Where a zone has its private folders' bytes, besides where it says.
const SHARED_MEMORY: &str = "/dev/shm";

/// A copy of something of the host's, and where in the zone it goes.
#[derive(Debug)]
pub(crate) struct Handed {
    mount: OwnedFd,
    pub(super) target: PathBuf,
    like: FileType,
    write: bool,
    unmapped: bool,
}

/// What a zone's root is put together from.
#[derive(Debug)]
pub(crate) struct Parts {
    handed: Vec<Handed>,
    devices: Vec<Handed>,
    /// Nodes of the zone's own users', for those of the host's that are not open to them; and where they
    /// go, by their names, which are numbers.
    own_nodes: Option<(OwnedFd, Vec<PathBuf>)>,
    /// Of [`Root::Folder`].
    folder: Option<OwnedFd>,
    /// Folders of [`Root::Host`] that are empty but for what is handed over.
    closed: Vec<PathBuf>,
}

/// Builds the root and makes it this process's; nothing else is reachable then.
pub(super) fn enter(setup: &mut Setup) -> Result<(), SetupError> {
    // What the host mounts later does not appear here, nor ours there.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(step("cannot separate the zone's mounts"))?;
    // All copies are made before anything is covered.
    let taken = setup.handed.take();
    let Parts { handed, devices, own_nodes, folder, closed } = match taken {
        Some(parts) => parts,
        None => parts(&setup.spec)?,
    };
    let base = match folder {
        Some(folder) => folder,
        None => base(&setup.spec.root)?,
    };
    let root = stage(base.as_fd()).map_err(step("cannot attach the zone's root"))?;
    let root = root.as_fd();
    if setup.spec.root == Root::Empty {
        links(root).map_err(step("cannot copy the host's links like /lib"))?;
    }
    let dev = dev(root, &devices, own_nodes.as_ref())?;
    scratch(root, &setup.spec)?;
    proc(setup, root)?;
    // What is hidden stays hidden in a folder above it that is handed over, and what is handed
    // over is there even in a folder above it that is hidden.
    let hidden = &setup.spec.hidden;
    let is_above = |piece: &&Handed| hidden.iter().any(|folder| folder.starts_with(&piece.target));
    let (above, rest): (Vec<&Handed>, Vec<&Handed>) = handed.iter().partition(is_above);
    let mut covers = Vec::new();
    for folder in &closed {
        covers.extend(cover(root, folder, SMALL, 0)?);
    }
    for piece in above {
        put(root, piece)?;
    }
    for folder in hidden {
        covers.extend(cover(root, folder, SMALL, 0)?);
    }
    for piece in rest {
        put(root, piece)?;
    }
    covers.extend(dev);
    for cover in &covers {
        seal(cover.as_fd()).map_err(step("cannot close a folder of the zone's own"))?;
    }
    if setup.spec.root == Root::Empty {
        seal(root).map_err(step("cannot close the zone's root"))?;
    }
    pivot(root).map_err(step("cannot make the zone's root this process's"))
}

fn parts(spec: &Spec) -> Result<Parts, SetupError> {
    let (handed, devices) = (handed(spec)?, devices(spec)?);
    Ok(Parts { handed, devices, own_nodes: None, folder: None, closed: Vec::new() })
}

/// The same for the users of `namespace`, of which `first` is the first; in words why that cannot be.
pub(super) fn hand(
    spec: &Spec,
    namespace: BorrowedFd<'_>,
    first: u32,
) -> Result<Result<Parts, String>, SetupError> {
    let mut parts = parts(spec)?;
    if let Root::Folder(folder) = &spec.root {
        let base = base(&spec.root)?;
        if let Err(error) = map_users(base.as_fd(), namespace) {
            return Ok(Err(format!("{} cannot be mapped: {error}", folder.display())));
        }
        parts.folder = Some(base);
    }
    for piece in parts.handed.iter().filter(|piece| !piece.unmapped) {
        match map_users(piece.mount.as_fd(), namespace) {
            // Theirs who may read it anyway.
            Err(_) if !piece.write && is_open(piece, 0o004)? => {}
            Err(error) => {
                return Ok(Err(format!("{} cannot be mapped: {error}", piece.target.display())));
            }
            Ok(()) => {}
        }
    }
    let (mut open, mut closed) = (Vec::new(), Vec::new());
    for device in std::mem::take(&mut parts.devices) {
        if is_open(&device, 0o006)? { open.push(device) } else { closed.push(device) }
    }
    parts.devices = open;
    if let Some(device) = closed.first() {
        let named = device.target.display().to_string();
        match own_nodes(&closed, first) {
            Ok(nodes) => {
                parts.own_nodes = Some((nodes, closed.into_iter().map(|it| it.target).collect()));
            }
            Err(error) => {
                let reason = format!("{named} is not open to others, and no node is made: {error}");
                return Ok(Err(reason));
            }
        }
    }
    if spec.root == Root::Host {
        parts.closed = users::closed(&parts.handed);
    }
    Ok(Ok(parts))
}

/// A file system with a node for each of `devices`, which are the zone's first user's there.
fn own_nodes(devices: &[Handed], first: u32) -> io::Result<OwnedFd> {
    let (user, group) = (Uid::from_raw(first), Gid::from_raw(first));
    let nodes = fresh_nodes(SMALL)?;
    for (number, device) in devices.iter().enumerate() {
        let found = rustix::fs::statat(&device.mount, "", AtFlags::EMPTY_PATH)?;
        let name = number.to_string();
        rustix::fs::mknodat(&nodes, &name, device.like, Mode::RUSR | Mode::WUSR, found.st_rdev)?;
        rustix::fs::chownat(&nodes, &name, Some(user), Some(group), AtFlags::empty())?;
    }
    Ok(nodes)
}

fn is_open(piece: &Handed, to_others: u32) -> Result<bool, SetupError> {
    let found = rustix::fs::statat(&piece.mount, "", AtFlags::EMPTY_PATH);
    let found = found.map_err(step(format!("cannot look at {}", piece.target.display())))?;
    Ok(found.st_mode & to_others == to_others)
}

fn handed(spec: &Spec) -> Result<Vec<Handed>, SetupError> {
    let mut pieces = Vec::new();
    for mount in &spec.mounts {
        let what = || format!("cannot hand {} to the zone", mount.source.display());
        let copied = match copy(&mount.source) {
            Ok(copied) => copied,
            Err(error) if mount.optional && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(step(what())(error)),
        };
        let read_only = if mount.write { 0 } else { READ_ONLY };
        set(copied.as_fd(), NO_SETUID | NO_DEVICES | read_only).map_err(step(what()))?;
        let target = mount.target.clone().unwrap_or_else(|| mount.source.clone());
        let like = kind(copied.as_fd()).map_err(step(what()))?;
        let (write, unmapped) = (mount.write, mount.unmapped);
        pieces.push(Handed { mount: copied, target, like, write, unmapped });
    }
    Ok(pieces)
}

fn devices(spec: &Spec) -> Result<Vec<Handed>, SetupError> {
    let mut devices = Vec::new();
    for path in DEVICES.iter().map(PathBuf::from).chain(spec.devices.iter().cloned()) {
        let what = || format!("cannot hand {} to the zone", path.display());
        let mount = copy(&path).map_err(step(what()))?;
        set(mount.as_fd(), NO_SETUID | libc::MOUNT_ATTR_NOEXEC).map_err(step(what()))?;
        let like = kind(mount.as_fd()).map_err(step(what()))?;
        devices.push(Handed { mount, target: path, like, write: true, unmapped: true });
    }
    Ok(devices)
}

fn base(root: &Root) -> Result<OwnedFd, SetupError> {
    let folder = match root {
        Root::Empty => return fresh("tmpfs", SMALL).map_err(step("cannot make an empty root")),
        Root::Host => Path::new("/"),
        Root::Folder(folder) => folder,
    };
    let what = || format!("cannot make {} the zone's root", folder.display());
    let base = copy(folder).map_err(step(what()))?;
    set(base.as_fd(), READ_ONLY | NO_SETUID | NO_DEVICES).map_err(step(what()))?;
    Ok(base)
}

/// Attaches the new root somewhere, for only what is attached can be mounted on. Any folder
/// serves: what it held stays reachable nowhere else than behind the old root.
fn stage(base: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let anywhere = ["/tmp", "/run", "/dev", "/usr"];
    let open = |path: &&str| rustix::fs::open(*path, flags, rustix::fs::Mode::empty()).ok();
    let Some(at) = anywhere.iter().find_map(open) else {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    };
    attach(base, at.as_fd())?;
    rustix::io::fcntl_dupfd_cloexec(base, 0).map_err(io::Error::from)
}

/// Where the host's `/lib` and its like, `/bin` and `/sbin` are links, they are links here.
fn links(root: BorrowedFd<'_>) -> io::Result<()> {
    for entry in std::fs::read_dir("/")? {
        let entry = entry?;
        let name = entry.file_name();
        let wanted = name == "bin" || name == "sbin" || name.as_bytes().starts_with(b"lib");
        if wanted && entry.file_type()?.is_symlink() {
            symlinkat(std::fs::read_link(entry.path())?, root, &name)?;
        }
    }
    Ok(())
}

fn cover(
    root: BorrowedFd<'_>,
    folder: &Path,
    options: &[(&str, &str)],
    attributes: u64,
) -> Result<Option<OwnedFd>, SetupError> {
    let what = || format!("cannot make {} the zone's own", folder.display());
    let at = match place(root, folder, FileType::Directory) {
        Ok(at) => at,
        Err(error) if is_read_only(&error) => return Ok(None),
        Err(error) => return Err(step(what())(error)),
    };
    let empty = fresh("tmpfs", options).map_err(step(what()))?;
    set(empty.as_fd(), attributes).map_err(step(what()))?;
    attach(empty.as_fd(), at.as_fd()).map_err(step(what()))?;
    Ok(Some(empty))
}

/// Whether a folder is not there in a root that cannot be written to: nothing is to be covered.
fn is_read_only(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EROFS)
}

fn put(root: BorrowedFd<'_>, piece: &Handed) -> Result<(), SetupError> {
    let what = || format!("cannot put {} into the zone", piece.target.display());
    let at = place(root, &piece.target, piece.like).map_err(step(what()))?;
    attach(piece.mount.as_fd(), at.as_fd()).map_err(step(what()))
}

/// The private folders are parts of one file system: what one of them holds, the others cannot.
fn scratch(root: BorrowedFd<'_>, spec: &Spec) -> Result<(), SetupError> {
    let failed = "cannot make the zone's private folders";
    let size = spec.limits.scratch.map_or_else(|| "25%".to_owned(), |bytes| bytes.to_string());
    let options = [("size", size.as_str()), ("nr_inodes", MOST_FILES), ("mode", "0755")];
    let whole = fresh("tmpfs", &options).map_err(step(failed))?;
    let folders: Vec<&Path> = std::iter::once(Path::new(SHARED_MEMORY))
        .chain(spec.private.iter().map(PathBuf::as_path))
        .collect();
    let at = |folder: &Path| place(root, folder, FileType::Directory);
    let make = || -> io::Result<()> {
        // Only of what is attached can a part be mounted. The part goes on top of the whole.
        attach(whole.as_fd(), at(Path::new(SHARED_MEMORY))?.as_fd())?;
        let mut parts = Vec::new();
        for number in 0..folders.len() {
            let name = number.to_string();
            rustix::fs::mkdirat(&whole, &name, Mode::RWXU)?;
            let everybody = Mode::from_raw_mode(0o1777);
            rustix::fs::chmodat(&whole, &name, everybody, AtFlags::empty())?;
            parts.push(part(whole.as_fd(), Path::new(&name))?);
        }
        for (folder, part) in folders.iter().zip(&parts) {
            match at(folder) {
                Err(error) if is_read_only(&error) => {}
                other => attach(part.as_fd(), other?.as_fd())?,
            }
        }
        Ok(())
    };
    make().map_err(step(failed))
}

fn dev(
    root: BorrowedFd<'_>,
    devices: &[Handed],
    own_nodes: Option<&(OwnedFd, Vec<PathBuf>)>,
) -> Result<Option<OwnedFd>, SetupError> {
    let dev = cover(root, Path::new("/dev"), SMALL, 0)?;
    for device in devices {
        put(root, device)?;
    }
    if let Some((nodes, targets)) = own_nodes {
        put_nodes(root, nodes, targets)
            .map_err(step("cannot put the zone's device nodes into it"))?;
    }
    for (link, target) in LINKS {
        let link = Path::new(link);
        let at = place(root, Path::new("/dev"), FileType::Directory);
        let made =
            at.and_then(|at| Ok(symlinkat(target, at, link.file_name().unwrap_or_default())?));
        made.map_err(step("cannot make the zone's /dev"))?;
    }
    let shared_memory = place(root, Path::new(SHARED_MEMORY), FileType::Directory);
    shared_memory.map_err(step("cannot make the zone's /dev"))?;
    Ok(dev)
}

fn put_nodes(root: BorrowedFd<'_>, nodes: &OwnedFd, targets: &[PathBuf]) -> io::Result<()> {
    // Only of what is attached can a part be mounted. The private folder goes on top of it.
    let under = place(root, Path::new(SHARED_MEMORY), FileType::Directory)?;
    attach(nodes.as_fd(), under.as_fd())?;
    for (number, target) in targets.iter().enumerate() {
        let node = part(nodes.as_fd(), Path::new(&number.to_string()))?;
        let at = place(root, target, FileType::CharacterDevice)?;
        attach(node.as_fd(), at.as_fd())?;
    }
    Ok(())
}

/// A `/proc` is possible only with a pid namespace to show.
fn proc(setup: &mut Setup, root: BorrowedFd<'_>) -> Result<(), SetupError> {
    let path = Path::new("/proc");
    if setup.spec.own_pids && setup.has(Feature::Pid) {
        match fresh("proc", &[]) {
            Ok(proc) => {
                // Where the zone's user is the host's root, the kernel's settings in /proc/sys
                // are that user's own files, capabilities or not.
                let attached = set(proc.as_fd(), READ_ONLY)
                    .and_then(|()| place(root, path, FileType::Directory))
                    .and_then(|at| attach(proc.as_fd(), at.as_fd()));
                return attached.map_err(step("cannot attach the zone's /proc"));
            }
            Err(error) => setup.lacks(Feature::Proc, error)?,
        }
    }
    // The host's would show the host's processes.
    match setup.spec.root {
        Root::Empty => Ok(()),
        Root::Host | Root::Folder(_) => cover(root, path, SMALL, READ_ONLY).map(drop),
    }
}

/// Read-only, but only the file system itself and not what is mounted on it.
fn seal(root: BorrowedFd<'_>) -> io::Result<()> {
    let wanted =
        libc::mount_attr { attr_set: READ_ONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    super::system_calls::mount_setattr(root, libc::AT_EMPTY_PATH, &wanted)
}

/// The old root lies under the new one for a moment, then nowhere (pivot_root(2)).
fn pivot(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}
