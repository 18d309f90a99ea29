use std::io;
use std::path::PathBuf;

use gpuzone_core::PciAddress;
use gpuzone_core::devices::NoReset;
use uuid::Uuid;

use super::change::Subject;
use super::journal::JournalError;
use crate::holders::{Holder, named};
use crate::mig::MigError;
use crate::pci::SysfsError;

/// Why nothing was done to a device. It is as it was, unless the sentence says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// Nothing at that address.
    #[error("there is no PCI function {0}; see whether lspci lists it")]
    Missing(PciAddress),
    /// Nothing keeps devices from the machine's memory.
    #[error(
        "{0} has no IOMMU group: turn the IOMMU on in the firmware, and with intel_iommu=on or amd_iommu=on on the kernel's command line (the kernel needs CONFIG_INTEL_IOMMU or CONFIG_AMD_IOMMU)"
    )]
    NoGroup(PciAddress),
    /// Others in the group have drivers of the host.
    #[error(
        "{address} shares the IOMMU group {group} with {}; bind those to VFIO with it, or to nothing", list(.members)
    )]
    Members {
        /// Which.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// The others, and their drivers.
        members: Vec<(PciAddress, String)>,
    },
    /// Somebody uses it.
    #[error("{subject} is in use: {}; end that first", named(.holders))]
    Held {
        /// Which.
        subject: Subject,
        /// By whom.
        holders: Vec<Holder>,
    },
    /// Its virtual functions would lose their card.
    #[error("{address} has {enabled} virtual functions; take those away first")]
    HasFunctions {
        /// Which.
        address: PciAddress,
        /// So many.
        enabled: u32,
    },
    /// The driver that belongs to it is not there.
    #[error("{address} needs the driver '{module}', which is not loaded: modprobe {module}{why}")]
    NoDriver {
        /// Which.
        address: PciAddress,
        /// Its module.
        module: String,
        /// What else may be missing.
        why: &'static str,
    },
    /// The kernel does not offer it.
    #[error("{address}: the kernel has no {file} for it; {why}")]
    NotOffered {
        /// Which.
        address: PciAddress,
        /// The file that is not there.
        file: &'static str,
        /// What may be missing.
        why: &'static str,
    },
    /// More functions than it can have.
    #[error(
        "{address} can have {total} virtual functions, and {asked} are asked for; ask for no more"
    )]
    TooMany {
        /// Which.
        address: PciAddress,
        /// At most.
        total: u32,
        /// Asked for.
        asked: u32,
    },
    /// A physical function on VFIO may not have virtual ones, unless its driver is told so.
    #[error(
        "{0} is on vfio-pci, which was loaded without enable_sriov=1: write Y to /sys/module/vfio_pci/parameters/enable_sriov"
    )]
    SriovOff(PciAddress),
    /// No such type, or none left.
    #[error("{subject} makes no more of '{kind}'; it makes {}", offered(.offers))]
    NoInstance {
        /// Which.
        subject: Subject,
        /// Asked for.
        kind: String,
        /// What there can be.
        offers: Vec<String>,
    },
    /// The place is somebody's.
    #[error("the vGPU on {address} is {}; ask that one to free it", owner.as_deref().map_or("nobody's that is known here".to_owned(), |owner| format!("that of {owner}")))]
    Owned {
        /// Which.
        address: PciAddress,
        /// Whose it is.
        owner: Option<String>,
    },
    /// The mediated device belongs to another, or is of another type.
    #[error(
        "the mediated device {uuid} is there already, and not as it is asked for; remove it (write 1 to its `remove` in sysfs) if nobody needs it"
    )]
    Taken {
        /// Which.
        uuid: Uuid,
    },
    /// We did not do it, so it is not ours to undo.
    #[error("{0} was not changed by gpu-zone, so there is nothing to give back")]
    NotOurs(String),
    /// An earlier action is not at its end.
    #[error(
        "{subject} is not as it should be since '{what}' failed and could not be undone ({reason}); put that right and start again"
    )]
    Unfinished {
        /// Which.
        subject: Subject,
        /// What was being done.
        what: String,
        /// Why it could not be undone.
        reason: String,
    },
    /// No reset counts.
    #[error("{address} cannot be reset as it should be between tenants: {source}")]
    NoReset {
        /// Which.
        address: PciAddress,
        /// Why.
        source: NoReset,
    },
    /// The kernel refused a write.
    #[error("writing '{text}' to {} failed: {source}; the kernel's log may say why", .path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// What.
        text: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel took a write, and nothing came of it.
    #[error(
        "the kernel took '{text}' for {} and did not do it; its log may say why", .path.display()
    )]
    Ignored {
        /// Where.
        path: PathBuf,
        /// What.
        text: String,
    },
    /// How a GPU is cut is not known, or it is not cut so.
    #[error(transparent)]
    Mig(#[from] MigError),
    /// It failed, and what was done of it was undone.
    #[error("{0}. All is as it was before")]
    AsBefore(#[source] Box<ActionError>),
    /// It failed, and the way back failed, too.
    #[error(
        "'{what}' failed ({first}) and could not be undone ({second}); {subject} serves nobody until it is"
    )]
    Stuck {
        /// Which.
        subject: Subject,
        /// What was being done.
        what: String,
        /// Why it failed.
        first: Box<ActionError>,
        /// Why it could not be undone.
        second: Box<ActionError>,
    },
    /// The journal cannot be written: nothing more is done.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// sysfs is not what it should be.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// It was reset, and something is left to be done.
    #[error(
        "{address} can be reset in one way only since its order of resets could not be put back ({source}); the next start does that"
    )]
    Order {
        /// Which.
        address: PciAddress,
        /// Why.
        source: Box<ActionError>,
    },
    /// Something that was done to it has to be given back first.
    #[error("{address} is still '{what}'; give that back first")]
    Kept {
        /// Which.
        address: PciAddress,
        /// What was done.
        what: String,
    },
}

fn list(members: &[(PciAddress, String)]) -> String {
    let one = |(address, driver): &(PciAddress, String)| format!("{address} (on {driver})");
    members.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn offered(offers: &[String]) -> String {
    if offers.is_empty() { "nothing now".to_owned() } else { offers.join(", ") }
}
