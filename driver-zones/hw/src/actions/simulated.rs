//! A kernel that is none: it does about a folder that stands for sysfs what the kernel does about
//! sysfs. For nodes of simulated GPUs, and for tests.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Write, Writes};
use crate::ready::is_vfio;

const EIO: i32 = 5;
const EBUSY: i32 = 16;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ERANGE: i32 = 34;

/// Groups of what is made here have numbers from this one on.
const FIRST_GROUP: u32 = 40;
/// In the folder: what is to go wrong, a line each. `refuse NAME` is a write to a file of that name
/// that the kernel refuses; `kill before NAME` and `kill after NAME` end the writing process there,
/// once.
const FAULTS: &str = "faults";

/// Acts on one folder.
#[derive(Clone, Debug)]
pub struct SimulatedKernel {
    root: PathBuf,
}

fn refused<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

fn put(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, format!("{text}\n"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn number(path: &Path) -> io::Result<u32> {
    read(path).parse().or_else(|_| refused(EINVAL))
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn linked(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(name_of(&target).to_owned())
}

/// What is gone already is gone.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl SimulatedKernel {
    /// The kernel of the folder `root`.
    pub const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn device(&self, address: &str) -> PathBuf {
        self.root.join("bus/pci/devices").join(address)
    }

    /// Puts a device into a group of its own.
    fn join_group(&self, device: &Path) -> io::Result<u32> {
        let groups = self.root.join("kernel/iommu_groups");
        let free = (FIRST_GROUP..).find(|number| !groups.join(number.to_string()).exists());
        let Some(group) = free else { return refused(EBUSY) };
        let folder = groups.join(group.to_string());
        fs::create_dir_all(folder.join("devices"))?;
        symlink(device, folder.join("devices").join(name_of(device)))?;
        symlink(&folder, device.join("iommu_group"))?;
        Ok(group)
    }

    /// Takes a device away, and its group.
    fn remove_device(&self, device: &Path) -> io::Result<()> {
        if let Some(group) = linked(&device.join("iommu_group")) {
            gone(fs::remove_dir_all(self.root.join("kernel/iommu_groups").join(group)))?;
        }
        gone(fs::remove_dir_all(device))
    }

    fn link_driver(&self, folder: &Path, driver: Option<&str>) -> io::Result<()> {
        gone(fs::remove_file(folder.join("driver")))?;
        gone(fs::remove_dir_all(folder.join("vfio-dev")))?;
        let Some(driver) = driver else { return Ok(()) };
        symlink(format!("../../drivers/{driver}"), folder.join("driver"))?;
        match linked(&folder.join("iommu_group")) {
            Some(group) if is_vfio(driver) => {
                fs::create_dir_all(folder.join(format!("vfio-dev/vfio{group}")))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn driver_file(&self, driver: &str, file: &str, address: &str) -> io::Result<()> {
        let folder = self.device(address);
        let only = read(&folder.join("driver_override"));
        let now = linked(&folder.join("driver"));
        match file {
            "unbind" if now.as_deref() == Some(driver) => self.link_driver(&folder, None),
            "bind" if now.is_some() => refused(EBUSY),
            "bind" => {
                let own = read(&folder.join(".default"));
                let takes = if only == "(null)" { own == driver } else { only == driver };
                if takes { self.link_driver(&folder, Some(driver)) } else { refused(ENODEV) }
            }
            _ => refused(ENODEV),
        }
    }

    fn probe(&self, address: &str) -> io::Result<()> {
        let folder = self.device(address);
        if linked(&folder.join("driver")).is_some() {
            return Ok(());
        }
        let only = read(&folder.join("driver_override"));
        let driver = if only == "(null)" { read(&folder.join(".default")) } else { only };
        match self.root.join("bus/pci/drivers").join(&driver).is_dir() {
            true => self.link_driver(&folder, Some(&driver)),
            false => Ok(()),
        }
    }

    fn functions(&self, folder: &Path, count: u32) -> io::Result<()> {
        let now = number(&folder.join("sriov_numvfs"))?;
        if now != 0 && count != 0 {
            return refused(EBUSY);
        }
        if count > number(&folder.join("sriov_totalvfs"))? {
            return refused(ERANGE);
        }
        let Some((bus, _)) = name_of(folder).rsplit_once(':') else { return refused(EINVAL) };
        let vf = |index: u32| format!("{bus}:{:02x}.{}", 0x10 + index / 8, index % 8);
        for index in 0..now {
            gone(fs::remove_file(folder.join(format!("virtfn{index}"))))?;
            self.remove_device(&self.device(&vf(index)))?;
        }
        for index in 0..count {
            let of = self.device(&vf(index));
            fs::create_dir_all(&of)?;
            put(&of.join("driver_override"), "(null)")?;
            for file in ["class", "vendor", "device", ".default"] {
                put(&of.join(file), &read(&folder.join(file)))?;
            }
            symlink(folder, of.join("physfn"))?;
            symlink(&of, folder.join(format!("virtfn{index}")))?;
            self.join_group(&of)?;
            // vfio-pci lets functions of a card that it has go nowhere else.
            if linked(&folder.join("driver")).as_deref() == Some("vfio-pci") {
                put(&of.join("driver_override"), "vfio-pci")?;
                self.link_driver(&of, Some("vfio-pci"))?;
            }
        }
        put(&folder.join("sriov_numvfs"), &count.to_string())
    }

    fn create_mdev(&self, kind: &Path, uuid: &str) -> io::Result<()> {
        let left = number(&kind.join("available_instances"))?;
        let device = self.root.join("bus/mdev/devices").join(uuid);
        if left == 0 || device.exists() {
            return refused(EBUSY);
        }
        fs::create_dir_all(&device)?;
        symlink(kind, device.join("mdev_type"))?;
        fs::create_dir_all(kind.join("devices").join(uuid))?;
        let group = self.join_group(&device)?;
        fs::create_dir_all(device.join(format!("vfio-dev/vfio{group}")))?;
        put(&kind.join("available_instances"), &(left - 1).to_string())
    }

    fn remove_mdev(&self, device: &Path) -> io::Result<()> {
        let kind = fs::read_link(device.join("mdev_type"))?;
        self.remove_device(device)?;
        gone(fs::remove_dir_all(kind.join("devices").join(name_of(device))))?;
        let left = number(&kind.join("available_instances"))?;
        put(&kind.join("available_instances"), &(left + 1).to_string())
    }

    /// What a write of `text` to the file at `path` brings about.
    fn act(&self, path: &Path, text: &str) -> io::Result<()> {
        let Some(folder) = path.parent() else { return refused(EINVAL) };
        match name_of(path) {
            file @ ("bind" | "unbind") => self.driver_file(name_of(folder), file, text),
            "drivers_probe" => self.probe(text),
            "driver_override" => put(path, if text.is_empty() { "(null)" } else { text }),
            "sriov_numvfs" => self.functions(folder, text.parse().or_else(|_| refused(EINVAL))?),
            "sriov_drivers_autoprobe" | "reset_method" => put(path, text),
            "reset" => Ok(()),
            "current_vgpu_type" if read(path) != "0" && text != "0" => refused(EINVAL),
            "current_vgpu_type" => put(path, text),
            "create" => self.create_mdev(folder, text),
            "remove" => self.remove_mdev(folder),
            _ => refused(EINVAL),
        }
    }

    fn is_to(&self, what: &str, file: &str) -> bool {
        let wanted = format!("{what} {file}");
        read(&self.root.join(FAULTS)).lines().any(|line| line.trim() == wanted)
    }

    fn die_if(&self, moment: &str, file: &str) {
        if self.is_to(moment, file) && fs::remove_file(self.root.join(FAULTS)).is_ok() {
            std::process::abort();
        }
    }
}

impl Writes for SimulatedKernel {
    fn write(&mut self, write: &Write) -> io::Result<()> {
        let file = name_of(&write.path);
        self.die_if("kill before", file);
        if self.is_to("refuse", file) {
            return refused(EIO);
        }
        let done = self.act(&write.path, write.text.trim());
        self.die_if("kill after", file);
        done
    }
}
