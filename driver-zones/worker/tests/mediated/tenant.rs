//! What tenant processes do: programs of the driver API, unchanged, that find the shim where
//! the driver's library would be.

use std::io::BufRead;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, LaunchConfig, PushKernelArg, result};
use cudarc::nvrtc::Ptx;
use gpuzone_cuda_abi::FUNCTIONS;
use gpuzone_wire::spec;

const VECTOR_ADD: &str = include_str!("../../../sim/kernels/ptx/vector_add.ptx");
const FAULTS: &str = include_str!("../../../sim/kernels/ptx/faults.ptx");

#[allow(clippy::print_stdout, reason = "how a tenant speaks to its test")]
pub(crate) fn say(key: &str, value: impl std::fmt::Display) {
    println!("[{key}] {value}");
}

pub(crate) fn wait() {
    std::io::stdin().lock().read_line(&mut String::new()).expect("told to go on");
}

fn function(context: &Arc<CudaContext>, ptx: &str, name: &str) -> CudaFunction {
    let module = context.load_module(Ptx::from_src(ptx)).expect("a module");
    module.load_function(name).expect("a kernel")
}

fn vector_add() {
    let context = CudaContext::new(0).expect("a context");
    assert_eq!(context.name().expect("a name"), "Simulated");
    assert_eq!(context.compute_capability().expect("known"), (9, 0));
    let stream = context.new_stream().expect("a stream");
    let kernel = function(&context, VECTOR_ADD, "vector_add");
    // More than a record carries, and not a multiple of anything.
    let n = 700_001usize;
    let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let b: Vec<f32> = (0..n).map(|i| 0.5 * i as f32).collect();
    let (a_there, b_there) =
        (stream.clone_htod(&a).expect("copied"), stream.clone_htod(&b).expect("copied"));
    let mut out = stream.alloc_zeros::<f32>(n).expect("memory");
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(flags).expect("an event");
    let count = u32::try_from(n).expect("small");
    let config = LaunchConfig::for_num_elems(count);
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&mut out).arg(&a_there).arg(&b_there).arg(&count);
    // SAFETY: the kernel takes these arguments and stays within the vectors.
    unsafe { launch.launch(config) }.expect("launched");
    let end = stream.record_event(flags).expect("an event");
    let sum = stream.clone_dtoh(&out).expect("copied");
    assert!(start.elapsed_ms(&end).expect("measured") >= 0.0);
    assert!(sum.iter().zip(a.iter().zip(&b)).all(|(sum, (a, b))| *sum == a + b));
}

fn new_memory_is_zero() {
    let _context = CudaContext::new(0).expect("a context");
    let bytes = 1 << 20;
    for _ in 0..3 {
        // SAFETY: plain calls on memory of this size.
        unsafe {
            let pointer = result::malloc_sync(bytes).expect("memory");
            let mut seen = vec![1u8; bytes];
            result::memcpy_dtoh_sync(&mut seen, pointer).expect("copied");
            assert!(seen.iter().all(|byte| *byte == 0), "another's residue");
            result::memset_d8_sync(pointer, 0xaa, bytes).expect("set");
            result::free_sync(pointer).expect("freed");
        }
    }
}

fn limits() {
    let context = CudaContext::new(0).expect("a context");
    let (free, total) = context.mem_get_info().expect("asked");
    assert_eq!(context.total_mem().expect("asked"), total);
    say("total", total);
    // SAFETY: plain calls.
    unsafe {
        assert_eq!(result::malloc_sync(free + 1), Err(oom()));
        assert_eq!(result::malloc_sync(usize::MAX), Err(oom()));
        assert!(result::malloc_sync(0).is_err());
        let most = result::malloc_sync(free).expect("exactly the limit");
        assert_eq!(context.mem_get_info().expect("asked").0, 0);
        assert_eq!(result::malloc_sync(1), Err(oom()));
        result::free_sync(most).expect("freed");
        assert_eq!(result::malloc_sync(free).map(|_| ()), Ok(()));
    }
}

fn oom() -> result::DriverError {
    result::DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)
}

fn greedy() {
    let _context = CudaContext::new(0).expect("a context");
    say("connected", "");
    wait();
    let mut got = 0;
    // SAFETY: plain calls.
    while unsafe { result::malloc_sync(1 << 20) }.is_ok() {
        got += 1;
    }
    say("got", got);
    wait();
}

fn fault() {
    let context = CudaContext::new(0).expect("a context");
    let stream = context.default_stream();
    let kernel = function(&context, FAULTS, "write_out_of_bounds");
    let mut memory = stream.alloc_zeros::<u32>(4).expect("memory");
    let distance = 1u64 << 40;
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&mut memory).arg(&distance);
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: it is meant to go wrong, in the simulated GPU only.
    let launched = unsafe { launch.launch(config) };
    let illegal = result::DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let synchronised = launched.map(|_| ()).and_then(|()| result::ctx::synchronize());
    assert_eq!(synchronised, Err(illegal));
    // It stays so, for calls with and without an answer.
    // SAFETY: plain calls.
    unsafe {
        assert_eq!(result::malloc_sync(16), Err(illegal));
        assert_eq!(result::memset_d8_sync(device_pointer(&memory), 0, 16), Err(illegal));
    }
    assert_eq!(result::ctx::synchronize(), Err(illegal));
    // Dropping what is there would be told the same, loudly.
    std::mem::forget((memory, kernel, stream, context));
}

fn device_pointer(memory: &cudarc::driver::CudaSlice<u32>) -> u64 {
    use cudarc::driver::DevicePtr;
    let stream = memory.stream().clone();
    let (pointer, _guard) = memory.device_ptr(&stream);
    std::mem::forget(_guard);
    pointer
}

fn hold() {
    let _context = CudaContext::new(0).expect("a context");
    // SAFETY: a plain call.
    let _memory = unsafe { result::malloc_sync(64 << 20) }.expect("memory");
    say("holding", "");
    wait();
}

fn lose_the_worker() {
    let context = CudaContext::new(0).expect("a context");
    say("connected", "");
    wait();
    let lost = result::DriverError(CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE);
    assert_eq!(result::ctx::synchronize(), Err(lost));
    // SAFETY: a plain call.
    assert_eq!(unsafe { result::malloc_sync(16) }, Err(lost));
    std::mem::forget(context);
}

/// Has one GPU of two work, until it is told to go on.
fn work_on_the_second() {
    let _idle = CudaContext::new(0).expect("a context");
    let context = CudaContext::new(1).expect("a context");
    let stream = context.default_stream();
    let kernel = function(&context, FAULTS, "fill");
    let n = 1u64 << 16;
    let mut memory = stream.alloc_zeros::<u32>(1 << 16).expect("memory");
    let told = std::thread::spawn(wait);
    say("working", "");
    let config =
        LaunchConfig { grid_dim: (256, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
    while !told.is_finished() {
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&mut memory).arg(&7u32).arg(&n);
        // SAFETY: the kernel's arguments; it stays within the memory.
        unsafe { launch.launch(config) }.expect("launched");
        context.synchronize().expect("done");
    }
}

fn reaches_the_host() {
    let context = CudaContext::new(0).expect("a context");
    let asked = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS;
    assert_eq!(context.attribute(asked), Ok(1));
}

fn unsupported() {
    let _context = CudaContext::new(0).expect("a context");
    let mut pointer = 0;
    // SAFETY: plain calls; the answers have places.
    unsafe {
        for _ in 0..2 {
            let answer = sys::cuMemAllocManaged(&raw mut pointer, 64, 1);
            assert_eq!(answer, CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        assert_eq!(sys::cuProfilerStart(), CUresult::CUDA_ERROR_NOT_SUPPORTED);
        let mut table = std::ptr::null();
        let id = sys::CUuuid { bytes: [1; 16] };
        let answer = sys::cuGetExportTable(&raw mut table, &raw const id);
        assert_eq!(answer, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    }
    result::ctx::synchronize().expect("all the same");
}

/// Any function, called with nothing: its arguments are NULL or 0, however many it has.
type Plain = extern "C" fn(usize, usize, usize, usize, usize, usize, usize, usize) -> CUresult;

/// Calls every function that is not supported, before and after the GPU is there.
fn called_with_nothing() {
    // SAFETY: the library under test; its initialisers do nothing.
    let library = unsafe { libloading::Library::new("libcuda.so.1") }.expect("the shim");
    let call_all = || {
        for name in FUNCTIONS.iter().filter(|name| spec::support(name).is_none()) {
            // SAFETY: CUDA's functions take integers and pointers, and answer a result; the
            // caller clears the stack of arguments that a function does not have.
            let function: libloading::Symbol<'_, Plain> =
                unsafe { library.get(name.as_bytes()) }.expect(name);
            let answer = function(0, 0, 0, 0, 0, 0, 0, 0);
            assert_eq!(answer, CUresult::CUDA_ERROR_NOT_SUPPORTED, "{name}");
        }
    };
    call_all();
    let _context = CudaContext::new(0).expect("a context");
    call_all();
    result::ctx::synchronize().expect("all the same");
}

/// What the compiler says about a bad kernel reaches the program, with its line.
fn compiler_log() {
    let ptx = c".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k()\n{\n\tfrobnicate.b32 %r1;\n}\n";
    let mut log = [0u8; 512];
    let mut options = [
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(log.len())];
    let mut module = std::ptr::null_mut();
    // SAFETY: a text with its zero, two options, a log of the size that is given.
    let loaded = unsafe {
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        sys::cuModuleLoadDataEx(&raw mut module, ptx.as_ptr().cast(), 2, options, values)
    };
    assert_eq!(loaded, CUresult::CUDA_ERROR_INVALID_PTX);
    let said = String::from_utf8_lossy(&log);
    assert!(said.contains("line 6") && said.contains("frobnicate"), "{said}");
}

fn misuse() {
    let context = CudaContext::new(0).expect("a context");
    let stream = context.default_stream();
    let invalid = result::DriverError(CUresult::CUDA_ERROR_INVALID_VALUE);
    let null = std::ptr::null_mut::<u64>();
    // SAFETY: calls that the driver answers with an error; nothing is read or written.
    unsafe {
        assert_eq!(sys::cuMemAlloc_v2(null, 16).result(), Err(invalid));
        assert_eq!(sys::cuMemFree_v2(0xdead).result(), Err(invalid));
        assert_eq!(
            sys::cuMemcpyHtoD_v2(0xdead, [0u8; 4].as_ptr().cast(), 4).result(),
            Err(invalid)
        );
        let memory = result::malloc_sync(16).expect("memory");
        assert!(result::memset_d8_sync(memory, 1, 17).is_err(), "beyond the end");
        assert!(sys::cuStreamSynchronize(0x1234 as *mut _).result().is_err(), "no stream");
        result::free_sync(memory).expect("freed");
        assert_eq!(sys::cuMemFree_v2(memory).result(), Err(invalid), "freed twice");
    }
    compiler_log();
    let broken = context
        .load_module(Ptx::from_src(".version 8.0\n.target sm_90\n.address_size 64\nnonsense"))
        .err();
    assert_eq!(broken.map(|error| error.0), Some(CUresult::CUDA_ERROR_INVALID_PTX));
    let kernel = function(&context, FAULTS, "fill");
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (4096, 1, 1), shared_mem_bytes: 0 };
    let (value, n) = (1u32, 0u64);
    let mut memory = stream.alloc_zeros::<u32>(4).expect("memory");
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&mut memory).arg(&value).arg(&n);
    // SAFETY: it is refused.
    assert_eq!(unsafe { launch.launch(config) }.err(), Some(invalid));
    context.synchronize().expect("all is well");
}

fn no_lease() {
    assert_eq!(result::init(), Err(result::DriverError(CUresult::CUDA_ERROR_NO_DEVICE)));
    let mut count = 0;
    // SAFETY: a place for the answer.
    let counted = unsafe { sys::cuDeviceGetCount(&raw mut count) };
    assert_eq!(counted, CUresult::CUDA_ERROR_NOT_INITIALIZED);
}

fn fork() {
    let context = CudaContext::new(0).expect("a context");
    // SAFETY: the child calls nothing but the library under test and `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let unusable = result::DriverError(CUresult::CUDA_ERROR_NOT_INITIALIZED);
        let told = result::init() == Err(unusable) && result::ctx::synchronize() == Err(unusable);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if told { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child above.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child was not told");
    context.synchronize().expect("the parent goes on");
}

/// Not a test of its own: the other tests run it in processes of their own.
#[test]
#[ignore = "the other tests run it in processes of their own"]
fn tenant_process() {
    let role = std::env::var("TENANT_ROLE").unwrap_or_default();
    match role.as_str() {
        "vector_add" => vector_add(),
        "new_memory_is_zero" => new_memory_is_zero(),
        "limits" => limits(),
        "greedy" => greedy(),
        "fault" => fault(),
        "hold" => hold(),
        "lose_the_worker" => lose_the_worker(),
        "unsupported" => unsupported(),
        "called_with_nothing" => called_with_nothing(),
        "work_on_the_second" => work_on_the_second(),
        "reaches_the_host" => reaches_the_host(),
        "misuse" => misuse(),
        "no_lease" => no_lease(),
        "fork" => fork(),
        other if crate::roles::play(other) => {}
        other => panic!("no role '{other}'; this is run by the other tests"),
    }
}
