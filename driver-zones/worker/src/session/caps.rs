use super::Session;
use crate::ledger::Charge;

impl Session {
    /// What its lease's caps promise, and that what is charged is what it holds: for tests, in
    /// which its contexts and modules take nothing.
    ///
    /// # Panics
    /// When one does not hold.
    pub(crate) fn assert_within_caps(&self) {
        let caps = self.lease.caps;
        let most = |cap: u32| cap as usize;
        assert!(self.contexts.len() <= most(caps.contexts));
        assert!(self.modules.len() <= most(caps.modules));
        assert!(self.functions.len() <= most(caps.functions));
        assert!(self.streams.len() <= most(caps.streams));
        assert!(self.events.len() <= most(caps.events));
        assert!(self.allocations.len() + self.kept_blocks() <= most(caps.allocations));
        assert!(self.physical.count() <= most(caps.allocations));
        // GPUs' own pools are no tenant's to number.
        assert!(self.pools.len() <= most(caps.pools) + self.lease.devices.len());
        assert!(self.hosts.len() <= most(caps.pinned_pieces));
        assert!(self.globals.len() <= most(caps.allocations));
        assert!(self.image.len() as u64 <= caps.module_bytes);
        let limits = self.contexts.values().flat_map(|context| context.limits.values());
        let charges = self.allocations.values().map(|held| &held.charge).chain(limits);
        let direct: u64 = charges.map(Charge::bytes).sum();
        let held = direct + self.kept_bytes() + self.physical.bytes();
        let (free, total) = self.lease.ledger.free_and_total(0);
        assert_eq!(total - free, held);
    }
}
