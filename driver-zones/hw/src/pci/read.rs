use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// sysfs has no file that is longer than a page or a few.
const LONGEST: u64 = 1 << 20;

/// sysfs does not show what it should.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    /// It is there and cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says something that nothing here understands.
    #[error("{} says '{text}', and should say {expected}", .path.display())]
    Strange {
        /// Which.
        path: PathBuf,
        /// What it says, or the beginning of that.
        text: String,
        /// What it should say.
        expected: &'static str,
    },
}

impl SysfsError {
    pub(crate) fn strange(path: &Path, text: &str, expected: &'static str) -> Self {
        let text = text.trim().chars().take(80).collect();
        Self::Strange { path: path.to_owned(), text, expected }
    }
}

/// What the kernel answers about things that are not there, or just went away.
fn is_gone(error: &io::Error) -> bool {
    const ENODEV: i32 = 19;
    /// Of a process.
    const ESRCH: i32 = 3;
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || matches!(error.raw_os_error(), Some(ENODEV | ESRCH))
}

fn unless_gone<T>(path: &Path, read: io::Result<T>) -> Result<Option<T>, SysfsError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(source) => Err(SysfsError::Unreadable { path: path.to_owned(), source }),
    }
}

/// What a file says, without the white space around it; `None` where there is none.
pub(crate) fn text(path: &Path) -> Result<Option<String>, SysfsError> {
    let read = || -> io::Result<String> {
        let mut bytes = Vec::new();
        File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    unless_gone(path, read())
}

/// The same of a file that has to be there.
pub(crate) fn required_text(path: &Path) -> Result<String, SysfsError> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let unreadable = || SysfsError::Unreadable { path: path.to_owned(), source: missing() };
    text(path)?.ok_or_else(unreadable)
}

/// The last part of what a link points to; `None` where there is no link.
pub(crate) fn link_name(path: &Path) -> Result<Option<String>, SysfsError> {
    let target = unless_gone(path, std::fs::read_link(path))?;
    let name = |target: PathBuf| target.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(target.and_then(name))
}

/// The names in a folder, sorted; none where there is no folder.
pub(crate) fn entries(path: &Path) -> Result<Vec<String>, SysfsError> {
    let Some(found) = unless_gone(path, std::fs::read_dir(path))? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in found {
        if let Some(entry) = unless_gone(path, entry)? {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
