mod codes;

use std::fmt;

/// What a call of the driver API answers: `CUresult`. Any number may arrive from a driver that
/// is newer than this list, so it is a number with known names and no enumeration.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[must_use]
pub struct CuResult(pub u32);

macro_rules! results {
    ($($constant:ident = $code:literal, $name:literal, $description:literal;)*) => {
        impl super::CuResult {
            $(
                #[doc = concat!("`", $name, "`: ", $description, ".")]
                pub const $constant: Self = Self($code);
            )*

            /// All known results.
            pub const ALL: &[Self] = &[$(Self($code)),*];

            /// CUDA's name of the result, as `cuGetErrorName` has it.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some($name),)*
                    _ => None,
                }
            }

            /// What it means, as `cuGetErrorString` has it.
            pub const fn description(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some($description),)*
                    _ => None,
                }
            }
        }
    };
}
use results;

impl CuResult {
    /// Whether the call did what it was asked for.
    pub const fn is_success(self) -> bool {
        self.0 == Self::SUCCESS.0
    }

    /// Whether a context that answers this once answers it for ever: the faults that CUDA
    /// documents to leave the process in an inconsistent state.
    pub const fn is_context_fatal(self) -> bool {
        matches!(
            self,
            Self::ECC_UNCORRECTABLE
                | Self::NVLINK_UNCORRECTABLE
                | Self::CONTAINED
                | Self::ILLEGAL_ADDRESS
                | Self::LAUNCH_TIMEOUT
                | Self::ASSERT
                | Self::HARDWARE_STACK_ERROR
                | Self::ILLEGAL_INSTRUCTION
                | Self::MISALIGNED_ADDRESS
                | Self::INVALID_ADDRESS_SPACE
                | Self::INVALID_PC
                | Self::LAUNCH_FAILED
                | Self::TENSOR_MEMORY_LEAK
                | Self::EXTERNAL_DEVICE
        )
    }

    /// The result as a [`Result`].
    ///
    /// # Errors
    /// The result itself, unless it is a success.
    pub const fn ok(self) -> Result<(), Self> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for CuResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self.description()) {
            (Some(name), Some(description)) => write!(f, "{name} ({}): {description}", self.0),
            _ => write!(f, "CUDA error {}", self.0),
        }
    }
}

impl std::error::Error for CuResult {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_cudas_numbers_and_names() {
        assert_eq!(CuResult::OUT_OF_MEMORY, CuResult(2));
        assert_eq!(CuResult::NOT_SUPPORTED, CuResult(801));
        assert_eq!(CuResult(700).name(), Some("CUDA_ERROR_ILLEGAL_ADDRESS"));
        assert_eq!(CuResult(77).name(), None);
        assert_eq!(CuResult(2).to_string(), "CUDA_ERROR_OUT_OF_MEMORY (2): out of memory");
        assert_eq!(CuResult(77).to_string(), "CUDA error 77");
    }

    #[test]
    fn lists_each_result_once() {
        let mut codes: Vec<u32> = CuResult::ALL.iter().map(|result| result.0).collect();
        codes.dedup();
        assert_eq!(codes.len(), CuResult::ALL.len());
        assert!(codes.is_sorted());
    }
}
