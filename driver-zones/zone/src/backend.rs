//! What makes and ends zones of one kind.

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::sandbox::Missing;
use crate::{Exit, ProcessId};

/// A way to keep programs apart: a sandbox now, a microVM later.
///
/// A zone of any kind has one process of the host's that stands for it (the sandbox's launcher or
/// program, the microVM's QEMU), and the zone is gone when that process is. A backend keeps
/// nothing in mind: what there is to remember, [`crate::Zones`] writes down.
///
/// Made and not started, a zone is **held back**: nothing of its program has run, and it ends by
/// itself when whoever made it does. So no zone runs that is not written down, wherever its
/// owner is killed. (The launcher waits for its orders on a pipe; QEMU is started with `-S`.)
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// The kind's name, in records and listings.
    const KIND: &'static str;
    /// What a zone is to be.
    type Order: Send;
    /// A zone that there is. Dropping it ends it only while it is held back.
    type Zone: fmt::Debug + Send + Sync + 'static;
    /// Why a zone cannot be made or started.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Makes a zone, held back.
    ///
    /// # Errors
    /// When it cannot be made. Nothing of it is left then.
    fn create(&self, name: &str, order: Self::Order) -> Result<Self::Zone, Self::Error>;

    /// The process that stands for it.
    fn process(&self, zone: &Self::Zone) -> ProcessId;

    /// Lets it run; answers when its program begins, with what the host lacks. When the zone
    /// goes meanwhile, that is an error.
    ///
    /// # Errors
    /// When the program does not begin. The zone may still be there: it has to be stopped.
    fn start(
        &self,
        zone: &Self::Zone,
    ) -> impl Future<Output = Result<Vec<Missing>, Self::Error>> + Send;

    /// Waits until it is gone. May be asked by several, and again later.
    ///
    /// # Errors
    /// When the kernel does not say.
    fn gone(&self, zone: &Self::Zone) -> impl Future<Output = io::Result<Exit>> + Send;

    /// Ends it, and answers when it is gone: at once, or when `grace` has passed since it was
    /// asked to end.
    ///
    /// # Errors
    /// When it cannot be told.
    fn stop(
        &self,
        zone: &Self::Zone,
        grace: Option<Duration>,
    ) -> impl Future<Output = io::Result<Exit>> + Send;

    /// The way to whatever listens for requests in the zone (a socket to a sandbox's process 1,
    /// a microVM's virtio-serial port); `None` where nothing does, and in one that was adopted.
    ///
    /// # Errors
    /// When it is there and cannot be had.
    fn channel(&self, zone: &Self::Zone) -> io::Result<Option<OwnedFd>>;

    /// What it uses now.
    ///
    /// # Errors
    /// When the kernel does not say.
    fn stats(&self, zone: &Self::Zone) -> io::Result<ZoneStats>;

    /// Takes hold of a zone that another process made; `None` when it is gone.
    ///
    /// # Errors
    /// When the kernel does not say.
    fn adopt(&self, name: &str, process: ProcessId) -> io::Result<Option<Self::Zone>>;
}

/// What a zone uses, over all its processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneStats {
    /// Its processes, with those that only keep the zone.
    pub processes: u64,
    /// Bytes of the host's memory that they have in use.
    pub memory: u64,
    /// Processor time that they took; what ended processes took is not in it.
    pub cpu: Duration,
}
