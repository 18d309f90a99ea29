//! `gpu-zone run`: a program in a lease of its own, or in a zone that it shares ([`shared`]).
//!
//! Of a lease of its own, the holder is this process; the program is its child, with its terminal
//! and its rights. Whichever way this process ends, the program ends with it, and the agent ends
//! the lease.

#[allow(unsafe_code, reason = "ties the program's life to this process's between fork and exec")]
mod child;
mod image;
mod microvm;
mod program;
pub(crate) mod sandbox;
pub(crate) mod shared;
#[allow(unsafe_code, reason = "no safe interface tells where a signal comes from")]
mod signals;
mod view;

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::Path;

use gpuzone_api::AgentClient;
use gpuzone_api::agent::v1::{
    CreateLeaseReply, CreateLeaseRequest, DescribeRequest, EndLeaseRequest,
};
use gpuzone_core::ZoneName;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::arguments::{Run, ZoneKind};
use crate::commands::{Context, answer};
use crate::error::{CliError, Kind};
use crate::run::program::Program;
use crate::run::sandbox::{Options, Zone};
use crate::run::signals::{Mask, Received};
pub(crate) use crate::run::view::Volume;

/// Longest name of a program in listings, in characters.
const NAME: usize = 80;

pub(crate) async fn run(context: &Context, run: Run) -> Result<u8, CliError> {
    // Looked for first: a typing error must not cost anybody a lease.
    let image = image::of(&run)?;
    let (program, words) = match &image {
        Some(image) => {
            let words = image::command(image, &run.command);
            (image::program(image, &words)?, words)
        }
        None if run.zone_kind == ZoneKind::Microvm => {
            (microvm::program(&run)?, run.command.clone())
        }
        None => (Program::find(&run.command)?, run.command.clone()),
    };
    let mut agent = context.connect().await?;
    let zone = zone(&mut agent, &run).await?;
    microvm::check(&run, zone.as_ref())?;
    // From here on signals wait: a lease that is being made is ended, not left to be found.
    let (mut signals, mask) =
        signals::receive().map_err(|error| CliError::caused(Kind::Internal, &error))?;
    if let Some(zone) = zone {
        if image.is_some() {
            let message = "a zone that programs share cannot have an image for its root";
            let hint = "run it in a zone of its own, or give a folder with --rootfs";
            return Err(CliError::new(Kind::Usage, message).hint(hint));
        }
        return shared::run(context, &run, &zone, &program, signals, mask).await;
    }
    let options = Options::of(&run, image);
    let request = request(&run, &words);
    let granted = tokio::select! {
        granted = agent.create_lease(request) => answer(granted)?,
        // The agent sees its holder end, and ends what it may have made.
        signal = ending(&mut signals) => return Ok(child::code_of_signal(signal)),
    };
    let Some(lease) = granted.lease.as_ref().map(|lease| lease.id.clone()) else {
        return Err(CliError::new(Kind::Internal, "the agent made a lease and did not say which"));
    };
    context.say(|| format!("{lease} is active"));
    let prepared = match run.zone_kind {
        ZoneKind::Sandbox => {
            let zone = Zone::prepare(&options, &context.directories, &granted, &program.file);
            zone.map(|zone| (program, granted, zone))
        }
        ZoneKind::Microvm => microvm::prepare(&options, &context.directories, &granted, &program),
    };
    let code = match prepared {
        Ok((program, granted, zone)) => {
            start(&program, &options, &granted, zone, signals, mask).await
        }
        Err(error) => Err(error),
    };
    end(context, &mut agent, lease).await;
    code
}

/// As the keeper of the zone that `run` names, or that its tenant's programs share.
pub(crate) fn keep(context: &Context, run: Run, numbers: [RawFd; 2]) -> Result<u8, CliError> {
    let inherited =
        child::Inherited::take(numbers).map_err(|error| CliError::caused(Kind::Usage, &error))?;
    context.block_on(async {
        let mut agent = context.connect().await?;
        let Some(name) = zone(&mut agent, &run).await? else {
            return Err(CliError::new(Kind::Usage, "there is no zone to keep"));
        };
        shared::keeper::keep(context, run, &name, inherited).await
    })
}

/// The zone that the program shares with others, if it does.
async fn zone(agent: &mut AgentClient, run: &Run) -> Result<Option<ZoneName>, CliError> {
    if let Some(zone) = &run.zone {
        return Ok(Some(zone.clone()));
    }
    let about = answer(agent.describe(DescribeRequest {}).await)?;
    let of_tenant = || run.tenant.as_str().parse();
    let shared = (about.workload_zones == "tenant").then(of_tenant).transpose();
    shared.map_err(|error| CliError::caused(Kind::Internal, &error))
}

fn request(run: &Run, words: &[OsString]) -> CreateLeaseRequest {
    CreateLeaseRequest {
        tenant: run.tenant.to_string(),
        gpus: run.gpus.get(),
        memory_bytes: run.memory.map(gpuzone_core::MemoryBytes::get),
        share_percent: run.share.map(gpuzone_core::ComputeShare::percent),
        model: run.model.clone(),
        zone_name: None,
        priority: run.priority.to_string(),
        cap_percent: run.cap.map(gpuzone_core::ComputeShare::percent),
        exposure: run.exposure.to_string(),
        program: run.name.clone().unwrap_or_else(|| display_name(words)),
    }
}

async fn start(
    program: &Program,
    options: &Options,
    granted: &CreateLeaseReply,
    zone: Option<Zone>,
    signals: UnboundedReceiver<Received>,
    mask: Mask,
) -> Result<u8, CliError> {
    let mut environment = options.root.image().map(image::environment).unwrap_or_default();
    let before = match options.root.image() {
        Some(image) => image.variable(LIBRARY_PATH).map(OsString::from),
        None => std::env::var_os(LIBRARY_PATH),
    };
    environment.extend(of_lease(&granted.environment, Path::new(&granted.library_dir), before));
    let mut child = child::spawn(program, &environment, zone.as_ref(), mask)?;
    if let Some(Err(error)) = zone.map(Zone::begun) {
        let _ = child.kill().await;
        return Err(error);
    }
    child::wait(child, signals).await
}

/// The lease is over with its program. Should the agent not answer, it will see for itself.
async fn end(context: &Context, agent: &mut AgentClient, lease: String) {
    let ended = answer(agent.end_lease(EndLeaseRequest { lease_id: lease.clone() }).await);
    match ended {
        Ok(_) => context.say(|| format!("{lease} has ended")),
        Err(error) => eprintln!(
            "gpu-zone: {lease} was not ended here ({error}); the agent ends it once it runs"
        ),
    }
}

/// The first signal that would end this process.
async fn ending(signals: &mut UnboundedReceiver<Received>) -> i32 {
    loop {
        match signals.recv().await {
            Some(received) if received.ends() => return received.number,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// What a program's environment gets of its lease.
fn of_lease<'a>(
    granted: impl IntoIterator<Item = (&'a String, &'a String)>,
    library_dir: &Path,
    before: Option<OsString>,
) -> Vec<(OsString, OsString)> {
    let granted = granted.into_iter().map(|(name, value)| (name.into(), value.into()));
    let search = library_path(library_dir, before);
    let search = (!search.is_empty()).then(|| (LIBRARY_PATH.into(), search));
    granted.chain(search).collect()
}

const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// The shim's folder in front of what was searched before.
fn library_path(shim: &Path, before: Option<OsString>) -> OsString {
    let mut search = shim.as_os_str().to_owned();
    // An empty element would mean the working directory.
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        // By passthrough there is none.
        if !search.is_empty() {
            search.push(":");
        }
        search.push(before);
    }
    search
}

/// The program's file name, and its first word unless that is an option: `python train.py`
/// says more than `python`, and all the words could hold somebody's password.
fn display_name(command: &[OsString]) -> String {
    let file = command.first().map(Path::new).and_then(Path::file_name).unwrap_or(OsStr::new("?"));
    let mut name = file.to_string_lossy().into_owned();
    let first = command.get(1).map(|word| word.to_string_lossy());
    if let Some(first) = first.filter(|word| !word.starts_with('-')) {
        name = format!("{name} {first}");
    }
    name.chars().take(NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_is_found_first() {
        let shim = Path::new("/run/shim");
        assert_eq!(library_path(shim, None), "/run/shim");
        assert_eq!(library_path(shim, Some("".into())), "/run/shim");
        assert_eq!(library_path(shim, Some("/a:/b".into())), "/run/shim:/a:/b");
        assert_eq!(library_path(Path::new(""), Some("/a".into())), "/a");
    }

    #[test]
    fn a_name_is_short_and_tells_no_options() {
        let name =
            |words: &[&str]| display_name(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(name(&["/usr/bin/python3", "train.py", "--key", "secret"]), "python3 train.py");
        assert_eq!(name(&["./app", "--key=secret"]), "app");
        assert_eq!(name(&[&"ä".repeat(200)]).chars().count(), NAME);
    }
}
