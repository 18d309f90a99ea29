use std::os::fd::AsFd;

use gpuzone_cuda_abi::CuResult;
use gpuzone_wire::spec::{
    Call, ContextId, CopySharedToDevice, CopySharedToHost, DevicePtr, HostId,
};
use gpuzone_wire::stats::Copied;

use super::{Session, room};
use crate::host_room::Held;
use crate::shared::SharedMemory;

/// `CU_MEMHOSTREGISTER_PORTABLE`: for all contexts.
const PORTABLE: u32 = 1;
/// `CU_MEMHOSTREGISTER_DEVICEMAP`: kernels find it at an address of the device's.
const DEVICE_MAP: u32 = 2;

/// Memory that the session's tenant maps too.
pub(super) struct Host {
    memory: SharedMemory,
    /// Where kernels find it; 0 where they do not.
    pointer: u64,
    /// In which context the driver knows it; `None` when that is gone.
    registered: Option<ContextId>,
    /// Held for its drop.
    _held: Held,
}

impl Session {
    pub(super) fn share_memory(
        &mut self,
        call: &mut Call<'_>,
        id: HostId,
        bytes: u64,
    ) -> Result<DevicePtr, CuResult> {
        if bytes == 0 || self.hosts.contains_key(&id) {
            return Err(CuResult::INVALID_VALUE);
        }
        room(self.hosts.len(), self.lease.caps.pinned_pieces)?;
        self.enter(call.context)?;
        let mut held = Held::none(&self.lease.pinned);
        // What the kernel takes is whole pages.
        let pages = bytes.checked_next_multiple_of(4096).ok_or(CuResult::OUT_OF_MEMORY)?;
        held.grow(pages)?;
        let size = usize::try_from(pages).map_err(|_| CuResult::OUT_OF_MEMORY)?;
        let mut memory = SharedMemory::create(size)?;
        let file = memory.take_file().ok_or(CuResult::OPERATING_SYSTEM)?;
        let flags = PORTABLE | DEVICE_MAP;
        // SAFETY: a mapping of this size, which is unregistered before it goes. Whole pages, with
        // nothing in them that is not the tenant's: kernels reach all of them.
        let registered =
            unsafe { (self.lease.driver.host_register)(memory.address(), size, flags) };
        self.ask(registered)?;
        let pointer = self.device_pointer(&memory);
        let mut host = Host { memory, pointer, registered: Some(call.context), _held: held };
        if let Err(error) = call.pieces.hand_over(file.as_fd()) {
            self.unregister(&mut host);
            return Err(error);
        }
        self.hosts.insert(id, host);
        Ok(DevicePtr(pointer))
    }

    /// Where kernels find memory that was just registered; 0 where they do not reach it, or where
    /// the address would tell where other memory of this process lies.
    fn device_pointer(&self, memory: &SharedMemory) -> u64 {
        let mut pointer = 0;
        if !memory.is_apart() {
            return 0;
        }
        // SAFETY: a place for the answer, and memory that the driver knows.
        let found = unsafe {
            let ask = self.lease.driver.host_device_pointer;
            ask(&raw mut pointer, memory.address(), 0)
        };
        if found.is_success() { pointer } else { 0 }
    }

    /// Whether all bytes from an address of the device's on are of one piece that the driver knows.
    pub(super) fn hosts_cover(&self, at: u64, end: u64) -> bool {
        let known = self.hosts.values().filter(|host| host.registered.is_some());
        let mut known = known.filter(|host| host.pointer != 0 && host.pointer <= at);
        known.any(|host| end - host.pointer <= host.memory.bytes())
    }

    /// Gives it back when no copy uses it any more.
    pub(super) fn end_sharing(&mut self, id: HostId) -> Result<(), CuResult> {
        let mut host = self.hosts.remove(&id).ok_or(CuResult::INVALID_VALUE)?;
        let contexts: Vec<ContextId> = self.contexts.keys().copied().collect();
        for context in contexts {
            if self.enter(context).is_ok() {
                // SAFETY: waits for the current context's work. Whether it failed shows later.
                let _ = unsafe { (self.lease.driver.context_synchronize)() };
            }
        }
        self.unregister(&mut host);
        Ok(())
    }

    fn unregister(&mut self, host: &mut Host) {
        if let Some(context) = host.registered.take()
            && self.enter(context).is_ok()
        {
            // SAFETY: memory that was registered in this context.
            let _ = unsafe { (self.lease.driver.host_unregister)(host.memory.address()) };
        }
    }

    /// A context is going, and with it what the driver knows by it. Its work must be done.
    pub(super) fn unregister_all(&mut self, context: ContextId) {
        let mut hosts = std::mem::take(&mut self.hosts);
        for host in hosts.values_mut().filter(|host| host.registered == Some(context)) {
            self.unregister(host);
        }
        self.hosts = hosts;
    }

    pub(super) fn copy_from_shared(
        &mut self,
        context: ContextId,
        request: &CopySharedToDevice,
    ) -> Result<(), CuResult> {
        let stream = self.stream(context, request.stream)?;
        self.enter(context)?;
        self.check_range(request.target, request.bytes)?;
        let host = self.hosts.get(&request.memory).ok_or(CuResult::INVALID_VALUE)?;
        let source = host.memory.part(request.offset, request.bytes)?;
        let bytes = usize::try_from(request.bytes).map_err(|_| CuResult::INVALID_VALUE)?;
        let target = request.target.0;
        // SAFETY: both ranges were checked; the memory stays mapped until its copies are done.
        let copied = unsafe { (self.lease.driver.copy_to_device)(target, source, bytes, stream) };
        self.ask(copied)?;
        self.lease.stats.add_copied(Copied::ToDevice, request.bytes);
        Ok(())
    }

    pub(super) fn copy_into_shared(
        &mut self,
        context: ContextId,
        request: &CopySharedToHost,
    ) -> Result<(), CuResult> {
        let stream = self.stream(context, request.stream)?;
        self.enter(context)?;
        self.check_range(request.source, request.bytes)?;
        let host = self.hosts.get(&request.memory).ok_or(CuResult::INVALID_VALUE)?;
        let target = host.memory.part(request.offset, request.bytes)?;
        let bytes = usize::try_from(request.bytes).map_err(|_| CuResult::INVALID_VALUE)?;
        let source = request.source.0;
        // SAFETY: as above.
        let copied = unsafe { (self.lease.driver.copy_to_host)(target, source, bytes, stream) };
        self.ask(copied)?;
        self.lease.stats.add_copied(Copied::FromDevice, request.bytes);
        Ok(())
    }
}
