//! What the kubelet waits for: Allocate and GetPreferredAllocation, over gRPC on a Unix socket,
//! against the plugin's own program; and the memory that it takes.
//!
//! ```text
//! cargo bench -p gpuzone-device-plugin
//! ```
//!
//! NVIDIA's plugin, measured so on a machine with two cores, answers Allocate in 44 µs in the
//! median and a preferred allocation of 2 in 80 in 180 µs, and takes 37 MB.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

mod client;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use client::Client;
use gpuzone_api::kubelet::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest,
    ContainerPreferredAllocationRequest, DevicePluginOptions, Empty, PreferredAllocationRequest,
    PreferredAllocationResponse,
};
use gpuzone_testkit::kubernetes::{ApiServer, Kubelet};

const SLOTS: u16 = 1024;
const CALLS: usize = 5000;

fn plugin(folder: &Path, api: &ApiServer) -> Child {
    for library in ["lib.so", "libgpuzone_nvml.so"] {
        std::fs::write(folder.join(library), "").unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-zone-device-plugin"));
    command.args(["--node", "n", "--slots", &SLOTS.to_string()]);
    for (flag, name) in [
        ("--library", "lib.so"),
        ("--run-dir", "run"),
        ("--state-dir", "state"),
        ("--kubelet-dir", "kubelet/device-plugins"),
        ("--pod-resources", "kubelet/pod-resources/kubelet.sock"),
    ] {
        command.arg(flag).arg(folder.join(name));
    }
    command.arg("--kubeconfig").arg(api.kubeconfig(folder).unwrap());
    command.env("RUST_LOG", "error").stdin(Stdio::null()).spawn().unwrap()
}

/// Median and 99th percentile.
fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e6;
    println!("{what}: median {:.0} µs, p99 {:.0} µs ({} calls)", at(50), at(99), times.len());
}

async fn allocate(client: &mut Client) -> Vec<Duration> {
    let mut times = Vec::new();
    for call in 0..CALLS {
        let devices_ids = vec![format!("slot-{}", call % usize::from(SLOTS))];
        let asked = ContainerAllocateRequest { devices_ids };
        let asked = AllocateRequest { container_requests: vec![asked] };
        let began = Instant::now();
        let answer: AllocateResponse = client.call("Allocate", &asked).await;
        times.push(began.elapsed());
        assert_eq!(answer.container_responses.len(), 1);
    }
    times
}

/// The floor: a call that carries nothing, and for which nothing is done.
async fn nothing(client: &mut Client) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let began = Instant::now();
        let _: DevicePluginOptions = client.call("GetDevicePluginOptions", &Empty {}).await;
        times.push(began.elapsed());
    }
    times
}

async fn prefer(client: &mut Client, of: usize) -> Vec<Duration> {
    let asked = ContainerPreferredAllocationRequest {
        available_device_i_ds: (0..of).map(|n| format!("slot-{n}")).collect(),
        must_include_device_i_ds: Vec::new(),
        allocation_size: 2,
    };
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let asked = PreferredAllocationRequest { container_requests: vec![asked.clone()] };
        let began = Instant::now();
        let answer: PreferredAllocationResponse =
            client.call("GetPreferredAllocation", &asked).await;
        times.push(began.elapsed());
        assert_eq!(answer.container_responses[0].device_i_ds, ["slot-0", "slot-1"]);
    }
    times
}

/// Resident memory of a process, in KiB (proc(5)).
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::Builder::new().prefix("gz-").tempdir_in("/tmp").unwrap();
        let api = ApiServer::start().await.unwrap();
        let kubelet =
            Kubelet::start(&folder.path().join("kubelet"), "gpuzone.dev/gpu", [], "v1beta1")
                .unwrap();
        let mut plugin = plugin(folder.path(), &api);
        while kubelet.allocatable() != usize::from(SLOTS) {
            assert!(plugin.try_wait().unwrap().is_none(), "the plugin ended before it was asked");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let socket = kubelet.folder().join("gpuzone.dev_gpu.sock");
        let mut client = Client::connect(&socket).await;
        allocate(&mut client).await;
        show("an empty call", nothing(&mut client).await);
        show("Allocate", allocate(&mut client).await);
        show("GetPreferredAllocation, 2 of 80", prefer(&mut client, 80).await);
        show("GetPreferredAllocation, 2 of 1024", prefer(&mut client, 1024).await);
        println!("resident memory: {} KiB", resident(plugin.id()));
        plugin.kill().unwrap();
        plugin.wait().unwrap();
    });
}
