use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A folder that looks as sysfs does, as far as PCI functions and IOMMU groups go.
#[derive(Clone, Debug)]
pub struct Sysfs(PathBuf);

impl Sysfs {
    /// One in `folder`, without any function.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder.join("bus/pci/devices"))?;
        Ok(Self(folder.to_owned()))
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// The folder of a function.
    pub fn device(&self, address: &str) -> PathBuf {
        self.0.join("bus/pci/devices").join(address)
    }

    /// Puts a function of a class (like `0x030200`) at an address.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn function(&self, address: &str, class: &str) -> io::Result<()> {
        std::fs::create_dir_all(self.device(address))?;
        std::fs::write(self.device(address).join("class"), format!("{class}\n"))
    }

    /// Binds a function to a driver, or to none.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn bind(&self, address: &str, driver: Option<&str>) -> io::Result<()> {
        let link = self.device(address).join("driver");
        match std::fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        match driver {
            Some(driver) => symlink(format!("../../../bus/pci/drivers/{driver}"), link),
            None => Ok(()),
        }
    }

    /// Puts a function into an IOMMU group.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn group(&self, address: &str, group: u32) -> io::Result<()> {
        let folder = self.0.join(format!("kernel/iommu_groups/{group}"));
        std::fs::create_dir_all(folder.join("devices"))?;
        symlink(self.device(address), folder.join("devices").join(address))?;
        symlink(&folder, self.device(address).join("iommu_group"))
    }

    /// A GPU on vfio-pci, in a group of its own, with the VFIO device of that number.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn gpu(&self, address: &str, group: u32) -> io::Result<()> {
        self.function(address, "0x030200")?;
        self.bind(address, Some("vfio-pci"))?;
        self.group(address, group)?;
        std::fs::create_dir_all(self.device(address).join(format!("vfio-dev/vfio{group}")))
    }
}
