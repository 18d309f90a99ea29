//! The options of `cuModuleLoadDataEx`: where the compiler's logs go.

use std::time::Instant;

use gpuzone_cuda_abi::{CuResult, JitOption};

use crate::Answer;
use crate::abi::{Array, HostBytes, Word};
use crate::driver::current;
use crate::module::{Module, Refusal};

/// Far more than there are options.
const MAX_OPTIONS: u32 = 256;

#[derive(Clone, Copy, Default)]
struct Log {
    buffer: Word,
    size: usize,
    /// Where among the options the size is reported back.
    size_at: Option<usize>,
}

impl Log {
    /// Writes `text` and a NUL, cutting what does not fit, and says how much that was.
    fn write(&self, text: &str, values: Array<Word>) -> Answer {
        let mut written = 0;
        if self.buffer != 0 && self.size > 0 {
            let mut bytes = text.as_bytes()[..text.len().min(self.size - 1)].to_vec();
            written = bytes.len();
            bytes.push(0);
            HostBytes::new(self.buffer, self.size)?.write(&bytes);
        }
        match self.size_at {
            Some(at) => values.set(at, written),
            None => Ok(()),
        }
    }
}

/// Where the compiler's logs go.
#[derive(Default)]
pub(super) struct Logs {
    info: Log,
    error: Log,
    /// Where among the options the time is reported back.
    time_at: Option<usize>,
}

impl Logs {
    pub(super) fn read(count: u32, options: Array<u32>, values: Array<Word>) -> Answer<Self> {
        if count > MAX_OPTIONS || (count > 0 && (options.is_null() || values.is_null())) {
            return Err(CuResult::INVALID_VALUE);
        }
        let mut logs = Self::default();
        for index in 0..usize::try_from(count).unwrap_or(0) {
            let value = values.get(index)?;
            // Sizes are 32 bits wide in a word whose upper half may be anything.
            let size = value & 0xffff_ffff;
            match JitOption(options.get(index)?) {
                JitOption::INFO_LOG_BUFFER => logs.info.buffer = value,
                JitOption::INFO_LOG_BUFFER_SIZE_BYTES => {
                    (logs.info.size, logs.info.size_at) = (size, Some(index));
                }
                JitOption::ERROR_LOG_BUFFER => logs.error.buffer = value,
                JitOption::ERROR_LOG_BUFFER_SIZE_BYTES => {
                    (logs.error.size, logs.error.size_at) = (size, Some(index));
                }
                JitOption::WALL_TIME => logs.time_at = Some(index),
                // The others tune a compiler that is not there.
                option if option.name().is_some() => {}
                _ => return Err(CuResult::INVALID_VALUE),
            }
        }
        Ok(logs)
    }

    /// Writes to the error log what a linker, which reports no sizes, says.
    pub(super) fn write_error(&self, text: &str) {
        let log = Log { size_at: None, ..self.error };
        // A buffer that is not there is not written to.
        let _ = log.write(text, Array::none());
    }
}

/// Loads `image` into the current context, with the compiler's options.
pub(super) fn load(
    image: &[u8],
    count: u32,
    options: Array<u32>,
    values: Array<Word>,
) -> Answer<Word> {
    let context = current()?;
    load_with(count, options, values, || Module::load(&context, image))
}

/// Loads something, with the compiler's options.
pub(super) fn load_with(
    count: u32,
    options: Array<u32>,
    values: Array<Word>,
    load: impl FnOnce() -> Result<Word, Refusal>,
) -> Answer<Word> {
    let Logs { info, error, time_at } = Logs::read(count, options, values)?;
    let start = Instant::now();
    let loaded = load();
    if let Some(at) = time_at {
        let milliseconds = start.elapsed().as_secs_f32() * 1e3;
        values.set(at, Word::try_from(milliseconds.to_bits()).unwrap_or(0))?;
    }
    match loaded {
        Ok(handle) => {
            info.write("loaded for the simulated GPU", values)?;
            error.write("", values)?;
            Ok(handle)
        }
        Err(Refusal { result, log }) => {
            info.write("", values)?;
            error.write(&log, values)?;
            Err(result)
        }
    }
}

/// As [`load`], without options.
pub(super) fn load_plain(image: &[u8]) -> Answer<Word> {
    Module::load(&current()?, image).map_err(|refusal| refusal.result)
}
