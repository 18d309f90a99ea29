//! MicroVMs as a kind of zone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::command::{self, CommandError};
use super::qmp::{Monitor, QmpError};
use super::{Accelerator, VmSpec};
use crate::backend::{Backend, ZoneStats};
use crate::files::remove;
use crate::sandbox::{
    self, Filter, Launch, Limits, Missing, Mount, Policy, Root, SandboxError, SandboxZone,
    Sandboxes, Spec, UserRanges, libraries,
};
use crate::{Exit, ProcessId};

/// Where distributions put QEMU's firmware.
const FIRMWARE: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-kvm"];
/// QEMU's own memory beside the guest's, and some.
const OVERHEAD: u64 = 512 << 20;
/// QEMU's threads: processors, its own loop, and workers for files.
const MOST_THREADS: u64 = 256;

/// The backend of microVMs, whose sockets and logs lie in a folder.
#[derive(Clone, Debug)]
pub struct MicroVms {
    folder: PathBuf,
}

/// What a microVM's zone is to be.
#[derive(Debug)]
pub struct Order {
    /// The machine.
    pub vm: VmSpec,
    /// `gpu-zone-sandbox`, which confines QEMU. `None` where the policy allows none.
    pub launcher: Option<PathBuf>,
    /// From where QEMU gets users of its own.
    pub users: Option<UserRanges>,
    /// What happens where the host lacks a part of the confinement.
    pub policy: Policy,
}

/// A microVM that there is.
#[derive(Debug)]
pub struct MicroVmZone {
    inner: SandboxZone,
    monitor: PathBuf,
    control: PathBuf,
    log: PathBuf,
}

/// Why there is no microVM, or why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum MicroVmError {
    /// It cannot be described.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Its sockets or its log cannot be made.
    #[error("cannot prepare the microVM's files in {}: {source}", .folder.display())]
    Files {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// QEMU was not started.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// It was started, and does not run the guest; what it said last.
    #[error("{source}; QEMU's last word: {said}")]
    Monitor {
        /// What was wrong.
        source: QmpError,
        /// The end of its log.
        said: String,
    },
}

impl MicroVms {
    /// MicroVMs whose files are in `folder`, which is its owner's alone.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn zone(&self, name: &str, inner: SandboxZone) -> MicroVmZone {
        let at = |suffix: &str| self.path(name, suffix);
        MicroVmZone { inner, monitor: at("qmp"), control: at("port"), log: at("qemu.log") }
    }

    /// Where the zone's sockets and its log are: `qmp` is its monitor, `port` the guest's control
    /// port, `qemu.log` what QEMU says; further ports go by their names.
    pub fn path(&self, name: &str, what: &str) -> PathBuf {
        self.folder.join(format!("{name}.{what}"))
    }

    /// QEMU as it is started for the zone, with its sockets made and listening. It runs nothing of
    /// the guest's before its monitor is told so.
    ///
    /// # Errors
    /// When the machine cannot be described, or its files not be made.
    pub fn launch(&self, name: &str, vm: &VmSpec) -> Result<Launch, MicroVmError> {
        let arguments = command::arguments(name, vm)?;
        let files = || -> io::Result<_> {
            let at = |suffix: &str| self.path(name, suffix);
            let mut inherit = vec![listen(&at("qmp"))?, listen(&at("port"))?];
            for port in &vm.ports {
                inherit.push(listen(&at(port))?);
            }
            let null = || File::options().read(true).write(true).open("/dev/null");
            let mut log = File::options();
            let log =
                log.write(true).create(true).truncate(true).mode(0o600).open(at("qemu.log"))?;
            Ok(Launch {
                program: vm.qemu.clone(),
                arguments,
                environment: BTreeMap::new(),
                stdin: null()?.into(),
                stdout: null()?.into(),
                stderr: log.into(),
                inherit,
            })
        };
        files().map_err(|source| MicroVmError::Files { folder: self.folder.clone(), source })
    }
}

/// Binds a fresh socket that only this user connects to.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    remove(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    Ok(listener.into())
}

/// The sandbox in which QEMU runs: it reads its program, its firmware, the kernel and the image,
/// and opens KVM and VFIO where the machine needs them.
fn confinement(order: &Order) -> Spec {
    let vm = &order.vm;
    let mut mounts: Vec<Mount> = libraries().collect();
    mounts.extend(FIRMWARE.map(Mount::read_if_there));
    mounts.extend([&vm.qemu, &vm.kernel, &vm.image].map(Mount::read));
    let mut devices = Vec::new();
    if vm.accelerator == Accelerator::Kvm {
        devices.push("/dev/kvm".into());
    }
    if !vm.devices.is_empty() {
        // A device's PCI configuration is read in sysfs; its group is one of VFIO's nodes.
        mounts.push(Mount::read("/sys"));
        mounts.push(Mount::write("/dev/vfio"));
    }
    Spec {
        zone: String::new(),
        root: Root::Empty,
        mounts,
        devices,
        private: vec!["/tmp".into()],
        hidden: Vec::new(),
        directory: "/".into(),
        network: false,
        own_pids: true,
        users: order.users,
        record: None,
        filter: Filter::Workload,
        limits: Limits {
            memory: Some(vm.memory.saturating_add(OVERHEAD)),
            pids: Some(MOST_THREADS),
            cpu_weight: Some(100),
            scratch: Some(1 << 20),
            ..Limits::default()
        },
        policy: order.policy.clone(),
    }
}

impl Backend for MicroVms {
    const KIND: &'static str = "microvm";
    type Order = Order;
    type Zone = MicroVmZone;
    type Error = MicroVmError;

    fn create(&self, name: &str, order: Order) -> Result<MicroVmZone, MicroVmError> {
        let launch = self.launch(name, &order.vm)?;
        let spec = confinement(&order);
        let inner = match order.launcher {
            Some(launcher) => sandbox::Order::Program { launcher, spec, launch },
            // It waits for a word of its monitor before it runs anything of the guest's, but it
            // would outlive its maker: whoever allows this ends what is left.
            None => sandbox::Order::Bare(launch),
        };
        let inner = Sandboxes.create(name, inner)?;
        Ok(self.zone(name, inner))
    }

    fn process(&self, zone: &MicroVmZone) -> ProcessId {
        Sandboxes.process(&zone.inner)
    }

    async fn start(&self, zone: &MicroVmZone) -> Result<Vec<Missing>, MicroVmError> {
        let missing = Sandboxes.start(&zone.inner).await?;
        let monitor = zone.monitor.clone();
        let started = tokio::task::spawn_blocking(move || -> Result<(), QmpError> {
            let mut monitor = Monitor::connect(&monitor)?;
            monitor.execute("cont", json!({}))?;
            Ok(())
        });
        let started =
            started.await.unwrap_or_else(|error| Err(QmpError::Broken(io::Error::other(error))));
        started.map_err(|source| MicroVmError::Monitor { source, said: last_word(&zone.log) })?;
        Ok(missing)
    }

    async fn gone(&self, zone: &MicroVmZone) -> io::Result<Exit> {
        Sandboxes.gone(&zone.inner).await
    }

    async fn stop(&self, zone: &MicroVmZone, grace: Option<Duration>) -> io::Result<Exit> {
        let exit = Sandboxes.stop(&zone.inner, grace).await?;
        for path in [&zone.monitor, &zone.control] {
            remove(path)?;
        }
        Ok(exit)
    }

    /// The guest's control port: one connection at a time, which an owner can make again.
    fn channel(&self, zone: &MicroVmZone) -> io::Result<Option<OwnedFd>> {
        Ok(Some(UnixStream::connect(&zone.control)?.into()))
    }

    fn stats(&self, zone: &MicroVmZone) -> io::Result<ZoneStats> {
        Sandboxes.stats(&zone.inner)
    }

    fn adopt(&self, name: &str, process: ProcessId) -> io::Result<Option<MicroVmZone>> {
        let inner = Sandboxes.adopt(name, process)?;
        Ok(inner.map(|inner| self.zone(name, inner)))
    }
}

impl MicroVmZone {
    /// Where its monitor listens.
    pub fn monitor(&self) -> &Path {
        &self.monitor
    }
}

/// The last line of a log, for an error.
pub fn last_word(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let tail = text.get(text.len().saturating_sub(2048)..).unwrap_or_default();
    let tail = String::from_utf8_lossy(tail).into_owned();
    let line = tail.lines().rev().map(str::trim).find(|line| !line.is_empty());
    let printable = |line: &str| line.chars().filter(|c| !c.is_control()).take(300).collect();
    line.map_or_else(|| "none".to_owned(), printable)
}
