//! The options of the compiler and the linker of kernels.

use std::ffi::{c_char, c_void};

use gpuzone_cuda_abi::{CuResult, JitOption};
use gpuzone_wire::spec::JitSetting;

use crate::ffi::Answer;

/// Where the program wants a log of the compiler.
#[derive(Clone, Copy, Default)]
pub(crate) struct Log {
    /// Where the program's buffer is; 0 where there is none.
    place: usize,
    size: u32,
}

impl Log {
    pub(crate) fn wanted(&self) -> u32 {
        if self.place == 0 { 0 } else { self.size }
    }

    pub(crate) fn write(&self, text: &[u8]) {
        let Some(most) = (self.size as usize).checked_sub(1).filter(|_| self.place != 0) else {
            return;
        };
        let place = std::ptr::with_exposed_provenance_mut::<c_char>(self.place);
        let kept = text.len().min(most);
        // SAFETY: the driver API's contract: the buffer has the size that was given with it.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), place, kept);
            place.add(kept).write(0);
        }
    }
}

#[derive(Clone, Default)]
pub(crate) struct Options {
    pub(crate) settings: Vec<JitSetting>,
    pub(crate) info: Log,
    pub(crate) error: Log,
}

/// Reads the options of `cuModuleLoadDataEx`. Numbers go to the worker, which judges them.
pub(crate) fn options(
    count: u32,
    names: *const u32,
    values: *const *mut c_void,
) -> Answer<Options> {
    let mut read = Options::default();
    if count == 0 {
        return Ok(read);
    }
    if names.is_null() || values.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    for index in 0..count as usize {
        // SAFETY: the driver API's contract: both lists have `count` elements.
        let (name, value) =
            unsafe { (names.add(index).read_unaligned(), values.add(index).read_unaligned()) };
        // A number stands in the pointer's place, as 32 bits.
        #[allow(clippy::cast_possible_truncation)]
        let small = value.addr() as u32;
        let place = value.expose_provenance();
        match JitOption(name) {
            JitOption::INFO_LOG_BUFFER => read.info.place = place,
            JitOption::INFO_LOG_BUFFER_SIZE_BYTES => read.info.size = small,
            JitOption::ERROR_LOG_BUFFER => read.error.place = place,
            JitOption::ERROR_LOG_BUFFER_SIZE_BYTES => read.error.size = small,
            JitOption::MAX_REGISTERS
            | JitOption::OPTIMIZATION_LEVEL
            | JitOption::TARGET_FROM_CUCONTEXT
            | JitOption::TARGET
            | JitOption::FALLBACK_STRATEGY
            | JitOption::GENERATE_DEBUG_INFO
            | JitOption::GENERATE_LINE_INFO => {
                read.settings.push(JitSetting { option: name, value: value.addr() as u64 });
            }
            // How fast, how loud, from which cache: nothing that a program sees.
            JitOption::THREADS_PER_BLOCK
            | JitOption::WALL_TIME
            | JitOption::LOG_VERBOSE
            | JitOption::CACHE_MODE
            | JitOption::FAST_COMPILE => {}
            _ => return Err(CuResult::NOT_SUPPORTED),
        }
    }
    Ok(read)
}
