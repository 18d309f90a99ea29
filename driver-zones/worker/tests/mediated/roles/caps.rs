//! What a tenant runs into; see the test for the caps.

use cudarc::driver::sys::{self, CUresult};
use gpuzone_cuda_abi::image::{Packing, fat_binary_of_ptx};

use super::{KERNELS, allocate, context, get, kernels, ok};
use crate::tenant::{say, wait};

const OVER: CUresult = CUresult::CUDA_ERROR_OUT_OF_MEMORY;

/// What the next synchronisation says: errors of posted calls come there.
fn later() -> CUresult {
    // SAFETY: a plain call.
    unsafe { sys::cuCtxSynchronize() }
}

pub(super) fn caps() {
    context();
    let none = std::ptr::null_mut();
    // SAFETY: places for the answers, memory and texts of the sizes that are given.
    unsafe {
        let pinned = get(|place| sys::cuMemHostAlloc(place, 1 << 20, 0));
        let mut more = none;
        assert_eq!(sys::cuMemHostAlloc(&raw mut more, 1, 0), OVER);
        ok(sys::cuMemFreeHost(pinned));
        ok(sys::cuMemHostAlloc(&raw mut more, 1 << 20, 0));
        ok(sys::cuMemFreeHost(more));

        let pieces = [(); 2].map(|()| get(|place| sys::cuMemHostAlloc(place, 4096, 0)));
        assert_eq!(sys::cuMemHostAlloc(&raw mut more, 1, 0), OVER);
        pieces.into_iter().for_each(|piece| ok(sys::cuMemFreeHost(piece)));

        let image = kernels();
        let load = |place| sys::cuModuleLoadData(place, image.as_ptr().cast());
        let modules = [get(load), get(load)];
        let mut module = std::ptr::null_mut();
        assert_eq!(load(&raw mut module), OVER);
        // Each is looked up once in a module, and what a module had goes with it.
        let find = |module, name: &'static std::ffi::CStr, place| {
            sys::cuModuleGetFunction(place, module, name.as_ptr())
        };
        let [first, second] = modules;
        for (module, name) in
            [(first, c"add_one"), (first, c"add_one"), (first, c"empty"), (second, c"empty")]
        {
            get(|place| find(module, name, place));
        }
        let mut function = std::ptr::null_mut();
        assert_eq!(find(second, c"add_one", &raw mut function), OVER);
        ok(sys::cuModuleUnload(first));
        ok(find(second, c"add_one", &raw mut function));
        ok(sys::cuModuleUnload(second));
        // Small as it comes, large when it is unpacked.
        let padded = [KERNELS.as_bytes(), &[b' '; 100_000]].concat();
        let packed = lz4_flex::block::compress(&padded);
        let image = fat_binary_of_ptx(&packed, Packing::Lz4, padded.len() as u64);
        assert!(image.len() < 4096);
        assert_eq!(sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()), OVER);

        let streams = [(); 2].map(|()| get(|place| sys::cuStreamCreate(place, 1)));
        let mut stream = std::ptr::null_mut();
        ok(sys::cuStreamCreate(&raw mut stream, 1));
        assert_eq!(later(), OVER);
        streams.into_iter().for_each(|stream| ok(sys::cuStreamDestroy_v2(stream)));
        let events = [(); 2].map(|()| get(|place| sys::cuEventCreate(place, 0)));
        let mut event = std::ptr::null_mut();
        ok(sys::cuEventCreate(&raw mut event, 0));
        assert_eq!(later(), OVER);
        events.into_iter().for_each(|event| ok(sys::cuEventDestroy_v2(event)));

        let mut wanted: sys::CUmemPoolProps = std::mem::zeroed();
        wanted.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        wanted.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        let make = |place| sys::cuMemPoolCreate(place, &raw const wanted);
        let pools = [get(make), get(make)];
        let mut pool = std::ptr::null_mut();
        assert_eq!(make(&raw mut pool), OVER);
        pools.into_iter().for_each(|pool| ok(sys::cuMemPoolDestroy(pool)));

        let memory = [allocate(16), allocate(16)];
        let mut pointer = 0;
        assert_eq!(sys::cuMemAlloc_v2(&raw mut pointer, 16), OVER);
        memory.into_iter().for_each(|pointer| ok(sys::cuMemFree_v2(pointer)));
        ok(sys::cuMemAlloc_v2(&raw mut pointer, 16));
    }
    ok(later());
}

pub(super) fn reserved() {
    context();
    // SAFETY: places for the answers.
    unsafe {
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        let pool = get(|place| sys::cuDeviceGetDefaultMemPool(place, 0));
        let mut keep = u64::MAX;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        ok(sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut keep).cast()));
        let memory = get(|place| sys::cuMemAllocAsync(place, 48 << 20, stream));
        ok(sys::cuMemFreeAsync(memory, stream));
        ok(sys::cuStreamSynchronize(stream));
        say("freed", "");
        wait();
        // The same bytes again, for whoever fits into them.
        let again = get(|place| sys::cuMemAllocAsync(place, 40 << 20, stream));
        assert_eq!(again, memory);
        ok(sys::cuMemFreeAsync(again, stream));
        // There is no room for this without what the pool keeps.
        let other = get(|place| sys::cuMemAllocAsync(place, 20 << 20, stream));
        let more = get(|place| sys::cuMemAllocAsync(place, 20 << 20, stream));
        assert_ne!(other, more);
        say("taken", "");
        wait();
    }
}
