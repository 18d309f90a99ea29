//! Checks of gpu-zone's own parts and folders.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gpuzone_api::agent::v1::DescribeRequest;
use gpuzone_api::{Directories, SLOT_SOCKET, check_socket_path};
use rustix::fs::{Access, access};

use crate::commands::{Context, answer};
use crate::doctor::{Check, Scope};
use crate::locate;

pub(crate) fn checks(scope: &Scope, directories: &Directories) -> Vec<Check> {
    let mut checks = vec![
        own("agent", "gpu-zoned", true),
        own("broker", "gpu-zone-broker", true),
        own("worker", "gpu-zone-worker", true),
        own("sandbox", "gpu-zone-sandbox", false),
        own("microVM relay", "gpu-zone-vm", false),
        sandbox(),
        own("shim", "libgpuzone_cuda.so", true),
        own("NVML shim", "libgpuzone_nvml.so", true),
        own("simulated CUDA", "libgpuzone_sim_cuda.so", !scope.nvidia()),
        own("simulated NVML", "libgpuzone_sim_nvml.so", !scope.nvidia()),
        folder("run folder", &directories.run),
        folder("state folder", &directories.state),
        socket_path(directories),
    ];
    if scope.nvidia() {
        checks.retain(|check| !check.name.starts_with("simulated"));
    }
    checks
}

fn own(name: &'static str, file: &str, needed: bool) -> Check {
    match locate::own(file) {
        Some(path) => Check::ok(name, path.display().to_string()),
        None => {
            let folders = locate::own_folders();
            let folders: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
            let fix = format!(
                "build it with `cargo build --workspace`, or put it into {}; the agent's \
                 configuration can name another place",
                folders.join(" or ")
            );
            Check::not_ok(name, needed, format!("no {file}"), fix)
        }
    }
}

/// What a sandbox would lack here, learnt by making one.
fn sandbox() -> Check {
    const NAME: &str = "sandbox features";
    let fix = "zones do without these unless [zone] policy = \"require\"; docs/zones.md says what \
               each needs";
    let Some(launcher) = locate::own("gpu-zone-sandbox") else {
        return Check::not_ok(NAME, false, "cannot tell without gpu-zone-sandbox", "");
    };
    let output = match Command::new(launcher).arg("--probe").stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => return Check::not_ok(NAME, false, format!("cannot tell: {error}"), fix),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Check::not_ok(NAME, false, format!("no sandbox at all: {said}"), fix);
    }
    lacking(NAME, &output.stdout, fix)
}

fn lacking(name: &'static str, probed: &[u8], fix: &str) -> Check {
    let Ok(serde_json::Value::Array(missing)) = serde_json::from_slice(probed) else {
        return Check::not_ok(name, false, "cannot tell: the probe's answer is none", "");
    };
    let text = |missing: &serde_json::Value| {
        let of = |key: &str| missing[key].as_str().unwrap_or("?").to_owned();
        format!("no {} ({})", of("feature"), of("reason"))
    };
    if missing.is_empty() {
        return Check::ok(name, "all there");
    }
    let lacks: Vec<String> = missing.iter().map(text).collect();
    Check::not_ok(name, false, lacks.join("; "), fix)
}

/// A folder that is there and can be written, or can be made.
fn folder(name: &'static str, path: &Path) -> Check {
    let nearest: Option<PathBuf> =
        path.ancestors().find(|ancestor| ancestor.exists()).map(Path::to_owned);
    let nearest = nearest.unwrap_or_else(|| PathBuf::from("."));
    let writable = nearest.is_dir() && access(&nearest, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    let shown = path.display();
    if writable {
        let there = if nearest == path { "" } else { " (will be made)" };
        return Check::ok(name, format!("{shown}{there}"));
    }
    let fix = format!(
        "let this user write to {}, or choose another folder with --run-dir and --state-dir",
        nearest.display()
    );
    Check::not_ok(name, true, format!("{shown} cannot be written"), fix)
}

fn socket_path(directories: &Directories) -> Check {
    const NAME: &str = "socket path";
    // The longest one: a lease's name is `lease-` and 32 digits.
    let slot =
        directories.slots_dir().join("lease-".to_owned() + &"0".repeat(32)).join(SLOT_SOCKET);
    match check_socket_path(&slot) {
        Ok(()) => Check::ok(NAME, format!("{} bytes at most", slot.as_os_str().len())),
        Err(error) => Check::not_ok(
            NAME,
            true,
            format!("{} bytes, 107 are the limit", error.length),
            "choose a shorter folder with --run-dir",
        ),
    }
}

pub(crate) async fn agent(context: &Context) -> Check {
    const NAME: &str = "running agent";
    let described = async {
        let mut agent = context.connect().await?;
        answer(agent.describe(DescribeRequest {}).await)
    };
    match described.await {
        Ok(agent) => Check::ok(
            NAME,
            format!("version {}, process {}, {} driver", agent.version, agent.pid, agent.driver),
        ),
        Err(error) => Check::not_ok(NAME, false, "none answers", error.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn a_long_run_folder_is_found_before_the_agent_fails() {
        let at = |length| {
            let run = PathBuf::from("/".to_owned() + &"r".repeat(length));
            socket_path(&Directories { state: PathBuf::from("/s"), run }).status
        };
        assert_eq!(at(40), Status::Ok);
        assert_eq!(at(60), Status::Missing);
    }

    #[test]
    fn a_folder_that_can_be_made_is_fine() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(folder("f", &root.path().join("a/b")).status, Status::Ok);
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(folder("f", &file.join("a")).status, Status::Missing);
    }
}
