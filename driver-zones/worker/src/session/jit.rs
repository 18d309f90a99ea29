//! What a tenant may tell the driver's compiler, and what the compiler tells it.

use std::ffi::c_void;

use gpuzone_cuda_abi::{CuResult, JitOption};
use gpuzone_wire::spec::JitSetting;

/// Bytes of a compiler's log that a tenant may ask for.
const MAX_LOG: u32 = 32 << 10;

/// Options that are numbers and touch nothing but the code.
const ALLOWED: [JitOption; 7] = [
    JitOption::MAX_REGISTERS,
    JitOption::OPTIMIZATION_LEVEL,
    JitOption::TARGET_FROM_CUCONTEXT,
    JitOption::TARGET,
    JitOption::FALLBACK_STRATEGY,
    JitOption::GENERATE_DEBUG_INFO,
    JitOption::GENERATE_LINE_INFO,
];

/// Options for one call, with the logs that it writes.
pub(super) struct Compiler {
    info: Vec<u8>,
    error: Vec<u8>,
    options: Vec<u32>,
    values: Vec<*mut c_void>,
}

impl Compiler {
    pub(super) fn new(
        settings: &[JitSetting],
        info_log: u32,
        error_log: u32,
    ) -> Result<Self, CuResult> {
        let log = |bytes: u32| vec![0u8; bytes.min(MAX_LOG) as usize];
        let (mut info, mut error) = (log(info_log), log(error_log));
        let (mut options, mut values) = (Vec::new(), Vec::new());
        for setting in settings {
            if !ALLOWED.contains(&JitOption(setting.option)) {
                return Err(CuResult::NOT_SUPPORTED);
            }
            let value = usize::try_from(setting.value).map_err(|_| CuResult::INVALID_VALUE)?;
            options.push(setting.option);
            values.push(std::ptr::without_provenance_mut::<c_void>(value));
        }
        for (log, buffer, size) in [
            (&mut info, JitOption::INFO_LOG_BUFFER, JitOption::INFO_LOG_BUFFER_SIZE_BYTES),
            (&mut error, JitOption::ERROR_LOG_BUFFER, JitOption::ERROR_LOG_BUFFER_SIZE_BYTES),
        ] {
            if !log.is_empty() {
                options.extend([buffer.0, size.0]);
                values
                    .extend([log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(log.len())]);
            }
        }
        Ok(Self { info, error, options, values })
    }

    /// The options as a call takes them: they last, as the logs do, as long as this does.
    pub(super) fn options(&mut self) -> (u32, *mut u32, *mut *mut c_void) {
        // A record holds far fewer of them.
        let count = u32::try_from(self.options.len()).unwrap_or(0);
        (count, self.options.as_mut_ptr(), self.values.as_mut_ptr())
    }

    /// The logs, as far as they were written.
    pub(super) fn logs(self) -> (Vec<u8>, Vec<u8>) {
        let text = |mut log: Vec<u8>| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            log.truncate(end);
            log
        };
        (text(self.info), text(self.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(options: &[u32], value: u64) -> Result<Compiler, CuResult> {
        let settings: Vec<JitSetting> =
            options.iter().map(|option| JitSetting { option: *option, value }).collect();
        Compiler::new(&settings, 0, 0)
    }

    /// A tenant's library leaves these out; a tenant need not use it.
    #[test]
    fn what_is_not_on_the_list_is_refused_whatever_stands_beside_it() {
        for option in JitOption::ALL.iter().filter(|option| !ALLOWED.contains(option)) {
            let refused = compiler(&[JitOption::TARGET.0, option.0], 1).err();
            assert_eq!(refused, Some(CuResult::NOT_SUPPORTED), "{option:?}");
        }
        assert_eq!(compiler(&[9999], 1).err(), Some(CuResult::NOT_SUPPORTED));
    }

    #[test]
    fn what_is_on_the_list_goes_to_the_driver_as_a_number() {
        let allowed = ALLOWED.map(|option| option.0);
        let mut compiler = compiler(&allowed, 7).expect("allowed");
        let (count, _, _) = compiler.options();
        assert_eq!((count as usize, &compiler.options[..]), (allowed.len(), &allowed[..]));
        assert!(compiler.values.iter().all(|value| value.addr() == 7));
    }

    #[test]
    fn logs_are_the_workers_own_and_no_longer_than_its_limit() {
        let compiler = Compiler::new(&[], u32::MAX, 8).expect("no options");
        assert_eq!((compiler.info.len(), compiler.error.len()), (MAX_LOG as usize, 8));
        assert_eq!(compiler.options, [3, 4, 5, 6]);
        assert_eq!(compiler.values[0].addr(), compiler.info.as_ptr().addr());
        assert_eq!(compiler.values[3].addr(), 8);
    }
}
