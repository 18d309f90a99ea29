//! One scrub of a GPU at a time.
//!
//! Each holds all that is free of its GPUs, so two at once would each find too little. The agent
//! asks for one at a time; when another request comes, the agent that asked for the first is gone,
//! and its worker is ended for the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use gpuzone_core::GpuUuid;
use gpuzone_wire::scrub::ScrubGpu;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch};
use tokio::task::JoinSet;

/// The scrubs of a driver zone.
#[derive(Debug, Default)]
pub(crate) struct Scrubs(Mutex<BTreeMap<GpuUuid, Gpu>>);

#[derive(Clone, Debug, Default)]
struct Gpu {
    turn: Arc<AsyncMutex<()>>,
    /// Whoever has the turn is to give it back.
    wanted: Arc<watch::Sender<u64>>,
}

/// The right to scrub some GPUs, until it is dropped or wanted.
#[derive(Debug)]
pub(crate) struct Turn {
    guards: Vec<OwnedMutexGuard<()>>,
    wanted: Vec<watch::Receiver<u64>>,
}

impl Scrubs {
    /// The turn of all these GPUs; a scrub that has one of them is ended first.
    pub(crate) async fn take(&self, gpus: &[ScrubGpu]) -> Turn {
        // In the order of their names, so that no two wait for each other.
        let names: BTreeSet<GpuUuid> = gpus.iter().map(|gpu| gpu.gpu).collect();
        let mut turn = Turn { guards: Vec::new(), wanted: Vec::new() };
        for name in names {
            let Gpu { turn: lock, wanted } = self.gpu(name);
            wanted.send_modify(|requests| *requests = requests.wrapping_add(1));
            // Looked at from here: a request that comes while this one waits ends this one.
            turn.wanted.push(wanted.subscribe());
            turn.guards.push(lock.lock_owned().await);
        }
        turn
    }

    fn gpu(&self, name: GpuUuid) -> Gpu {
        let mut gpus = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gpus.entry(name).or_default().clone()
    }
}

impl Turn {
    /// Waits until another request wants one of its GPUs.
    pub(crate) async fn wanted(&self) {
        debug_assert_eq!(self.guards.len(), self.wanted.len());
        let mut any = JoinSet::new();
        for mut wanted in self.wanted.iter().cloned() {
            any.spawn(async move { wanted.changed().await.is_ok() });
        }
        while let Some(heard) = any.join_next().await {
            if heard.is_ok_and(|wanted| wanted) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gpuzone_core::MemoryBytes;

    use super::*;

    fn gpus(names: &[u8]) -> Vec<ScrubGpu> {
        let gpu = |name: &u8| ScrubGpu {
            gpu: GpuUuid::from_bytes([*name; 16]),
            memory: MemoryBytes::gib(1),
            at_least: MemoryBytes::ZERO,
            at_most: MemoryBytes::gib(1),
        };
        names.iter().map(gpu).collect()
    }

    #[tokio::test]
    async fn a_request_that_comes_again_gets_the_turn() {
        let scrubs = Arc::new(Scrubs::default());
        let first = scrubs.take(&gpus(&[1, 2])).await;
        let other = scrubs.take(&gpus(&[3])).await;
        let again = {
            let scrubs = Arc::clone(&scrubs);
            tokio::spawn(async move { scrubs.take(&gpus(&[2])).await })
        };
        first.wanted().await;
        assert!(!again.is_finished(), "it waits until the first has ended");
        drop(first);
        let again = again.await.unwrap();
        let quiet = Duration::from_millis(20);
        for turn in [&other, &again] {
            assert!(tokio::time::timeout(quiet, turn.wanted()).await.is_err());
        }
    }
}
