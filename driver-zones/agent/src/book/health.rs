//! What the book knows of GPUs' health.

use gpuzone_core::{GpuHealth, GpuUuid, GpuWatch, Signal, Timestamp};

use super::Book;
use crate::journal::{AppendError, Record};

/// What came of something that was seen of a GPU.
#[derive(Debug)]
pub struct HealthSeen {
    /// What it was.
    pub before: GpuHealth,
    /// What it is.
    pub after: GpuHealth,
    /// Whether what has to outlive the agent does. If not, a change to the worse is one until the
    /// agent ends, and a change to the better is none.
    pub written: Result<(), AppendError>,
}

impl HealthSeen {
    /// Whether whoever looks at it sees something else than before.
    pub fn is_change(&self) -> bool {
        self.before != self.after
    }
}

/// How bad it is.
fn rank(health: &GpuHealth) -> u8 {
    match health {
        GpuHealth::Healthy => 0,
        GpuHealth::Suspended { .. } => 1,
        GpuHealth::Quarantined { .. } => 2,
    }
}

impl Book {
    /// Takes in what was seen of a GPU, and that time went on.
    pub fn observe(&mut self, gpu: GpuUuid, signals: &[Signal], now: Timestamp) -> HealthSeen {
        let terms = self.health.clone();
        self.change_watch(gpu, |watch| {
            let mut keep = false;
            for signal in signals {
                keep |= watch.observe(signal, now, &terms);
            }
            keep | watch.pass(now, &terms)
        })
    }

    /// An operator says that a GPU is well.
    pub fn clear(&mut self, gpu: GpuUuid, now: Timestamp) -> HealthSeen {
        self.change_watch(gpu, |watch| watch.clear(now))
    }

    fn change_watch(
        &mut self,
        gpu: GpuUuid,
        change: impl FnOnce(&mut GpuWatch) -> bool,
    ) -> HealthSeen {
        let mut watch = self.node.watch(gpu);
        let before = watch.health();
        let written = match change(&mut watch) {
            true => self.journal.append(&Record::Health { gpu, watch: watch.clone() }),
            false => Ok(()),
        };
        let after = watch.health();
        if written.is_err() && rank(&after) <= rank(&before) {
            let after = before.clone();
            return HealthSeen { before, after, written };
        }
        self.node.set_watch(gpu, watch);
        self.compact();
        HealthSeen { before, after, written }
    }

    /// Whether a GPU waits for an operator.
    pub fn is_quarantined(&self, gpu: GpuUuid) -> bool {
        matches!(self.node.watch(gpu).health(), GpuHealth::Quarantined { .. })
    }

    /// Whether a GPU serves new leases, as far as its health is concerned.
    pub fn serves(&self, gpu: GpuUuid) -> bool {
        self.node.health(gpu).is_none_or(|health| health.serves())
    }
}
