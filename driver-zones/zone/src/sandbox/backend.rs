//! Sandboxes as a kind of zone.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::start::{Held, SandboxError, Sandboxed, hold_for_requests};
use super::{Launch, Missing, Spec, stats};
use crate::backend::{Backend, ZoneStats};
use crate::{Exit, Process, ProcessId, packets};

/// The backend of sandboxes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sandboxes;

/// What a sandbox's zone is to be. `launcher` is `gpu-zone-sandbox`, and the zone's name is put
/// into `spec`.
#[derive(Debug)]
pub enum Order {
    /// A program in a sandbox.
    Program {
        /// The launcher.
        launcher: PathBuf,
        /// The sandbox.
        spec: Spec,
        /// The program, as the sandbox shows it.
        launch: Launch,
    },
    /// Programs in a sandbox, which are asked for over the zone's channel.
    Programs {
        /// The launcher.
        launcher: PathBuf,
        /// The sandbox.
        spec: Spec,
    },
    /// A program in none, where the policy allows that. It is started at once, so it has to wait
    /// for a word of its own before it does anything.
    Bare(Launch),
}

/// A sandbox that there is.
#[derive(Debug)]
pub struct SandboxZone {
    process: Process,
    held: Mutex<Option<Held>>,
    channel: Option<OwnedFd>,
}

impl SandboxZone {
    /// What holds its process, for others to watch it by.
    pub(crate) fn pidfd(&self) -> io::Result<OwnedFd> {
        self.process.pidfd().try_clone_to_owned()
    }
}

impl Backend for Sandboxes {
    const KIND: &'static str = "sandbox";
    type Order = Order;
    type Zone = SandboxZone;
    type Error = SandboxError;

    fn create(&self, name: &str, order: Order) -> Result<SandboxZone, SandboxError> {
        let named = |spec| Spec { zone: name.to_owned(), ..spec };
        let (process, held, channel) = match order {
            Order::Program { launcher, spec, launch } => {
                let (process, held) = Sandboxed { launcher, spec: named(spec), launch }.hold()?;
                (process, Some(held), None)
            }
            Order::Programs { launcher, spec } => {
                let (channel, theirs) = packets::pair().map_err(SandboxError::Speak)?;
                let (process, held) = hold_for_requests(launcher, &named(spec), theirs)?;
                (process, Some(held), Some(channel))
            }
            Order::Bare(launch) => (launch.start()?, None, None),
        };
        Ok(SandboxZone { process, held: Mutex::new(held), channel })
    }

    fn process(&self, zone: &SandboxZone) -> ProcessId {
        zone.process.id()
    }

    async fn start(&self, zone: &SandboxZone) -> Result<Vec<Missing>, SandboxError> {
        let held = zone.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        match held {
            Some(held) => held.go().await,
            None => Ok(Vec::new()),
        }
    }

    async fn gone(&self, zone: &SandboxZone) -> io::Result<Exit> {
        zone.process.exited().await
    }

    async fn stop(&self, zone: &SandboxZone, grace: Option<Duration>) -> io::Result<Exit> {
        zone.process.end(grace).await
    }

    fn channel(&self, zone: &SandboxZone) -> io::Result<Option<OwnedFd>> {
        zone.channel.as_ref().map(OwnedFd::try_clone).transpose()
    }

    fn stats(&self, zone: &SandboxZone) -> io::Result<ZoneStats> {
        stats::of(zone.process.pid())
    }

    fn adopt(&self, _name: &str, process: ProcessId) -> io::Result<Option<SandboxZone>> {
        let found = Process::find(process)?;
        let zone = |process| SandboxZone { process, held: Mutex::new(None), channel: None };
        Ok(found.map(zone))
    }
}
