use std::io;
use std::path::PathBuf;

use gpuzone_core::PciAddress;

use super::Interface;
use crate::NotReady;

/// Why a device was not opened.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// It is not on VFIO, or its group is not.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// The kernel has not got that interface.
    #[error(
        "the kernel does not offer VFIO's {interface} interface: {} is not there ({needs}); nothing else is used in its place", .path.display()
    )]
    NoInterface {
        /// Which was asked for.
        interface: Interface,
        /// What is not there.
        path: PathBuf,
        /// What the kernel needs for it.
        needs: &'static str,
    },
    /// It is there and may not be opened.
    #[error("cannot open {}: {source}; the agent has to run as root, and vfio-pci has to be loaded", .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody has it.
    #[error("{} is open already, so {address} is somebody's; end the VM that has it", .path.display())]
    Busy {
        /// Which device.
        address: PciAddress,
        /// By what.
        path: PathBuf,
    },
    /// Something in the group is on a driver of the host.
    #[error(
        "the IOMMU group {group} of {address} is not viable: something else in it is on a driver of the host; bind that to vfio-pci, too, or to none"
    )]
    NotViable {
        /// Which device.
        address: PciAddress,
        /// Its group.
        group: u32,
    },
    /// A virtual function, or its physical one, needs a token.
    #[error(
        "{address} was refused: it needs the token that the owner of its physical function has set, and {}; whoever bound that one knows it", if *given { "this is another" } else { "none was given" }
    )]
    Token {
        /// Which device.
        address: PciAddress,
        /// Whether one was given.
        given: bool,
    },
    /// The kernel speaks another version.
    #[error("the kernel's VFIO has no {0}; it is too old, or of another kind")]
    Lacks(&'static str),
    /// Anything else.
    #[error("{step} of {address} failed: {source}; the kernel's log may say why")]
    Kernel {
        /// What was asked for.
        step: &'static str,
        /// Of which device.
        address: PciAddress,
        /// Why.
        source: io::Error,
    },
}

/// Why a slot was not reset.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// There is no such reset.
    #[error(
        "neither the slot nor the bus of {0} can be reset; leave reset out of its [[gpu]], and clear it by its own driver"
    )]
    None(PciAddress),
    /// It is not ours alone.
    #[error(
        "a reset of the slot of {address} would hit {other}, which is not handed over with it; hand both over together, or neither"
    )]
    Beyond {
        /// Which device.
        address: PciAddress,
        /// What else it would hit.
        other: PciAddress,
    },
    /// The kernel refused it.
    #[error("the reset of the slot of {address} failed: {source}; the kernel's log may say why")]
    Kernel {
        /// Which device.
        address: PciAddress,
        /// Why.
        source: io::Error,
    },
}
