use std::path::PathBuf;

use super::{Context, Outcome};
use crate::catalog as c;
use crate::driver::launch::Change;
use crate::driver::{Answer, Task};
use crate::finding::Finding;
use crate::host::Host;

const FOLDERS: [&str; 8] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
    "/usr/local/cuda/compat",
];

/// The driver libraries in the usual places, each file once.
pub(super) fn of_the_system(host: &Host) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        let Ok(file) = host.path(folder).join("libcuda.so.1").canonicalize() else { continue };
        if !found.contains(&file) {
            found.push(file);
        }
    }
    found
}

/// What the loader takes first.
fn preferred(host: &Host) -> Option<PathBuf> {
    let folders = host.variable("LD_LIBRARY_PATH")?;
    folders
        .split(':')
        .filter(|folder| !folder.is_empty())
        .flat_map(|folder| [host.path(folder), PathBuf::from(folder)])
        .find_map(|folder| folder.join("libcuda.so.1").canonicalize().ok())
}

pub(super) fn check(context: &mut Context<'_>, outcome: &mut Outcome) {
    let Some(preferred) = preferred(context.host) else { return };
    for library in of_the_system(context.host) {
        if library == preferred {
            continue;
        }
        let shown = library.display().to_string();
        let change = Change { library: Some(library), ..Change::default() };
        match context.launcher.ask(Task::Devices, &change) {
            Answer::Devices(devices) if !devices.is_empty() => {
                let seen = format!("{shown} shows {} device(s)", devices.len());
                outcome.found(Finding::new(&c::DRIVER_LIBRARY, seen).at(crate::Severity::High));
            }
            Answer::NoLibrary(_) => {}
            _ => outcome
                .found(Finding::new(&c::DRIVER_LIBRARY, format!("{shown}; it finds no device"))),
        }
    }
}
