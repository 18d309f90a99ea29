//! The spec's calls, each with its piece of the session.

use gpuzone_cuda_abi::{CuResult, FunctionIndex};
use gpuzone_wire::spec::*;

use super::Session;

type Answer<T> = Result<T, CuResult>;

impl Handler for Session {
    fn context_create(&mut self, _: &mut Call<'_>, r: ContextCreate) -> Answer<ContextCreated> {
        self.create_context(&r)
    }

    fn context_destroy(&mut self, _: &mut Call<'_>, r: ContextDestroy) -> Answer<ContextDestroyed> {
        self.end_context(r.context).map(|()| ContextDestroyed {})
    }

    fn context_synchronize(
        &mut self,
        call: &mut Call<'_>,
        _: ContextSynchronize,
    ) -> Answer<ContextIdle> {
        self.enter(call.context)?;
        self.before_waiting_for_all(call.context);
        // SAFETY: waits for the current context's work.
        let waited = unsafe { (self.lease.driver.context_synchronize)() };
        let waited = self.ask(waited);
        self.settle_current();
        waited.and_then(|()| self.trim_to_thresholds()).map(|()| ContextIdle {})
    }

    fn context_limit(&mut self, call: &mut Call<'_>, r: ContextLimit) -> Answer<ContextLimitValue> {
        self.enter(call.context)?;
        let mut value = 0usize;
        // SAFETY: a place for the answer; the context is current.
        let asked = unsafe { (self.lease.driver.context_limit)(&raw mut value, r.limit) };
        self.ask(asked)?;
        Ok(ContextLimitValue { value: value as u64 })
    }

    fn context_set_limit(
        &mut self,
        call: &mut Call<'_>,
        r: ContextSetLimit,
    ) -> Answer<ContextLimitSet> {
        self.set_limit(call.context, r.limit, r.value).map(|()| ContextLimitSet {})
    }

    fn memory_allocate(
        &mut self,
        call: &mut Call<'_>,
        r: MemoryAllocate,
    ) -> Answer<MemoryAllocated> {
        let pointer = self.allocate(call.context, r.bytes)?;
        Ok(MemoryAllocated { pointer: DevicePtr(pointer) })
    }

    fn memory_free(&mut self, _: &mut Call<'_>, r: MemoryFree) -> Answer<()> {
        self.free(r.pointer)
    }

    fn memory_info(&mut self, call: &mut Call<'_>, _: MemoryInfo) -> Answer<MemoryInfoReply> {
        let device = self.enter(call.context)?.device;
        let (free, total) = self.lease.ledger.free_and_total(device);
        Ok(MemoryInfoReply { free, total })
    }

    fn copy_to_device(&mut self, call: &mut Call<'_>, r: CopyToDevice) -> Answer<()> {
        self.copy_in(call.context, &r, call.bulk)
    }

    fn copy_to_host(&mut self, call: &mut Call<'_>, r: CopyToHost) -> Answer<CopiedToHost> {
        let copied = self.copy_out(call, &r);
        self.settle_current();
        copied.map(|()| CopiedToHost {})
    }

    fn copy_on_device(&mut self, call: &mut Call<'_>, r: CopyOnDevice) -> Answer<()> {
        self.copy_within(call.context, &r)
    }

    fn memory_set(&mut self, call: &mut Call<'_>, r: MemorySet) -> Answer<()> {
        self.set(call.context, &r)
    }

    fn copy_rows_to_device(&mut self, call: &mut Call<'_>, r: CopyRowsToDevice) -> Answer<()> {
        self.copy_rows_in(call.context, &r, call.bulk)
    }

    fn copy_rows_to_host(
        &mut self,
        call: &mut Call<'_>,
        r: CopyRowsToHost,
    ) -> Answer<CopiedRowsToHost> {
        let copied = self.copy_rows_out(call, &r);
        self.settle_current();
        copied.map(|()| CopiedRowsToHost {})
    }

    fn copy_rows_on_device(&mut self, call: &mut Call<'_>, r: CopyRowsOnDevice) -> Answer<()> {
        self.copy_rows_within(call.context, &r)
    }

    fn host_allocate(&mut self, call: &mut Call<'_>, r: HostAllocate) -> Answer<HostAllocated> {
        self.share_memory(call, r.memory, r.bytes).map(|pointer| HostAllocated { pointer })
    }

    fn host_free(&mut self, _: &mut Call<'_>, r: HostFree) -> Answer<HostFreed> {
        self.end_sharing(r.memory).map(|()| HostFreed {})
    }

    fn copy_shared_to_device(&mut self, call: &mut Call<'_>, r: CopySharedToDevice) -> Answer<()> {
        self.copy_from_shared(call.context, &r)
    }

    fn copy_shared_to_host(&mut self, call: &mut Call<'_>, r: CopySharedToHost) -> Answer<()> {
        self.copy_into_shared(call.context, &r)
    }

    fn pool_create(&mut self, _: &mut Call<'_>, r: PoolCreate) -> Answer<PoolCreated> {
        self.create_pool(&r).map(|()| PoolCreated {})
    }

    fn pool_destroy(&mut self, _: &mut Call<'_>, r: PoolDestroy) -> Answer<()> {
        self.end_pool(r.pool)
    }

    fn pool_allocate(&mut self, call: &mut Call<'_>, r: PoolAllocate) -> Answer<PoolAllocated> {
        let pointer = self.allocate_of_pool(call.context, &r)?;
        Ok(PoolAllocated { pointer: DevicePtr(pointer) })
    }

    fn memory_free_async(&mut self, call: &mut Call<'_>, r: MemoryFreeAsync) -> Answer<()> {
        self.free_behind(call.context, &r)
    }

    fn pool_attribute(&mut self, _: &mut Call<'_>, r: PoolAttribute) -> Answer<PoolAttributeValue> {
        Ok(PoolAttributeValue { value: Session::pool_attribute(self, r.pool, r.attribute)? })
    }

    fn pool_set_attribute(
        &mut self,
        _: &mut Call<'_>,
        r: PoolSetAttribute,
    ) -> Answer<PoolAttributeSet> {
        self.set_pool_attribute(r.pool, r.attribute, r.value).map(|()| PoolAttributeSet {})
    }

    fn pool_trim(&mut self, _: &mut Call<'_>, r: PoolTrim) -> Answer<PoolTrimmed> {
        self.trim(r.pool, r.keep, false).map(|()| PoolTrimmed {})
    }

    fn physical_granularity(
        &mut self,
        _: &mut Call<'_>,
        r: PhysicalGranularity,
    ) -> Answer<Granularity> {
        Ok(Granularity { bytes: self.granularity(r.device, r.recommended)? })
    }

    fn address_reserve(&mut self, _: &mut Call<'_>, r: AddressReserve) -> Answer<AddressReserved> {
        let pointer = DevicePtr(self.reserve_addresses(r.bytes, r.alignment)?);
        Ok(AddressReserved { pointer })
    }

    fn address_free(&mut self, _: &mut Call<'_>, r: AddressFree) -> Answer<AddressFreed> {
        self.free_addresses(r.pointer, r.bytes).map(|()| AddressFreed {})
    }

    fn physical_create(
        &mut self,
        call: &mut Call<'_>,
        r: PhysicalCreate,
    ) -> Answer<PhysicalCreated> {
        self.create_memory(call.context, &r).map(|()| PhysicalCreated {})
    }

    fn physical_release(
        &mut self,
        _: &mut Call<'_>,
        r: PhysicalRelease,
    ) -> Answer<PhysicalReleased> {
        self.release_memory(r.memory).map(|()| PhysicalReleased {})
    }

    fn physical_map(&mut self, _: &mut Call<'_>, r: PhysicalMap) -> Answer<PhysicalMapped> {
        self.map_memory(&r).map(|()| PhysicalMapped {})
    }

    fn physical_unmap(&mut self, _: &mut Call<'_>, r: PhysicalUnmap) -> Answer<PhysicalUnmapped> {
        self.unmap_memory(r.pointer, r.bytes).map(|()| PhysicalUnmapped {})
    }

    fn physical_access(
        &mut self,
        _: &mut Call<'_>,
        r: PhysicalAccess,
    ) -> Answer<PhysicalAccessSet> {
        self.set_access(&r).map(|()| PhysicalAccessSet {})
    }

    fn module_data(&mut self, call: &mut Call<'_>, _: ModuleData) -> Answer<()> {
        self.collect_image(call.bulk)
    }

    fn module_load(&mut self, call: &mut Call<'_>, r: ModuleLoad) -> Answer<ModuleLoaded> {
        self.load_module(call.context, &r)
    }

    fn module_unload(&mut self, _: &mut Call<'_>, r: ModuleUnload) -> Answer<()> {
        self.unload_module(r.module)
    }

    fn module_function(
        &mut self,
        _: &mut Call<'_>,
        r: ModuleFunction,
    ) -> Answer<ModuleFunctionReply> {
        self.look_up_function(r)
    }

    fn module_kernels(&mut self, _: &mut Call<'_>, r: ModuleKernels) -> Answer<ModuleKernelNames> {
        Ok(ModuleKernelNames { names: self.name_kernels(r.module)? })
    }

    fn link(&mut self, call: &mut Call<'_>, r: Link) -> Answer<Linked> {
        Session::link(self, call, &r)
    }

    fn module_global(&mut self, _: &mut Call<'_>, r: ModuleGlobal) -> Answer<ModuleGlobalReply> {
        self.look_up_global(r)
    }

    fn function_set_attribute(
        &mut self,
        _: &mut Call<'_>,
        r: FunctionSetAttribute,
    ) -> Answer<FunctionAttributes> {
        Ok(FunctionAttributes { attributes: self.set_function_attribute(&r)? })
    }

    fn occupancy(&mut self, _: &mut Call<'_>, r: Occupancy) -> Answer<OccupancyReply> {
        Ok(OccupancyReply { blocks: self.ask_occupancy(&r)? })
    }

    fn occupancy_shared(
        &mut self,
        _: &mut Call<'_>,
        r: OccupancyShared,
    ) -> Answer<OccupancySharedReply> {
        Ok(OccupancySharedReply { bytes: self.ask_shared(&r)? })
    }

    fn host_channel(&mut self, call: &mut Call<'_>, _: HostChannel) -> Answer<HostChannelMade> {
        self.open_line(call).map(|()| HostChannelMade {})
    }

    fn host_function(&mut self, call: &mut Call<'_>, r: HostFunction) -> Answer<()> {
        self.run_host_function(call.context, &r)
    }

    fn launch(&mut self, call: &mut Call<'_>, r: Launch) -> Answer<()> {
        self.start_kernel(call.context, &r)
    }

    fn stream_create(&mut self, call: &mut Call<'_>, r: StreamCreate) -> Answer<()> {
        self.make_stream(call.context, r.stream, r.flags, r.priority)
    }

    fn stream_destroy(&mut self, _: &mut Call<'_>, r: StreamDestroy) -> Answer<()> {
        self.end_stream(r.stream)
    }

    fn stream_synchronize(
        &mut self,
        call: &mut Call<'_>,
        r: StreamSynchronize,
    ) -> Answer<StreamIdle> {
        let stream = self.stream(call.context, r.stream)?;
        self.enter(call.context)?;
        self.wait_for(stream)?;
        self.trim_to_thresholds().map(|()| StreamIdle {})
    }

    fn stream_query(&mut self, call: &mut Call<'_>, r: StreamQuery) -> Answer<StreamState> {
        self.query_stream(call.context, r.stream).map(|()| StreamState {})
    }

    fn stream_wait_event(&mut self, call: &mut Call<'_>, r: StreamWaitEvent) -> Answer<()> {
        self.have_stream_wait(call.context, r.stream, r.event)
    }

    fn event_create(&mut self, call: &mut Call<'_>, r: EventCreate) -> Answer<()> {
        self.make_event(call.context, r.event, r.flags)
    }

    fn event_destroy(&mut self, _: &mut Call<'_>, r: EventDestroy) -> Answer<()> {
        self.end_event(r.event)
    }

    fn event_record(&mut self, call: &mut Call<'_>, r: EventRecord) -> Answer<()> {
        self.record_event(call.context, &r)
    }

    fn event_synchronize(&mut self, _: &mut Call<'_>, r: EventSynchronize) -> Answer<EventDone> {
        self.wait_for_event(r.event).map(|()| EventDone {})
    }

    fn event_query(&mut self, _: &mut Call<'_>, r: EventQuery) -> Answer<EventState> {
        self.query_event(r.event).map(|()| EventState {})
    }

    fn event_elapsed(&mut self, _: &mut Call<'_>, r: EventElapsed) -> Answer<EventElapsedReply> {
        Ok(EventElapsedReply { milliseconds: self.elapsed(r.start, r.end)? })
    }

    fn prints(&mut self, _: &mut Call<'_>, _: Prints) -> Answer<Printed> {
        Ok(self.take_prints())
    }

    fn unsupported(&mut self, _: &mut Call<'_>, r: Unsupported) -> Answer<()> {
        if let Some(function) = FunctionIndex::new(r.function) {
            self.lease.stats.add_refused_call(function);
        }
        Ok(())
    }
}
