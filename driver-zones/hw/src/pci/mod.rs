//! PCI functions as sysfs shows them: what they are, whom they go with, and into what they can be
//! cut.

mod cards;
pub mod parse;
mod partitions;
mod read;
mod scan;

use gpuzone_core::devices::ResetMethod;
use gpuzone_core::{MemoryBytes, PciAddress};
use uuid::Uuid;

pub use read::SysfsError;
pub(crate) use read::{entries, link_name, required_text, text};

/// NVIDIA's number as a vendor.
pub(crate) const NVIDIA: u16 = 0x10de;

/// What a function's class says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FunctionKind {
    /// A GPU: VGA, 3D or other display, or a processing accelerator.
    Gpu,
    /// A GPU's sound.
    Audio,
    /// NVIDIA's switch between GPUs.
    NvSwitch,
    /// A bridge of the host or between buses, which VFIO lets be.
    Bridge,
    /// Something else.
    Other,
}

impl FunctionKind {
    /// From the class code, `0x030200`, and the vendor.
    pub const fn of(class: u32, vendor: u16) -> Self {
        match (class >> 8, vendor) {
            (0x0300..=0x0380 | 0x1200, _) => Self::Gpu,
            (0x0403, _) => Self::Audio,
            (0x0680, NVIDIA) => Self::NvSwitch,
            (0x0600 | 0x0604, _) => Self::Bridge,
            _ => Self::Other,
        }
    }

    /// Its name in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Audio => "audio",
            Self::NvSwitch => "nvswitch",
            Self::Bridge => "bridge",
            Self::Other => "other",
        }
    }
}

/// Where a BAR is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarSpace {
    /// Among the ports.
    Io,
    /// In memory.
    Memory {
        /// Whether reading it changes nothing.
        prefetchable: bool,
        /// Whether its address has 64 bits.
        wide: bool,
    },
}

/// A window of a function into the machine's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// 0 to 5.
    pub index: u8,
    /// In bytes.
    pub size: u64,
    /// Where it is.
    pub space: BarSpace,
}

/// What the IOMMU cannot keep apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuGroup {
    /// Its number: `/dev/vfio/<number>`.
    pub number: u32,
    /// All in it, this function, too.
    pub members: Vec<PciAddress>,
}

/// A function that can have virtual ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sriov {
    /// At most.
    pub total: u32,
    /// Now.
    pub enabled: u32,
    /// Whether the kernel looks for drivers for them by itself.
    pub autoprobe: bool,
    /// Those that are there, by their number; fewer than `enabled` while they come or go.
    pub functions: Vec<PciAddress>,
    /// What a virtual function may use of Intel's GPUs, by its number, from 1; where the driver
    /// shows it.
    pub profiles: Vec<VfProfile>,
}

/// What Intel's xe driver gives a virtual function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VfProfile {
    /// Which, from 1.
    pub vf: u32,
    /// Its turn on the engines; 0 is no limit.
    pub exec_quantum_ms: Option<u32>,
    /// After so long it is stopped.
    pub preempt_timeout_us: Option<u32>,
    /// `low`, `normal` or `high`.
    pub priority: Option<String>,
    /// Of the device's memory.
    pub memory: Option<MemoryBytes>,
}

/// A type of mediated device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MdevType {
    /// The folder's name, as it is created by.
    pub id: String,
    /// What it is called.
    pub name: Option<String>,
    /// What it has.
    pub description: Option<String>,
    /// How many more there can be.
    pub available: u32,
}

/// A type of NVIDIA's vGPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VgpuType {
    /// Its number, as it is created by.
    pub id: u32,
    /// What it is called.
    pub name: String,
}

/// A virtual function on which NVIDIA's driver makes a vGPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VendorVgpu {
    /// The type of the one that is there; none if none is.
    pub current: Option<u32>,
    /// What can be made now.
    pub creatable: Vec<VgpuType>,
}

/// One function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Its vendor's number.
    pub vendor: u16,
    /// Its own.
    pub device: u16,
    /// Its class, like 0x030200.
    pub class: u32,
    /// What that says.
    pub kind: FunctionKind,
    /// Its name for drivers, `pci:v…`.
    pub modalias: Option<String>,
    /// The node of memory it is near to.
    pub numa_node: Option<u32>,
    /// What it is bound to.
    pub driver: Option<String>,
    /// The only driver that may have it.
    pub driver_override: Option<String>,
    /// Its windows.
    pub bars: Vec<Bar>,
    /// What it cannot be kept apart from; none without an IOMMU.
    pub group: Option<IommuGroup>,
    /// Functions of the same card that depend on it: a GPU's sound.
    pub companions: Vec<PciAddress>,
    /// How it can be reset, in the kernel's order.
    pub reset_methods: Vec<ResetMethod>,
    /// Whether it can have virtual functions.
    pub sriov: Option<Sriov>,
    /// Whose virtual function it is.
    pub physical: Option<PciAddress>,
    /// Into which mediated devices it can be cut.
    pub mdev_types: Vec<MdevType>,
    /// The mediated devices on it.
    pub mdevs: Vec<Uuid>,
    /// Whether NVIDIA's driver makes vGPUs on it.
    pub vgpu: Option<VendorVgpu>,
    /// Its name among VFIO's devices, `vfioN`.
    pub vfio_device: Option<String>,
}

impl PciFunction {
    /// What the list of known devices calls its vendor.
    pub fn vendor_name(&self) -> Option<&'static str> {
        use pci_ids::FromId;
        pci_ids::Vendor::from_id(self.vendor).map(pci_ids::Vendor::name)
    }

    /// What the list of known devices calls it. A device younger than the list is not in it.
    pub fn device_name(&self) -> Option<&'static str> {
        pci_ids::Device::from_vid_pid(self.vendor, self.device).map(pci_ids::Device::name)
    }

    /// Names where they are known, numbers where they are not.
    pub fn name(&self) -> String {
        let vendor = self.vendor_name().map_or_else(|| format!("{:04x}", self.vendor), short);
        match self.device_name() {
            Some(device) => format!("{vendor} {device}"),
            None => format!("{vendor} {:04x}", self.device),
        }
    }
}

/// A vendor's name without what its lawyers want behind it.
fn short(name: &str) -> String {
    let end =
        [" Corporation", ", Inc.", " Inc.", " Co., Ltd."].iter().find_map(|tail| name.find(tail));
    name.get(..end.unwrap_or(name.len())).unwrap_or(name).to_owned()
}
