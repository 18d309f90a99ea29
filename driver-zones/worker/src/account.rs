//! What each session has of the lease's memory: for showing only. The limit is the ledger's.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that one session is charged for, on each GPU of the lease.
#[derive(Debug)]
pub struct Account {
    bytes: Vec<AtomicU64>,
}

thread_local! {
    // A session is its thread's, and charges nothing from another one.
    static OWN: RefCell<Option<Arc<Account>>> = const { RefCell::new(None) };
}

impl Account {
    /// An empty one.
    pub fn new(gpus: usize) -> Arc<Self> {
        Arc::new(Self { bytes: std::iter::repeat_with(AtomicU64::default).take(gpus).collect() })
    }

    /// Makes this the account of what the calling thread charges from now on.
    pub fn open(self: &Arc<Self>) {
        OWN.with(|own| *own.borrow_mut() = Some(self.clone()));
    }

    /// The calling thread's.
    pub(crate) fn own() -> Option<Arc<Self>> {
        OWN.with(|own| own.borrow().clone())
    }

    pub(crate) fn add(&self, gpu: usize, bytes: u64) {
        if let Some(held) = self.bytes.get(gpu) {
            held.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    pub(crate) fn give_back(&self, gpu: usize, bytes: u64) {
        if let Some(held) = self.bytes.get(gpu) {
            held.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes on each GPU now.
    pub fn bytes(&self) -> Vec<u64> {
        self.bytes.iter().map(|held| held.load(Ordering::Relaxed)).collect()
    }
}
