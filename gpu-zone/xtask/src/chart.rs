//! `cargo xtask chart`: lints the chart, renders it, and reads what came out.
//!
//! Helm and CEL come as Python packages, so that neither Go nor a binary from elsewhere is needed.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::python::{self, run};

const PACKAGES: [&str; 3] = ["helm-python-sdk==0.2.2", "cel-expr-python==0.1.3", "PyYAML==6.0.4"];
const RENDER: &str = include_str!("chart/render.py");
const CONDITIONS: &str = include_str!("chart/conditions.py");
/// Where the tests find what was rendered.
const RENDERED: &str = "GPUZONE_RENDERED_CHART";

/// Renders below `target/chart`, and runs the tests that read it.
///
/// # Errors
/// When Helm cannot be installed, or the chart is wrong.
#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
pub(crate) fn check(repository: &Path) -> anyhow::Result<()> {
    let work = repository.join("target/chart");
    let (environment, rendered) = (work.join("python"), work.join("rendered"));
    let python = python::environment(&environment, &PACKAGES)?;
    if rendered.exists() {
        std::fs::remove_dir_all(&rendered).context("cannot remove what was rendered last")?;
    }
    std::fs::create_dir_all(&rendered)
        .with_context(|| format!("cannot make {}", rendered.display()))?;
    let chart = repository.join("charts/gpu-zone");
    run(Command::new(&python).args(["-c", RENDER]).arg(&chart).arg(&rendered))?;
    println!("rendered   {}", rendered.display());
    run(Command::new(&python).args(["-c", CONDITIONS]).arg(&rendered))?;
    println!("evaluated  which pods come to the webhook");
    for package in ["gpuzone-crds", "gpuzone-agent"] {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut test = Command::new(cargo);
        test.current_dir(repository).env(RENDERED, &rendered);
        test.args(["test", "--quiet", "--package", package, "--test", "chart", "--", "--ignored"]);
        run(&mut test)?;
    }
    println!("read       each object, and the agent's configuration");
    Ok(())
}
