use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_core::LeaseId;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Who may do slow things to which lease: one at a time for each lease, and no lease waits for
/// another.
#[derive(Debug, Default)]
pub(super) struct Turns {
    turns: Mutex<BTreeMap<LeaseId, Arc<AsyncMutex<()>>>>,
}

/// A turn, until it is dropped.
pub(super) struct Turn<'a> {
    guard: Option<OwnedMutexGuard<()>>,
    turns: &'a Turns,
    lease: LeaseId,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Arc<AsyncMutex<()>>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, lease: LeaseId) -> Arc<AsyncMutex<()>> {
        Arc::clone(self.lock().entry(lease).or_default())
    }

    /// Waits for the lease's turn.
    pub(super) async fn take(&self, lease: LeaseId) -> Turn<'_> {
        let guard = self.of(lease).lock_owned().await;
        Turn { guard: Some(guard), turns: self, lease }
    }

    /// The lease's turn, if nobody has it.
    pub(super) fn try_take(&self, lease: LeaseId) -> Option<Turn<'_>> {
        let guard = self.of(lease).try_lock_owned().ok()?;
        Some(Turn { guard: Some(guard), turns: self, lease })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut turns = self.turns.lock();
        // Only the map's own: nobody waits, and the map is locked, so nobody begins to.
        if turns.get(&self.lease).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(&self.lease);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left() {
        let turns = Turns::default();
        let [one, two] = [1, 2].map(|n| LeaseId::from_uuid(Uuid::from_u128(n)));
        let first = turns.take(one).await;
        assert!(turns.try_take(one).is_none());
        drop(turns.take(two).await);
        let waiting = turns.take(one);
        tokio::pin!(waiting);
        let short = std::time::Duration::from_millis(1);
        assert!(tokio::time::timeout(short, &mut waiting).await.is_err());
        drop(first);
        drop(waiting.await);
        assert!(turns.lock().is_empty());
    }
}
