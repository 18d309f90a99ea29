//! The node, looked at for one page.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gpuzone_core::{GpuUuid, Inventory};
use gpuzone_hw::GpuUse;
use gpuzone_wire::control::LeaseStatus;
use tokio::sync::Mutex;

use super::page::{GpuSeen, Holds, Seen, page};
use super::tenants::Used;
use crate::book::{Book, GpuRoom};
use crate::errors::internal;
use crate::gpus::Gpus;
use crate::journal::HeldLease;
use crate::leases::Leases;

/// How long the driver may take to say what is in use.
const DRIVER_LIMIT: Duration = Duration::from_secs(2);

/// Where a page comes from.
pub(crate) struct Source {
    leases: Arc<Leases>,
    gpus: Arc<Gpus>,
    host: String,
    /// Held while the driver is asked. One that hangs costs one thread and not one a scrape:
    /// the same threads write the ledger and the audit log.
    asking: Arc<Mutex<()>>,
}

impl Source {
    pub(crate) fn new(leases: Arc<Leases>, gpus: Arc<Gpus>) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { leases, gpus, host, asking: Arc::default() }
    }

    /// The page as it is now, as OpenMetrics.
    ///
    /// # Errors
    /// When the book of leases failed.
    pub(crate) async fn page(&self) -> Result<String, gpuzone_api::AgentError> {
        let statuses = self.leases.link.status().await;
        let broker_answers = statuses.is_ok();
        let statuses = statuses.unwrap_or_default();
        let inventory = self.leases.inventory.clone();
        let read = move |book: &mut Book| (book.leases(), rooms(book, &inventory));
        let (held, rooms) = self.leases.book.with(read).await?;
        let used = self.used().await;
        let driver_answers = used.is_some();
        let mut used = used.unwrap_or_default();
        let inventory = self.leases.inventory.gpus();
        let gpus = inventory.iter().zip(rooms).filter_map(|(gpu, room)| {
            Some(GpuSeen { gpu: gpu.clone(), room: room?, used: used.remove(&gpu.uuid) })
        });
        let gpus = gpus.collect();
        let mut states = BTreeMap::new();
        for held in &held {
            *states.entry(held.lease.state).or_default() += 1;
        }
        let seen = Seen {
            host: self.host.clone(),
            driver_version: self.gpus.driver_version().to_owned(),
            gpus,
            states,
            tenants: self.tenants(&held, &statuses),
            broker_answers,
            driver_answers,
            events_heard: self.gpus.hears_events(),
        };
        page(&seen, &self.leases.audit.counts).map_err(|error| internal(error.to_string()))
    }

    /// What is in use; `None` when the driver does not say so in time.
    async fn used(&self) -> Option<BTreeMap<GpuUuid, GpuUse>> {
        let turn = Arc::clone(&self.asking).try_lock_owned().ok()?;
        let gpus = Arc::clone(&self.gpus);
        let asked = tokio::spawn(async move {
            let used = gpus.used().await;
            drop(turn);
            used
        });
        tokio::time::timeout(DRIVER_LIMIT, asked).await.ok()?.ok()
    }

    /// What tenants hold; what they used is counted on the way.
    fn tenants(&self, held: &[HeldLease], statuses: &[LeaseStatus]) -> BTreeMap<String, Holds> {
        let counts = &self.leases.audit.counts;
        let of = |held: &HeldLease| statuses.iter().find(|s| s.lease == held.lease.id);
        counts.used(held.iter().filter_map(|held| {
            let (lease, tenant) = (held.lease.id, &held.lease.tenant);
            let (created, counters) = (held.holder.created, of(held)?.counters);
            Some(Used { lease, tenant, created, counters })
        }));
        // Those that hold nothing now are there with zeros.
        let mut tenants: BTreeMap<String, Holds> =
            counts.totals().into_keys().map(|name| (name, Holds::default())).collect();
        for held in held {
            let holds = tenants.entry(counts.label(&held.lease.tenant)).or_default();
            holds.leases += 1;
            let grants = held.lease.placement.grants();
            holds.reserved += grants.iter().map(|grant| grant.memory.get()).sum::<u64>();
            holds.used += of(held).map_or(0, |status| status.used.get());
        }
        tenants
    }
}

fn rooms(book: &Book, inventory: &Inventory) -> Vec<Option<GpuRoom>> {
    inventory.gpus().iter().map(|gpu| book.room(gpu.uuid)).collect()
}
