//! A session with an object of each kind in it, and a call of each kind upon them.

use std::path::Path;

use anyhow::anyhow;
use gpuzone_cuda_abi::CuResult;
use gpuzone_wire::client::Client;
use gpuzone_wire::codec::Field;
use gpuzone_wire::ring::Payload;
use gpuzone_wire::spec::*;

use crate::line::{Line, Memory};

pub(crate) const CONTEXT: ContextId = ContextId(1);
pub(crate) const STREAM: StreamId = StreamId(16);
const MODULE: ModuleId = ModuleId(1);
pub(crate) const FUNCTION: FunctionId = FunctionId(1);
const EVENT: EventId = EventId(1);
const BYTES: u64 = 1 << 20;

/// Counts to a number, in each thread.
pub(crate) const SPIN: &str = "\
.version 8.0
.target sm_75
.address_size 64
.visible .entry spin(.param .u64 spin_param_0)
{
    .reg .pred %p<2>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [spin_param_0];
    mov.u64 %rd2, 0;
$L__BB0_1:
    add.s64 %rd2, %rd2, 1;
    setp.lt.u64 %p1, %rd2, %rd1;
    @%p1 bra $L__BB0_1;
    ret;
}
.visible .entry hurt(.param .u64 hurt_param_0)
{
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [hurt_param_0];
    st.global.u64 [%rd1], %rd1;
    ret;
}
";

/// A session that has made something.
pub(crate) struct Shop {
    pub(crate) client: Client,
    pub(crate) memory: Memory,
    pub(crate) pointer: DevicePtr,
}

pub(crate) fn cuda(error: CuResult) -> anyhow::Error {
    anyhow!("CUDA's error {}", error.0)
}

impl Shop {
    /// Opens it: a context, a stream, an event, memory, and a kernel.
    pub(crate) fn open(slot: &Path) -> anyhow::Result<Self> {
        let (mut client, memory) = Line::open(slot)?.client()?;
        let context = ContextCreate { context: CONTEXT, device: 0, flags: 0 };
        client.call(ContextId(0), &context, Payload::NONE).map_err(cuda)?;
        let allocate = MemoryAllocate { bytes: BYTES };
        let pointer = client.call(CONTEXT, &allocate, Payload::NONE).map_err(cuda)?.pointer;
        let stream = StreamCreate { stream: STREAM, flags: 1, priority: 0 };
        client.post(CONTEXT, &stream, Payload::NONE).map_err(cuda)?;
        client
            .post(CONTEXT, &EventCreate { event: EVENT, flags: 0 }, Payload::NONE)
            .map_err(cuda)?;
        let mut shop = Self { client, memory, pointer };
        shop.load(MODULE, SPIN.as_bytes()).map_err(cuda)?;
        let function =
            ModuleFunction { module: MODULE, function: FUNCTION, name: "spin".to_owned() };
        shop.client.call(CONTEXT, &function, Payload::NONE).map_err(cuda)?;
        Ok(shop)
    }

    /// Writes where nothing is allocated.
    pub(crate) fn hurt(&mut self) -> Result<(), CuResult> {
        let name = "hurt".to_owned();
        let function = ModuleFunction { module: MODULE, function: FunctionId(9), name };
        self.client.call(CONTEXT, &function, Payload::NONE)?;
        let hurt = Launch { function: FunctionId(9), ..spin([1, 1, 1], 8) };
        self.client.post(CONTEXT, &hurt, Payload::NONE)?;
        self.synchronize()
    }

    /// Loads a module.
    pub(crate) fn load(&mut self, module: ModuleId, image: &[u8]) -> Result<(), CuResult> {
        for piece in image.chunks(256 << 10) {
            self.client.post(CONTEXT, &ModuleData {}, Payload::of(piece))?;
        }
        let load = ModuleLoad { module, settings: Vec::new(), info_log: 0, error_log: 4096 };
        let loaded = self.client.call(CONTEXT, &load, Payload::NONE)?;
        CuResult(loaded.loaded).ok()
    }

    /// Launches the kernel.
    pub(crate) fn launch(&mut self, grid: [u32; 3], rounds: u64) -> Result<(), CuResult> {
        self.client.post(CONTEXT, &spin(grid, rounds), Payload::NONE)
    }

    pub(crate) fn synchronize(&mut self) -> Result<(), CuResult> {
        self.client.call(CONTEXT, &ContextSynchronize {}, Payload::NONE).map(drop)
    }
}

/// A launch of the kernel.
pub(crate) fn spin(grid: [u32; 3], rounds: u64) -> Launch {
    let arguments = rounds.to_le_bytes().to_vec();
    let (function, stream, settings) = (FUNCTION, STREAM, Vec::new());
    Launch { function, stream, grid, block: [32, 1, 1], shared: 0, settings, arguments }
}

/// The control part of a call upon what a [`Shop`] has.
pub(crate) fn example(opcode: Opcode, pointer: DevicePtr) -> Vec<u8> {
    let mut bytes = Vec::new();
    let into = &mut bytes;
    let (stream, event, module, function) = (STREAM, EVENT, MODULE, FUNCTION);
    let name = "spin".to_owned();
    match opcode {
        Opcode::ContextCreate => {
            ContextCreate { context: ContextId(2), device: 0, flags: 0 }.put(into);
        }
        Opcode::ContextDestroy => ContextDestroy { context: CONTEXT }.put(into),
        Opcode::ContextSynchronize => ContextSynchronize {}.put(into),
        Opcode::ContextLimit => ContextLimit { limit: 0 }.put(into),
        Opcode::MemoryAllocate => MemoryAllocate { bytes: BYTES }.put(into),
        Opcode::MemoryFree => MemoryFree { pointer }.put(into),
        Opcode::MemoryInfo => MemoryInfo {}.put(into),
        Opcode::CopyToDevice => CopyToDevice { target: pointer, stream, wait: true }.put(into),
        Opcode::CopyToHost => CopyToHost { source: pointer, bytes: BYTES, stream }.put(into),
        Opcode::CopyOnDevice => {
            let target = DevicePtr(pointer.0 + BYTES / 2);
            CopyOnDevice { target, source: pointer, bytes: BYTES / 2, stream }.put(into);
        }
        Opcode::MemorySet => {
            let (target, pitch, rows) = (pointer, 0, 1);
            MemorySet { target, value: 7, width: 1, count: BYTES, pitch, rows, stream }.put(into);
        }
        Opcode::ModuleData => ModuleData {}.put(into),
        Opcode::ModuleLoad => {
            let module = ModuleId(2);
            ModuleLoad { module, settings: Vec::new(), info_log: 9, error_log: 9 }.put(into);
        }
        Opcode::ModuleUnload => ModuleUnload { module }.put(into),
        Opcode::ModuleFunction => {
            ModuleFunction { module, function: FunctionId(2), name }.put(into);
        }
        Opcode::ModuleGlobal => ModuleGlobal { module, name }.put(into),
        Opcode::FunctionSetAttribute => {
            FunctionSetAttribute { function, attribute: 8, value: 0 }.put(into);
        }
        Opcode::Occupancy => {
            Occupancy { function, block: 32, dynamic_shared: 0, flags: 0 }.put(into);
        }
        Opcode::Launch => spin([4, 1, 1], 1000).put(into),
        Opcode::StreamCreate => {
            StreamCreate { stream: StreamId(17), flags: 0, priority: -1 }.put(into);
        }
        Opcode::StreamDestroy => StreamDestroy { stream }.put(into),
        Opcode::StreamSynchronize => StreamSynchronize { stream }.put(into),
        Opcode::StreamQuery => StreamQuery { stream }.put(into),
        Opcode::StreamWaitEvent => StreamWaitEvent { stream, event }.put(into),
        Opcode::EventCreate => EventCreate { event: EventId(2), flags: 0 }.put(into),
        Opcode::EventDestroy => EventDestroy { event }.put(into),
        Opcode::EventRecord => EventRecord { event, stream }.put(into),
        Opcode::EventSynchronize => EventSynchronize { event }.put(into),
        Opcode::EventQuery => EventQuery { event }.put(into),
        Opcode::EventElapsed => EventElapsed { start: event, end: event }.put(into),
        Opcode::Prints => Prints {}.put(into),
        Opcode::Unsupported => Unsupported { function: 1 }.put(into),
        Opcode::ContextSetLimit => ContextSetLimit { limit: 2, value: BYTES }.put(into),
        Opcode::ModuleKernels => ModuleKernels { module }.put(into),
        Opcode::Link => {
            let inputs = vec![LinkInput { kind: 1, bytes: 3 }];
            Link { inputs, settings: Vec::new(), info_log: 9, error_log: 9 }.put(into);
        }
        Opcode::OccupancyShared => OccupancyShared { function, blocks: 1, block: 32 }.put(into),
        Opcode::HostChannel => HostChannel {}.put(into),
        Opcode::HostFunction => HostFunction { function: 1, stream }.put(into),
        other => example_of_memory(other, pointer, into),
    }
    bytes
}

/// The same, of the calls that take memory in other ways.
fn example_of_memory(opcode: Opcode, pointer: DevicePtr, into: &mut Vec<u8>) {
    let (stream, memory, pool) = (STREAM, HostId(1), PoolId(0));
    let (physical, flags) = (PhysicalId(1), 3);
    let (pitch, width, rows, bytes) = (256, 64, 8, BYTES);
    match opcode {
        Opcode::CopyRowsToDevice => {
            CopyRowsToDevice { target: pointer, pitch, width, rows, stream }.put(into);
        }
        Opcode::CopyRowsToHost => {
            CopyRowsToHost { source: pointer, pitch, width, rows, stream }.put(into);
        }
        Opcode::CopyRowsOnDevice => {
            let target = DevicePtr(pointer.0 + BYTES / 2);
            let (target_pitch, source_pitch, source) = (pitch, pitch, pointer);
            let copy = CopyRowsOnDevice {
                target,
                target_pitch,
                source,
                source_pitch,
                width,
                rows,
                stream,
            };
            copy.put(into);
        }
        Opcode::HostAllocate => HostAllocate { memory, bytes }.put(into),
        Opcode::HostFree => HostFree { memory }.put(into),
        Opcode::CopySharedToDevice => {
            CopySharedToDevice { target: pointer, memory, offset: 0, bytes, stream }.put(into);
        }
        Opcode::CopySharedToHost => {
            CopySharedToHost { memory, offset: 0, source: pointer, bytes, stream }.put(into);
        }
        Opcode::PoolCreate => {
            PoolCreate { pool: PoolId(PoolId::FIRST), device: 0, most: 0 }.put(into);
        }
        Opcode::PoolDestroy => PoolDestroy { pool: PoolId(PoolId::FIRST) }.put(into),
        Opcode::PoolAllocate => PoolAllocate { pool, bytes, stream }.put(into),
        Opcode::MemoryFreeAsync => MemoryFreeAsync { pointer, stream }.put(into),
        Opcode::PoolAttribute => PoolAttribute { pool, attribute: 5 }.put(into),
        Opcode::PoolSetAttribute => PoolSetAttribute { pool, attribute: 4, value: 9 }.put(into),
        Opcode::PoolTrim => PoolTrim { pool, keep: 0 }.put(into),
        Opcode::PhysicalGranularity => {
            PhysicalGranularity { device: 0, recommended: true }.put(into);
        }
        Opcode::AddressReserve => AddressReserve { bytes, alignment: 0 }.put(into),
        Opcode::AddressFree => AddressFree { pointer, bytes }.put(into),
        Opcode::PhysicalCreate => {
            PhysicalCreate { memory: physical, device: 0, bytes }.put(into);
        }
        Opcode::PhysicalRelease => PhysicalRelease { memory: physical }.put(into),
        Opcode::PhysicalMap => {
            PhysicalMap { pointer, bytes, memory: physical, offset: 0 }.put(into);
        }
        Opcode::PhysicalUnmap => PhysicalUnmap { pointer, bytes }.put(into),
        Opcode::PhysicalAccess => PhysicalAccess { pointer, bytes, flags }.put(into),
        // The others have their examples above; one that is new here is sent empty.
        _ => {}
    }
}
