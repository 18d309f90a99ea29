//! The way to workers' zones: by the maker that the agent started beside this broker, which has the
//! rights that zones take and lets nobody choose what they are. Where workers have no sandboxes there
//! is nothing to have rights for, and the same maker is a task of this process.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use gpuzone_wire::control::BrokerConfig;
use gpuzone_wire::handover::Role;
use gpuzone_zone::maker::{Kind, MadeZone, Maker, MakerError, Template, inherited, line, serve};
use gpuzone_zone::sandbox::Missing;

use crate::paths::ZonePaths;

/// The line to the maker that was handed over, where there is one.
pub(crate) fn handed(config: &BrokerConfig) -> io::Result<Option<OwnedFd>> {
    config.sandbox.is_some().then(inherited).transpose()
}

/// The maker, which has taken over what an earlier one made.
pub(crate) async fn connect(
    config: &BrokerConfig,
    paths: &ZonePaths,
    handed: Option<OwnedFd>,
) -> io::Result<Maker> {
    let line = match handed {
        Some(line) => line,
        None => own(config, paths)?,
    };
    Maker::connect(line).await
}

/// A maker of zones without sandboxes.
fn own(config: &BrokerConfig, paths: &ZonePaths) -> io::Result<OwnedFd> {
    let kind = |role: Role| {
        let arguments = role.arguments().iter().map(ToString::to_string).collect();
        (
            role.as_str().to_owned(),
            Kind { arguments, files: role.files(), device_memory: BTreeMap::new() },
        )
    };
    let template = Template {
        program: config.worker.clone(),
        environment: config.driver.environment.clone(),
        kinds: Role::ALL.map(kind).into(),
        sandbox: None,
    };
    let (ours, theirs) = line()?;
    let folder = paths.zones();
    tokio::spawn(async move {
        if let Err(error) = serve(&folder, template, theirs).await {
            tracing::error!(%error, "no more workers are made");
        }
    });
    Ok(ours)
}

/// Lets a zone run, and answers when its program begins, or has ended. On an error it is being ended.
pub(crate) async fn begin(zone: &MadeZone) -> Result<(), MakerError> {
    let missing = match zone.start().await {
        Ok(missing) => missing,
        // How it ended, its exit and its log say.
        Err(MakerError::Ended) => return Ok(()),
        Err(error) => return Err(error),
    };
    if !missing.is_empty() {
        let missing: Vec<String> = missing.iter().map(Missing::to_string).collect();
        let missing = missing.join("; ");
        tracing::warn!(zone = zone.name(), process = zone.process().pid, %missing,
            "a worker runs without a part of its sandbox, which the policy allows");
    }
    Ok(())
}
