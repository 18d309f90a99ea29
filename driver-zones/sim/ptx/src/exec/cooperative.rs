//! Blocks that all run at once, and meet.
//!
//! What nvcc makes of `grid.sync()` is a word of memory that blocks count in, and the address of
//! the memory that it lies in is found in two registers of the environment. The driver gives that
//! memory to cooperative launches only; to others the registers are zero, and the code traps.

use std::cell::UnsafeCell;

use super::GridRun;
use super::block::BlockRunner;
use crate::{DeviceMemory, Region};

/// Where blocks find what they meet in: far from what a driver gives out.
pub(crate) const MEETING: u64 = (1 << 60) - 4096;
/// Bytes there. nvcc counts in the second word.
const BYTES: u64 = 16;
/// Instructions of a warp before the next one's turn: short, for most wait for another block.
const TURN: u32 = 512;

#[repr(align(16))]
struct Words(UnsafeCell<[u64; 2]>);

// SAFETY: the machine touches the words by atomic operations only, as all memory of regions.
unsafe impl Sync for Words {}

/// A launch's memory, with what its blocks meet in.
pub(super) struct Meeting<'a> {
    memory: &'a dyn DeviceMemory,
    words: Words,
}

impl<'a> Meeting<'a> {
    pub(super) fn beside(memory: &'a dyn DeviceMemory) -> Self {
        Self { memory, words: Words(UnsafeCell::new([0; 2])) }
    }
}

// SAFETY: the words are mapped for as long as this is, which is the whole launch; all else is the
// other memory's, whose promise it is.
unsafe impl DeviceMemory for Meeting<'_> {
    fn region(&self, address: u64) -> Option<Region> {
        if !(MEETING..MEETING + BYTES).contains(&address) {
            return self.memory.region(address);
        }
        let host = self.words.0.get().cast();
        Some(Region { base: MEETING, len: BYTES, host, writable: true })
    }
}

impl GridRun<'_> {
    /// Executes its part of the blocks in turns, so that each may wait for any other.
    pub(super) fn work_together(&self, worker: u32, workers: u32) {
        let mut running = Vec::new();
        for block in (u64::from(worker)..self.blocks).step_by(workers as usize) {
            let place = (worker, workers);
            let (kernel, launch, memory) = (self.kernel, self.launch, self.memory);
            let mut runner = BlockRunner::new(kernel, launch, memory, self.started, place);
            runner.start(self.position(block));
            running.push(runner);
        }
        let mut check = |executed| self.check(executed).map(|_| ());
        while !running.is_empty() {
            let mut fault = None;
            running.retain_mut(|runner| match runner.round(TURN, &mut check) {
                Ok(ended) => !ended,
                Err(error) => {
                    fault.get_or_insert(error);
                    false
                }
            });
            if let Some(fault) = fault {
                return self.fail(fault);
            }
            // Whoever they wait for may have no processor.
            std::thread::yield_now();
        }
    }
}
