//! Free memory, held while it is cleared.

use std::time::{Duration, Instant};

use gpuzone_core::MemoryBytes;
use gpuzone_cuda_abi::CuResult;
use gpuzone_wire::scrub::ScrubGpu;

use super::turn::Turn;
use super::{Failure, ask};
use crate::driver::Driver;

/// Smaller pieces than this are no driver's.
const SMALLEST: u64 = 512;
/// More pieces than this are not taken, whatever is left between them.
const MOST_PIECES: usize = 16_384;
/// What is read back at once.
const CHUNK: usize = 4 << 20;
/// What is overwritten in one turn: a millisecond's work or less of the GPUs of today.
const IN_A_TURN: u64 = 256 << 20;
/// A killed worker's memory may come back a moment after its end.
const LATE_MEMORY: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(10);

pub(super) struct Held<'a> {
    driver: &'a Driver,
    pieces: Vec<Piece>,
    left: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) bytes: u64,
}

impl<'a> Held<'a> {
    /// Takes what is free, at most what the order allows; `own` is what this process has already.
    pub(super) fn take(
        driver: &'a Driver,
        gpu: &ScrubGpu,
        own: u64,
        in_time: &dyn Fn() -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let mut held = Self { driver, pieces: Vec::new(), left: 0 };
        let (_, total) = held.info()?;
        // Part of what the inventory counts is the driver's and nobody's; and contexts take more
        // than leases are charged. A sixty-fourth is more than either was seen to be.
        let reserved = gpu.memory.get().saturating_sub(total);
        let most = gpu.at_most.get().saturating_sub(reserved).saturating_sub(own);
        let least = gpu.at_least.get().min(most);
        let least = least - (total / 64).min(least / 2);
        let began = Instant::now();
        loop {
            held.grow(most)?;
            if held.sum() >= least {
                break;
            }
            if began.elapsed() > LATE_MEMORY {
                let wanted = MemoryBytes::saturating(least);
                return Err(Failure::TooLittle { held: held.bytes(), wanted });
            }
            in_time()?;
            std::thread::sleep(AGAIN);
        }
        held.left = held.info()?.0;
        Ok(held)
    }

    /// Memory that a test says is held.
    #[cfg(test)]
    pub(super) fn of(driver: &'a Driver, pieces: Vec<Piece>) -> Self {
        Self { driver, pieces, left: 0 }
    }

    /// Free and total bytes of the GPU.
    fn info(&self) -> Result<(u64, u64), Failure> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: places for the answers; a context is current.
        let asked = unsafe { (self.driver.memory_info)(&raw mut free, &raw mut total) };
        ask("tell what is free", asked)?;
        Ok((free as u64, total as u64))
    }

    /// Takes more, in pieces as large as can be had, up to `most` bytes together.
    fn grow(&mut self, most: u64) -> Result<(), Failure> {
        let free = self.info()?.0;
        let mut size = u64::MAX;
        loop {
            size = size.min(most.saturating_sub(self.sum())).min(free) / SMALLEST * SMALLEST;
            if size == 0 || self.pieces.len() >= MOST_PIECES {
                return Ok(());
            }
            let mut address = 0;
            let bytes = usize::try_from(size).unwrap_or(usize::MAX);
            // SAFETY: a place for the answer; a context is current.
            match unsafe { (self.driver.memory_allocate)(&raw mut address, bytes) } {
                CuResult::SUCCESS => self.pieces.push(Piece { address, bytes: size }),
                CuResult::OUT_OF_MEMORY => size /= 2,
                other => ask("allocate what is free", other)?,
            }
        }
    }

    fn sum(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }

    pub(super) fn bytes(&self) -> MemoryBytes {
        MemoryBytes::saturating(self.sum())
    }

    pub(super) fn left(&self) -> MemoryBytes {
        MemoryBytes::saturating(self.left)
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Writes zeros over all of it.
    pub(super) fn zero(
        &self,
        turn: &Turn<'_>,
        in_time: &dyn Fn() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for piece in &self.pieces {
            let mut done = 0;
            while done < piece.bytes {
                let bytes = (piece.bytes - done).min(IN_A_TURN);
                turn.with(|| self.clear(piece.address + done, bytes))?;
                done += bytes;
                in_time()?;
            }
        }
        Ok(())
    }

    /// Writes zeros over a part of a piece, and waits for it.
    fn clear(&self, address: u64, bytes: u64) -> Result<(), Failure> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        // SAFETY: a part of a live allocation of the current context.
        let set = unsafe { (self.driver.set_8)(address, 0, bytes, std::ptr::null_mut()) };
        ask("overwrite memory", set)?;
        self.wait()
    }

    /// Writes a word again and again over a part of a piece.
    pub(super) fn fill(&self, address: u64, word: u32, words: usize) -> Result<(), Failure> {
        // SAFETY: the caller chose the range within a piece, at a multiple of four bytes.
        let set = unsafe { (self.driver.set_32)(address, word, words, std::ptr::null_mut()) };
        ask("write a canary", set)
    }

    pub(super) fn wait(&self) -> Result<(), Failure> {
        // SAFETY: a context is current.
        ask("finish its work", unsafe { (self.driver.context_synchronize)() })
    }

    /// Reads a part of a piece.
    pub(super) fn read(&self, address: u64, to: &mut [u8]) -> Result<(), Failure> {
        // SAFETY: the caller chose the range within a piece; the target is as long as what is
        // read, and untouched until the stream is idle.
        let copied = unsafe {
            let (target, stream) = (to.as_mut_ptr().cast(), std::ptr::null_mut());
            let copied = (self.driver.copy_to_host)(target, address, to.len(), stream);
            let waited = (self.driver.stream_synchronize)(stream);
            copied.ok().and(waited.ok())
        };
        copied.map_err(|result| Failure::Driver { action: "read memory back", result })
    }

    /// Fails at the first byte of a part of a piece that is not zero.
    pub(super) fn expect_zeros(&self, address: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        // What the read leaves alone must not pass.
        buffer.fill(0xff);
        self.read(address, buffer)?;
        match buffer.iter().position(|byte| *byte != 0) {
            None => Ok(()),
            Some(place) => {
                let value = buffer.get(place).copied().unwrap_or_default();
                Err(Failure::Residue { at: address + place as u64, value })
            }
        }
    }

    /// Compares every byte; how many there were.
    pub(super) fn compare_all(
        &self,
        turn: &Turn<'_>,
        in_time: &dyn Fn() -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        let mut buffer = vec![0; CHUNK];
        for piece in &self.pieces {
            let mut done = 0;
            while done < piece.bytes {
                let length = usize::try_from(piece.bytes - done).unwrap_or(CHUNK).min(CHUNK);
                let address = piece.address + done;
                if let Some(part) = buffer.get_mut(..length) {
                    self.expect_zeros(address, part)?;
                }
                // A simulated GPU keeps what was looked at until it is cleared again.
                turn.with(|| self.clear(address, length as u64))?;
                done += length as u64;
                in_time()?;
            }
        }
        Ok(self.sum())
    }
}
