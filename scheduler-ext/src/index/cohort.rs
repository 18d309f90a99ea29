//! Cohorts: quotas that lend each other what they do not use of what is guaranteed to them.
//!
//! Who borrowed and then leaves, because its quota is deleted or changed or its labels are, still has
//! the GPUs. So what its namespace holds counts against the cohort until it is gone; else the others
//! could borrow the same once more. Of quotas that were deleted before this process began nothing is
//! known: there whatever is held by namespaces that no quota holds for counts against every cohort.

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_core::Limits;

use super::quota::{CohortGate, Quota, What};
use super::{Amount, Index, Usage, WithoutQuota};

/// Namespaces that left, by cohort.
#[derive(Clone, Debug, Default)]
pub(super) struct Left(BTreeMap<String, BTreeSet<String>>);

impl Left {
    /// A namespace that holds nothing any more.
    pub(super) fn forget(&mut self, namespace: &str) {
        self.0.retain(|_, namespaces| {
            namespaces.remove(namespace);
            !namespaces.is_empty()
        });
    }
}

impl Index {
    /// A quota that may hold for no namespace of those any more that it holds for.
    pub(super) fn note_left_of(&mut self, quota: &str) {
        self.note_left(|name, of| (name == quota).then(|| of.namespaces.iter().cloned().collect()));
    }

    /// Namespaces that may leave a quota. One that stays, in that or in another of the cohort, is counted
    /// there.
    pub(super) fn note_left(&mut self, which: impl Fn(&str, &Quota) -> Option<Vec<String>>) {
        for (name, quota) in &self.quotas {
            let (Some((cohort, _)), Some(namespaces)) = (quota.cohort(), which(name, quota)) else {
                continue;
            };
            let hold = namespaces.into_iter().filter(|name| self.usage.contains_key(name));
            self.left.0.entry(cohort.to_owned()).or_default().extend(hold);
        }
    }

    /// What is held by who left a cohort.
    fn left_in(&self, cohort: &str, freed: &BTreeMap<String, Usage>) -> Amount {
        let member = |namespace: &str| {
            let mut of = self.quotas.values().filter(|q| q.namespaces.contains(namespace));
            of.any(|quota| quota.cohort().is_some_and(|(name, _)| name == cohort))
        };
        let left = self.left.0.get(cohort);
        let refused = self.settings.without_quota == WithoutQuota::Refuse;
        let counts = |namespace: &str| {
            let gone = left.is_some_and(|left| left.contains(namespace));
            let orphan =
                || refused && !self.quotas.values().any(|q| q.namespaces.contains(namespace));
            (gone || orphan()) && !member(namespace)
        };
        let held = self.usage.iter().filter(|(namespace, _)| counts(namespace));
        held.fold(Amount::default(), |sum, (namespace, usage)| {
            let freed = freed.get(namespace).map(|freed| freed.total).unwrap_or_default();
            sum.plus(usage.total.minus(freed))
        })
    }

    /// Whether what a namespace may hold is a part of a cohort's.
    pub(super) fn in_cohort(&self, namespace: &str) -> bool {
        let mut of = self.quotas.values().filter(|quota| quota.namespaces.contains(namespace));
        of.any(|quota| quota.cohort().is_some())
    }

    pub(super) fn cohort_gates(
        &self,
        name: &str,
        cohort: &str,
        guaranteed: &Limits,
        used: &Usage,
        freed: &BTreeMap<String, Usage>,
    ) -> Vec<CohortGate> {
        let of = self.quotas.values().filter_map(|quota| {
            let (name, guaranteed) = quota.cohort()?;
            (name == cohort).then_some((quota, guaranteed))
        });
        let of: Vec<_> = of.map(|(quota, own)| (self.used(quota, freed).total, own)).collect();
        let left = self.left_in(cohort, freed);
        let gates = What::ALL.into_iter().filter_map(|what| {
            let parts = of.iter().filter_map(|(_, own)| what.limit(own));
            // Of what nobody has a guarantee, the cohort says nothing.
            let pool = parts.reduce(u64::saturating_add)?;
            let sum = |sum: u64, (used, _): &(Amount, &Limits)| sum.saturating_add(what.of(used));
            Some(CohortGate {
                quota: name.to_owned(),
                cohort: cohort.to_owned(),
                what,
                used: what.of(&used.total),
                guaranteed: what.limit(guaranteed).unwrap_or_default(),
                pool_used: of.iter().fold(what.of(&left), sum),
                pool,
            })
        });
        gates.collect()
    }

    /// Whether pods of a namespace use more than is guaranteed to it once `freed` is given back: they
    /// borrow, and who lends may have that back.
    pub(super) fn borrows_from(
        &self,
        namespace: &str,
        lender: &str,
        freed: &BTreeMap<String, Usage>,
    ) -> bool {
        let cohorts_of = |namespace: &str| {
            let of = self.quotas.values().filter(|quota| quota.namespaces.contains(namespace));
            of.filter_map(|quota| Some((quota.cohort()?, quota))).collect::<Vec<_>>()
        };
        let lending = cohorts_of(lender);
        cohorts_of(namespace).into_iter().any(|((cohort, guaranteed), quota)| {
            let used = self.used(quota, freed).total;
            let mut all = What::ALL.into_iter();
            let over = all.any(|what| what.limit(guaranteed).is_some_and(|g| what.of(&used) > g));
            let lent = lending
                .iter()
                .any(|((name, _), other)| *name == cohort && !other.namespaces.contains(namespace));
            over && lent
        })
    }
}
