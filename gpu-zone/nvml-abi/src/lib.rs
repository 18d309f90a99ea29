//! The C edge of a `libnvidia-ml.so.1`, and NVML's names: what the tenant's library and the
//! simulated GPU's have in common.
//!
//! Architecture invariant: nothing here knows where an answer comes from.

mod edge;
mod errors;
mod functions;
mod processes;

pub use edge::{
    INVALID, NO_PERMISSION, NOT_FOUND, NOT_SUPPORTED, Out, Return, TOO_SMALL, Text, UNINITIALIZED,
    UNKNOWN, VERSION_MISMATCH, answer, field, put_list, structure_version,
};
pub use errors::error_text;
pub use functions::{FUNCTIONS, changes_the_device};
pub use nvml_wrapper_sys::bindings;
pub use processes::{NO_INSTANCE, microseconds_now};

/// What every call answers, with success as `Ok`.
pub type Answer<T = ()> = Result<T, Return>;
