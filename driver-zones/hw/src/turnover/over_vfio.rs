//! The same for a device on VFIO: which reset, which BAR, and whose canary.

use std::io;

use gpuzone_core::PciAddress;
use gpuzone_core::devices::{NoReset, Reset, ResetPolicy, TurnoverTerms};

use super::{Target, TurnoverRecord, turn_over};
use crate::actions::{ActionError, Devices, Writes};
use crate::pci::{BarSpace, SysfsError};
use crate::vfio::{VfioDevice, VfioError};

/// What counts as a reset between two tenants, and how long one may take.
#[derive(Clone, Debug, Default)]
pub struct Between {
    /// Which resets, best first.
    pub policy: ResetPolicy,
    /// How long, and what the memory must show.
    pub terms: TurnoverTerms,
}

/// Why a device was not turned over: it goes to nobody, as if it had been condemned.
#[derive(Debug, thiserror::Error)]
pub enum BetweenError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] VfioError),
    /// It does not do what it is asked.
    #[error("{device} does not answer over VFIO: {source}; the kernel's log may say why")]
    Device {
        /// Which.
        device: PciAddress,
        /// Why.
        source: io::Error,
    },
    /// No reset counts.
    #[error("{device} has no reset that counts between tenants: {source}")]
    NoReset {
        /// Which.
        device: PciAddress,
        /// Why.
        source: NoReset,
    },
    /// Nothing of its memory can be seen.
    #[error("{0} shows nothing of its memory: it has no BAR in memory")]
    NoBar(PciAddress),
    /// The order of its resets cannot be set.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// sysfs is not what it should be.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
}

/// A device on VFIO, and the BAR in which its memory is seen.
#[derive(Debug)]
struct VfioTarget {
    device: VfioDevice,
    bar: u8,
    length: u64,
}

impl Target for VfioTarget {
    fn length(&self) -> u64 {
        self.length
    }

    fn read(&mut self, at: u64) -> io::Result<u64> {
        let mut word = [0; 8];
        self.device.read_bar(self.bar, at, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    fn write(&mut self, at: u64, word: u64) -> io::Result<()> {
        self.device.write_bar(self.bar, at, &word.to_le_bytes())
    }

    fn reset(&mut self, reset: Reset) -> io::Result<()> {
        match reset {
            Reset::Slot => self.device.reset_slot().map_err(io::Error::other),
            // Which way that is, the order says that is set around all of this.
            Reset::Function(_) => self.device.reset(),
        }
    }

    fn answers(&mut self) -> io::Result<bool> {
        // VFIO answers for the names by itself; command and status are the device's own.
        let mut command = [0; 4];
        self.device.read_config(4, &mut command)?;
        if command == [0xff; 4] {
            return Ok(false);
        }
        self.device.enable(false)?;
        Ok(true)
    }
}

/// Turns a device over that was opened for nobody else: by its slot or bus where that is its
/// own, else as the policy says. `seed` is known to nobody who had the device.
///
/// # Errors
/// When it could not be begun.
pub fn between_tenants<W: Writes>(
    devices: &mut Devices<W>,
    device: VfioDevice,
    between: &Between,
    seed: u64,
) -> Result<TurnoverRecord, BetweenError> {
    let address = device.address();
    let sysfs = devices.places().sysfs.clone();
    let failed = |source| BetweenError::Device { device: address, source };
    let function = sysfs.pci_function(address)?.ok_or(ActionError::Missing(address))?;
    // The largest window is the one on its memory.
    let in_memory = |bar: &&crate::pci::Bar| matches!(bar.space, BarSpace::Memory { .. });
    let bar = function.bars.iter().filter(in_memory).max_by_key(|bar| bar.size);
    let bar = bar.ok_or(BetweenError::NoBar(address))?.index;
    let scope = device.slot_scope().map_err(failed)?;
    let reset = between.policy.choose(&function.reset_methods, &scope);
    let reset = reset.map_err(|source| BetweenError::NoReset { device: address, source })?;
    device.enable(false).map_err(failed)?;
    let length = device.bar_size(bar).map_err(failed)?;
    let target = VfioTarget { device, bar, length };
    let turn = move || turn_over(address, target, reset, between.terms, seed);
    Ok(match reset {
        Reset::Slot => turn(),
        Reset::Function(method) => devices.with_reset_order(address, method, |_| Ok(turn()))?,
    })
}
