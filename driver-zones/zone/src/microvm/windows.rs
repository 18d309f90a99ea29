//! Windows: memory that one tenant's process and its worker share, of which one is in a microVM.
//!
//! A window is a memory file, plugged into the running machine as a PCI device. It serves
//! one session and nobody after it: whoever once mapped a file can go on reading it, so no file is
//! used twice. One is kept plugged in beforehand, for plugging in takes the guest's attention.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::hypervisor::{ControlError, Plugs};
use super::{MicroVms, WINDOW_BYTES};
use rustix::fs::{MemfdFlags, SealFlags};

/// How long a guest may take to let go of a window. Its bridge serves nobody until it has.
const UNPLUG_LIMIT: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(20);

/// The windows of one microVM.
#[derive(Debug)]
pub struct Windows {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    plugs: Box<dyn Plugs>,
    free: BTreeSet<u16>,
    /// How many were plugged in.
    plugged: u32,
    spare: Option<Window>,
}

/// A window that is plugged in.
#[derive(Debug)]
pub struct Window {
    number: u16,
    /// The hypervisor's name for the memory.
    name: String,
    place: String,
    /// The memory.
    pub file: OwnedFd,
}

/// Why there is no window.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// All are taken.
    #[error(
        "the microVM has no window left: as many processes are connected as it has windows, or are about to leave; end one first, or raise its windows in the agent's configuration"
    )]
    None,
    /// Its memory cannot be had.
    #[error("cannot make a window's memory: {0}")]
    Memory(#[from] io::Error),
    /// The hypervisor does not take it.
    #[error("cannot plug a window in: {0}")]
    Plug(#[from] ControlError),
}

impl Window {
    /// Where the guest finds it.
    pub fn bridge(&self) -> String {
        self.place.clone()
    }
}

impl Windows {
    /// Of the machine `name`, with so many places.
    pub fn new(vms: &MicroVms, name: &str, number: u16) -> Self {
        let plugs = vms.hypervisor().vmm().plugs(vms, name);
        let state = State { plugs, free: (0..number).collect(), plugged: 0, spare: None };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A window that nobody had before.
    ///
    /// # Errors
    /// When there is none, or the hypervisor does not take it.
    pub fn take(&self) -> Result<Window, WindowError> {
        let mut state = self.state();
        match state.spare.take() {
            Some(spare) => Ok(spare),
            None => self.plug(&mut state, memory()?),
        }
    }

    /// A window on memory that somebody else made, of [`WINDOW_BYTES`].
    ///
    /// # Errors
    /// When there is none left, the memory has another size, or the hypervisor does not take it.
    pub fn show(&self, file: OwnedFd) -> Result<Window, WindowError> {
        let size = rustix::fs::fstat(&file).map_err(io::Error::from)?.st_size;
        if u64::try_from(size).ok() != Some(WINDOW_BYTES) {
            let message = format!("it has {size} bytes, and a window {WINDOW_BYTES}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message).into());
        }
        self.plug(&mut self.state(), file)
    }

    /// Has one ready for the next who comes.
    pub fn prepare(&self) {
        let mut state = self.state();
        if state.spare.is_none() {
            let plugged = memory().map_err(WindowError::from);
            match plugged.and_then(|file| self.plug(&mut state, file)) {
                Ok(window) => state.spare = Some(window),
                Err(error) => tracing::debug!(%error, "no window is ready"),
            }
        }
    }

    fn plug(&self, state: &mut State, file: OwnedFd) -> Result<Window, WindowError> {
        let number = *state.free.first().ok_or(WindowError::None)?;
        // A name that none had before: QEMU aborts when a device comes under one that it has not
        // quite forgotten, and of a device that the guest never used it forgets it late.
        state.plugged += 1;
        let name = format!("{}{:x}-{}", prefix(number), std::process::id(), state.plugged);
        let place = state.plugs.plug(number, &name, file.as_fd())?;
        state.free.remove(&number);
        Ok(Window { number, name, place, file })
    }

    /// Takes out what an earlier owner plugged in: its sessions are over. Places that the guest
    /// does not give back stay taken.
    pub fn sweep(&self, number: u16) {
        let names = self.state().plugs.names().unwrap_or_default();
        for number in 0..number {
            let name = names.iter().find(|name| name.starts_with(&prefix(number)));
            let Some(name) = name else { continue };
            self.state().free.remove(&number);
            // Refused where it is on its way out, or gone.
            let _ = self.state().plugs.unplug(number, name);
            self.wait_until_gone(number, name);
        }
    }

    /// Takes a window out of the machine. Waits for the guest, which may be slow about it, or
    /// never do it: the place is lost then.
    pub fn unplug(&self, window: Window) {
        let Window { number, name, file, .. } = window;
        drop(file);
        let asked = self.state().plugs.unplug(number, &name);
        match asked {
            Ok(()) => self.wait_until_gone(number, &name),
            Err(error) => tracing::debug!(number, %error, "a window cannot be unplugged"),
        }
    }

    fn wait_until_gone(&self, number: u16, name: &str) {
        let end = Instant::now() + UNPLUG_LIMIT;
        while Instant::now() < end {
            let mut state = self.state();
            match state.plugs.is_gone(number, name) {
                Ok(true) => {
                    state.free.insert(number);
                    return;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(number, %error, "a window cannot be unplugged");
                    return;
                }
            }
            drop(state);
            std::thread::sleep(AGAIN);
        }
        tracing::warn!(number, "the guest does not let go of a window; its place is lost");
    }
}

/// How the names for a place's memory begin.
fn prefix(number: u16) -> String {
    format!("memory{number}-")
}

/// Memory that nobody can make shorter: it would kill whoever reads there.
fn memory() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create(c"gpu-zone-window", flags)?;
    rustix::fs::ftruncate(&file, WINDOW_BYTES)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}
