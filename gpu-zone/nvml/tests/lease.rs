//! The library as clients of NVML see it, with a worker's answers behind it. What has to have a
//! slot runs in a process of its own: this binary again.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this whole file is a test"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use gpuzone_nvml_abi::bindings::{nvmlReturn_enum_NVML_ERROR_NO_PERMISSION, nvmlReturn_t};
use gpuzone_nvml_abi::{FUNCTIONS, NOT_SUPPORTED, UNINITIALIZED, changes_the_device};
use gpuzone_wire::hello::{self, SOCKET};
use gpuzone_wire::view::{self, GpuView, Opening, ProcessView, Seen, View};
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

const CHILD: &str = "GPUZONE_TEST_CHILD";
const UUIDS: [&str; 2] =
    ["GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"];

/// The library that was built together with this test.
fn library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let found = exe.ancestors().map(|folder| folder.join("libgpuzone_nvml.so"));
    found.into_iter().find(|path| path.exists()).expect("the library lies beside the tests")
}

fn gpu(index: usize) -> GpuView {
    let uuid: gpuzone_core::GpuUuid = UUIDS[index].parse().unwrap();
    GpuView {
        name: format!("Simulated {index}"),
        uuid: *uuid.as_bytes(),
        memory: 8 << 30,
        used: 3 << 30,
        busy: Some(40),
        capability: Some((9, 0)),
        pci: Some((0, 0x3b + u32::try_from(index).unwrap(), 0)),
    }
}

fn lease() -> View {
    let process =
        |pid, used: [u64; 2]| ProcessView { pid, used: used.into(), busy: vec![Some(25), Some(3)] };
    View {
        driver: Some("580.65.06".into()),
        nvml: Some("13.580.65.06".into()),
        cuda: 13_000,
        gpus: vec![gpu(0), gpu(1)],
        processes: vec![
            process(std::process::id(), [2 << 30, 0]),
            process(41, [1 << 30, 1 << 20]),
            process(42, [0, 0]),
        ],
    }
}

/// Answers looks like a worker; what it is told to answer can change.
fn worker(slot: &Path, answer: Arc<Mutex<Seen>>) {
    let kind = SocketType::SEQPACKET;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
    let socket = socket.unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(slot.join(SOCKET)).unwrap()).unwrap();
    rustix::net::listen(&socket, 8).unwrap();
    std::thread::spawn(move || {
        while let Ok(tenant) = rustix::net::accept(&socket) {
            let (opening, _) = hello::receive::<Opening>(&tenant).unwrap();
            assert!(matches!(opening, Opening::Look(look) if look.look == view::VERSION));
            let seen = answer.lock().unwrap().clone();
            hello::send(&tenant, &seen, None).unwrap();
        }
    });
}

/// Runs `name` in a process whose slot is answered as `seen` says.
fn child(name: &str, seen: Seen) {
    let slot = tempfile::Builder::new().prefix("gz").tempdir().unwrap();
    worker(slot.path(), Arc::new(Mutex::new(seen)));
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--ignored"])
        .env("GPUZONE_SLOT", slot.path())
        .env(CHILD, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name}: {status}");
}

fn nvml() -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(library().as_os_str()).init()
}

#[test]
fn nvml_wrapper_sees_the_lease_and_nothing_else() {
    child("shown", Seen::Lease(lease()));
}

#[test]
#[ignore = "the child of another test"]
fn shown() {
    let nvml = nvml().unwrap();
    assert_eq!(nvml.sys_driver_version().unwrap(), "580.65.06");
    assert_eq!(nvml.sys_nvml_version().unwrap(), "13.580.65.06");
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13_000);
    assert_eq!(nvml.device_count().unwrap(), 2);
    for (index, uuid) in UUIDS.iter().enumerate() {
        let device = nvml.device_by_index(u32::try_from(index).unwrap()).unwrap();
        assert_eq!(device.uuid().unwrap(), *uuid);
        assert_eq!(device.name().unwrap(), format!("Simulated {index}"));
        let memory = device.memory_info().unwrap();
        assert_eq!((memory.total, memory.used, memory.free), (8 << 30, 3 << 30, 5 << 30));
        assert_eq!(device.utilization_rates().unwrap().gpu, 40);
        assert_eq!(device.cuda_compute_capability().unwrap().major, 9);
        let same = nvml.device_by_uuid(*uuid).unwrap();
        assert_eq!(same.index().unwrap() as usize, index);
        let pci = device.pci_info().unwrap();
        assert_eq!(nvml.device_by_pci_bus_id(pci.bus_id).unwrap().uuid().unwrap(), *uuid);
    }
    let device = nvml.device_by_index(0).unwrap();
    let processes = device.running_compute_processes().unwrap();
    let listed: Vec<u32> = processes.iter().map(|process| process.pid).collect();
    assert_eq!(listed.len(), 2, "one without memory on the GPU does not use it");
    assert!(matches!(processes[1].used_gpu_memory, UsedGpuMemory::Used(used) if used == 1 << 30));
    assert_eq!(nvml.device_by_index(1).unwrap().running_compute_processes().unwrap().len(), 1);
    assert!(device.running_graphics_processes().unwrap().is_empty());
    let samples = device.process_utilization_stats(None).unwrap();
    assert_eq!(samples.iter().map(|sample| sample.sm_util).collect::<Vec<_>>(), [25, 25]);
    let other = nvml.device_by_index(1).unwrap();
    assert_eq!(other.process_utilization_stats(None).unwrap()[0].sm_util, 3);
    nothing_of_the_card(&nvml);
}

/// Neither what would change it, nor what would tell of others.
fn nothing_of_the_card(nvml: &Nvml) {
    let mut device = nvml.device_by_index(0).unwrap();
    let absent = |error: NvmlError| assert!(matches!(error, NvmlError::NotSupported), "{error}");
    absent(device.temperature(TemperatureSensor::Gpu).unwrap_err());
    absent(device.power_usage().unwrap_err());
    absent(device.clock_info(Clock::SM).unwrap_err());
    absent(device.serial().unwrap_err());
    absent(device.minor_number().unwrap_err());
    let denied = |error: NvmlError| assert!(matches!(error, NvmlError::NoPermission), "{error}");
    denied(device.set_persistent(true).unwrap_err());
    denied(device.set_mig_mode(true).unwrap_err());
    denied(device.reset_gpu_locked_clocks().unwrap_err());
    denied(device.set_power_management_limit(100_000).unwrap_err());
    assert!(matches!(nvml.device_by_index(2), Err(NvmlError::InvalidArg)));
    let other = "GPU-00000000-0000-0000-0000-000000000000";
    assert!(matches!(nvml.device_by_uuid(other), Err(NvmlError::NotFound)));
}

#[test]
fn what_a_worker_does_not_know_is_not_supported() {
    let gpu = GpuView { capability: None, pci: None, busy: None, ..gpu(0) };
    let (driver, nvml) = (None, None);
    child("unknown", Seen::Lease(View { driver, nvml, gpus: vec![gpu], ..lease() }));
}

#[test]
#[ignore = "the child of another test"]
fn unknown() {
    let nvml = nvml().unwrap();
    let absent = |error: NvmlError| assert!(matches!(error, NvmlError::NotSupported), "{error}");
    absent(nvml.sys_driver_version().unwrap_err());
    absent(nvml.sys_nvml_version().unwrap_err());
    let device = nvml.device_by_index(0).unwrap();
    absent(device.utilization_rates().unwrap_err());
    absent(device.cuda_compute_capability().unwrap_err());
    absent(device.pci_info().unwrap_err());
}

#[test]
fn without_a_lease_there_is_no_driver() {
    let reason = "the lease has 64 processes connected already".to_owned();
    child("refused", Seen::Refused { reason });
    let outside = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "refused", "--ignored"])
        .env_remove("GPUZONE_SLOT")
        .status();
    assert!(outside.unwrap().success());
}

#[test]
#[ignore = "the child of another test"]
fn refused() {
    assert!(matches!(nvml().unwrap_err(), NvmlError::DriverNotLoaded));
}

/// Any function, called with nothing: its arguments are NULL or 0, however many it has.
type Plain = extern "C" fn(usize, usize, usize, usize, usize, usize, usize, usize) -> nvmlReturn_t;

#[test]
fn each_function_is_there_and_fails_cleanly() {
    child("called_with_nothing", Seen::Lease(lease()));
}

/// What is not called here: it answers no result, or ends what the others need.
const APART: [&str; 2] = ["nvmlErrorString", "nvmlShutdown"];

#[test]
#[ignore = "the child of another test"]
fn called_with_nothing() {
    // SAFETY: the library of this crate; its initialisers do nothing.
    let library = unsafe { libloading::Library::new(library()) }.unwrap();
    let call = |name: &str| {
        // SAFETY: NVML's functions take integers and pointers, and answer a result; the caller
        // clears the stack of arguments that a function does not have.
        let function: libloading::Symbol<'_, Plain> =
            unsafe { library.get(name.as_bytes()) }.unwrap_or_else(|e| panic!("{name}: {e}"));
        function(0, 0, 0, 0, 0, 0, 0, 0)
    };
    for name in FUNCTIONS.iter().filter(|name| !name.starts_with("nvmlInit")) {
        if !APART.contains(name) {
            assert_eq!(call(name), UNINITIALIZED.0, "{name} before nvmlInit");
        }
    }
    assert_eq!(call("nvmlInit_v2"), 0);
    for name in FUNCTIONS.iter().filter(|name| !APART.contains(name)) {
        let answer = call(name);
        if changes_the_device(name) {
            assert_eq!(answer, nvmlReturn_enum_NVML_ERROR_NO_PERMISSION, "{name}");
        } else if !name.starts_with("nvmlInit") {
            // Nowhere to put an answer, no device 0, or nothing to answer.
            assert_ne!(answer, 0, "{name}");
        }
    }
    assert_eq!(call("nvmlDeviceGetTemperature"), NOT_SUPPORTED.0);
}

#[test]
fn all_that_nvml_wrapper_loads_is_among_the_functions() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(manifest)
        // Other platforms' crates may never have been downloaded.
        .other_options(["--offline", "--locked", "--filter-platform", &platform].map(str::to_owned))
        .exec()
        .unwrap();
    let sys = metadata.packages.iter().find(|package| package.name.as_str() == "nvml-wrapper-sys");
    let source = sys.unwrap().manifest_path.parent().unwrap().join("src/bindings.rs");
    let text = std::fs::read_to_string(source).unwrap();
    let loaded: BTreeSet<&str> =
        text.split("b\"nvml").skip(1).filter_map(|rest| rest.split("\\0").next()).collect();
    assert!(loaded.len() > 300, "the bindings are written another way: {}", loaded.len());
    let missing: Vec<&&str> =
        loaded.iter().filter(|name| !FUNCTIONS.contains(&format!("nvml{name}").as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
