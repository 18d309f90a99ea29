//! What tenants have used since the agent began, from counters that only live as long as a lease.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use gpuzone_core::{LeaseId, TenantId, Timestamp, UsageCounters};

/// So many tenants that the configuration does not name have series of their own.
pub(super) const MOST: usize = 64;
/// All further ones together; no tenant can have this name.
pub(super) const OTHERS: &str = "(other)";
/// So many leases that are over are remembered, for a status that was read before the end.
const REMEMBERED: usize = 1024;

/// A lease, as its usage is counted.
pub(crate) struct Used<'a> {
    pub(crate) lease: LeaseId,
    pub(crate) tenant: &'a TenantId,
    /// When the lease began.
    pub(crate) created: Timestamp,
    /// Since it began.
    pub(crate) counters: UsageCounters,
}

/// Sums that only grow.
#[derive(Debug)]
pub(super) struct Tenants {
    /// What leases that are older used before is in the ledger, and was an earlier agent's to tell.
    since: Timestamp,
    named: BTreeSet<String>,
    totals: BTreeMap<String, UsageCounters>,
    leases: BTreeMap<LeaseId, UsageCounters>,
    over: VecDeque<LeaseId>,
}

impl Tenants {
    pub(super) fn new(since: Timestamp) -> Self {
        let (named, totals, leases) = Default::default();
        Self { since, named, totals, leases, over: VecDeque::new() }
    }

    /// These have series of their own, whoever else comes.
    pub(super) fn name<'a>(&mut self, tenants: impl Iterator<Item = &'a TenantId>) {
        self.named.extend(tenants.map(ToString::to_string));
        for tenant in &self.named {
            self.totals.entry(tenant.clone()).or_default();
        }
    }

    /// What stands for this tenant on the page.
    pub(super) fn label(&mut self, tenant: &TenantId) -> String {
        let (name, others) = (tenant.as_str(), OTHERS);
        let unnamed = self.totals.keys().filter(|known| !self.named.contains(*known));
        if !self.totals.contains_key(name) && unnamed.filter(|name| *name != others).count() >= MOST
        {
            self.totals.entry(others.to_owned()).or_default();
            return others.to_owned();
        }
        self.totals.entry(name.to_owned()).or_default();
        name.to_owned()
    }

    /// Adds what a lease used since it was last seen.
    pub(super) fn saw(&mut self, used: &Used<'_>) {
        if self.over.contains(&used.lease) {
            return;
        }
        let first = match used.created >= self.since {
            true => UsageCounters::default(),
            false => used.counters,
        };
        let label = self.label(used.tenant);
        let last = self.leases.entry(used.lease).or_insert(first);
        let added = used.counters.since(last);
        // A broker that lost a lease's counters must not make them count twice later.
        *last = last.plus(&added);
        let total = self.totals.entry(label).or_default();
        *total = total.plus(&added);
    }

    /// Forgets a lease; what it used stays in the sum.
    pub(super) fn ended(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        if !self.over.contains(&lease) {
            self.over.truncate(REMEMBERED - 1);
            self.over.push_front(lease);
        }
    }

    pub(super) fn totals(&self) -> BTreeMap<String, UsageCounters> {
        self.totals.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const START: Timestamp = Timestamp::from_nanoseconds(100);

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    fn used(lease: u128, tenant: &TenantId, created: u64, launches: u64) -> Used<'_> {
        Used {
            lease: LeaseId::from_uuid(Uuid::from_u128(lease)),
            tenant,
            created: Timestamp::from_nanoseconds(created),
            counters: UsageCounters { launches, ..UsageCounters::default() },
        }
    }

    fn launches(tenants: &Tenants, name: &str) -> u64 {
        tenants.totals()[name].launches
    }

    #[test]
    fn what_was_used_before_this_agent_is_not_counted_again() {
        let (mut tenants, acme) = (Tenants::new(START), tenant("acme"));
        tenants.saw(&used(1, &acme, 50, 1000));
        tenants.saw(&used(1, &acme, 50, 1007));
        tenants.saw(&used(2, &acme, 150, 3));
        assert_eq!(launches(&tenants, "acme"), 10);
    }

    #[test]
    fn a_status_from_before_the_end_adds_nothing_after_it() {
        let (mut tenants, acme) = (Tenants::new(START), tenant("acme"));
        tenants.saw(&used(1, &acme, 150, 5));
        let lease = LeaseId::from_uuid(Uuid::from_u128(1));
        tenants.ended(lease);
        tenants.saw(&used(1, &acme, 150, 5));
        assert_eq!(launches(&tenants, "acme"), 5);
    }

    #[test]
    fn tenants_without_end_share_one_series() {
        let mut tenants = Tenants::new(START);
        tenants.name([tenant("acme")].iter());
        for n in 0..1000 {
            tenants.saw(&used(n, &tenant(&format!("t{n}")), 150, 1));
        }
        tenants.saw(&used(5000, &tenant("acme"), 150, 7));
        // The named one, the first others, and all the rest.
        assert_eq!(tenants.totals().len(), 1 + MOST + 1);
        assert_eq!(launches(&tenants, OTHERS), 1000 - MOST as u64);
        assert_eq!(launches(&tenants, "acme"), 7);
        assert!(OTHERS.parse::<TenantId>().is_err());
    }

    proptest! {
        /// Whatever a broker says, in whichever order, no sum ever goes down, and none is more
        /// than the largest of each lease's counters together.
        #[test]
        fn sums_only_grow(steps in prop::collection::vec((0..4_u128, 0..1000_u64, any::<bool>()), 0..60)) {
            let (mut tenants, acme) = (Tenants::new(START), tenant("acme"));
            let (mut before, mut largest) = (0, BTreeMap::new());
            for (lease, count, ends) in steps {
                tenants.saw(&used(lease, &acme, 150, count));
                let most = largest.entry(lease).or_insert(0);
                *most = count.max(*most);
                if ends {
                    tenants.ended(LeaseId::from_uuid(Uuid::from_u128(lease)));
                }
                let now = launches(&tenants, "acme");
                prop_assert!(now >= before);
                before = now;
            }
            prop_assert!(before <= largest.values().sum());
        }
    }
}
