//! What stands between a GPU and the rest of the machine, as far as sysfs shows it.

use std::path::{Path, PathBuf};

use super::{Context, Outcome};
use crate::catalog as c;
use crate::finding::Finding;
use crate::host::{self, Host};

const DEVICES: &str = "/sys/bus/pci/devices";

/// PCI's class codes of what computes or draws: display controllers and accelerators.
const CLASSES: [&str; 2] = ["0x03", "0x12"];
/// Of bridges, which do not count as members of a group.
const BRIDGE: &str = "0x0604";

fn text(path: &Path, file: &str) -> String {
    std::fs::read_to_string(path.join(file)).unwrap_or_default().trim().to_owned()
}

/// Display controllers without memory of their own behind them (a virtual machine's screen)
/// have no vendor that makes compute GPUs.
fn gpus(host: &Host) -> Vec<PathBuf> {
    let vendors = ["0x10de", "0x1002", "0x8086"];
    let is_gpu = |path: &PathBuf| {
        let class = text(path, "class");
        CLASSES.iter().any(|kind| class.starts_with(kind))
            && vendors.contains(&text(path, "vendor").as_str())
    };
    host.entries(DEVICES).into_iter().filter(is_gpu).collect()
}

fn none(outcome: &mut Outcome) {
    outcome.untested("sysfs shows no GPU");
}

pub(super) fn files(context: &mut Context<'_>, outcome: &mut Outcome) {
    let gpus = gpus(context.host);
    if gpus.is_empty() {
        return none(outcome);
    }
    for gpu in gpus {
        let names = ["reset", "remove", "config", "resource0", "driver_override", "sriov_numvfs"];
        let open: Vec<&str> =
            names.into_iter().filter(|name| Host::writable(&gpu.join(name))).collect();
        if !open.is_empty() {
            let seen = format!("{}: {}", host::name(&gpu), open.join(", "));
            outcome.found(Finding::new(&c::DEVICE_FILES, seen));
        }
    }
}

pub(super) fn groups(context: &mut Context<'_>, outcome: &mut Outcome) {
    let gpus = gpus(context.host);
    if gpus.is_empty() {
        return none(outcome);
    }
    for gpu in gpus {
        let address = host::name(&gpu);
        let Ok(group) = gpu.join("iommu_group").canonicalize() else {
            outcome.found(Finding::new(&c::NO_IOMMU, address));
            continue;
        };
        let members = std::fs::read_dir(group.join("devices")).into_iter().flatten().flatten();
        let others: Vec<String> = members
            .map(|member| member.path())
            .filter(|path| !same_device(&host::name(path), &address))
            .filter(|path| !text(path, "class").starts_with(BRIDGE))
            .map(|path| host::name(&path))
            .collect();
        if !others.is_empty() {
            let seen = format!("{address} with {}", others.join(", "));
            outcome.found(Finding::new(&c::IMPURE_GROUP, seen));
        }
        ports(&gpu, outcome);
    }
}

/// Whether two addresses are functions of one device, like a GPU and its sound.
fn same_device(one: &str, other: &str) -> bool {
    let device = |address: &str| address.rsplit_once('.').map(|(device, _)| device.to_owned());
    device(one).is_some() && device(one) == device(other)
}

/// Looks at the ports above a device: its canonical path goes through them.
fn ports(gpu: &Path, outcome: &mut Outcome) {
    let Ok(path) = gpu.canonicalize() else { return };
    for port in path.ancestors().skip(1) {
        if !text(port, "class").starts_with(BRIDGE) {
            break;
        }
        let address = host::name(port);
        match isolation(&std::fs::read(port.join("config")).unwrap_or_default()) {
            Acs::On => {}
            Acs::Off => {
                let seen = format!("port {address}: source validation and redirects are off");
                outcome.found(Finding::new(&c::NO_ACS, seen));
            }
            Acs::Absent => {
                outcome.found(Finding::new(&c::NO_ACS, format!("port {address} has no ACS")));
            }
            Acs::Unreadable => outcome.untested(format!(
                "port {address}: only the machine's root may read its extended configuration"
            )),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acs {
    On,
    Off,
    Absent,
    Unreadable,
}

/// Finds the ACS capability (PCI Express: extended capability 13, control register at 6) in a
/// configuration space.
fn isolation(config: &[u8]) -> Acs {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(config.get(at..at + 4)?.try_into().ok()?))
    };
    let mut at = 0x100;
    for _ in 0..64 {
        let Some(header) = word(at) else { return Acs::Unreadable };
        if header & 0xffff == 0x000d {
            let Some(registers) = word(at + 4) else { return Acs::Unreadable };
            let control = registers >> 16;
            // Source validation, request redirect, completion redirect, upstream forwarding.
            let needed = 0b1_1101;
            return if control & needed == needed { Acs::On } else { Acs::Off };
        }
        let next = usize::try_from(header >> 20).unwrap_or(0);
        if header == 0 || next <= 0xff {
            break;
        }
        at = next;
    }
    Acs::Absent
}

pub(super) fn interrupts(context: &mut Context<'_>, outcome: &mut Outcome) {
    let file = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    match context.host.text(file).as_deref() {
        Some("Y" | "1") => {
            outcome.found(Finding::new(&c::UNSAFE_INTERRUPTS, "allow_unsafe_interrupts is on"));
        }
        Some(_) => {}
        None => remapping(context, outcome),
    }
}

/// Intel's remapping units say in bit 3 of `ecap` whether they can; nothing says whether the
/// kernel makes use of it, but it does unless it is told otherwise.
fn remapping(context: &Context<'_>, outcome: &mut Outcome) {
    let units = context.host.entries("/sys/class/iommu");
    let abilities = units
        .iter()
        .filter_map(|unit| u64::from_str_radix(&text(unit, "intel-iommu/ecap"), 16).ok());
    let abilities: Vec<u64> = abilities.collect();
    if abilities.is_empty() {
        return outcome.untested("VFIO is not loaded, and sysfs shows no Intel IOMMU");
    }
    if abilities.iter().any(|ecap| ecap & 0b1000 == 0) {
        let seen = "an IOMMU without interrupt remapping; VFIO will refuse it unless told not to";
        let finding = Finding::new(&c::UNSAFE_INTERRUPTS, seen);
        outcome.found(finding.at(crate::Severity::Low));
    }
}

pub(super) fn reset(context: &mut Context<'_>, outcome: &mut Outcome) {
    let gpus = gpus(context.host);
    if gpus.is_empty() {
        return none(outcome);
    }
    for gpu in gpus {
        let methods = text(&gpu, "reset_method");
        if methods.is_empty() {
            outcome.found(Finding::new(&c::NO_RESET, host::name(&gpu)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(control: u16) -> Vec<u8> {
        let mut config = vec![0; 4096];
        // Advanced error reporting first, then ACS.
        config[0x100..0x104].copy_from_slice(&(0x0001_u32 | 1 << 16 | 0x148 << 20).to_le_bytes());
        config[0x148..0x14c].copy_from_slice(&(0x000d_u32 | 1 << 16).to_le_bytes());
        config[0x14e..0x150].copy_from_slice(&control.to_le_bytes());
        config
    }

    #[test]
    fn acs_is_found_behind_other_capabilities() {
        assert_eq!(isolation(&config(0x1d)), Acs::On);
        assert_eq!(isolation(&config(0x1c)), Acs::Off);
        assert_eq!(isolation(&vec![0; 4096]), Acs::Absent);
        assert_eq!(isolation(&[0; 64]), Acs::Unreadable);
        // A list that goes in a circle ends.
        let mut circle = vec![0; 4096];
        circle[0x100..0x104].copy_from_slice(&(0x0001_u32 | 0x100 << 20).to_le_bytes());
        assert_eq!(isolation(&circle), Acs::Absent);
    }

    #[test]
    fn functions_of_one_device_belong_together() {
        assert!(same_device("0000:01:00.0", "0000:01:00.1"));
        assert!(!same_device("0000:01:00.0", "0000:02:00.0"));
        assert!(!same_device("x", "x"));
    }
}
