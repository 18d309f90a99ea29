mod device;
mod others;

pub use device::DeviceAttribute;
pub use others::{FunctionAttribute, JitOption, LaunchAttribute, Limit, PointerAttribute};

macro_rules! numbers {
    (
        $(#[$meta:meta])*
        $type:ident($number:ident) { $($constant:ident = $value:literal, $name:literal;)* }
    ) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(pub $number);

        impl $type {
            $(
                #[doc = concat!("`", $name, "`.")]
                pub const $constant: Self = Self($value);
            )*

            /// All known ones, by number.
            pub const ALL: &[Self] = &[$(Self($value)),*];

            /// CUDA's name.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($name),)*
                    _ => None,
                }
            }
        }
    };
}
use numbers;

/// Flags of `cuCtxCreate` and `cuDevicePrimaryCtxSetFlags`.
pub mod ctx_flags {
    /// Bits that say how a host thread waits.
    pub const SCHED_MASK: u32 = 0x07;
    /// Wait by blocking.
    pub const SCHED_BLOCKING_SYNC: u32 = 0x04;
    /// Host memory may be mapped; always on.
    pub const MAP_HOST: u32 = 0x08;
    /// All known bits.
    pub const MASK: u32 = 0xff;
}

/// Flags of `cuStreamCreate`.
pub mod stream_flags {
    /// Waits for, and is waited for by, the default stream.
    pub const DEFAULT: u32 = 0;
    /// Does not.
    pub const NON_BLOCKING: u32 = 1;
}

/// Flags of `cuEventCreate`.
pub mod event_flags {
    /// Timing, waiting by spinning.
    pub const DEFAULT: u32 = 0;
    /// Waiting by blocking.
    pub const BLOCKING_SYNC: u32 = 1;
    /// Takes no time stamp.
    pub const DISABLE_TIMING: u32 = 2;
    /// Shared with other processes.
    pub const INTERPROCESS: u32 = 4;
}

/// Flags of `cuMemHostAlloc`.
pub mod mem_host_flags {
    /// Pinned for all contexts.
    pub const PORTABLE: u32 = 1;
    /// Mapped into the device's addresses.
    pub const DEVICE_MAP: u32 = 2;
    /// Write-combined.
    pub const WRITE_COMBINED: u32 = 4;
}

/// `CUmemorytype`.
pub mod memory_type {
    /// Memory of the host.
    pub const HOST: u32 = 1;
    /// Memory of a device.
    pub const DEVICE: u32 = 2;
    /// An array.
    pub const ARRAY: u32 = 3;
    /// Whichever the address is of.
    pub const UNIFIED: u32 = 4;
}

/// `CUmemPool_attribute`, all of 32 or 64 bits.
pub mod pool_attribute {
    /// Reuse what is freed on another stream that is waited for; 32 bits.
    pub const REUSE_FOLLOW_EVENT_DEPENDENCIES: u32 = 1;
    /// Reuse what is known to be done; 32 bits.
    pub const REUSE_ALLOW_OPPORTUNISTIC: u32 = 2;
    /// Reuse by waiting for another stream; 32 bits.
    pub const REUSE_ALLOW_INTERNAL_DEPENDENCIES: u32 = 3;
    /// Bytes to keep when the program waits for its work.
    pub const RELEASE_THRESHOLD: u32 = 4;
    /// Bytes that the pool has of its device.
    pub const RESERVED_MEM_CURRENT: u32 = 5;
    /// The most of them there were.
    pub const RESERVED_MEM_HIGH: u32 = 6;
    /// Bytes that the program has of the pool.
    pub const USED_MEM_CURRENT: u32 = 7;
    /// The most of them there were.
    pub const USED_MEM_HIGH: u32 = 8;
}

/// `CUmoduleLoadingMode`.
pub mod module_loading {
    /// Modules load when they are asked for.
    pub const EAGER: u32 = 1;
    /// Kernels load when they are first used.
    pub const LAZY: u32 = 2;
}

/// `CUdriverProcAddressQueryResult`.
pub mod proc_address {
    /// Found.
    pub const SUCCESS: u32 = 0;
    /// No such name.
    pub const SYMBOL_NOT_FOUND: u32 = 1;
    /// The name appeared in a later version than the one that was asked for.
    pub const VERSION_NOT_SUFFICIENT: u32 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_cudas_numbers() {
        assert_eq!(DeviceAttribute::MULTIPROCESSOR_COUNT, DeviceAttribute(16));
        assert_eq!(DeviceAttribute::MEMORY_POOLS_SUPPORTED, DeviceAttribute(115));
        assert_eq!(JitOption::ERROR_LOG_BUFFER, JitOption(5));
        assert_eq!(PointerAttribute(2).name(), Some("CU_POINTER_ATTRIBUTE_MEMORY_TYPE"));
        assert!(DeviceAttribute::ALL.is_sorted() && DeviceAttribute::ALL.len() == 147);
    }
}
