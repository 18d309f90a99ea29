//! What the driver API promises: faults, order, time, memory, and answers to wrong calls.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this whole file is a test"
)]

mod support;

use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult};
use support::{
    allocate, child, context, finish, free_memory, get, is_child, isolated, kernel, launch,
    launch_on, ok, read,
};

const FAULTS: &str = include_str!("../../kernels/ptx/faults.ptx");

#[test]
fn a_fault_sticks_to_its_context_and_to_no_other() {
    isolated("a_fault_sticks_to_its_context_and_to_no_other", || {
        let good = context(0);
        let kept = allocate(4096);
        let fill = kernel(FAULTS, "fill");
        let bad = context(0);
        let crash = kernel(FAULTS, "write_out_of_bounds");
        let base = allocate(4096);
        // The next context's memory is mapped in this process too, and yet out of bounds.
        ok(launch(crash, 1, 1, &mut [base, kept.wrapping_sub(base)]));
        let illegal = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
        // SAFETY: no pointers but places for results that outlive the calls.
        unsafe {
            assert_eq!(sys::cuCtxSynchronize(), illegal);
            assert_eq!(sys::cuMemAlloc_v2(&mut 0, 1), illegal);
            assert_eq!(launch(crash, 1, 1, &mut [base, 0]), illegal);
            assert_eq!(read(base, 1).0, illegal);
            assert_eq!(sys::cuMemFree_v2(base), illegal);
            ok(sys::cuCtxSetCurrent(good));
            ok(launch(fill, 1, 32, &mut [kept, 7, 1024]));
            assert_eq!(read(kept, 1024), (CUresult::CUDA_SUCCESS, vec![7; 1024]));
            let before = free_memory();
            ok(sys::cuCtxDestroy_v2(bad));
            assert_eq!(free_memory(), before + 4096, "its memory came back");
            assert_eq!(sys::cuCtxSetCurrent(bad), CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
        }
        context(0);
        ok(launch(kernel(FAULTS, "fill"), 1, 32, &mut [allocate(4096), 1, 1024]));
        // SAFETY: no pointers.
        ok(unsafe { sys::cuCtxSynchronize() });
    });
}

#[test]
fn freed_and_foreign_memory_is_out_of_bounds() {
    isolated("freed_and_foreign_memory_is_out_of_bounds", || {
        context(0);
        let foreign = allocate(4096);
        context(0);
        let freed = allocate(4096);
        // SAFETY: no pointers but the places of results.
        unsafe {
            ok(sys::cuMemFree_v2(freed));
            let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
            assert_eq!(sys::cuMemFree_v2(freed), invalid, "freed twice");
            assert_eq!(sys::cuMemFree_v2(foreign), invalid);
            assert_eq!(read(foreign, 1).0, invalid);
            let own = allocate(100);
            assert_eq!(sys::cuMemFree_v2(own + 4), invalid);
            assert_eq!(sys::cuMemsetD8_v2(own, 0, 101), invalid, "one byte too many");
            assert_eq!(sys::cuMemsetD8_v2(own, 0, usize::MAX), invalid);
            ok(sys::cuMemsetD8_v2(own, 0, 100));
        }
        ok(launch(kernel(FAULTS, "fill"), 1, 1, &mut [foreign, 1, 1]));
        // SAFETY: no pointers.
        let result = unsafe { sys::cuCtxSynchronize() };
        assert_eq!(result, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn work_is_done_in_order_and_events_tell_its_time() {
    isolated("work_is_done_in_order_and_events_tell_its_time", || {
        context(0);
        let (fill, spin) = (kernel(FAULTS, "fill"), kernel(FAULTS, "spin"));
        let data = allocate(4 << 10);
        // SAFETY: places for results outlive the calls; copies are of the buffers' sizes.
        unsafe {
            let stream = get(|out| sys::cuStreamCreate(out, 1));
            let events: [sys::CUevent; 3] = [(); 3].map(|()| get(|out| sys::cuEventCreate(out, 0)));
            let pinned: *mut c_void = get(|out| sys::cuMemHostAlloc(out, 4 << 10, 0));
            let pinned = pinned.cast::<u32>();
            ok(sys::cuEventRecord(events[0], stream));
            ok(launch_on(stream, spin, 1, 32, &mut [0, 20_000_000]));
            ok(sys::cuEventRecord(events[1], stream));
            assert_eq!(sys::cuEventQuery(events[1]), CUresult::CUDA_ERROR_NOT_READY);
            assert_eq!(sys::cuStreamQuery(stream), CUresult::CUDA_ERROR_NOT_READY);
            let mut unused = 0.0;
            let elapsed = sys::cuEventElapsedTime_v2(&raw mut unused, events[0], events[1]);
            assert_eq!(elapsed, CUresult::CUDA_ERROR_NOT_READY);
            for value in 1..=5 {
                ok(launch_on(stream, fill, 2, 64, &mut [data, value, 1024]));
                ok(sys::cuMemsetD32Async(data, 40, 1, stream));
            }
            ok(sys::cuMemcpyDtoHAsync_v2(pinned.cast(), data, 4 << 10, stream));
            ok(sys::cuEventRecord(events[2], stream));
            ok(sys::cuEventSynchronize(events[2]));
            let words = std::slice::from_raw_parts(pinned, 1024);
            assert!(words[0] == 40 && words[1..].iter().all(|word| *word == 5));
            let first = get(|out| sys::cuEventElapsedTime_v2(out, events[0], events[1]));
            let all = get(|out| sys::cuEventElapsedTime_v2(out, events[0], events[2]));
            assert!(first > 1.0 && all >= first, "{first} ms of {all} ms");
            ok(sys::cuStreamQuery(stream));
            ok(sys::cuMemFreeHost(pinned.cast()));
            ok(sys::cuStreamDestroy_v2(stream));
            assert_eq!(sys::cuStreamQuery(stream), CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
    });
}

#[test]
fn a_pageable_source_may_change_as_soon_as_the_call_is_back() {
    isolated("a_pageable_source_may_change_as_soon_as_the_call_is_back", || {
        context(0);
        let spin = kernel(FAULTS, "spin");
        let data = allocate(1 << 20);
        for words in [16, 200_000] {
            let mut source = vec![1u32; words];
            ok(launch(spin, 1, 32, &mut [0, 1_000_000]));
            // SAFETY: the source has as many bytes as are copied.
            let copied = unsafe {
                sys::cuMemcpyHtoDAsync_v2(data, source.as_ptr().cast(), words * 4, null_mut())
            };
            ok(copied);
            source.fill(2);
            assert_eq!(read(data, words), (CUresult::CUDA_SUCCESS, vec![1; words]));
        }
    });
}

#[test]
fn destroying_a_context_ends_a_kernel_that_would_not() {
    isolated("destroying_a_context_ends_a_kernel_that_would_not", || {
        let endless = context(0);
        ok(launch(kernel(FAULTS, "spin"), 64, 256, &mut [0, u64::MAX]));
        let started = std::time::Instant::now();
        // SAFETY: no pointers.
        ok(unsafe { sys::cuCtxDestroy_v2(endless) });
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    });
}

#[test]
fn memory_is_charged_exactly_and_runs_out() {
    isolated("memory_is_charged_exactly_and_runs_out", || {
        context(1);
        // 32 MiB, of which the context itself takes one.
        assert_eq!(free_memory(), 31 << 20);
        let first = allocate(1);
        assert_eq!(free_memory(), (31 << 20) - 512);
        let rest = allocate((31 << 20) - 512);
        assert_eq!(free_memory(), 0);
        let mut address = 0;
        // SAFETY: places for results outlive the calls.
        unsafe {
            let result = sys::cuMemAlloc_v2(&raw mut address, 1);
            assert_eq!(result, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
            assert_eq!(sys::cuMemAlloc_v2(&raw mut address, 0), CUresult::CUDA_ERROR_INVALID_VALUE);
            let huge = sys::cuMemAlloc_v2(&raw mut address, usize::MAX);
            assert_eq!(huge, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
            ok(sys::cuMemsetD32_v2(rest, 0xabcd, 1000));
            ok(sys::cuMemFree_v2(rest));
            ok(sys::cuMemFree_v2(first));
        }
        assert_eq!(free_memory(), 31 << 20);
        let mut context = null_mut();
        let filler = allocate(31 << 20);
        // SAFETY: as above.
        let result = unsafe { sys::cuCtxCreate_v4(&raw mut context, null_mut(), 0, 1) };
        assert_eq!(result, CUresult::CUDA_ERROR_OUT_OF_MEMORY, "no room for its overhead");
        let (_, words) = read(filler + 512, 1000);
        assert_eq!(words, vec![0xabcd; 1000], "nothing clears memory but writes");
        // SAFETY: as above.
        ok(unsafe { sys::cuMemsetD8_v2(filler, 0, 31 << 20) });
        assert_eq!(read(filler, 1024).1, vec![0; 1024]);
    });
}

#[test]
fn child_holds_memory() {
    if !is_child() {
        return;
    }
    context(0);
    allocate(48 << 20);
    println!("child is ready");
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_killed_process_gives_its_memory_back() {
    use std::io::BufRead;
    use std::process::Stdio;
    let name = "a_killed_process_gives_its_memory_back";
    if is_child() {
        context(0);
        assert_eq!(free_memory(), 64 << 20);
        allocate(64 << 20);
        println!("all of it is there");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut holder = child("child_holds_memory", folder.path());
    let mut holder = holder.stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("child is ready")));
    let full = finish(child(name, folder.path()));
    assert!(!full.status.success(), "the memory is in use");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let output = finish(child(name, folder.path()));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("all of it is there"), "{text}");
}
