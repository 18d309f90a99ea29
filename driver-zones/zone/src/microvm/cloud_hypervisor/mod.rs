//! Cloud Hypervisor, over its HTTP API.
//!
//! It is started with its API's socket and nothing else, so nothing of a guest's runs before it is told of
//! one. It has no virtio-serial ports; the guest's ports are ports of a vsock device, which it makes a
//! socket for in a folder of its own. It takes no memory file over its API either, so windows are devices
//! of ours, behind vfio-user ([`window`]). It emulates no processor.

mod api;
mod http;
mod machine;
mod probe;
#[cfg(test)]
mod tests;
mod vsock;
mod window;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use api::ApiError;

use super::backend::{CONTROL, OWN_FILES};
use super::command::CommandError;
use super::hypervisor::{ControlError, Plugs, Vmm};
use super::probe::Probe;
use super::{MicroVms, VmSpec};
use crate::sandbox::Mount;
use api::{Api, State};
use machine::{FIRST_DEVICE, FIRST_WINDOW};

/// Its API's socket, by its name among a zone's files.
const API: &str = "api";
/// The descriptor on which it gets it.
const API_FD: i32 = 3;
/// How long it is not asked for its devices when one was to be let go of.
const QUIET: Duration = Duration::from_secs(2);

pub(super) struct CloudHypervisor;

impl Vmm for CloudHypervisor {
    fn arguments(&self, _name: &str, vm: &VmSpec) -> Result<Vec<String>, CommandError> {
        // What cannot be said over the API is better known now.
        machine::describe(vm, Path::new("/"))?;
        let socket = format!("fd={API_FD}");
        Ok(["--api-socket", &socket, "--seccomp", "true"].map(str::to_owned).into())
    }

    fn sockets(&self, _ports: &[String]) -> Vec<String> {
        vec![API.to_owned()]
    }

    fn own_folder(&self, vms: &MicroVms) -> Option<PathBuf> {
        Some(folder(vms))
    }

    fn shown(&self, vms: &MicroVms) -> Vec<Mount> {
        // The probe's payload is read there.
        let files = Mount { unmapped: true, ..Mount::write(OWN_FILES) };
        vec![files, Mount::write(folder(vms))]
    }

    fn begin(&self, vms: &MicroVms, name: &str, vm: &VmSpec) -> Result<(), ControlError> {
        let machine = machine::describe(vm, &vsock_socket(vms))?;
        let api = Api::at(vms.path(name, API));
        api.check_version()?;
        match api.state() {
            Ok(State::Running) => return Ok(()),
            Ok(State::Created | State::Shutdown) => {}
            Ok(other) => return Err(ApiError::State(other).into()),
            // There is none yet.
            Err(ApiError::Refused { .. }) => api.create(&machine)?,
            Err(error) => return Err(error.into()),
        }
        Ok(api.boot()?)
    }

    fn ports_come_first(&self) -> bool {
        false
    }

    fn connect(
        &self,
        vms: &MicroVms,
        _name: &str,
        port: &str,
        patience: Duration,
    ) -> io::Result<UnixStream> {
        let number = machine::port_number(port).ok_or(io::ErrorKind::NotFound)?;
        vsock::connect(&vsock_socket(vms), number, patience)
    }

    fn plugs(&self, vms: &MicroVms, name: &str) -> Box<dyn Plugs> {
        let (api, folder) = (Api::at(vms.path(name, API)), folder(vms));
        Box::new(Slots { api, folder, served: BTreeMap::new(), quiet_until: None })
    }

    fn device_place(&self, n: usize) -> String {
        place(usize::from(FIRST_DEVICE) + n)
    }

    fn ask_to_end(&self, vms: &MicroVms, name: &str) -> Result<(), ControlError> {
        Ok(Api::at(vms.path(name, API)).shut_down()?)
    }

    fn clear(&self, vms: &MicroVms) -> io::Result<()> {
        crate::files::remove(&vsock_socket(vms))
    }

    fn probe(&self) -> &'static dyn Probe {
        &probe::PvhProbe
    }
}

/// The folder that it writes to: sockets, of which one is made by it.
fn folder(vms: &MicroVms) -> PathBuf {
    vms.folder().join("cloud-hypervisor")
}

fn vsock_socket(vms: &MicroVms) -> PathBuf {
    folder(vms).join("vsock")
}

/// A slot of the guest's bus 0, as its kernel writes it.
fn place(slot: usize) -> String {
    format!("{slot:02x}.0")
}

/// Windows are devices behind vfio-user, each in a slot of the guest's bus 0.
///
/// That one is gone is seen at its socket, and not asked for. An answer to `vm.info` holds all devices until it is
/// written (`DeviceNode::pci_device_handle`, in 52, 53 and after); one that the guest lets go of meanwhile is taken
/// apart by whoever writes it, the thread `http-server`. Its filter of system calls does not have
/// `KVM_SET_USER_MEMORY_REGION`, so that all of the process ends by SIGSYS.
#[derive(Debug)]
struct Slots {
    api: Api,
    folder: PathBuf,
    /// The devices that were plugged in here, by their names.
    served: BTreeMap<String, window::Serving>,
    /// Those of an earlier owner's are asked for, but not before this.
    quiet_until: Option<Instant>,
}

impl Slots {
    fn be_quiet(&mut self) {
        self.quiet_until = Some(Instant::now() + QUIET);
    }
}

impl Plugs for Slots {
    fn plug(
        &mut self,
        number: u16,
        name: &str,
        file: BorrowedFd<'_>,
    ) -> Result<String, ControlError> {
        let socket = self.folder.join(name);
        let served = window::serve(&socket, file)?;
        let slot = u8::try_from(number).ok().and_then(|number| FIRST_WINDOW.checked_add(number));
        let slot = slot.unwrap_or(u8::MAX);
        let added = self.api.add_user_device(name, &socket, slot);
        let unlinked = crate::files::remove(&socket);
        let serving = served.came();
        let added = added?;
        unlinked?;
        let wanted = place(slot.into());
        if added.bdf != format!("0000:00:{wanted}") {
            return Err(ApiError::Place { wanted, got: http::short(&added.bdf) }.into());
        }
        self.served.insert(name.to_owned(), serving);
        Ok(wanted)
    }

    fn unplug(&mut self, _number: u16, name: &str) -> Result<(), ControlError> {
        self.be_quiet();
        Ok(self.api.remove_device(name)?)
    }

    fn is_gone(&mut self, _number: u16, name: &str) -> Result<bool, ControlError> {
        let gone = match self.served.get(name).map(window::Serving::device) {
            Some(window::Device::Held) => false,
            Some(window::Device::LetGo) => true,
            Some(window::Device::Lost) | None => {
                if self.quiet_until.is_some_and(|end| Instant::now() < end) {
                    return Ok(false);
                }
                self.be_quiet();
                !self.api.devices()?.contains(name)
            }
        };
        if gone {
            self.served.remove(name);
        }
        Ok(gone)
    }

    fn names(&mut self) -> Result<Vec<String>, ControlError> {
        Ok(self.api.devices()?.into_iter().collect())
    }
}

/// The guest's ports, in the order of their numbers.
const PORTS: [&str; 4] = [CONTROL, "gpuzone.input", "gpuzone.output", "gpuzone.error"];
