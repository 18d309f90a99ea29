//! The ledger, from async code: every call runs where it may block.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use gpuzone_api::ErrorKind;
use gpuzone_core::{Inventory, LeaseId, TenantId, Timestamp, UsageCounters};
use gpuzone_ledger::{GrantRecord, Head, LeaseRecord, Ledger, OpenError, WriteError};

use crate::journal::HeldLease;
use crate::metrics::Counts;

/// Where usage is written.
#[derive(Clone)]
pub struct UsageBook {
    ledger: Arc<Mutex<Ledger>>,
    /// Ends that the ledger has not taken, as while its disk is full. Few: without a ledger no
    /// new lease begins.
    unwritten: Arc<Mutex<Vec<LastBill>>>,
    /// What is counted of it, and of all else.
    pub counts: Counts,
}

/// A lease's last usage, and its end.
#[derive(Clone, Debug)]
struct LastBill {
    lease: LeaseId,
    at: Timestamp,
    used: Option<Used>,
    reason: String,
}

/// What one lease has used so far.
#[derive(Clone, Debug)]
pub struct Used {
    /// Which.
    pub lease: LeaseId,
    /// Since its beginning.
    pub counters: UsageCounters,
    /// Unsupported calls by name, since its beginning.
    pub refused_by_name: BTreeMap<String, u64>,
}

/// Now.
pub fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanoseconds = since_epoch.map_or(0, |since| since.as_nanos());
    Timestamp::from_nanoseconds(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

impl UsageBook {
    /// Opens the ledger at `path`.
    ///
    /// # Errors
    /// When it is no ledger or cannot be written.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let ledger = Arc::new(Mutex::new(Ledger::open(path)?));
        Ok(Self { ledger, unwritten: Arc::default(), counts: Counts::default() })
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Ledger) -> Result<T, WriteError> + Send + 'static,
    ) -> Result<T, WriteError> {
        let ledger = Arc::clone(&self.ledger);
        let work = move || work(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done.inspect_err(|_| self.counts.ledger_failed()),
            // Not cancelled by anybody, so it panicked; the panic goes on here.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Begins to bill a lease.
    ///
    /// # Errors
    /// When the ledger does not take it.
    pub async fn begin(
        &self,
        held: &HeldLease,
        inventory: &Inventory,
        start: Timestamp,
    ) -> Result<(), WriteError> {
        let grants = held.lease.placement.grants().iter().filter_map(|grant| {
            let gpu = inventory.unit(grant.gpu)?.gpu;
            let (gpu_index, gpu_name, backing) = (gpu.index, gpu.name.clone(), gpu.backing);
            Some(GrantRecord { grant: *grant, gpu_index, gpu_name, backing })
        });
        let record = LeaseRecord {
            id: held.lease.id,
            tenant: held.lease.tenant.clone(),
            zone: held.lease.zone,
            program: held.holder.program.clone(),
            grants: grants.collect(),
            start,
        };
        self.with(move |ledger| ledger.begin_lease(&record)).await
    }

    /// Writes down what leases have used until now. A lease that was never begun is left out.
    ///
    /// # Errors
    /// When the ledger does not take it.
    pub async fn record(&self, used: Vec<Used>) -> Result<u32, WriteError> {
        let now = now();
        self.with(move |ledger| {
            let mut leases = 0;
            for used in used {
                leases += u32::from(write(ledger, now, &used)?);
            }
            Ok(leases)
        })
        .await
    }

    /// Writes down last usage that the ledger has not taken before; returns of which leases.
    ///
    /// # Errors
    /// When the ledger does not take it this time either.
    pub async fn write_late(&self) -> Result<Vec<LeaseId>, WriteError> {
        let unwritten = Arc::clone(&self.unwritten);
        self.with(move |ledger| {
            let mut unwritten = unwritten.lock().unwrap_or_else(PoisonError::into_inner);
            for bill in unwritten.iter() {
                write_last(ledger, bill)?;
            }
            Ok(unwritten.drain(..).map(|bill| bill.lease).collect())
        })
        .await
    }

    /// Writes down a lease's last usage and its end; whether the ledger took it. What it does not
    /// take now is kept until it does.
    pub async fn close(&self, lease: LeaseId, used: Option<Used>, reason: &str) -> bool {
        let bill = LastBill { lease, at: now(), used, reason: reason.to_owned() };
        let written = bill.clone();
        let taken = self.with(move |ledger| write_last(ledger, &written)).await;
        if let Err(error) = &taken {
            tracing::error!(%lease, %error, ?bill, "a lease's last usage is kept until it can be written");
            self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).push(bill);
        }
        taken.is_ok()
    }

    /// Closes a lease; one that was never begun, or is closed, is no error.
    ///
    /// # Errors
    /// When the ledger does not take it.
    pub async fn end(&self, lease: LeaseId, at: Timestamp, reason: &str) -> Result<(), WriteError> {
        let reason = reason.to_owned();
        self.with(move |ledger| known(ledger.end_lease(lease, at, &reason)).map(drop)).await
    }

    /// Counts a refusal.
    pub async fn refused(&self, tenant: &TenantId, kind: ErrorKind, message: &str) {
        let (tenant, message) = (tenant.clone(), message.to_owned());
        let counted =
            self.with(move |ledger| ledger.refusal(&tenant, now(), kind.as_str(), &message));
        if let Err(error) = counted.await {
            tracing::error!(%error, "a refusal could not be written down");
        }
    }

    /// Records where the audit log ends.
    ///
    /// # Errors
    /// When the ledger does not take it.
    pub async fn set_audit_head(&self, head: Head) -> Result<(), WriteError> {
        self.with(move |ledger| ledger.set_audit_head(&head)).await
    }

    /// Where the audit log ended when that was last recorded.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn audit_head(&self) -> Result<Option<Head>, WriteError> {
        self.with(|ledger| ledger.audit_head()).await
    }

    /// Leases that are not closed, with the time up to which they are recorded.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn open_leases(&self) -> Result<BTreeMap<LeaseId, Timestamp>, WriteError> {
        Ok(self.with(|ledger| ledger.open_leases()).await?.into_iter().collect())
    }
}

/// Whether the ledger knows the lease that something was written about.
fn known(written: Result<(), WriteError>) -> Result<bool, WriteError> {
    match written {
        Ok(()) => Ok(true),
        Err(WriteError::UnknownLease(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn write(ledger: &mut Ledger, at: Timestamp, used: &Used) -> Result<bool, WriteError> {
    known(ledger.record(used.lease, at, &used.counters, &used.refused_by_name))
}

fn write_last(ledger: &mut Ledger, bill: &LastBill) -> Result<(), WriteError> {
    if let Some(used) = &bill.used {
        write(ledger, bill.at, used)?;
    }
    known(ledger.end_lease(bill.lease, bill.at, &bill.reason)).map(drop)
}

#[cfg(test)]
mod tests {
    use gpuzone_core::{Inventory, Lease, LeaseState, NodeState, Request, TenantQuota};
    use gpuzone_ledger::Filter;
    use gpuzone_zone::ProcessId;
    use uuid::Uuid;

    use super::*;
    use crate::journal::{HeldBy, Holder};

    fn inventory() -> Inventory {
        let gpu = gpuzone_core::Gpu {
            uuid: gpuzone_core::GpuUuid::from_bytes([1; 16]),
            index: 0,
            name: "gpu-zone Simulated GPU".into(),
            pci: "0000:01:00.0".parse().unwrap(),
            memory: gpuzone_core::MemoryBytes::gib(16),
            compute_capability: gpuzone_core::ComputeCapability { major: 9, minor: 0 },
            numa_node: None,
            nvlink_peers: Default::default(),
            mig_capable: false,
            backing: gpuzone_core::GpuBacking::Simulated,
        };
        Inventory::new(vec![gpu]).unwrap()
    }

    fn held() -> HeldLease {
        let request = Request {
            tenant: "acme".parse().unwrap(),
            gpus: gpuzone_core::GpuCount::ONE,
            memory: None,
            share: None,
            exposure: gpuzone_core::Exposure::Mediated,
            time: Default::default(),
            model: None,
        };
        let placement = NodeState::new(inventory()).place(&request).unwrap();
        let tenant = request.tenant.clone();
        let demand = gpuzone_core::Demand { tenant, placement, time: request.time };
        let quota = TenantQuota::default();
        let admitted = gpuzone_core::admit(Some(&quota), Default::default(), demand).unwrap();
        let demand = admitted.demand();
        let lease = Lease {
            id: LeaseId::from_uuid(Uuid::from_u128(1)),
            tenant: demand.tenant.clone(),
            zone: gpuzone_core::ZoneId::from_uuid(Uuid::from_u128(1)),
            placement: demand.placement.clone(),
            time: demand.time,
            state: LeaseState::Active,
        };
        let by = HeldBy::Process(ProcessId::own().unwrap());
        let holder = Holder {
            by,
            program: "app".into(),
            created: now(),
            trouble: String::new(),
            zone: None,
        };
        HeldLease { lease, holder }
    }

    #[tokio::test]
    async fn an_end_that_the_ledger_does_not_take_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let usage = UsageBook::open(&path).unwrap();
        let held = held();
        usage.begin(&held, &inventory(), now()).await.unwrap();
        let rename = |from: &str, to: &str| {
            let database = rusqlite::Connection::open(&path).unwrap();
            database.execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}")).unwrap();
        };
        rename("intervals", "gone");
        let counters = UsageCounters { launches: 7, ..Default::default() };
        let used = Used { lease: held.lease.id, counters, refused_by_name: BTreeMap::new() };
        assert!(!usage.close(held.lease.id, Some(used), "its program ended").await);
        assert!(usage.write_late().await.is_err(), "the ledger still refuses");
        rename("gone", "intervals");
        assert_eq!(usage.write_late().await.unwrap(), [held.lease.id]);
        assert_eq!(usage.write_late().await.unwrap(), []);
        let ledger = Ledger::open_read_only(&path).unwrap();
        let report = ledger.report(&Filter::default()).unwrap();
        assert_eq!(report.leases.len(), 1);
        assert_eq!(report.leases[0].end_reason.as_deref(), Some("its program ended"));
        let csv = report.csv(gpuzone_ledger::By::Tenant).unwrap();
        assert!(csv.contains(",7,"), "{csv}");
    }
}
