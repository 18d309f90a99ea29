//! The sandboxes of a driver zone's processes: its broker's, that of the maker of its zones, and what that
//! makes: workers, or a microVM.

use std::path::{Path, PathBuf};

use gpuzone_broker::{DriverZone, MachineZone};
use gpuzone_wire::control::BrokerConfig;
use gpuzone_zone::maker::Template;
use gpuzone_zone::sandbox::Spec;

use super::keeper::BrokerError;

/// What is started, and in what.
pub(super) struct Sandboxes {
    /// The program that makes sandboxes.
    pub(super) launcher: PathBuf,
    /// Where the maker writes its zones down.
    pub(super) records: PathBuf,
    pub(super) template: Template,
    pub(super) maker: Spec,
    pub(super) broker: Spec,
}

/// Those that `config` asks for; `None` where it asks for none.
pub(super) fn of(
    config: &BrokerConfig,
    program: &Path,
    slots: &[PathBuf],
) -> Result<Option<Sandboxes>, BrokerError> {
    let unprepared = |source| BrokerError::Prepare { dir: config.zone_dir.clone(), source };
    if let Some(vm) = &config.microvm {
        // Its broker's own sandboxes are in the machine.
        let Some(sandbox) = &vm.confinement else { return Ok(None) };
        let zone = MachineZone::new(config, vm, sandbox).map_err(BrokerError::Feature)?;
        return Ok(Some(Sandboxes {
            launcher: sandbox.maker.clone(),
            records: zone.records(),
            template: zone.template()?,
            maker: zone.maker()?,
            broker: zone.relay(program, slots),
        }));
    }
    let Some(sandbox) = &config.sandbox else { return Ok(None) };
    let zone = DriverZone::new(config, sandbox).map_err(BrokerError::Feature)?;
    Ok(Some(Sandboxes {
        launcher: sandbox.maker.clone(),
        records: zone.records(),
        template: zone.template(),
        maker: zone.maker().map_err(unprepared)?,
        broker: zone.broker(program, slots),
    }))
}
