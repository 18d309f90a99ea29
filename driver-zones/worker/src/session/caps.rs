use super::Session;

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
        assert!(self.streams.len() <= most(caps.streams));
        assert!(self.events.len() <= most(caps.events));
        assert!(self.allocations.len() <= most(caps.allocations));
        assert!(self.globals.len() <= most(caps.allocations));
        assert!(self.image.len() as u64 <= caps.module_bytes);
        let held: u64 = self.allocations.values().map(|held| held.bytes).sum();
        let (free, total) = self.lease.ledger.free_and_total(0);
        assert_eq!(total - free, held);
    }
}
