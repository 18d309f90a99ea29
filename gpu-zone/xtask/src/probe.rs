//! `cargo xtask probe`: the static probe, one file that starts in any image.
//!
//! Static against glibc, with the toolchain as it is: the target for musl would have to be
//! installed beside it. A static program cannot load a driver's library, so it carries the same
//! probe linked dynamically (`gpu-zone/probe/src/driver/carrier.rs`), and that is built first.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::elf;

const NAME: &str = "gpu-zone-probe";

/// Builds it below `target/probe`; with `check`, also shows that it is static and starts in an
/// empty root.
///
/// # Errors
/// When it cannot be built, or is not what it is to be.
#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
pub(crate) fn build(repository: &Path, check: bool) -> anyhow::Result<()> {
    let work = repository.join("target/probe");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let dynamic = work.join("release").join(NAME);
    // A folder of its own: other flags would have everything else built anew.
    cargo(repository, &work, |_| {})?;
    cargo(repository, &work, |build| {
        build.args(["--target", &target]).env("GPUZONE_PROBE_CARRIES", &dynamic);
        build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    })?;
    let program = work.join(NAME);
    let built = work.join(&target).join("release").join(NAME);
    std::fs::copy(&built, &program).with_context(|| format!("cannot copy {}", built.display()))?;
    println!("built      {}", program.display());
    if check {
        elf::is_static(&program)?;
        println!("static     it names no loader");
        starts_in_an_empty_root(&program, &work)?;
    }
    Ok(())
}

fn cargo(repository: &Path, work: &Path, change: impl FnOnce(&mut Command)) -> anyhow::Result<()> {
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(repository).args(["build", "--release", "--package", "gpuzone-probe"]);
    build.args(["--bin", NAME, "--target-dir"]).arg(work);
    build.env_remove("GPUZONE_PROBE_CARRIES").env_remove("RUSTFLAGS");
    change(&mut build);
    let status = build.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo failed: {status}");
    }
    Ok(())
}

/// Runs it where there is nothing but itself. What it says of that place does not matter: it has
/// to make a report.
#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
fn starts_in_an_empty_root(program: &Path, work: &Path) -> anyhow::Result<()> {
    let root: PathBuf = work.join("empty-root");
    if root.exists() {
        std::fs::remove_dir_all(&root).context("cannot remove the last empty root")?;
    }
    std::fs::create_dir(&root).with_context(|| format!("cannot make {}", root.display()))?;
    std::fs::copy(program, root.join(NAME)).context("cannot copy the probe")?;
    let (inside, root) = (format!("/{NAME}"), root.display().to_string());
    let arguments = [inside.as_str(), "--quiet", "--format", "json"];
    // Root may change its root at once; others in a user namespace, where they may have one.
    let ways = [("chroot", vec![&*root]), ("unshare", vec!["--map-root-user", "--root", &*root])];
    let mut refused = Vec::new();
    for (tool, first) in ways {
        let mut command = Command::new(tool);
        command.args(first).args(arguments).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let output = command.output().with_context(|| format!("cannot run {tool}"))?;
        let report = String::from_utf8_lossy(&output.stdout);
        match output.status.code() {
            Some(0..=3) if report.contains("\"checks\"") => {
                println!("starts     in an empty root, by {tool}");
                return Ok(());
            }
            // What those tools answer when they may not.
            Some(1 | 125) if report.is_empty() => {
                refused.push(String::from_utf8_lossy(&output.stderr).trim().to_owned());
            }
            _ => bail!("in an empty root it {}: {report}", output.status),
        }
    }
    println!("SKIPPED    the start in an empty root: {}", refused.join("; "));
    Ok(())
}
