//! The start of a scrub worker: a process of its own, that no tenant ever spoke to.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gpuzone_wire::control::MAX_LINE;
use gpuzone_wire::scrub::{SCRUB_ARGUMENT, ScrubOrder, ScrubReport, ScrubSpec};
use gpuzone_zone::files::remove;
use gpuzone_zone::sandbox::{Launch, Sandboxes};
use gpuzone_zone::{Exit, Zone};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use crate::arbiter;
use crate::confine::{self, ConfineError};
use crate::lease::Common;
use crate::scrubs::Turn;
use crate::worker::{environment, fresh_log, last_line};

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
    #[error(
        "the scrub worker was ended: it kept a GPU that others wait for, for more than {} ms when its turn was over; the GPU does not finish what it is given", .limit.as_millis()
    )]
    Kept { limit: Duration },
    #[error("it was asked for again, and the scrub worker was ended for the next one")]
    Repeated,
    #[error("the scrub worker's report makes no sense: {0}")]
    Nonsense(String),
}

/// Has memory cleared. No process is left when it returns.
pub(crate) async fn scrub(
    common: &Common,
    order: ScrubOrder,
    log: &Path,
    socket: &Path,
    turn: Turn,
) -> Result<Vec<ScrubReport>, ScrubError> {
    let lease = order.lease;
    let scrubbed = in_a_worker(common, order, log, socket, &turn).await;
    common.turns.forget(lease);
    // What it said is in the error.
    remove(log)?;
    remove(socket)?;
    scrubbed
}

async fn in_a_worker(
    common: &Common,
    order: ScrubOrder,
    log: &Path,
    socket: &Path,
    turn: &Turn,
) -> Result<Vec<ScrubReport>, ScrubError> {
    let Common { config, turns, zones } = common;
    let listener = arbiter::serve(socket)?;
    let (orders_end, orders) = io::pipe()?;
    let (answer, answer_end) = io::pipe()?;
    let launch = Launch {
        program: config.worker.clone(),
        arguments: vec![SCRUB_ARGUMENT.into()],
        environment: environment(config, order.gpus.iter().map(|gpu| gpu.gpu)),
        stdin: orders_end.into(),
        stdout: answer_end.into(),
        stderr: fresh_log(log)?.into(),
        inherit: vec![listener.try_clone()?],
    };
    let limit = Duration::from_millis(order.limit_ms).saturating_add(GRACE);
    let gpus = order.gpus.clone();
    // Kept open until it is done: the worker ends when it is closed, however this broker ends.
    let mut orders = pipe::Sender::from_owned_fd(orders.into())?;
    let mut answer = pipe::Receiver::from_owned_fd(answer.into())?;
    let zone = confine::make(config, zones, &format!("scrub-{}", order.lease), launch)?;
    let overran = Arc::new(Notify::new());
    // Connected before it has its orders: it does nothing without asking.
    let joined = turns.join_scrub(&order, socket, Arc::clone(&overran));
    let spec = ScrubSpec::new(order, &config.driver);
    let spoken = async {
        joined?;
        let spoken = tokio::time::timeout(limit, speak(&mut orders, &mut answer, &zone, &spec));
        tokio::select! {
            spoken = spoken => Ok(spoken),
            () = overran.notified() => Err(ScrubError::Kept { limit: config.fair_time.watchdog() }),
            () = turn.wanted() => Err(ScrubError::Repeated),
        }
    };
    let spoken = spoken.await;
    // Whatever it was, the next one must find the memory free.
    zone.end(None).await?;
    let said = || last_line(log);
    let (text, exit) = match spoken? {
        Ok(spoken) => spoken?,
        Err(_) => return Err(ScrubError::Late { limit, said: said() }),
    };
    if exit != Exit::Code(0) {
        return Err(ScrubError::Ended { exit, said: said() });
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
    zone: &Zone<Sandboxes>,
    spec: &ScrubSpec,
) -> Result<(Vec<u8>, Exit), ScrubError> {
    confine::begin(zone).await?;
    let mut line = serde_json::to_vec(spec).map_err(io::Error::from)?;
    line.push(b'\n');
    match orders.write_all(&line).await {
        // It is gone; its exit and its log say why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        other => other?,
    }
    let mut text = Vec::new();
    answer.take(MAX_LINE as u64).read_to_end(&mut text).await?;
    Ok((text, zone.ended().await?))
}
