//! Which of the node's GPUs are handed over otherwise than mediated.

use std::collections::BTreeSet;

use gpuzone_core::{Exposure, GpuUuid, MemoryBytes, PciAddress};
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
}

/// The GPUs that are not handed over mediated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuTables {
    /// Whole, by passthrough.
    pub passthrough: Vec<PassthroughGpu>,
    /// As MIG instances. Any GPU in MIG mode is, named here or not.
    pub mig: BTreeSet<GpuUuid>,
}

/// Why `[[gpu]]` is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuTableError {
    /// Two tables of one GPU.
    #[error("[[gpu]] {0} is there twice, or its address is; write one table for each GPU")]
    Twice(GpuUuid),
    /// Something that nobody else knows.
    #[error(
        "[[gpu]] {gpu}: exposure = \"passthrough\" needs {missing}, as `gpu-zone gpus` shows it while the GPU is mediated: its driver does not see it later"
    )]
    Incomplete {
        /// Which.
        gpu: GpuUuid,
        /// The key.
        missing: &'static str,
    },
    /// An exposure that this release does not hand out.
    #[error(
        "[[gpu]] {gpu}: exposure = \"{exposure}\" is not handed out by this release; write \"mediated\", \"passthrough\" or \"mig\""
    )]
    NotYet {
        /// Which.
        gpu: GpuUuid,
        /// What.
        exposure: Exposure,
    },
    /// The machine's own functions beside simulated GPUs.
    #[error(
        "[[gpu]] {0}: passthrough beside the simulated driver needs [node] sysfs, a folder that stands for /sys: what sits at that address of this machine is no simulated GPU"
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
    for GpuTable { uuid, exposure, address, model, memory } in tables {
        let same_address = address.is_some_and(|address| !addresses.insert(address));
        if !uuids.insert(uuid) || same_address {
            return Err(GpuTableError::Twice(uuid));
        }
        match exposure {
            Exposure::Mediated => continue,
            Exposure::Passthrough => {}
            Exposure::Mig => {
                found.mig.insert(uuid);
                continue;
            }
            Exposure::Vgpu => {
                return Err(GpuTableError::NotYet { gpu: uuid, exposure });
            }
        }
        match driver {
            DriverKind::Simulated if !own_sysfs => return Err(GpuTableError::RealSysfs(uuid)),
            DriverKind::Simulated | DriverKind::Nvidia => {}
        }
        let missing = |missing| GpuTableError::Incomplete { gpu: uuid, missing };
        let memory = memory.filter(|memory| !memory.is_zero());
        found.passthrough.push(PassthroughGpu {
            uuid,
            address: address.ok_or(missing("address"))?,
            model: model.ok_or(missing("model"))?,
            memory: memory.ok_or(missing("memory"))?,
        });
    }
    Ok(found)
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

    #[test]
    fn a_whole_gpu_is_described() {
        let others = table(2, "exposure = \"mediated\"") + &table(3, "exposure = \"mig\"");
        let GpuTables { passthrough, mig } = read(&(table(1, WHOLE) + &others)).unwrap();
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
            (table(1, "exposure = \"vgpu\""), "is not handed out by this release"),
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
