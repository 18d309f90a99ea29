//! Who holds which bytes of a GPU's memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use gpuzone_core::MemoryBytes;

use super::file::{Changes, Locked};
use super::processes::Row;
use super::{AllocateError, GRANULE, StateError};

/// How many allocations one GPU holds at most.
pub(super) const MAX_ALLOCATIONS: u32 = 65_536;
const TABLE_AT: u64 = 256 << 10;
const ENTRY_WORDS: usize = 4;
const ENTRY_BYTES: u64 = 32;

/// Bytes of device memory, by device address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceRange {
    /// Address of the first byte.
    pub address: u64,
    /// How many bytes are charged: what was asked for, rounded up to whole granules.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allocation {
    bytes: u64,
    owner: Row,
    entry: u32,
}

/// What one owner has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owned {
    allocations: u32,
    bytes: u64,
}

/// The allocation table as this process last saw it. Offsets count from the first byte. What is
/// asked of it with each call does not depend on how much is allocated.
pub(super) struct Space {
    memory: u64,
    seen: Option<Changes>,
    live: BTreeMap<u64, Allocation>,
    owned: BTreeMap<Row, Owned>,
    /// Length and offset of what lies between allocations.
    gaps: BTreeSet<(u64, u64)>,
    unused: Vec<u32>,
}

impl Space {
    pub(super) fn new(memory: MemoryBytes) -> Self {
        let mut space = Self {
            memory: memory.get(),
            seen: None,
            live: BTreeMap::new(),
            owned: BTreeMap::new(),
            gaps: BTreeSet::new(),
            unused: Vec::new(),
        };
        space.clear();
        space
    }

    fn clear(&mut self) {
        self.live.clear();
        self.owned.clear();
        self.unused.clear();
        self.gaps.clear();
        self.set_gap(0, self.memory, true);
    }

    /// Notes that there is or is no gap from `start` to `end`, if that is any.
    fn set_gap(&mut self, start: u64, end: u64, is_one: bool) {
        match (end.saturating_sub(start), is_one) {
            (0, _) => {}
            (bytes, true) => drop(self.gaps.insert((bytes, start))),
            (bytes, false) => drop(self.gaps.remove(&(bytes, start))),
        }
    }

    /// The end of what is allocated before `offset`, and the beginning of what is behind it.
    fn neighbours(&self, offset: u64) -> (u64, u64) {
        let before = self.live.range(..offset).next_back();
        let behind = self.live.range((Bound::Excluded(offset), Bound::Unbounded)).next();
        let start = before.map_or(0, |(at, allocation)| at + allocation.bytes);
        (start, behind.map_or(self.memory, |(at, _)| *at))
    }

    /// Whether there was room for it.
    fn enter(&mut self, offset: u64, allocation: Allocation) -> bool {
        let (start, end) = self.neighbours(offset);
        let own_end = offset + allocation.bytes;
        if start > offset || own_end > end || self.live.contains_key(&offset) {
            return false;
        }
        self.set_gap(start, end, false);
        self.set_gap(start, offset, true);
        self.set_gap(own_end, end, true);
        self.live.insert(offset, allocation);
        let owned = self.owned.entry(allocation.owner).or_default();
        owned.allocations += 1;
        owned.bytes += allocation.bytes;
        true
    }

    fn strike(&mut self, offset: u64) {
        let Some(gone) = self.live.remove(&offset) else { return };
        let (start, end) = self.neighbours(offset);
        self.set_gap(start, offset, false);
        self.set_gap(offset + gone.bytes, end, false);
        self.set_gap(start, end, true);
        self.unused.push(gone.entry);
        if let Some(owned) = self.owned.get_mut(&gone.owner) {
            owned.allocations -= 1;
            owned.bytes -= gone.bytes;
            if owned.allocations == 0 {
                self.owned.remove(&gone.owner);
            }
        }
    }

    /// Reads the table again if another process changed it.
    pub(super) fn refresh(&mut self, file: &Locked<'_>) -> Result<(), StateError> {
        let changes = file.changes()?;
        if self.seen == Some(changes) {
            return Ok(());
        }
        self.seen = None;
        self.clear();
        let rows = usize::try_from(changes.rows).unwrap_or(usize::MAX);
        if changes.rows > u64::from(MAX_ALLOCATIONS) {
            return Err(file.corrupt("its table of allocations is too long"));
        }
        let mut words = vec![0; rows * ENTRY_WORDS];
        file.read(TABLE_AT, &mut words)?;
        for (entry, words) in (0..).zip(words.as_chunks::<ENTRY_WORDS>().0) {
            self.take_entry(file, entry, *words)?;
        }
        self.seen = Some(changes);
        Ok(())
    }

    fn take_entry(
        &mut self,
        file: &Locked<'_>,
        entry: u32,
        [offset, bytes, owner, _]: [u64; ENTRY_WORDS],
    ) -> Result<(), StateError> {
        if bytes == 0 {
            self.unused.push(entry);
            return Ok(());
        }
        let aligned = offset.is_multiple_of(GRANULE) && bytes.is_multiple_of(GRANULE);
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.memory);
        let owner = Row::new(owner).filter(|_| aligned && inside);
        let owner = owner.ok_or_else(|| file.corrupt("an allocation is out of bounds"))?;
        if self.enter(offset, Allocation { bytes, owner, entry }) {
            Ok(())
        } else {
            Err(file.corrupt("two allocations overlap"))
        }
    }

    /// In the smallest gap that is large enough. The space must have been refreshed under the same lock.
    pub(super) fn allocate(
        &mut self,
        file: &Locked<'_>,
        owner: Row,
        requested: u64,
    ) -> Result<(u64, u64), AllocateError> {
        if requested == 0 {
            return Err(AllocateError::Zero);
        }
        let bytes = requested.checked_next_multiple_of(GRANULE);
        let place = bytes.and_then(|bytes| Some((self.fit(bytes)?, bytes)));
        let Some((offset, bytes)) = place else {
            return Err(AllocateError::OutOfMemory {
                requested,
                free: MemoryBytes::saturating(self.memory - self.used()),
                largest: MemoryBytes::saturating(self.largest_gap()),
            });
        };
        let mut next = self.seen.unwrap_or_default();
        let entry = match self.unused.last() {
            Some(entry) => *entry,
            None => {
                let entry = u32::try_from(next.rows).unwrap_or(u32::MAX);
                if entry >= MAX_ALLOCATIONS {
                    return Err(AllocateError::TooMany(MAX_ALLOCATIONS));
                }
                next.rows += 1;
                entry
            }
        };
        let words = [offset, bytes, owner.number(), 0];
        self.write(file, next, entry, words)?;
        if self.unused.last() == Some(&entry) {
            self.unused.pop();
        }
        self.enter(offset, Allocation { bytes, owner, entry });
        Ok((offset, bytes))
    }

    /// Frees the allocation of `owner` that begins at `offset`; false when there is none.
    pub(super) fn free(
        &mut self,
        file: &Locked<'_>,
        owner: Row,
        offset: u64,
    ) -> Result<bool, StateError> {
        let Some(found) = self.live.get(&offset).filter(|found| found.owner == owner).copied()
        else {
            return Ok(false);
        };
        self.write(file, self.seen.unwrap_or_default(), found.entry, [0; ENTRY_WORDS])?;
        self.strike(offset);
        Ok(true)
    }

    /// Frees everything of `owner`.
    pub(super) fn free_all(&mut self, file: &Locked<'_>, owner: Row) -> Result<(), StateError> {
        let own = self.live.iter().filter(|(_, allocation)| allocation.owner == owner);
        for offset in own.map(|(offset, _)| *offset).collect::<Vec<_>>() {
            self.free(file, owner, offset)?;
        }
        Ok(())
    }

    /// Announces the change before it makes it: whoever comes after a death in between
    /// reads the table once more than needed, and never trusts a stale copy.
    fn write(
        &mut self,
        file: &Locked<'_>,
        mut next: Changes,
        entry: u32,
        words: [u64; ENTRY_WORDS],
    ) -> Result<(), StateError> {
        self.seen = None;
        next.generation = next.generation.wrapping_add(1);
        file.write_changes(next)?;
        file.write(TABLE_AT + u64::from(entry) * ENTRY_BYTES, &words)?;
        self.seen = Some(next);
        Ok(())
    }

    fn fit(&self, bytes: u64) -> Option<u64> {
        self.gaps.range((bytes, 0)..).next().map(|(_, start)| *start)
    }

    fn largest_gap(&self) -> u64 {
        self.gaps.last().map_or(0, |(bytes, _)| *bytes)
    }

    /// All bytes that are charged.
    pub(super) fn used(&self) -> u64 {
        self.owned.values().map(|owned| owned.bytes).sum()
    }

    /// Bytes charged to `owner`.
    pub(super) fn used_by(&self, owner: Row) -> u64 {
        self.owned.get(&owner).map_or(0, |owned| owned.bytes)
    }

    /// The owners of anything.
    pub(super) fn owners(&self) -> impl Iterator<Item = Row> {
        self.owned.keys().copied()
    }
}
