use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::error::{CliError, Kind};
use crate::locate;

/// Becomes the probe, a program of its own: it has to run where nothing else of gpu-zone is.
pub(crate) fn probe(options: &[OsString]) -> Result<Infallible, CliError> {
    const NAME: &str = "gpu-zone-probe";
    let program = locate::own(NAME).map_or_else(|| NAME.into(), |path| path.into_os_string());
    let error = Command::new(&program).args(options).exec();
    let message = format!("cannot start the probe '{}': {error}", program.display());
    Err(CliError::new(Kind::Configuration, message)
        .hint("gpu-zone-probe belongs next to gpu-zone, or in PATH"))
}
