//! What a broker finds in its directory when it starts.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;

use gpuzone_core::LeaseId;
use gpuzone_wire::control::{BrokerConfig, WorkerOrder};
use gpuzone_wire::stats::{Monotonic, StatsError, StatsFile};
use gpuzone_zone::Process;
use gpuzone_zone::files::{private_dir, remove};

use crate::arbiter::Turns;
use crate::lease::Lease;
use crate::paths::{ENDED, LeasePaths, MAKING, UNREADABLE, ZonePaths};
use crate::record::{self, ReadError, WorkerRecord};

/// Why a folder is not taken for a lease.
#[derive(Debug, thiserror::Error)]
enum FolderError {
    #[error("its name is not a lease's")]
    Name,
    #[error("its order.json is another lease's")]
    OtherLease,
    #[error("its order.json is wrong: {0}")]
    Order(#[source] ReadError),
    #[error("its worker.json is wrong: {0}")]
    Worker(#[source] ReadError),
    #[error(transparent)]
    Stats(#[from] StatsError),
    #[error("its stats or its worker cannot be looked at: {0}")]
    Io(#[from] io::Error),
}

/// All leases that an earlier broker served, with their workers. What cannot be read is put
/// aside under another name, its worker ended, and never removed.
pub(crate) async fn leases(
    config: &Arc<BrokerConfig>,
    turns: &Turns,
    paths: &ZonePaths,
) -> io::Result<Vec<Lease>> {
    private_dir(&paths.leases())?;
    let mut leases = Vec::new();
    for entry in std::fs::read_dir(paths.leases())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(MAKING) || name.starts_with(ENDED) {
            remove(&entry.path())?;
            continue;
        }
        if name.starts_with(UNREADABLE) {
            continue;
        }
        match resume(config, turns, &name, &entry.path()).await {
            Ok(lease) => leases.push(lease),
            Err(error) => put_aside(&entry.path(), &name, &error).await?,
        }
    }
    Ok(leases)
}

async fn resume(
    config: &Arc<BrokerConfig>,
    turns: &Turns,
    name: &str,
    dir: &Path,
) -> Result<Lease, FolderError> {
    let id: LeaseId = name.parse().map_err(|_| FolderError::Name)?;
    let paths = LeasePaths::in_dir(dir.to_owned());
    let order: WorkerOrder = record::read(&paths.order()).map_err(FolderError::Order)?;
    if order.lease != id {
        return Err(FolderError::OtherLease);
    }
    let stats = StatsFile::open(OpenOptions::new().read(true).write(true).open(paths.stats())?)?;
    let record: Option<WorkerRecord> =
        record::read_if_there(&paths.worker()).map_err(FolderError::Worker)?;
    let worker = match record {
        Some(record) => {
            let process = adopt(id, &record, &stats).await?;
            Some((record, process))
        }
        None => None,
    };
    Ok(Lease::resume(Arc::clone(config), turns.clone(), order, paths, stats, worker))
}

/// The recorded worker, if it still serves. One that never said that it was ready is ended:
/// nobody can tell whether it will be.
async fn adopt(
    lease: LeaseId,
    record: &WorkerRecord,
    stats: &StatsFile,
) -> Result<Option<Process>, FolderError> {
    let pid = record.process.pid;
    let found = Process::find(record.process)?;
    if let (Some(process), true) = (&found, record.ready) {
        tracing::info!(%lease, worker = process.pid(), "its worker lives and is kept");
        return Ok(found);
    }
    if let Some(process) = found {
        process.end(None).await?;
    }
    stats.worker_gone(Monotonic::now())?;
    tracing::warn!(%lease, worker = pid, "its worker is gone or was not ready");
    Ok(None)
}

async fn put_aside(dir: &Path, name: &str, error: &FolderError) -> io::Result<()> {
    let worker = record::read::<WorkerRecord>(&LeasePaths::in_dir(dir.to_owned()).worker());
    // Nobody would watch it, so it may not serve.
    if let Ok(record) = worker
        && let Some(process) = Process::find(record.process)?
    {
        process.end(None).await?;
    }
    let aside = (0u32..)
        .map(|n| dir.with_file_name(format!("{UNREADABLE}{n}-{name}")))
        .find(|path| File::open(path).is_err());
    if let Some(aside) = aside {
        std::fs::rename(dir, &aside)?;
        tracing::error!(folder = %dir.display(), %error, moved_to = %aside.display(),
            "a folder that is no lease's was put aside; look at it and remove it");
    }
    Ok(())
}
