//! What the tests that start the probe share.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use gpuzone_testkit::{Finished, Node, Running};
use serde_json::Value;

pub(crate) const PROBE: &str = env!("CARGO_BIN_EXE_gpu-zone-probe");
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn finish(mut command: Command) -> Finished {
    command.args(["--format", "json"]);
    Running::start(command).unwrap().finish(LIMIT).unwrap()
}

/// Each code of a report, and how bad it is.
pub(crate) fn codes(report: &Value) -> BTreeMap<String, String> {
    let findings = report["findings"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    findings.map(|finding| (text(&finding["code"]), text(&finding["severity"]))).collect()
}

/// A folder with the simulated driver's libraries under the names of the real ones.
fn driver_folder(node: &Node) -> PathBuf {
    let folder = node.folder().join("driver");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, library) in [
        ("libcuda.so.1", "libgpuzone_sim_cuda.so"),
        ("libnvidia-ml.so.1", "libgpuzone_sim_nvml.so"),
    ] {
        let library = node.artifacts().file(library).unwrap();
        let _ = symlink(library, folder.join(name));
    }
    folder
}

/// A program that has the simulated driver handed in directly, as a plain container has.
pub(crate) fn direct(node: &Node, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LD_LIBRARY_PATH", driver_folder(node))
        .env("GPUZONE_SIM_CONFIG", node.folder().join("simulated.toml"))
        .env("GPUZONE_KERNELS", node.artifacts().kernels());
    command
}

/// A tenant that keeps memory, directly or in a lease.
pub(crate) fn hold<'a>(memory: &'a str, seconds: &'a str) -> [&'a str; 5] {
    ["hold", "--memory", memory, "--seconds", seconds]
}

/// Runs the workload with the driver handed in directly.
pub(crate) fn workload(node: &Node, arguments: &[&str]) -> Running {
    let program = node.artifacts().file("gpuzone-workload").unwrap().to_str().unwrap();
    Running::start(direct(node, program, arguments)).unwrap()
}
