//! A warp: its registers, and which lanes are where.
//!
//! ```text
//!            diverge                    the pc reaches another group's
//!   one group ─────► several groups ──────────────► fewer groups
//!                      │  ready:      runs; the one with the lowest pc first
//!                      │  collective: waits for the lanes that its mask names
//!                      │  barrier:    waits for the block
//! ```
//!
//! Code is laid out so that paths meet at higher addresses; running the group
//! with the lowest pc lets the others wait where paths meet. A group that keeps
//! jumping back while others wait may wait for *them* (a lock, say), so after
//! many jumps another one gets its turn.

use super::registers::Registers;
use crate::ir::Code;

/// What a group of lanes waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// At an instruction that other lanes of the warp must reach too.
    Collective,
    /// At a barrier of the block.
    Barrier(u8),
}

/// Lanes that are at the same place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) state: State,
}

/// Backward jumps of one group before others get their turn.
const PATIENCE: u32 = 4096;

#[derive(Default)]
pub(crate) struct Warp {
    pub(crate) registers: Registers,
    /// Local memory of its 32 lanes.
    pub(crate) local: Vec<u8>,
    /// Where the running group is, and which lanes it has (none: nothing runs).
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    /// Number in the block of its first thread.
    pub(crate) first: u32,
    /// Lanes that have not ended.
    pub(crate) live: u32,
    /// The groups that do not run.
    pub(crate) others: Vec<Group>,
    /// Where the running group meets, or passes, another one.
    pub(crate) limit: u32,
    jumps_back: u32,
}

impl Warp {
    /// Gets the registers and the local memory that the code needs; whatever is in them goes with
    /// [`Warp::start`].
    pub(crate) fn fit(&mut self, code: &Code, local_bytes: usize) {
        self.registers.fit(code);
        self.local.resize(local_bytes, 0);
    }

    /// Bytes that it keeps.
    pub(crate) fn bytes(&self) -> usize {
        self.registers.bytes() + self.local.capacity()
    }

    /// Starts over with these lanes at the kernel's first instruction, `entry`.
    pub(crate) fn start(&mut self, lanes: u32, entry: u32) {
        self.registers.clear();
        self.local.fill(0);
        self.others.clear();
        self.pc = entry;
        self.mask = lanes;
        self.live = lanes;
        self.limit = u32::MAX;
        self.jumps_back = 0;
    }

    /// Puts the running group aside.
    pub(crate) fn park(&mut self, state: State) {
        self.split(self.mask, self.pc, state);
        self.mask = 0;
    }

    /// Adds a group that does not run.
    pub(crate) fn split(&mut self, mask: u32, pc: u32, state: State) {
        if mask != 0 {
            self.others.push(Group { pc, mask, state });
        }
    }

    /// Lets the ready group with the lowest pc run, joined by all that are there.
    /// Returns false when none is ready.
    pub(crate) fn schedule(&mut self) -> bool {
        if self.mask != 0 {
            self.park(State::Ready);
        }
        let ready = self.others.iter().filter(|group| group.state == State::Ready);
        let Some(pc) = ready.map(|group| group.pc).min() else { return false };
        self.run_from(pc);
        self.set_limit();
        true
    }

    /// Makes all lanes at `pc` that do not wait for the block the running group.
    fn run_from(&mut self, pc: u32) {
        self.pc = pc;
        self.mask = 0;
        let mask = &mut self.mask;
        self.others.retain(|group| {
            let joins = group.pc == pc && !matches!(group.state, State::Barrier(_));
            if joins {
                *mask |= group.mask;
            }
            !joins
        });
    }

    fn set_limit(&mut self) {
        let pc = self.pc;
        let meets = self.others.iter().filter(|group| match group.state {
            State::Ready => true,
            // One that was passed meets only lanes that jump back to it.
            State::Collective => group.pc > pc,
            State::Barrier(_) => false,
        });
        self.limit = meets.map(|group| group.pc).min().unwrap_or(u32::MAX);
    }

    /// The whole running group jumps.
    #[inline(always)]
    pub(crate) fn jump(&mut self, target: u32) {
        let back = target <= self.pc;
        self.pc = target;
        if !self.others.is_empty() {
            self.jumped_among_others(back);
        }
    }

    fn jumped_among_others(&mut self, back: bool) {
        if self.others.iter().any(|group| group.pc == self.pc) {
            self.schedule();
            return;
        }
        self.set_limit();
        if !back {
            return;
        }
        self.jumps_back += 1;
        if self.jumps_back < PATIENCE {
            return;
        }
        self.jumps_back = 0;
        // The group that waits longest runs, past all others, to its next jump.
        let next = self.others.iter().position(|group| group.state == State::Ready);
        if let Some(next) = next {
            let pc = self.others[next].pc;
            self.park(State::Ready);
            self.run_from(pc);
            self.limit = u32::MAX;
        }
    }

    /// Splits the running group at a branch that only `taken` lanes take.
    pub(crate) fn diverge(&mut self, taken: u32, target: u32) {
        self.split(self.mask & !taken, self.pc + 1, State::Ready);
        self.split(taken, target, State::Ready);
        self.mask = 0;
        self.schedule();
    }

    /// Lanes of the running group go each to a place of its own; the others go on.
    pub(crate) fn scatter(&mut self, lanes: u32, target: impl Fn(usize) -> u32) {
        let mut left = lanes;
        while left != 0 {
            let place = target(left.trailing_zeros() as usize);
            let same = super::memory::lanes(left)
                .filter(|lane| target(*lane) == place)
                .fold(0, |all, lane| all | 1 << lane);
            if same == self.mask {
                self.jump(place);
                return;
            }
            self.split(same, place, State::Ready);
            left &= !same;
        }
        self.split(self.mask & !lanes, self.pc + 1, State::Ready);
        self.mask = 0;
        self.schedule();
    }

    /// Ends lanes of the running group; the others go on with the next instruction.
    pub(crate) fn exit(&mut self, lanes: u32) {
        self.live &= !lanes;
        self.mask &= !lanes;
        self.pc += 1;
        // Who waits for the ended lanes need not wait any more.
        for group in &mut self.others {
            if group.state == State::Collective {
                group.state = State::Ready;
            }
        }
        if !self.others.is_empty() {
            self.set_limit();
        }
    }

    /// Of the running group, only `lanes` wait; the others go on.
    pub(crate) fn wait(&mut self, lanes: u32, pc: u32, state: State) {
        self.split(lanes, pc, state);
        self.mask &= !lanes;
        self.pc += 1;
        if !self.others.is_empty() {
            self.set_limit();
        }
    }

    /// Lets go the lanes that wait at a barrier.
    pub(crate) fn release(&mut self, barrier: u8) {
        for group in &mut self.others {
            if group.state == State::Barrier(barrier) {
                group.state = State::Ready;
            }
        }
        self.set_limit();
    }
}
