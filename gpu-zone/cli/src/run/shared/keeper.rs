//! The start of a zone's keeper.
//!
//! It is this program once more, with the same command line, in a session of its own: it asks
//! for the lease, so that it is the lease's holder, and becomes `gpu-zone-sandbox --keep`. What
//! it says until the zone runs comes back on a pipe.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use gpuzone_core::ZoneName;
use rustix::io::FdFlags;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::door::Door;
use super::line::Line;
use super::terms;
use crate::arguments::{Run, Sandboxing};
use crate::commands::{Context, answer};
use crate::error::{CliError, Kind};
use crate::locate;
use crate::run::child::{self, Inherited, in_memory};
use crate::run::sandbox::{self, Options};
use crate::run::signals::Mask;
use crate::run::{program::Program, request};

/// Where a keeper says what nobody listens to.
const LOG: &str = "keeper.log";

/// Starts a keeper, and waits until its zone runs; the connection that it serves first.
pub(super) async fn start(door: &Door, mask: Mask) -> Result<Line, CliError> {
    let failed = |error: io::Error| door.failed("cannot start", &error);
    let (line, theirs) = Line::pair().map_err(failed)?;
    let (heard, report) = io::pipe().map_err(failed)?;
    let log = door.folder.join(LOG);
    let log_file = File::options().append(true).create(true).open(&log).map_err(failed)?;
    child::spawn_keeper(&report.into(), &theirs, log_file, mask).map_err(failed)?;
    drop(theirs);
    let mut said = String::new();
    let mut heard = pipe::Receiver::from_owned_fd(heard.into()).map_err(failed)?;
    heard.read_to_string(&mut said).await.map_err(failed)?;
    understand(door, &said, &log)?;
    Ok(line)
}

fn understand(door: &Door, said: &str, log: &Path) -> Result<(), CliError> {
    let said: Value = serde_json::from_str(said.trim()).unwrap_or_default();
    if let Some(missing) = said["ready"].as_array() {
        sandbox::say_missing(missing);
        return Ok(());
    }
    let printable = |value: &Value| value.as_str().map(gpuzone_ledger::printable);
    if let Some(message) = printable(&said["error"]["message"]) {
        let name = said["error"]["kind"].as_str().unwrap_or_default();
        let mut error = CliError::new(Kind::named(name), message);
        error.hint = printable(&said["error"]["hint"]);
        return Err(error);
    }
    if let Some(reason) = printable(&said["failed"]) {
        let message = format!("zone '{}' could not be made: {reason}", door.name);
        return Err(CliError::new(Kind::Configuration, message)
            .hint("`gpu-zone doctor` shows what this machine lacks"));
    }
    let message = format!("the keeper of zone '{}' ended and did not say why", door.name);
    Err(CliError::new(Kind::Internal, message).hint(format!("look at {}", log.display())))
}

/// In the keeper's process: asks for the lease, and becomes the keeper.
pub(crate) async fn keep(
    context: &Context,
    run: Run,
    name: &ZoneName,
    inherited: Inherited,
) -> Result<u8, CliError> {
    let report = inherited.report.try_clone();
    match become_keeper(context, run, name, inherited).await {
        Ok(never) => match never {},
        Err(error) => {
            if let Ok(report) = report {
                // Whoever started this may be gone.
                let _ = writeln!(File::from(report), "{}", error.json());
            }
            Err(error)
        }
    }
}

async fn become_keeper(
    context: &Context,
    run: Run,
    name: &ZoneName,
    inherited: Inherited,
) -> Result<std::convert::Infallible, CliError> {
    let options = Options::of(&run, None);
    let launcher = launcher(&options)?;
    let program = Program::find(&run.command)?;
    let door = Door::of(name, &context.directories)?;
    let terms = terms(&run);
    door.vacant().await;
    let mut agent = context.connect().await?;
    let mut request = request(&run, &run.command);
    request.zone_name = Some(name.to_string());
    let granted = answer(agent.create_lease(request).await)?;
    let failed = |error: io::Error| door.failed("cannot keep", &error);
    let directory = std::env::current_dir().map_err(failed)?;
    let lease = granted.lease.as_ref().map(|lease| lease.id.as_str());
    let orders = json!({
        "name": name,
        "folder": std::path::absolute(&door.folder).map_err(failed)?,
        "spec": sandbox::orders(&options, &context.directories, &granted, &program.file, &directory),
        "terms": terms,
        "welcome": {
            "lease": lease,
            "environment": granted.environment,
            "library_dir": granted.library_dir,
        },
    });
    let orders = in_memory("orders", orders.to_string().as_bytes()).map_err(failed)?;
    let Inherited { report, first } = inherited;
    let mut keeper = Command::new(launcher);
    for (flag, file) in [("--orders", &orders), ("--report", &report), ("--keep", &first)] {
        rustix::io::fcntl_setfd(file, FdFlags::empty()).map_err(|error| failed(error.into()))?;
        keeper.arg(flag).arg(file.as_raw_fd().to_string());
    }
    Err(failed(keeper.exec()))
}

fn launcher(options: &Options) -> Result<std::path::PathBuf, CliError> {
    if options.demand == Sandboxing::Off {
        let message = "a zone that programs share is a sandbox; --sandbox off has none";
        return Err(CliError::new(Kind::Usage, message).hint("leave one of the two out"));
    }
    locate::own("gpu-zone-sandbox").ok_or_else(|| {
        let message = "gpu-zone-sandbox is not there, so programs cannot share a zone";
        CliError::new(Kind::Configuration, message)
            .hint("install it beside gpu-zone (`gpu-zone doctor` says where)")
    })
}
