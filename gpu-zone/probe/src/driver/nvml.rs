//! The part of NVML that the probe calls.

use std::ffi::{CStr, c_char, c_uint, c_void};

use libloading::{Library, Symbol};

use super::{Attempt, NvmlGpu};

type Handle = *mut c_void;

const SUCCESS: c_uint = 0;
const INSUFFICIENT_SIZE: c_uint = 7;
/// More processes than this on one GPU are not listed.
const MOST_PROCESSES: u32 = 4096;

/// `nvmlMemory_t`, bytes.
#[repr(C)]
#[derive(Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlProcessInfo_t` since its second version.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProcessInfo {
    pid: u32,
    used: u64,
    gpu_instance: u32,
    compute_instance: u32,
}

/// An open and initialised NVML.
pub(super) struct Nvml {
    library: Library,
}

/// Calls a function by its C signature, NVML's own of that name (nvml.h), which every `SAFETY`
/// here leans on. A function that is missing answers like one that failed.
macro_rules! call {
    ($nvml:expr, $name:expr, ($($argument:expr => $type:ty),* $(,)?)) => {{
        let name = format!("{}\0", $name);
        // SAFETY: the type is the function's own; pointers are to live values of this frame.
        unsafe {
            let found: Result<Symbol<'_, unsafe extern "C" fn($($type),*) -> c_uint>, _> =
                $nvml.library.get(name.as_bytes());
            found.map_or(c_uint::MAX, |function| function($($argument),*))
        }
    }};
}

impl Nvml {
    /// Opens and initialises it. `Err(None)`: there is none.
    pub(super) fn open() -> Result<Self, Option<String>> {
        // SAFETY: the library's initialisers run in this process, which is there for nothing
        // else and whose crash is an answer.
        let library = unsafe { Library::new("libnvidia-ml.so.1") }.map_err(|_| None)?;
        let nvml = Self { library };
        match call!(nvml, "nvmlInit_v2", ()) {
            SUCCESS => Ok(nvml),
            code => Err(Some(format!("nvmlInit_v2 answers {code}"))),
        }
    }

    fn handles(&self) -> Vec<(u32, Handle)> {
        let mut count = 0;
        if call!(self, "nvmlDeviceGetCount_v2", (&raw mut count => *mut c_uint)) != SUCCESS {
            return Vec::new();
        }
        (0..count).filter_map(|index| Some((index, self.handle(index)?))).collect()
    }

    fn handle(&self, index: u32) -> Option<Handle> {
        let mut handle: Handle = std::ptr::null_mut();
        let code = call!(self, "nvmlDeviceGetHandleByIndex_v2", (
            index => c_uint, &raw mut handle => *mut Handle,
        ));
        (code == SUCCESS).then_some(handle)
    }

    /// The GPUs, and who uses them.
    pub(super) fn gpus(&self) -> Vec<NvmlGpu> {
        let gpus = self.handles().into_iter().map(|(_, handle)| {
            let memory = self.memory(handle);
            let mut processes = self.processes("nvmlDeviceGetComputeRunningProcesses", handle);
            processes.extend(self.processes("nvmlDeviceGetGraphicsRunningProcesses", handle));
            let (name, total, used) = (self.name(handle), memory.total, memory.used);
            NvmlGpu { name, total, used, processes }
        });
        gpus.collect()
    }

    fn name(&self, handle: Handle) -> String {
        let mut name: [c_char; 128] = [0; 128];
        let code = call!(self, "nvmlDeviceGetName", (
            handle => Handle, name.as_mut_ptr() => *mut c_char, 127 => c_uint,
        ));
        if code != SUCCESS {
            return "a GPU".to_owned();
        }
        // SAFETY: the last byte is zero: the library was told of one less.
        unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned()
    }

    fn memory(&self, handle: Handle) -> Memory {
        let mut memory = Memory::default();
        let to = &raw mut memory;
        match call!(self, "nvmlDeviceGetMemoryInfo", (handle => Handle, to => *mut Memory)) {
            SUCCESS => memory,
            _ => Memory::default(),
        }
    }

    /// The third version, or the second, which has the same structure.
    fn processes(&self, function: &str, handle: Handle) -> Vec<(u32, u64)> {
        for version in ["_v3", "_v2"] {
            let name = format!("{function}{version}");
            let mut count: c_uint = 0;
            let none: *mut ProcessInfo = std::ptr::null_mut();
            let code = call!(self, name, (
                handle => Handle, &raw mut count => *mut c_uint, none => *mut ProcessInfo,
            ));
            if code != INSUFFICIENT_SIZE {
                if code == SUCCESS {
                    return Vec::new();
                }
                continue;
            }
            // Somebody may start between the two calls.
            count = count.saturating_add(16).min(MOST_PROCESSES);
            let Ok(room) = usize::try_from(count) else { continue };
            let mut list = vec![ProcessInfo::default(); room];
            let code = call!(self, name, (
                handle => Handle, &raw mut count => *mut c_uint,
                list.as_mut_ptr() => *mut ProcessInfo,
            ));
            if code == SUCCESS {
                let found = usize::try_from(count).unwrap_or(room).min(room);
                return list[..found].iter().map(|info| (info.pid, info.used)).collect();
            }
        }
        Vec::new()
    }

    /// Sets what is set already.
    pub(super) fn administer(&self, destructive: bool) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        for (gpu, handle) in self.handles() {
            for setting in ["PersistenceMode", "ComputeMode", "PowerManagementLimit"] {
                if let Some(permitted) = self.set_again(setting, handle) {
                    attempts.push(Attempt {
                        gpu,
                        call: format!("nvmlDeviceSet{setting}"),
                        permitted,
                    });
                }
            }
            if destructive {
                attempts.extend(self.administer_destructively(gpu, handle));
            }
        }
        attempts
    }

    /// None when NVML does not say what is set.
    fn set_again(&self, setting: &str, handle: Handle) -> Option<bool> {
        let mut value: c_uint = 0;
        let get = format!("nvmlDeviceGet{setting}");
        let code = call!(self, get, (handle => Handle, &raw mut value => *mut c_uint));
        let set = format!("nvmlDeviceSet{setting}");
        (code == SUCCESS).then(|| call!(self, set, (handle => Handle, value => c_uint)) == SUCCESS)
    }

    fn administer_destructively(&self, gpu: u32, handle: Handle) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        let reset = "nvmlDeviceResetGpuLockedClocks";
        let permitted = call!(self, reset, (handle => Handle)) == SUCCESS;
        attempts.push(Attempt { gpu, call: reset.to_owned(), permitted });
        let (mut current, mut pending, mut activation) = (0, 0, 0);
        let code = call!(self, "nvmlDeviceGetMigMode", (
            handle => Handle, &raw mut current => *mut c_uint, &raw mut pending => *mut c_uint,
        ));
        if code == SUCCESS {
            let set = "nvmlDeviceSetMigMode";
            let answer = call!(self, set, (
                handle => Handle, pending => c_uint, &raw mut activation => *mut c_uint,
            ));
            attempts.push(Attempt { gpu, call: set.to_owned(), permitted: answer == SUCCESS });
        }
        attempts
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        let _ = call!(self, "nvmlShutdown", ());
    }
}
