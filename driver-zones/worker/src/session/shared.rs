use gpuzone_cuda_abi::CuResult;
use gpuzone_wire::spec::{Call, ContextId, CopySharedToDevice, CopySharedToHost, HostId};
use gpuzone_wire::stats::Copied;

use super::Session;
use crate::host_room::Held;
use crate::shared::SharedMemory;

/// `CU_MEMHOSTREGISTER_PORTABLE`: for all contexts.
const PORTABLE: u32 = 1;

/// Memory that the session's tenant maps too.
pub(super) struct Host {
    memory: SharedMemory,
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
    ) -> Result<(), CuResult> {
        if bytes == 0 || self.hosts.contains_key(&id) {
            return Err(CuResult::INVALID_VALUE);
        }
        self.enter(call.context)?;
        let mut held = Held::none(&self.lease.pinned);
        // What the kernel takes is whole pages.
        let pages = bytes.checked_next_multiple_of(4096).ok_or(CuResult::OUT_OF_MEMORY)?;
        held.grow(pages)?;
        let size = usize::try_from(pages).map_err(|_| CuResult::OUT_OF_MEMORY)?;
        let memory = SharedMemory::create(size)?;
        // SAFETY: a mapping of this size, which is unregistered before it goes.
        let registered =
            unsafe { (self.lease.driver.host_register)(memory.address(), size, PORTABLE) };
        self.ask(registered)?;
        let mut host = Host { memory, registered: Some(call.context), _held: held };
        if let Err(error) = call.pieces.hand_over(host.memory.file()) {
            self.unregister(&mut host);
            return Err(error);
        }
        self.hosts.insert(id, host);
        Ok(())
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
