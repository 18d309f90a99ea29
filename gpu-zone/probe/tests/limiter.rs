//! The probe against a limiter that lives in the tenant, and against libraries that misbehave.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this file is a test crate"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

/// The limiter under the names of the driver's libraries.
fn libraries() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/limiter.c");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        let mut command = Command::new(&compiler);
        command.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]);
        assert!(command.arg(folder.path().join(name)).arg(&source).status().unwrap().success());
    }
    folder
}

fn probe(libraries: &TempDir, environment: &[(&str, &str)], arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_gpu-zone-probe"))
        .args(["--format", "json", "--quiet"])
        .args(arguments)
        .env("LD_LIBRARY_PATH", libraries.path())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn seen(report: &Value, code: &str) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap().iter();
    let of_code = findings.filter(|finding| finding["code"] == code);
    of_code.map(|finding| finding["seen"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_limiter_in_the_tenant_is_seen_through() {
    let libraries = libraries();
    let report = probe(&libraries, &[("CUDA_DEVICE_MEMORY_LIMIT_0", "512")], &["--limit", "512Mi"]);
    // It counts this one, in each process for itself.
    assert_eq!(seen(&report, "GZP302"), Vec::<String>::new());
    assert_eq!(seen(&report, "GZP309").len(), 2, "{report:#}");
    // It does not count these.
    for code in ["GZP305", "GZP306", "GZP308"] {
        assert_eq!(seen(&report, code)[0], "device 0: 528Mi, the limit is 512Mi", "{code}");
    }
    // It has none of these, and what fails is no finding.
    for code in ["GZP303", "GZP304", "GZP307", "GZP401"] {
        assert_eq!(seen(&report, code), Vec::<String>::new(), "{code}");
    }
    assert_eq!(
        seen(&report, "GZP310"),
        [
            "with CUDA_DISABLE_CONTROL=true: 8Gi of memory instead of 512Mi",
            "without CUDA_DEVICE_MEMORY_LIMIT_0: 8Gi of memory instead of 512Mi",
        ]
    );
    assert_eq!(seen(&report, "GZP311"), ["variable CUDA_DEVICE_MEMORY_LIMIT_0"]);
    assert_eq!(seen(&report, "GZP202"), ["GPU 0 (Limited): 4Gi of 8Gi in use"]);
    assert_eq!(seen(&report, "GZP601"), ["2 pairs, device 0 to 1 among them"]);
    assert_eq!(seen(&report, "GZP602").len(), 1);
}

#[test]
fn all_of_a_gpu_is_no_limit_except_in_a_lease() {
    let libraries = libraries();
    let plain = probe(&libraries, &[], &[]);
    assert_eq!(seen(&plain, "GZP301")[0], "device 0 (Limited) offers all of its 8Gi");
    let lease = probe(&libraries, &[("GPUZONE_SLOT", "/nowhere")], &[]);
    assert_eq!(seen(&lease, "GZP301"), Vec::<String>::new());
    // There it is tried.
    assert_eq!(seen(&lease, "GZP305")[0], "device 0: 8208Mi, the limit is 8Gi");
}

#[test]
fn nothing_is_changed_unless_it_is_asked_for() {
    let libraries = libraries();
    let persistence = "nvmlDeviceSetPersistenceMode of GPU 0";
    let report = probe(&libraries, &[], &[]);
    assert_eq!(seen(&report, "GZP501"), [persistence]);
    let report = probe(&libraries, &[], &["--destructive"]);
    assert_eq!(seen(&report, "GZP501"), [persistence, "nvmlDeviceResetGpuLockedClocks of GPU 0"]);
}

#[test]
fn a_library_that_crashes_is_a_line_in_the_report() {
    let libraries = libraries();
    for (variable, end) in [("LIMITER_CRASHES", "SIGABRT"), ("LIMITER_EXITS", "exit status: 7")] {
        let report = probe(&libraries, &[(variable, "1")], &["--limit", "512Mi"]);
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == "memory residue").unwrap();
        let why = check["untested"][0].as_str().unwrap();
        assert!(why.contains("ended the process") && why.contains(end), "{why}");
    }
}

/// The program that `GPUZONE_STATIC_PROBE` names, or one that is built here.
fn static_probe(folder: &Path) -> PathBuf {
    if let Some(path) = std::env::var_os("GPUZONE_STATIC_PROBE") {
        return std::path::absolute(path).unwrap();
    }
    let target = "x86_64-unknown-linux-gnu";
    let built = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--bin", "gpu-zone-probe", "--target", target, "--target-dir"])
        .arg(folder)
        .env("GPUZONE_PROBE_CARRIES", env!("CARGO_BIN_EXE_gpu-zone-probe"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status();
    assert!(built.unwrap().success());
    folder.join(target).join("debug/gpu-zone-probe")
}

/// Builds the probe once more unless it is named, which takes a while.
#[test]
#[ignore = "needs the static probe: `cargo xtask probe`, and GPUZONE_STATIC_PROBE"]
fn the_static_probe_finds_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let program = static_probe(folder.path());
    // No loader is asked for: it says which in a section that a static program lacks.
    let bytes = std::fs::read(&program).unwrap();
    let headers = usize::from(u16::from_le_bytes(bytes[56..58].try_into().unwrap()));
    let has_loader = (0..headers).any(|n| bytes[64 + 56 * n..][..4] == 3_u32.to_le_bytes());
    assert!(!has_loader, "the program is not static");

    let libraries = libraries();
    let limit = [("CUDA_DEVICE_MEMORY_LIMIT_0", "512")];
    let dynamic = probe(&libraries, &limit, &["--limit", "512Mi"]);
    let output = Command::new(&program)
        .args(["--format", "json", "--quiet", "--limit", "512Mi"])
        .env("LD_LIBRARY_PATH", libraries.path())
        .envs(limit)
        .output()
        .unwrap();
    let static_report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for code in ["GZP305", "GZP306", "GZP308", "GZP309", "GZP310", "GZP501", "GZP602"] {
        assert!(!seen(&dynamic, code).is_empty(), "{code}");
        assert_eq!(seen(&static_report, code), seen(&dynamic, code), "{code}");
    }
}
