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

    /// Makes a function a virtual one of `physical`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn virtual_of(&self, address: &str, physical: &str) -> io::Result<()> {
        symlink(self.device(physical), self.device(address).join("physfn"))
    }

    /// Lets a function make mediated devices of a type, as many as `count`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn mdev_type(&self, address: &str, kind: &str, count: u32) -> io::Result<()> {
        let of = self.device(address).join("mdev_supported_types").join(kind);
        std::fs::create_dir_all(of.join("devices"))?;
        std::fs::write(of.join("name"), format!("{kind}\n"))?;
        std::fs::write(of.join("available_instances"), format!("{count}\n"))?;
        std::fs::create_dir_all(self.0.join("bus/mdev/devices"))?;
        let class = self.0.join("class/mdev_bus");
        std::fs::create_dir_all(&class)?;
        symlink(self.device(address), class.join(address))
    }

    /// The mediated devices that there are.
    pub fn mdevs(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.join("bus/mdev/devices")).into_iter().flatten();
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Lets a function have so many virtual ones, which vfio-pci could take.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn virtual_functions(&self, address: &str, total: u32) -> io::Result<()> {
        let device = self.device(address);
        for (file, text) in [
            ("sriov_totalvfs", total.to_string()),
            ("sriov_numvfs", "0".into()),
            ("sriov_drivers_autoprobe", "1".into()),
            ("vendor", "0x8086".into()),
            ("device", "0x0bda".into()),
            (".default", "xe".into()),
        ] {
            std::fs::write(device.join(file), format!("{text}\n"))?;
        }
        std::fs::create_dir_all(self.0.join("bus/pci/drivers/vfio-pci"))
    }

    /// Virtual functions `0000:86:00.4` and so on of a function, on which NVIDIA's driver makes vGPUs
    /// of one type; with groups from 60 on.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn vendor_functions(&self, address: &str, count: u32, kind: u32) -> io::Result<()> {
        let device = self.device(address);
        std::fs::write(device.join("sriov_totalvfs"), format!("{count}\n"))?;
        std::fs::write(device.join("sriov_numvfs"), format!("{count}\n"))?;
        for number in 0..count {
            let vf = format!("0000:86:00.{}", 4 + number);
            self.function(&vf, "0x030200")?;
            self.bind(&vf, Some("nvidia"))?;
            self.group(&vf, 60 + number)?;
            symlink(self.device(&vf), device.join(format!("virtfn{number}")))?;
            symlink(&device, self.device(&vf).join("physfn"))?;
            let vgpu = self.device(&vf).join("nvidia");
            std::fs::create_dir_all(&vgpu)?;
            std::fs::write(vgpu.join("current_vgpu_type"), "0\n")?;
            let types = format!("ID    : vGPU Name\n{kind}  : NVIDIA L40S-2B\n");
            std::fs::write(vgpu.join("creatable_vgpu_types"), types)?;
        }
        Ok(())
    }

    /// Has the simulated kernel of the folder do these wrong, a line each: `refuse NAME`, `kill
    /// before NAME`, `kill after NAME`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn faults(&self, lines: &str) -> io::Result<()> {
        std::fs::write(self.0.join("faults"), lines)
    }
}
