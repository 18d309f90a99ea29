//! Programs whose kernels print.

use std::ffi::CString;

use cudarc::driver::sys::{self, CUresult};

use super::{allocate, context, get, module, ok, read};
use crate::tenant::say;

const PRINT: &str = include_str!("../../../../sim/kernels/ptx/print.ptx");

/// A kernel that prints a line for each of its blocks, and the name that stands in it.
struct Greeter {
    kernel: sys::CUfunction,
    name: u64,
}

impl Greeter {
    fn new(name: &str) -> Self {
        context();
        let module = module(&CString::new(PRINT).expect("no zero within"));
        // SAFETY: a name with its zero, and a place for the answer.
        let kernel =
            get(|place| unsafe { sys::cuModuleGetFunction(place, module, c"greet".as_ptr()) });
        let text = CString::new(name).expect("no zero within");
        let bytes = text.as_bytes_with_nul();
        let name = allocate(bytes.len());
        // SAFETY: as many bytes.
        ok(unsafe { sys::cuMemcpyHtoD_v2(name, bytes.as_ptr().cast(), bytes.len()) });
        Self { kernel, name }
    }

    fn greet(&self, blocks: u32, count: u32) {
        let (mut name, mut count, mut value) = (self.name, count, 2.5_f64);
        let mut list = [(&raw mut name).cast(), (&raw mut count).cast(), (&raw mut value).cast()];
        let none = std::ptr::null_mut();
        // SAFETY: the kernel's three arguments.
        ok(unsafe {
            let (stream, list) = (std::ptr::null_mut(), list.as_mut_ptr());
            sys::cuLaunchKernel(self.kernel, blocks, 1, 1, 32, 1, 1, 0, stream, list, none)
        });
    }
}

fn synchronize() {
    // SAFETY: a plain call.
    ok(unsafe { sys::cuCtxSynchronize() });
}

/// Waits in each way in which a program can, and says what it does between.
pub(super) fn prints() {
    let greeter = Greeter::new("a program");
    let other = allocate(64);
    say("begin", "");
    greeter.greet(1, 1);
    synchronize();
    say("synchronized", "");
    greeter.greet(1, 2);
    // SAFETY: a stream, an event and memory of this process, places for the answers.
    unsafe {
        ok(sys::cuStreamSynchronize(std::ptr::null_mut()));
        say("stream", "");
        greeter.greet(1, 3);
        let event = get(|place| sys::cuEventCreate(place, 0));
        ok(sys::cuEventRecord(event, std::ptr::null_mut()));
        ok(sys::cuEventSynchronize(event));
        say("event", "");
        greeter.greet(1, 4);
        read(greeter.name, 1);
        say("copy", "");
        greeter.greet(1, 5);
        ok(sys::cuMemFree_v2(other));
        say("free", "");
        greeter.greet(1, 6);
        // A context's end waits for no kernel.
        while sys::cuStreamQuery(std::ptr::null_mut()) != CUresult::CUDA_SUCCESS {}
        ok(sys::cuDevicePrimaryCtxRelease_v2(0));
    }
    say("end", "");
}

/// Prints many lines with a name of its own, and waits often.
pub(super) fn prints_often() {
    let greeter = Greeter::new(&std::env::var("TENANT_NAME").expect("a name"));
    for count in 0..300 {
        greeter.greet(1, count);
        if count % 3 == 0 {
            synchronize();
        }
    }
    synchronize();
    say("end", "");
}

/// Prints more than there is room for, and then a little.
pub(super) fn prints_too_much() {
    let greeter = Greeter::new("a flood");
    say("begin", "");
    greeter.greet(500, 1);
    synchronize();
    say("after", "");
    greeter.greet(1, 2);
    synchronize();
    say("end", "");
}
