//! What happened since the agent began.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_api::ErrorKind;
use gpuzone_core::{LeaseId, TenantId, UsageCounters};
use gpuzone_wire::scrub::ScrubReport;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use super::tenants::{Tenants, Used};
use crate::usage::now;

type Labels = [(&'static str, &'static str); 1];
type Seconds = Counter<f64, AtomicU64>;

/// How a scrub ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubResult {
    /// The memory is clear.
    Clear,
    /// It is not, or that is not shown.
    Failed,
}

/// Counters of one agent; clones count together.
#[derive(Clone, Debug)]
pub struct Counts {
    scrubs: Family<Labels, Counter>,
    scrubbed: Counter,
    scrubbing: Seconds,
    refusals: Family<Labels, Counter>,
    audit_failures: Counter,
    ledger_failures: Counter,
    workers_ended: Counter,
    brokers_replaced: Counter,
    tenants: Arc<Mutex<Tenants>>,
}

impl ScrubResult {
    const ALL: [Self; 2] = [Self::Clear, Self::Failed];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Clear => "clear",
            Self::Failed => "failed",
        }
    }
}

impl Default for Counts {
    fn default() -> Self {
        let counts = Self {
            scrubs: Family::default(),
            scrubbed: Counter::default(),
            scrubbing: Seconds::default(),
            refusals: Family::default(),
            audit_failures: Counter::default(),
            ledger_failures: Counter::default(),
            workers_ended: Counter::default(),
            brokers_replaced: Counter::default(),
            tenants: Arc::new(Mutex::new(Tenants::new(now()))),
        };
        // There from the start: a rate over a series that appears with its first event misses it.
        for result in ScrubResult::ALL {
            drop(counts.scrubs.get_or_create(&[("result", result.as_str())]));
        }
        for kind in ErrorKind::ALL {
            drop(counts.refusals.get_or_create(&[("kind", kind.as_str())]));
        }
        counts
    }
}

impl Counts {
    fn tenants(&self) -> MutexGuard<'_, Tenants> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what a scrub did on one GPU.
    pub fn scrubbed(&self, report: &ScrubReport) {
        let result = match report.failure {
            None => ScrubResult::Clear,
            Some(_) => ScrubResult::Failed,
        };
        self.scrub(result);
        self.scrubbed.inc_by(report.overwritten.get());
        self.scrubbing.inc_by(report.nanoseconds as f64 / 1e9);
    }

    /// Counts a scrub of one GPU of which nothing more is known.
    pub fn scrub(&self, result: ScrubResult) {
        self.scrubs.get_or_create(&[("result", result.as_str())]).inc();
    }

    /// Counts a request that got no lease.
    pub fn refused(&self, kind: ErrorKind) {
        self.refusals.get_or_create(&[("kind", kind.as_str())]).inc();
    }

    /// Counts something that the audit log did not take.
    pub fn audit_failed(&self) {
        self.audit_failures.inc();
    }

    /// Counts something that the ledger did not take.
    pub fn ledger_failed(&self) {
        self.ledger_failures.inc();
    }

    /// Counts workers that ended before their lease did.
    pub fn workers_ended(&self, count: u32) {
        self.workers_ended.inc_by(count.into());
    }

    /// Counts a broker in the place of one that died.
    pub fn broker_replaced(&self) {
        self.brokers_replaced.inc();
    }

    /// These tenants have series of their own, whoever else comes.
    pub fn name_tenants<'a>(&self, tenants: impl Iterator<Item = &'a TenantId>) {
        self.tenants().name(tenants);
    }

    /// What leases used so far.
    pub(crate) fn used<'a>(&self, leases: impl Iterator<Item = Used<'a>>) {
        let mut tenants = self.tenants();
        leases.for_each(|used| tenants.saw(&used));
    }

    /// A lease's counters are its last.
    pub(crate) fn ended(&self, lease: LeaseId) {
        self.tenants().ended(lease);
    }

    /// What stands for a tenant on the page.
    pub(super) fn label(&self, tenant: &TenantId) -> String {
        self.tenants().label(tenant)
    }

    /// What each tenant has used, by its label.
    pub(super) fn totals(&self) -> BTreeMap<String, UsageCounters> {
        self.tenants().totals()
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        add(
            "audit_write_failures",
            "Events, or their way to the disk, that the audit log did not take",
            &self.audit_failures,
        );
        add(
            "ledger_write_failures",
            "Entries that the ledger did not take; usage is tried again",
            &self.ledger_failures,
        );
        add("workers_ended_early", "Workers that ended before their lease", &self.workers_ended);
        add("brokers_replaced", "Brokers that died and were replaced", &self.brokers_replaced);
        registry.register(
            "lease_refusals",
            "Requests that got no lease, by the kind of error",
            self.refusals.clone(),
        );
        registry.register("scrubs", "Scrubs of a GPU, by what they showed", self.scrubs.clone());
        registry.register_with_unit(
            "scrubbed",
            "Memory that scrubs overwrote",
            Unit::Bytes,
            self.scrubbed.clone(),
        );
        registry.register_with_unit(
            "scrubbing",
            "Time that scrubs took",
            Unit::Seconds,
            self.scrubbing.clone(),
        );
    }
}
