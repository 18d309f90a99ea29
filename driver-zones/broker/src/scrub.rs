//! The start of a scrub worker: a process of its own, that no tenant ever spoke to.
//!
//! Each holds all that is free of its GPUs, so two at once would each find too little. The agent
//! asks for one at a time; when another request comes, the agent that asked for the first is gone,
//! and its worker is ended for the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gpuzone_core::GpuUuid;
use gpuzone_wire::control::{BrokerConfig, MAX_LINE};
use gpuzone_wire::scrub::{SCRUB_ARGUMENT, ScrubGpu, ScrubOrder, ScrubReport, ScrubSpec};
use gpuzone_zone::files::remove;
use gpuzone_zone::sandbox::Launch;
use gpuzone_zone::{Exit, Process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch};
use tokio::task::JoinSet;

use crate::confine::{self, ConfineError};
use crate::worker::{fresh_log, last_line};

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
    async fn wanted(&self) {
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

/// How much longer than its own limit a scrub worker may take: it opens the driver first.
const GRACE: Duration = Duration::from_secs(10);

/// Why it is not known whether memory is clear.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScrubError {
    #[error(transparent)]
    Start(#[from] ConfineError),
    #[error("cannot speak to the scrub worker: {0}")]
    Speak(#[from] io::Error),
    #[error("the scrub worker ended with {exit}: {said}")]
    Ended { exit: Exit, said: String },
    #[error("the scrub worker was not done within {} s and was ended: {said}", .limit.as_secs())]
    Late { limit: Duration, said: String },
    #[error("it was asked for again, and the scrub worker was ended for the next one")]
    Repeated,
    #[error("the scrub worker's report makes no sense: {0}")]
    Nonsense(String),
}

/// Has memory cleared. No process is left when it returns.
pub(crate) async fn scrub(
    config: &BrokerConfig,
    order: ScrubOrder,
    log: &Path,
    turn: Turn,
) -> Result<Vec<ScrubReport>, ScrubError> {
    let scrubbed = in_a_worker(config, order, log, &turn).await;
    // What it said is in the error.
    remove(log)?;
    scrubbed
}

async fn in_a_worker(
    config: &BrokerConfig,
    order: ScrubOrder,
    log: &Path,
    turn: &Turn,
) -> Result<Vec<ScrubReport>, ScrubError> {
    let (orders_end, orders) = io::pipe()?;
    let (answer, answer_end) = io::pipe()?;
    let launch = Launch {
        program: config.worker.clone(),
        arguments: vec![SCRUB_ARGUMENT.into()],
        environment: config.driver.environment.clone(),
        stdin: orders_end.into(),
        stdout: answer_end.into(),
        stderr: fresh_log(log)?.into(),
        inherit: Vec::new(),
    };
    let limit = Duration::from_millis(order.limit_ms).saturating_add(GRACE);
    let gpus = order.gpus.clone();
    // Kept open until it is done: the worker ends when it is closed, however this broker ends.
    let mut orders = pipe::Sender::from_owned_fd(orders.into())?;
    let mut answer = pipe::Receiver::from_owned_fd(answer.into())?;
    let process = confine::start(config, &format!("scrub-{}", order.lease), launch)?;
    let spec = ScrubSpec::new(order, &config.driver);
    let spoken = tokio::select! {
        spoken = speak(&mut orders, &mut answer, &process, &spec) => Ok(spoken),
        () = tokio::time::sleep(limit) => Err(ScrubError::Late { limit, said: last_line(log) }),
        () = turn.wanted() => Err(ScrubError::Repeated),
    };
    // Whatever it was, the next one must find the memory free.
    process.end(None).await?;
    let (text, exit) = spoken??;
    if exit != Exit::Code(0) {
        return Err(ScrubError::Ended { exit, said: last_line(log) });
    }
    let reports: Vec<ScrubReport> =
        serde_json::from_slice(&text).map_err(|error| ScrubError::Nonsense(error.to_string()))?;
    if !reports.iter().map(|report| report.gpu).eq(gpus.iter().map(|gpu| gpu.gpu)) {
        return Err(ScrubError::Nonsense("it is about other GPUs".to_owned()));
    }
    Ok(reports)
}

async fn speak(
    orders: &mut pipe::Sender,
    answer: &mut pipe::Receiver,
    process: &Process,
    spec: &ScrubSpec,
) -> io::Result<(Vec<u8>, Exit)> {
    let mut line = serde_json::to_vec(spec)?;
    line.push(b'\n');
    match orders.write_all(&line).await {
        // It is gone; its exit and its log say why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        other => other?,
    }
    let mut text = Vec::new();
    answer.take(MAX_LINE as u64).read_to_end(&mut text).await?;
    Ok((text, process.exited().await?))
}

#[cfg(test)]
mod tests {
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
