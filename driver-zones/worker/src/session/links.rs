use std::ffi::c_void;

use gpuzone_cuda_abi::{CuResult, link_input};
use gpuzone_wire::ring::MAX_BULK;
use gpuzone_wire::spec::{Call, Link, LinkInput, Linked, Pieces};

use super::Session;
use super::jit::Compiler;
use crate::code::look_at_input;
use crate::driver::Driver;
use crate::host_room::Held;

/// A linker of the driver's, ended when this is.
struct Linker<'a> {
    driver: &'a Driver,
    state: *mut c_void,
}

impl Drop for Linker<'_> {
    fn drop(&mut self) {
        // SAFETY: the driver's linker, which nobody else knows.
        let _ = unsafe { (self.driver.link_destroy)(self.state) };
    }
}

impl Session {
    /// Links what was collected, and sends what is made of it.
    pub(super) fn link(&mut self, call: &mut Call<'_>, request: &Link) -> Result<Linked, CuResult> {
        let image = std::mem::take(&mut self.image);
        let none = Held::none(&self.lease.images);
        let _held = std::mem::replace(&mut self.image_held, none);
        let parts = self.cut(&image, &request.inputs)?;
        let mut compiler = Compiler::new(&request.settings, request.info_log, request.error_log)?;
        // Takes long, and nobody else is to wait for that.
        self.drain();
        self.enter(call.context)?;
        let lease = self.lease.clone();
        let made = {
            let (count, options, values) = compiler.options();
            let mut state = std::ptr::null_mut();
            // SAFETY: both lists have `count` elements; the logs outlive the linker, and so does
            // what is added.
            let created =
                unsafe { (lease.driver.link_create)(count, options, values, &raw mut state) };
            self.ask(created)?;
            let linker = Linker { driver: &lease.driver, state };
            make(&linker, parts).and_then(|code| self.send_code(call.pieces, code))
        };
        let linked = made.err().unwrap_or(CuResult::SUCCESS);
        // What a linker finds wrong goes with its log; a fault is this call's error.
        let _ = self.ask(linked);
        let (info_log, error_log) = compiler.logs();
        Ok(Linked { linked: linked.0, info_log, error_log })
    }

    /// Each input with its kind, and zeros behind it.
    fn cut(&self, image: &[u8], inputs: &[LinkInput]) -> Result<Vec<(u32, Vec<u8>)>, CuResult> {
        let mut rest = image;
        let mut parts = Vec::new();
        for input in inputs {
            if input.kind > link_input::LIBRARY {
                return Err(CuResult::NOT_SUPPORTED);
            }
            let bytes = usize::try_from(input.bytes).map_err(|_| CuResult::INVALID_VALUE)?;
            let (part, after) = rest.split_at_checked(bytes).ok_or(CuResult::INVALID_VALUE)?;
            look_at_input(part, self.lease.caps.unpacked_bytes)?;
            rest = after;
            // A text of PTX ends with a zero.
            parts.push((input.kind, [part, &[0]].concat()));
        }
        if rest.is_empty() && !parts.is_empty() { Ok(parts) } else { Err(CuResult::INVALID_VALUE) }
    }

    fn send_code(&self, pieces: &mut dyn Pieces, code: &[u8]) -> Result<(), CuResult> {
        if code.len() as u64 > self.lease.caps.module_bytes {
            return Err(CuResult::OUT_OF_MEMORY);
        }
        code.chunks(MAX_BULK).try_for_each(|piece| {
            pieces.send(piece.len(), &mut |target| {
                // SAFETY: there is room for the piece.
                unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), target, piece.len()) };
                Ok(())
            })
        })
    }
}

/// What the linker makes, which lies with the linker.
fn make<'a>(linker: &'a Linker<'_>, parts: Vec<(u32, Vec<u8>)>) -> Result<&'a [u8], CuResult> {
    let none = std::ptr::null_mut::<c_void>();
    for (kind, mut part) in parts {
        // The zero behind machine code is no part of it.
        let length = if kind == link_input::PTX { part.len() } else { part.len() - 1 };
        // SAFETY: the linker has copied the input when it returns; no options.
        unsafe {
            let (data, name) = (part.as_mut_ptr().cast(), c"tenant".as_ptr());
            let add = linker.driver.link_add;
            add(linker.state, kind, data, length, name, 0, none.cast(), none.cast())
        }
        .ok()?;
    }
    let (mut code, mut length) = (std::ptr::null_mut(), 0usize);
    // SAFETY: places for the answers.
    unsafe { (linker.driver.link_complete)(linker.state, &raw mut code, &raw mut length) }.ok()?;
    if code.is_null() {
        return Err(CuResult::UNKNOWN);
    }
    // SAFETY: the linker's own memory, as long as it says, until the linker is ended.
    Ok(unsafe { std::slice::from_raw_parts(code.cast_const().cast(), length) })
}
