use std::io;
use std::path::PathBuf;

use gpuzone_core::{GpuUuid, InvalidId, InventoryError};
use nvml_wrapper::error::NvmlError;

/// Why an NVML library was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file.
    #[error(
        "there is no NVML library at {}; install the GPU's driver, or name the library's place in the configuration",
        .0.display()
    )]
    Missing(PathBuf),
    /// The file is there and cannot be read.
    #[error(
        "the NVML library {} cannot be read; check its permissions and those of its folders",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The loader does not take it.
    #[error(
        "{} is no shared library for this machine ({reason}); name a libnvidia-ml.so.1 in the configuration",
        path.display()
    )]
    NotALibrary {
        /// The file.
        path: PathBuf,
        /// What the loader says.
        reason: String,
    },
    /// A library, but another one.
    #[error(
        "{} is a shared library without NVML's functions; name a libnvidia-ml.so.1 in the configuration",
        .0.display()
    )]
    NotNvml(PathBuf),
    /// The kernel driver is not there.
    #[error(
        "{} finds no driver; load the kernel module (modprobe nvidia) and look at the kernel's log if that fails (for the simulated GPU: see standard error)",
        .0.display()
    )]
    DriverNotLoaded(PathBuf),
    /// Library and kernel driver are of different versions.
    #[error(
        "{} and the loaded kernel driver have different versions, which is so after an update of the driver; reboot, or reload the kernel module",
        .0.display()
    )]
    VersionMismatch(PathBuf),
    /// The driver is there and not for this user.
    #[error(
        "{} may not speak to the driver; run as a user that may open /dev/nvidiactl",
        .0.display()
    )]
    NoPermission(PathBuf),
    /// Anything else.
    #[error("{} cannot be initialised; see whether nvidia-smi works on this machine", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What NVML says.
        source: QueryError,
    },
}

/// NVML did not answer a question.
#[derive(Debug, thiserror::Error)]
#[error("NVML answers: {message}")]
pub struct QueryError {
    message: String,
}

impl From<NvmlError> for QueryError {
    fn from(error: NvmlError) -> Self {
        Self { message: error.to_string() }
    }
}

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// NVML did not say something that must be known.
    #[error("the {what} of GPU {index} is not known; see whether nvidia-smi lists the GPU")]
    Query {
        /// What was asked for.
        what: &'static str,
        /// NVML's index of the GPU.
        index: u32,
        /// What NVML says.
        source: QueryError,
    },
    /// NVML did not say something about the node.
    #[error("the {what} is not known; see whether nvidia-smi works on this machine")]
    Node {
        /// What was asked for.
        what: &'static str,
        /// What NVML says.
        source: QueryError,
    },
    /// An identifier in a form that nothing here can handle.
    #[error(
        "GPU {index} has an identifier that cannot be used; a driver of R470 or later gives it one that can"
    )]
    Identifier {
        /// NVML's index of the GPU.
        index: u32,
        /// Which, and why.
        source: InvalidId,
    },
    /// The GPUs together make no inventory.
    #[error("the listing of GPUs cannot be used; see whether nvidia-smi -L lists each once")]
    Inventory(#[from] InventoryError),
    /// A simulated GPU where a real one was asked for.
    #[error(
        "GPU {index} ('{name}', driver {driver}) is simulated, but the configuration asks for physical GPUs; name NVIDIA's library, or ask for the simulated node by its name"
    )]
    UnexpectedlySimulated {
        /// NVML's index of the GPU.
        index: u32,
        /// Its name.
        name: String,
        /// The driver's version.
        driver: String,
    },
    /// A real GPU where a simulated one was asked for.
    #[error(
        "GPU {index} ('{name}', driver {driver}) is physical, but the configuration asks for the simulated node; name the simulated library, or ask for physical GPUs"
    )]
    UnexpectedlyPhysical {
        /// NVML's index of the GPU.
        index: u32,
        /// Its name.
        name: String,
        /// The driver's version.
        driver: String,
    },
}

/// Why the use of a GPU is not known.
#[derive(Debug, thiserror::Error)]
pub enum UseError {
    /// NVML has no such GPU, or not any more.
    #[error(
        "GPU {0} is not on this node; it may have fallen off the bus: see whether nvidia-smi lists it, and reset it or reboot if not"
    )]
    UnknownGpu(GpuUuid),
    /// NVML did not answer.
    #[error("the {what} of GPU {gpu} is not known; see whether nvidia-smi shows it")]
    Query {
        /// What was asked for.
        what: &'static str,
        /// Which GPU.
        gpu: GpuUuid,
        /// What NVML says.
        source: QueryError,
    },
}
