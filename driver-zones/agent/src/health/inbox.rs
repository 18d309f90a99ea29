//! What threads that wait for the driver have seen, until it is taken. Bounded: what is the same
//! is counted, and what would be too much is told as something unknown.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpuzone_core::{GpuUuid, Xid};
use gpuzone_hw::{Condition, DeviceEvent};
use tokio::sync::Notify;

/// More kinds of events of one GPU than that are not told apart until they are taken.
const KINDS: usize = 64;
/// What the others are: whatever it is, it is not overlooked.
const OTHERS: DeviceEvent = DeviceEvent::Xid(Xid::new(u64::MAX));

/// Between the driver's threads and the task that judges.
#[derive(Debug)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug)]
struct Waiting {
    seen: BTreeMap<GpuUuid, Seen>,
    /// When the driver last answered anything about all GPUs.
    looked: Instant,
}

/// What was seen of one GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// How often what happened.
    pub(super) events: BTreeMap<DeviceEvent, u64>,
    /// How it was when it was last looked at.
    pub(super) condition: Option<Condition>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        let waiting = Waiting { seen: BTreeMap::new(), looked: Instant::now() };
        Self { waiting: Mutex::new(waiting), arrived: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened to a GPU.
    pub(super) fn happened(&self, gpu: GpuUuid, event: DeviceEvent) {
        {
            let mut waiting = self.lock();
            let events = &mut waiting.seen.entry(gpu).or_default().events;
            let full = events.len() >= KINDS && !events.contains_key(&event);
            let count = events.entry(if full { OTHERS } else { event }).or_insert(0);
            *count = count.saturating_add(1);
        }
        self.arrived.notify_one();
    }

    /// A GPU was looked at.
    pub(super) fn looked_at(&self, gpu: GpuUuid, condition: Condition) {
        let gone = condition == Condition::Lost;
        self.lock().seen.entry(gpu).or_default().condition = Some(condition);
        if gone {
            self.arrived.notify_one();
        }
    }

    /// All GPUs were looked at.
    pub(super) fn looked(&self) {
        self.lock().looked = Instant::now();
    }

    /// All that was seen since the last time, and how long ago the driver last answered.
    pub(super) fn take(&self) -> (BTreeMap<GpuUuid, Seen>, Duration) {
        let mut waiting = self.lock();
        (std::mem::take(&mut waiting.seen), waiting.looked.elapsed())
    }

    /// Waits until something happened.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_bounded() {
        let (inbox, gpu) = (Inbox::new(), GpuUuid::from_bytes([1; 16]));
        for _ in 0..10_000 {
            inbox.happened(gpu, DeviceEvent::Xid(Xid::new(31)));
        }
        for number in 0..1000 {
            inbox.happened(gpu, DeviceEvent::Xid(Xid::new(number)));
        }
        inbox.looked_at(gpu, Condition::Silent("first".into()));
        inbox.looked_at(gpu, Condition::Lost);
        let (mut seen, _) = inbox.take();
        let seen = seen.remove(&gpu).unwrap();
        assert_eq!(seen.events[&DeviceEvent::Xid(Xid::new(31))], 10_001);
        assert_eq!(seen.events.len(), KINDS + 1);
        assert_eq!(seen.events.values().sum::<u64>(), 11_000);
        assert_eq!(seen.condition, Some(Condition::Lost));
        assert!(inbox.take().0.is_empty());
    }
}
