//! Windows: memory that the host plugged in as a PCI device (ivshmem), found at its place: behind a bridge,
//! or on the first bus.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEVICES: &str = "/sys/bus/pci/devices";
/// What QEMU's ivshmem is called.
const IVSHMEM: (&str, &str) = ("0x1af4", "0x1110");
/// The kernel brings a plugged device up on its own time.
const LOOKS: (u32, Duration) = (3000, Duration::from_millis(10));

/// Opens the memory of the window at `place` or behind the bridge there (like `10.3`, on bus 0), waiting for
/// it.
pub(crate) fn open(place: &str) -> io::Result<File> {
    let place = Path::new(DEVICES).join(format!("0000:00:{place}"));
    for _ in 0..LOOKS.0 {
        if let Some(device) = at(&place) {
            return enable(&device);
        }
        std::thread::sleep(LOOKS.1);
    }
    let message = format!("no window at {}", place.display());
    Err(io::Error::new(io::ErrorKind::NotFound, message))
}

fn at(place: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(place).ok()?;
    let is = |device: &Path, file: &str, value: &str| {
        fs::read_to_string(device.join(file)).is_ok_and(|text| text.trim() == value)
    };
    let behind = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut devices = std::iter::once(place.to_owned()).chain(behind);
    devices.find(|path| {
        is(path, "vendor", IVSHMEM.0) && is(path, "device", IVSHMEM.1) && memory(path).exists()
    })
}

fn memory(device: &Path) -> PathBuf {
    device.join("resource2")
}

/// No driver does it: the device is told to answer to its addresses.
fn enable(device: &Path) -> io::Result<File> {
    fs::write(device.join("enable"), "1")?;
    File::options().read(true).write(true).open(memory(device))
}
