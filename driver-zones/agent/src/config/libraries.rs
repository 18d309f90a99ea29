//! Where libraries and programs are looked for that nobody named.

use std::io;
use std::path::{Path, PathBuf};

use gpuzone_zone::sandbox::LIBRARIES;

use super::DriverKind;

/// Where installations of NVIDIA's driver put its libraries: Debian, Fedora, WSL, and the
/// container toolkit.
const NVIDIA_FOLDERS: [&str; 4] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib", "/usr/local/nvidia/lib64"];

/// Something that the agent needs and that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is not there: looked for {}; name it in the configuration as {key}", list(.looked))]
pub struct MissingFile {
    /// What it is for.
    what: &'static str,
    /// Every path that was tried.
    looked: Vec<PathBuf>,
    /// The configuration's key for it.
    key: &'static str,
}

fn list(paths: &[PathBuf]) -> String {
    let paths = paths.iter().map(|path| path.display().to_string());
    paths.collect::<Vec<_>>().join(", ")
}

/// The folders beside a program.
#[derive(Clone, Debug)]
pub(super) struct Search {
    /// Of the program, and of the libraries that are installed with it.
    own: Vec<PathBuf>,
    nvidia: Vec<PathBuf>,
}

impl Search {
    pub(super) fn of_this_program() -> io::Result<Self> {
        let executable = std::env::current_exe()?;
        let folder = executable.parent().unwrap_or(Path::new("/"));
        Ok(Self::beside(folder, NVIDIA_FOLDERS.map(PathBuf::from).to_vec()))
    }

    pub(super) fn beside(folder: &Path, nvidia: Vec<PathBuf>) -> Self {
        let installed = folder.parent().unwrap_or(folder).join("lib/gpu-zone");
        Self { own: vec![folder.to_owned(), installed], nvidia }
    }

    pub(super) fn cuda(
        &self,
        driver: DriverKind,
        named: Option<PathBuf>,
    ) -> Result<PathBuf, MissingFile> {
        let (folders, name) = match driver {
            DriverKind::Simulated => (&self.own, "libgpuzone_sim_cuda.so"),
            DriverKind::Nvidia => (&self.nvidia, "libcuda.so.1"),
        };
        find("the driver's CUDA library", "[driver] cuda_library", named, folders, name)
    }

    pub(super) fn nvml(
        &self,
        driver: DriverKind,
        named: Option<PathBuf>,
    ) -> Result<PathBuf, MissingFile> {
        let (folders, name) = match driver {
            DriverKind::Simulated => (&self.own, "libgpuzone_sim_nvml.so"),
            DriverKind::Nvidia => (&self.nvidia, "libnvidia-ml.so.1"),
        };
        find("the driver's NVML library", "[driver] nvml_library", named, folders, name)
    }

    pub(super) fn shim(&self, named: Option<PathBuf>) -> Result<PathBuf, MissingFile> {
        let name = "libgpuzone_cuda.so";
        find("the programs' CUDA library", "[shim] library", named, &self.own, name)
    }

    /// It lies beside the other one, `cuda`.
    pub(super) fn shim_nvml(
        &self,
        named: Option<PathBuf>,
        cuda: &Path,
    ) -> Result<PathBuf, MissingFile> {
        let name = "libgpuzone_nvml.so";
        let beside: Vec<PathBuf> = cuda.parent().map(Path::to_owned).into_iter().collect();
        find("the programs' NVML library", "[shim] nvml_library", named, &beside, name)
    }

    pub(super) fn broker(&self, named: Option<PathBuf>) -> Result<PathBuf, MissingFile> {
        let name = "gpu-zone-broker";
        find("the broker's program", "[binaries] broker", named, &self.own, name)
    }

    pub(super) fn worker(&self, named: Option<PathBuf>) -> Result<PathBuf, MissingFile> {
        let name = "gpu-zone-worker";
        find("the worker's program", "[binaries] worker", named, &self.own, name)
    }

    pub(super) fn launcher(&self, named: Option<PathBuf>) -> Result<PathBuf, MissingFile> {
        let name = "gpu-zone-sandbox";
        find("the sandbox's launcher", "[binaries] sandbox", named, &self.own, name)
    }
}

/// The folder of the driver's CUDA library, if programs there are not found without being told of
/// it, and what lies beside that library and is opened by it: the compiler of PTX, for one.
pub(super) fn folder_of_driver(cuda: &Path) -> Option<(PathBuf, Vec<PathBuf>)> {
    const OPENED: [&str; 4] =
        ["libcuda.so", "libnvidia-ptxjitcompiler.so", "libnvidia-nvvm", "libnvidia-gpucomp"];
    // Where it is may be a link to where it lies.
    let folder = cuda.canonicalize().ok()?.parent()?.to_owned();
    if LIBRARIES.iter().any(|known| folder.starts_with(known)) {
        return None;
    }
    let opened = |path: &PathBuf| {
        let name = path.file_name().and_then(std::ffi::OsStr::to_str);
        path.is_file() && name.is_some_and(|name| OPENED.iter().any(|o| name.starts_with(o)))
    };
    let entries = std::fs::read_dir(&folder).ok()?.flatten().map(|entry| entry.path());
    let mut beside: Vec<PathBuf> = entries.filter(opened).filter(|path| path != cuda).collect();
    beside.sort();
    Some((folder, beside))
}

fn find(
    what: &'static str,
    key: &'static str,
    named: Option<PathBuf>,
    folders: &[PathBuf],
    name: &str,
) -> Result<PathBuf, MissingFile> {
    let looked = match named {
        Some(named) => vec![named],
        None => folders.iter().map(|folder| folder.join(name)).collect(),
    };
    let found = looked.iter().find(|path| path.is_file()).cloned();
    found.ok_or(MissingFile { what, looked, key })
}
