//! The step between this machine's first process and the program: a process of its own gives up what
//! the program is not to have, and becomes it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use gpuzone_wire::workload_link::{Order, ROOT};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use super::{GROUP, order};

/// Says on the command line that this is such a process.
pub(crate) const FLAG: &str = "--start";
/// Where it says why it could not become the program.
const REPORT: &str = "/run/unrunnable";

/// Becomes the program; returns only when that fails.
pub(crate) fn become_program() -> ExitCode {
    let report = File::create(REPORT);
    let failed = match order() {
        Ok(order) => {
            let file = order.file.display().to_string();
            match confined(&order) {
                Ok(()) => (format!("cannot start '{file}'"), exec(order)),
                Err(error) => (format!("cannot prepare for '{file}'"), error),
            }
        }
        Err(error) => ("cannot read what is to be run".to_owned(), error),
    };
    let (what, error) = failed;
    let said = (error.raw_os_error().unwrap_or_default(), format!("{what}: {error}"));
    if let (Ok(mut report), Ok(text)) = (report, serde_json::to_vec(&said)) {
        // Where it cannot be written, the exit code is all that there is.
        let _ = report.write_all(&text);
    }
    ExitCode::FAILURE
}

fn exec(order: Order) -> io::Error {
    let Order { file, name, arguments, environment, .. } = order;
    Command::new(file).arg0(name).args(arguments).env_clear().envs(environment).exec()
}

fn confined(order: &Order) -> io::Result<()> {
    fs::write(Path::new(GROUP).join("cgroup.procs"), std::process::id().to_string())?;
    rustix::process::setsid()?;
    rustix::process::chroot(ROOT)?;
    rustix::process::chdir(&order.directory)?;
    set_no_new_privs(true)?;
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // Not one that this kernel has.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(set_capabilities(None, none)?)
}

/// Why the program was not started, if it was not: the kernel's number, and a sentence.
pub(super) fn failure() -> Option<(i32, String)> {
    serde_json::from_slice(&fs::read(REPORT).ok()?).ok()
}
