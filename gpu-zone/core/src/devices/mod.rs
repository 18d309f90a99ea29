//! The devices of a node and who has which part of them, in every way that a device can be given
//! away. Plain values: discovery fills them in, whoever allocates asks them.
//!
//! ```text
//! Device (what it offers, what may stand beside what)
//!    └──▶ Allocator::take(lease, want) ──▶ Held ──Allocator::release──▶ free again
//! between two tenants:  Turnover: mark ─▶ reset ─▶ settle ─▶ check ─▶ clear, or condemned
//! ```

mod allocator;
mod reset;
mod turnover;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ComputeShare, MemoryBytes, PciAddress};

pub use allocator::{AllocationRefusal, Allocator, Held, RestoreRefusal, Want, Why};
pub use reset::{NoReset, Reset, ResetMethod, ResetPolicy, ResetScope, UnknownResetMethod};
pub use turnover::{
    Canary, Condemned, Expected, Place as CanaryPlace, Step, Turnover, TurnoverTerms,
};

/// In which kind of parts a device is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartMode {
    /// MIG instances.
    Mig,
    /// SR-IOV's virtual functions, each over VFIO.
    Vf,
    /// The vendor's vGPUs on virtual functions that stay with the vendor's driver.
    VendorVgpu,
    /// Mediated devices.
    Mdev,
}

/// How a device is used. Which two can be at once is the hardware's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// All of it to one lease.
    Whole,
    /// Leases share it through workers.
    Mediated,
    /// In parts.
    #[serde(untagged)]
    Parts(PartMode),
}

impl PartMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mig, Self::Vf, Self::VendorVgpu, Self::Mdev];

    /// Its name in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mig => "mig",
            Self::Vf => "vf",
            Self::VendorVgpu => "vendor-vgpu",
            Self::Mdev => "mdev",
        }
    }
}

impl fmt::Display for PartMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.pad("whole"),
            Self::Mediated => f.pad("mediated"),
            Self::Parts(mode) => mode.fmt(f),
        }
    }
}

/// Which of a device's slices a part takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slices {
    start: u8,
    count: u8,
}

impl Slices {
    /// `count` slices from `start` on: at least one, and none beyond the 64th.
    pub const fn new(start: u8, count: u8) -> Option<Self> {
        if count == 0 || start >= 64 || count > 64 - start {
            None
        } else {
            Some(Self { start, count })
        }
    }

    /// The first one.
    pub const fn start(self) -> u8 {
        self.start
    }

    /// How many.
    pub const fn count(self) -> u8 {
        self.count
    }

    /// A bit for each.
    pub(crate) const fn mask(self) -> u64 {
        (u64::MAX >> (64 - self.count)) << self.start
    }
}

/// How many parts of a kind there can be, and beside which others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Room {
    /// So many at once, and none of another kind beside them.
    Alike(u32),
    /// One at each of these; what shares a slice with another part excludes it.
    At(Vec<Slices>),
}

/// A kind of part that a device can be cut into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartKind {
    /// What is created.
    pub mode: PartMode,
    /// Its name: a MIG profile, a vGPU type, a type of mediated device.
    pub name: String,
    /// What it has, where that is known.
    pub memory: Option<MemoryBytes>,
    /// How many there can be.
    pub room: Room,
}

/// What a device offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Where it is.
    pub address: PciAddress,
    /// All of its memory, where leases share it through workers.
    pub mediated: Option<MemoryBytes>,
    /// Whether it can be given away whole.
    pub whole: bool,
    /// What it can be cut into.
    pub kinds: Vec<PartKind>,
    /// The modes that its hardware has at the same time; every other pair excludes itself.
    pub beside: BTreeSet<(Mode, Mode)>,
}

impl Device {
    /// Whether the hardware can be used in both ways at once. Nothing stands beside the whole.
    pub fn has_both(&self, one: Mode, other: Mode) -> bool {
        if one == Mode::Whole || other == Mode::Whole {
            return false;
        }
        one == other || self.beside.contains(&(one, other)) || self.beside.contains(&(other, one))
    }

    /// The kind of part with this name.
    pub fn kind(&self, mode: PartMode, name: &str) -> Option<&PartKind> {
        self.kinds.iter().find(|kind| kind.mode == mode && kind.name == name)
    }
}

/// What a lease has of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Portion {
    /// All of it.
    Whole,
    /// So much of it, through a worker.
    Mediated {
        /// Of its memory.
        memory: MemoryBytes,
        /// Of its time.
        share: ComputeShare,
    },
    /// A part.
    Part {
        /// What it is.
        mode: PartMode,
        /// Its kind's name.
        kind: String,
        /// Which of the places of [`Room::At`], or which of the [`Room::Alike`], from 0.
        place: u32,
    },
}

impl Portion {
    /// How the device is used by it.
    pub const fn mode(&self) -> Mode {
        match self {
            Self::Whole => Mode::Whole,
            Self::Mediated { .. } => Mode::Mediated,
            Self::Part { mode, .. } => Mode::Parts(*mode),
        }
    }
}
