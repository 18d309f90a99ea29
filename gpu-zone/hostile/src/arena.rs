//! Where an attack takes place, and for how long.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;

/// How much of an attack is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// What a test has time for.
    Short,
    /// What a machine bears.
    Long,
}

/// Where an attack takes place.
pub(crate) struct Arena {
    /// The slot's directory.
    pub(crate) slot: PathBuf,
    scale: Scale,
    end: Instant,
}

impl Arena {
    /// The lease that this program runs in.
    pub(crate) fn here(length: Duration, scale: Scale) -> anyhow::Result<Self> {
        Ok(Self { slot: slot()?, scale, end: Instant::now() + length })
    }

    /// Whether there is time left.
    pub(crate) fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }

    /// Waits until the time is over.
    pub(crate) fn wait(&self) {
        std::thread::sleep(self.end.saturating_duration_since(Instant::now()));
    }

    /// One of two numbers.
    pub(crate) fn pick<T>(&self, short: T, long: T) -> T {
        match self.scale {
            Scale::Short => short,
            Scale::Long => long,
        }
    }
}

/// The slot's directory.
pub(crate) fn slot() -> anyhow::Result<PathBuf> {
    let slot = std::env::var_os("GPUZONE_SLOT").context("this is for programs in a lease")?;
    Ok(slot.into())
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}
