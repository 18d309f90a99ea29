use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vfio_user::{DmaMapFlags, DmaUnmapFlags, ServerBackend};

use crate::serve::Probe;

/// The registers of BAR 0, each of 8 bytes.
pub mod registers {
    /// Reads as [`IDENTITY`].
    pub const ID: u64 = 0x00;
    /// Written: raises the interrupt.
    pub const RING: u64 = 0x08;
    /// Reads as how often it was reset.
    pub const RESETS: u64 = 0x10;
    /// Written 1: clears the memory. Reads 1 when that is done.
    pub const SCRUB: u64 = 0x18;
    /// Where DMA reads or writes, as the bus has it.
    pub const DMA_ADDRESS: u64 = 0x20;
    /// Written: copies so many bytes from the start of its memory to there. Reads 1 when that was
    /// done, 2 when the bus refused it.
    pub const DMA_COPY: u64 = 0x28;
    /// What [`ID`] reads as.
    pub const IDENTITY: u64 = 0x6770_757a_6f6e_6530;
}

/// Regions, in VFIO's order.
pub(crate) const REGISTERS: u32 = 0;
pub(crate) const MEMORY: u32 = 1;
pub(crate) const CONFIGURATION: u32 = 7;
pub(crate) const CONFIGURATION_LENGTH: usize = 256;
pub(crate) const REGISTERS_LENGTH: u64 = 4096;

/// What it does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Misbehaviour {
    /// Nothing.
    #[default]
    None,
    /// A reset does not end.
    HangsOnReset,
    /// A reset leaves the memory as it is.
    KeepsMemory,
    /// A reset leaves what is behind this place as it is.
    KeepsMemoryFrom(u64),
    /// It is gone after a reset: all of it reads as ones.
    Vanishes,
    /// It is gone before.
    Gone,
    /// It does not answer after a reset, though it is there.
    StaysSilent,
    /// It answers only after it was asked so often.
    AnswersLate(u32),
    /// What is written to its memory is not kept.
    Forgets,
    /// The scrub says that it is done, and is not.
    ScrubLies,
}

/// What the bus lets it reach.
struct Window {
    address: u64,
    size: u64,
    offset: u64,
    writable: bool,
    file: File,
}

pub(crate) struct Device {
    pub(crate) misbehaviour: Arc<Mutex<Misbehaviour>>,
    pub(crate) probe: Probe,
    memory: Vec<u8>,
    configuration: [u8; CONFIGURATION_LENGTH],
    resets: u64,
    scrubbed: bool,
    gone: bool,
    /// So many more questions are not answered.
    silent: u32,
    dma_address: u64,
    dma_outcome: u64,
    windows: Vec<Window>,
    interrupt: Option<File>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    pub(crate) fn new(memory: usize, misbehaviour: Arc<Mutex<Misbehaviour>>, probe: Probe) -> Self {
        Self {
            misbehaviour,
            probe,
            memory: vec![0; memory],
            configuration: configuration(),
            resets: 0,
            scrubbed: false,
            gone: false,
            silent: 0,
            dma_address: 0,
            dma_outcome: 0,
            windows: Vec::new(),
            interrupt: None,
        }
    }

    fn misbehaviour(&self) -> Misbehaviour {
        *lock(&self.misbehaviour)
    }

    fn is_gone(&self) -> bool {
        self.gone || self.misbehaviour() == Misbehaviour::Gone
    }

    fn register(&self, at: u64) -> u64 {
        match at {
            registers::ID => registers::IDENTITY,
            registers::RESETS => self.resets,
            registers::SCRUB => self.scrubbed.into(),
            registers::DMA_ADDRESS => self.dma_address,
            registers::DMA_COPY => self.dma_outcome,
            _ => 0,
        }
    }

    fn set_register(&mut self, at: u64, value: u64) -> io::Result<()> {
        match at {
            registers::RING => {
                if let Some(interrupt) = &mut self.interrupt {
                    interrupt.write_all(&1_u64.to_ne_bytes())?;
                }
            }
            registers::SCRUB if value == 1 => {
                if self.misbehaviour() != Misbehaviour::ScrubLies {
                    self.memory.fill(0);
                }
                self.scrubbed = true;
            }
            registers::DMA_ADDRESS => self.dma_address = value,
            registers::DMA_COPY => self.dma_outcome = self.copy_out(value),
            _ => {}
        }
        Ok(())
    }

    /// 1 when the bus let it, 2 when not.
    fn copy_out(&self, length: u64) -> u64 {
        let reaches = |window: &&Window| {
            let behind = self.dma_address.checked_sub(window.address);
            window.writable
                && behind
                    .is_some_and(|behind| length <= window.size && behind <= window.size - length)
        };
        let source = usize::try_from(length).ok().and_then(|length| self.memory.get(..length));
        let (Some(window), Some(source)) = (self.windows.iter().find(reaches), source) else {
            return 2;
        };
        let at = window.offset + (self.dma_address - window.address);
        if window.file.write_all_at(source, at).is_ok() { 1 } else { 2 }
    }

    fn region(&mut self, region: u32) -> io::Result<&mut [u8]> {
        match region {
            MEMORY => Ok(&mut self.memory),
            CONFIGURATION => Ok(&mut self.configuration),
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }
}

/// A GPU that no list knows, with the BARs that it has.
fn configuration() -> [u8; CONFIGURATION_LENGTH] {
    let mut bytes = [0; CONFIGURATION_LENGTH];
    let words: [(usize, u32); 4] = [
        (0x00, 0xcafe_10de),
        (0x08, 0x0302_0001),
        // 64 bits, prefetchable.
        (0x10, 0x0000_000c),
        (0x2c, 0x0001_10de),
    ];
    for (at, word) in words {
        if let Some(to) = bytes.get_mut(at..at + 4) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

fn span(region: &[u8], offset: u64, length: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok();
    let end = start.and_then(|start| start.checked_add(length));
    match (start, end) {
        (Some(start), Some(end)) if end <= region.len() => Ok(start..end),
        _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    }
}

impl ServerBackend for Device {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if region == CONFIGURATION && self.silent > 0 {
            self.silent -= 1;
            data.fill(0xff);
            return Ok(());
        }
        if self.is_gone() {
            data.fill(0xff);
            return Ok(());
        }
        if region == REGISTERS {
            let value = self.register(offset & !7).to_le_bytes();
            let at = usize::try_from(offset & 7).unwrap_or_default();
            for (byte, value) in data.iter_mut().zip(value.iter().skip(at)) {
                *byte = *value;
            }
            return Ok(());
        }
        let bytes = self.region(region)?;
        let span = span(bytes, offset, data.len())?;
        data.copy_from_slice(&bytes[span]);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.is_gone() {
            return Ok(());
        }
        if region == REGISTERS {
            let Ok(value) = <[u8; 8]>::try_from(data) else { return Ok(()) };
            return self.set_register(offset, u64::from_le_bytes(value));
        }
        if region == MEMORY && self.misbehaviour() == Misbehaviour::Forgets {
            return Ok(());
        }
        let bytes = self.region(region)?;
        let span = span(bytes, offset, data.len())?;
        bytes[span].copy_from_slice(data);
        if region == MEMORY {
            self.scrubbed = false;
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let file = fd.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let writable = flags.contains(DmaMapFlags::WRITE);
        self.windows.push(Window { address, size, offset, writable, file });
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.windows.retain(|window| (window.address, window.size) != (address, size));
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.probe.was_reset();
        let kept = match self.misbehaviour() {
            Misbehaviour::HangsOnReset => {
                // Nobody waits for this thread.
                loop {
                    std::thread::sleep(Duration::from_secs(3600));
                }
            }
            Misbehaviour::KeepsMemory => 0,
            Misbehaviour::KeepsMemoryFrom(place) => {
                usize::try_from(place).unwrap_or(usize::MAX).min(self.memory.len())
            }
            Misbehaviour::Vanishes => {
                self.gone = true;
                0
            }
            Misbehaviour::StaysSilent => {
                self.silent = u32::MAX;
                self.memory.len()
            }
            Misbehaviour::AnswersLate(questions) => {
                self.silent = questions;
                self.memory.len()
            }
            Misbehaviour::None
            | Misbehaviour::Gone
            | Misbehaviour::Forgets
            | Misbehaviour::ScrubLies => self.memory.len(),
        };
        self.memory[..kept].fill(0);
        self.configuration = configuration();
        self.resets += 1;
        self.scrubbed = false;
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, _: u32, count: u32, fds: Vec<File>) -> io::Result<()> {
        self.interrupt = if count == 0 { None } else { fds.into_iter().next() };
        Ok(())
    }
}
