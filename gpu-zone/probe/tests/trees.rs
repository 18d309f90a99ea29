//! The checks of files, against trees that look like workloads of others.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this file is a test crate"
)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use gpuzone_core::MemoryBytes;
use gpuzone_probe::{Baseline, Finding, Host, Options, Severity};
use gpuzone_testkit::Artifacts;
use tempfile::TempDir;

struct Tree {
    folder: TempDir,
    environment: BTreeMap<String, OsString>,
}

impl Tree {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("gz-").tempdir_in("/tmp").unwrap();
        let tree = Self { folder, environment: BTreeMap::new() };
        // A workload in namespaces of its own, without rights.
        let status = "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nUid:\t1000\t1000\n";
        tree.file("proc/self/status", status);
        tree.file("proc/sys/kernel/yama/ptrace_scope", "1\n");
        for kind in ["pid", "ipc", "user", "net"] {
            tree.link(&format!("proc/self/ns/{kind}"), &format!("{kind}:[4026532999]"));
        }
        tree
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.root().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.root().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&path);
        symlink(target, path).unwrap();
    }

    fn socket(&self, path: &str) -> UnixListener {
        let path = self.root().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        UnixListener::bind(path).unwrap()
    }

    fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.insert(name.to_owned(), value.into());
    }

    fn findings(&self) -> Vec<Finding> {
        let options = Options {
            limit: None,
            most: MemoryBytes::ZERO,
            residue: MemoryBytes::ZERO,
            destructive: false,
            child: Some(env!("CARGO_BIN_EXE_gpu-zone-probe").into()),
            baseline: Baseline::default(),
        };
        let host = Host::new(self.root().to_owned(), self.environment.clone());
        let mut findings = gpuzone_probe::run(&options, &host, &mut |_| {}).findings;
        // Whether nodes can be made depends on who runs the test.
        findings.retain(|finding| finding.code.to_string() != "GZP006");
        findings
    }

    /// Codes with how bad they are and what was seen.
    fn lines(&self) -> Vec<String> {
        let findings = self.findings();
        findings.iter().map(|f| format!("{} {} {}", f.code, f.severity, f.seen)).collect()
    }
}

#[test]
fn a_workload_that_is_kept_apart_has_no_finding() {
    assert_eq!(Tree::new().findings(), []);
}

#[test]
fn nodes_of_drivers_are_found() {
    let tree = Tree::new();
    for node in
        ["nvidia0", "nvidiactl", "nvidia-caps/nvidia-cap1", "dri/renderD128", "kfd", "vfio/12"]
    {
        tree.file(&format!("dev/{node}"), "");
    }
    tree.file("dev/null", "");
    assert_eq!(
        tree.lines(),
        [
            "GZP001 high /dev/nvidia0, /dev/nvidiactl",
            "GZP002 high /dev/dri/renderD128",
            "GZP003 high /dev/vfio/12",
            "GZP004 high /dev/kfd",
            "GZP504 high /dev/nvidia-caps/nvidia-cap1",
        ]
    );
}

#[test]
fn a_privileged_container_is_found() {
    let tree = Tree::new();
    tree.file(
        "proc/self/status",
        "CapEff:\t0000000000200000\nUid:\t0\t0\nSeccomp:\t0\nNoNewPrivs:\t0\n",
    );
    for link in ["pid:[4026531836]", "ipc:[4026531839]", "user:[4026531837]", "net:[4026531833]"] {
        tree.link(&format!("proc/self/ns/{}", &link[..link.find(':').unwrap()]), link);
    }
    let codes: Vec<String> = tree.findings().iter().map(|f| f.code.to_string()).collect();
    assert_eq!(codes, ["GZP101", "GZP104", "GZP102", "GZP105", "GZP106", "GZP103", "GZP107"]);
}

#[test]
fn sockets_without_a_file_make_a_shared_network_worse() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    let tree = Tree::new();
    tree.link("proc/self/ns/net", "net:[4026531833]");
    let name = format!("gpu-zone-probe-test-{}", std::process::id());
    let listed = |name: &str| {
        let head = "Num       RefCount Protocol Flags    Type St Inode Path";
        let line = format!("0000000000000000: 00000002 00000000 00010000 0001 01 12345 @{name}");
        tree.file("proc/net/unix", format!("{head}\n{line}\n"));
        tree.lines()
    };
    assert!(listed(&name)[0].starts_with("GZP107 info its ports"));
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    assert_eq!(
        listed(&name),
        [format!("GZP107 medium 1 socket(s) without a file, @{name} among them")]
    );
}

#[test]
fn the_same_capabilities_in_a_user_namespace_are_low() {
    let tree = Tree::new();
    tree.file(
        "proc/self/status",
        "CapEff:\t0000000000200000\nUid:\t0\t0\nSeccomp:\t2\nNoNewPrivs:\t1\n",
    );
    assert_eq!(tree.lines(), ["GZP101 low SYS_ADMIN in its own user namespace"]);
}

#[test]
fn sockets_count_when_somebody_listens() {
    let mut tree = Tree::new();
    let _docker = tree.socket("run/docker.sock");
    drop(tree.socket("run/containerd/containerd.sock"));
    let _plugin = tree.socket("var/lib/kubelet/device-plugins/nvidia.sock");
    let _own = tree.socket("run/gpu-zone/slots/lease-1/cuda.sock");
    let _other = tree.socket("run/gpu-zone/slots/lease-2/cuda.sock");
    let _agent = tree.socket("run/gpu-zone/agent.sock");
    tree.set("GPUZONE_SLOT", "/run/gpu-zone/slots/lease-1");
    assert_eq!(
        tree.lines(),
        [
            "GZP701 critical /run/docker.sock",
            "GZP701 critical /var/lib/kubelet/device-plugins/nvidia.sock",
            "GZP703 high /run/gpu-zone/slots/lease-2",
            "GZP704 high /run/gpu-zone/agent.sock",
        ]
    );
}

#[test]
fn limiters_that_are_preloaded_are_found() {
    let mut tree = Tree::new();
    tree.file("etc/ld.so.preload", "/usr/local/vgpu/libvgpu.so\n");
    tree.set("CUDA_DEVICE_MEMORY_LIMIT_0", "3000m");
    tree.set("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps");
    assert_eq!(
        tree.lines(),
        [
            "GZP312 high /etc/ld.so.preload: /usr/local/vgpu/libvgpu.so",
            "GZP313 medium variables of an MPS client are set",
        ]
    );
}

#[test]
fn a_driver_behind_a_search_path_is_found() {
    let artifacts = Artifacts::build().unwrap();
    let mut tree = Tree::new();
    let simulated = artifacts.file("libgpuzone_sim_cuda.so").unwrap();
    tree.link("usr/lib64/libcuda.so.1", simulated.to_str().unwrap());
    // What the search path has in front gives no device.
    tree.file("shim/libcuda.so.1", "no library");
    let state = tree.root().join("simulated");
    let text = format!(
        "state_dir = {state:?}\n[[gpu]]\nname = \"gpu-zone Simulated GPU\"\nmemory = \"1Gi\"\n"
    );
    tree.file("simulated.toml", text);
    tree.set("GPUZONE_SIM_CONFIG", tree.root().join("simulated.toml"));
    tree.set("LD_LIBRARY_PATH", tree.root().join("shim"));
    let lines = tree.lines();
    assert!(lines.iter().any(|line| line.starts_with("GZP020 high")), "{lines:?}");
    let undone = lines.iter().find(|line| line.starts_with("GZP310 high")).unwrap();
    assert!(undone.ends_with("1 device(s) instead of 0"), "{undone}");
}

#[test]
fn what_stands_around_a_gpu_is_found() {
    let tree = Tree::new();
    // A port without ACS, a GPU with its sound below it, a network card in the same group.
    let port = "sys/devices/pci0000:00/0000:00:01.0";
    tree.file(&format!("{port}/class"), "0x060400\n");
    tree.file(&format!("{port}/config"), vec![0_u8; 4096]);
    for (address, class, vendor) in [
        ("0000:01:00.0", "0x030200", "0x10de"),
        ("0000:01:00.1", "0x040300", "0x10de"),
        ("0000:01:01.0", "0x020000", "0x8086"),
    ] {
        let device = format!("{port}/{address}");
        tree.file(&format!("{device}/class"), class);
        tree.file(&format!("{device}/vendor"), vendor);
        let real = tree.root().join(&device);
        tree.link(&format!("sys/bus/pci/devices/{address}"), real.to_str().unwrap());
        tree.link(&format!("sys/kernel/iommu_groups/7/devices/{address}"), real.to_str().unwrap());
        let group = tree.root().join("sys/kernel/iommu_groups/7");
        tree.link(&format!("{device}/iommu_group"), group.to_str().unwrap());
    }
    let unsafe_interrupts = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    tree.file(unsafe_interrupts, "Y\n");
    tree.file("proc/driver/nvidia/params", "RmProfilingAdminOnly: 0\n");
    tree.file(&format!("{port}/0000:01:00.0/reset"), "");
    assert_eq!(
        tree.lines(),
        [
            "GZP503 critical 0000:01:00.0: reset",
            "GZP606 high allow_unsafe_interrupts is on",
            "GZP502 medium RmProfilingAdminOnly: 0",
            "GZP604 medium 0000:01:00.0 with 0000:01:01.0",
            "GZP605 low port 0000:00:01.0 has no ACS",
            "GZP607 low 0000:01:00.0",
        ]
    );
    tree.file(unsafe_interrupts, "N\n");
    tree.file(&format!("{port}/0000:01:00.0/reset_method"), "flr bus\n");
    let worst =
        tree.findings().iter().map(|f| f.severity).filter(|s| *s < Severity::Critical).max();
    assert_eq!(worst, Some(Severity::Medium));
}

#[test]
fn debug_interfaces_are_found() {
    let tree = Tree::new();
    tree.file("sys/kernel/debug/dri/0", "");
    tree.file("proc/sys/kernel/yama/ptrace_scope", "0\n");
    tree.link("proc/self/ns/pid", "pid:[4026531836]");
    tree.file("proc/4242/cmdline", "trainer\0");
    tree.file("proc/4242/stat", "4242 (a b) S 1 1");
    tree.file("proc/4242/mem", "");
    tree.file("dev/shm/torch_1", "tensor");
    let codes: Vec<String> = tree.findings().iter().map(|f| f.code.to_string()).collect();
    assert_eq!(codes, ["GZP802", "GZP104", "GZP803", "GZP801", "GZP804"]);
}
