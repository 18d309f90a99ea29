//! The way to workers' zones: by the maker that the agent started beside this broker, which has the
//! rights that zones take and lets nobody choose what they are. Where workers have no sandboxes there
//! is nothing to have rights for, and in a microVM the machine is the wall: there, the same maker is a
//! task of this process.

use std::io;
use std::os::fd::OwnedFd;

use gpuzone_wire::control::BrokerConfig;
use gpuzone_zone::maker::{MadeZone, Maker, MakerError, inherited, line, serve};
use gpuzone_zone::sandbox::{MadeBy, Missing};

use crate::driver_zone::{DriverZone, plain};
use crate::paths::ZonePaths;

/// Who makes the zones of this broker's workers, or that of its microVM; `None` where it makes a microVM
/// without a sandbox itself.
pub fn made_by(config: &BrokerConfig) -> Option<MadeBy> {
    match config {
        BrokerConfig { microvm: Some(vm), .. } => vm.confinement.as_ref().map(|_| MadeBy::Maker),
        BrokerConfig { sandbox: None, .. } => Some(MadeBy::Itself),
        BrokerConfig { windows: true, .. } => Some(MadeBy::ItselfSandboxed),
        BrokerConfig { .. } => Some(MadeBy::Maker),
    }
}

/// The line to the maker that was handed over, where there is one.
pub(crate) fn handed(config: &BrokerConfig) -> io::Result<Option<OwnedFd>> {
    (made_by(config) == Some(MadeBy::Maker)).then(inherited).transpose()
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

/// A maker of zones that is a task of this process.
fn own(config: &BrokerConfig, paths: &ZonePaths) -> io::Result<OwnedFd> {
    let template = match &config.sandbox {
        None => plain(config),
        Some(sandbox) => {
            let zone = DriverZone::new(config, sandbox).map_err(|feature| {
                io::Error::other(format!("no sandbox has a feature '{feature}' to be required"))
            })?;
            zone.template()
        }
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
