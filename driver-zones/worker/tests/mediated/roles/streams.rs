use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::{self, CUresult};

use super::{add_one, allocate, context, get, kernel, ok, read};

pub(super) unsafe extern "C" fn count(counter: *mut c_void) {
    // SAFETY: the counter that was given with this function, which outlives the work.
    let counter = unsafe { &*counter.cast::<AtomicU32>() };
    counter.fetch_add(1, Ordering::SeqCst);
}

unsafe extern "C" fn count_of_stream(_: sys::CUstream, went: CUresult, counter: *mut c_void) {
    assert_eq!(went, CUresult::CUDA_SUCCESS);
    // SAFETY: as above.
    unsafe { count(counter) };
}

pub(super) fn host_functions() {
    context();
    let counter = AtomicU32::new(0);
    let data = (&raw const counter).cast_mut().cast::<c_void>();
    let function = kernel(c"add_one");
    let memory = allocate(64);
    // SAFETY: functions of this file with the counter that they want; the streams are waited for.
    unsafe {
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        let host: *mut u32 = get(|place| sys::cuMemHostAlloc(place, 64, 0)).cast();
        for _ in 0..10 {
            ok(add_one(function, stream, memory, 16));
            ok(sys::cuLaunchHostFunc(stream, Some(count), data));
            ok(sys::cuStreamAddCallback(stream, Some(count_of_stream), data, 0));
        }
        ok(sys::cuMemcpyDtoHAsync_v2(host.cast(), memory, 64, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(counter.load(Ordering::SeqCst), 20, "all have run before the stream is idle");
        assert_eq!(host.read(), 10);
        ok(sys::cuMemFreeHost(host.cast()));
    }
}

pub(super) fn own_streams() {
    let context = context();
    let context = context.expose_provenance();
    let function = kernel(c"add_one").expose_provenance();
    let memory = allocate(64);
    let thread = move || {
        let function = std::ptr::with_exposed_provenance_mut(function);
        let own = std::ptr::without_provenance_mut::<sys::CUstream_st>(2);
        // SAFETY: a context, and the thread's own stream.
        unsafe {
            ok(sys::cuCtxSetCurrent(std::ptr::with_exposed_provenance_mut(context)));
            for _ in 0..5 {
                ok(add_one(function, own, memory, 16));
            }
            ok(sys::cuStreamSynchronize(own));
        }
    };
    // Threads that come and go take their streams along.
    for _ in 0..20 {
        std::thread::spawn(thread).join().expect("a good end");
    }
    assert_eq!(read(memory, 16), [100; 16]);
}

pub(super) fn contexts() {
    let primary = context();
    // SAFETY: places for the answers.
    unsafe {
        let other = get(|place| sys::cuCtxCreate_v4(place, std::ptr::null_mut(), 4, 0));
        assert_eq!(get(|place| sys::cuCtxGetCurrent(place)), other);
        assert_eq!(get(|place| sys::cuCtxGetFlags(place)) & 7, 4);
        assert_eq!(get(|place| sys::cuCtxGetApiVersion(other, place)), 3020u32);
        let ids = [primary, other].map(|context| get(|place| sys::cuCtxGetId(context, place)));
        assert_ne!(ids[0], ids[1]);
        ok(sys::cuCtxPushCurrent_v2(primary));
        assert_eq!(get(|place| sys::cuCtxPopCurrent_v2(place)), primary);
        let stack = sys::CUlimit::CU_LIMIT_STACK_SIZE;
        ok(sys::cuCtxSetLimit(stack, 2048));
        assert_eq!(get(|place| sys::cuCtxGetLimit(place, stack)), 2048usize);
        ok(sys::cuCtxSetCacheConfig(sys::CUfunc_cache::CU_FUNC_CACHE_PREFER_L1));
        let config = get(|place| sys::cuCtxGetCacheConfig(place));
        assert_eq!(config, sys::CUfunc_cache::CU_FUNC_CACHE_PREFER_L1);
        let (mut least, mut greatest) = (1, 1);
        ok(sys::cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest));
        assert_eq!((least, greatest), (0, -5));
        let stream = get(|place| sys::cuStreamCreateWithPriority(place, 1, -100));
        assert_eq!(get(|place| sys::cuStreamGetPriority(stream, place)), -5);
        assert_eq!(get(|place| sys::cuStreamGetCtx(stream, place)), other);
        // Streams and events of several threads, waited for across them.
        let event = get(|place| sys::cuEventCreate(place, 0));
        ok(sys::cuEventRecord(event, stream));
        let second = get(|place| sys::cuStreamCreate(place, 1));
        ok(sys::cuStreamWaitEvent(second, event, 0));
        ok(sys::cuStreamSynchronize(second));
        ok(sys::cuEventQuery(event));
        ok(sys::cuCtxSynchronize());
        ok(sys::cuCtxDestroy_v2(other));
        let gone = sys::cuCtxPushCurrent_v2(other);
        assert!(gone.result().is_err());
    }
}
