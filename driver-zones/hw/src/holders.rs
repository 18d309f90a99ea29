//! Who has a device's nodes open, as `/proc` shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use gpuzone_core::PciAddress;

use crate::SysfsRoot;
use crate::pci::{PciFunction, SysfsError, entries, text};

/// Where proc is mounted: `/proc`, or a test's copy of a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcRoot(pub PathBuf);

impl Default for ProcRoot {
    fn default() -> Self {
        Self(PathBuf::from("/proc"))
    }
}

/// A process with an open handle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// What it has open.
    pub node: PathBuf,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}) has {} open", self.pid, self.name, self.node.display())
    }
}

impl ProcRoot {
    /// The processes that have one of `nodes` open, one entry for each node and process. What
    /// ends meanwhile holds nothing.
    ///
    /// # Errors
    /// When a process' handles cannot be seen: then nobody knows. Root sees all.
    pub fn holders(&self, nodes: &BTreeSet<PathBuf>) -> Result<Vec<Holder>, SysfsError> {
        let mut found = BTreeSet::new();
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let numbers: BTreeMap<u64, &PathBuf> =
            nodes.iter().filter_map(|node| Some((device_number(node)?, node))).collect();
        for name in entries(&self.0)? {
            let Ok(pid) = name.parse::<u32>() else { continue };
            let folder = self.0.join(&name);
            for handle in entries(&folder.join("fd"))? {
                let handle = folder.join("fd").join(handle);
                // A container may have the node under another name: its number tells.
                let by_number = device_number(&handle).and_then(|number| numbers.get(&number));
                let by_name = || std::fs::read_link(&handle).ok().filter(|at| nodes.contains(at));
                let node = by_number.map(|node| (*node).clone()).or_else(by_name);
                if let Some(node) = node {
                    let name = self.name(pid);
                    found.insert(Holder { pid, name, node });
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// What a process is called; `?` where nobody says.
    pub(crate) fn name(&self, pid: u32) -> String {
        let comm = text(&self.0.join(pid.to_string()).join("comm")).ok().flatten();
        let comm = comm.unwrap_or_else(|| "?".to_owned());
        comm.chars().filter(|letter| !letter.is_control()).collect()
    }

    /// Which boot this is; empty where proc does not say.
    pub(crate) fn boot(&self) -> String {
        text(&self.0.join("sys/kernel/random/boot_id")).ok().flatten().unwrap_or_default()
    }

    /// NVIDIA's number of a GPU's node, as its driver tells it.
    fn nvidia_minor(&self, address: PciAddress) -> Result<Option<u32>, SysfsError> {
        let file = format!("driver/nvidia/gpus/{address}/information");
        let Some(text) = text(&self.0.join(file))? else { return Ok(None) };
        let minor = text.lines().find_map(|line| line.strip_prefix("Device Minor:"));
        Ok(minor.and_then(|minor| minor.trim().parse().ok()))
    }

    /// The nodes in `/dev` through which a function is used now.
    ///
    /// # Errors
    /// When sysfs or proc cannot be read.
    pub fn nodes(
        &self,
        sysfs: &SysfsRoot,
        function: &PciFunction,
    ) -> Result<BTreeSet<PathBuf>, SysfsError> {
        let dev = Path::new("/dev");
        let mut nodes = BTreeSet::new();
        if let Some(group) = &function.group {
            nodes.insert(dev.join(format!("vfio/{}", group.number)));
        }
        nodes.extend(function.vfio_device.iter().map(|name| dev.join("vfio/devices").join(name)));
        if let Some(minor) = self.nvidia_minor(function.address)? {
            nodes.insert(dev.join(format!("nvidia{minor}")));
        }
        let folder = sysfs.function(function.address);
        nodes.extend(entries(&folder.join("drm"))?.iter().map(|name| dev.join("dri").join(name)));
        for card in entries(&folder.join("sound"))? {
            let names = entries(&folder.join("sound").join(&card))?;
            let of_card = names.iter().filter(|name| name.contains(['C', 'D']));
            nodes.extend(of_card.map(|name| dev.join("snd").join(name)));
        }
        Ok(nodes)
    }
}

/// The number of a device, where `path` leads to one.
fn device_number(path: &Path) -> Option<u64> {
    let found = std::fs::metadata(path).ok()?;
    found.file_type().is_char_device().then(|| found.rdev())
}

/// Holders by what they have, for a sentence.
pub(crate) fn named(holders: &[Holder]) -> String {
    let mut by: BTreeMap<(u32, &str), Vec<String>> = BTreeMap::new();
    for holder in holders {
        by.entry((holder.pid, &holder.name)).or_default().push(holder.node.display().to_string());
    }
    let one = |((pid, name), nodes): (&(u32, &str), &Vec<String>)| {
        format!("process {pid} ({name}) has {} open", nodes.join(" and "))
    };
    by.iter().take(8).map(one).collect::<Vec<_>>().join(", ")
}
