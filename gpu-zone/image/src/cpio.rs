//! The archive that a kernel unpacks as its first file system: cpio's "new ASCII" format.
//!
//! The same files make the same bytes: names are sorted, times are 0, numbers are counted.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const PAGE: u64 = 4096;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const TRAILER: &str = "TRAILER!!!";

/// What is in an archive, by its path from the root.
#[derive(Debug, Default)]
pub struct Archive(BTreeMap<String, Entry>);

#[derive(Debug)]
enum Entry {
    Directory,
    File { from: PathBuf, mode: u32 },
    Text(String),
    Link(String),
}

impl Archive {
    /// A folder, and those above it.
    pub fn directory(&mut self, path: &str) {
        let mut whole = String::new();
        for part in path.trim_matches('/').split('/').filter(|part| !part.is_empty()) {
            if !whole.is_empty() {
                whole.push('/');
            }
            whole.push_str(part);
            self.0.entry(whole.clone()).or_insert(Entry::Directory);
        }
    }

    fn put(&mut self, path: &str, entry: Entry) {
        if let Some((above, _)) = path.trim_start_matches('/').rsplit_once('/') {
            self.directory(above);
        }
        self.0.insert(path.trim_start_matches('/').to_owned(), entry);
    }

    /// A file of the host's.
    pub fn file(&mut self, path: &str, from: PathBuf, mode: u32) {
        self.put(path, Entry::File { from, mode });
    }

    /// A file with this text.
    pub fn text(&mut self, path: &str, text: String) {
        self.put(path, Entry::Text(text));
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.put(path, Entry::Link(to.to_owned()));
    }

    /// All that is in a folder, below `path`: folders, files and links. What is no file for another
    /// machine (devices, sockets, pipes) is left out, as is what this process may not read; so are the
    /// rights of set-user-id programs.
    /// The number of bytes in files, in whole pages, as memory keeps them.
    ///
    /// # Errors
    /// When something cannot be looked at, or the files take more than `most` bytes.
    pub fn tree(&mut self, path: &str, folder: &Path, most: u64) -> io::Result<u64> {
        let mut bytes = 0;
        let mut folders = vec![(path.trim_end_matches('/').to_owned(), folder.to_owned())];
        while let Some((path, folder)) = folders.pop() {
            self.directory(&path);
            let entries = match std::fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => continue,
                other => other.map_err(|error| named(&folder, &error))?,
            };
            for entry in entries {
                let from = entry?.path();
                let name = from.file_name().and_then(std::ffi::OsStr::to_str);
                let inside = name.map(|name| format!("{path}/{name}"));
                let inside = inside.ok_or_else(|| named(&from, &"its name is not UTF-8"))?;
                let found =
                    std::fs::symlink_metadata(&from).map_err(|error| named(&from, &error))?;
                if found.is_dir() {
                    folders.push((inside, from));
                } else if found.is_symlink() {
                    let to = std::fs::read_link(&from).map_err(|error| named(&from, &error))?;
                    let to = to.to_str().ok_or_else(|| named(&from, &"its target is not UTF-8"))?;
                    self.link(&inside, to);
                } else if found.is_file() && is_open(&from)? {
                    bytes += found.len().next_multiple_of(PAGE);
                    if bytes > most {
                        let message = format!("the files have more than {} MiB", most >> 20);
                        return Err(named(&folder, &message));
                    }
                    self.file(&inside, from, found.permissions().mode() & 0o777);
                }
            }
        }
        Ok(bytes)
    }

    /// Whether there is something at a path.
    pub fn has(&self, path: &str) -> bool {
        self.0.contains_key(path.trim_start_matches('/'))
    }

    /// Writes it; the number of bytes.
    ///
    /// # Errors
    /// When a file cannot be read, has grown over what the format holds, or nothing can be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<u64> {
        let mut out = Counted { out, bytes: 0 };
        for (number, (path, entry)) in (1..).zip(&self.0) {
            match entry {
                Entry::Directory => out.entry(number, path, DIRECTORY | 0o755, &[])?,
                Entry::Text(text) => out.entry(number, path, REGULAR | 0o644, text.as_bytes())?,
                Entry::Link(to) => out.entry(number, path, LINK | 0o777, to.as_bytes())?,
                Entry::File { from, mode } => {
                    let data = std::fs::read(from).map_err(|error| named(from, &error))?;
                    out.entry(number, path, REGULAR | mode, &data)?;
                }
            }
        }
        out.entry(0, TRAILER, 0, &[])?;
        // Another may follow, and begins at such a place.
        out.pad(512)?;
        Ok(out.bytes)
    }
}

/// Whether a file may be read.
fn is_open(path: &Path) -> io::Result<bool> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(named(path, &error)),
    }
}

fn named(path: &Path, what: &dyn Display) -> io::Error {
    io::Error::other(format!("{}: {what}", path.display()))
}

struct Counted<'a> {
    out: &'a mut dyn Write,
    bytes: u64,
}

impl Counted<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        while !self.bytes.is_multiple_of(to) {
            self.put(&[0])?;
        }
        Ok(())
    }

    fn entry(&mut self, number: u32, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, path.to_owned());
        let size = u32::try_from(data.len()).map_err(too_large)?;
        let name = u32::try_from(path.len() + 1).map_err(too_large)?;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // Number, mode, user, group, links, time, size, four parts of devices, name, checksum.
        let fields = [number, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name, 0];
        self.put(b"070701")?;
        for field in fields {
            self.put(format!("{field:08X}").as_bytes())?;
        }
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.pad(4)?;
        self.put(data)?;
        self.pad(4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(archive: &Archive) -> Vec<u8> {
        let mut bytes = Vec::new();
        let length = archive.write(&mut bytes).expect("written");
        assert_eq!(length, bytes.len() as u64);
        bytes
    }

    #[test]
    fn the_same_files_make_the_same_bytes_in_whatever_order_they_came() {
        let (mut one, mut two) = (Archive::default(), Archive::default());
        one.text("/etc/a", "x".to_owned());
        one.link("/lib", "usr/lib");
        two.link("/lib", "usr/lib");
        two.text("/etc/a", "x".to_owned());
        assert_eq!(bytes(&one), bytes(&two));
        assert!(bytes(&one).len().is_multiple_of(512));
    }

    #[test]
    fn a_folder_is_taken_as_it_is_but_for_devices_and_what_is_too_much() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("bin")).expect("made");
        std::fs::write(folder.path().join("bin/tool"), "program").expect("written");
        let mode = std::fs::Permissions::from_mode(0o4755);
        std::fs::set_permissions(folder.path().join("bin/tool"), mode).expect("set");
        std::os::unix::fs::symlink("bin/tool", folder.path().join("link")).expect("linked");
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket"));
        let mut archive = Archive::default();
        assert_eq!(archive.tree("/rootfs", folder.path(), PAGE).expect("taken"), PAGE);
        assert!(archive.has("/rootfs/bin/tool") && archive.has("/rootfs/link"));
        assert!(!archive.has("/rootfs/socket"));
        let text = String::from_utf8_lossy(&bytes(&archive)).into_owned();
        assert!(text.contains("000081ED"), "a file with the mode 755");
        let error = Archive::default().tree("/r", folder.path(), PAGE - 1).expect_err("too much");
        assert!(error.to_string().contains("more than"), "{error}");
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut archive = Archive::default();
        archive.text("/a/b/c", "text".to_owned());
        let text = String::from_utf8_lossy(&bytes(&archive)).into_owned();
        let at = |name: &str| text.find(name).expect("it is there");
        assert!(at("a\0") < at("a/b\0") && at("a/b\0") < at("a/b/c\0"));
        assert!(at("a/b/c\0") < at("TRAILER!!!"));
        assert!(text.starts_with("070701") && text.contains("text"));
    }
}
