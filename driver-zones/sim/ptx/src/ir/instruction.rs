//! One instruction: what it does, and for which lanes.

use super::Op;

/// Number of a slot in one of the register files.
pub(crate) type Slot = u16;

/// The most slots a file may have: 16 bits of number, less one for a guard's sign.
pub(crate) const MAX_SLOTS: usize = 1 << 15;

/// Which predicate must hold for a lane to take part in an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Guard(u16);

impl Guard {
    pub(crate) const ALWAYS: Self = Self(u16::MAX);
    const NEGATED: u16 = 1 << 15;

    pub(crate) fn new(slot: Slot, negated: bool) -> Self {
        Self(slot | if negated { Self::NEGATED } else { 0 })
    }

    /// The predicate's slot and whether it must be false.
    #[inline(always)]
    pub(crate) fn condition(self) -> Option<(Slot, bool)> {
        (self != Self::ALWAYS).then_some((self.0 & !Self::NEGATED, self.0 & Self::NEGATED != 0))
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Instr {
    pub(crate) guard: Guard,
    pub(crate) op: Op,
}
