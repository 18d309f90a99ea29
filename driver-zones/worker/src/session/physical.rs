//! Memory and addresses apart from each other. Memory is charged when it is made and until it is
//! released and nothing of it is mapped.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gpuzone_cuda_abi::{CuResult, MemoryAccess, MemoryLocation, PhysicalProperties};
use gpuzone_wire::spec::{
    ContextId, DevicePtr, PhysicalAccess, PhysicalCreate, PhysicalId, PhysicalMap,
};

use super::{Session, room};
use crate::ledger::Charge;

const READ_WRITE: u32 = 3;

struct Memory {
    driver: u64,
    bytes: u64,
    ordinal: i32,
    maps: usize,
    released: bool,
    charge: Charge,
}

struct Mapping {
    bytes: u64,
    memory: PhysicalId,
    flags: u32,
}

/// All of a session.
#[derive(Default)]
pub(super) struct Physical {
    reserved: BTreeMap<u64, u64>,
    memory: HashMap<PhysicalId, Memory>,
    mapped: BTreeMap<u64, Mapping>,
}

impl Physical {
    pub(super) fn count(&self) -> usize {
        self.reserved.len() + self.memory.len() + self.mapped.len()
    }

    /// Bytes of the memory.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn bytes(&self) -> u64 {
        self.memory.values().map(|memory| memory.charge.bytes()).sum()
    }

    /// Whether `bytes` from `at` on are mapped and may be written, one mapping after the other.
    pub(super) fn cover(&self, at: u64, bytes: u64) -> bool {
        let Some(end) = at.checked_add(bytes) else { return false };
        let mut next = at;
        loop {
            let Some((base, mapping)) = self.mapped.range(..=next).next_back() else {
                return false;
            };
            let ends = base.saturating_add(mapping.bytes);
            if ends <= next || mapping.flags != READ_WRITE {
                return false;
            }
            if ends >= end {
                return true;
            }
            next = ends;
        }
    }

    fn is_free(&self, at: u64, bytes: u64) -> bool {
        let inside =
            |(base, size): (&u64, &u64)| at >= *base && bytes <= *size && at - base <= size - bytes;
        let reserved = self.reserved.range(..=at).next_back().is_some_and(inside);
        let last = self.mapped.range(..at.saturating_add(bytes)).next_back();
        reserved && last.is_none_or(|(base, mapping)| base + mapping.bytes <= at)
    }
}

fn size(bytes: u64) -> Result<usize, CuResult> {
    usize::try_from(bytes).map_err(|_| CuResult::INVALID_VALUE)
}

impl Session {
    fn ordinal(&self, device: u32) -> Result<i32, CuResult> {
        let device = self.lease.devices.get(device as usize).ok_or(CuResult::INVALID_DEVICE)?;
        Ok(device.ordinal)
    }

    pub(super) fn granularity(&self, device: u32, recommended: bool) -> Result<u64, CuResult> {
        let properties = PhysicalProperties::of_device(self.ordinal(device)?);
        let mut bytes = 0usize;
        // SAFETY: a place for the answer, and what is asked about.
        let asked = unsafe {
            let ask = self.lease.driver.granularity;
            ask(&raw mut bytes, &raw const properties, recommended.into())
        };
        self.ask(asked)?;
        Ok(bytes as u64)
    }

    pub(super) fn reserve_addresses(
        &mut self,
        bytes: u64,
        alignment: u64,
    ) -> Result<u64, CuResult> {
        room(self.physical.count(), self.lease.caps.allocations)?;
        let mut at = 0;
        // SAFETY: a place for the answer; where is the driver's to say.
        let reserved = unsafe {
            let reserve = self.lease.driver.address_reserve;
            reserve(&raw mut at, size(bytes)?, size(alignment)?, 0, 0)
        };
        self.ask(reserved)?;
        self.physical.reserved.insert(at, bytes);
        Ok(at)
    }

    pub(super) fn free_addresses(&mut self, at: DevicePtr, bytes: u64) -> Result<(), CuResult> {
        let known = self.physical.reserved.get(&at.0) == Some(&bytes);
        if !known || !self.physical.is_free(at.0, bytes) {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: addresses that the driver reserved, with nothing behind them.
        self.ask(unsafe { (self.lease.driver.address_free)(at.0, size(bytes)?) })?;
        self.physical.reserved.remove(&at.0);
        Ok(())
    }

    pub(super) fn create_memory(
        &mut self,
        context: ContextId,
        request: &PhysicalCreate,
    ) -> Result<(), CuResult> {
        let ordinal = self.ordinal(request.device)?;
        let device = request.device as usize;
        if request.bytes == 0 || self.physical.memory.contains_key(&request.memory) {
            return Err(CuResult::INVALID_VALUE);
        }
        room(self.physical.count(), self.lease.caps.allocations)?;
        if self.enter(context)?.device != device {
            return Err(CuResult::INVALID_DEVICE);
        }
        let bytes = size(request.bytes)?;
        let charge = self.lease.ledger.charge(device, request.bytes);
        let charge = charge.map_err(|_| CuResult::OUT_OF_MEMORY)?;
        let properties = PhysicalProperties::of_device(ordinal);
        let mut driver = 0;
        let made = {
            let _gate = self.lease.ledger.close_gate();
            // SAFETY: a place for the answer, and what is wanted.
            unsafe {
                let create = self.lease.driver.physical_create;
                create(&raw mut driver, bytes, &raw const properties, 0)
            }
        };
        self.ask(made)?;
        let mut stays = false;
        if let Err(error) = self.zero(context, (driver, bytes), ordinal, &mut stays) {
            // SAFETY: the memory just made, known to nobody.
            let released = unsafe { (self.lease.driver.physical_release)(driver) };
            if stays || !released.is_success() {
                self.lose([charge]);
            }
            return Err(error);
        }
        let (bytes, maps, released) = (request.bytes, 0, false);
        let memory = Memory { driver, bytes, ordinal, maps, released, charge };
        self.physical.memory.insert(request.memory, memory);
        Ok(())
    }

    /// Overwrites memory that nobody has mapped yet, by mapping it for a moment. `stays` when the
    /// driver did not take that mapping away again.
    fn zero(
        &mut self,
        context: ContextId,
        (memory, bytes): (u64, usize),
        ordinal: i32,
        stays: &mut bool,
    ) -> Result<(), CuResult> {
        let (device, zeroing) = self.enter(context).map(|c| (c.device, c.zeroing))?;
        self.wait_for_turn(device);
        self.enter(context)?;
        let lease = self.lease.clone();
        let driver = &lease.driver;
        let mut at = 0;
        // SAFETY: addresses of our own, with the new memory behind them while it is overwritten.
        let zeroed = unsafe {
            let reserved = (driver.address_reserve)(&raw mut at, bytes, 0, 0, 0);
            let done = reserved.ok().and_then(|()| {
                let mapped = (driver.physical_map)(at, bytes, 0, memory, 0).ok();
                let done = mapped.and_then(|()| {
                    let access = write_access(ordinal);
                    let set = (driver.physical_access)(at, bytes, &raw const access, 1).ok();
                    let set = set.and_then(|()| (driver.set_8)(at, 0, bytes, zeroing).ok());
                    let done = set.and_then(|()| (driver.stream_synchronize)(zeroing).ok());
                    // Whatever came of it: what stays mapped stays taken.
                    let unmapped = (driver.physical_unmap)(at, bytes).ok();
                    *stays = unmapped.is_err();
                    done.and(unmapped)
                });
                done.and((driver.address_free)(at, bytes).ok())
            });
            done.err().unwrap_or(CuResult::SUCCESS)
        };
        lease.turns.end(device, None);
        self.ask(zeroed)
    }

    pub(super) fn release_memory(&mut self, id: PhysicalId) -> Result<(), CuResult> {
        let memory = self.physical.memory.get_mut(&id).filter(|memory| !memory.released);
        let memory = memory.ok_or(CuResult::INVALID_VALUE)?;
        memory.released = true;
        let driver = memory.driver;
        let released = {
            let _gate = self.lease.ledger.close_gate();
            // SAFETY: the driver's handle, used no more; what is mapped of it stays until it is
            // not.
            unsafe { (self.lease.driver.physical_release)(driver) }
        };
        if !released.is_success()
            && let Some(memory) = self.physical.memory.get_mut(&id)
        {
            // It is there as before, and charged.
            memory.released = false;
        }
        self.forget_memory(id);
        self.ask(released)
    }

    /// Gives the charge back when nothing is left of it.
    fn forget_memory(&mut self, id: PhysicalId) {
        let gone = |memory: &Memory| memory.released && memory.maps == 0;
        if self.physical.memory.get(&id).is_some_and(gone) {
            self.physical.memory.remove(&id).map(|memory| memory.charge);
        }
    }

    pub(super) fn map_memory(&mut self, request: &PhysicalMap) -> Result<(), CuResult> {
        let (at, bytes) = (request.pointer.0, request.bytes);
        room(self.physical.count(), self.lease.caps.allocations)?;
        let free = bytes > 0 && self.physical.is_free(at, bytes);
        let memory = self.physical.memory.get_mut(&request.memory);
        let memory = memory.filter(|memory| !memory.released && free);
        let memory = memory.ok_or(CuResult::INVALID_VALUE)?;
        let end = request.offset.checked_add(bytes);
        if end.is_none_or(|end| end > memory.bytes) {
            return Err(CuResult::INVALID_VALUE);
        }
        let (bytes_here, offset) = (size(bytes)?, size(request.offset)?);
        let driver = memory.driver;
        // SAFETY: free addresses of this session, and memory of it.
        let mapped = unsafe { (self.lease.driver.physical_map)(at, bytes_here, offset, driver, 0) };
        self.ask(mapped)?;
        if let Some(memory) = self.physical.memory.get_mut(&request.memory) {
            memory.maps += 1;
        }
        let mapping = Mapping { bytes, memory: request.memory, flags: 0 };
        self.physical.mapped.insert(at, mapping);
        Ok(())
    }

    /// The mappings that make up a range, which must begin and end where they do.
    fn whole(&self, at: u64, bytes: u64) -> Result<Vec<(u64, PhysicalId)>, CuResult> {
        let end = at.checked_add(bytes).ok_or(CuResult::INVALID_VALUE)?;
        let (mut next, mut found) = (at, Vec::new());
        while next < end {
            let mapping = self.physical.mapped.get(&next).ok_or(CuResult::INVALID_VALUE)?;
            found.push((next, mapping.memory));
            next = next.saturating_add(mapping.bytes);
        }
        if next == end && bytes > 0 { Ok(found) } else { Err(CuResult::INVALID_VALUE) }
    }

    pub(super) fn unmap_memory(&mut self, at: DevicePtr, bytes: u64) -> Result<(), CuResult> {
        let mappings = self.whole(at.0, bytes)?;
        // What uses it comes to its end first.
        let contexts: Vec<ContextId> = self.contexts.keys().copied().collect();
        for context in contexts {
            self.enter(context)?;
            // SAFETY: waits for the current context's work.
            self.ask(unsafe { (self.lease.driver.context_synchronize)() })?;
        }
        {
            let _gate = self.lease.ledger.close_gate();
            // SAFETY: whole mappings of this session.
            self.ask(unsafe { (self.lease.driver.physical_unmap)(at.0, size(bytes)?) })?;
        }
        for (at, memory) in mappings {
            self.physical.mapped.remove(&at);
            if let Some(memory) = self.physical.memory.get_mut(&memory) {
                memory.maps -= 1;
            }
            self.forget_memory(memory);
        }
        Ok(())
    }

    pub(super) fn set_access(&mut self, request: &PhysicalAccess) -> Result<(), CuResult> {
        let at = request.pointer.0;
        let mappings = self.whole(at, request.bytes)?;
        if !matches!(request.flags, 0 | 1 | READ_WRITE) {
            return Err(CuResult::INVALID_VALUE);
        }
        for (at, memory) in mappings {
            let memory = self.physical.memory.get(&memory).ok_or(CuResult::INVALID_VALUE)?;
            let access = MemoryAccess { flags: request.flags, ..write_access(memory.ordinal) };
            let mapping = self.physical.mapped.get(&at).ok_or(CuResult::INVALID_VALUE)?;
            let bytes = size(mapping.bytes)?;
            // SAFETY: a mapping of this session, for the GPU that it is of.
            let set =
                unsafe { (self.lease.driver.physical_access)(at, bytes, &raw const access, 1) };
            self.ask(set)?;
            if let Some(mapping) = self.physical.mapped.get_mut(&at) {
                mapping.flags = request.flags;
            }
        }
        Ok(())
    }

    /// The session ends: nothing is left mapped, and nothing of its memory.
    pub(super) fn forget_physical(&mut self) {
        let Physical { reserved, memory, mapped } = std::mem::take(&mut self.physical);
        let driver = &self.lease.driver;
        let gate = self.lease.ledger.close_gate();
        let small = |bytes| usize::try_from(bytes).unwrap_or(0);
        let mut kept = BTreeSet::new();
        // SAFETY: all of it is this session's, and no context of it has work any more.
        unsafe {
            for (at, mapping) in mapped {
                if !(driver.physical_unmap)(at, small(mapping.bytes)).is_success() {
                    kept.insert(mapping.memory);
                }
            }
            for (id, memory) in memory.iter().filter(|(_, memory)| !memory.released) {
                if !(driver.physical_release)(memory.driver).is_success() {
                    kept.insert(*id);
                }
            }
            for (at, bytes) in reserved {
                let _ = (driver.address_free)(at, small(bytes));
            }
        }
        drop(gate);
        for (id, memory) in memory {
            if kept.contains(&id) {
                self.lose([memory.charge]);
            }
        }
    }
}

fn write_access(ordinal: i32) -> MemoryAccess {
    MemoryAccess { location: MemoryLocation { kind: 1, id: ordinal }, flags: READ_WRITE }
}
