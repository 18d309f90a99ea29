use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
    vfio_region_info,
};
use vfio_user::{IrqInfo, Server, ServerRegion};

use crate::device::{
    CONFIGURATION, CONFIGURATION_LENGTH, Device, MEMORY, Misbehaviour, REGISTERS, REGISTERS_LENGTH,
};

/// VFIO numbers a PCI function's regions up to here.
const REGIONS: u32 = 9;
/// Legacy, MSI, MSI-X, error, request.
const INTERRUPTS: u32 = 5;
const MSI: u32 = 1;

/// It cannot be served.
#[derive(Debug)]
pub struct ServeError(String);

impl std::fmt::Display for ServeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the device cannot be served: {}", self.0)
    }
}

impl std::error::Error for ServeError {}

/// What a test sees of the device from outside.
#[derive(Clone, Debug, Default)]
pub struct Probe(Arc<AtomicU64>);

impl Probe {
    pub(crate) fn was_reset(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// How often a reset was begun.
    pub fn resets(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A device that is served at a socket, for one client after another, until the process ends.
#[derive(Debug)]
pub struct FakeGpu {
    socket: PathBuf,
    misbehaviour: Arc<Mutex<Misbehaviour>>,
    probe: Probe,
}

impl FakeGpu {
    /// Serves one with so much memory at `socket`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn serve(
        socket: &Path,
        memory: usize,
        misbehaviour: Misbehaviour,
    ) -> Result<Self, ServeError> {
        let (probe, misbehaviour) = (Probe::default(), Arc::new(Mutex::new(misbehaviour)));
        let interrupts = (0..INTERRUPTS).map(|index| IrqInfo {
            index,
            flags: if index == MSI { VFIO_IRQ_INFO_EVENTFD } else { 0 },
            count: u32::from(index == MSI),
        });
        let regions = (0..REGIONS).map(|index| region(index, memory as u64)).collect();
        let server = Server::new(socket, true, interrupts.collect(), regions)
            .map_err(|error| ServeError(error.to_string()))?;
        let mut device = Device::new(memory, Arc::clone(&misbehaviour), probe.clone());
        // One client's end, or its nonsense, is not the device's.
        thread::spawn(move || while server.run(&mut device).is_ok() {});
        Ok(Self { socket: socket.to_owned(), misbehaviour, probe })
    }

    /// Where it is served.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Misbehaves so from now on.
    pub fn misbehave(&self, so: Misbehaviour) {
        *self.misbehaviour.lock().unwrap_or_else(PoisonError::into_inner) = so;
    }

    /// What is seen of it from outside.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }
}

fn region(index: u32, memory: u64) -> ServerRegion {
    let size = match index {
        REGISTERS => REGISTERS_LENGTH,
        MEMORY => memory,
        CONFIGURATION => CONFIGURATION_LENGTH as u64,
        _ => 0,
    };
    let flags = match size {
        0 => 0,
        _ => VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
    };
    let argsz = u32::try_from(size_of::<vfio_region_info>()).unwrap_or_default();
    // The protocol has the offsets of different regions apart, though nobody maps them here.
    let offset = u64::from(index) << 40;
    let region_info = vfio_region_info { argsz, flags, index, cap_offset: 0, size, offset };
    ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None }
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}
