//! Environments of Python for what comes as its packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// The interpreter of the environment in a folder, made if there is none, with these packages.
///
/// # Errors
/// When Python lacks something, or no package index is reached.
pub(crate) fn environment(folder: &Path, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let python = folder.join("bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder)).context(
            "making a Python environment; python3 with its venv module is needed (Debian: python3-venv)",
        )?;
    }
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages);
    run(&mut pip).context("installing packages, which needs a Python package index")?;
    Ok(python)
}

/// Runs a program to its good end.
///
/// # Errors
/// When it cannot be run, or fails.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    Ok(())
}
