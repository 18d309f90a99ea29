//! The program that opens libraries.
//!
//! A static program has no loader and cannot open a shared library. So the static probe carries
//! the same probe linked dynamically, puts it in memory, and runs it with the workload's own
//! loader. A probe that is linked dynamically is its own child.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::MemfdFlags;

static CARRIED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/carried"));

/// A program that can open libraries, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Carrier {
    program: OsString,
    _memory: Option<OwnedFd>,
}

impl Carrier {
    /// The given program, the carried one, or this one.
    ///
    /// # Errors
    /// When there is none, or no memory for it.
    pub(crate) fn new(program: Option<&Path>) -> io::Result<Self> {
        if let Some(program) = program {
            return Ok(Self { program: program.into(), _memory: None });
        }
        if CARRIED.is_empty() && cfg!(target_feature = "crt-static") {
            let text = "this probe is static and was built without the part that opens libraries";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        if CARRIED.is_empty() {
            return Ok(Self { program: std::env::current_exe()?.into_os_string(), _memory: None });
        }
        let memory = rustix::fs::memfd_create(c"gpu-zone-probe", MemfdFlags::empty())?;
        let mut file = std::fs::File::from(memory);
        file.write_all(CARRIED)?;
        let program = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Ok(Self { program, _memory: Some(file.into()) })
    }

    pub(crate) fn program(&self) -> &std::ffi::OsStr {
        &self.program
    }
}
