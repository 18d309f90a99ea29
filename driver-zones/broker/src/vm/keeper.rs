//! The microVM: made, or taken over from an earlier owner.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use gpuzone_wire::control::{Accelerator as Wanted, BrokerConfig, MicroVm, Sandbox};
use gpuzone_wire::zone_link::ToGuest;
use gpuzone_zone::microvm::{
    Accelerator, DigestError, Machine, MicroVms, Order, Passthrough, ProbeError, VmSpec,
    check_digest, probe,
};
use gpuzone_zone::sandbox::{Policy, UserRanges};
use gpuzone_zone::{Zone, ZoneState, Zones};
use tokio::sync::OnceCell;

use crate::paths::ZonePaths;

/// Its name among zones.
const NAME: &str = "driver-zone-vm";
/// In the guest.
const ZONE_DIR: &str = "/run/gpu-zone/zone";
const WORKER: &str = "/usr/bin/gpu-zone-worker";
const LAUNCHER: &str = "/usr/bin/gpu-zone-sandbox";

/// Why there is no microVM.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error(transparent)]
    Accelerator(#[from] ProbeError),
    #[error("{0}")]
    Zone(String),
    #[error("its control port cannot be had: {0}")]
    Port(#[from] io::Error),
    #[error(transparent)]
    File(#[from] DigestError),
}

/// Makes the microVM of a driver zone.
#[derive(Debug)]
pub(super) struct Keeper {
    config: BrokerConfig,
    pub(super) vm: MicroVm,
    zones: Zones<MicroVms>,
    folder: PathBuf,
    accelerator: OnceCell<Accelerator>,
}

impl Keeper {
    pub(super) async fn open(
        config: BrokerConfig,
        vm: MicroVm,
        paths: &ZonePaths,
    ) -> io::Result<Self> {
        let folder = paths.zones();
        let (zones, unreadable) = Zones::open(MicroVms::new(folder.clone()), &folder).await?;
        for error in unreadable {
            tracing::error!(%error, "a microVM may be left that nobody knows of");
        }
        Ok(Self { config, vm, zones, folder, accelerator: OnceCell::new() })
    }

    /// The microVM that runs, or a new one; and whether it is one of before.
    pub(super) async fn machine(&self) -> Result<(Zone<MicroVms>, bool), KeepError> {
        if let Some(zone) = self.zones.get(NAME) {
            if zone.state() == ZoneState::Running {
                tracing::info!(process = zone.process().pid, "the microVM lives and is kept");
                return Ok((zone, true));
            }
            zone.end(None).await?;
        }
        let zone = self.zones.create(NAME, self.order().await?);
        let zone = zone.map_err(|error| KeepError::Zone(with_causes(&error)))?;
        let missing = zone.start().await.map_err(|error| KeepError::Zone(with_causes(&error)))?;
        for missing in missing {
            tracing::warn!(%missing, "QEMU runs without a part of its confinement, which the policy allows");
        }
        Ok((zone, false))
    }

    /// The microVM, if there is one.
    pub(super) fn there(&self) -> Option<Zone<MicroVms>> {
        self.zones.get(NAME)
    }

    pub(super) fn monitor(&self) -> PathBuf {
        self.folder.join(format!("{NAME}.qmp"))
    }

    /// Fails unless the files are those that the configuration means.
    async fn check_files(&self) -> Result<(), KeepError> {
        let digests = self.vm.digests.clone();
        let checked = tokio::task::spawn_blocking(move || {
            digests.iter().try_for_each(|(path, digest)| check_digest(path, digest))
        });
        Ok(checked.await.map_err(io::Error::other)??)
    }

    async fn order(&self) -> Result<Order, KeepError> {
        self.check_files().await?;
        let accelerator = *self.accelerator.get_or_try_init(|| self.choose()).await?;
        let MicroVm { qemu, kernel, image, memory, processors, windows, devices, .. } =
            self.vm.clone();
        let passthrough = |address| Passthrough { address, vf_token: None };
        let vm = VmSpec {
            qemu,
            kernel,
            image,
            append: String::new(),
            accelerator,
            machine: Machine::Q35 { windows, iommu: false },
            memory,
            processors,
            devices: devices.into_iter().map(passthrough).collect(),
            ports: Vec::new(),
        };
        let Some(Sandbox { maker, require, users, .. }) = self.vm.confinement.clone() else {
            return Ok(Order { vm, launcher: None, users: None, policy: Policy::default() });
        };
        let policy = Policy::requiring(&require).map_err(|name| {
            KeepError::Zone(format!("a sandbox has no feature '{name}' to be required"))
        })?;
        let users = users.map(|users| UserRanges {
            first: users.first,
            each: users.each,
            zones: users.zones,
        });
        Ok(Order { vm, launcher: Some(maker), users, policy })
    }

    /// By a guest that was seen to run, not by a file that opens.
    async fn choose(&self) -> Result<Accelerator, ProbeError> {
        let qemu = self.vm.qemu.clone();
        let runs = |accelerator| {
            let qemu = qemu.clone();
            async move {
                let probed = tokio::task::spawn_blocking(move || probe(&qemu, accelerator)).await;
                probed.unwrap_or_else(|error| {
                    let source = io::Error::other(error);
                    Err(ProbeError::Io { accelerator, source })
                })
            }
        };
        match self.vm.accelerator {
            Wanted::Tcg => Ok(Accelerator::Tcg),
            Wanted::Kvm => runs(Accelerator::Kvm).await.map(|()| Accelerator::Kvm),
            Wanted::Auto => match runs(Accelerator::Kvm).await {
                Ok(()) => Ok(Accelerator::Kvm),
                Err(error) => {
                    tracing::warn!(%error, "the driver zone's processors are emulated, which is slow");
                    Ok(Accelerator::Tcg)
                }
            },
        }
    }

    /// What the broker in the guest is told.
    pub(super) fn begin(&self) -> ToGuest {
        let sandbox = self.config.sandbox.clone();
        let config = BrokerConfig {
            zone_dir: ZONE_DIR.into(),
            worker: WORKER.into(),
            sandbox: sandbox.map(|sandbox| Sandbox { maker: LAUNCHER.into(), ..sandbox }),
            windows: true,
            microvm: None,
            ..self.config.clone()
        };
        ToGuest::Begin { config: Box::new(config), files: self.vm.files.clone() }
    }

    pub(super) const fn patience(&self) -> Duration {
        // An emulated machine on a busy host takes its time.
        Duration::from_secs(120)
    }
}

/// An error and what is behind it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
