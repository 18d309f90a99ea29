//! The library as a real client of NVML sees it. A test that needs a second process runs this
//! binary again with `GPUZONE_TEST_CHILD` set.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this whole file is a test"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gpuzone_sim_device::{Config, SimulatedNode};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

const CHILD: &str = "GPUZONE_TEST_CHILD";

/// The library that was built together with this test.
fn library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let found = exe.ancestors().map(|folder| folder.join("libgpuzone_sim_nvml.so"));
    found.into_iter().find(|path| path.exists()).expect("the library lies beside the tests")
}

const NODE: &str = r#"
[[gpu]]
name = "Simulated A"
memory = "64Mi"
pci = "0001:3b:00.0"
numa_node = 1
nvlink_peers = [1]
mig_capable = true
[[gpu]]
name = "Simulated B"
memory = "32Mi"
compute_capability = "8.6"
"#;

fn write_config(folder: &Path) -> PathBuf {
    write(folder, NODE)
}

fn write(folder: &Path, node: &str) -> PathBuf {
    let path = folder.join("node.toml");
    let text = format!("state_dir = \"{}\"\n{node}", folder.join("state").display());
    std::fs::write(&path, text).unwrap();
    path
}

/// Runs one of the child tests in a process of its own, whose environment names the node.
fn child(name: &str, config: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .env("GPUZONE_SIM_CONFIG", config)
        .env(CHILD, "1")
        .stdout(Stdio::piped());
    command
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

fn open() -> Nvml {
    let path = library();
    Nvml::builder().lib_path(path.as_os_str()).init().unwrap()
}

#[test]
fn child_uses_memory() {
    if !is_child() {
        return;
    }
    let node = SimulatedNode::open(Config::from_env().unwrap()).unwrap();
    let gpu = &node.gpus()[0];
    let attachment = gpu.instances().first().unwrap_or(gpu).attach().unwrap();
    attachment.add_context().unwrap();
    attachment.allocate(5 << 20).unwrap();
    let _busy = attachment.busy();
    println!("child is ready");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn child_looks() {
    if !is_child() {
        return;
    }
    let nvml = open();
    assert!(nvml.sys_driver_version().unwrap().contains("simulated"));
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13_000);
    assert_eq!(nvml.device_count().unwrap(), 2);
    let (a, b) = (nvml.device_by_index(0).unwrap(), nvml.device_by_index(1).unwrap());
    assert!(matches!(nvml.device_by_index(2).err().unwrap(), NvmlError::InvalidArg));
    assert_eq!((a.name().unwrap().as_str(), a.index().unwrap()), ("Simulated A", 0));
    assert_eq!(nvml.device_by_uuid(b.uuid().unwrap()).unwrap().index().unwrap(), 1);
    let pci = a.pci_info().unwrap();
    assert_eq!((pci.bus_id.as_str(), pci.domain, pci.bus), ("00000001:3B:00.0", 1, 0x3b));
    assert_eq!(nvml.device_by_pci_bus_id(pci.bus_id).unwrap().index().unwrap(), 0);
    let capability = b.cuda_compute_capability().unwrap();
    assert_eq!((capability.major, capability.minor), (8, 6));
    assert_eq!(a.mig_mode().unwrap().current, 0);
    assert!(matches!(b.mig_mode(), Err(NvmlError::NotSupported)));
    assert_eq!(a.numa_node_id().unwrap(), 1);
    assert!(matches!(b.numa_node_id(), Err(NvmlError::NotSupported)));
    assert!(a.link_wrapper_for(0).is_active().unwrap());
    assert!(!a.link_wrapper_for(1).is_active().unwrap());
    let remote = a.link_wrapper_for(0).remote_pci_info().unwrap();
    assert_eq!(remote.bus_id, b.pci_info().unwrap().bus_id);
    assert!(matches!(a.power_usage(), Err(NvmlError::NotSupported)));
    assert!(matches!(a.fan_speed(0), Err(NvmlError::FailedToLoadSymbol(_))));

    let memory = a.memory_info().unwrap();
    assert_eq!((memory.total, memory.used, memory.free), (64 << 20, 5 << 20, 59 << 20));
    let holder: u32 = std::env::var("GPUZONE_TEST_HOLDER").unwrap().parse().unwrap();
    let processes = a.running_compute_processes().unwrap();
    assert_eq!(processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [holder]);
    let used = &processes[0].used_gpu_memory;
    assert_eq!(format!("{used:?}"), format!("Used({})", 5 << 20));
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(a.utilization_rates().unwrap().gpu > 0);
    let samples = a.process_utilization_stats(None).unwrap();
    assert!(samples[0].pid == holder && samples[0].sm_util > 0);
    assert_eq!(b.utilization_rates().unwrap().gpu, 0);
    assert!(b.running_compute_processes().unwrap().is_empty());
    println!("child saw it all");
}

#[test]
fn a_client_sees_what_another_process_uses() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path());
    let mut holder = child("child_uses_memory", &config).stdin(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("child is ready")));
    let looked =
        child("child_looks", &config).env("GPUZONE_TEST_HOLDER", holder.id().to_string()).output();
    holder.kill().unwrap();
    holder.wait().unwrap();
    let looked = looked.unwrap();
    let text = String::from_utf8_lossy(&looked.stdout);
    assert!(looked.status.success() && text.contains("child saw it all"), "{text}");
}

#[test]
fn child_looks_at_instances() {
    if !is_child() {
        return;
    }
    let nvml = open();
    let gpu = nvml.device_by_index(0).unwrap();
    assert_eq!(gpu.mig_mode().unwrap().current, 1);
    assert!(matches!(gpu.utilization_rates(), Err(NvmlError::NotSupported)));
    assert_eq!(gpu.mig_device_count().unwrap(), 7);
    assert!(matches!(gpu.mig_device_by_index(2).err().unwrap(), NvmlError::NotFound));
    let instances: Vec<_> = (0..2).map(|index| gpu.mig_device_by_index(index).unwrap()).collect();
    let [one, three] = &instances[..] else { panic!("there are two") };
    assert!(one.mig_is_mig_device_handle().unwrap() && !gpu.mig_is_mig_device_handle().unwrap());
    assert_eq!(one.mig_parent_device().unwrap().uuid().unwrap(), gpu.uuid().unwrap());
    assert_eq!(one.name().unwrap(), "Simulated A MIG 1g.8gb");
    assert_eq!(three.name().unwrap(), "Simulated A MIG 3g.32gb.me");
    assert_eq!(three.uuid().unwrap(), "MIG-00000000-0000-0000-0000-000000000003");
    let attributes = three.attributes().unwrap();
    let slices = (attributes.gpu_instance_slice_count, attributes.compute_instance_slice_count);
    assert_eq!((slices, attributes.memory_size_mb), ((3, 3), 32));
    let memory = one.memory_info().unwrap();
    assert_eq!((memory.total, memory.used), (8 << 20, 5 << 20));
    assert_eq!(three.memory_info().unwrap().used, 0);
    assert_eq!(gpu.memory_info().unwrap().used, 5 << 20, "what its instances use");
    let named = nvml.device_by_uuid(three.uuid().unwrap()).unwrap();
    assert_eq!(named.memory_info().unwrap().total, 32 << 20);
    let holder: u32 = std::env::var("GPUZONE_TEST_HOLDER").unwrap().parse().unwrap();
    for device in [&gpu, one] {
        let processes = device.running_compute_processes().unwrap();
        let told: Vec<_> = processes.iter().map(|p| (p.pid, p.gpu_instance_id)).collect();
        assert_eq!(told, [(holder, Some(1))]);
    }
    assert!(three.running_compute_processes().unwrap().is_empty());
    println!("child saw it all");
}

#[test]
fn a_client_sees_mig_instances_and_who_uses_them() {
    let folder = tempfile::tempdir().unwrap();
    let mig = "mig = [{ profile = \"1g.8gb\" }, { profile = \"3g.32gb+me\", memory = \"32Mi\", \
               uuid = \"MIG-00000000-0000-0000-0000-000000000003\" }]\nmig_capable = true";
    let config = write(folder.path(), &NODE.replace("mig_capable = true", mig));
    let mut holder = child("child_uses_memory", &config).stdin(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("child is ready")));
    let looked = child("child_looks_at_instances", &config)
        .env("GPUZONE_TEST_HOLDER", holder.id().to_string())
        .output();
    holder.kill().unwrap();
    holder.wait().unwrap();
    let looked = looked.unwrap();
    let text = String::from_utf8_lossy(&looked.stdout);
    let errors = String::from_utf8_lossy(&looked.stderr);
    assert!(looked.status.success() && text.contains("child saw it all"), "{text}{errors}");
}

#[test]
fn child_fails_to_open() {
    if !is_child() {
        return;
    }
    let path = library();
    let error = Nvml::builder().lib_path(path.as_os_str()).init().unwrap_err();
    assert!(matches!(error, NvmlError::DriverNotLoaded), "{error}");
    println!("child saw the error");
}

#[test]
fn a_wrong_configuration_is_an_error_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("node.toml");
    std::fs::write(&config, "[[gpu]]\nname = \"A\"\nmemory = \"0\"\n").unwrap();
    let output = child("child_fails_to_open", &config).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("child saw the error"));
    let reason = String::from_utf8_lossy(&output.stderr);
    assert!(reason.contains("memory of [[gpu]] 0: it is zero"), "{reason}");
}
