//! The table.

use gpuzone_cuda_abi::CuResult;

use super::{
    Call, ContextId, DevicePtr, EventId, FunctionId, HostId, JitSetting, Kind, LaunchSetting,
    LinkInput, ModuleId, ParamInfo, PhysicalId, PoolId, Request, StreamId, Supported,
};
use crate::codec::{DecodeError, Field, Source, fields};

macro_rules! calls {
    (
        local { $($local:literal)* }
        $(
            $(#[$meta:meta])*
            $kind:ident $method:ident: $request:ident [$($symbol:literal)*]
                { $($field:ident: $type:ty),* $(,)? }
                $(-> $reply:ident { $($answer:ident: $answer_type:ty),* $(,)? })?
        )*
    ) => {
        /// Numbers of the calls.
        #[repr(u16)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the requests of the same names have the docs")]
        pub enum Opcode { $($request),* }

        impl Opcode {
            /// All calls, by number.
            pub const ALL: &[Self] = &[$(Self::$request),*];

            /// The call with this number.
            ///
            /// # Errors
            /// When there is none.
            pub fn of(number: u16) -> Result<Self, DecodeError> {
                Self::ALL.get(usize::from(number)).copied().ok_or(DecodeError::Opcode(number))
            }

            /// How it is served.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$request => Kind::$kind),* }
            }
        }

        /// Every supported function of the driver API.
        pub const SUPPORT: &[Supported] = &[
            $(Supported { symbol: $local, kind: Kind::Local },)*
            $($(Supported { symbol: $symbol, kind: Kind::$kind },)*)*
        ];

        $(
            $(#[$meta])*
            #[derive(Clone, Debug, PartialEq)]
            #[allow(missing_docs, reason = "fields bear the names of CUDA's parameters")]
            pub struct $request { $(pub $field: $type),* }
            fields!($request { $($field),* });

            $(
                #[doc = concat!("What [`", stringify!($request), "`] is answered.")]
                #[derive(Clone, Debug, PartialEq)]
                #[allow(missing_docs, reason = "fields bear the names of CUDA's parameters")]
                pub struct $reply { $(pub $answer: $answer_type),* }
                fields!($reply { $($answer),* });
            )?

            impl Request for $request {
                const OPCODE: Opcode = Opcode::$request;
                type Reply = calls!(@reply $($reply)?);
            }
        )*

        /// Who does the calls: the worker.
        pub trait Handler {
            $(
                $(#[$meta])*
                ///
                /// # Errors
                /// What the driver or the lease's limits say.
                fn $method(
                    &mut self,
                    call: &mut Call<'_>,
                    request: $request,
                ) -> Result<calls!(@reply $($reply)?), CuResult>;
            )*
        }

        /// Decodes a call, has it done, and appends its answer to `answer`.
        ///
        /// # Errors
        /// When the bytes are no such call; a call that failed is an `Ok` with its error.
        pub fn dispatch(
            handler: &mut dyn Handler,
            opcode: Opcode,
            control: &[u8],
            call: &mut Call<'_>,
            answer: &mut Vec<u8>,
        ) -> Result<CuResult, DecodeError> {
            let mut source = Source::new(control);
            match opcode {
                $(Opcode::$request => {
                    let request = $request::get(&mut source)?;
                    source.finish()?;
                    match handler.$method(call, request) {
                        Ok(reply) => {
                            Field::put(&reply, answer);
                            Ok(CuResult::SUCCESS)
                        }
                        Err(error) => Ok(error),
                    }
                })*
            }
        }
    };
    (@reply) => { () };
    (@reply $reply:ident) => { $reply };
}

calls! {
    local {
        "cuInit" "cuDriverGetVersion" "cuGetErrorName" "cuGetErrorString"
        "cuGetProcAddress" "cuGetProcAddress_v2" "cuModuleGetLoadingMode"
        "cuDeviceGetCount" "cuDeviceGet" "cuDeviceGetName" "cuDeviceGetUuid" "cuDeviceGetUuid_v2"
        "cuDeviceTotalMem_v2" "cuDeviceGetAttribute" "cuDeviceComputeCapability"
        "cuDeviceGetPCIBusId" "cuDeviceGetByPCIBusId" "cuDeviceCanAccessPeer"
        "cuDeviceGetP2PAttribute" "cuDeviceGetProperties" "cuDeviceGetExecAffinitySupport"
        "cuDevicePrimaryCtxGetState" "cuDevicePrimaryCtxSetFlags" "cuDevicePrimaryCtxSetFlags_v2"
        "cuCtxGetCurrent" "cuCtxSetCurrent" "cuCtxPushCurrent_v2" "cuCtxPopCurrent_v2"
        "cuCtxGetDevice" "cuCtxGetFlags" "cuCtxGetId" "cuCtxGetApiVersion"
        "cuCtxGetDevice_v2" "cuCtxSetFlags" "cuCtxAttach" "cuCtxDetach"
        "cuCtxGetSharedMemConfig" "cuCtxSetSharedMemConfig"
        "cuCtxGetStreamPriorityRange" "cuCtxGetCacheConfig" "cuCtxSetCacheConfig"
        "cuMemHostGetFlags" "cuMemHostRegister_v2" "cuMemHostUnregister" "cuMemHostGetDevicePointer_v2"
        "cuDeviceGetDefaultMemPool" "cuDeviceGetMemPool" "cuDeviceSetMemPool"
        "cuMemPoolGetAccess" "cuMemPoolSetAccess" "cuMemGetAccess"
        "cuMemGetAllocationPropertiesFromHandle" "cuMemRetainAllocationHandle"
        "cuMemGetAddressRange_v2" "cuPointerGetAttribute" "cuPointerGetAttributes"
        "cuFuncGetAttribute" "cuFuncGetModule" "cuFuncGetName" "cuFuncGetParamInfo"
        "cuFuncIsLoaded" "cuFuncLoad" "cuFuncSetCacheConfig" "cuFuncSetSharedMemConfig"
        "cuLibraryGetKernel" "cuKernelGetLibrary" "cuKernelGetName" "cuKernelSetCacheConfig"
        "cuLinkCreate" "cuLinkCreate_v2" "cuLinkAddData" "cuLinkAddData_v2" "cuLinkAddFile"
        "cuLinkAddFile_v2" "cuLinkDestroy"
        "cuStreamGetFlags" "cuStreamGetPriority" "cuStreamGetCtx" "cuStreamGetId"
        "cuStreamGetDevice" "cuStreamIsCapturing" "cuStreamGetCtx_v2"
        "cuGraphAddChildGraphNode" "cuGraphAddDependencies" "cuGraphAddDependencies_v2"
        "cuGraphAddEmptyNode" "cuGraphAddEventRecordNode" "cuGraphAddEventWaitNode"
        "cuGraphAddHostNode" "cuGraphAddKernelNode" "cuGraphAddKernelNode_v2"
        "cuGraphAddMemcpyNode" "cuGraphAddMemsetNode" "cuGraphClone" "cuGraphCreate"
        "cuGraphDestroy" "cuGraphDestroyNode" "cuGraphExecDestroy" "cuGraphExecGetFlags"
        "cuGraphExecHostNodeSetParams" "cuGraphExecKernelNodeSetParams"
        "cuGraphExecKernelNodeSetParams_v2" "cuGraphExecMemcpyNodeSetParams"
        "cuGraphExecMemsetNodeSetParams" "cuGraphExecUpdate" "cuGraphExecUpdate_v2"
        "cuGraphGetEdges" "cuGraphGetEdges_v2" "cuGraphGetNodes" "cuGraphGetRootNodes"
        "cuGraphHostNodeSetParams" "cuGraphInstantiateWithFlags" "cuGraphInstantiateWithParams"
        "cuGraphInstantiate_v2"
        "cuGraphKernelNodeSetParams" "cuGraphKernelNodeSetParams_v2" "cuGraphMemcpyNodeSetParams"
        "cuGraphMemsetNodeSetParams" "cuGraphNodeGetDependencies" "cuGraphNodeGetDependencies_v2"
        "cuGraphNodeGetDependentNodes" "cuGraphNodeGetDependentNodes_v2" "cuGraphNodeGetType"
        "cuGraphRemoveDependencies" "cuGraphRemoveDependencies_v2" "cuGraphUpload"
        "cuStreamBeginCapture" "cuStreamBeginCapture_v2" "cuStreamEndCapture"
        "cuStreamGetCaptureInfo_v2" "cuStreamGetCaptureInfo_v3"
        "cuThreadExchangeStreamCaptureMode"
        "cuStreamGetAttribute" "cuStreamSetAttribute" "cuStreamCopyAttributes"
        "cuGraphKernelNodeGetParams" "cuGraphKernelNodeGetParams_v2" "cuGraphMemcpyNodeGetParams"
        "cuGraphMemsetNodeGetParams" "cuGraphHostNodeGetParams"
        "cuGraphEventRecordNodeGetEvent" "cuGraphEventRecordNodeSetEvent"
        "cuGraphEventWaitNodeGetEvent" "cuGraphEventWaitNodeSetEvent"
        "cuGraphExecEventRecordNodeSetEvent" "cuGraphExecEventWaitNodeSetEvent"
        "cuGraphExecChildGraphNodeSetParams" "cuGraphNodeFindInClone" "cuGraphNodeGetEnabled"
        "cuGraphNodeSetEnabled" "cuGraphInstantiate" "cuStreamBeginCaptureToGraph"
        "cuStreamGetCaptureInfo" "cuStreamUpdateCaptureDependencies"
        "cuStreamUpdateCaptureDependencies_v2" "cuCtxPushCurrent" "cuCtxPopCurrent"
        "cuMemHostRegister"
    }

    /// Makes a context on a GPU; the number must be free.
    Replied context_create: ContextCreate
        ["cuCtxCreate" "cuCtxCreate_v2" "cuCtxCreate_v3" "cuCtxCreate_v4" "cuDevicePrimaryCtxRetain"]
        { context: ContextId, device: u32, flags: u32 }
        -> ContextCreated { least_priority: i32, greatest_priority: i32 }
    /// Ends a context and all that is in it.
    Replied context_destroy: ContextDestroy
        ["cuCtxDestroy" "cuCtxDestroy_v2" "cuDevicePrimaryCtxRelease" "cuDevicePrimaryCtxRelease_v2"
         "cuDevicePrimaryCtxReset" "cuDevicePrimaryCtxReset_v2"]
        { context: ContextId } -> ContextDestroyed {}
    /// Waits for all work of the context.
    Replied context_synchronize: ContextSynchronize
        ["cuCtxSynchronize" "cuCtxSynchronize_v2"] {} -> ContextIdle {}
    /// Asks for one of the context's limits.
    Replied context_limit: ContextLimit ["cuCtxGetLimit"]
        { limit: u32 } -> ContextLimitValue { value: u64 }
    /// Sets one of them; what it takes of the device is charged.
    Replied context_set_limit: ContextSetLimit ["cuCtxSetLimit"]
        { limit: u32, value: u64 } -> ContextLimitSet {}

    /// Takes memory of the lease; it is zeroed.
    Replied memory_allocate: MemoryAllocate ["cuMemAlloc_v2" "cuMemAllocPitch_v2"]
        { bytes: u64 } -> MemoryAllocated { pointer: DevicePtr }
    /// Gives memory back, after the work that was given before.
    Posted memory_free: MemoryFree ["cuMemFree_v2"] { pointer: DevicePtr }
    /// Asks what the lease has and what of it is free.
    Replied memory_info: MemoryInfo ["cuMemGetInfo_v2"]
        {} -> MemoryInfoReply { free: u64, total: u64 }
    /// Copies the record's bulk bytes to a device; `wait` until they are there.
    Posted copy_to_device: CopyToDevice ["cuMemcpyHtoDAsync_v2" "cuMemcpyHtoD_v2"]
        { target: DevicePtr, stream: StreamId, wait: bool }
    /// Copies from a device; the bytes are the answer's pieces.
    Replied copy_to_host: CopyToHost
        ["cuMemcpyDtoH_v2" "cuMemcpyDtoHAsync_v2" "cuMemcpy" "cuMemcpyAsync"]
        { source: DevicePtr, bytes: u64, stream: StreamId } -> CopiedToHost {}
    /// Copies within devices.
    Posted copy_on_device: CopyOnDevice ["cuMemcpyDtoD_v2" "cuMemcpyDtoDAsync_v2"]
        { target: DevicePtr, source: DevicePtr, bytes: u64, stream: StreamId }
    /// Writes a value of 1, 2 or 4 bytes `count` times in each of so many rows.
    Posted memory_set: MemorySet
        ["cuMemsetD8_v2" "cuMemsetD16_v2" "cuMemsetD32_v2"
         "cuMemsetD8Async" "cuMemsetD16Async" "cuMemsetD32Async"
         "cuMemsetD2D8_v2" "cuMemsetD2D16_v2" "cuMemsetD2D32_v2"
         "cuMemsetD2D8Async" "cuMemsetD2D16Async" "cuMemsetD2D32Async"]
        { target: DevicePtr, value: u32, width: u32, count: u64, pitch: u64, rows: u64,
          stream: StreamId }
    /// Copies the record's bulk bytes, rows of one slice without gaps, to a device.
    Posted copy_rows_to_device: CopyRowsToDevice
        ["cuMemcpy2D_v2" "cuMemcpy2DUnaligned_v2" "cuMemcpy2DAsync_v2"
         "cuMemcpy3D_v2" "cuMemcpy3DAsync_v2"]
        { target: DevicePtr, pitch: u64, width: u64, rows: u64, stream: StreamId }
    /// Copies rows of one slice from a device; the answer's pieces are whole rows without gaps.
    Replied copy_rows_to_host: CopyRowsToHost []
        { source: DevicePtr, pitch: u64, width: u64, rows: u64, stream: StreamId }
        -> CopiedRowsToHost {}
    /// Copies rows of one slice within devices.
    Posted copy_rows_on_device: CopyRowsOnDevice []
        { target: DevicePtr, target_pitch: u64, source: DevicePtr, source_pitch: u64,
          width: u64, rows: u64, stream: StreamId }

    /// Takes host memory that both sides share; its file comes over the socket before the answer.
    /// `pointer` is where kernels find it, 0 where they do not reach it.
    Replied host_allocate: HostAllocate ["cuMemHostAlloc" "cuMemAllocHost" "cuMemAllocHost_v2"]
        { memory: HostId, bytes: u64 } -> HostAllocated { pointer: DevicePtr }
    /// Gives shared host memory back, once nothing uses it.
    Replied host_free: HostFree ["cuMemFreeHost"] { memory: HostId } -> HostFreed {}
    /// Copies from shared host memory to a device.
    Posted copy_shared_to_device: CopySharedToDevice []
        { target: DevicePtr, memory: HostId, offset: u64, bytes: u64, stream: StreamId }
    /// Copies from a device to shared host memory.
    Posted copy_shared_to_host: CopySharedToHost []
        { memory: HostId, offset: u64, source: DevicePtr, bytes: u64, stream: StreamId }

    /// Makes a pool of device memory; the number must be free. Those of GPUs are made by their use.
    Replied pool_create: PoolCreate ["cuMemPoolCreate"]
        { pool: PoolId, device: u32, most: u64 } -> PoolCreated {}
    /// Ends a pool, once all that came from it is given back.
    Posted pool_destroy: PoolDestroy ["cuMemPoolDestroy"] { pool: PoolId }
    /// Takes memory of a pool, for work behind that of the stream.
    Replied pool_allocate: PoolAllocate ["cuMemAllocAsync" "cuMemAllocFromPoolAsync"]
        { pool: PoolId, bytes: u64, stream: StreamId } -> PoolAllocated { pointer: DevicePtr }
    /// Gives memory back behind the stream's work.
    Posted memory_free_async: MemoryFreeAsync ["cuMemFreeAsync"]
        { pointer: DevicePtr, stream: StreamId }
    /// Asks for one of a pool's attributes.
    Replied pool_attribute: PoolAttribute ["cuMemPoolGetAttribute"]
        { pool: PoolId, attribute: u32 } -> PoolAttributeValue { value: u64 }
    /// Sets one of them.
    Replied pool_set_attribute: PoolSetAttribute ["cuMemPoolSetAttribute"]
        { pool: PoolId, attribute: u32, value: u64 } -> PoolAttributeSet {}
    /// Gives back what a pool has reserved and does not use, but for some.
    Replied pool_trim: PoolTrim ["cuMemPoolTrimTo"] { pool: PoolId, keep: u64 } -> PoolTrimmed {}

    /// Asks in what multiples memory is made and mapped.
    Replied physical_granularity: PhysicalGranularity ["cuMemGetAllocationGranularity"]
        { device: u32, recommended: bool } -> Granularity { bytes: u64 }
    /// Takes addresses, without memory behind them.
    Replied address_reserve: AddressReserve ["cuMemAddressReserve"]
        { bytes: u64, alignment: u64 } -> AddressReserved { pointer: DevicePtr }
    /// Gives addresses back.
    Replied address_free: AddressFree ["cuMemAddressFree"]
        { pointer: DevicePtr, bytes: u64 } -> AddressFreed {}
    /// Takes memory without addresses; it is zeroed. The number must be free.
    Replied physical_create: PhysicalCreate ["cuMemCreate"]
        { memory: PhysicalId, device: u32, bytes: u64 } -> PhysicalCreated {}
    /// Gives it back, once nothing of it is mapped.
    Replied physical_release: PhysicalRelease ["cuMemRelease"]
        { memory: PhysicalId } -> PhysicalReleased {}
    /// Puts memory behind addresses.
    Replied physical_map: PhysicalMap ["cuMemMap"]
        { pointer: DevicePtr, bytes: u64, memory: PhysicalId, offset: u64 } -> PhysicalMapped {}
    /// Takes it away again.
    Replied physical_unmap: PhysicalUnmap ["cuMemUnmap"]
        { pointer: DevicePtr, bytes: u64 } -> PhysicalUnmapped {}
    /// Says what may be done at mapped addresses: nothing (0), reading (1), writing too (3).
    Replied physical_access: PhysicalAccess ["cuMemSetAccess"]
        { pointer: DevicePtr, bytes: u64, flags: u32 } -> PhysicalAccessSet {}

    /// Appends the record's bulk bytes to the image of the module that is loaded next.
    Posted module_data: ModuleData [] {}
    /// Loads the collected image. `loaded` is the driver's answer: the logs come either way.
    /// `prints`: its kernels may print, which is asked for by [`Prints`] from then on.
    Replied module_load: ModuleLoad
        ["cuModuleLoad" "cuModuleLoadData" "cuModuleLoadDataEx" "cuModuleLoadFatBinary"
         "cuLibraryLoadData" "cuLibraryLoadFromFile" "cuLibraryGetModule"]
        { module: ModuleId, settings: Vec<JitSetting>, info_log: u32, error_log: u32 }
        -> ModuleLoaded { loaded: u32, prints: bool, info_log: Vec<u8>, error_log: Vec<u8> }
    /// Unloads a module, its kernels and variables.
    Posted module_unload: ModuleUnload ["cuModuleUnload" "cuLibraryUnload"] { module: ModuleId }
    /// Names a module's kernels.
    Replied module_kernels: ModuleKernels
        ["cuModuleGetFunctionCount" "cuModuleEnumerateFunctions" "cuLibraryGetKernelCount"
         "cuLibraryEnumerateKernels"]
        { module: ModuleId } -> ModuleKernelNames { names: Vec<String> }
    /// Links the collected images, which lie one behind the other. What is made comes in pieces.
    Replied link: Link ["cuLinkComplete"]
        { inputs: Vec<LinkInput>, settings: Vec<JitSetting>, info_log: u32, error_log: u32 }
        -> Linked { linked: u32, info_log: Vec<u8>, error_log: Vec<u8> }
    /// Looks up a kernel; `attributes` are those of `CUfunction_attribute`, by number.
    Replied module_function: ModuleFunction
        ["cuModuleGetFunction" "cuKernelGetFunction" "cuKernelGetAttribute" "cuKernelGetParamInfo"]
        { module: ModuleId, function: FunctionId, name: String }
        -> ModuleFunctionReply { parameters: Vec<ParamInfo>, attributes: Vec<i32> }
    /// Looks up a variable.
    Replied module_global: ModuleGlobal
        ["cuModuleGetGlobal_v2" "cuLibraryGetGlobal"]
        { module: ModuleId, name: String } -> ModuleGlobalReply { pointer: DevicePtr, bytes: u64 }
    /// Changes how a kernel runs; answers its attributes.
    Replied function_set_attribute: FunctionSetAttribute
        ["cuFuncSetAttribute" "cuKernelSetAttribute"]
        { function: FunctionId, attribute: i32, value: i32 }
        -> FunctionAttributes { attributes: Vec<i32> }
    /// Asks how many blocks of a kernel run at once on a multiprocessor.
    Replied occupancy: Occupancy
        ["cuOccupancyMaxActiveBlocksPerMultiprocessor"
         "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags"
         "cuOccupancyMaxPotentialBlockSize" "cuOccupancyMaxPotentialBlockSizeWithFlags"]
        { function: FunctionId, block: i32, dynamic_shared: u64, flags: u32 }
        -> OccupancyReply { blocks: i32 }
    /// Asks how much dynamic shared memory blocks may have so that some of them run at once.
    Replied occupancy_shared: OccupancyShared ["cuOccupancyAvailableDynamicSMemPerBlock"]
        { function: FunctionId, blocks: i32, block: i32 } -> OccupancySharedReply { bytes: u64 }
    /// Starts a kernel; `arguments` are all of them at their offsets.
    Posted launch: Launch
        ["cuLaunchKernel" "cuLaunchKernelEx" "cuLaunchCooperativeKernel" "cuGraphLaunch"]
        { function: FunctionId, stream: StreamId, grid: [u32; 3], block: [u32; 3], shared: u32,
          settings: Vec<LaunchSetting>, arguments: Vec<u8> }

    /// Has the worker say over a socket of its own, which comes before the answer, when the
    /// tenant's functions are to run.
    Replied host_channel: HostChannel [] {} -> HostChannelMade {}
    /// Runs a function of the tenant's behind the stream's work, before what comes after.
    Posted host_function: HostFunction ["cuLaunchHostFunc" "cuStreamAddCallback"]
        { function: u64, stream: StreamId }

    /// Makes a stream; the number must be free.
    Posted stream_create: StreamCreate ["cuStreamCreate" "cuStreamCreateWithPriority"]
        { stream: StreamId, flags: u32, priority: i32 }
    /// Ends a stream.
    Posted stream_destroy: StreamDestroy ["cuStreamDestroy" "cuStreamDestroy_v2"] { stream: StreamId }
    /// Waits for a stream's work.
    Replied stream_synchronize: StreamSynchronize ["cuStreamSynchronize"]
        { stream: StreamId } -> StreamIdle {}
    /// Asks whether a stream's work is done.
    Replied stream_query: StreamQuery ["cuStreamQuery"] { stream: StreamId } -> StreamState {}
    /// Has a stream wait for an event.
    Posted stream_wait_event: StreamWaitEvent ["cuStreamWaitEvent"]
        { stream: StreamId, event: EventId }

    /// Makes an event; the number must be free.
    Posted event_create: EventCreate ["cuEventCreate"] { event: EventId, flags: u32 }
    /// Ends an event.
    Posted event_destroy: EventDestroy ["cuEventDestroy" "cuEventDestroy_v2"] { event: EventId }
    /// Puts an event behind the stream's work.
    Posted event_record: EventRecord ["cuEventRecord" "cuEventRecordWithFlags"]
        { event: EventId, stream: StreamId }
    /// Waits for an event.
    Replied event_synchronize: EventSynchronize ["cuEventSynchronize"]
        { event: EventId } -> EventDone {}
    /// Asks whether an event has happened.
    Replied event_query: EventQuery ["cuEventQuery"] { event: EventId } -> EventState {}
    /// Asks for the time between two events.
    Replied event_elapsed: EventElapsed ["cuEventElapsedTime" "cuEventElapsedTime_v2"]
        { start: EventId, end: EventId } -> EventElapsedReply { milliseconds: f32 }

    /// Counts a call that is not supported; `function` is its position in the list of names.
    Posted unsupported: Unsupported [] { function: u32 }

    /// Takes what the session's kernels printed and the driver has written so far, or the next
    /// part of it: there is no more when nothing comes. `lost` are bytes that were dropped.
    Replied prints: Prints [] {} -> Printed { text: Vec<u8>, lost: u64 }
}
