//! The machine: its first file system with the program's files, and its hypervisor.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gpuzone_image::cpio::Archive;
use gpuzone_wire::control::Accelerator;
use gpuzone_wire::workload_link::{LIBRARIES, MODE, ORDER, ROOT, STREAMS, WHOLE};
use gpuzone_zone::Process;
use gpuzone_zone::microvm::{
    self, CONTROL, DigestError, Hypervisor, Machine as Kind, MicroVmError, MicroVms, ProbeError,
    VmSpec, Windows, check_digest, probe,
};
use gpuzone_zone::sandbox::LaunchError;

use crate::orders::{Command, CommandError, Orders};

/// The zone's own folder, which is gone with it.
const FOLDER: &str = "/tmp";
const NAME: &str = "workload";
/// How long a guest may take to come so far that its ports can be connected; an emulated one is slow.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a kernel takes for itself, beside what it keeps of each page.
const KERNEL: u64 = 64 << 20;

/// A machine that runs.
pub(crate) struct Booted {
    pub(crate) machine: Machine,
    pub(crate) control: UnixStream,
    /// The program's input, output and error.
    pub(crate) streams: [UnixStream; 3],
    pub(crate) windows: Windows,
    pub(crate) slot: Option<PathBuf>,
}

pub(crate) struct Machine {
    pub(crate) process: Arc<Process>,
    vms: MicroVms,
}

impl Machine {
    pub(crate) fn last_word(&self) -> String {
        self.vms.last_word(NAME)
    }

    /// Who runs it.
    pub(crate) fn hypervisor(&self) -> Hypervisor {
        self.vms.hypervisor()
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error(transparent)]
    Orders(#[from] CommandError),
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error(transparent)]
    Accelerator(#[from] ProbeError),
    #[error("cannot make the microVM's first file system: {0}")]
    Image(io::Error),
    #[error(transparent)]
    Describe(#[from] MicroVmError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("the microVM has too few ports")]
    Ports,
}

pub(crate) fn boot(command: &Command) -> Result<Booted, BootError> {
    let orders = &command.orders;
    for (path, digest) in &orders.digests {
        check_digest(path, digest)?;
    }
    let hypervisor = orders.hypervisor();
    let accelerator = accelerator(orders, hypervisor)?;
    let folder = Path::new(FOLDER);
    let image = folder.join("initrd.cpio");
    first_files(command, &image).map_err(BootError::Image)?;
    let vm = VmSpec {
        program: orders.program.clone(),
        kernel: orders.kernel.clone(),
        image,
        append: MODE.to_owned(),
        accelerator,
        machine: Kind::Q35 { windows: orders.windows, iommu: false },
        memory: orders.memory,
        processors: orders.processors,
        devices: orders.passthrough()?,
        ports: STREAMS.map(str::to_owned).into(),
    };
    let vms = MicroVms::new(folder.to_owned(), hypervisor);
    let process = Arc::new(vms.launch(NAME, &vm)?.start()?);
    // All ends are there before the guest says anything.
    let [input, output, error] = STREAMS;
    let ports = [CONTROL, input, output, error];
    let ports = vms.begin_connected(NAME, &vm, &ports, PATIENCE)?;
    let [control, streams @ ..]: [UnixStream; 4] =
        ports.try_into().map_err(|_| BootError::Ports)?;
    let windows = Windows::new(&vms, NAME, orders.windows);
    let machine = Machine { process, vms };
    Ok(Booted { machine, control, streams, windows, slot: orders.slot.clone() })
}

/// By a guest that was seen to run, not by a file that opens.
fn accelerator(
    orders: &Orders,
    hypervisor: Hypervisor,
) -> Result<microvm::Accelerator, ProbeError> {
    let kvm = microvm::Accelerator::Kvm;
    match orders.accelerator {
        Accelerator::Tcg => Ok(microvm::Accelerator::Tcg),
        Accelerator::Kvm => probe(hypervisor, &orders.program, kvm).map(|()| kvm),
        // Who emulates nothing has no second choice.
        Accelerator::Auto if hypervisor.accelerators() == [kvm] => {
            probe(hypervisor, &orders.program, kvm).map(|()| kvm)
        }
        Accelerator::Auto => match probe(hypervisor, &orders.program, kvm) {
            Ok(()) => Ok(kvm),
            Err(error) => {
                eprintln!("gpu-zone-vm: {error}; the processor is emulated, which is slow");
                Ok(microvm::Accelerator::Tcg)
            }
        },
    }
}

/// Bytes of first files that a guest with so much memory holds. They are there twice while its kernel
/// unpacks them, into a file system of half of what it has left then.
fn room(memory: u64) -> u64 {
    (memory - memory / 50).saturating_sub(KERNEL) / 3
}

/// The guest's own image, and behind it what is this zone's.
fn first_files(command: &Command, path: &Path) -> io::Result<()> {
    let Command { orders, order } = command;
    let mut archive = Archive::default();
    let own = std::fs::metadata(&orders.image)?.len();
    let most = room(orders.memory).saturating_sub(own);
    let too_large = |error: io::Error| {
        let hint = "the files of a microVM's root and the shim lie in its memory; --host-memory gives it more";
        io::Error::new(error.kind(), format!("{error} ({hint})"))
    };
    let taken = archive.tree(ROOT, &orders.root, most).map_err(too_large)?;
    if let Some(libraries) = &orders.libraries {
        archive.tree(LIBRARIES, libraries, most.saturating_sub(taken)).map_err(too_large)?;
    }
    archive.text(ORDER, serde_json::to_string(order)?);
    archive.text(WHOLE, String::new());
    let mut out = BufWriter::new(File::create(path)?);
    io::copy(&mut File::open(&orders.image)?, &mut out)?;
    archive.write(&mut out)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_files_fit_twice_with_the_kernel_and_small_machines_hold_none() {
        for mib in [0, 1, 32, 64, 65] {
            assert_eq!(room(mib << 20), 0, "{mib}");
        }
        for memory in [256 << 20, 1 << 30, 64 << 30, u64::MAX] {
            let room = room(memory);
            assert!(room > 0 && room * 3 + KERNEL <= memory - memory / 50, "{memory}");
        }
    }
}
