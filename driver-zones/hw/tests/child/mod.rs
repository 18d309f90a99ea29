//! Tests in processes of their own, on simulated nodes. The simulated library is built by the test,
//! because this package does not depend on it.
#![allow(clippy::unwrap_used, reason = "for tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells a child where the simulated NVML lies.
pub(crate) const LIBRARY: &str = "GPUZONE_TEST_LIBRARY";

/// Builds the simulated NVML and says where it lies.
pub(crate) fn library() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "gpuzone-sim-nvml", "--message-format=json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let messages = text.lines().filter_map(|line| line.parse::<serde_json::Value>().ok());
    let files = messages.flat_map(|m| m["filenames"].as_array().cloned().unwrap_or_default());
    let found = files.filter_map(|file| file.as_str().map(PathBuf::from));
    let is_library = |path: &PathBuf| path.ends_with("libgpuzone_sim_nvml.so");
    found.into_iter().find(is_library).expect("the build names the library")
}

/// Test `name` of this binary, in a process of its own on a node with `config`, whose state lies in `folder`.
pub(crate) fn child(name: &str, library: &Path, folder: &Path, config: &str) -> Command {
    let path = folder.join("node.toml");
    let text = format!("state_dir = \"{}\"\n{config}", folder.join("state").display());
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    command.env("GPUZONE_SIM_CONFIG", path).env(LIBRARY, library);
    command
}
