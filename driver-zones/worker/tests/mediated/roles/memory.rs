use cudarc::driver::sys::{self, CUmemorytype, CUresult};

use super::{allocate, context, get, ok, read};

const DEFAULT: sys::CUstream = std::ptr::null_mut();

fn rows_2d(width: usize, height: usize) -> sys::CUDA_MEMCPY2D {
    let none = std::ptr::null_mut::<std::ffi::c_void>();
    sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: none.cast(),
        srcDevice: 0,
        srcArray: none.cast(),
        srcPitch: 0,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: CUmemorytype::CU_MEMORYTYPE_HOST,
        dstHost: none,
        dstDevice: 0,
        dstArray: none.cast(),
        dstPitch: 0,
        WidthInBytes: width,
        Height: height,
    }
}

pub(super) fn rows() {
    context();
    // SAFETY: memory and lists of the sizes that are given, places for the answers.
    unsafe {
        let (mut pitched, mut pitch) = (0, 0);
        ok(sys::cuMemAllocPitch_v2(&raw mut pitched, &raw mut pitch, 40, 9, 4));
        assert_eq!(pitch, 512);
        let source: Vec<u32> = (0..90).collect();
        let mut copy = rows_2d(40, 9);
        (copy.srcHost, copy.srcPitch) = (source.as_ptr().cast(), 40);
        (copy.dstMemoryType, copy.dstDevice) = (CUmemorytype::CU_MEMORYTYPE_DEVICE, pitched);
        copy.dstPitch = pitch;
        ok(sys::cuMemcpy2D_v2(&raw const copy));
        assert_eq!(read(pitched + 512, 10), (10..20).collect::<Vec<u32>>());
        // A window of it to other memory of the device, and that to the host.
        let window = allocate(4 * 12);
        let mut copy = rows_2d(12, 4);
        (copy.srcMemoryType, copy.srcDevice) = (CUmemorytype::CU_MEMORYTYPE_DEVICE, pitched);
        (copy.srcXInBytes, copy.srcY, copy.srcPitch) = (8, 3, pitch);
        (copy.dstMemoryType, copy.dstDevice) = (CUmemorytype::CU_MEMORYTYPE_DEVICE, window);
        copy.dstPitch = 12;
        ok(sys::cuMemcpy2DAsync_v2(&raw const copy, DEFAULT));
        assert_eq!(read(window, 12), [32, 33, 34, 42, 43, 44, 52, 53, 54, 62, 63, 64]);
        let mut back = vec![0u32; 8 * 4];
        (copy.srcDevice, copy.srcXInBytes, copy.srcY, copy.srcPitch) = (window, 0, 0, 12);
        copy.dstMemoryType = CUmemorytype::CU_MEMORYTYPE_HOST;
        (copy.dstHost, copy.dstPitch) = (back.as_mut_ptr().cast(), 32);
        ok(sys::cuMemcpy2DUnaligned_v2(&raw const copy));
        assert_eq!(back[8..11], [42, 43, 44]);
        assert_eq!(back[11..16], [0; 5], "what is beside a row is left alone");
        // Rows beyond the end.
        copy.srcY = 1;
        let beyond = sys::cuMemcpy2D_v2(&raw const copy);
        assert_eq!(beyond, CUresult::CUDA_ERROR_INVALID_VALUE);
        ok(sys::cuMemsetD2D32_v2(pitched, pitch, 5, 10, 2));
        ok(sys::cuMemsetD2D8Async(pitched + 512, pitch, 1, 4, 2, DEFAULT));
        assert_eq!(read(pitched, 10), [5; 10]);
        assert_eq!(read(pitched + 512, 2), [0x0101_0101, 5]);
        assert_eq!(read(pitched + 1024, 2), [0x0101_0101, 21]);
        boxes();
    }
}

/// A box of three dimensions there and back.
fn boxes() {
    // SAFETY: a `CUDA_MEMCPY3D` by its words; memory of the sizes that are given.
    unsafe {
        let source: Vec<u32> = (0..60).collect();
        let there = allocate(4 * 60);
        let (host, device) = (1, 2);
        // Each end: x, y, z, level, kind, host, device, array, nothing, pitch, height.
        let from = source.as_ptr().expose_provenance() as u64;
        let words: [u64; 25] = [
            4, 1, 1, 0, host, from, 0, 0, 0, 20, 4, // from
            0, 0, 0, 0, device, 0, there, 0, 0, 8, 2, // to
            8, 2, 2,
        ];
        ok(sys::cuMemcpy3D_v2((&raw const words).cast()));
        assert_eq!(read(there, 8), [26, 27, 31, 32, 46, 47, 51, 52]);
    }
}

pub(super) fn pinned() {
    context();
    let n = 300_000usize;
    let bytes = n * 4;
    // SAFETY: memory of the sizes that are given, places for the answers.
    unsafe {
        let host: *mut u32 = get(|place| sys::cuMemHostAlloc(place, bytes, 1)).cast();
        assert_eq!(get(|place| sys::cuMemHostGetFlags(place, host.cast())), 1u32);
        let data = std::slice::from_raw_parts_mut(host, n);
        assert!(data.iter().all(|word| *word == 0));
        data.iter_mut().zip(0u32..).for_each(|(word, value)| *word = value);
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        let there = allocate(bytes);
        ok(sys::cuMemcpyHtoDAsync_v2(there, host.cast(), bytes, stream));
        ok(sys::cuMemsetD32Async(there + 40, 7, 5, stream));
        ok(sys::cuMemcpyDtoHAsync_v2(host.add(10).cast(), there, bytes - 40, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!((data[9], data[10], data[19], data[20], data[25]), (9, 0, 9, 7, 15));
        ok(sys::cuMemcpyDtoH_v2(host.cast(), there, 44));
        assert_eq!(data[10], 7);
        let kind = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        let mut found = 0u32;
        let at = host.expose_provenance() as u64 + 100;
        ok(sys::cuPointerGetAttribute((&raw mut found).cast(), kind, at));
        assert_eq!(found, 1, "memory of the host");
        ok(sys::cuMemFreeHost(host.cast()));
        let again = sys::cuMemFreeHost(host.cast());
        assert_eq!(again, CUresult::CUDA_ERROR_INVALID_VALUE);
        // Memory of the program's own.
        let mut own = vec![1u8; 8192];
        let at = own.as_mut_ptr().cast();
        ok(sys::cuMemHostRegister_v2(at, 8192, 0));
        let twice = sys::cuMemHostRegister_v2(own.as_mut_ptr().add(100).cast(), 8, 0);
        assert_eq!(twice, CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        ok(sys::cuMemcpyHtoDAsync_v2(there, at, 8192, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(read(there, 3), [0x0101_0101; 3]);
        reached_by_kernels();
        ok(sys::cuMemHostUnregister(at));
        let again = sys::cuMemHostUnregister(at);
        assert_eq!(again, CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    }
}

/// Memory of the host that kernels read and write where it lies.
fn reached_by_kernels() {
    let function = super::kernel(c"add_one");
    // SAFETY: memory of the size that is given, places for the answers.
    unsafe {
        let host: *mut u32 = get(|place| sys::cuMemHostAlloc(place, 8192, 2)).cast();
        let there = get(|place| sys::cuMemHostGetDevicePointer_v2(place, host.cast(), 0));
        let further = host.add(1000).cast();
        let further = get(|place| sys::cuMemHostGetDevicePointer_v2(place, further, 0));
        assert_eq!(further, there + 4000);
        host.add(1000).write(41);
        ok(super::add_one(function, DEFAULT, further, 8));
        ok(sys::cuCtxSynchronize());
        assert_eq!(
            [host.add(1000).read(), host.add(1007).read(), host.add(1008).read()],
            [42, 1, 0]
        );
        // By that address it is the device's memory for copies, too.
        ok(sys::cuMemsetD32_v2(there, 9, 4));
        assert_eq!(read(there, 5), [9, 9, 9, 9, 0]);
        assert_eq!(host.add(3).read(), 9);
        let mut found = 0_u64;
        let kind = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_POINTER;
        let at = host.expose_provenance() as u64 + 8;
        ok(sys::cuPointerGetAttribute((&raw mut found).cast(), kind, at));
        assert_eq!(found, there + 8);
        ok(sys::cuMemFreeHost(host.cast()));
        assert!(sys::cuMemsetD32_v2(there, 1, 1).result().is_err(), "given back");
    }
}

/// Copies of all sizes, more than the rings hold, in two contexts: each byte arrives, also when the
/// program writes over it or ends the context as soon as the call is back.
pub(super) fn streamed() {
    const SIZES: [usize; 6] = [1, 100, 5_000, 65_536, 200_000, 3 << 20];
    const ALL: usize = 24 << 20;
    let first = context();
    let mut sizes = SIZES.into_iter().cycle();
    let fill = |bytes: &mut Vec<u8>, round: u32| {
        let word = |number: u32| number.wrapping_mul(0x9e37_79b9).wrapping_add(round).to_le_bytes();
        bytes.clear();
        bytes.extend((0..6 << 20).flat_map(word));
    };
    // SAFETY: memory of the sizes that are given, places for the answers.
    unsafe {
        let (there, stream) = (allocate(ALL), get(|place| sys::cuStreamCreate(place, 1)));
        let mut bytes = Vec::new();
        for round in 0..4 {
            fill(&mut bytes, round);
            let on = if round % 2 == 0 { stream } else { DEFAULT };
            let mut at = 0;
            while at < ALL {
                let size = sizes.next().unwrap().min(ALL - at);
                let to = there + at as u64;
                ok(sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().add(at).cast(), size, on));
                bytes[at..at + size].fill(0xee);
                at += size;
            }
            ok(sys::cuStreamSynchronize(on));
            fill(&mut bytes, round);
            let mut back = vec![0u8; ALL];
            let mut at = 0;
            while at < ALL {
                let size = sizes.next().unwrap().min(ALL - at);
                ok(sys::cuMemcpyDtoH_v2(back.as_mut_ptr().add(at).cast(), there + at as u64, size));
                at += size;
            }
            assert!(back == bytes, "round {round}");
            let second = get(|place| sys::cuCtxCreate_v4(place, std::ptr::null_mut(), 0, 0));
            let elsewhere = allocate(ALL);
            ok(sys::cuMemcpyHtoDAsync_v2(elsewhere, bytes.as_ptr().cast(), ALL, DEFAULT));
            ok(sys::cuCtxDestroy_v2(second));
            ok(sys::cuCtxSetCurrent(first));
        }
        ok(sys::cuMemFree_v2(there));
    }
}

/// The program's own memory is none that kernels reach.
pub(super) fn registered() {
    context();
    let mut own = vec![1u8; 8192];
    let at = own.as_mut_ptr().cast();
    // SAFETY: memory of the size that is given, which outlives its registration.
    unsafe {
        ok(sys::cuMemHostRegister_v2(at, 8192, 2));
        let mut place = 0;
        let refused = sys::cuMemHostGetDevicePointer_v2(&raw mut place, at, 0);
        assert_eq!(refused, CUresult::CUDA_ERROR_NOT_SUPPORTED);
        ok(sys::cuMemHostUnregister(at));
    }
}

/// What lies beside shared memory is out of reach.
pub(super) fn beside_pinned() {
    context();
    let function = super::kernel(c"add_one");
    // SAFETY: places for the answers.
    unsafe {
        let host = get(|place| sys::cuMemHostAlloc(place, 100, 0));
        let there = get(|place| sys::cuMemHostGetDevicePointer_v2(place, host, 0));
        let refused = sys::cuMemsetD8_v2(there + 4000, 1, 97);
        let later = sys::cuCtxSynchronize();
        assert!(refused.result().is_err() || later.result().is_err());
        ok(super::add_one(function, DEFAULT, there + 4096, 1));
        let fault = sys::cuCtxSynchronize();
        assert_eq!(fault, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    }
}

pub(super) fn pools() {
    context();
    // SAFETY: places for the answers, and numbers of the attributes' sizes.
    unsafe {
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        let pool = get(|place| sys::cuDeviceGetDefaultMemPool(place, 0));
        assert_eq!(get(|place| sys::cuDeviceGetMemPool(place, 0)), pool);
        let used = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let value = |which| {
            let mut value = 0u64;
            ok(sys::cuMemPoolGetAttribute(pool, which, (&raw mut value).cast()));
            value
        };
        let mut keep = u64::MAX;
        ok(sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut keep).cast()));
        assert_eq!(value(threshold), u64::MAX);
        let first = get(|place| sys::cuMemAllocAsync(place, 4096, stream));
        ok(sys::cuMemsetD8Async(first, 3, 4096, stream));
        assert_eq!(value(used), 4096);
        ok(sys::cuMemFreeAsync(first, stream));
        let mut properties: sys::CUmemPoolProps = std::mem::zeroed();
        properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        properties.maxSize = 1 << 20;
        let own = get(|place| sys::cuMemPoolCreate(place, &raw const properties));
        let mut too_much = 0;
        let refused = sys::cuMemAllocFromPoolAsync(&raw mut too_much, 2 << 20, own, stream);
        assert_eq!(refused, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        let memory = get(|place| sys::cuMemAllocFromPoolAsync(place, 1 << 20, own, stream));
        ok(sys::cuMemsetD32Async(memory, 9, 4, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(read(memory, 4), [9; 4]);
        ok(sys::cuMemFree_v2(memory));
        ok(sys::cuMemPoolTrimTo(own, 0));
        ok(sys::cuMemPoolDestroy(own));
        assert!(sys::cuMemPoolDestroy(pool).result().is_err(), "the GPU's own");
        let freed = sys::cuMemFreeAsync(memory, stream);
        assert_eq!(freed, CUresult::CUDA_ERROR_INVALID_VALUE, "freed twice");
        properties.handleTypes =
            sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
        let mut shared = std::ptr::null_mut();
        let refused = sys::cuMemPoolCreate(&raw mut shared, &raw const properties);
        assert_eq!(refused, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    }
}

pub(super) fn unified() {
    context();
    let (there, other) = (allocate(64), allocate(64));
    let data = [5u32; 16];
    let mut back = [0u32; 16];
    let address = |at: *const u32| at.expose_provenance() as u64;
    // SAFETY: memory of 64 bytes each.
    unsafe {
        ok(sys::cuMemcpy(there, address(data.as_ptr()), 64));
        ok(sys::cuMemcpyAsync(other, there, 64, DEFAULT));
        let target = back.as_mut_ptr();
        ok(sys::cuMemcpy(target.expose_provenance() as u64, other, 64));
    }
    assert_eq!(back, data);
}

pub(super) fn mapped() {
    context();
    // SAFETY: numbers and structures of the sizes that are asked for, places for the answers.
    unsafe {
        let mut wanted: sys::CUmemAllocationProp = std::mem::zeroed();
        wanted.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        wanted.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        let least = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        let grain =
            get(|place| sys::cuMemGetAllocationGranularity(place, &raw const wanted, least));
        let at = get(|place| sys::cuMemAddressReserve(place, 4 * grain, 0, 0, 0));
        let [first, second] =
            [(); 2].map(|()| get(|place| sys::cuMemCreate(place, grain, &raw const wanted, 0)));
        ok(sys::cuMemMap(at, grain, 0, first, 0));
        ok(sys::cuMemMap(at + grain as u64, grain, 0, second, 0));
        assert!(sys::cuMemMap(at, grain, 0, second, 0).result().is_err(), "taken");
        let refused = sys::cuMemsetD32_v2(at, 1, 4);
        assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_VALUE, "no access yet");
        let mut access: sys::CUmemAccessDesc = std::mem::zeroed();
        access.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        access.flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        ok(sys::cuMemSetAccess(at, 2 * grain, &raw const access, 1));
        assert_eq!(get(|place| sys::cuMemGetAccess(place, &raw const access.location, at)), 3);
        // Across the border between the two.
        let border = at + grain as u64 - 16;
        assert_eq!(read(border, 8), [0; 8], "new memory is zero");
        ok(sys::cuMemsetD32_v2(border, 7, 8));
        let function = super::kernel(c"add_one");
        ok(super::add_one(function, DEFAULT, border, 8));
        assert_eq!(read(border, 8), [8; 8]);
        // Released, the memory stays as long as it is mapped; unmapped, it is gone.
        ok(sys::cuMemRelease(first));
        ok(sys::cuMemRelease(second));
        assert_eq!(read(border, 8), [8; 8]);
        ok(sys::cuMemUnmap(at, 2 * grain));
        assert!(sys::cuMemsetD32_v2(at, 1, 4).result().is_err(), "nothing is there");
        ok(sys::cuMemAddressFree(at, 4 * grain));
        wanted.requestedHandleTypes =
            sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
        let mut shared = 0;
        let refused = sys::cuMemCreate(&raw mut shared, grain, &raw const wanted, 0);
        assert_eq!(refused, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    }
}
