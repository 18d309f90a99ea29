//! The maker: makes zones for a process that must not have the rights that takes.
//!
//! ```text
//!  agent ──template──▶ maker ──▶ zones of workers
//!                        ▲ │
//!      make, start, end  │ │ made (with a pidfd), begun, ended
//!                        │ ▼
//!                      broker
//! ```
//!
//! What a zone is stands in the [`Template`], which whoever starts the maker gives it: the program,
//! its arguments and environment, the sandbox with its limits. Who asks chooses a name and one of the
//! template's kinds, and hands over open files; there is no word for anything else. The maker is the
//! owner of its zones ([`crate::Zones`]) and alone writes their records, so that nobody can have a
//! process adopted, and then ended, that is none of them.
//!
//! It reads nothing that a tenant wrote. It ends when the other end of its socket closes, and when what
//! it hears makes no sense; zones that run go on then, for the next maker over the same folder, and
//! those that do not run yet are ended.

mod client;
mod serve;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Deserialize, Serialize};

pub use client::{Files, MadeZone, Maker, MakerError};
pub use serve::{ServeError, run, serve};

use crate::sandbox::{FIRST_INHERITED, Missing, Spec};
use crate::{Exit, ProcessId, packets};

/// What all zones of a maker are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// What runs in each.
    pub program: PathBuf,
    /// Its whole environment.
    pub environment: BTreeMap<String, String>,
    /// What may be asked for, by name.
    pub kinds: BTreeMap<String, Kind>,
    /// The sandbox; `None` where the policy allows that there is none.
    pub sandbox: Option<Sandbox>,
}

/// A way to start the template's program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kind {
    /// Its arguments.
    pub arguments: Vec<String>,
    /// How many open files it is handed, beside standard input, output and error.
    pub files: usize,
    /// Bytes that it may have at most of each region of device memory.
    pub device_memory: BTreeMap<String, u64>,
}

/// The sandbox of each zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// `gpu-zone-sandbox`.
    pub launcher: PathBuf,
    /// What it is, but for the zone's name.
    pub spec: Spec,
}

/// Longest template.
const LONGEST: u64 = 4 << 20;

impl Template {
    /// A file that holds it, for a maker to read; nobody can change it.
    ///
    /// # Errors
    /// When the kernel gives no memory.
    pub fn to_file(&self) -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create(c"template", flags)?);
        serde_json::to_writer(&mut file, self)?;
        file.rewind()?;
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        Ok(file.into())
    }

    fn read(file: impl Read) -> io::Result<Self> {
        let mut text = Vec::new();
        file.take(LONGEST).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// The two ends of a line to a maker: the maker's, and that of whoever asks it.
///
/// # Errors
/// When the kernel gives none.
pub fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    packets::pair()
}

/// The line that this process inherited as its first descriptor. To be taken once, before anything
/// else is opened.
///
/// # Errors
/// When there is none.
pub fn inherited() -> io::Result<OwnedFd> {
    // SAFETY: a number is looked at, and marked close-on-exec where it is open.
    if unsafe { libc::fcntl(FIRST_INHERITED, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and was inherited for this purpose: nobody else in this process has it.
    Ok(unsafe { OwnedFd::from_raw_fd(FIRST_INHERITED) })
}

/// What a maker is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Ask {
    /// Make a zone, held back. With standard input, output and error, and those that its kind takes.
    Make { zone: String, kind: String },
    /// Let it run.
    Start { zone: String },
    /// End it.
    End { zone: String },
}

/// What a maker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Tell {
    /// An earlier maker's zone, which runs. With its pidfd.
    Found { zone: String, process: ProcessId },
    /// All that was found is told.
    Serving,
    /// It is made. With its pidfd.
    Made { zone: String, process: ProcessId },
    /// Its program begins.
    Begun { zone: String, missing: Vec<Missing> },
    /// It is not made, or not started; one that was made is being ended.
    Refused { zone: String, reason: String },
    /// It is gone.
    Ended { zone: String, exit: Exit },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_read_as_it_was_and_cannot_be_changed() {
        let kind = Kind {
            arguments: vec!["--scrub".to_owned()],
            files: 1,
            device_memory: BTreeMap::new(),
        };
        let template = Template {
            program: "/bin/worker".into(),
            environment: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
            kinds: BTreeMap::from([("scrub".to_owned(), kind)]),
            sandbox: None,
        };
        let file = template.to_file().unwrap();
        assert!(rustix::io::write(&file, b"x").is_err());
        assert!(rustix::fs::ftruncate(&file, 0).is_err());
        assert_eq!(Template::read(File::from(file)).unwrap(), template);
    }

    #[test]
    fn there_is_no_word_for_a_program_or_a_sandbox() {
        let more = [
            r#"{"make":{"zone":"a","kind":"worker","program":"/bin/sh"}}"#,
            r#"{"make":{"zone":"a","kind":"worker","environment":{}}}"#,
            r#"{"make":{"zone":"a","kind":{"arguments":[],"files":0}}}"#,
            r#"{"make":{"zone":"a"}}"#,
            r#"{"adopt":{"zone":"a","pid":1}}"#,
        ];
        for text in more {
            assert!(serde_json::from_str::<Ask>(text).is_err(), "{text}");
        }
    }
}
