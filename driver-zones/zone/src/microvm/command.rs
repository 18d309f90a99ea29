//! QEMU's command line. Nothing in it passes a shell, and no value of it comes from a tenant.

use std::path::Path;

use gpuzone_core::PciAddress;

use super::backend::OWN_FILES;
use super::{Accelerator, Machine, Passthrough, VmSpec};

/// Descriptors that QEMU is handed, listening: its monitor, the guest's control port.
pub(super) const MONITOR_FD: i32 = 3;
pub(super) const CONTROL_FD: i32 = 4;
/// The control port's name in the guest.
pub(super) const PORT: &str = "gpuzone.control";

/// Bytes of a window. A PCI region's size is a power of two; what the rings do not take is never
/// touched, so it takes no memory.
pub const WINDOW_BYTES: u64 = 16 << 20;
const SMALL_FIRMWARE: &str = "/usr/share/qemu/qboot.rom";
/// Slots 16 to 30 of bus 0, eight functions each.
pub const MOST_WINDOWS: u16 = 15 * 8;
const FIRST_SLOT: u16 = 16;

/// The bridge of window `n`, as the guest's bus 0 shows it: like `10.3`.
pub(super) fn window_bridge(n: u16) -> String {
    format!("{:02x}.{:x}", FIRST_SLOT + n / 8, n % 8)
}

/// The bus behind it, as QEMU calls it.
pub(super) fn window_bus(n: u16) -> String {
    format!("window{n}")
}

/// Slots 8 to 15, eight functions each.
pub const MOST_DEVICES: usize = 8 * 8;
const FIRST_DEVICE_SLOT: usize = 8;

/// The bridge of the `n`th device by passthrough, as the guest's bus 0 shows it: like `08.0`.
pub(super) fn device_bridge(n: usize) -> String {
    format!("{:02x}.{:x}", FIRST_DEVICE_SLOT + n / 8, n % 8)
}

/// Why a microVM cannot be described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Commas separate QEMU's options, and what is no text is none.
    #[error("QEMU takes no path with a comma in it, nor one that is no UTF-8: {0}")]
    Comma(String),
    /// A device that is none.
    #[error("'{0}' is no PCI function's address, like 0000:3b:00.0")]
    Address(String),
    /// More than there are places.
    #[error("a microVM has at most {MOST_WINDOWS} windows, not {0}")]
    Windows(u16),
    /// More than there are places.
    #[error("a microVM has at most {MOST_DEVICES} devices by passthrough, not {0}")]
    Devices(usize),
    /// What only QEMU has.
    #[error("Cloud Hypervisor has one kind of machine, without a virtual IOMMU")]
    QemusMachine,
    /// Who emulates no processor.
    #[error(
        "Cloud Hypervisor runs guests by KVM only: set accelerator = \"kvm\", or hypervisor = \"qemu\""
    )]
    NoEmulation,
    /// More than there are places.
    #[error(
        "under Cloud Hypervisor a microVM has at most {most} windows, not {wanted}; set windows to fewer"
    )]
    FewWindows {
        /// Places.
        most: u16,
        /// What was asked for.
        wanted: u16,
    },
    /// More than there are places.
    #[error(
        "under Cloud Hypervisor a microVM has at most {most} devices by passthrough, not {wanted}"
    )]
    FewDevices {
        /// Places.
        most: usize,
        /// What was asked for.
        wanted: usize,
    },
    /// A port that has no number.
    #[error("a microVM under Cloud Hypervisor has no port called '{0}'")]
    Port(String),
    /// It is told in JSON.
    #[error("Cloud Hypervisor takes no path that is no UTF-8: {0}")]
    NoText(String),
    /// It hands over no tokens.
    #[error(
        "{0} needs a token, which Cloud Hypervisor does not hand over; use hypervisor = \"qemu\""
    )]
    NoTokens(String),
    /// PCI devices need a PCI bus.
    #[error("the machine 'microvm' has no PCI, so nothing can be passed through to it")]
    NoPci,
}

/// QEMU's arguments for the zone `name`.
///
/// # Errors
/// When the machine cannot be described.
pub(super) fn arguments(name: &str, spec: &VmSpec) -> Result<Vec<String>, CommandError> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    for path in [&spec.kernel, &spec.image] {
        plain(path)?;
    }
    for name in spec.ports.iter().map(Path::new) {
        plain(name)?;
    }
    add("-name", format!("guest={name}"));
    add("-machine", machine(spec.machine));
    add("-accel", accelerator(spec.accelerator));
    add("-cpu", cpu(spec.accelerator).to_owned());
    add("-smp", spec.processors.to_string());
    add("-m", format!("{}M", spec.memory >> 20));
    let ram = format!("memory-backend-memfd,id=ram,size={}M,share=on", spec.memory >> 20);
    add("-object", ram);
    add(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
    );
    add("-display", "none".into());
    add("-kernel", spec.kernel.display().to_string());
    add("-initrd", spec.image.display().to_string());
    add("-append", kernel_words(spec));
    // Kept by QEMU, the last of it: a guest that says much fills nobody's disk.
    add("-chardev", "ringbuf,id=console,size=65536".into());
    add("-serial", "chardev:console".into());
    add("-chardev", format!("socket,id=monitor,fd={MONITOR_FD},server=on,wait=off"));
    add("-mon", "chardev=monitor,mode=control".into());
    add("-chardev", format!("socket,id=control,fd={CONTROL_FD},server=on,wait=off"));
    for (n, fd) in (0..spec.ports.len()).zip(CONTROL_FD + 1..) {
        add("-chardev", format!("socket,id=port{n},fd={fd},server=on,wait=off"));
    }
    for device in devices(spec)? {
        add("-device", device);
    }
    if secrets(spec)?.is_some() {
        // Behind the bridges that they are plugged into.
        let fd = CONTROL_FD + 1 + i32::try_from(spec.ports.len()).unwrap_or(0);
        add("-readconfig", format!("{OWN_FILES}/{fd}"));
    }
    if let Some(firmware) = small_firmware(spec) {
        add("-bios", firmware.to_owned());
    }
    let flags = ["-nodefaults", "-no-user-config", "-no-reboot", "-S"];
    Ok(flags.into_iter().map(str::to_owned).chain(words).collect())
}

/// QEMU's small firmware, where it is there: the usual one looks for disks to boot from, and so drives devices
/// that are handed over. Bridges for windows get their room from the usual one.
fn small_firmware(spec: &VmSpec) -> Option<&'static str> {
    let without_windows = matches!(spec.machine, Machine::Q35 { windows: 0, .. });
    (without_windows && Path::new(SMALL_FIRMWARE).exists()).then_some(SMALL_FIRMWARE)
}

pub(super) fn plain(path: &Path) -> Result<&str, CommandError> {
    match path.to_str() {
        Some(text) if !text.contains(',') => Ok(text),
        _ => Err(CommandError::Comma(path.display().to_string())),
    }
}

fn accelerator(accelerator: Accelerator) -> String {
    match accelerator {
        Accelerator::Kvm => accelerator.as_str().to_owned(),
        // MiB of emulated code, which is most of what an emulated machine takes of its host. QEMU has up to 1 GiB of it;
        // a start that makes some of it twice is no slower by it (docs/driver-zones.md).
        Accelerator::Tcg => format!("{},tb-size=32", accelerator.as_str()),
    }
}

fn machine(machine: Machine) -> String {
    match machine {
        Machine::MicroVm => "microvm,memory-backend=ram,acpi=on,rtc=on,usb=off".to_owned(),
        Machine::Q35 { iommu, .. } => {
            // Only what a guest without a keyboard and disks needs; each device costs start time.
            let irqchip = if iommu { ",kernel-irqchip=split" } else { "" };
            format!(
                "q35,memory-backend=ram,vmport=off,smm=off,sata=off,smbus=off,usb=off,i8042=off,hpet=off{irqchip}"
            )
        }
    }
}

const fn cpu(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "host",
        // A fifth level of page tables costs at each walk, and no guest here has so much memory.
        Accelerator::Tcg => "max,la57=off",
    }
}

fn kernel_words(spec: &VmSpec) -> String {
    // A panic ends the machine, and so QEMU, which is how the host learns of it. That ciphers test
    // themselves is left out: it is most of what can be left out of a start. An emulated timer is late on
    // a busy host, and its checks would fail for good. Of the kernel's security modules the guest uses
    // Landlock alone, and nobody in it minds being interrupted for what waits for all processors.
    let usual = "console=ttyS0 quiet panic=-1 reboot=t no_timer_check cryptomgr.notests lsm=landlock,lockdown,yama rcupdate.rcu_expedited=1 rdinit=/init";
    let emulated = match spec.accelerator {
        Accelerator::Tcg => " tsc=reliable",
        Accelerator::Kvm => "",
    };
    let iommu = match spec.machine {
        Machine::Q35 { iommu: true, .. } => " intel_iommu=on",
        Machine::Q35 { iommu: false, .. } | Machine::MicroVm => "",
    };
    let more = if spec.append.is_empty() { String::new() } else { format!(" {}", spec.append) };
    format!("{usual}{emulated}{iommu}{more}")
}

fn devices(spec: &VmSpec) -> Result<Vec<String>, CommandError> {
    let mut devices = Vec::new();
    let (bus, windows) = match spec.machine {
        Machine::MicroVm if !spec.devices.is_empty() => return Err(CommandError::NoPci),
        Machine::MicroVm => ("device", 0),
        Machine::Q35 { windows, iommu } => {
            if iommu {
                devices.push("intel-iommu,intremap=on,caching-mode=on".to_owned());
            }
            ("pci", windows)
        }
    };
    // The first is for a console, which there is none of.
    devices.push(format!("virtio-serial-{bus},id=serial,max_ports={}", 2 + spec.ports.len()));
    devices.push(format!("virtserialport,chardev=control,name={PORT}"));
    for (n, name) in spec.ports.iter().enumerate() {
        devices.push(format!("virtserialport,chardev=port{n},name={name}"));
    }
    if windows > MOST_WINDOWS {
        return Err(CommandError::Windows(windows));
    }
    for n in 0..windows {
        let (id, addr, chassis) = (window_bus(n), window_bridge(n), n + 1);
        devices.push(format!(
            "pcie-root-port,id={id},addr={addr},chassis={chassis},multifunction=on,pref64-reserve=32M,io-reserve=0"
        ));
    }
    if spec.devices.len() > MOST_DEVICES {
        return Err(CommandError::Devices(spec.devices.len()));
    }
    for (n, device) in spec.devices.iter().enumerate() {
        let (addr, chassis) = (device_bridge(n), 150 + n);
        devices.push(format!(
            "pcie-root-port,id=device{n},addr={addr},chassis={chassis},multifunction=on"
        ));
        if !is_address(&device.address) {
            return Err(CommandError::Address(device.address.clone()));
        }
        if device.vf_token.is_none() {
            devices.push(format!("vfio-pci,host={},bus=device{n}", device.address));
        }
    }
    Ok(devices)
}

/// The devices that take a token, as a file for `-readconfig`: everybody on the host may read a
/// command line. QEMU inherits it behind its sockets.
pub(super) fn secrets(spec: &VmSpec) -> Result<Option<String>, CommandError> {
    let mut text = String::new();
    for (n, Passthrough { address, vf_token }) in spec.devices.iter().enumerate() {
        let Some(token) = vf_token else { continue };
        if !is_address(address) {
            return Err(CommandError::Address(address.clone()));
        }
        let token = token.reveal().hyphenated();
        text.push_str(&format!(
            "[device \"passed{n}\"]\n  driver = \"vfio-pci\"\n  host = \"{address}\"\n  bus = \"device{n}\"\n  vf-token = \"{token}\"\n"
        ));
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

pub(super) fn is_address(text: &str) -> bool {
    text.len() == 12 && text.parse::<PciAddress>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(machine: Machine, devices: Vec<Passthrough>) -> VmSpec {
        VmSpec {
            program: "/usr/bin/qemu-system-x86_64".into(),
            kernel: "/k/bzImage".into(),
            image: "/i/zone.cpio".into(),
            append: "gpuzone.mode=zone".into(),
            accelerator: Accelerator::Tcg,
            machine,
            memory: 256 << 20,
            processors: 2,
            devices,
            ports: vec!["gpuzone.input".into()],
        }
    }

    fn text(spec: &VmSpec) -> String {
        arguments("z", spec).unwrap().join(" ")
    }

    #[test]
    fn a_machine_has_what_was_asked_for_and_no_default_devices() {
        let q35 = text(&spec(Machine::Q35 { windows: 9, iommu: true }, Vec::new()));
        let flags = "-nodefaults -no-user-config -no-reboot -S";
        for part in [flags, "spawn=deny", "share=on", "-accel tcg,tb-size=32 "] {
            assert!(q35.contains(part), "{part}: {q35}");
        }
        assert_eq!(q35.matches("pcie-root-port").count(), 9);
        assert!(
            q35.contains("socket,id=port0,fd=5,server=on") && q35.contains("max_ports=3"),
            "{q35}"
        );
        assert!(q35.contains("chardev=port0,name=gpuzone.input"), "{q35}");
        assert!(q35.contains("id=window8,addr=11.0,chassis=9"), "{q35}");
        assert!(q35.contains("kernel-irqchip=split") && q35.contains("intel-iommu"), "{q35}");
        let small = text(&spec(Machine::MicroVm, Vec::new()));
        assert!(small.contains("virtio-serial-device") && !small.contains("pci"), "{small}");
    }

    #[test]
    fn devices_are_addresses_and_tokens_and_nothing_that_adds_options() {
        let q35 = Machine::Q35 { windows: 0, iommu: false };
        let device = |address: &str, token: Option<&str>| Passthrough {
            address: address.to_owned(),
            vf_token: token.map(|token| token.parse().unwrap()),
        };
        let token = "00112233-4455-6677-8899-aabbccddeeff";
        let both = vec![device("0000:3b:00.0", None), device("0000:3b:00.1", Some(token))];
        let two = spec(q35, both);
        let good = text(&two);
        assert!(good.contains("host=0000:3b:00.0,bus=device0"), "{good}");
        // A secret is no word of a command line. One port, so five descriptors before it.
        assert!(!good.contains(token) && !good.contains("00.1"), "{good}");
        assert!(good.contains("-readconfig /proc/self/fd/6"), "{good}");
        let bridges = (good.find("id=device1,"), good.find("-readconfig"));
        assert!(bridges.0.unwrap() < bridges.1.unwrap());
        let file = secrets(&two).unwrap().unwrap();
        let lines = ["[device \"passed1\"]", "host = \"0000:3b:00.1\"", "bus = \"device1\""];
        assert!(lines.iter().all(|line| file.contains(line)), "{file}");
        assert!(file.contains(&format!("vf-token = \"{token}\"")) && !file.contains("passed0"));
        assert!(!format!("{two:?}").contains(token), "{two:?}");
        let without = spec(q35, vec![device("0000:3b:00.0", None)]);
        assert!(!text(&without).contains("-readconfig"));
        assert_eq!(secrets(&without), Ok(None));
        assert!(good.contains("id=device0,addr=08.0,chassis=150"), "{good}");
        assert_eq!(device_bridge(MOST_DEVICES - 1), "0f.7");
        let many = vec![device("0000:3b:00.0", None); MOST_DEVICES + 1];
        assert_eq!(arguments("z", &spec(q35, many)), Err(CommandError::Devices(65)));
        for wrong in ["0000:3b:00.0,x=y", "3b:00.0", "0000:3b:00", "", "0000-3b-00.0"] {
            for token in [None, Some(token)] {
                let refused = arguments("z", &spec(q35, vec![device(wrong, token)]));
                assert!(refused.is_err(), "{wrong}");
            }
        }
        let nowhere = spec(Machine::MicroVm, vec![device("0000:3b:00.0", None)]);
        assert_eq!(arguments("z", &nowhere), Err(CommandError::NoPci));
        let mut comma = spec(q35, Vec::new());
        comma.kernel = "/k,readonly=off".into();
        assert!(matches!(arguments("z", &comma), Err(CommandError::Comma(_))));
    }
}
