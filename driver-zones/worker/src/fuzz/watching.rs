//! A driver that does nothing but look at what it is given.

use std::ffi::{c_char, c_void};

use gpuzone_cuda_abi::rows::WORDS_2D;
use gpuzone_cuda_abi::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmodule, CUstream, CuResult,
    LaunchConfig, MemoryAccess, PhysicalProperties, memory_type,
};

use super::arena::{Arena, Kind, arena};
use crate::driver::Driver;

/// Defines functions of the driver that watch, and the driver that has them.
macro_rules! watching {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $body:block)*) => {
        $(
            #[allow(clippy::too_many_arguments, reason = "CUDA's function has as many")]
            unsafe extern "C" fn $name($($argument: $type),*) -> CuResult {
                if !ENDS.contains(stringify!($name)) && arena(Arena::refuses) {
                    return CuResult::OUT_OF_MEMORY;
                }
                $body
                CuResult::SUCCESS
            }
        )*

        pub(super) fn driver() -> Driver {
            Driver { $($name,)* function_parameter, ..Driver::idle() }
        }
    };
}

/// Answers by a place that the worker gives.
fn answer<T>(place: *mut T, value: T) {
    // SAFETY: the worker gives places for answers that may be written.
    unsafe { place.write(value) };
}

fn handle<T>(place: *mut *mut T, kind: Kind) {
    let made = arena(|arena| {
        arena.expect_context();
        arena.make(kind, arena.current)
    });
    answer(place, std::ptr::without_provenance_mut(made));
}

/// Reads all of what the worker says can be read.
fn read(source: *const c_void, bytes: usize) {
    // SAFETY: the worker says that so many bytes can be read there.
    let read = unsafe { std::slice::from_raw_parts(source.cast::<u8>(), bytes) };
    std::hint::black_box(read.iter().fold(0u8, |sum, byte| sum ^ byte));
}

/// Writes all of what the worker says can be written.
fn write(target: *mut c_void, bytes: usize) {
    // SAFETY: the worker says that so many bytes can be written there.
    unsafe { std::ptr::write_bytes(target.cast::<u8>(), 0x5a, bytes) };
}

fn set(target: CUdeviceptr, width: u64, count: usize, stream: CUstream) {
    arena(|arena| {
        arena.expect_stream(stream.addr());
        arena.touch("a set", target, (count as u64).saturating_mul(width));
    });
}

fn set_rows(
    (target, pitch): (CUdeviceptr, usize),
    width: u64,
    count: usize,
    rows: usize,
    stream: CUstream,
) {
    let width = (count as u64).saturating_mul(width);
    arena(|arena| {
        arena.expect_stream(stream.addr());
        arena.touch_rows("a set", target, pitch as u64, width, rows as u64);
    });
}

/// One end of a copy of rows: type, host's address, device's address, array, pitch.
fn end_of_rows(end: [u64; 5], width: u64, rows: u64, act: impl Fn(*mut c_void, usize)) {
    let [kind, host, device, array, pitch] = end;
    arena(|arena| arena.expect(array == 0, || "a copy of an array".to_owned()));
    if kind == u64::from(memory_type::DEVICE) {
        return arena(|arena| arena.touch_rows("a copy", device, pitch, width, rows));
    }
    let is_host = kind == u64::from(memory_type::HOST);
    arena(|arena| arena.expect(is_host, || "a copy from anywhere".to_owned()));
    for row in 0..rows {
        let at = usize::try_from(host + row * pitch).expect("64 bits");
        act(std::ptr::with_exposed_provenance_mut(at), usize::try_from(width).expect("64 bits"));
    }
}

fn start(function: CUfunction, stream: CUstream, arguments: *mut *mut c_void) {
    arena(|arena| {
        arena.expect_stream(stream.addr());
        arena.expect_a(Kind::Function, function.addr());
    });
    // SAFETY: there is an argument for the kernel's one parameter.
    read(unsafe { *arguments }, 8);
}

/// What a driver does not refuse.
const ENDS: &str = "context_destroy context_set_current memory_free host_unregister address_free \
    physical_release physical_unmap module_unload link_destroy stream_destroy event_destroy";

static CODE: &[u8; 64] = &[0x7f; 64];

watching! {
    fn context_create(place: *mut CUcontext, _flags: u32, _device: CUdevice) {
        let made = arena(|arena| {
            arena.current = arena.make(Kind::Context, 0);
            arena.current
        });
        answer(place, std::ptr::without_provenance_mut(made));
    }

    fn context_destroy(context: CUcontext) {
        arena(|arena| arena.end(Kind::Context, context.addr()));
    }

    fn context_set_current(context: CUcontext) {
        arena(|arena| {
            arena.expect_a(Kind::Context, context.addr());
            arena.current = context.addr();
        });
    }

    fn context_synchronize() {
        arena(|arena| arena.expect_context());
    }

    fn context_limit(place: *mut usize, _limit: u32) {
        arena(|arena| arena.expect_context());
        answer(place, 1024);
    }

    fn context_set_limit(_limit: u32, _value: usize) {
        arena(|arena| arena.expect_context());
    }

    fn memory_allocate(place: *mut CUdeviceptr, bytes: usize) {
        let address = arena(|arena| {
            arena.expect_context();
            arena.expect_room(bytes as u64);
            arena.place(bytes as u64, arena.current)
        });
        answer(place, address);
    }

    fn memory_free(address: CUdeviceptr) {
        arena(|arena| arena.free(address));
    }

    fn copy_to_device(target: CUdeviceptr, source: *const c_void, bytes: usize, on: CUstream) {
        read(source, bytes);
        arena(|arena| {
            arena.expect_stream(on.addr());
            arena.touch("a copy to", target, bytes as u64);
        });
    }

    fn copy_to_host(target: *mut c_void, source: CUdeviceptr, bytes: usize, on: CUstream) {
        write(target, bytes);
        arena(|arena| {
            arena.expect_stream(on.addr());
            arena.touch("a copy from", source, bytes as u64);
        });
    }

    fn copy_on_device(target: CUdeviceptr, source: CUdeviceptr, bytes: usize, on: CUstream) {
        arena(|arena| {
            arena.expect_stream(on.addr());
            arena.touch("a copy to", target, bytes as u64);
            arena.touch("a copy from", source, bytes as u64);
        });
    }

    fn set_8(target: CUdeviceptr, _value: u8, count: usize, on: CUstream) {
        set(target, 1, count, on);
    }

    fn set_16(target: CUdeviceptr, _value: u16, count: usize, on: CUstream) {
        set(target, 2, count, on);
    }

    fn set_32(target: CUdeviceptr, _value: u32, count: usize, on: CUstream) {
        set(target, 4, count, on);
    }

    fn set_rows_8(
        target: CUdeviceptr, pitch: usize, _value: u8, count: usize, rows: usize, on: CUstream
    ) {
        set_rows((target, pitch), 1, count, rows, on);
    }

    fn set_rows_16(
        target: CUdeviceptr, pitch: usize, _value: u16, count: usize, rows: usize, on: CUstream
    ) {
        set_rows((target, pitch), 2, count, rows, on);
    }

    fn set_rows_32(
        target: CUdeviceptr, pitch: usize, _value: u32, count: usize, rows: usize, on: CUstream
    ) {
        set_rows((target, pitch), 4, count, rows, on);
    }

    fn copy_rows(words: *const [u64; WORDS_2D], on: CUstream) {
        // SAFETY: a `CUDA_MEMCPY2D` of the worker's.
        let [sx, sy, sk, sh, sd, sa, sp, tx, ty, tk, th, td, ta, tp, width, rows] =
            unsafe { *words };
        arena(|arena| {
            arena.expect_stream(on.addr());
            arena.expect([sx, sy, tx, ty] == [0; 4], || "rows that begin elsewhere".to_owned());
        });
        end_of_rows([sk, sh, sd, sa, sp], width, rows, |at, bytes| read(at, bytes));
        end_of_rows([tk, th, td, ta, tp], width, rows, write);
    }

    fn host_register(address: *mut c_void, bytes: usize, _flags: u32) {
        read(address, bytes);
        arena(|arena| arena.register(address.addr(), bytes));
    }

    fn host_device_pointer(place: *mut CUdeviceptr, address: *mut c_void, _flags: u32) {
        answer(place, arena(|arena| arena.device_pointer(address.addr())));
    }

    fn host_unregister(address: *mut c_void) {
        read(address, 1);
        arena(|arena| arena.unregister(address.addr()));
    }

    fn granularity(place: *mut usize, of: *const PhysicalProperties, _which: u32) {
        // SAFETY: what the worker asks about.
        let is_ours = unsafe { *of } == PhysicalProperties::of_device(0);
        arena(|arena| arena.expect(is_ours, || "another GPU's granularity".to_owned()));
        answer(place, 512);
    }

    fn address_reserve(
        place: *mut CUdeviceptr, bytes: usize, _alignment: usize, at: CUdeviceptr, _flags: u64
    ) {
        let address = arena(|arena| {
            arena.expect(at == 0, || "addresses of the tenant's choice".to_owned());
            arena.reserve(bytes as u64)
        });
        answer(place, address);
    }

    fn address_free(address: CUdeviceptr, bytes: usize) {
        arena(|arena| arena.free_addresses(address, bytes as u64));
    }

    fn physical_create(
        place: *mut u64, bytes: usize, of: *const PhysicalProperties, _flags: u64
    ) {
        // SAFETY: what the worker wants.
        let is_ours = unsafe { *of } == PhysicalProperties::of_device(0);
        let made = arena(|arena| {
            arena.expect(is_ours, || "memory of another GPU".to_owned());
            arena.expect_room(bytes as u64);
            arena.make_memory(bytes as u64)
        });
        answer(place, made);
    }

    fn physical_release(memory: u64) {
        arena(|arena| arena.release_memory(memory));
    }

    fn physical_map(address: CUdeviceptr, bytes: usize, offset: usize, memory: u64, _flags: u64) {
        arena(|arena| arena.map(address, bytes as u64, offset as u64, memory));
    }

    fn physical_unmap(address: CUdeviceptr, bytes: usize) {
        arena(|arena| arena.unmap(address, bytes as u64));
    }

    fn physical_access(
        address: CUdeviceptr, bytes: usize, access: *const MemoryAccess, count: usize
    ) {
        // SAFETY: one of them, as the worker says.
        let access = unsafe { *access };
        arena(|arena| {
            let is_ours = count == 1 && (access.location.kind, access.location.id) == (1, 0);
            arena.expect(is_ours, || "access for another GPU".to_owned());
            arena.allow(address, bytes as u64, access.flags);
        });
    }

    fn module_load(
        place: *mut CUmodule, image: *const c_void, count: u32, options: *mut u32,
        values: *mut *mut c_void
    ) {
        read(image, 8);
        // SAFETY: eight bytes were just read there.
        arena(|arena| arena.expect_image(unsafe { *image.cast() }));
        read(options.cast_const().cast(), count as usize * 4);
        read(values.cast_const().cast(), count as usize * 8);
        handle(place, Kind::Module);
    }

    fn module_unload(module: CUmodule) {
        arena(|arena| arena.end(Kind::Module, module.addr()));
    }

    fn module_kernel_count(place: *mut u32, module: CUmodule) {
        arena(|arena| arena.expect_here(Kind::Module, module.addr()));
        answer(place, 2);
    }

    fn module_kernels(places: *mut CUfunction, count: u32, module: CUmodule) {
        for number in 0..count as usize {
            let made = arena(|arena| {
                arena.expect_here(Kind::Module, module.addr());
                arena.make(Kind::Function, module.addr())
            });
            // SAFETY: the worker says that there is room for so many.
            answer(unsafe { places.add(number) }, std::ptr::without_provenance_mut(made));
        }
    }

    fn function_name(place: *mut *const c_char, function: CUfunction) {
        arena(|arena| arena.expect_a(Kind::Function, function.addr()));
        answer(place, c"kernel".as_ptr());
    }

    fn link_create(
        count: u32, options: *mut u32, values: *mut *mut c_void, place: *mut *mut c_void
    ) {
        read(options.cast_const().cast(), count as usize * 4);
        read(values.cast_const().cast(), count as usize * 8);
        handle(place, Kind::Linker);
    }

    fn link_add(
        linker: *mut c_void, _kind: u32, data: *mut c_void, bytes: usize, _name: *const c_char,
        _count: u32, _options: *mut u32, _values: *mut *mut c_void
    ) {
        arena(|arena| arena.expect_here(Kind::Linker, linker.addr()));
        read(data, bytes);
    }

    fn link_complete(linker: *mut c_void, place: *mut *mut c_void, bytes: *mut usize) {
        arena(|arena| arena.expect_here(Kind::Linker, linker.addr()));
        answer(place, CODE.as_ptr().cast_mut().cast());
        answer(bytes, CODE.len());
    }

    fn link_destroy(linker: *mut c_void) {
        arena(|arena| arena.end(Kind::Linker, linker.addr()));
    }

    fn module_function(place: *mut CUfunction, module: CUmodule, _name: *const c_char) {
        let made = arena(|arena| {
            arena.expect_here(Kind::Module, module.addr());
            arena.make(Kind::Function, module.addr())
        });
        answer(place, std::ptr::without_provenance_mut(made));
    }

    fn module_global(
        place: *mut CUdeviceptr, bytes: *mut usize, module: CUmodule, _name: *const c_char
    ) {
        let address = arena(|arena| {
            arena.expect_here(Kind::Module, module.addr());
            arena.place(64, module.addr())
        });
        answer(place, address);
        answer(bytes, 64);
    }

    fn function_attribute(place: *mut i32, _attribute: i32, function: CUfunction) {
        arena(|arena| arena.expect_a(Kind::Function, function.addr()));
        answer(place, 32);
    }

    fn function_set_attribute(function: CUfunction, _attribute: i32, _value: i32) {
        arena(|arena| arena.expect_a(Kind::Function, function.addr()));
    }

    fn occupancy(
        place: *mut i32, function: CUfunction, _block: i32, _shared: usize, _flags: u32
    ) {
        arena(|arena| arena.expect_a(Kind::Function, function.addr()));
        answer(place, 2);
    }

    fn occupancy_shared(place: *mut usize, function: CUfunction, _blocks: i32, _block: i32) {
        arena(|arena| arena.expect_a(Kind::Function, function.addr()));
        answer(place, 1024);
    }

    fn launch_host_function(
        stream: CUstream, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void
    ) {
        arena(|arena| {
            arena.expect_stream(stream.addr());
            arena.expect(function.is_some(), || "no function".to_owned());
            arena.waiting.extend(function.map(|function| (function, data)));
        });
    }

    fn launch_with(
        config: *const LaunchConfig, function: CUfunction, arguments: *mut *mut c_void,
        _extra: *mut *mut c_void
    ) {
        // SAFETY: the worker's own.
        let config = unsafe { *config };
        let attributes = config.attribute_count as usize;
        read(config.attributes.cast(), attributes * size_of_val(&[0u64; 9]));
        start(function, config.stream, arguments);
    }

    fn launch(
        function: CUfunction, _gx: u32, _gy: u32, _gz: u32, _bx: u32, _by: u32, _bz: u32,
        _shared: u32, stream: CUstream, arguments: *mut *mut c_void, _extra: *mut *mut c_void
    ) {
        start(function, stream, arguments);
    }

    fn stream_create(place: *mut CUstream, _flags: u32, _priority: i32) {
        handle(place, Kind::Stream);
    }

    fn stream_destroy(stream: CUstream) {
        arena(|arena| {
            arena.expect_stream(stream.addr());
            arena.end(Kind::Stream, stream.addr());
        });
    }

    fn stream_query(stream: CUstream) {
        arena(|arena| arena.expect_stream(stream.addr()));
    }

    fn stream_synchronize(stream: CUstream) {
        arena(|arena| arena.expect_stream(stream.addr()));
    }

    fn stream_wait_event(stream: CUstream, event: CUevent, _flags: u32) {
        arena(|arena| {
            arena.expect_stream(stream.addr());
            arena.expect_a(Kind::Event, event.addr());
        });
    }

    fn event_create(place: *mut CUevent, _flags: u32) {
        handle(place, Kind::Event);
    }

    fn event_destroy(event: CUevent) {
        arena(|arena| arena.end(Kind::Event, event.addr()));
    }

    fn event_record(event: CUevent, stream: CUstream) {
        arena(|arena| {
            arena.expect_stream(stream.addr());
            arena.expect_here(Kind::Event, event.addr());
        });
    }

    fn event_query(event: CUevent) {
        arena(|arena| arena.expect_a(Kind::Event, event.addr()));
    }

    fn event_synchronize(event: CUevent) {
        arena(|arena| arena.expect_a(Kind::Event, event.addr()));
    }

    fn event_elapsed(place: *mut f32, from: CUevent, to: CUevent) {
        arena(|arena| {
            arena.expect_a(Kind::Event, from.addr());
            arena.expect_a(Kind::Event, to.addr());
        });
        answer(place, 1.0);
    }
}

/// Every kernel has one parameter of 8 bytes.
unsafe extern "C" fn function_parameter(
    function: CUfunction,
    index: usize,
    offset: *mut usize,
    size: *mut usize,
) -> CuResult {
    arena(|arena| arena.expect_a(Kind::Function, function.addr()));
    if index > 0 {
        return CuResult::INVALID_VALUE;
    }
    answer(offset, 0);
    answer(size, 8);
    CuResult::SUCCESS
}
