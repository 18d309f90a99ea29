//! Zones that are virtual machines: a hypervisor as a process of its own, spoken to over a socket.
//!
//! It is started in a sandbox of ours (users of its own, a control group, no network, nothing of the
//! host but what it reads), with its own filter of system calls on top, and held back, so that no
//! instruction of the guest runs before the zone is written down. What differs from one hypervisor to
//! the next is a [`Vmm`](hypervisor::Vmm), and nothing outside of this module knows more of it than
//! its name ([`Hypervisor`]).

mod backend;
mod cloud_hypervisor;
mod command;
mod digest;
mod hypervisor;
mod outbox;
mod probe;
mod qemu;
pub mod qmp;
mod windows;

use std::path::PathBuf;

pub use backend::{CONTROL, KVM, MicroVmError, MicroVms};
pub use cloud_hypervisor::ApiError;
pub use command::{CommandError, MOST_DEVICES, MOST_WINDOWS, WINDOW_BYTES};
pub use digest::{DigestError, check_digest, digest_of};
use gpuzone_core::VfToken;
pub use hypervisor::{ControlError, Hypervisor};
pub use outbox::{Outbox, STALLED};
pub use probe::{PROBE_LIMIT, Probe, ProbeError, probe};
pub use windows::{Window, WindowError, Windows};

/// What makes the guest's processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The processor itself, through the host's kernel.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

impl Accelerator {
    /// As QEMU calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What kind of machine the guest finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// QEMU's `microvm`: virtio over MMIO, no PCI, so neither windows nor passthrough.
    MicroVm,
    /// QEMU's `q35`.
    Q35 {
        /// Bridges behind which windows can be plugged while it runs.
        windows: u16,
        /// Whether it has a virtual IOMMU, for guests that hand devices on.
        iommu: bool,
    },
}

/// A function of the host's that the guest gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passthrough {
    /// Like `0000:3b:00.0`.
    pub address: String,
    /// The token without which a VF whose PF is on VFIO too is not opened.
    pub vf_token: Option<VfToken>,
}

/// A microVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSpec {
    /// The hypervisor's program.
    pub program: PathBuf,
    /// A bzImage.
    pub kernel: PathBuf,
    /// The initial file system.
    pub image: PathBuf,
    /// What the kernel is told, beside what the machine takes.
    pub append: String,
    /// What makes its processors.
    pub accelerator: Accelerator,
    /// What it finds.
    pub machine: Machine,
    /// Bytes of its memory.
    pub memory: u64,
    /// Its processors.
    pub processors: u32,
    /// What it gets of the host's.
    pub devices: Vec<Passthrough>,
    /// Names of ports beside the control port, as the guest finds them.
    pub ports: Vec<String>,
}
