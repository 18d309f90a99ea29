//! Devices over VFIO, by whichever of the kernel's two interfaces is asked for.
//!
//! ```text
//! Group:    /dev/vfio/vfio + /dev/vfio/<group> ─▶ container ─▶ device
//! Iommufd:  /dev/iommu + /dev/vfio/devices/vfioN ─▶ table ─▶ device
//! ```
//!
//! Neither is ever used in the other's place: whoever asks for one gets it, or an error.

mod error;
mod open;
mod sys;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use gpuzone_core::devices::ResetScope;
use gpuzone_core::{PciAddress, VfToken};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_RESET, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
};

pub use error::{SlotError, VfioError};
pub use open::{DevRoot, Interface, Opening, open_when_free};
pub use sys::DmaMemory;

/// Bits of the command register: answer to addresses in memory, and master the bus.
const MEMORY: u16 = 1 << 1;
const MASTER: u16 = 1 << 2;
const COMMAND: u64 = 4;

/// What holds a device's mappings.
#[derive(Debug)]
enum Access {
    Group { container: OwnedFd, group: OwnedFd, number: u32 },
    Iommufd { iommufd: OwnedFd, table: u32, id: u32 },
}

/// A device that this process alone has.
#[derive(Debug)]
pub struct VfioDevice {
    device: File,
    access: Access,
    address: PciAddress,
}

impl VfioDevice {
    /// By which interface it was opened.
    pub const fn interface(&self) -> Interface {
        match self.access {
            Access::Group { .. } => Interface::Group,
            Access::Iommufd { .. } => Interface::Iommufd,
        }
    }

    /// Where it is.
    pub const fn address(&self) -> PciAddress {
        self.address
    }

    /// How long a BAR is.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn bar_size(&self, bar: u8) -> io::Result<u64> {
        Ok(sys::region(self.device.as_fd(), bar.into())?.size)
    }

    fn at(&self, index: u32, offset: u64, length: usize) -> io::Result<u64> {
        let region = sys::region(self.device.as_fd(), index)?;
        let end = offset.checked_add(length as u64).filter(|end| *end <= region.size);
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "beyond the region's end");
        end.ok_or_else(outside)?;
        Ok(region.offset + offset)
    }

    /// Reads from a BAR.
    ///
    /// # Errors
    /// When it is beyond its end, or the device does not answer to memory.
    pub fn read_bar(&self, bar: u8, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.device.read_exact_at(to, self.at(bar.into(), offset, to.len())?)
    }

    /// Writes to a BAR.
    ///
    /// # Errors
    /// When it is beyond its end, or the device does not answer to memory.
    pub fn write_bar(&self, bar: u8, offset: u64, from: &[u8]) -> io::Result<()> {
        self.device.write_all_at(from, self.at(bar.into(), offset, from.len())?)
    }

    /// Reads from the configuration.
    ///
    /// # Errors
    /// When it is beyond its end.
    pub fn read_config(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let at = self.at(VFIO_PCI_CONFIG_REGION_INDEX, offset, to.len())?;
        self.device.read_exact_at(to, at)
    }

    /// Writes to the configuration.
    ///
    /// # Errors
    /// When it is beyond its end.
    pub fn write_config(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let at = self.at(VFIO_PCI_CONFIG_REGION_INDEX, offset, from.len())?;
        self.device.write_all_at(from, at)
    }

    /// Lets the device answer at its BARs, and with `master` reach what is mapped for it.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn enable(&self, master: bool) -> io::Result<()> {
        let mut command = [0; 2];
        self.read_config(COMMAND, &mut command)?;
        let other = u16::from_le_bytes(command) & !(MEMORY | MASTER);
        let command = other | MEMORY | if master { MASTER } else { 0 };
        self.write_config(COMMAND, &command.to_le_bytes())
    }

    /// Has its message-signalled interrupt counted by an eventfd.
    ///
    /// # Errors
    /// When it has none.
    pub fn set_interrupt(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        sys::set_interrupt(self.device.as_fd(), VFIO_PCI_MSI_IRQ_INDEX, eventfd)
    }

    /// Lets the device reach `memory` at `iova`, a multiple of the page size.
    ///
    /// # Errors
    /// When something is there already, or the kernel does not lock so much for this process.
    pub fn map(&self, iova: u64, memory: &DmaMemory) -> io::Result<()> {
        match &self.access {
            Access::Group { container, .. } => sys::map(container.as_fd(), iova, memory),
            Access::Iommufd { iommufd, table, .. } => {
                sys::map_in(iommufd.as_fd(), *table, iova, memory)
            }
        }
    }

    /// Takes that back; says how many bytes were mapped there.
    ///
    /// # Errors
    /// When a part of a mapping is asked for.
    pub fn unmap(&self, iova: u64, length: u64) -> io::Result<u64> {
        match &self.access {
            Access::Group { container, .. } => sys::unmap(container.as_fd(), iova, length),
            Access::Iommufd { iommufd, table, .. } => {
                sys::unmap_in(iommufd.as_fd(), *table, iova, length)
            }
        }
    }

    /// Sets what whoever opens one of its virtual functions has to know.
    ///
    /// # Errors
    /// When it is no physical function with virtual ones.
    pub fn set_token(&self, token: &VfToken) -> io::Result<()> {
        sys::set_token(self.device.as_fd(), token)
    }

    /// Whether the kernel can reset it by itself.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn can_reset(&self) -> io::Result<bool> {
        Ok(sys::device_flags(self.device.as_fd())? & VFIO_DEVICE_FLAGS_RESET != 0)
    }

    /// Resets it, in the first way of its order that works. It ends when the device is back.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reset(&self) -> io::Result<()> {
        sys::reset(self.device.as_fd())
    }

    /// What else a reset of its slot or bus would hit.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn slot_scope(&self) -> io::Result<ResetScope> {
        /// No such reset: neither the slot nor the bus has one.
        const ENODEV: i32 = 19;
        let dependent = match sys::hot_reset_info(self.device.as_fd()) {
            Ok(dependent) => dependent,
            Err(error) if error.raw_os_error() == Some(ENODEV) => return Ok(ResetScope::None),
            Err(error) => return Err(error),
        };
        let outside = dependent.iter().find(|other| match &self.access {
            Access::Group { number, .. } => other.id != *number,
            // What is not bound to our iommufd has no number of its own there.
            Access::Iommufd { id, .. } => other.id != *id && other.id != 0,
        });
        Ok(outside.map_or(ResetScope::Own, |other| {
            let (device, function) = (other.devfn >> 3, other.devfn & 7);
            let address = PciAddress::new(other.segment.into(), other.bus, device, function);
            ResetScope::Beyond(address.unwrap_or(self.address))
        }))
    }

    /// Resets all that is in its slot or on its bus, when that is nobody else's.
    ///
    /// # Errors
    /// When it would hit others, there is no such reset, or the kernel refuses.
    pub fn reset_slot(&self) -> Result<(), SlotError> {
        let address = self.address;
        let kernel = |source| SlotError::Kernel { address, source };
        match self.slot_scope().map_err(kernel)? {
            ResetScope::Own => {}
            ResetScope::None => return Err(SlotError::None(address)),
            ResetScope::Beyond(other) => return Err(SlotError::Beyond { address, other }),
        }
        let group = match &self.access {
            Access::Group { group, .. } => Some(group.as_fd()),
            Access::Iommufd { .. } => None,
        };
        sys::hot_reset(self.device.as_fd(), group).map_err(kernel)
    }
}
