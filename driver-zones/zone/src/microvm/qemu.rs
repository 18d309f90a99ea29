//! QEMU, over QMP.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::backend::{CONTROL, MONITOR, OWN_FILES};
use super::command::{self, CommandError, device_bridge, window_bridge, window_bus};
use super::hypervisor::{ControlError, Plugs, Vmm};
use super::probe::{Probe, QemuProbe};
use super::qmp::{Monitor, QmpError};
use super::{MicroVms, VmSpec, WINDOW_BYTES};
use crate::sandbox::Mount;

/// Where distributions put QEMU's firmware.
const FIRMWARE: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-kvm"];

pub(super) struct Qemu;

impl Vmm for Qemu {
    fn arguments(&self, name: &str, vm: &VmSpec) -> Result<Vec<String>, CommandError> {
        command::arguments(name, vm)
    }

    fn sockets(&self, ports: &[String]) -> Vec<String> {
        [MONITOR, CONTROL].map(str::to_owned).into_iter().chain(ports.iter().cloned()).collect()
    }

    fn secrets(&self, vm: &VmSpec) -> Result<Option<String>, CommandError> {
        command::secrets(vm)
    }

    fn own_folder(&self, _vms: &MicroVms) -> Option<PathBuf> {
        None
    }

    fn shown(&self, _vms: &MicroVms) -> Vec<Mount> {
        let mut mounts: Vec<Mount> = FIRMWARE.map(Mount::read_if_there).into();
        // Windows are opened by it. Of a `/proc` of its own a maker's zone can have none: the maker's is
        // covered in places, and who cannot see all of it gets no new one (mount_namespaces(7)).
        mounts.push(Mount { unmapped: true, ..Mount::write(OWN_FILES) });
        mounts
    }

    fn begin(&self, vms: &MicroVms, name: &str, _vm: &VmSpec) -> Result<(), ControlError> {
        let mut monitor = Monitor::connect(&vms.path(name, MONITOR))?;
        monitor.execute("cont", json!({}))?;
        Ok(())
    }

    fn ports_come_first(&self) -> bool {
        true
    }

    fn connect(
        &self,
        vms: &MicroVms,
        name: &str,
        port: &str,
        _patience: Duration,
    ) -> io::Result<UnixStream> {
        UnixStream::connect(vms.path(name, port))
    }

    fn ask_to_end(&self, _vms: &MicroVms, _name: &str) -> Result<(), ControlError> {
        // It has nothing to put in order.
        Ok(())
    }

    fn clear(&self, _vms: &MicroVms) -> io::Result<()> {
        Ok(())
    }

    fn plugs(&self, vms: &MicroVms, name: &str) -> Box<dyn Plugs> {
        Box::new(Bridges { monitor: vms.path(name, MONITOR), connection: None })
    }

    fn device_place(&self, n: usize) -> String {
        device_bridge(n)
    }

    fn probe(&self) -> &'static dyn Probe {
        &QemuProbe
    }
}

/// Windows are `ivshmem-plain`, each behind a bridge of its own.
#[derive(Debug)]
struct Bridges {
    monitor: PathBuf,
    connection: Option<Monitor>,
}

impl Bridges {
    /// Connects when there is no connection; drops one that broke.
    fn with_monitor<T>(
        &mut self,
        act: impl FnOnce(&mut Monitor) -> Result<T, QmpError>,
    ) -> Result<T, ControlError> {
        let mut monitor = match self.connection.take() {
            Some(monitor) => monitor,
            None => Monitor::connect(&self.monitor)?,
        };
        let done = act(&mut monitor);
        if matches!(done, Ok(_) | Err(QmpError::Refused { .. })) {
            self.connection = Some(monitor);
        }
        Ok(done?)
    }
}

impl Plugs for Bridges {
    fn plug(
        &mut self,
        number: u16,
        name: &str,
        file: BorrowedFd<'_>,
    ) -> Result<String, ControlError> {
        let fdset = fdset(number);
        self.with_monitor(|monitor| {
            let added = monitor.execute_with("add-fd", json!({ "fdset-id": fdset }), Some(file))?;
            let fd = added.get("fd").and_then(Value::as_i64).unwrap_or(-1);
            monitor.execute(
                "object-add",
                json!({
                    "qom-type": "memory-backend-file",
                    "id": name,
                    "size": WINDOW_BYTES,
                    "mem-path": format!("/proc/self/fd/{fd}"),
                    "share": true,
                }),
            )?;
            let device = json!({
                "driver": "ivshmem-plain",
                "id": device(number),
                "memdev": name,
                "bus": window_bus(number),
            });
            if let Err(error) = monitor.execute("device_add", device) {
                // Nobody would ask for it again.
                let _ = monitor.execute("object-del", json!({ "id": name }));
                let _ = monitor.execute("remove-fd", json!({ "fdset-id": fdset }));
                return Err(error);
            }
            Ok(())
        })?;
        Ok(window_bridge(number))
    }

    fn unplug(&mut self, number: u16, _name: &str) -> Result<(), ControlError> {
        self.with_monitor(|monitor| {
            monitor.execute("device_del", json!({ "id": device(number) })).map(drop)
        })
    }

    fn is_gone(&mut self, number: u16, name: &str) -> Result<bool, ControlError> {
        let fdset = fdset(number);
        self.with_monitor(|monitor| {
            match monitor.execute("object-del", json!({ "id": name })) {
                Ok(_) => {}
                // As long as the device uses it.
                Err(QmpError::Refused { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
            match monitor.execute("remove-fd", json!({ "fdset-id": fdset })) {
                // It went with the connection over which it came.
                Ok(_) | Err(QmpError::Refused { .. }) => Ok(true),
                Err(error) => Err(error),
            }
        })
    }

    fn names(&mut self) -> Result<Vec<String>, ControlError> {
        let named = self
            .with_monitor(|monitor| monitor.execute("qom-list", json!({ "path": "/objects" })))?;
        let named = named.as_array().into_iter().flatten();
        Ok(named.filter_map(|object| Some(object.get("name")?.as_str()?.to_owned())).collect())
    }
}

/// The set of descriptors in which QEMU keeps a window's memory.
fn fdset(number: u16) -> u64 {
    u64::from(number) + 1
}

/// QEMU's name for a place's device.
fn device(number: u16) -> String {
    format!("plugged{number}")
}
