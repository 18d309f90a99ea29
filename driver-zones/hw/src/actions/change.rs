//! What an action changes, as a state before and one after. From wherever things stand, one pure
//! function says the next write on the way to either: so going on after a crash, undoing after a
//! failure and doing at all are the same, and doing it twice does nothing.

use std::fmt;
use std::path::PathBuf;

use gpuzone_core::devices::ResetMethod;
use gpuzone_core::{GpuUuid, PciAddress};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::SysfsRoot;
use crate::mig::{MigLayout, MigPlace, MigStep};
use crate::pci::parse::is_name;
use crate::pci::{SysfsError, parse, text};

/// What a function is bound to, and the only driver that may have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Now.
    pub driver: Option<String>,
    /// By the kernel's `driver_override`.
    pub only: Option<String>,
}

/// How many virtual functions there are, and whether the kernel looks for drivers for new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Functions {
    /// Now.
    pub enabled: u32,
    /// By itself.
    pub autoprobe: bool,
}

/// What makes mediated devices, as the kernel names it: a function's address, or a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MdevParent(String);

/// A text that names nothing in a folder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' names no parent of mediated devices; see /sys/class/mdev_bus")]
pub struct InvalidParent(String);

impl TryFrom<String> for MdevParent {
    type Error = InvalidParent;

    fn try_from(name: String) -> Result<Self, InvalidParent> {
        let plain = !name.is_empty() && is_name(&name.replace(':', "-"));
        if plain { Ok(Self(name)) } else { Err(InvalidParent(name.chars().take(80).collect())) }
    }
}

impl MdevParent {
    /// As the kernel names it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<MdevParent> for String {
    fn from(parent: MdevParent) -> Self {
        parent.0
    }
}

impl From<PciAddress> for MdevParent {
    fn from(address: PciAddress) -> Self {
        Self(address.to_string())
    }
}

/// What is acted on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A PCI function.
    Function(PciAddress),
    /// What makes mediated devices.
    Parent(MdevParent),
    /// What is cut into MIG instances.
    Gpu(GpuUuid),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(address) => address.fmt(f),
            Self::Parent(parent) => f.pad(&parent.0),
            Self::Gpu(gpu) => write!(f, "GPU {gpu}"),
        }
    }
}

impl From<PciAddress> for Subject {
    fn from(address: PciAddress) -> Self {
        Self::Function(address)
    }
}

/// Something that can be changed, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "of")]
pub enum Change {
    /// To what a function is bound.
    Binding {
        /// Which.
        address: PciAddress,
        /// Before.
        from: Binding,
        /// After.
        to: Binding,
    },
    /// The virtual functions of a physical one.
    Functions {
        /// Which.
        address: PciAddress,
        /// Before.
        from: Functions,
        /// After.
        to: Functions,
    },
    /// Whether a mediated device is there.
    Mdev {
        /// Whose.
        parent: MdevParent,
        /// Its type.
        kind: String,
        /// Which.
        uuid: Uuid,
        /// Before.
        from: bool,
        /// After.
        to: bool,
    },
    /// The vGPU on a virtual function that stays with NVIDIA's driver; 0 for none.
    Vgpu {
        /// Which.
        address: PciAddress,
        /// Before.
        from: u32,
        /// After.
        to: u32,
    },
    /// Whether a GPU instance is there.
    GpuInstance {
        /// Which.
        place: MigPlace,
        /// Before.
        from: bool,
        /// After.
        to: bool,
    },
    /// Whether a GPU instance has the compute instance that is all of it.
    ComputeInstance {
        /// Of which.
        place: MigPlace,
        /// Before.
        from: bool,
        /// After.
        to: bool,
    },
    /// The ways to reset a function, in the order in which the kernel tries them.
    ResetOrder {
        /// Which.
        address: PciAddress,
        /// Before.
        from: Vec<ResetMethod>,
        /// After.
        to: Vec<ResetMethod>,
    },
}

/// A write to a file of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub text: String,
}

/// What is done at once on the way to an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    File(Write),
    Cut(MigStep),
}

/// Which end a change is to be brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    From,
    To,
}

impl Change {
    /// What it is about.
    pub fn subject(&self) -> Subject {
        match self {
            Self::Binding { address, .. }
            | Self::Functions { address, .. }
            | Self::Vgpu { address, .. }
            | Self::ResetOrder { address, .. } => Subject::Function(*address),
            Self::Mdev { parent, .. } => Subject::Parent(parent.clone()),
            Self::GpuInstance { place, .. } | Self::ComputeInstance { place, .. } => {
                Subject::Gpu(place.gpu)
            }
        }
    }

    /// The place that is cut, where that is what it is about.
    pub(super) const fn place(&self) -> Option<&MigPlace> {
        match self {
            Self::GpuInstance { place, .. } | Self::ComputeInstance { place, .. } => Some(place),
            Self::Binding { .. }
            | Self::Functions { .. }
            | Self::Mdev { .. }
            | Self::Vgpu { .. }
            | Self::ResetOrder { .. } => None,
        }
    }

    /// The way back.
    #[must_use]
    pub fn reversed(self) -> Self {
        match self {
            Self::Binding { address, from, to } => Self::Binding { address, from: to, to: from },
            Self::Functions { address, from, to } => {
                Self::Functions { address, from: to, to: from }
            }
            Self::Mdev { parent, kind, uuid, from, to } => {
                Self::Mdev { parent, kind, uuid, from: to, to: from }
            }
            Self::Vgpu { address, from, to } => Self::Vgpu { address, from: to, to: from },
            Self::GpuInstance { place, from, to } => {
                Self::GpuInstance { place, from: to, to: from }
            }
            Self::ComputeInstance { place, from, to } => {
                Self::ComputeInstance { place, from: to, to: from }
            }
            Self::ResetOrder { address, from, to } => {
                Self::ResetOrder { address, from: to, to: from }
            }
        }
    }

    /// The next call of the driver's on the way to an end; `None` when it is reached, or the change is
    /// none of how a GPU is cut.
    pub(super) fn next_cut(&self, layout: &MigLayout, end: End) -> Option<MigStep> {
        let (place, from, to, compute) = match *self {
            Self::GpuInstance { place, from, to } => (place, from, to, false),
            Self::ComputeInstance { place, from, to } => (place, from, to, true),
            Self::Binding { .. }
            | Self::Functions { .. }
            | Self::Mdev { .. }
            | Self::Vgpu { .. }
            | Self::ResetOrder { .. } => return None,
        };
        let goal = if end == End::To { to } else { from };
        let found = layout.at(&place);
        match (found.is_some_and(|of| !compute || of.is_whole()), goal, compute) {
            (true, true, _) | (false, false, _) => None,
            (false, true, false) => Some(MigStep::MakeInstance(place)),
            (false, true, true) => Some(MigStep::MakeCompute(place)),
            (true, false, true) => Some(MigStep::EndCompute(place)),
            (true, false, false) => Some(MigStep::EndInstance(place)),
        }
    }

    /// The next write on the way to an end; `None` when it is reached, or none leads there.
    pub(super) fn next(&self, sysfs: &SysfsRoot, end: End) -> Result<Option<Write>, SysfsError> {
        let at = |address: PciAddress, file: &str| sysfs.function(address).join(file);
        let write = |path: PathBuf, text: String| Some(Write { path, text });
        Ok(match self {
            Self::GpuInstance { .. } | Self::ComputeInstance { .. } => None,
            Self::Binding { address, from, to } => {
                let (driver, only) = sysfs.binding(*address)?;
                let goal = if end == End::To { to } else { from };
                bind_next(sysfs, *address, &Binding { driver, only }, goal)
            }
            Self::Functions { address, from, to } => {
                let goal = if end == End::To { to } else { from };
                let now = sysfs.virtual_functions(*address)?;
                let gone = Functions { enabled: goal.enabled, autoprobe: goal.autoprobe };
                let now = now.map_or(gone, |(enabled, autoprobe)| Functions { enabled, autoprobe });
                if now.autoprobe != goal.autoprobe {
                    let word = u8::from(goal.autoprobe).to_string();
                    write(at(*address, "sriov_drivers_autoprobe"), word)
                } else if now.enabled == goal.enabled {
                    None
                } else {
                    // From one number to another the kernel goes by none only.
                    let next = if now.enabled == 0 { goal.enabled } else { 0 };
                    write(at(*address, "sriov_numvfs"), next.to_string())
                }
            }
            Self::Mdev { parent, kind, uuid, from, to } => {
                let goal = if end == End::To { *to } else { *from };
                let device = sysfs.0.join("bus/mdev/devices").join(uuid.to_string());
                match (device.exists(), goal) {
                    (true, false) => write(device.join("remove"), "1".to_owned()),
                    (false, true) => {
                        let kind = sysfs.mdev_parent(parent.as_str()).join(kind);
                        write(kind.join("create"), uuid.to_string())
                    }
                    (true, true) | (false, false) => None,
                }
            }
            Self::Vgpu { address, from, to } => {
                let goal = if end == End::To { *to } else { *from };
                match sysfs.current_vgpu(*address)? {
                    Some(now) if now != goal => {
                        // From one to another by none, as with functions.
                        let next = if now == 0 { goal } else { 0 };
                        write(at(*address, "nvidia/current_vgpu_type"), next.to_string())
                    }
                    Some(_) | None => None,
                }
            }
            Self::ResetOrder { address, from, to } => {
                let goal = if end == End::To { to } else { from };
                let file = at(*address, "reset_method");
                let now = text(&file)?.map(|text| parse::reset_methods(&text));
                let words = || goal.iter().map(|way| way.as_str()).collect::<Vec<_>>().join(" ");
                if now.is_none_or(|now| now == *goal) { None } else { write(file, words()) }
            }
        })
    }
}

/// The override comes first, for it changes nothing that runs; then the old driver goes, and the
/// new one comes.
fn bind_next(
    sysfs: &SysfsRoot,
    address: PciAddress,
    now: &Binding,
    goal: &Binding,
) -> Option<Write> {
    let driver_file = |driver: &str, file: &str| {
        // A name from the kernel's own links, or one that was checked when it was chosen.
        debug_assert!(is_name(driver));
        sysfs.0.join("bus/pci/drivers").join(driver).join(file)
    };
    let folder = sysfs.function(address);
    if !folder.exists() {
        return None;
    }
    if now.only != goal.only {
        // An empty line clears it.
        let text = format!("{}\n", goal.only.as_deref().unwrap_or_default());
        return Some(Write { path: folder.join("driver_override"), text });
    }
    if now.driver == goal.driver {
        return None;
    }
    let text = address.to_string();
    match (&now.driver, &goal.driver) {
        (Some(driver), _) => Some(Write { path: driver_file(driver, "unbind"), text }),
        (None, Some(driver)) if goal.only.as_ref() == Some(driver) => {
            Some(Write { path: sysfs.0.join("bus/pci/drivers_probe"), text })
        }
        // Without an override the kernel would choose among all that match.
        (None, Some(driver)) => Some(Write { path: driver_file(driver, "bind"), text }),
        (None, None) => None,
    }
}
