//! The lease's limits: every byte is charged here before the driver is asked for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_wire::stats::{Monotonic, StatsWriter};

use crate::account::Account;

/// What the lease's GPUs have given out, over all sessions.
#[derive(Debug)]
pub struct Ledger {
    limits: Vec<u64>,
    /// Changed by who holds `changing`; who only looks need not wait.
    charged: Vec<AtomicU64>,
    changing: Mutex<()>,
    gate: Mutex<()>,
    stats: Arc<StatsWriter>,
}

/// The limit would be passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverLimit;

/// Charged bytes; dropping it gives them back. To be dropped when the driver has them back.
#[derive(Debug)]
pub struct Charge {
    ledger: Arc<Ledger>,
    account: Option<Arc<Account>>,
    device: usize,
    bytes: u64,
}

impl Ledger {
    /// A ledger with a limit for each GPU of the lease.
    pub fn new(limits: Vec<u64>, stats: Arc<StatsWriter>) -> Arc<Self> {
        let charged = limits.iter().map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self {
            limits,
            charged,
            changing: Mutex::default(),
            gate: Mutex::default(),
            stats,
        })
    }

    /// Keeps others from taking or giving back memory: to be held around every call that does,
    /// so that memory of an amount that only shows afterwards is measured right. A session that
    /// gave back while another's module was measured would make that module look free of charge.
    pub fn close_gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Charges memory of a GPU of the lease.
    ///
    /// # Errors
    /// When it would be more than the limit; the refusal is counted.
    pub fn charge(self: &Arc<Self>, device: usize, bytes: u64) -> Result<Charge, OverLimit> {
        let limit = self.limits.get(device).copied().unwrap_or(0);
        let fits = |charged: u64| charged.checked_add(bytes).filter(|sum| *sum <= limit);
        if !self.change(device, fits)? {
            self.stats.add_refused_memory();
            return Err(OverLimit);
        }
        let account = Account::own();
        if let Some(account) = &account {
            account.add(device, bytes);
        }
        Ok(Charge { ledger: self.clone(), account, device, bytes })
    }

    /// Free and total bytes of a GPU of the lease.
    pub fn free_and_total(&self, device: usize) -> (u64, u64) {
        let total = self.limits.get(device).copied().unwrap_or(0);
        let used = self.charged.get(device).map_or(0, |charged| charged.load(Ordering::Acquire));
        (total.saturating_sub(used), total)
    }

    /// Changes what is charged of a GPU and tells the broker; whether `change` allowed it.
    fn change(
        &self,
        device: usize,
        change: impl FnOnce(u64) -> Option<u64>,
    ) -> Result<bool, OverLimit> {
        let charged = self.charged.get(device).ok_or(OverLimit)?;
        // Held until it is told, so that the last that is told is the last state.
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(changed) = change(charged.load(Ordering::Relaxed)) else { return Ok(false) };
        charged.store(changed, Ordering::Release);
        let all = self.charged.iter().map(|charged| charged.load(Ordering::Relaxed));
        self.stats.set_used(Monotonic::now(), all.fold(0, u64::saturating_add));
        Ok(true)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Charge {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        if let Some(account) = &self.account {
            account.give_back(self.device, self.bytes);
        }
        // Its GPU is one of the lease's: it was charged.
        let _ = self.ledger.change(self.device, |charged| Some(charged.saturating_sub(self.bytes)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpuzone_wire::stats::StatsFile;

    fn ledger(limit: u64) -> (tempfile::TempDir, StatsFile, Arc<Ledger>) {
        let dir = tempfile::tempdir().expect("a directory");
        let file = StatsFile::create(&dir.path().join("stats")).expect("created");
        let clone = file.file().try_clone().expect("cloned");
        let stats = Arc::new(StatsWriter::open(clone).expect("open"));
        (dir, file, Ledger::new(vec![limit], stats))
    }

    #[test]
    fn the_limit_is_exact_and_what_is_dropped_comes_back() {
        let (_dir, file, ledger) = ledger(100);
        let first = ledger.charge(0, 60).expect("fits");
        let second = ledger.charge(0, 40).expect("fits exactly");
        assert_eq!(ledger.charge(0, 1).err(), Some(OverLimit));
        assert_eq!(ledger.charge(0, u64::MAX).err(), Some(OverLimit));
        assert_eq!(ledger.charge(1, 0).err(), Some(OverLimit), "no such GPU");
        assert_eq!(ledger.free_and_total(0), (0, 100));
        drop(first);
        assert_eq!(ledger.free_and_total(0), (60, 100));
        drop(second);
        let seen = file.snapshot(Monotonic::now()).expect("readable");
        assert_eq!((seen.used.get(), seen.counters.peak_used.get()), (0, 100));
        assert_eq!(seen.counters.refused_memory, 2);
    }

    #[test]
    fn a_sessions_own_part_is_what_its_thread_charged() {
        let (_dir, _file, ledger) = ledger(100);
        let _other = ledger.charge(0, 10).expect("fits");
        let held = std::thread::scope(|scope| {
            let session = scope.spawn(|| {
                let account = Account::new(1);
                account.open();
                let kept = ledger.charge(0, 20).expect("fits");
                drop(ledger.charge(0, 30).expect("fits"));
                assert_eq!(ledger.charge(0, 80).err(), Some(OverLimit));
                assert_eq!(account.bytes(), [20]);
                (account, kept)
            });
            session.join().expect("no panic")
        });
        let (account, kept) = held;
        drop(kept);
        assert_eq!(account.bytes(), [0], "whichever thread drops it");
    }

    #[test]
    fn many_threads_never_pass_the_limit() {
        let (_dir, file, ledger) = ledger(1000);
        std::thread::scope(|scope| {
            for seed in 1..=4u64 {
                let ledger = &ledger;
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for step in 0..2000 {
                        held.extend(ledger.charge(0, (seed * step) % 97).ok());
                        if step % 3 == 0 {
                            held.clear();
                        }
                    }
                });
            }
        });
        assert_eq!(ledger.free_and_total(0), (1000, 1000));
        let peak = file.snapshot(Monotonic::now()).expect("readable").counters.peak_used;
        assert!(peak.get() <= 1000, "{peak}");
    }
}
