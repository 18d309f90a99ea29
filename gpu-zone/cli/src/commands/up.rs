use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use gpuzone_api::check_socket_path;

use crate::arguments::{Driver, Up};
use crate::commands::Context;
use crate::error::{CliError, Kind};
use crate::locate;

/// Becomes the agent; comes back only when that fails.
pub(crate) fn up(context: &Context, up: &Up) -> Result<Infallible, CliError> {
    check_socket_path(&context.directories.agent_socket())
        .map_err(|error| CliError::new(Kind::Configuration, error.to_string()))?;
    let agent =
        locate::own("gpu-zoned").map_or_else(|| "gpu-zoned".into(), |path| path.into_os_string());
    let mut command = Command::new(&agent);
    // What is not named here, the agent's configuration may name.
    if let Some(run) = &context.named_run_dir {
        command.arg("--run-dir").arg(run);
    }
    if let Some(state) = &context.named_state_dir {
        command.arg("--state-dir").arg(state);
    }
    match &up.config {
        Some(config) => command.arg("--config").arg(config),
        // Without a configuration there are no quotas: one user's own machine.
        None => command.arg("--open"),
    };
    if let Some(driver) = driver(up) {
        command.arg("--driver").arg(match driver {
            Driver::Simulated => "simulated",
            Driver::Nvidia => "nvidia",
        });
    }
    if let Some(simulated) = &up.simulated_config {
        command.env("GPUZONE_SIM_CONFIG", simulated);
    }
    context.say(|| format!("starting {command:?}"));
    let error = command.exec();
    let message = format!("cannot start the agent '{}': {error}", agent.display());
    Err(CliError::new(Kind::Configuration, message)
        .hint("gpu-zoned belongs next to gpu-zone, or in PATH; `gpu-zone doctor` looks for it"))
}

/// The driver to name; none when the configuration decides.
fn driver(up: &Up) -> Option<Driver> {
    match (up.driver, &up.config) {
        (Some(driver), _) => Some(driver),
        (None, Some(_)) => None,
        (None, None) => {
            let driver = present(Path::new("/"));
            if driver == Driver::Simulated {
                eprintln!(
                    "gpu-zone: THE GPU IS SIMULATED: this machine has no NVIDIA driver, so kernels \
                     are computed on the CPU"
                );
            }
            Some(driver)
        }
    }
}

/// NVIDIA's driver when both its library and its device are there, else the simulated one.
pub(crate) fn present(root: &Path) -> Driver {
    let library = locate::library(root, "libcuda.so.1").is_some();
    if library && root.join("dev/nvidiactl").exists() { Driver::Nvidia } else { Driver::Simulated }
}
