//! The guest: its file systems, modules, devices and end.

use std::fs;
use std::io;
use std::path::Path;

use gpuzone_core::PciAddress;
use gpuzone_hw::actions::{Devices, Places};
use gpuzone_hw::alias::ModuleAliases;
use gpuzone_hw::pci::PciFunction;
use gpuzone_hw::{ProcRoot, SysfsRoot};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot, uname};

/// A container's first program has this number, too.
pub(crate) fn is_guest() -> bool {
    Path::new("/modules").is_dir() && Path::new("/modules.alias").is_file()
}

pub(crate) fn kernel() -> String {
    uname().release().to_string_lossy().into_owned()
}

pub(crate) fn prepare() -> io::Result<()> {
    for (kind, place) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")]
    {
        mount(kind, place, kind, MountFlags::empty(), None)?;
    }
    let mut modules: Vec<_> =
        fs::read_dir("/modules")?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    modules.sort();
    for module in modules {
        let loaded = finit_module(&fs::File::open(&module)?, c"", 0);
        match loaded {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => {
                let message = format!("{}: {error}", module.display());
                return Err(io::Error::other(message));
            }
        }
    }
    Ok(())
}

pub(crate) fn power_off() -> ! {
    rustix::fs::sync();
    let _ = reboot(RebootCommand::PowerOff);
    // The kernel ends the guest when its first program does.
    std::process::exit(1)
}

pub(crate) fn sysfs() -> SysfsRoot {
    SysfsRoot::default()
}

/// The devices with a journal of this name.
pub(crate) fn devices(journal: &str) -> Devices {
    let aliases = ModuleAliases::load(Path::new("/modules.alias")).unwrap();
    let places = Places { sysfs: sysfs(), proc: ProcRoot::default(), aliases };
    let path = Path::new("/tmp").join(journal);
    Devices::open(places, &path, gpuzone_hw::actions::KernelFiles).unwrap().0
}

/// The functions of this kind, by vendor and device.
pub(crate) fn found(vendor: u16, device: u16) -> Vec<PciFunction> {
    let all = sysfs().functions().unwrap();
    all.into_iter().filter(|at| (at.vendor, at.device) == (vendor, device)).collect()
}

pub(crate) fn function(address: PciAddress) -> PciFunction {
    sysfs().pci_function(address).unwrap().unwrap()
}
