//! What NVML says this process uses: the part of device memory that nobody asked for by name,
//! as contexts and modules.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use gpuzone_core::GpuUuid;
use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;

/// Looks up this process's use. Without NVML, or where it does not list this process, such
/// memory goes uncharged and the log says so once.
#[derive(Debug)]
pub struct OwnUse {
    nvml: Option<Nvml>,
    said: AtomicBool,
}

/// Versions, as far as they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// The driver's.
    pub driver: Option<String>,
    /// Its NVML's.
    pub nvml: Option<String>,
}

impl OwnUse {
    /// Opens the library at `path`.
    pub fn open(path: &Path) -> Self {
        match Nvml::builder().lib_path(path.as_os_str()).init() {
            Ok(nvml) => Self { nvml: Some(nvml), said: AtomicBool::new(false) },
            Err(error) => {
                let own = Self { nvml: None, said: AtomicBool::new(false) };
                own.say(&format!("{}: {error}", path.display()));
                own
            }
        }
    }

    /// Nobody to ask.
    pub fn unknown() -> Self {
        Self { nvml: None, said: AtomicBool::new(true) }
    }

    fn say(&self, reason: &str) {
        if !self.said.swap(true, Ordering::Relaxed) {
            eprintln!(
                "contexts and modules are not charged to the lease: NVML does not tell what this process uses ({reason})"
            );
        }
    }

    /// What it says of itself and of the driver.
    pub fn versions(&self) -> Versions {
        let Some(nvml) = &self.nvml else { return Versions::default() };
        Versions { driver: nvml.sys_driver_version().ok(), nvml: nvml.sys_nvml_version().ok() }
    }

    /// Bytes that this process has on a GPU; `None` when NVML does not say.
    pub fn bytes(&self, gpu: GpuUuid) -> Option<u64> {
        let nvml = self.nvml.as_ref()?;
        let listed = nvml
            .device_by_uuid(gpu.to_string())
            .and_then(|device| device.running_compute_processes());
        let processes = match listed {
            Ok(processes) => processes,
            Err(error) => {
                self.say(&error.to_string());
                return None;
            }
        };
        let own = std::process::id();
        match processes.iter().find(|process| process.pid == own).map(|own| &own.used_gpu_memory) {
            Some(UsedGpuMemory::Used(bytes)) => Some(*bytes),
            Some(UsedGpuMemory::Unavailable) => {
                self.say("it lists no memory");
                None
            }
            // Before the first context a process is rightly not listed.
            None => Some(0),
        }
    }
}
