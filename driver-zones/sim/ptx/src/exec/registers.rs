//! A warp's registers: per slot an array of 32 lanes, so that one instruction
//! is one loop over lanes that the compiler turns into vector code.

use crate::ir::{Code, Slot};

/// Threads of a warp.
pub(crate) const LANES: usize = 32;
/// The mask of a warp whose lanes all take part.
pub(crate) const FULL: u32 = u32::MAX;

pub(crate) type Lanes32 = [u32; LANES];
pub(crate) type Lanes64 = [u64; LANES];

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Row<T>([T; LANES]);

#[derive(Default)]
pub(crate) struct Registers {
    narrow: Vec<Row<u32>>,
    wide: Vec<Row<u64>>,
    predicates: Vec<u32>,
}

/// All ones where the lane takes part.
#[inline(always)]
fn lane_mask(mask: u32, lane: usize) -> u32 {
    0_u32.wrapping_sub((mask >> lane) & 1)
}

impl Registers {
    /// As many as the code has, of any values.
    pub(crate) fn fit(&mut self, code: &Code) {
        self.narrow.resize(code.slots32, Row([0; LANES]));
        self.wide.resize(code.slots64, Row([0; LANES]));
        self.predicates.resize(code.predicates, 0);
    }

    /// Bytes that they keep.
    pub(crate) fn bytes(&self) -> usize {
        self.narrow.capacity() * size_of::<Row<u32>>()
            + self.wide.capacity() * size_of::<Row<u64>>()
    }

    pub(crate) fn clear(&mut self) {
        self.narrow.fill(Row([0; LANES]));
        self.wide.fill(Row([0; LANES]));
        self.predicates.fill(0);
    }

    #[inline(always)]
    pub(crate) fn get32(&self, slot: Slot) -> &Lanes32 {
        &self.narrow[usize::from(slot)].0
    }

    #[inline(always)]
    pub(crate) fn get64(&self, slot: Slot) -> &Lanes64 {
        &self.wide[usize::from(slot)].0
    }

    #[inline(always)]
    pub(crate) fn row32(&mut self, slot: Slot) -> &mut Lanes32 {
        &mut self.narrow[usize::from(slot)].0
    }

    #[inline(always)]
    pub(crate) fn row64(&mut self, slot: Slot) -> &mut Lanes64 {
        &mut self.wide[usize::from(slot)].0
    }

    #[inline(always)]
    pub(crate) fn predicate(&self, slot: Slot) -> u32 {
        self.predicates[usize::from(slot)]
    }

    #[inline(always)]
    pub(crate) fn put_predicate(&mut self, slot: Slot, mask: u32, value: u32) {
        let old = &mut self.predicates[usize::from(slot)];
        *old = (*old & !mask) | (value & mask);
    }

    #[inline(always)]
    pub(crate) fn put32(&mut self, slot: Slot, mask: u32, value: &Lanes32) {
        let row = &mut self.narrow[usize::from(slot)].0;
        if mask == FULL {
            *row = *value;
            return;
        }
        for lane in 0..LANES {
            let take = lane_mask(mask, lane);
            row[lane] = (value[lane] & take) | (row[lane] & !take);
        }
    }

    #[inline(always)]
    pub(crate) fn put64(&mut self, slot: Slot, mask: u32, value: &Lanes64) {
        let row = &mut self.wide[usize::from(slot)].0;
        if mask == FULL {
            *row = *value;
            return;
        }
        for lane in 0..LANES {
            let take = 0_u64.wrapping_sub(u64::from((mask >> lane) & 1));
            row[lane] = (value[lane] & take) | (row[lane] & !take);
        }
    }

    #[inline(always)]
    pub(crate) fn map32(&mut self, mask: u32, [d, a]: [Slot; 2], f: impl Fn(u32) -> u32) {
        let a = *self.get32(a);
        let mut value = [0; LANES];
        for lane in 0..LANES {
            value[lane] = f(a[lane]);
        }
        self.put32(d, mask, &value);
    }

    #[inline(always)]
    pub(crate) fn map64(&mut self, mask: u32, [d, a]: [Slot; 2], f: impl Fn(u64) -> u64) {
        let a = *self.get64(a);
        let mut value = [0; LANES];
        for lane in 0..LANES {
            value[lane] = f(a[lane]);
        }
        self.put64(d, mask, &value);
    }

    #[inline(always)]
    pub(crate) fn zip32(&mut self, mask: u32, [d, a, b]: [Slot; 3], f: impl Fn(u32, u32) -> u32) {
        let (a, b) = (*self.get32(a), *self.get32(b));
        let mut value = [0; LANES];
        for lane in 0..LANES {
            value[lane] = f(a[lane], b[lane]);
        }
        self.put32(d, mask, &value);
    }

    #[inline(always)]
    pub(crate) fn zip64(&mut self, mask: u32, [d, a, b]: [Slot; 3], f: impl Fn(u64, u64) -> u64) {
        let (a, b) = (*self.get64(a), *self.get64(b));
        let mut value = [0; LANES];
        for lane in 0..LANES {
            value[lane] = f(a[lane], b[lane]);
        }
        self.put64(d, mask, &value);
    }

    #[inline(always)]
    pub(crate) fn three32(
        &mut self,
        mask: u32,
        [d, a, b, c]: [Slot; 4],
        f: impl Fn(u32, u32, u32) -> u32,
    ) {
        let (a, b, c) = (*self.get32(a), *self.get32(b), *self.get32(c));
        let mut value = [0; LANES];
        for lane in 0..LANES {
            value[lane] = f(a[lane], b[lane], c[lane]);
        }
        self.put32(d, mask, &value);
    }

    #[inline(always)]
    pub(crate) fn three64(
        &mut self,
        mask: u32,
        [d, a, b, c]: [Slot; 4],
        f: impl Fn(u64, u64, u64) -> u64,
    ) {
        let (a, b, c) = (*self.get64(a), *self.get64(b), *self.get64(c));
        let mut value = [0; LANES];
        for lane in 0..LANES {
            value[lane] = f(a[lane], b[lane], c[lane]);
        }
        self.put64(d, mask, &value);
    }

    #[inline(always)]
    pub(crate) fn test32(&mut self, mask: u32, [d, a, b]: [Slot; 3], f: impl Fn(u32, u32) -> bool) {
        let (a, b) = (self.get32(a), self.get32(b));
        let mut value = 0;
        for lane in 0..LANES {
            value |= u32::from(f(a[lane], b[lane])) << lane;
        }
        self.put_predicate(d, mask, value);
    }

    #[inline(always)]
    pub(crate) fn test64(&mut self, mask: u32, [d, a, b]: [Slot; 3], f: impl Fn(u64, u64) -> bool) {
        let (a, b) = (self.get64(a), self.get64(b));
        let mut value = 0;
        for lane in 0..LANES {
            value |= u32::from(f(a[lane], b[lane])) << lane;
        }
        self.put_predicate(d, mask, value);
    }
}
