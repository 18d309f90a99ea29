//! Each call once, well made and in an order in which all of them are done: where the corpus and
//! what is drawn begin.

use gpuzone_wire::ring::places::{ALIGN, HEADER};
use gpuzone_wire::spec::*;

const STREAM: StreamId = StreamId(StreamId::FIRST);
const POOL: PoolId = PoolId(PoolId::FIRST);

/// A call, before it is a record.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) opcode: u16,
    pub(super) flags: u16,
    pub(super) context: u32,
    pub(super) control: Vec<u8>,
    pub(super) bulk: Vec<u8>,
}

impl Made {
    /// Its record with honest lengths, as `ring::Header` lays it out.
    pub(super) fn record(&self) -> Vec<u8> {
        let bulk_at = HEADER + self.control.len().next_multiple_of(16);
        let total = (bulk_at + self.bulk.len()).next_multiple_of(ALIGN);
        let word = |length: usize| u32::try_from(length).expect("short").to_le_bytes();
        let lengths = [total, self.control.len(), self.bulk.len()];
        let stamp = [0; 8];
        let mut bytes: Vec<u8> =
            stamp.into_iter().chain(lengths.into_iter().flat_map(word)).collect();
        bytes.extend(self.opcode.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.context.to_le_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(&self.control);
        bytes.resize(bulk_at, 0);
        bytes.extend(&self.bulk);
        bytes.resize(total, 0);
        bytes
    }
}

/// A call in the one context, which is answered.
pub(super) fn made<R: Request>(request: &R) -> Made {
    let mut control = Vec::new();
    request.put(&mut control);
    Made { opcode: R::OPCODE as u16, flags: 1, context: 1, control, bulk: Vec::new() }
}

fn with_bulk<R: Request>(request: &R, bytes: usize) -> Made {
    Made { bulk: vec![0x21; bytes], ..made(request) }
}

/// The address that the driver which watches gives as the `number`th.
pub(super) fn address(number: u64) -> DevicePtr {
    DevicePtr(number << 32)
}

/// A context, and 4096 bytes at the first address.
pub(super) fn beginning() -> Vec<Made> {
    vec![
        Made { context: 0, ..made(&ContextCreate { context: ContextId(1), device: 0, flags: 0 }) },
        made(&MemoryAllocate { bytes: 4096 }),
        made(&StreamCreate { stream: STREAM, flags: 0, priority: 0 }),
    ]
}

fn contexts() -> Vec<Made> {
    vec![
        made(&ContextSynchronize {}),
        made(&ContextLimit { limit: 1 }),
        made(&ContextSetLimit { limit: 1, value: 1024 }),
        made(&MemoryInfo {}),
        made(&EventCreate { event: EventId(1), flags: 0 }),
        made(&EventCreate { event: EventId(2), flags: 0 }),
    ]
}

fn copies() -> Vec<Made> {
    let (target, stream, bytes) = (address(1), STREAM, 64);
    let source = DevicePtr(target.0 + 2048);
    let (pitch, width, rows) = (64, 16, 4);
    let memory = HostId(1);
    vec![
        with_bulk(&CopyToDevice { target, stream, wait: true }, 64),
        made(&CopyToHost { source, bytes, stream }),
        made(&CopyOnDevice { target, source, bytes, stream }),
        made(&MemorySet { target, value: 7, width: 4, count: 8, pitch, rows, stream }),
        with_bulk(&CopyRowsToDevice { target, pitch, width, rows, stream }, 64),
        made(&CopyRowsToHost { source, pitch, width, rows, stream }),
        made(&CopyRowsOnDevice {
            target,
            target_pitch: pitch,
            source,
            source_pitch: pitch,
            width,
            rows,
            stream,
        }),
        made(&HostAllocate { memory, bytes: 4096 }),
        made(&CopySharedToDevice { target, memory, offset: 32, bytes, stream }),
        made(&CopySharedToHost { memory, offset: 32, source, bytes, stream }),
        made(&HostFree { memory }),
    ]
}

/// The second address.
pub(super) fn pools() -> Vec<Made> {
    let (pool, attribute) = (POOL, 4);
    vec![
        made(&PoolCreate { pool, device: 0, most: 8192 }),
        made(&PoolAllocate { pool, bytes: 1024, stream: STREAM }),
        made(&PoolSetAttribute { pool, attribute, value: 4096 }),
        made(&PoolAttribute { pool, attribute }),
        made(&MemoryFreeAsync { pointer: address(2), stream: STREAM }),
        made(&PoolTrim { pool, keep: 0 }),
        made(&PoolDestroy { pool }),
    ]
}

/// The third address; then one for the memory, and one where it is overwritten.
fn physical() -> Vec<Made> {
    let (pointer, memory) = (address(3), PhysicalId(1));
    let (bytes, reserved) = (4096, 8192);
    vec![
        made(&PhysicalGranularity { device: 0, recommended: true }),
        made(&AddressReserve { bytes: reserved, alignment: 0 }),
        made(&PhysicalCreate { memory, device: 0, bytes }),
        made(&PhysicalMap { pointer, bytes, memory, offset: 0 }),
        made(&PhysicalAccess { pointer, bytes, flags: 3 }),
        made(&PhysicalUnmap { pointer, bytes }),
        made(&PhysicalRelease { memory }),
        made(&AddressFree { pointer, bytes: reserved }),
    ]
}

fn code() -> Vec<Made> {
    let (module, function, stream) = (ModuleId(1), FunctionId(1), STREAM);
    let (info_log, error_log) = (16, 16);
    let settings = Vec::new;
    let inputs = vec![LinkInput { kind: 1, bytes: 48 }];
    let one = [1; 3];
    let launch = |settings| Launch {
        function,
        stream,
        grid: one,
        block: one,
        shared: 0,
        settings,
        arguments: vec![0; 8],
    };
    vec![
        with_bulk(&ModuleData {}, 48),
        made(&Link { inputs, settings: settings(), info_log, error_log }),
        with_bulk(&ModuleData {}, 48),
        made(&ModuleLoad { module, settings: settings(), info_log, error_log }),
        made(&ModuleKernels { module }),
        made(&ModuleFunction { module, function, name: "kernel".to_owned() }),
        made(&ModuleGlobal { module, name: "variable".to_owned() }),
        made(&FunctionSetAttribute { function, attribute: 8, value: 64 }),
        made(&Occupancy { function, block: 32, dynamic_shared: 0, flags: 0 }),
        made(&OccupancyShared { function, blocks: 1, block: 32 }),
        made(&EventRecord { event: EventId(1), stream }),
        made(&launch(Vec::new())),
        made(&launch(vec![LaunchSetting { attribute: 2, value: [1, 0, 0] }])),
        made(&HostChannel {}),
        made(&HostFunction { function: 7, stream }),
    ]
}

fn ends() -> Vec<Made> {
    let (stream, event) = (STREAM, EventId(1));
    vec![
        made(&EventRecord { event: EventId(2), stream }),
        made(&StreamSynchronize { stream }),
        made(&StreamQuery { stream }),
        made(&StreamWaitEvent { stream, event }),
        made(&EventSynchronize { event }),
        made(&EventQuery { event }),
        made(&EventElapsed { start: event, end: EventId(2) }),
        made(&EventDestroy { event }),
        made(&StreamDestroy { stream }),
        made(&ModuleUnload { module: ModuleId(1) }),
        made(&MemoryFree { pointer: address(1) }),
        made(&Unsupported { function: 3 }),
        made(&Prints {}),
        made(&ContextDestroy { context: ContextId(1) }),
    ]
}

pub(super) fn each_call() -> Vec<Made> {
    [beginning(), contexts(), copies(), pools(), physical(), code(), ends()].concat()
}
