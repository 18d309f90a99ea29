//! The folder that an image is unpacked into, out of which no path leads.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, linkat,
    mkdirat, openat, openat2, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

/// Folders in folders.
const DEEPEST: usize = 256;

/// Whose a file is to be, and who may do what with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rights {
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) mode: u32,
}

#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    /// Files can be given to others.
    privileged: bool,
}

/// A path of an entry: where it lies, and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) parent: PathBuf,
    pub(crate) name: std::ffi::OsString,
}

impl Place {
    /// `None` for the root itself; an error for what leads upwards.
    pub(crate) fn parse(path: &Path) -> Result<Option<Self>, String> {
        let mut whole = PathBuf::new();
        for (depth, part) in path.components().enumerate() {
            match part {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) if depth < DEEPEST => whole.push(name),
                Component::Normal(_) => return Err("it lies too deep".to_owned()),
                Component::ParentDir | Component::Prefix(_) => {
                    return Err("it leads out of the image".to_owned());
                }
            }
        }
        let name = whole.file_name().map(OsStr::to_owned);
        let parent = whole.parent().map(Path::to_owned).unwrap_or_default();
        Ok(name.map(|name| Self { parent, name }))
    }
}

impl Tree {
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(CWD, folder, flags, Mode::empty())?;
        Ok(Self { root, privileged: rustix::process::geteuid().is_root() })
    }

    /// Opens a folder; links in its path lead nowhere out of the tree.
    pub(crate) fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        if path.as_os_str().is_empty() {
            return self.root.try_clone();
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        Ok(openat2(&self.root, path, flags, Mode::empty(), resolve)?)
    }

    /// The same, made where it is not there.
    fn parent(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.folder(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let above = self.parent(path.parent().unwrap_or(Path::new("")))?;
                let name = path.file_name().unwrap_or_default();
                // A link to nowhere stands there, perhaps: then this fails, and rightly.
                match mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => self.folder(path),
                    Err(error) => Err(error.into()),
                }
            }
            other => other,
        }
    }

    pub(crate) fn make_folder(&self, place: &Place, rights: Rights) -> io::Result<()> {
        let parent = self.parent(&place.parent)?;
        match mkdirat(&parent, &place.name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = statat(&parent, &place.name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
                    remove(parent.as_fd(), &place.name, 0)?;
                    mkdirat(&parent, &place.name, Mode::RWXU)?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(&parent, &place.name, flags, Mode::empty())?;
        // Only root could put anything into a folder that is closed to its owner.
        let owner = if self.privileged { 0 } else { 0o700 };
        self.give(folder.as_fd(), Rights { mode: rights.mode | owner, ..rights })
    }

    /// The rights of the tree's own root.
    pub(crate) fn set_root(&self, rights: Rights) -> io::Result<()> {
        self.give(self.root.as_fd(), rights)
    }

    pub(crate) fn make_file(
        &self,
        place: &Place,
        rights: Rights,
        content: &mut dyn io::Read,
    ) -> io::Result<()> {
        let parent = self.cleared(place)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = openat(&parent, &place.name, flags | OFlags::CLOEXEC, Mode::RWXU)?;
        let mut file = std::fs::File::from(file);
        io::copy(content, &mut file)?;
        self.give(file.as_fd(), rights)
    }

    pub(crate) fn make_link(&self, place: &Place, to: &Path, rights: Rights) -> io::Result<()> {
        let parent = self.cleared(place)?;
        symlinkat(to, &parent, &place.name)?;
        if self.privileged {
            let (user, group) = (Uid::from_raw(rights.user), Gid::from_raw(rights.group));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            chownat(&parent, &place.name, Some(user), Some(group), flags)?;
        }
        Ok(())
    }

    /// One more name for a file that is in the tree.
    pub(crate) fn make_hard_link(&self, place: &Place, to: &Place) -> io::Result<()> {
        let source = self.folder(&to.parent)?;
        let there = statat(&source, &to.name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
            return Err(io::Error::other("a folder has one name only"));
        }
        if place == to {
            return Ok(());
        }
        let parent = self.cleared(place)?;
        Ok(linkat(&source, &to.name, &parent, &place.name, AtFlags::empty())?)
    }

    /// Removes an entry, if it is there.
    pub(crate) fn remove(&self, place: &Place) -> io::Result<()> {
        match self.folder(&place.parent) {
            Ok(parent) => remove(parent.as_fd(), &place.name, 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes what is in a folder, if it is there.
    pub(crate) fn empty(&self, folder: &Path) -> io::Result<()> {
        match self.folder(folder) {
            Ok(folder) => empty(folder.as_fd(), 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The folder of an entry, in which nothing has its name.
    fn cleared(&self, place: &Place) -> io::Result<OwnedFd> {
        let parent = self.parent(&place.parent)?;
        remove(parent.as_fd(), &place.name, 0)?;
        Ok(parent)
    }

    fn give(&self, file: BorrowedFd<'_>, rights: Rights) -> io::Result<()> {
        if self.privileged {
            let (user, group) = (Uid::from_raw(rights.user), Gid::from_raw(rights.group));
            rustix::fs::fchown(file, Some(user), Some(group))?;
        }
        // No other user's rights by running a file. Root's zones do not heed them anyway.
        Ok(fchmod(file, Mode::from_raw_mode(rights.mode & 0o1777))?)
    }
}

fn remove(parent: BorrowedFd<'_>, name: &OsStr, depth: usize) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    // It may be closed to its own owner.
    rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(parent, name, flags, Mode::empty())?;
    empty(folder.as_fd(), depth)?;
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn empty(folder: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    // Links may have made it deeper than any one path.
    if depth > 2 * DEEPEST {
        return Err(io::Error::other("its folders lie too deep"));
    }
    let names: Result<Vec<_>, Errno> =
        Dir::read_from(folder)?.map(|entry| Ok(entry?.file_name().to_owned())).collect();
    for name in names? {
        let name = OsStr::from_bytes(name.to_bytes());
        if name != "." && name != ".." {
            remove(folder, name, depth + 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_downwards_or_is_refused() {
        let place = |path: &str| Place::parse(Path::new(path));
        let expected = Place { parent: "a".into(), name: "b".into() };
        for path in ["a/b", "./a/b", "/a/b", "//a/./b/"] {
            assert_eq!(place(path), Ok(Some(expected.clone())), "{path}");
        }
        for path in ["", ".", "/", "./"] {
            assert_eq!(place(path), Ok(None), "{path}");
        }
        for path in ["..", "a/../b", "/../etc", "a/.."] {
            assert!(place(path).is_err(), "{path}");
        }
        assert!(place(&"a/".repeat(DEEPEST + 1)).is_err());
    }
}
