//! What is too large for an instruction, and what a kernel's body consists of.

use std::collections::HashMap;

use super::{Conversion, HalfMode, HalfOp, Instr, Slot};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Constant,
    Shared,
    Local,
    Param,
}

/// Where an access points: a slot of the 32-bit or 64-bit file, and an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) base: AddressBase,
    pub(crate) offset: i64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum AddressBase {
    Absolute,
    Narrow(Slot),
    Wide(Slot),
}

/// A load or a store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) space: Space,
    pub(crate) address: Address,
    /// Bytes of one element: 1, 2, 4 or 8.
    pub(crate) bytes: u8,
    /// Whether a loaded element is extended by its sign.
    pub(crate) signed: bool,
    /// Elements: 1, 2, 4 or 8.
    pub(crate) count: u8,
    /// Slots of the elements; those of `wide` ones in the 64-bit file.
    pub(crate) slots: [Slot; 8],
    pub(crate) wide: [bool; 8],
    /// Bits of a loaded element's register, so that a sign ends there.
    pub(crate) register_bits: [u8; 8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    AddSingle,
    AddDouble,
    Half(HalfOp, HalfMode),
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
    Exchange,
    CompareSwap,
    Increment,
    Decrement,
}

/// `cp.async`: a copy to shared memory, which is done at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageCopy {
    pub(crate) to: Address,
    pub(crate) from: Address,
    /// Bytes that are written: 4, 8 or 16.
    pub(crate) bytes: u8,
    /// How many of them are read, the others being zero; all when absent.
    pub(crate) read: Option<Slot>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Atomic {
    pub(crate) op: AtomicOp,
    pub(crate) space: Space,
    pub(crate) address: Address,
    /// Bytes of the value: 2, 4 or 8.
    pub(crate) bytes: u8,
    pub(crate) d: Option<Slot>,
    pub(crate) b: Slot,
    /// The new value of a compare and swap.
    pub(crate) c: Slot,
}

/// The same on each element of a vector in global memory.
#[derive(Clone, Debug)]
pub(crate) struct VectorAtomic {
    pub(crate) op: AtomicOp,
    pub(crate) address: Address,
    /// Bytes of one element: 2 or 4.
    pub(crate) bytes: u8,
    /// Where each element's old value goes, and its operand.
    pub(crate) elements: Vec<(Option<Slot>, Slot)>,
}

/// An exchange of 128 bits; each slot is the first of two of the 64-bit file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WideAtomic {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) d: Option<Slot>,
    /// Only a value that equals this one is exchanged.
    pub(crate) compare: Option<Slot>,
    pub(crate) new: Slot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Shuffle {
    pub(crate) mode: ShuffleMode,
    pub(crate) d: Slot,
    /// Whether the source lane was in range.
    pub(crate) p: Option<Slot>,
    pub(crate) a: Slot,
    pub(crate) b: Slot,
    pub(crate) c: Slot,
    pub(crate) members: Slot,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Barrier {
    pub(crate) id: Slot,
    /// Threads that take part; all of the block when absent.
    pub(crate) threads: Option<Slot>,
    /// Whether the lane waits (`bar.sync`) or goes on (`bar.arrive`).
    pub(crate) wait: bool,
    /// What all threads learn of each other's predicates (`bar.red`).
    pub(crate) reduce: Option<BarrierReduce>,
}

/// A vote of all threads that meet at a barrier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BarrierReduce {
    pub(crate) mode: BarrierVote,
    /// A 32-bit slot for a count, else a predicate.
    pub(crate) d: Slot,
    pub(crate) p: Slot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierVote {
    Count,
    All,
    Any,
}

/// One end of a copy between a call's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyPlace {
    /// An offset in local memory.
    Local(u32),
    /// While a kernel is lowered: an offset among a call's arguments.
    Argument(u32),
    /// While a kernel is lowered: a call's result.
    Result,
}

/// A copy within each lane's local memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameCopy {
    pub(crate) from: CopyPlace,
    pub(crate) to: CopyPlace,
    pub(crate) bytes: u32,
}

/// Where in local memory the arguments and the result of a `vprintf` lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Print {
    pub(crate) format: u32,
    pub(crate) values: u32,
    pub(crate) result: u32,
}

/// Where in local memory the arguments of an `__assertfail` lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) message: u32,
    pub(crate) file: u32,
    pub(crate) line: u32,
    pub(crate) function: u32,
}

/// What a slot of the 32-bit file holds before a warp's first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Preset32 {
    Bits(u32),
    /// Offset of dynamic shared memory.
    DynamicShared(u32),
    Special(Special),
}

/// What a slot of the 64-bit file holds before a warp's first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Preset64 {
    Bits(u64),
    DynamicShared(u64),
    /// Address of a module variable, plus a number.
    Global {
        index: u32,
        offset: i64,
    },
    GridId,
}

/// Special registers that do not change while a warp runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    ThreadX,
    ThreadY,
    ThreadZ,
    BlockSizeX,
    BlockSizeY,
    BlockSizeZ,
    BlockX,
    BlockY,
    BlockZ,
    GridSizeX,
    GridSizeY,
    GridSizeZ,
    Lane,
    Warp,
    WarpCount,
    Multiprocessor,
    MultiprocessorCount,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    DynamicSharedSize,
    TotalSharedSize,
    /// Halves of the address at which a cooperative launch's blocks meet, else 0.
    MeetingHigh,
    MeetingLow,
}

/// A kernel's body.
#[derive(Debug, Default)]
pub(crate) struct Code {
    pub(crate) instructions: Vec<Instr>,
    /// Where the kernel itself begins.
    pub(crate) entry: u32,
    /// Where each function begins, by its number.
    pub(crate) functions: HashMap<u32, u32>,
    pub(crate) copies: Vec<FrameCopy>,
    pub(crate) prints: Vec<Print>,
    pub(crate) reports: Vec<Report>,
    pub(crate) accesses: Vec<Access>,
    pub(crate) stages: Vec<StageCopy>,
    pub(crate) atomics: Vec<Atomic>,
    pub(crate) vector_atomics: Vec<VectorAtomic>,
    pub(crate) wide_atomics: Vec<WideAtomic>,
    pub(crate) shuffles: Vec<Shuffle>,
    pub(crate) barriers: Vec<Barrier>,
    pub(crate) conversions: Vec<Conversion>,
    pub(crate) tables: Vec<Vec<u32>>,
    pub(crate) slots32: usize,
    pub(crate) slots64: usize,
    pub(crate) predicates: usize,
    pub(crate) presets32: Vec<(Slot, Preset32)>,
    pub(crate) presets64: Vec<(Slot, Preset64)>,
}
