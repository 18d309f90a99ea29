use std::collections::BTreeSet;
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpuzone_core::{PciAddress, VfToken};
use vfio_bindings::bindings::vfio::{VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE1v2_IOMMU};

use super::{Access, VfioDevice, VfioError, sys};
use crate::SysfsRoot;

/// The version of VFIO that there is.
const API_VERSION: i32 = 0;

/// Between two looks whether a device is free.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

const EBUSY: i32 = 16;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;

/// Where devices' nodes are: `/dev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevRoot(pub PathBuf);

impl Default for DevRoot {
    fn default() -> Self {
        Self(PathBuf::from("/dev"))
    }
}

/// How a process gets at a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interface {
    /// By its IOMMU group.
    Group,
    /// By itself, with an iommufd.
    Iommufd,
}

impl Interface {
    /// Its name in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Iommufd => "iommufd",
        }
    }

    /// Whether the kernel offers it for anything.
    pub fn is_offered(self, dev: &DevRoot) -> bool {
        dev.0.join(self.root()).exists()
    }

    const fn root(self) -> &'static str {
        match self {
            Self::Group => "vfio/vfio",
            Self::Iommufd => "iommu",
        }
    }

    const fn needs(self) -> &'static str {
        match self {
            Self::Group => "CONFIG_VFIO_GROUP and the module vfio_iommu_type1",
            Self::Iommufd => "CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV",
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which device is to be opened, and how.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Which.
    pub address: PciAddress,
    /// By what.
    pub interface: Interface,
    /// What the owner of its physical function has set.
    pub token: Option<VfToken>,
}

impl VfioDevice {
    /// Opens a device for this process alone.
    ///
    /// # Errors
    /// When it is not on VFIO, somebody has it, its token is wrong, or the kernel does not offer
    /// the interface that is asked for. The other one is not tried.
    pub fn open(sysfs: &SysfsRoot, dev: &DevRoot, opening: &Opening) -> Result<Self, VfioError> {
        let ready = sysfs.vfio(opening.address, &BTreeSet::new())?;
        match opening.interface {
            Interface::Group => by_group(dev, opening, ready.group),
            Interface::Iommufd => by_iommufd(dev, opening, ready.device.as_deref()),
        }
    }
}

/// Opens a device for this process alone once whoever has it lets go of it: the kernel takes a VM that was
/// killed apart for a while. Other reasons are not waited for.
///
/// # Errors
/// As [`VfioDevice::open`], and when somebody has it all the time.
pub fn open_when_free(
    sysfs: &SysfsRoot,
    dev: &DevRoot,
    opening: &Opening,
    within: Duration,
) -> Result<VfioDevice, VfioError> {
    let began = Instant::now();
    until_free(
        || VfioDevice::open(sysfs, dev, opening),
        || {
            std::thread::sleep(LOOK_AGAIN);
            began.elapsed() < within
        },
    )
}

/// Tries until it is anything but busy, or `again` says that there is no more time.
fn until_free<T>(
    mut open: impl FnMut() -> Result<T, VfioError>,
    mut again: impl FnMut() -> bool,
) -> Result<T, VfioError> {
    loop {
        match open() {
            Err(VfioError::Busy { .. }) if again() => {}
            other => return other,
        }
    }
}

fn missing(interface: Interface, path: &Path) -> VfioError {
    VfioError::NoInterface { interface, path: path.to_owned(), needs: interface.needs() }
}

fn open(dev: &DevRoot, file: &str, opening: &Opening) -> Result<OwnedFd, VfioError> {
    let path = dev.0.join(file);
    match File::options().read(true).write(true).open(&path) {
        Ok(file) => Ok(file.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(missing(opening.interface, &path))
        }
        Err(error) if error.raw_os_error() == Some(EBUSY) => {
            Err(VfioError::Busy { address: opening.address, path })
        }
        Err(source) => Err(VfioError::Open { path, source }),
    }
}

fn by_group(dev: &DevRoot, opening: &Opening, number: u32) -> Result<VfioDevice, VfioError> {
    let address = opening.address;
    let failed = |step| move |source| VfioError::Kernel { step, address, source };
    let container = open(dev, Interface::Group.root(), opening)?;
    let version = sys::api_version(container.as_fd()).map_err(failed("the version"))?;
    let known = sys::has_extension(container.as_fd(), VFIO_TYPE1v2_IOMMU);
    if version != API_VERSION || !known.map_err(failed("the kind of IOMMU"))? {
        return Err(VfioError::Lacks("type 1 IOMMU of version 2"));
    }
    let group = open(dev, &format!("vfio/{number}"), opening)?;
    let flags = sys::group_flags(group.as_fd()).map_err(failed("the group's status"))?;
    if flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
        return Err(VfioError::NotViable { address, group: number });
    }
    let container_fd = container.as_fd();
    sys::set_container(group.as_fd(), container_fd).map_err(failed("the container"))?;
    sys::set_iommu(container_fd, VFIO_TYPE1v2_IOMMU).map_err(failed("the container's IOMMU"))?;
    let name = match &opening.token {
        Some(token) => format!("{address} vf_token={}", token.reveal().hyphenated()),
        None => address.to_string(),
    };
    let name = CString::new(name).map_err(|_| VfioError::Lacks("name for it"))?;
    let device = sys::device_fd(group.as_fd(), &name).map_err(|source| refused(opening, source))?;
    Ok(VfioDevice {
        device: device.into(),
        access: Access::Group { container, group, number },
        address,
    })
}

fn refused(opening: &Opening, source: io::Error) -> VfioError {
    let (address, given) = (opening.address, opening.token.is_some());
    match source.raw_os_error() {
        Some(EACCES) => VfioError::Token { address, given },
        _ => VfioError::Kernel { step: "the device", address, source },
    }
}

fn by_iommufd(
    dev: &DevRoot,
    opening: &Opening,
    name: Option<&str>,
) -> Result<VfioDevice, VfioError> {
    let address = opening.address;
    let failed = |step| move |source| VfioError::Kernel { step, address, source };
    let iommufd = open(dev, Interface::Iommufd.root(), opening)?;
    let name = name.ok_or_else(|| missing(Interface::Iommufd, &dev.0.join("vfio/devices")))?;
    let device = open(dev, &format!("vfio/devices/{name}"), opening)?;
    let id = sys::bind_iommufd(device.as_fd(), iommufd.as_fd(), opening.token.as_ref());
    let id = id.map_err(|source| match source.raw_os_error() {
        // So the kernel answers the second one who would have it.
        Some(EINVAL | EBUSY) if opening.token.is_none() => {
            VfioError::Busy { address, path: dev.0.join("vfio/devices").join(name) }
        }
        // And whoever gives it a token that it does not know what to do with.
        Some(EINVAL) => VfioError::Kernel {
            step: "the device (somebody has it, or no token belongs there, or Linux is older than 6.17)",
            address,
            source,
        },
        _ => refused(opening, source),
    })?;
    let table = sys::new_table(iommufd.as_fd()).map_err(failed("a table of addresses"))?;
    sys::attach(device.as_fd(), table).map_err(failed("the table of addresses"))?;
    let access = Access::Iommufd { iommufd, table, id };
    Ok(VfioDevice { device: device.into(), access, address })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn an_interface_that_is_not_there_is_named_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (sys, dev) = (folder.path().join("sys"), DevRoot(folder.path().join("dev")));
        let device = sys.join("bus/pci/devices/0000:01:00.0");
        std::fs::create_dir_all(&device).unwrap();
        std::fs::create_dir_all(sys.join("kernel/iommu_groups/4/devices")).unwrap();
        std::fs::write(device.join("class"), "0x030200\n").unwrap();
        symlink("../../drivers/vfio-pci", device.join("driver")).unwrap();
        symlink("../../../../kernel/iommu_groups/4", device.join("iommu_group")).unwrap();
        // A file that is no VFIO's stands for the other interface.
        std::fs::create_dir_all(dev.0.join("vfio")).unwrap();
        std::fs::write(dev.0.join("vfio/vfio"), "").unwrap();
        assert!(Interface::Group.is_offered(&dev) && !Interface::Iommufd.is_offered(&dev));
        let address = "0000:01:00.0".parse().unwrap();
        let said = |interface| {
            let opening = Opening { address, interface, token: None };
            let opened = VfioDevice::open(&SysfsRoot(sys.clone()), &dev, &opening);
            opened.unwrap_err().to_string()
        };
        let iommufd = said(Interface::Iommufd);
        assert!(iommufd.contains("CONFIG_IOMMUFD") && iommufd.contains("dev/iommu"), "{iommufd}");
        std::fs::write(dev.0.join("iommu"), "").unwrap();
        let iommufd = said(Interface::Iommufd);
        assert!(iommufd.contains("vfio/devices"), "{iommufd}");
        let group = said(Interface::Group);
        assert!(group.contains("the version of 0000:01:00.0 failed"), "{group}");
    }

    #[test]
    fn one_that_is_still_held_is_waited_for_and_nothing_else_is() {
        let busy = || VfioError::Busy {
            address: "0000:01:00.0".parse().unwrap(),
            path: "/dev/vfio/4".into(),
        };
        let tried = |freed_at: u32, looks: u32, otherwise: fn() -> VfioError| {
            let (mut tries, mut left) = (0, looks);
            let open = || {
                tries += 1;
                if tries == freed_at { Ok(tries) } else { Err(otherwise()) }
            };
            let again = || {
                left = left.saturating_sub(1);
                left > 0
            };
            (until_free(open, again).ok(), tries)
        };
        assert_eq!(tried(3, 10, busy), (Some(3), 3));
        assert_eq!(tried(30, 10, busy), (None, 10));
        assert_eq!(tried(3, 10, || VfioError::Lacks("anything")), (None, 1));
    }

    #[test]
    fn memory_for_devices_is_read_and_written_inside_its_bounds() {
        let mut memory = sys::DmaMemory::new(10).unwrap();
        let end = memory.length();
        assert!(end >= 4096);
        memory.write(end - 2, &[1, 2, 3]);
        let mut back = [9; 4];
        memory.read(end - 3, &mut back);
        assert_eq!(back, [0, 1, 2, 0]);
        memory.read(usize::MAX, &mut back);
        assert_eq!(back, [0; 4]);
    }
}
