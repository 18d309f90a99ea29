//! A driver zone that is a microVM: this process stands in the broker's place on the host.
//!
//! ```text
//! agent ──control.sock──▶ this ──virtio-serial──▶ guest's first process ──▶ broker in the guest
//! tenant ──cuda.sock────▶ this ── greeting, wakes ──▶      "       ──▶ worker in the guest
//! tenant ◀═══════════════ window (one memfd, one PCI device) ═══════════▶ worker in the guest
//! ```
//!
//! It speaks the agent's protocol, so the agent does not know the difference; and it hands a
//! tenant's process its rings, so the shim does not either. It reads what the guest says as from a
//! stranger, and of a tenant only the greeting.
//!
//! * [`Keeper`] has the microVM made by the maker, and a new one when it goes; leases are armed again.
//! * [`Book`] has the leases: order, and what was used in microVMs that are gone.
//! * [`session`] serves one process of a tenant, with a window that serves nobody after it.

mod book;
mod keeper;
mod link;
mod relay;
mod session;
mod zone;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use gpuzone_wire::control::{BrokerConfig, MicroVm};
use gpuzone_zone::files::{PidLock, private_dir, remove};
use gpuzone_zone::maker::{self, Maker};

use crate::paths::ZonePaths;
use crate::{RunError, serve};
use book::Book;
use keeper::Keeper;
use relay::Relay;
pub use zone::MachineZone;

/// Serves the driver zone in the microVM that `vm` describes, until the agent ends it.
pub(crate) async fn run(
    config: BrokerConfig,
    vm: MicroVm,
    handed: Option<OwnedFd>,
) -> Result<(), RunError> {
    let zone_dir = config.zone_dir.clone();
    let zone = |error: io::Error| RunError::Zone(zone_dir.clone(), error);
    private_dir(&zone_dir).map_err(zone)?;
    let paths = ZonePaths::new(zone_dir.clone());
    let _lock = PidLock::take(&paths.lock()).map_err(RunError::Locked)?;
    let book = Book::open(&paths.leases()).map_err(zone)?;
    let line = match handed {
        Some(line) => line,
        None => own_maker(&paths, &vm).map_err(zone)?,
    };
    let maker =
        Maker::connect(line).await.map_err(|error| RunError::Maker("says nothing", error))?;
    let keeper = Keeper::open(config, vm, &paths, maker.clone()).map_err(zone)?;
    let relay = Relay::new(keeper, book);
    let kept = tokio::spawn(Arc::clone(&relay).keep());
    // An agent that asks is answered once the zone serves: a boot is a part of a broker's start.
    relay.serves().await.map_err(zone)?;
    relay.resume_slots().map_err(zone)?;
    let listener = serve::bind(&paths.control_socket()).map_err(zone)?;
    tracing::info!(zone = %zone_dir.display(), "serving, in a microVM");
    tokio::select! {
        served = serve::serve(Arc::clone(&relay), listener) => served.map_err(zone)?,
        () = maker.lost() => {
            let gone = io::ErrorKind::UnexpectedEof.into();
            return Err(RunError::Maker("ended; so does this relay, and the next has another", gone));
        }
    }
    kept.abort();
    maker.close().await;
    remove(&paths.control_socket()).map_err(zone)
}

/// A maker that is a task of this process, where the policy allows that there are no sandboxes.
fn own_maker(paths: &ZonePaths, vm: &MicroVm) -> io::Result<OwnedFd> {
    let template = zone::plain(vm).map_err(io::Error::other)?;
    let (ours, theirs) = maker::line()?;
    let folder = paths.zones();
    tokio::spawn(async move {
        if let Err(error) = maker::serve(&folder, template, theirs).await {
            tracing::error!(%error, "no microVM is made any more");
        }
    });
    Ok(ours)
}
