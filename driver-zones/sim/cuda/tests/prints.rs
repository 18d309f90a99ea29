//! What kernels print, and assertions that do not hold.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this whole file is a test"
)]

mod support;

use cudarc::driver::sys::{self, CUresult};
use support::{allocate, child, context, finish, is_child, kernel, launch, ok};

const PRINT: &str = include_str!("../../kernels/ptx/print.ptx");

fn copied(bytes: &[u8]) -> u64 {
    let address = allocate(bytes.len());
    // SAFETY: the bytes outlive the call, and the allocation has room for them.
    ok(unsafe { sys::cuMemcpyHtoD_v2(address, bytes.as_ptr().cast(), bytes.len()) });
    address
}

fn synchronize() -> CUresult {
    // SAFETY: the call takes nothing.
    unsafe { sys::cuCtxSynchronize() }
}

/// Launches `greet` in two blocks, waits, then lets an assertion of `check` fail.
fn print_and_fail() {
    context(0);
    let (greet, check) = (kernel(PRINT, "greet"), kernel(PRINT, "check"));
    let name = copied(b"a test\0");
    ok(launch(greet, 2, 32, &mut [name, 7, 2.5_f64.to_bits()]));
    ok(synchronize());
    let values = copied(&[9, 0, 0, 0, 200, 0, 0, 0]);
    ok(launch(check, 1, 2, &mut [values, 100]));
    assert_eq!(synchronize(), CUresult::CUDA_ERROR_ASSERT);
}

#[test]
fn kernels_print_when_the_program_waits() {
    const NAME: &str = "kernels_print_when_the_program_waits";
    if is_child() {
        return print_and_fail();
    }
    let folder = tempfile::tempdir().unwrap();
    let output = finish(child(NAME, folder.path()));
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    // Blocks run side by side: the order of their lines is open.
    for (block, letter) in [(0, 'A'), (1, 'B')] {
        let line =
            format!("block {block} of a test:     7|7   |0002.500|{letter}|1099511627776|%\n");
        assert!(text.contains(&line), "{text}");
    }
    assert!(errors.contains("thread: [1,0,0] Assertion `values[threadIdx.x] < limit`"), "{errors}");
}
