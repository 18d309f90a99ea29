//! The ledger, from async code: every call runs where it may block.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use gpuzone_api::ErrorKind;
use gpuzone_core::{Inventory, LeaseId, TenantId, Timestamp, UsageCounters};
use gpuzone_ledger::{GrantRecord, Head, LeaseRecord, Ledger, OpenError, WriteError};

use crate::journal::HeldLease;

/// Where usage is written.
#[derive(Clone)]
pub struct UsageBook {
    ledger: Arc<Mutex<Ledger>>,
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
        Ok(Self { ledger: Arc::new(Mutex::new(Ledger::open(path)?)) })
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Ledger) -> Result<T, WriteError> + Send + 'static,
    ) -> Result<T, WriteError> {
        let ledger = Arc::clone(&self.ledger);
        let work = move || work(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
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
            let gpu = inventory.gpu(grant.gpu)?;
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
            for Used { lease, counters, refused_by_name } in used {
                match ledger.record(lease, now, &counters, &refused_by_name) {
                    Ok(()) => leases += 1,
                    Err(WriteError::UnknownLease(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(leases)
        })
        .await
    }

    /// Closes a lease; one that was never begun, or is closed, is no error.
    ///
    /// # Errors
    /// When the ledger does not take it.
    pub async fn end(&self, lease: LeaseId, at: Timestamp, reason: &str) -> Result<(), WriteError> {
        let reason = reason.to_owned();
        self.with(move |ledger| match ledger.end_lease(lease, at, &reason) {
            Err(WriteError::UnknownLease(_)) => Ok(()),
            other => other,
        })
        .await
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
