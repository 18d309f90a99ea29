use crate::codec::fields;

macro_rules! ids {
    ($($(#[$meta:meta])* $type:ident;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(pub u32);
        fields!($type(u32));
    )*};
}

ids! {
    /// A context, numbered by the tenant; 0 is none.
    ContextId;
    /// A loaded module, numbered by the tenant.
    ModuleId;
    /// A kernel of a module, numbered by the tenant.
    FunctionId;
    /// A stream, numbered by the tenant; the first three are CUDA's own.
    StreamId;
    /// An event, numbered by the tenant.
    EventId;
    /// Host memory that both sides share, numbered by the tenant.
    HostId;
    /// Device memory without addresses, numbered by the tenant.
    PhysicalId;
    /// A pool of device memory: a GPU's own is the GPU's number, others the tenant numbers.
    PoolId;
}

impl PoolId {
    /// The first number that a tenant may give.
    pub const FIRST: u32 = 1 << 16;
}

impl StreamId {
    /// The default stream.
    pub const DEFAULT: Self = Self(0);
    /// The default stream that waits for all others.
    pub const LEGACY: Self = Self(1);
    /// The default stream of a thread.
    pub const PER_THREAD: Self = Self(2);
    /// The first number that a tenant may give.
    pub const FIRST: u32 = 16;
}

/// An address in device memory: the driver's own, since kernels carry them inside of data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePtr(pub u64);
fields!(DevicePtr(u64));

/// Where an argument of a kernel lies among all of them, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// From the beginning.
    pub offset: u32,
    /// Its size.
    pub size: u32,
}
fields!(ParamInfo { offset, size });

/// An option of the compiler of kernels that is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JitSetting {
    /// Which, as in `CUjit_option`.
    pub option: u32,
    /// Its value.
    pub value: u64,
}
fields!(JitSetting { option, value });

/// A piece of what is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInput {
    /// What it is, as in `CUjitInputType`.
    pub kind: u32,
    /// Its size.
    pub bytes: u64,
}
fields!(LinkInput { kind, bytes });

/// An attribute of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchSetting {
    /// Which, as in `CUlaunchAttributeID`.
    pub attribute: u32,
    /// Its value, as far as it has that many numbers.
    pub value: [u32; 3],
}
fields!(LaunchSetting { attribute, value });
