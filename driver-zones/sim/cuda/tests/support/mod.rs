//! A driver is process-wide, so each test runs in a process of its own: this binary again,
//! with a simulated node and the library in the loader's path under its usual name.
#![allow(dead_code, clippy::print_stdout, reason = "each test binary uses a part; a child speaks")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUresult};

const CHILD: &str = "GPUZONE_TEST_CHILD";

pub(crate) const NODE: &str = r#"
[[gpu]]
name = "Simulated A"
memory = "64Mi"
multiprocessors = 4
[[gpu]]
name = "Simulated B"
memory = "32Mi"
context_overhead = "1Mi"
compute_capability = "7.0"
"#;

fn library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let mut candidates = exe.ancestors().map(|folder| folder.join("libgpuzone_sim_cuda.so"));
    candidates.find(|path| path.exists()).expect("the library lies beside the tests")
}

/// The command that runs test `name` of this binary as a child on the node in `folder`.
pub(crate) fn child(name: &str, folder: &Path) -> Command {
    let config = folder.join("node.toml");
    let text = format!("state_dir = \"{}\"\n{NODE}", folder.join("state").display());
    std::fs::write(&config, text).unwrap();
    for link in ["libcuda.so", "libcuda.so.1"] {
        let link = folder.join(link);
        if !link.exists() {
            std::os::unix::fs::symlink(library(), link).unwrap();
        }
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .env("GPUZONE_SIM_CONFIG", config)
        .env("LD_LIBRARY_PATH", folder)
        .env(CHILD, "1");
    command
}

pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs `body` in a process of its own; `name` is that of the test that calls this.
pub(crate) fn isolated(name: &str, body: impl FnOnce()) {
    if is_child() {
        body();
        println!("the body of {name} is done");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = finish(child(name, folder.path()));
    let text = String::from_utf8_lossy(&output.stdout);
    let done = text.contains(&format!("the body of {name} is done"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && done, "{text}\n{errors}");
}

/// Runs a child to its end; one that hangs is killed after a while, and has failed.
pub(crate) fn finish(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while is_running(&mut child) && started.elapsed() < Duration::from_secs(15) {
        std::thread::sleep(Duration::from_millis(2));
    }
    if is_running(&mut child) {
        child.kill().unwrap();
    }
    child.wait_with_output().unwrap()
}

fn is_running(child: &mut Child) -> bool {
    child.try_wait().unwrap().is_none()
}

/// Fails unless the call succeeded.
#[track_caller]
pub(crate) fn ok(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

/// What a call wrote to its result pointer.
#[track_caller]
pub(crate) fn get<T: Copy>(call: impl FnOnce(*mut T) -> CUresult) -> T {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    ok(call(value.as_mut_ptr()));
    // SAFETY: the call succeeded, so it wrote the value; the types used here allow zeros anyway.
    unsafe { value.assume_init() }
}

/// A kernel of the repository, loaded.
#[track_caller]
pub(crate) fn kernel(ptx: &str, name: &str) -> sys::CUfunction {
    let ptx = std::ffi::CString::new(ptx).unwrap();
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the texts and the places for results outlive the calls.
    unsafe {
        let module = get(|out| sys::cuModuleLoadData(out, ptx.as_ptr().cast()));
        get(|out| sys::cuModuleGetFunction(out, module, name.as_ptr()))
    }
}

/// Launches one-dimensionally on the default stream. Each parameter is one word of 8 bytes,
/// whose lower part is read when the kernel's is smaller.
pub(crate) fn launch(f: sys::CUfunction, grid: u32, block: u32, params: &mut [u64]) -> CUresult {
    launch_on(std::ptr::null_mut(), f, grid, block, params)
}

pub(crate) fn launch_on(
    stream: sys::CUstream,
    f: sys::CUfunction,
    grid: u32,
    block: u32,
    params: &mut [u64],
) -> CUresult {
    let mut pointers: Vec<*mut std::ffi::c_void> =
        params.iter_mut().map(|p| std::ptr::from_mut(p).cast()).collect();
    let none = std::ptr::null_mut();
    // SAFETY: one pointer per parameter, each at 8 bytes, which no parameter of ours exceeds.
    unsafe {
        sys::cuLaunchKernel(f, grid, 1, 1, block, 1, 1, 0, stream, pointers.as_mut_ptr(), none)
    }
}

pub(crate) fn allocate(bytes: usize) -> u64 {
    // SAFETY: the place for the result outlives the call.
    get(|out| unsafe { sys::cuMemAlloc_v2(out, bytes) })
}

pub(crate) fn read(address: u64, words: usize) -> (CUresult, Vec<u32>) {
    let mut data = vec![0u32; words];
    // SAFETY: the buffer has as many bytes as are copied.
    let result = unsafe { sys::cuMemcpyDtoH_v2(data.as_mut_ptr().cast(), address, words * 4) };
    (result, data)
}

/// A context on a GPU, current.
pub(crate) fn context(device: i32) -> sys::CUcontext {
    // SAFETY: the place for the result outlives the call.
    unsafe {
        ok(sys::cuInit(0));
        get(|out| sys::cuCtxCreate_v4(out, std::ptr::null_mut(), 0, device))
    }
}

/// Free bytes on the current context's GPU.
pub(crate) fn free_memory() -> usize {
    let mut total = 0;
    // SAFETY: the places for the results outlive the call.
    get(|free| unsafe { sys::cuMemGetInfo_v2(free, &raw mut total) })
}
