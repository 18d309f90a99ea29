//! Windows: memory that one tenant's process and its worker share, of which one is in a microVM.
//!
//! A window is a memory file, plugged into the running machine as a PCI device. It serves
//! one session and nobody after it: whoever once mapped a file can go on reading it, so no file is
//! used twice. One is kept plugged in beforehand, for plugging in takes the guest's attention.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags};
use serde_json::json;

use super::qmp::{Monitor, QmpError};
use super::{WINDOW_BYTES, window_bridge, window_bus};

/// How long a guest may take to let go of a window. Its bridge serves nobody until it has.
const UNPLUG_LIMIT: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(20);

/// The windows of one microVM.
#[derive(Debug)]
pub struct Windows {
    monitor: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connection: Option<Monitor>,
    free: BTreeSet<u16>,
    /// How many were plugged in.
    plugged: u32,
    spare: Option<Window>,
}

/// A window that is plugged in.
#[derive(Debug)]
pub struct Window {
    number: u16,
    /// QEMU's name for the memory.
    name: String,
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
    /// QEMU does not take it.
    #[error("cannot plug a window in: {0}")]
    Qmp(#[from] QmpError),
}

impl Window {
    /// Where the guest finds it.
    pub fn bridge(&self) -> String {
        window_bridge(self.number)
    }
}

impl Windows {
    /// Of the machine whose monitor listens at `monitor`, with so many places.
    pub fn new(monitor: PathBuf, number: u16) -> Self {
        let state = State { free: (0..number).collect(), ..State::default() };
        Self { monitor, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A window that nobody had before.
    ///
    /// # Errors
    /// When there is none, or QEMU does not take it.
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
    /// When there is none left, the memory has another size, or QEMU does not take it.
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
        let fdset = fdset(number);
        // A name that none had before: QEMU aborts when a device comes under one that it has not
        // quite forgotten, and of a device that the guest never used it forgets it late.
        state.plugged += 1;
        let name = format!("{}{:x}-{}", prefix(number), std::process::id(), state.plugged);
        let plugged = self.with_monitor(state, |monitor| {
            let added =
                monitor.execute_with("add-fd", json!({ "fdset-id": fdset }), Some(file.as_fd()))?;
            let fd = added.get("fd").and_then(serde_json::Value::as_i64).unwrap_or(-1);
            let device = format!("plugged{number}");
            monitor.execute(
                "object-add",
                json!({
                    "qom-type": "memory-backend-file",
                    "id": &name,
                    "size": WINDOW_BYTES,
                    "mem-path": format!("/proc/self/fd/{fd}"),
                    "share": true,
                }),
            )?;
            let device = json!({
                "driver": "ivshmem-plain",
                "id": device,
                "memdev": &name,
                "bus": window_bus(number),
            });
            if let Err(error) = monitor.execute("device_add", device) {
                // Nobody would ask for it again.
                let _ = monitor.execute("object-del", json!({ "id": &name }));
                let _ = monitor.execute("remove-fd", json!({ "fdset-id": fdset }));
                return Err(error);
            }
            Ok(())
        });
        plugged?;
        state.free.remove(&number);
        Ok(Window { number, name, file })
    }

    /// Takes out what an earlier owner plugged in: its sessions are over. Places that the guest
    /// does not give back stay taken.
    pub fn sweep(&self, number: u16) {
        let named = self.with_monitor(&mut self.state(), |monitor| {
            monitor.execute("qom-list", json!({ "path": "/objects" }))
        });
        let named = named.unwrap_or_default();
        let names = named.as_array().into_iter().flatten();
        let names: Vec<&str> = names.filter_map(|object| object.get("name")?.as_str()).collect();
        for number in 0..number {
            let name = names.iter().find(|name| name.starts_with(&prefix(number)));
            let Some(name) = name else { continue };
            self.state().free.remove(&number);
            let device = format!("plugged{number}");
            // Refused where it is on its way out, or gone.
            let _ = self.with_monitor(&mut self.state(), |monitor| {
                monitor.execute("device_del", json!({ "id": device })).map(drop)
            });
            self.wait_until_gone(number, name);
        }
    }

    /// Takes a window out of the machine. Waits for the guest, which may be slow about it, or
    /// never do it: the place is lost then.
    pub fn unplug(&self, window: Window) {
        let Window { number, name, file } = window;
        drop(file);
        let device = format!("plugged{number}");
        let asked = self.with_monitor(&mut self.state(), |monitor| {
            monitor.execute("device_del", json!({ "id": device })).map(drop)
        });
        match asked {
            Ok(()) => self.wait_until_gone(number, &name),
            Err(error) => tracing::debug!(number, %error, "a window cannot be unplugged"),
        }
    }

    fn wait_until_gone(&self, number: u16, memory: &str) {
        let end = Instant::now() + UNPLUG_LIMIT;
        let fdset = fdset(number);
        while Instant::now() < end {
            let mut state = self.state();
            let gone = self.with_monitor(&mut state, |monitor| {
                // Refused as long as the device uses it.
                monitor.execute("object-del", json!({ "id": memory }))?;
                match monitor.execute("remove-fd", json!({ "fdset-id": fdset })) {
                    // It went with the connection over which it came.
                    Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
                    Err(error) => Err(error),
                }
            });
            match gone {
                Ok(()) => {
                    state.free.insert(number);
                    return;
                }
                Err(QmpError::Refused { .. }) => {}
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

    /// Connects when there is no connection; drops one that broke.
    fn with_monitor<T>(
        &self,
        state: &mut State,
        act: impl FnOnce(&mut Monitor) -> Result<T, QmpError>,
    ) -> Result<T, QmpError> {
        let mut monitor = match state.connection.take() {
            Some(monitor) => monitor,
            None => Monitor::connect(&self.monitor)?,
        };
        let done = act(&mut monitor);
        if matches!(done, Ok(_) | Err(QmpError::Refused { .. })) {
            state.connection = Some(monitor);
        }
        done
    }
}

/// The set of descriptors in which QEMU keeps a window's memory.
fn fdset(number: u16) -> u64 {
    u64::from(number) + 1
}

/// How QEMU's names for a place's memory begin.
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
