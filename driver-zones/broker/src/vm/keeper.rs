//! The microVM: made by the maker, or taken over from an earlier owner.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::Duration;

use gpuzone_wire::control::{Accelerator as Wanted, BrokerConfig, MicroVm, Sandbox};
use gpuzone_wire::zone_link::ToGuest;
use gpuzone_zone::Exit;
use gpuzone_zone::files::private_dir;
use gpuzone_zone::maker::{Files, MadeZone, Maker, MakerError};
use gpuzone_zone::microvm::{
    Accelerator, CONTROL, DigestError, MicroVmError, MicroVms, PROBE_LIMIT, ProbeError, Windows,
    check_digest,
};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::zone::{self, NAME, PROBE};
use crate::paths::ZonePaths;

/// In the guest.
const ZONE_DIR: &str = "/run/gpu-zone/zone";
const WORKER: &str = "/usr/bin/gpu-zone-worker";
const LAUNCHER: &str = "/usr/bin/gpu-zone-sandbox";
/// Most bytes that are read of what a probe says.
const LONGEST: u64 = 64 << 10;

/// Why there is no microVM.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error(transparent)]
    Accelerator(#[from] ProbeError),
    #[error("{0}")]
    Zone(String),
    #[error(transparent)]
    Made(#[from] MakerError),
    #[error(transparent)]
    Machine(#[from] MicroVmError),
    #[error("its control port cannot be had: {0}")]
    Port(#[from] io::Error),
    #[error(transparent)]
    File(#[from] DigestError),
}

/// Has the microVM of a driver zone made.
#[derive(Debug)]
pub(super) struct Keeper {
    config: BrokerConfig,
    pub(super) vm: MicroVm,
    maker: Maker,
    vms: MicroVms,
    accelerator: OnceCell<Accelerator>,
}

impl Keeper {
    pub(super) fn open(
        config: BrokerConfig,
        vm: MicroVm,
        paths: &ZonePaths,
        maker: Maker,
    ) -> io::Result<Self> {
        let folder = paths.machine();
        private_dir(&folder)?;
        let (vms, accelerator) = (zone::vms(paths, &vm), OnceCell::new());
        Ok(Self { config, vm, maker, vms, accelerator })
    }

    /// The microVM that runs, or a new one; and whether it is one of before.
    pub(super) async fn machine(&self) -> Result<(MadeZone, bool), KeepError> {
        if let Some(zone) = self.there() {
            if !zone.is_gone()? {
                tracing::info!(process = zone.process().pid, "the microVM lives and is kept");
                // Whoever had it started may not have come to this.
                self.begin(&zone, Accelerator::Kvm).await?;
                return Ok((zone, true));
            }
            zone.end().await?;
        }
        self.check_files().await?;
        let accelerator = *self.accelerator.get_or_try_init(|| self.choose()).await?;
        let files = self.vms.files(NAME, &[])?;
        let zone = self.maker.make(NAME, accelerator.as_str(), files).await?;
        for missing in zone.start().await? {
            tracing::warn!(%missing, "the hypervisor runs without a part of its confinement, which the policy allows");
        }
        self.begin(&zone, accelerator).await?;
        Ok((zone, false))
    }

    /// Lets it run. One that cannot be told so is ended: the next one may be.
    async fn begin(&self, zone: &MadeZone, accelerator: Accelerator) -> Result<(), KeepError> {
        let (vms, vm) = (self.vms.clone(), zone::machine(&self.vm, accelerator));
        let begun = tokio::task::spawn_blocking(move || vms.begin(NAME, &vm)).await;
        let begun = begun.map_err(io::Error::other)?;
        if begun.is_err() {
            self.end(zone).await?;
        }
        Ok(begun?)
    }

    /// The microVM, if there is one.
    pub(super) fn there(&self) -> Option<MadeZone> {
        self.maker.get(NAME)
    }

    /// Ends the microVM, whatever it does.
    pub(super) async fn end(&self, zone: &MadeZone) -> io::Result<Exit> {
        if !zone.is_gone()? {
            let vms = self.vms.clone();
            let asked = tokio::task::spawn_blocking(move || vms.ask_to_end(NAME)).await;
            asked.map_err(io::Error::other)?;
        }
        let exit = zone.end().await?;
        self.vms.clear(NAME)?;
        Ok(exit)
    }

    /// The guest's control port: one connection at a time, which an owner can make again. To be called
    /// where waiting holds nobody up.
    pub(super) fn channel(&self) -> impl FnOnce() -> io::Result<OwnedFd> + Send + use<> {
        let (vms, patience) = (self.vms.clone(), self.patience());
        move || Ok(vms.connect(NAME, CONTROL, patience)?.into())
    }

    pub(super) fn windows(&self) -> Windows {
        Windows::new(&self.vms, NAME, self.vm.windows)
    }

    /// What the hypervisor said last.
    pub(super) fn last_word(&self) -> String {
        self.vms.last_word(NAME)
    }

    /// Who runs the microVM.
    pub(super) fn hypervisor(&self) -> &'static str {
        self.vms.hypervisor().as_str()
    }

    /// Fails unless the files are those that the configuration means.
    async fn check_files(&self) -> Result<(), KeepError> {
        let digests = self.vm.digests.clone();
        let checked = tokio::task::spawn_blocking(move || {
            digests.iter().try_for_each(|(path, digest)| check_digest(path, digest))
        });
        Ok(checked.await.map_err(io::Error::other)??)
    }

    /// By a guest that was seen to run, not by a file that opens.
    async fn choose(&self) -> Result<Accelerator, KeepError> {
        match self.vm.accelerator {
            Wanted::Tcg => Ok(Accelerator::Tcg),
            Wanted::Kvm => self.probe().await.map(|()| Accelerator::Kvm),
            // Who emulates nothing has no second choice.
            Wanted::Auto if self.vms.hypervisor().accelerators() == [Accelerator::Kvm] => {
                self.probe().await.map(|()| Accelerator::Kvm)
            }
            Wanted::Auto => match self.probe().await {
                Ok(()) => Ok(Accelerator::Kvm),
                Err(KeepError::Accelerator(error)) => {
                    tracing::warn!(%error, "the driver zone's processors are emulated, which is slow");
                    Ok(Accelerator::Tcg)
                }
                Err(error) => Err(error),
            },
        }
    }

    /// In a zone of its own, as the machine will have one.
    async fn probe(&self) -> Result<(), KeepError> {
        if let Some(left) = self.maker.get(PROBE) {
            left.end().await?;
        }
        let ((word, stdout), (errors, stderr)) = (io::pipe()?, io::pipe()?);
        let probe = self.vms.hypervisor().probe();
        let stdin = probe.file()?.into();
        let (stdout, stderr) = (stdout.into(), stderr.into());
        let files = Files { stdin, stdout, stderr, inherit: Vec::new() };
        let zone = self.maker.make(PROBE, PROBE, files).await?;
        let ended = match zone.start().await {
            Ok(_) | Err(MakerError::Ended) => timeout(PROBE_LIMIT, zone.ended()).await.ok(),
            Err(error) => return Err(error.into()),
        };
        if ended.is_none() {
            zone.end().await?;
        }
        let ended = ended.map(|exit| match exit {
            Exit::Code(code) => (Some(code), exit.to_string()),
            Exit::Signal(_) | Exit::Unknown => (None, exit.to_string()),
        });
        // It has ended, so neither keeps this process waiting.
        let (mut said, mut wrong) = (Vec::new(), Vec::new());
        word.take(LONGEST).read_to_end(&mut said)?;
        errors.take(LONGEST).read_to_end(&mut wrong)?;
        Ok(probe.judged(Accelerator::Kvm, ended, &said, &wrong)?)
    }

    /// What the broker in the guest is told.
    pub(super) fn begin_broker(&self) -> ToGuest {
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
