//! What a hypervisor is to the rest: the seam between a machine that is described and the program that
//! runs it.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::cloud_hypervisor::{ApiError, CloudHypervisor};
use super::command::CommandError;
use super::probe::Probe;
use super::qemu::Qemu;
use super::qmp::QmpError;
use super::{Accelerator, MicroVms, VmSpec};
use crate::sandbox::Mount;

/// A program that runs microVMs. Chosen by name; none is taken in another's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Hypervisor {
    /// QEMU, over QMP.
    #[default]
    Qemu,
    /// Cloud Hypervisor, over HTTP.
    CloudHypervisor,
}

/// Why a hypervisor does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Of QEMU.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Of Cloud Hypervisor.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The machine cannot be described.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A window's socket cannot be made.
    #[error("cannot make a window's socket: {0}")]
    Socket(#[from] io::Error),
}

impl Hypervisor {
    pub(super) fn vmm(self) -> &'static dyn Vmm {
        match self {
            Self::Qemu => &Qemu,
            Self::CloudHypervisor => &CloudHypervisor,
        }
    }

    /// Its name, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "QEMU",
            Self::CloudHypervisor => "Cloud Hypervisor",
        }
    }

    /// Its arguments for the machine `name`.
    ///
    /// # Errors
    /// When the machine cannot be described to it.
    pub fn arguments(self, name: &str, vm: &VmSpec) -> Result<Vec<String>, CommandError> {
        self.vmm().arguments(name, vm)
    }

    /// How many listening sockets it inherits.
    pub fn sockets(self, ports: &[String]) -> usize {
        self.vmm().sockets(ports).len()
    }

    /// By what it can run guests.
    pub const fn accelerators(self) -> &'static [Accelerator] {
        match self {
            Self::Qemu => &[Accelerator::Kvm, Accelerator::Tcg],
            Self::CloudHypervisor => &[Accelerator::Kvm],
        }
    }

    /// By what it runs guests where there is no KVM, or by what it would.
    pub fn without_kvm(self) -> Accelerator {
        self.accelerators().last().copied().unwrap_or(Accelerator::Kvm)
    }

    /// How it is learnt whether a guest runs.
    pub fn probe(self) -> &'static dyn Probe {
        self.vmm().probe()
    }

    /// Where the guest finds the `n`th device by passthrough, on its bus 0: like `08.0`.
    pub fn device_place(self, n: usize) -> String {
        self.vmm().device_place(n)
    }
}

impl fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What differs from one hypervisor to the next.
///
/// Its process is started and ended as any zone's is: by the sandbox backend, and by its pidfd. What is
/// here is how it is told of the machine, over which sockets it and the guest are reached, and what it is
/// shown of the host for that.
pub(super) trait Vmm: Sync {
    /// Its arguments. It must run nothing of the guest's before [`Vmm::begin`].
    fn arguments(&self, name: &str, vm: &VmSpec) -> Result<Vec<String>, CommandError>;

    /// Names of the sockets that are made for it, listening, and which it gets as its descriptors 3, 4
    /// and so on.
    fn sockets(&self, ports: &[String]) -> Vec<String>;

    /// What of the machine may be on no command line: a file that it inherits behind its sockets.
    fn secrets(&self, _vm: &VmSpec) -> Result<Option<String>, CommandError> {
        Ok(None)
    }

    /// A folder that it writes to, where it needs one.
    fn own_folder(&self, vms: &MicroVms) -> Option<PathBuf>;

    /// What of the host it is shown beside its program, the kernel and the image.
    fn shown(&self, vms: &MicroVms) -> Vec<Mount>;

    /// Has the guest run, which it may do already.
    fn begin(&self, vms: &MicroVms, name: &str, vm: &VmSpec) -> Result<(), ControlError>;

    /// Whether a guest's ports can be connected before it runs; otherwise only a guest that has come so
    /// far answers.
    fn ports_come_first(&self) -> bool;

    /// Connects to a port of the guest's.
    fn connect(
        &self,
        vms: &MicroVms,
        name: &str,
        port: &str,
        patience: Duration,
    ) -> io::Result<UnixStream>;

    /// Asks it to end. It is ended by its pidfd after that, whatever it says.
    fn ask_to_end(&self, vms: &MicroVms, name: &str) -> Result<(), ControlError>;

    /// Removes what it left in its folder.
    fn clear(&self, vms: &MicroVms) -> io::Result<()>;

    /// A way to plug windows in.
    fn plugs(&self, vms: &MicroVms, name: &str) -> Box<dyn Plugs>;

    /// Where the guest finds a device by passthrough.
    fn device_place(&self, n: usize) -> String;

    /// How it is learnt whether a guest runs.
    fn probe(&self) -> &'static dyn Probe;
}

/// Memory files that are shown to a running guest as PCI devices, each at a place of its own.
pub(super) trait Plugs: fmt::Debug + Send {
    /// Shows `file` at place `number`; `name` is one that none had before. Answers where the guest finds
    /// it, on its bus 0.
    fn plug(
        &mut self,
        number: u16,
        name: &str,
        file: BorrowedFd<'_>,
    ) -> Result<String, ControlError>;

    /// Asks the guest to let go of it.
    fn unplug(&mut self, number: u16, name: &str) -> Result<(), ControlError>;

    /// Whether it has, so that the place is free again.
    fn is_gone(&mut self, number: u16, name: &str) -> Result<bool, ControlError>;

    /// Names of all that is plugged in.
    fn names(&mut self) -> Result<Vec<String>, ControlError>;
}
