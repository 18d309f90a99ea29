//! Which of the node's GPUs are handed over otherwise than mediated.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gpuzone_core::devices::PartMode;
use gpuzone_core::{Exposure, GpuUuid, Inventory, MemoryBytes, MigProfile, PciAddress, VgpuType};
use gpuzone_hw::vfio::Interface;
use serde::Deserialize;

use super::DriverKind;

/// A `[[gpu]]` of the configuration.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GpuTable {
    uuid: GpuUuid,
    exposure: Exposure,
    address: Option<PciAddress>,
    model: Option<String>,
    #[serde(default, deserialize_with = "super::file::memory")]
    memory: Option<MemoryBytes>,
    #[serde(default)]
    bind: bool,
    #[serde(default)]
    reset: bool,
    #[serde(default)]
    vfio: Vfio,
    vf_token_file: Option<PathBuf>,
    vgpu: Option<VgpuTable>,
    mig: Option<MigTable>,
}

/// A `[gpu.mig]`.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct MigTable {
    instances: Vec<WantedInstance>,
}

/// A MIG instance that the agent makes, at its place.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedInstance {
    /// What it is called by size.
    pub profile: MigProfile,
    /// The memory slice at which it begins.
    pub start: u32,
}

/// A `[gpu.vgpu]`.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct VgpuTable {
    by: By,
    #[serde(rename = "type")]
    kind: VgpuType,
    count: u32,
    #[serde(deserialize_with = "super::file::memory")]
    memory: Option<MemoryBytes>,
}

/// What makes vGPUs.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    Mdev,
    Vendor,
    Vf,
}

/// By which interface of the kernel's the agent opens a device that it resets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Vfio {
    #[default]
    Group,
    Iommufd,
}

impl From<Vfio> for Interface {
    fn from(vfio: Vfio) -> Self {
        match vfio {
            Vfio::Group => Self::Group,
            Vfio::Iommufd => Self::Iommufd,
        }
    }
}

/// A GPU that is handed over whole, by passthrough. The driver's library does not list it while
/// it is on a VFIO driver, so the configuration says what that would say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassthroughGpu {
    /// As the driver calls it.
    pub uuid: GpuUuid,
    /// Where it sits.
    pub address: PciAddress,
    /// Product name.
    pub model: String,
    /// All of its memory.
    pub memory: MemoryBytes,
    /// Whether the agent binds it to its driver for VFIO.
    pub bind: bool,
    /// By what the agent opens it to clear it between tenants, if that is left to it.
    pub reset: Option<Interface>,
    /// The file with its token, where it is a virtual function whose physical one is on VFIO.
    pub token_file: Option<PathBuf>,
}

/// What a GPU is cut into, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutBy {
    /// Mediated devices of the type with the cut's name.
    Mdev,
    /// NVIDIA's vGPUs of the type with this number, on virtual functions that are there.
    Vendor {
        /// The number.
        kind: u32,
    },
    /// Virtual functions on their driver for VFIO.
    Functions,
}

impl CutBy {
    /// How the allocator of devices calls it.
    pub const fn mode(&self) -> PartMode {
        match self {
            Self::Mdev => PartMode::Mdev,
            Self::Vendor { .. } => PartMode::VendorVgpu,
            Self::Functions => PartMode::Vf,
        }
    }
}

/// A GPU that is handed over as vGPUs, which the agent makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VgpuGpu {
    /// The GPU. Whether its vGPUs are cleared between tenants is in it, too.
    pub gpu: PassthroughGpu,
    /// By what.
    pub by: CutBy,
    /// What they are called by size.
    pub kind: VgpuType,
    /// How many.
    pub count: u32,
    /// Of each.
    pub memory: MemoryBytes,
}

/// The GPUs that are not handed over mediated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuTables {
    /// As vGPUs.
    pub vgpu: Vec<VgpuGpu>,
    /// Whole, by passthrough.
    pub passthrough: Vec<PassthroughGpu>,
    /// As MIG instances. Any GPU in MIG mode is, named here or not.
    pub mig: BTreeSet<GpuUuid>,
    /// Those instances that the agent makes of such GPUs.
    pub instances: BTreeMap<GpuUuid, Vec<WantedInstance>>,
}

/// Why `[[gpu]]` is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuTableError {
    /// Two tables of one GPU.
    #[error("[[gpu]] {0} is there twice, or its address is; write one table for each GPU")]
    Twice(GpuUuid),
    /// Something that nobody else knows.
    #[error(
        "[[gpu]] {gpu}: exposure = \"{exposure}\" needs {missing}, as `gpu-zone gpus` shows it while the GPU is mediated: its driver does not see it later"
    )]
    Incomplete {
        /// Which.
        gpu: GpuUuid,
        /// How it is to be handed over.
        exposure: Exposure,
        /// The key.
        missing: &'static str,
    },
    /// vGPUs without a word on which.
    #[error(
        "[[gpu]] {0}: exposure = \"vgpu\" and a table [gpu.vgpu] with by, type, count and memory belong together; write both, or neither"
    )]
    Uncut(GpuUuid),
    /// A key of [gpu.vgpu] that makes no sense.
    #[error("[[gpu]] {gpu}: [gpu.vgpu] {why}")]
    Cut {
        /// Which.
        gpu: GpuUuid,
        /// What is wrong, and what to write.
        why: String,
    },
    /// MIG instances of a GPU that is handed over otherwise.
    #[error(
        "[[gpu]] {0}: [gpu.mig] belongs to exposure = \"mig\"; write that, or leave the table out"
    )]
    Unmigged(GpuUuid),
    /// Two at one place.
    #[error("[[gpu]] {gpu}: two of [gpu.mig]'s instances begin at memory slice {start}; move one")]
    SamePlace {
        /// Which.
        gpu: GpuUuid,
        /// Where.
        start: u32,
    },
    /// A token for what takes none.
    #[error(
        "[[gpu]] {0}: vf_token_file is for a virtual function that is handed over whole (exposure = \"passthrough\"); leave it out here"
    )]
    Token(GpuUuid),
    /// A token's file by a name that depends on who looks.
    #[error("[[gpu]] {0}: vf_token_file has to be a path from /")]
    TokenPath(GpuUuid),
    /// The machine's own functions beside simulated GPUs.
    #[error(
        "[[gpu]] {0}: passthrough, and vgpu, beside the simulated driver needs [node] sysfs, a folder that stands for /sys: what sits at that address of this machine is no simulated GPU"
    )]
    RealSysfs(GpuUuid),
}

/// The GPUs that are handed over otherwise than mediated. `own_sysfs` says that the configuration names
/// another sysfs than the machine's.
pub(super) fn exposed(
    tables: Vec<GpuTable>,
    driver: DriverKind,
    own_sysfs: bool,
) -> Result<GpuTables, GpuTableError> {
    let (mut uuids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    let mut found = GpuTables::default();
    for table in tables {
        let GpuTable { uuid, exposure, address, model, memory, bind, reset, vfio, .. } = table;
        let GpuTable { vf_token_file: token_file, vgpu, mig, .. } = table;
        let same_address = address.is_some_and(|address| !addresses.insert(address));
        if !uuids.insert(uuid) || same_address {
            return Err(GpuTableError::Twice(uuid));
        }
        if vgpu.is_some() != (exposure == Exposure::Vgpu) {
            return Err(GpuTableError::Uncut(uuid));
        }
        check_token(uuid, exposure, token_file.as_deref())?;
        if let Some(MigTable { instances }) = mig {
            found.instances.insert(uuid, places(uuid, exposure, instances)?);
        }
        match exposure {
            Exposure::Mediated => continue,
            Exposure::Passthrough | Exposure::Vgpu => {}
            Exposure::Mig => {
                found.mig.insert(uuid);
                continue;
            }
        }
        match driver {
            DriverKind::Simulated if !own_sysfs => return Err(GpuTableError::RealSysfs(uuid)),
            DriverKind::Simulated | DriverKind::Nvidia => {}
        }
        let missing = |missing| GpuTableError::Incomplete { gpu: uuid, exposure, missing };
        let memory = memory.filter(|memory| !memory.is_zero());
        let gpu = PassthroughGpu {
            uuid,
            address: address.ok_or(missing("address"))?,
            model: model.ok_or(missing("model"))?,
            memory: memory.ok_or(missing("memory"))?,
            bind,
            reset: reset.then_some(vfio.into()),
            token_file,
        };
        match vgpu {
            Some(table) => found.vgpu.push(cut(gpu, table)?),
            None => found.passthrough.push(gpu),
        }
    }
    Ok(found)
}

fn places(
    gpu: GpuUuid,
    exposure: Exposure,
    instances: Vec<WantedInstance>,
) -> Result<Vec<WantedInstance>, GpuTableError> {
    if exposure != Exposure::Mig {
        return Err(GpuTableError::Unmigged(gpu));
    }
    let mut starts = BTreeSet::new();
    let twice = instances.iter().find(|wanted| !starts.insert(wanted.start));
    match twice.map(|wanted| wanted.start) {
        Some(start) => Err(GpuTableError::SamePlace { gpu, start }),
        None => Ok(instances),
    }
}

fn check_token(gpu: GpuUuid, exposure: Exposure, file: Option<&Path>) -> Result<(), GpuTableError> {
    match (file, exposure) {
        (None, _) => Ok(()),
        (Some(file), Exposure::Passthrough) if file.is_absolute() => Ok(()),
        (Some(_), Exposure::Passthrough) => Err(GpuTableError::TokenPath(gpu)),
        (Some(_), Exposure::Mediated | Exposure::Mig | Exposure::Vgpu) => {
            Err(GpuTableError::Token(gpu))
        }
    }
}

fn cut(gpu: PassthroughGpu, table: VgpuTable) -> Result<VgpuGpu, GpuTableError> {
    let wrong = |why: String| GpuTableError::Cut { gpu: gpu.uuid, why };
    if gpu.bind {
        let why = "and bind = true: the agent binds what it makes itself; leave bind out";
        return Err(wrong(why.to_owned()));
    }
    let VgpuTable { by, kind, count, memory } = table;
    if count == 0 || count as usize > Inventory::MOST_PARTS {
        let most = Inventory::MOST_PARTS;
        return Err(wrong(format!("count = {count} is not from 1 to {most}")));
    }
    let memory = memory.filter(|memory| !memory.is_zero());
    let memory = memory.ok_or_else(|| wrong("needs memory, that of each vGPU".to_owned()))?;
    let by = match by {
        By::Mdev => CutBy::Mdev,
        By::Vf => CutBy::Functions,
        By::Vendor => {
            let number = kind.as_str().strip_prefix("nvidia-").and_then(|text| text.parse().ok());
            let number = number.filter(|number| *number != 0);
            let unnamed = || {
                wrong(format!(
                    "by = \"vendor\" and type = \"{kind}\": write nvidia- and the type's number, as `gpu-zone gpus --all` shows it"
                ))
            };
            CutBy::Vendor { kind: number.ok_or_else(unnamed)? }
        }
    };
    Ok(VgpuGpu { gpu, by, kind, count, memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<GpuTables, String> {
        #[derive(Deserialize)]
        struct File {
            gpu: Vec<GpuTable>,
        }
        let File { gpu } = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        exposed(gpu, DriverKind::Nvidia, false).map_err(|error| error.to_string())
    }

    fn table(number: u8, rest: &str) -> String {
        let uuid = GpuUuid::from_bytes([number; 16]);
        format!("[[gpu]]\nuuid = \"{uuid}\"\n{rest}\n")
    }

    const WHOLE: &str = "exposure = \"passthrough\"\naddress = \"0000:3b:00.0\"\n\
                         model = \"NVIDIA H100\"\nmemory = \"80Gi\"";

    const CUT: &str =
        "[gpu.vgpu]\nby = \"mdev\"\ntype = \"nvidia-592\"\ncount = 4\nmemory = \"4Gi\"";

    const MIG: &str = "exposure = \"mig\"\n[gpu.mig]\ninstances = [{ profile = \"1g.10gb\", start = 0 }, \
                       { profile = \"3g.40gb\", start = 4 }]";

    #[test]
    fn a_gpu_is_cut_into_mig_instances() {
        let GpuTables { instances, mig, .. } = read(&table(1, MIG)).unwrap();
        let gpu = GpuUuid::from_bytes([1; 16]);
        let places: Vec<(&str, u32)> =
            instances[&gpu].iter().map(|of| (of.profile.as_str(), of.start)).collect();
        assert_eq!((places, mig), (vec![("1g.10gb", 0), ("3g.40gb", 4)], BTreeSet::from([gpu])));
    }

    fn vgpu(cut: &str) -> String {
        table(1, &(WHOLE.replace("passthrough", "vgpu") + "\n" + cut))
    }

    #[test]
    fn a_gpu_is_cut_into_vgpus() {
        let made = |text: &str| read(&vgpu(text)).unwrap().vgpu.remove(0);
        let VgpuGpu { by, kind, count, memory, gpu } = made(CUT);
        assert_eq!((by, kind.as_str(), count), (CutBy::Mdev, "nvidia-592", 4));
        assert_eq!((memory, gpu.memory), (MemoryBytes::gib(4), MemoryBytes::gib(80)));
        assert_eq!(made(&CUT.replace("mdev", "vendor")).by, CutBy::Vendor { kind: 592 });
        assert_eq!(made(&CUT.replace("mdev", "vf")).by, CutBy::Functions);
    }

    #[test]
    fn a_whole_gpu_is_described() {
        let with_token = WHOLE.to_owned() + "\nvf_token_file = \"/etc/gpu-zone/token\"";
        let GpuTables { passthrough, .. } = read(&table(1, &with_token)).unwrap();
        assert_eq!(passthrough[0].token_file.as_deref(), Some(Path::new("/etc/gpu-zone/token")));
        let others = table(2, "exposure = \"mediated\"") + &table(3, "exposure = \"mig\"");
        let GpuTables { passthrough, mig, .. } = read(&(table(1, WHOLE) + &others)).unwrap();
        assert_eq!((passthrough.len(), passthrough[0].memory), (1, MemoryBytes::gib(80)));
        assert_eq!(passthrough[0].address.to_string(), "0000:3b:00.0");
        assert_eq!(mig, BTreeSet::from([GpuUuid::from_bytes([3; 16])]));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let (twice, address) =
            (table(1, WHOLE) + &table(1, WHOLE), table(1, WHOLE) + &table(2, WHOLE));
        let cases = [
            (twice, "is there twice"),
            (address, "is there twice"),
            (table(1, "exposure = \"passthrough\""), "needs address"),
            (table(1, &WHOLE.replace("80Gi", "0")), "needs memory"),
            (table(1, &WHOLE.replace("model", "# ")), "needs model"),
            (table(1, "exposure = \"vgpu\""), "belong together"),
            (table(1, "exposure = \"mediated\"\n[gpu.mig]\ninstances = []"), "belongs to exposure"),
            (
                table(1, &MIG.replace("start = 4", "start = 0")),
                "two of [gpu.mig]'s instances begin at memory slice 0",
            ),
            (table(1, &MIG.replace("1g.10gb", "huge")), "'huge' is no MIG profile"),
            (table(1, "exposure = \"mig\"\nvf_token_file = \"/t\""), "leave it out here"),
            (vgpu(CUT).replace("address", "vf_token_file = \"/t\"\naddress"), "leave it out here"),
            (table(1, &(WHOLE.to_owned() + "\nvf_token_file = \"t\"")), "a path from /"),
            (table(1, &(WHOLE.to_owned() + "\n" + CUT)), "belong together"),
            (vgpu(&CUT.replace("count = 4", "count = 65")), "is not from 1 to 64"),
            (vgpu(&CUT.replace("\"4Gi\"", "\"0\"")), "needs memory, that of each"),
            (vgpu(&CUT.replace("mdev", "vendor").replace("592", "big")), "the type's number"),
            (vgpu(&CUT.replace("nvidia-592", "L40S 1B")), "names no vGPU type"),
            (vgpu(CUT).replace("address", "bind = true\naddress"), "leave bind out"),
            (table(1, "exposure = \"shared\""), "unknown variant"),
            (table(1, "exposure = \"mediated\"\nadress = 1"), "unknown field `adress`"),
            (table(1, "exposure = \"passthrough\"\naddress = \"3b:00\""), "PCI address '3b:00'"),
        ];
        for (text, part) in cases {
            let said = read(&text).unwrap_err();
            assert!(said.contains(part), "{said} lacks {part}");
        }
        let tables: Vec<GpuTable> =
            vec![toml::from_str(table(1, WHOLE).trim_start_matches("[[gpu]]\n")).unwrap()];
        let real = exposed(tables, DriverKind::Simulated, false).unwrap_err().to_string();
        assert!(real.contains("needs [node] sysfs"), "{real}");
    }
}
