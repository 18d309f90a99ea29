//! Stream-ordered memory. A pool is the worker's own: it takes memory of the driver piece by piece,
//! each charged before, and keeps what is freed for whoever asks next. So what a pool has reserved
//! is known, and never more than the lease allows; a driver's pool tells afterwards.

use gpuzone_cuda_abi::{CUevent, CuResult, pool_attribute as P};
use gpuzone_wire::spec::{ContextId, DevicePtr, MemoryFreeAsync, PoolAllocate, PoolCreate, PoolId};

use super::{Allocation, Session, room};
use crate::ledger::Charge;

/// Memory of a pool comes in multiples of this.
const GRAIN: u64 = 512;

/// Memory that was freed and is kept.
struct Block {
    context: ContextId,
    pointer: u64,
    bytes: u64,
    charge: Charge,
    /// When the work that used it is done; null when it is.
    done: CUevent,
}

pub(super) struct Pool {
    device: usize,
    /// Most bytes that it may have reserved; 0 is as many as there are.
    most: u64,
    threshold: u64,
    reserved: u64,
    reserved_high: u64,
    used: u64,
    used_high: u64,
    /// Reuse policies as the program set them; memory is reused all the same.
    policies: [u64; 3],
    free: Vec<Block>,
}

impl Pool {
    fn new(device: usize, most: u64) -> Self {
        Self {
            device,
            most,
            threshold: 0,
            reserved: 0,
            reserved_high: 0,
            used: 0,
            used_high: 0,
            policies: [1; 3],
            free: Vec::new(),
        }
    }

    fn reserve(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_add(bytes);
        self.reserved_high = self.reserved_high.max(self.reserved);
    }

    fn use_more(&mut self, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
        self.used_high = self.used_high.max(self.used);
    }

    /// The smallest block of a context that fits and does not waste more than it gives.
    fn take(&mut self, context: ContextId, bytes: u64) -> Option<Block> {
        let fits = |block: &Block| {
            block.context == context && block.bytes >= bytes && block.bytes / 2 <= bytes
        };
        let fitting = self.free.iter().enumerate().filter(|(_, block)| fits(block));
        let (best, _) = fitting.min_by_key(|(_, block)| block.bytes)?;
        Some(self.free.swap_remove(best))
    }
}

impl Session {
    /// How many blocks pools keep; they count as allocations do.
    pub(super) fn kept_blocks(&self) -> usize {
        self.pools.values().map(|pool| pool.free.len()).sum()
    }

    /// Bytes of them.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn kept_bytes(&self) -> u64 {
        let blocks = self.pools.values().flat_map(|pool| &pool.free);
        blocks.map(|block| block.charge.bytes()).sum()
    }

    pub(super) fn create_pool(&mut self, request: &PoolCreate) -> Result<(), CuResult> {
        let device = usize::try_from(request.device).map_err(|_| CuResult::INVALID_DEVICE)?;
        if request.pool.0 < PoolId::FIRST || self.pools.contains_key(&request.pool) {
            return Err(CuResult::INVALID_VALUE);
        }
        if device >= self.lease.devices.len() {
            return Err(CuResult::INVALID_DEVICE);
        }
        room(self.pools.len(), self.lease.caps.pools)?;
        self.pools.insert(request.pool, Pool::new(device, request.most));
        Ok(())
    }

    /// The pool, which is made if it is a GPU's own.
    fn pool(&mut self, id: PoolId) -> Result<&mut Pool, CuResult> {
        if id.0 >= PoolId::FIRST {
            return self.pools.get_mut(&id).ok_or(CuResult::INVALID_VALUE);
        }
        let device = usize::try_from(id.0).map_err(|_| CuResult::INVALID_VALUE)?;
        if device >= self.lease.devices.len() {
            return Err(CuResult::INVALID_VALUE);
        }
        Ok(self.pools.entry(id).or_insert_with(|| Pool::new(device, 0)))
    }

    pub(super) fn allocate_of_pool(
        &mut self,
        context: ContextId,
        request: &PoolAllocate,
    ) -> Result<u64, CuResult> {
        let stream = self.stream(context, request.stream)?;
        let device = self.enter(context)?.device;
        let bytes = request.bytes.checked_next_multiple_of(GRAIN).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or(CuResult::INVALID_VALUE)?;
        room(self.allocations.len() + self.kept_blocks(), self.lease.caps.allocations)?;
        let pool = self.pool(request.pool)?;
        if pool.device != device {
            return Err(CuResult::INVALID_VALUE);
        }
        let Some(block) = pool.take(context, bytes) else {
            return self.reserve(context, request.pool, bytes);
        };
        if !block.done.is_null() {
            let driver = &self.lease.driver;
            // SAFETY: a stream of the current context and an event of it.
            let waits = unsafe { (driver.stream_wait_event)(stream, block.done, 0) };
            if let Err(error) = self.ask(waits) {
                self.pool(request.pool)?.free.push(block);
                return Err(error);
            }
            let lease = self.lease.clone();
            self.enter(context)?.spare.give(&lease.driver, block.done);
        }
        self.hand_out(request.pool, block.context, block.pointer, block.bytes, block.charge);
        Ok(block.pointer)
    }

    fn hand_out(&mut self, id: PoolId, context: ContextId, at: u64, bytes: u64, charge: Charge) {
        self.allocations.insert(at, Allocation { context, bytes, charge, pool: Some(id) });
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.use_more(bytes);
        }
    }

    /// Takes more memory for a pool; what pools keep goes back when there is no room.
    fn reserve(&mut self, context: ContextId, id: PoolId, bytes: u64) -> Result<u64, CuResult> {
        let over = |pool: &Pool| pool.most > 0 && pool.reserved.saturating_add(bytes) > pool.most;
        if over(self.pool(id)?) {
            self.trim(id, 0, true)?;
            if over(self.pool(id)?) {
                return Err(CuResult::OUT_OF_MEMORY);
            }
        }
        let taken = match self.take_memory(context, bytes) {
            Err(CuResult::OUT_OF_MEMORY) => {
                let pools: Vec<PoolId> = self.pools.keys().copied().collect();
                pools.into_iter().try_for_each(|pool| self.trim(pool, 0, true))?;
                self.take_memory(context, bytes)
            }
            taken => taken,
        };
        let (pointer, charge) = taken?;
        self.pool(id)?.reserve(bytes);
        self.hand_out(id, context, pointer, bytes, charge);
        Ok(pointer)
    }

    pub(super) fn free_behind(
        &mut self,
        context: ContextId,
        request: &MemoryFreeAsync,
    ) -> Result<(), CuResult> {
        let stream = self.stream(context, request.stream)?;
        self.enter(context)?;
        let held = self.allocations.get(&request.pointer.0).ok_or(CuResult::INVALID_VALUE)?;
        if held.context != context {
            return Err(CuResult::INVALID_VALUE);
        }
        if held.pool.is_none_or(|pool| !self.pools.contains_key(&pool)) {
            // No pool keeps it: its last use is waited for.
            self.wait_for(stream)?;
            return self.free(request.pointer);
        }
        let done = self.mark(context, stream)?;
        self.keep(request.pointer, done)
    }

    /// Puts an allocation back into its pool.
    pub(super) fn keep(&mut self, pointer: DevicePtr, done: CUevent) -> Result<(), CuResult> {
        let held = self.allocations.remove(&pointer.0).ok_or(CuResult::INVALID_VALUE)?;
        let Allocation { context, bytes, charge, pool } = held;
        let pool = pool.and_then(|pool| self.pools.get_mut(&pool));
        let pool = pool.ok_or(CuResult::INVALID_VALUE)?;
        pool.used = pool.used.saturating_sub(bytes);
        pool.free.push(Block { context, pointer: pointer.0, bytes, charge, done });
        Ok(())
    }

    /// Gives back what a pool keeps until it has reserved no more than `keep`. What is still in
    /// use is waited for, or stays.
    pub(super) fn trim(&mut self, id: PoolId, keep: u64, wait: bool) -> Result<(), CuResult> {
        let pool = self.pool(id)?;
        let blocks = std::mem::take(&mut pool.free);
        let mut reserved = pool.reserved;
        let mut kept = Vec::new();
        for block in blocks {
            let goes = reserved > keep && self.enter(block.context).is_ok() && {
                let driver = &self.lease.driver;
                // SAFETY: an event of the current context.
                block.done.is_null()
                    || wait && unsafe { (driver.event_synchronize)(block.done) }.is_success()
                    || !wait && unsafe { (driver.event_query)(block.done) }.is_success()
            };
            if goes {
                reserved -= block.bytes;
                self.release(block);
            } else {
                kept.push(block);
            }
        }
        let pool = self.pool(id)?;
        pool.reserved = reserved;
        pool.free = kept;
        Ok(())
    }

    fn release(&mut self, block: Block) {
        let lease = self.lease.clone();
        let context = self.contexts.get_mut(&block.context).filter(|_| !block.done.is_null());
        if let Some(context) = context {
            context.spare.give(&lease.driver, block.done);
        }
        let _gate = lease.ledger.close_gate();
        // SAFETY: memory of the current context, in no table any more.
        let freed = unsafe { (lease.driver.memory_free)(block.pointer) };
        if !freed.is_success() {
            self.lose([block.charge]);
        }
    }

    /// Work was waited for: pools give back what they need not keep.
    pub(super) fn trim_to_thresholds(&mut self) -> Result<(), CuResult> {
        let over = |pool: &Pool| !pool.free.is_empty() && pool.reserved > pool.threshold;
        let over = self.pools.iter().filter(|(_, pool)| over(pool));
        let over: Vec<(PoolId, u64)> = over.map(|(id, pool)| (*id, pool.threshold)).collect();
        over.into_iter().try_for_each(|(id, threshold)| self.trim(id, threshold, false))
    }

    pub(super) fn end_pool(&mut self, id: PoolId) -> Result<(), CuResult> {
        if id.0 < PoolId::FIRST {
            return Err(CuResult::INVALID_VALUE);
        }
        self.trim(id, 0, true)?;
        self.pools.remove(&id).ok_or(CuResult::INVALID_VALUE)?;
        // What came from it and is in use goes back to the driver when it is freed: the number may
        // be another pool's by then.
        for held in self.allocations.values_mut().filter(|held| held.pool == Some(id)) {
            held.pool = None;
        }
        Ok(())
    }

    /// A context is gone, and with it what pools had of it. Answers the charges.
    pub(super) fn forget_blocks(&mut self, context: ContextId) -> Vec<Charge> {
        for held in self.allocations.values().filter(|held| held.context == context) {
            if let Some(pool) = held.pool.and_then(|pool| self.pools.get_mut(&pool)) {
                pool.used = pool.used.saturating_sub(held.bytes);
                pool.reserved = pool.reserved.saturating_sub(held.bytes);
            }
        }
        let mut charges = Vec::new();
        for pool in self.pools.values_mut() {
            for block in std::mem::take(&mut pool.free) {
                if block.context == context {
                    pool.reserved = pool.reserved.saturating_sub(block.bytes);
                    charges.push(block.charge);
                } else {
                    pool.free.push(block);
                }
            }
        }
        charges
    }

    pub(super) fn pool_attribute(&mut self, id: PoolId, which: u32) -> Result<u64, CuResult> {
        let pool = self.pool(id)?;
        Ok(match which {
            1..=3 => pool.policies[which as usize - 1],
            P::RELEASE_THRESHOLD => pool.threshold,
            P::RESERVED_MEM_CURRENT => pool.reserved,
            P::RESERVED_MEM_HIGH => pool.reserved_high,
            P::USED_MEM_CURRENT => pool.used,
            P::USED_MEM_HIGH => pool.used_high,
            _ => return Err(CuResult::INVALID_VALUE),
        })
    }

    pub(super) fn set_pool_attribute(
        &mut self,
        id: PoolId,
        which: u32,
        value: u64,
    ) -> Result<(), CuResult> {
        let pool = self.pool(id)?;
        match which {
            1..=3 => pool.policies[which as usize - 1] = u64::from(value != 0),
            P::RELEASE_THRESHOLD => pool.threshold = value,
            // A mark is set back to what there is.
            P::RESERVED_MEM_HIGH if value == 0 => pool.reserved_high = pool.reserved,
            P::USED_MEM_HIGH if value == 0 => pool.used_high = pool.used,
            _ => return Err(CuResult::INVALID_VALUE),
        }
        Ok(())
    }
}
