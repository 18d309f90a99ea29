//! What a broker finds in its directory when it starts.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use gpuzone_core::LeaseId;
use gpuzone_wire::control::{LeaseStatus, WorkerOrder};
use gpuzone_wire::stats::{Monotonic, StatsError, StatsFile};
use gpuzone_zone::files::{private_dir, remove};
use gpuzone_zone::maker::MadeZone;

use crate::lease::{Common, Lease};
use crate::paths::{ENDED, LeasePaths, MAKING, UNREADABLE, ZonePaths};
use crate::record::{self, ReadError, WorkerRecord};

/// Why a folder is not taken for a lease.
#[derive(Debug, thiserror::Error)]
enum FolderError {
    #[error("its name is not a lease's")]
    Name,
    #[error("what is in it is another lease's")]
    OtherLease,
    #[error("its order.json is wrong: {0}")]
    Order(#[source] ReadError),
    #[error("its worker.json is wrong: {0}")]
    Worker(#[source] ReadError),
    #[error("its last.json is wrong: {0}")]
    Last(#[source] ReadError),
    #[error(transparent)]
    Stats(#[from] StatsError),
    #[error("its stats or its worker cannot be looked at: {0}")]
    Io(#[from] io::Error),
}

/// All leases that an earlier broker served, with their workers, and how those did that ended and
/// are not settled. What cannot be read is put aside under another name, and never removed. Zones
/// that are no such lease's are ended.
pub(crate) async fn leases(
    common: &Common,
    paths: &ZonePaths,
) -> io::Result<(Vec<Lease>, Vec<LeaseStatus>)> {
    private_dir(&paths.leases())?;
    let (mut leases, mut ends) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(paths.leases())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(MAKING) {
            remove(&entry.path())?;
            continue;
        }
        if let Some(id) = name.strip_prefix(ENDED) {
            match ended(id, &entry.path()) {
                Ok(Some(last)) => ends.push(last),
                // It was settled, and half of it removed.
                Ok(None) => remove(&entry.path())?,
                Err(error) => put_aside(&entry.path(), &name, &error)?,
            }
            continue;
        }
        if name.starts_with(UNREADABLE) {
            continue;
        }
        match resume(common, &name, &entry.path()).await {
            Ok(lease) => leases.push(lease),
            Err(error) => put_aside(&entry.path(), &name, &error)?,
        }
    }
    let kept: Vec<String> = leases.iter().map(|lease| lease.order().lease.to_string()).collect();
    for zone in common.maker.list() {
        if kept.iter().any(|id| id == zone.name()) {
            continue;
        }
        tracing::warn!(zone = zone.name(), process = zone.process().pid, "nobody's zone is ended");
        zone.end().await?;
    }
    Ok((leases, ends))
}

fn ended(name: &str, dir: &Path) -> Result<Option<LeaseStatus>, FolderError> {
    let id: LeaseId = name.parse().map_err(|_| FolderError::Name)?;
    let last = record::read_if_there(&LeasePaths::in_dir(dir.to_owned()).last());
    let last: Option<LeaseStatus> = last.map_err(FolderError::Last)?;
    match last {
        Some(last) if last.lease != id => Err(FolderError::OtherLease),
        last => Ok(last),
    }
}

async fn resume(common: &Common, name: &str, dir: &Path) -> Result<Lease, FolderError> {
    let id: LeaseId = name.parse().map_err(|_| FolderError::Name)?;
    let paths = LeasePaths::in_dir(dir.to_owned());
    let order: WorkerOrder = record::read(&paths.order()).map_err(FolderError::Order)?;
    if order.lease != id {
        return Err(FolderError::OtherLease);
    }
    let stats = StatsFile::open(OpenOptions::new().read(true).write(true).open(paths.stats())?)?;
    let record: Option<WorkerRecord> =
        record::read_if_there(&paths.worker()).map_err(FolderError::Worker)?;
    let worker = adopt(common.maker.get(name), id, record.as_ref(), &stats).await?;
    Ok(Lease::resume(common.clone(), order, paths, stats, record, worker))
}

/// The lease's worker, if it still serves. One that never said that it was ready is ended:
/// nobody can tell whether it will be.
async fn adopt(
    worker: Option<MadeZone>,
    lease: LeaseId,
    record: Option<&WorkerRecord>,
    stats: &StatsFile,
) -> Result<Option<MadeZone>, FolderError> {
    if let Some(worker) = &worker {
        let pid = worker.process().pid;
        if record.is_some_and(|record| record.ready) {
            tracing::info!(%lease, worker = pid, "its worker lives and is kept");
            return Ok(Some(worker.clone()));
        }
        tracing::warn!(%lease, worker = pid, "its worker was not ready");
        worker.end().await?;
    }
    tracing::warn!(%lease, "it has no worker");
    stats.worker_gone(Monotonic::now())?;
    Ok(None)
}

fn put_aside(dir: &Path, name: &str, error: &FolderError) -> io::Result<()> {
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
