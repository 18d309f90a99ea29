//! A hypervisor as the program of a zone: its files, its sandbox, and how it is let run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::CommandError;
use super::hypervisor::{ControlError, Hypervisor};
use super::{Accelerator, Passthrough, VmSpec};
use crate::files::{in_memory, private_dir, remove};
use crate::maker::Files;
use crate::sandbox::{Filter, Launch, Limits, Mount, Policy, Root, Spec, UserRanges, libraries};

/// Where sysfs has functions by address.
const FUNCTIONS: &str = "/sys/bus/pci/devices";
/// A process's open files, by their numbers.
pub(super) const OWN_FILES: &str = "/proc/self/fd";
/// VFIO's nodes.
const VFIO: &str = "/dev/vfio";
/// A hypervisor's own memory beside the guest's, and some.
const OVERHEAD: u64 = 512 << 20;
/// Its threads: processors, its own loop, and workers for files.
const MOST_THREADS: u64 = 256;

/// A machine's monitor, by its name among a zone's files.
pub(super) const MONITOR: &str = "qmp";
/// The guest's control port.
pub const CONTROL: &str = "port";
/// What the hypervisor says.
const LOG: &str = "hypervisor.log";
/// What the one before said, which is looked for when it is gone.
const LOG_BEFORE: &str = "hypervisor.before.log";
/// Where the processor makes processors.
pub const KVM: &str = "/dev/kvm";

/// MicroVMs of one hypervisor, whose sockets and logs lie in a folder.
#[derive(Clone, Debug)]
pub struct MicroVms {
    folder: PathBuf,
    hypervisor: Hypervisor,
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
    /// A function that it is to get is on no IOMMU.
    #[error(
        "the microVM cannot get {address}, whose IOMMU group is not to be found ({source}); turn the IOMMU on, and bind the function to vfio-pci"
    )]
    Group {
        /// Which.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// A port of the guest's cannot be had.
    #[error("cannot reach the microVM: {0}")]
    Ports(#[source] io::Error),
    /// It was started, and does not run the guest; what it said last.
    #[error("{source}; {hypervisor}'s last word: {said}")]
    Control {
        /// Who runs it.
        hypervisor: Hypervisor,
        /// What was wrong.
        source: ControlError,
        /// The end of its log.
        said: String,
    },
}

impl MicroVms {
    /// MicroVMs whose files are in `folder`, which is its owner's alone.
    pub fn new(folder: PathBuf, hypervisor: Hypervisor) -> Self {
        Self { folder, hypervisor }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes what has to be there before the hypervisor is started, and what of it that one writes to.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn prepare(&self) -> io::Result<Option<PathBuf>> {
        let folder = self.hypervisor.vmm().own_folder(self);
        if let Some(folder) = &folder {
            private_dir(&self.folder)?;
            private_dir(folder)?;
        }
        Ok(folder)
    }

    /// Who runs them.
    pub fn hypervisor(&self) -> Hypervisor {
        self.hypervisor
    }

    /// Where a machine's socket or log is.
    pub(super) fn path(&self, name: &str, what: &str) -> PathBuf {
        self.folder.join(format!("{name}.{what}"))
    }

    /// The hypervisor as it is started for the zone, with its sockets made and listening. It runs
    /// nothing of the guest's before [`MicroVms::begin`].
    ///
    /// # Errors
    /// When the machine cannot be described, or its files not be made.
    pub fn launch(&self, name: &str, vm: &VmSpec) -> Result<Launch, MicroVmError> {
        let arguments = self.hypervisor.arguments(name, vm)?;
        let Files { stdin, stdout, stderr, mut inherit } = self.files(name, &vm.ports)?;
        if let Some(text) = self.hypervisor.vmm().secrets(vm)? {
            let files = |source| MicroVmError::Files { folder: self.folder.clone(), source };
            inherit.push(in_memory("machine", text.as_bytes()).map_err(files)?);
        }
        let (program, environment) = (vm.program.clone(), BTreeMap::new());
        let arguments = arguments.into_iter().map(Into::into).collect();
        Ok(Launch { program, arguments, environment, stdin, stdout, stderr, inherit })
    }

    /// What it inherits: its log, and its sockets, which listen. Of a machine with secrets,
    /// [`MicroVms::launch`] hands over more.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn files(&self, name: &str, ports: &[String]) -> Result<Files, MicroVmError> {
        let files = || -> io::Result<_> {
            let at = |suffix: &str| self.path(name, suffix);
            self.prepare()?;
            // One that is left belonged to a process that is gone, and keeps the next from making its own.
            self.hypervisor.vmm().clear(self)?;
            let sockets = self.hypervisor.vmm().sockets(ports);
            let inherit =
                sockets.iter().map(|name| listen(&at(name))).collect::<io::Result<_>>()?;
            match std::fs::rename(at(LOG), at(LOG_BEFORE)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let null = || File::options().read(true).write(true).open("/dev/null");
            let mut log = File::options();
            let log = log.write(true).create(true).truncate(true).mode(0o600).open(at(LOG))?;
            Ok(Files { stdin: null()?.into(), stdout: null()?.into(), stderr: log.into(), inherit })
        };
        files().map_err(|source| MicroVmError::Files { folder: self.folder.clone(), source })
    }

    /// Lets a machine run that was started.
    ///
    /// # Errors
    /// When the hypervisor does not answer; with its last word.
    pub fn begin(&self, name: &str, vm: &VmSpec) -> Result<(), MicroVmError> {
        let hypervisor = self.hypervisor;
        let begun = hypervisor.vmm().begin(self, name, vm);
        begun.map_err(|source| MicroVmError::Control {
            hypervisor,
            source,
            said: self.last_word(name),
        })
    }

    /// Lets a machine run that was started, and connects to `ports` of its guest's: before it runs,
    /// where that can be.
    ///
    /// # Errors
    /// When the hypervisor does not answer, or the guest not within `patience`.
    pub fn begin_connected(
        &self,
        name: &str,
        vm: &VmSpec,
        ports: &[&str],
        patience: Duration,
    ) -> Result<Vec<UnixStream>, MicroVmError> {
        let connect = || {
            let connected = ports.iter().map(|port| self.connect(name, port, patience));
            connected.collect::<io::Result<Vec<_>>>().map_err(MicroVmError::Ports)
        };
        if self.hypervisor.vmm().ports_come_first() {
            let ports = connect()?;
            self.begin(name, vm)?;
            return Ok(ports);
        }
        self.begin(name, vm)?;
        connect()
    }

    /// Connects to a port of the guest's: one connection at a time, which an owner can make again.
    ///
    /// # Errors
    /// When nobody is there, or none listens within `patience`.
    pub fn connect(&self, name: &str, port: &str, patience: Duration) -> io::Result<UnixStream> {
        self.hypervisor.vmm().connect(self, name, port, patience)
    }

    /// Asks the hypervisor to end, in order. Whether it does so or not, it is ended after that.
    pub fn ask_to_end(&self, name: &str) {
        if let Err(error) = self.hypervisor.vmm().ask_to_end(self, name) {
            tracing::debug!(%error, "the hypervisor does not end in order");
        }
    }

    /// The last line of what the hypervisor said, for an error.
    pub fn last_word(&self, name: &str) -> String {
        last_word(&self.path(name, LOG))
    }

    /// Removes a machine's sockets.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn clear(&self, name: &str) -> io::Result<()> {
        let vmm = self.hypervisor.vmm();
        vmm.clear(self)?;
        vmm.sockets(&[]).iter().try_for_each(|what| remove(&self.path(name, what)))
    }

    /// The sandbox in which the hypervisor runs: it reads its program, the kernel and the image, and opens
    /// KVM and VFIO where the machine needs them.
    ///
    /// # Errors
    /// When a device that it is to get has no IOMMU group.
    pub fn confinement(
        &self,
        vm: &VmSpec,
        users: Option<UserRanges>,
        policy: Policy,
    ) -> Result<Spec, MicroVmError> {
        let mut mounts: Vec<Mount> = libraries().collect();
        mounts.extend([&vm.program, &vm.kernel, &vm.image].map(Mount::read));
        mounts.extend(self.hypervisor.vmm().shown(self));
        let mut devices = Vec::new();
        if vm.accelerator == Accelerator::Kvm {
            devices.push(Path::new(KVM).to_owned());
        }
        let functions = Path::new(FUNCTIONS);
        if !vm.devices.is_empty() {
            devices.push(Path::new(VFIO).join("vfio"));
        }
        for Passthrough { address, .. } in &vm.devices {
            // Of a function it reads its own folder, and opens its group.
            let folder = functions.join(address);
            let group = std::fs::read_link(folder.join("iommu_group"));
            let group =
                group.map_err(|source| MicroVmError::Group { address: address.clone(), source });
            let group = Path::new(VFIO).join(group?.file_name().unwrap_or_default());
            mounts.push(Mount { unmapped: true, ..Mount::read(folder) });
            if !devices.contains(&group) {
                devices.push(group);
            }
        }
        // A device writes to memory by its address, so none of the guest's may move.
        let memory = vm.memory.saturating_add(OVERHEAD);
        let locked = (!vm.devices.is_empty()).then_some(memory);
        Ok(Spec {
            zone: String::new(),
            root: Root::Empty,
            mounts,
            devices,
            private: vec!["/tmp".into()],
            hidden: Vec::new(),
            directory: "/".into(),
            network: false,
            // Users of its own can signal nobody; without them, numbers of its own keep it from that.
            own_pids: users.is_none(),
            users,
            record: None,
            filter: Filter::Workload,
            limits: Limits {
                memory: Some(memory),
                locked,
                pids: Some(MOST_THREADS),
                cpu_weight: Some(100),
                scratch: Some(1 << 20),
                ..Limits::default()
            },
            policy,
        })
    }
}

/// Binds a fresh socket that only this user connects to.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    remove(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    Ok(listener.into())
}

/// The last line of a log, for an error.
fn last_word(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let tail = text.get(text.len().saturating_sub(2048)..).unwrap_or_default();
    let tail = String::from_utf8_lossy(tail).into_owned();
    let line = tail.lines().rev().map(str::trim).find(|line| !line.is_empty());
    let printable = |line: &str| line.chars().filter(|c| !c.is_control()).take(300).collect();
    line.map_or_else(|| "none".to_owned(), printable)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::super::{Accelerator, Hypervisor, Machine, Passthrough};
    use super::*;

    #[test]
    fn a_token_reaches_the_hypervisor_in_a_file_and_on_no_command_line() {
        let token = "00112233-4455-6677-8899-aabbccddeeff";
        let folder = tempfile::tempdir().unwrap();
        let device = |address: &str, token: Option<&str>| Passthrough {
            address: address.to_owned(),
            vf_token: token.map(|token| token.parse().unwrap()),
        };
        let mut vm = VmSpec {
            program: "/usr/bin/qemu-system-x86_64".into(),
            kernel: "/k/bzImage".into(),
            image: "/i/zone.cpio".into(),
            append: String::new(),
            accelerator: Accelerator::Tcg,
            machine: Machine::Q35 { windows: 0, iommu: false },
            memory: 256 << 20,
            processors: 1,
            devices: vec![device("0000:3b:00.1", Some(token))],
            ports: vec!["input".to_owned()],
        };
        let vms = MicroVms::new(folder.path().to_owned(), Hypervisor::Qemu);
        let launch = vms.launch("z", &vm).unwrap();
        let words: Vec<&str> = launch.arguments.iter().filter_map(|word| word.to_str()).collect();
        assert!(words.iter().all(|word| !word.contains(token)), "{words:?}");
        // Monitor, control port and one more are the descriptors 3 to 5.
        assert_eq!(launch.inherit.len(), 4);
        assert!(words.contains(&"/proc/self/fd/6"), "{words:?}");
        let mut text = String::new();
        let file = launch.inherit.into_iter().next_back().unwrap();
        File::from(file).read_to_string(&mut text).unwrap();
        assert!(text.contains(&format!("vf-token = \"{token}\"")), "{text}");
        vm.devices = vec![device("0000:3b:00.1", None)];
        assert_eq!(vms.launch("z", &vm).unwrap().inherit.len(), 3);
    }
}
