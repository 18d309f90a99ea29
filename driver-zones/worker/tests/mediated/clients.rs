//! Programs that nobody here wrote for us: Python's CUDA packages, on the simulated library alone
//! and through the shim. `cargo xtask clients` installs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use crate::harness::{Lease, PATIENCE};

/// Names another interpreter than the one that `cargo xtask clients` makes.
const PYTHON: &str = "GPUZONE_CLIENTS_PYTHON";

fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).expect("this crate lies two folders down")
}

/// The interpreter that has the packages.
fn python() -> Option<PathBuf> {
    let made = || root().join("target/clients/bin/python");
    let python = std::env::var_os(PYTHON).map_or_else(made, PathBuf::from);
    python.exists().then_some(python)
}

fn run(mut command: Command) -> Output {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python starts");
    let began = Instant::now();
    // Compilers write little: their pipes do not fill.
    while child.try_wait().expect("waited").is_none() && began.elapsed() < 5 * PATIENCE {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let _ = child.kill();
    child.wait_with_output().expect("ended")
}

fn said(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout.clone()).expect("a text")
}

/// Runs a program both ways, and answers what it said: the same.
fn same_both_ways(script: &str) -> Option<String> {
    let Some(python) = python() else {
        eprintln!(
            "skipped: {script} needs Python's CUDA packages; `cargo xtask clients` installs them"
        );
        return None;
    };
    let script = root().join("gpu-zone/workloads/clients").join(script);
    let lease = Lease::start(512 << 20);
    let command = || {
        let mut command = Command::new(&python);
        command.arg("-B").arg(&script).env("PYTHONNOUSERSITE", "1").env_remove("CUDA_HOME");
        command
    };
    let mut mediated = command();
    mediated.env("GPUZONE_SLOT", lease.slot()).env("LD_LIBRARY_PATH", lease.slot());
    let mediated = said(&run(mediated));
    let mut direct = command();
    lease.without_us(&mut direct);
    assert_eq!(mediated, said(&run(direct)), "mediated against direct");
    Some(mediated)
}

#[test]
fn cuda_bindings_run_as_on_the_driver_itself() {
    if let Some(said) = same_both_ways("bindings.py") {
        assert!(said.contains("calls 3") && said.contains("CUDA_ERROR_INVALID_VALUE"), "{said}");
    }
}

#[test]
fn cuda_core_runs_as_on_the_driver_itself() {
    if let Some(said) = same_both_ways("core.py") {
        assert!(said.contains("device Simulated 90"), "{said}");
    }
}

#[test]
fn numba_runs_as_on_the_driver_itself() {
    if let Some(said) = same_both_ways("numba_kernels.py") {
        assert!(said.contains("pinned 499500"), "{said}");
    }
}
