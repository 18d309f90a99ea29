use std::ops::Bound;

use gpuzone_cuda_abi::{CUstream, CuResult};
use gpuzone_wire::ring::{Bulk, MAX_BULK};
use gpuzone_wire::spec::{
    Call, ContextId, CopyOnDevice, CopyToDevice, CopyToHost, DevicePtr, MemorySet, StreamId,
};
use gpuzone_wire::stats::Copied;

use super::{Allocation, Session, room};
use crate::ledger::Charge;

impl Session {
    pub(super) fn allocate(&mut self, context: ContextId, bytes: u64) -> Result<u64, CuResult> {
        room(self.allocations.len() + self.kept_blocks(), self.lease.caps.allocations)?;
        let (pointer, charge) = self.take_memory(context, bytes)?;
        let held = Allocation { context, bytes, charge, pool: None };
        self.allocations.insert(pointer, held);
        Ok(pointer)
    }

    /// Takes memory within the lease's limit. Nobody ever reads what was in it before.
    pub(super) fn take_memory(
        &mut self,
        context: ContextId,
        bytes: u64,
    ) -> Result<(u64, Charge), CuResult> {
        let size = usize::try_from(bytes).map_err(|_| CuResult::OUT_OF_MEMORY)?;
        if size == 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        let (device, zeroing) = self.enter(context).map(|c| (c.device, c.zeroing))?;
        let lease = self.lease.clone();
        let charge = lease.ledger.charge(device, bytes).map_err(|_| CuResult::OUT_OF_MEMORY)?;
        let mut pointer = 0;
        let allocated = {
            let _gate = lease.ledger.close_gate();
            // SAFETY: a place for the answer; the context is current.
            unsafe { (lease.driver.memory_allocate)(&raw mut pointer, size) }
        };
        self.ask(allocated)?;
        self.wait_for_turn(device);
        self.enter(context)?;
        // SAFETY: the memory just allocated, whole, and a stream of the current context.
        let zeroed = unsafe {
            let set = (lease.driver.set_8)(pointer, 0, size, zeroing);
            if set.is_success() { (lease.driver.stream_synchronize)(zeroing) } else { set }
        };
        lease.turns.end(device, None);
        if let Err(error) = self.ask(zeroed) {
            // SAFETY: the memory just allocated, known to nobody.
            let freed = unsafe { (lease.driver.memory_free)(pointer) };
            if !freed.is_success() {
                self.lose([charge]);
            }
            return Err(error);
        }
        Ok((pointer, charge))
    }

    pub(super) fn free(&mut self, pointer: DevicePtr) -> Result<(), CuResult> {
        let held = self.allocations.get(&pointer.0).ok_or(CuResult::INVALID_VALUE)?;
        let (context, pool) = (held.context, held.pool);
        self.enter(context)?;
        if pool.is_some_and(|pool| self.pools.contains_key(&pool)) {
            // SAFETY: waits for the current context's work, which may use it.
            self.ask(unsafe { (self.lease.driver.context_synchronize)() })?;
            self.keep(pointer, std::ptr::null_mut())?;
            return self.trim_to_thresholds();
        }
        let freed = {
            let _gate = self.lease.ledger.close_gate();
            // SAFETY: memory that the driver allocated in the current context.
            unsafe { (self.lease.driver.memory_free)(pointer.0) }
        };
        self.ask(freed)?;
        self.allocations.remove(&pointer.0);
        Ok(())
    }

    /// Whether `bytes` from `pointer` on lie within one live allocation or variable.
    pub(super) fn check_range(&self, pointer: DevicePtr, bytes: u64) -> Result<(), CuResult> {
        let end = pointer.0.checked_add(bytes).ok_or(CuResult::INVALID_VALUE)?;
        let upto = (Bound::Unbounded, Bound::Included(pointer.0));
        let allocation = self.allocations.range(upto).next_back();
        let variable = self.globals.range(upto).next_back();
        let ends = [
            allocation.map(|(base, held)| base.saturating_add(held.bytes)),
            variable.map(|(base, held)| base.saturating_add(held.bytes)),
        ];
        let fits = ends.into_iter().flatten().any(|held_end| end <= held_end);
        if fits || self.physical.cover(pointer.0, bytes) || self.hosts_cover(pointer.0, end) {
            Ok(())
        } else {
            Err(CuResult::INVALID_VALUE)
        }
    }

    pub(super) fn copy_in(
        &mut self,
        context: ContextId,
        request: &CopyToDevice,
        bulk: Bulk,
    ) -> Result<(), CuResult> {
        let stream = self.stream(context, request.stream)?;
        let device = self.enter(context)?.device;
        let lazy = self.lease.devices.get(device).is_some_and(|device| device.copies_lazily);
        if !bulk.is_empty() {
            self.check_range(request.target, bulk.len() as u64)?;
            self.expect_copies(context, bulk.len() as u64);
            let source = self.source(bulk);
            // SAFETY: the target lies within live memory of this session; the source lies in
            // the ring until the record is released, which is after this call. It was read by
            // then, or is waited for, or keeps its record.
            let copied = unsafe {
                (self.lease.driver.copy_to_device)(request.target.0, source.at, bulk.len(), stream)
            };
            self.ask(copied)?;
            self.lease.stats.add_copied(Copied::ToDevice, bulk.len() as u64);
            if source.is_read_later && !request.wait && !lazy {
                return self.keeps_reading(context, stream);
            }
        }
        if request.wait || lazy {
            self.wait_for(stream)?;
        }
        Ok(())
    }

    pub(super) fn copy_out(
        &mut self,
        call: &mut Call<'_>,
        request: &CopyToHost,
    ) -> Result<(), CuResult> {
        let stream = self.stream(call.context, request.stream)?;
        self.enter(call.context)?;
        self.check_range(request.source, request.bytes)?;
        self.expect_copies(call.context, request.bytes);
        self.before_waiting(stream);
        if request.bytes == 0 {
            return self.wait_for(stream);
        }
        let (mut at, mut left) = (request.source.0, request.bytes);
        let lengths = std::iter::from_fn(|| {
            let piece = usize::try_from(left).unwrap_or(MAX_BULK).min(MAX_BULK);
            left -= piece as u64;
            (piece > 0).then_some(piece)
        });
        self.send_pieces(call, stream, lengths, |driver, target, piece| {
            // SAFETY: the source was checked to lie in live memory of this session; the target has
            // room for the piece and stays mapped until the driver is done with it.
            let copied = unsafe { (driver.copy_to_host)(target.cast(), at, piece, stream) };
            at += piece as u64;
            copied
        })
    }

    pub(super) fn copy_within(
        &mut self,
        context: ContextId,
        request: &CopyOnDevice,
    ) -> Result<(), CuResult> {
        let stream = self.stream(context, request.stream)?;
        self.enter(context)?;
        if request.bytes == 0 {
            return Ok(());
        }
        self.check_range(request.target, request.bytes)?;
        self.check_range(request.source, request.bytes)?;
        let bytes = usize::try_from(request.bytes).map_err(|_| CuResult::INVALID_VALUE)?;
        self.work(context, request.stream, stream, |driver| {
            // SAFETY: both ranges lie in live memory of this session.
            unsafe { (driver.copy_on_device)(request.target.0, request.source.0, bytes, stream) }
        })?;
        self.lease.stats.add_copied(Copied::OnDevice, request.bytes);
        Ok(())
    }

    pub(super) fn set(&mut self, context: ContextId, request: &MemorySet) -> Result<(), CuResult> {
        let stream = self.stream(context, request.stream)?;
        self.enter(context)?;
        let (width, rows) = (request.width, request.rows);
        let bytes = request.count.checked_mul(width.into()).ok_or(CuResult::INVALID_VALUE)?;
        if bytes == 0 || rows == 0 {
            return Ok(());
        }
        let whole = (rows - 1).checked_mul(request.pitch).and_then(|b| b.checked_add(bytes));
        let apart = rows == 1 || request.pitch >= bytes;
        if !matches!(width, 1 | 2 | 4) || !apart {
            return Err(CuResult::INVALID_VALUE);
        }
        self.check_range(request.target, whole.ok_or(CuResult::INVALID_VALUE)?)?;
        let size = |n: u64| usize::try_from(n).map_err(|_| CuResult::INVALID_VALUE);
        let (count, pitch, rows) = (size(request.count)?, size(request.pitch)?, size(rows)?);
        let (at, value) = (request.target.0, request.value);
        let [low, second, _, _] = value.to_le_bytes();
        let half = u16::from_le_bytes([low, second]);
        self.work(context, request.stream, stream, |driver| {
            // SAFETY: the range lies in live memory of this session.
            unsafe {
                match (width, rows) {
                    (1, 1) => (driver.set_8)(at, low, count, stream),
                    (2, 1) => (driver.set_16)(at, half, count, stream),
                    (4, 1) => (driver.set_32)(at, value, count, stream),
                    (1, _) => (driver.set_rows_8)(at, pitch, low, count, rows, stream),
                    (2, _) => (driver.set_rows_16)(at, pitch, half, count, rows, stream),
                    _ => (driver.set_rows_32)(at, pitch, value, count, rows, stream),
                }
            }
        })
    }

    /// Waits for a stream of the current context.
    pub(super) fn wait_for(&mut self, stream: CUstream) -> Result<(), CuResult> {
        self.before_waiting(stream);
        // SAFETY: a stream of the current context, or one of CUDA's own.
        let waited = unsafe { (self.lease.driver.stream_synchronize)(stream) };
        let waited = self.ask(waited);
        self.settle_current();
        waited
    }

    /// The driver's stream behind a tenant's number.
    pub(super) fn stream(&self, context: ContextId, id: StreamId) -> Result<CUstream, CuResult> {
        match id {
            StreamId::DEFAULT | StreamId::LEGACY | StreamId::PER_THREAD => {
                Ok(std::ptr::without_provenance_mut(id.0 as usize))
            }
            _ => match self.streams.get(&id) {
                Some((of, stream)) if *of == context => Ok(*stream),
                _ => Err(CuResult::INVALID_HANDLE),
            },
        }
    }
}
