use std::path::PathBuf;

use gpuzone_core::PciAddress;

/// Where sysfs is mounted: `/sys`, or a test's copy of a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysfsRoot(pub PathBuf);

impl Default for SysfsRoot {
    fn default() -> Self {
        Self(PathBuf::from("/sys"))
    }
}

/// `f_type` of sysfs (statfs(2)).
const SYSFS: u32 = 0x6265_6572;

impl SysfsRoot {
    /// Whether the kernel itself acts on what is written there, wherever it is mounted.
    #[must_use]
    pub fn is_the_kernels(&self) -> bool {
        *self == Self::default()
            || rustix::fs::statfs(&self.0)
                .is_ok_and(|found| u32::try_from(found.f_type) == Ok(SYSFS))
    }

    /// The folder of a PCI function.
    pub(crate) fn function(&self, address: PciAddress) -> PathBuf {
        self.0.join("bus/pci/devices").join(address.to_string())
    }

    /// The NUMA node that a PCI function is near to. `None` when the kernel does not know it
    /// (it writes -1) or does not have the function.
    #[must_use]
    pub fn numa_node(&self, address: PciAddress) -> Option<u32> {
        let file = self.function(address).join("numa_node");
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_a_tests_is_not_the_kernels() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!SysfsRoot(folder.path().to_owned()).is_the_kernels());
        assert!(!SysfsRoot(folder.path().join("missing")).is_the_kernels());
        assert!(SysfsRoot::default().is_the_kernels());
        let elsewhere = SysfsRoot("/sys/../sys/devices".into());
        assert_eq!(elsewhere.is_the_kernels(), std::path::Path::new("/sys/kernel").exists());
    }

    #[test]
    fn a_node_is_read_and_what_is_none_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysfsRoot(folder.path().to_owned());
        let address: PciAddress = "0000:3b:00.0".parse().unwrap();
        assert_eq!(root.numa_node(address), None);
        let device = folder.path().join("bus/pci/devices/0000:3b:00.0");
        std::fs::create_dir_all(&device).unwrap();
        for (text, node) in [("1\n", Some(1)), ("0\n", Some(0)), ("-1\n", None), ("", None)] {
            std::fs::write(device.join("numa_node"), text).unwrap();
            assert_eq!(root.numa_node(address), node, "{text:?}");
        }
    }
}
