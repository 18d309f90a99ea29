//! Why a launch ended before its end.

/// Why a launch ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No live allocation holds the accessed bytes, or it may not be written.
    #[error("illegal {} of {bytes} bytes at {address:#x}", if *.write { "write" } else { "read" })]
    IllegalAddress {
        /// The first address of the access.
        address: u64,
        /// Size of the access in bytes.
        bytes: u32,
        /// Whether it was a write (an atomic operation counts as one).
        write: bool,
    },
    /// The address is not a multiple of the access's size.
    #[error("access of {bytes} bytes at {address:#x}, which is not a multiple of its size")]
    MisalignedAddress {
        /// The first address of the access.
        address: u64,
        /// Size of the access in bytes.
        bytes: u32,
    },
    /// The kernel executed `trap`.
    #[error("the kernel executed a trap instruction")]
    Trap,
    /// An `assert` of the kernel did not hold.
    #[error("{0}")]
    Assert(String),
    /// The caller set [`Launch::cancel`](crate::Launch::cancel).
    #[error("the launch was cancelled")]
    Cancelled,
    /// Every thread of a block that has not ended waits for one that will not come.
    #[error("the threads of a block wait at barriers that the others cannot reach")]
    BarrierDeadlock,
    /// The program did what no valid one does, such as a branch outside its table.
    #[error("the kernel is invalid: {0}")]
    InvalidProgram(&'static str),
    /// The launch does not fit the kernel or the machine.
    #[error("the launch is invalid: {0}")]
    InvalidLaunch(&'static str),
    /// The instruction budget of [`execute_within`](crate::execute_within) was used up.
    #[error("the launch used up its instruction budget")]
    LaunchTimeout,
}
