//! The start of one worker.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuzone_core::LeaseId;
use gpuzone_wire::handover::{EXIT_DRIVER, Role, WorkerSpec};
use gpuzone_wire::stats::StatsFile;
use gpuzone_zone::Exit;
use gpuzone_zone::maker::{Files, MadeZone, Maker, MakerError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::maker;

/// How long a worker whose zone has begun may take until it accepts connections: a driver of many GPUs takes
/// more than ten seconds for its first context.
pub const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// A worker whose zone is held back. It must be brought to an end: by [`Starting::finish`], or by
/// [`MadeZone::end`].
pub(crate) struct Starting {
    pub(crate) zone: MadeZone,
    orders: Option<pipe::Sender>,
    answer: pipe::Receiver,
    log: PathBuf,
}

/// Why a worker does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    #[error(transparent)]
    Start(#[from] MakerError),
    #[error("cannot prepare the worker's files: {0}")]
    Prepare(#[source] io::Error),
    #[error("cannot speak to the worker that was started: {0}")]
    Speak(#[source] io::Error),
    #[error("the worker cannot use its driver: {0}")]
    Driver(String),
    #[error("the worker ended with {exit} before it was ready: {said}")]
    Ended { exit: Exit, said: String },
    #[error("the worker was not ready within {} s: {said}", READY_TIMEOUT.as_secs())]
    Timeout { said: String },
}

/// Makes the zone of a worker for the slot `listener`. It does nothing before
/// [`Starting::finish`]: who made it can prepare first what it needs.
pub(crate) async fn make(
    maker: &Maker,
    lease: LeaseId,
    listener: &OwnedFd,
    stats: &StatsFile,
    turns: OwnedFd,
    log: &Path,
) -> Result<Starting, WorkerError> {
    let prepare = || -> io::Result<_> {
        let (orders_end, orders) = io::pipe()?;
        let (answer, answer_end) = io::pipe()?;
        let files = Files {
            stdin: orders_end.into(),
            stdout: answer_end.into(),
            stderr: fresh_log(log)?.into(),
            inherit: vec![listener.try_clone()?, stats.file().try_clone()?.into(), turns],
        };
        let orders = pipe::Sender::from_owned_fd(orders.into())?;
        let answer = pipe::Receiver::from_owned_fd(answer.into())?;
        Ok((files, orders, answer))
    };
    let (files, orders, answer) = prepare().map_err(WorkerError::Prepare)?;
    let zone = maker.make(&lease.to_string(), Role::Worker.as_str(), files).await?;
    Ok(Starting { zone, orders: Some(orders), answer, log: log.to_owned() })
}

/// The log of a worker, emptied: what an earlier worker of the lease said is in its trouble.
pub(crate) fn fresh_log(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    OpenOptions::new().append(true).open(path)
}

impl Starting {
    /// Lets the worker run, gives it its orders and waits until it accepts connections. When
    /// that fails, the caller ends the zone.
    pub(crate) async fn finish(&mut self, spec: &WorkerSpec) -> Result<(), WorkerError> {
        maker::begin(&self.zone).await?;
        let spoken = tokio::time::timeout(READY_TIMEOUT, self.speak(spec)).await;
        let Ok(spoken) = spoken else {
            return Err(WorkerError::Timeout { said: last_line(&self.log) });
        };
        if spoken.as_ref().is_ok_and(|answer| answer == b"ready\n") {
            return Ok(());
        }
        // It closed its output or its input; most likely it is about to end and says why.
        let exit = tokio::time::timeout(Duration::from_secs(1), self.zone.ended()).await;
        let said = last_line(&self.log);
        match (exit, spoken) {
            (Ok(Exit::Code(EXIT_DRIVER)), _) => Err(WorkerError::Driver(said)),
            (Ok(exit), _) => Err(WorkerError::Ended { exit, said }),
            (Err(_), Err(error)) => Err(WorkerError::Speak(error)),
            (Err(_), Ok(answer)) => {
                let answer = String::from_utf8_lossy(&answer).into_owned();
                let message = format!("it said {answer:?} where 'ready' was expected");
                Err(WorkerError::Speak(io::Error::new(io::ErrorKind::InvalidData, message)))
            }
        }
    }

    async fn speak(&mut self, spec: &WorkerSpec) -> io::Result<Vec<u8>> {
        // Dropped at the end of the block: closing it is the end of the orders.
        if let Some(mut orders) = self.orders.take() {
            orders.write_all(&serde_json::to_vec(spec)?).await?;
        }
        let mut answer = Vec::new();
        // One byte more than the answer has, so that a longer one is seen to be wrong.
        let mut bounded = (&mut self.answer).take(7);
        while !answer.ends_with(b"\n") && bounded.read_buf(&mut answer).await? > 0 {}
        Ok(answer)
    }
}

/// The last line that a worker wrote to its log, at most 500 characters, or a word that there
/// is none.
pub(crate) fn last_line(log: &Path) -> String {
    let tail = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
        let mut tail = Vec::new();
        file.take(4096).read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = tail().unwrap_or_default();
    let text = String::from_utf8_lossy(&tail);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    let printable = |line: &str| line.chars().filter(|c| !c.is_control()).take(500).collect();
    line.map_or_else(|| "it said nothing".to_owned(), printable)
}
