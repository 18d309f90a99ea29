//! The node's GPUs, for those who look once and those who watch.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use gpuzone_api::agent::v1 as proto;
use gpuzone_api::{AgentError, ErrorKind};
use gpuzone_core::{GpuUuid, Vgpu};
use gpuzone_hw::GpuUse;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use crate::book::{Book, GpuRoom};
use crate::convert::{self, Handover};
use crate::errors::internal;
use crate::gpus::Gpus;
use crate::leases::Leases;

/// How many may watch at once: a device plugin, and some who look for a while.
const WATCHERS: usize = 16;
/// After so long without a change, the state is sent again.
const SIGN_OF_LIFE: Duration = Duration::from_secs(4);
/// Whoever hears nothing for so long may take the agent for dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(12);

/// What a watch sends.
pub(crate) type Watching =
    Pin<Box<dyn Stream<Item = Result<proto::WatchGpusReply, Status>> + Send + 'static>>;

/// Those who watch the node's GPUs.
#[derive(Clone)]
pub(crate) struct Watchers {
    leases: Arc<Leases>,
    gpus: Arc<Gpus>,
    driver: &'static str,
    places: Arc<Semaphore>,
    /// Says that the agent ends.
    closing: watch::Receiver<bool>,
}

impl Watchers {
    pub(crate) fn new(
        leases: Arc<Leases>,
        gpus: Arc<Gpus>,
        driver: &'static str,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self { leases, gpus, driver, places: Arc::new(Semaphore::new(WATCHERS)), closing }
    }

    /// A stream for one more.
    ///
    /// # Errors
    /// When too many watch already.
    pub(crate) fn watch(&self) -> Result<Watching, AgentError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| AgentError {
            kind: ErrorKind::Unavailable,
            message: format!("{WATCHERS} clients watch the GPUs already; try again later"),
        })?;
        // No room for a second message: one that is not taken yet keeps the next from being made,
        // so whoever is slow gets the newest state.
        let (send, stream) = tokio::sync::mpsc::channel(1);
        tokio::spawn(self.clone().send_all(send, place));
        Ok(Box::pin(ReceiverStream::new(stream)))
    }

    async fn send_all(
        self,
        to: tokio::sync::mpsc::Sender<Result<proto::WatchGpusReply, Status>>,
        _place: OwnedSemaphorePermit,
    ) {
        let mut versions = self.leases.health_versions();
        let mut closing = self.closing.clone();
        loop {
            // Whether there is room is asked before the state is.
            let room = tokio::select! {
                room = to.reserve() => room,
                _ = closing.wait_for(|closing| *closing) => return,
            };
            let Ok(room) = room else { return };
            let version = *versions.borrow_and_update();
            room.send(self.state(version).await.map_err(Status::from));
            tokio::select! {
                changed = versions.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(SIGN_OF_LIFE) => {}
                () = to.closed() => return,
                _ = closing.wait_for(|closing| *closing) => return,
            }
        }
    }

    async fn state(&self, version: u64) -> Result<proto::WatchGpusReply, AgentError> {
        Ok(proto::WatchGpusReply {
            version,
            driver: self.driver.to_owned(),
            gpus: listed(&self.leases, &self.gpus, &BTreeMap::new()).await?,
            silence_limit_ms: u32::try_from(SILENCE_LIMIT.as_millis()).unwrap_or(u32::MAX),
        })
    }
}

/// All GPUs as they are now, with what is in use of those of which that is known.
pub(crate) async fn listed(
    leases: &Leases,
    gpus: &Gpus,
    used: &BTreeMap<GpuUuid, GpuUse>,
) -> Result<Vec<proto::Gpu>, AgentError> {
    let (inventory, vfio) = (&leases.inventory, gpus.vfio());
    let rooms = rooms(leases).await?;
    let room = |unit: GpuUuid| {
        rooms.get(&unit).cloned().ok_or_else(|| internal(format!("{unit} is in no book")))
    };
    let listed = inventory.gpus().iter().map(|gpu| {
        let partition = |instance| Ok(convert::partition(instance, &room(instance.uuid)?));
        let vgpu = |vgpu: &Vgpu| {
            let (id, room) = (gpus.vgpu_id(vgpu.uuid), room(vgpu.uuid)?);
            Ok(convert::vgpu(vgpu, id, &room, vfio.get(&vgpu.uuid)))
        };
        let instances = inventory.instances(gpu.uuid).map(partition);
        let partitions = instances.chain(inventory.vgpus(gpu.uuid).map(vgpu));
        let partitions = partitions.collect::<Result<_, AgentError>>()?;
        let (exposure, vfio) = (inventory.exposure(gpu.uuid), vfio.get(&gpu.uuid));
        let kept_from_pods = gpus.kept_from_pods(gpu.uuid);
        let handover = Handover { exposure, vfio, kept_from_pods, partitions };
        Ok(convert::gpu(gpu, handover, room(gpu.uuid)?, used.get(&gpu.uuid)))
    });
    listed.collect()
}

/// What is left of each GPU and each part of one, at one moment.
async fn rooms(leases: &Leases) -> Result<BTreeMap<GpuUuid, GpuRoom>, AgentError> {
    let units: Vec<GpuUuid> = leases.inventory.units().collect();
    let read = move |book: &mut Book| {
        units.into_iter().filter_map(|unit| Some((unit, book.room(unit)?))).collect()
    };
    Ok(leases.book.with(read).await?)
}
