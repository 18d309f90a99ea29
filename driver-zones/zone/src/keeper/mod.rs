//! The keeper of a workload zone for several programs.
//!
//! ```text
//! gpu-zone run, exec ──▶ <folder>/zone.sock ──▶ keeper ──▶ process 1 of the zone
//!        ▲     who may join, and on which terms   │   a program, with its files     │
//!        └────────────── signals in, exit code out ─────────────────────────────────┘
//! ```
//!
//! It is the lease's holder, so the lease lives as long as the zone, and the zone as long as it
//! has programs. Whichever way the keeper ends, its socket to process 1 closes, and the zone is
//! gone. It parses what the same user's `gpu-zone` says, and nothing that a program says.

mod client;
mod folder;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::sandbox::{EXIT_FAILED, Missing, Order, SandboxError, Sandboxes, Spec};
use crate::{Zone, ZoneError, Zones, packets};
use client::Left;
use folder::Folder;

/// How long programs have to end when the zone is stopped.
const GRACE: Duration = Duration::from_secs(5);
/// Longest orders.
const LONGEST: u64 = 4 << 20;

/// What a keeper is told.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Orders {
    /// The zone's name.
    name: String,
    /// Where its socket and its record go.
    folder: PathBuf,
    /// The sandbox.
    spec: Spec,
    /// What whoever joins has to ask for, too: in words, for the refusal names them.
    terms: BTreeMap<String, String>,
    /// What whoever joins is told; the keeper does not look into it.
    welcome: Value,
}

/// Why there is no zone to keep.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("the keeper's orders are none: {0}")]
    Orders(#[from] serde_json::Error),
    #[error("cannot use the zone's folder or socket: {0}")]
    Folder(#[source] io::Error),
    #[error(transparent)]
    Zone(#[from] ZoneError<SandboxError>),
    #[error("the keeper failed: {0}")]
    Io(#[from] io::Error),
}

/// What its clients' tasks need.
struct Kept {
    name: String,
    terms: BTreeMap<String, String>,
    welcome: Value,
    zone: Zone<Sandboxes>,
    channel: OwnedFd,
    programs: AtomicUsize,
}

/// Keeps a zone until its last program has ended; the exit code. `report` is told once when the
/// zone runs, or why not; `first` is the connection of whoever wants the first program.
pub fn run(orders: File, report: OwnedFd, first: OwnedFd) -> u8 {
    let mut report = Some(File::from(report));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let kept = runtime
        .map_err(KeepError::Io)
        .and_then(|runtime| runtime.block_on(keep(orders, &mut report, first)));
    match kept {
        Ok(()) => 0,
        Err(error) => {
            say(&mut report, &json!({ "failed": error.to_string() }));
            eprintln!("gpu-zone-sandbox: {error}");
            EXIT_FAILED
        }
    }
}

/// The first word is the only one.
fn say(report: &mut Option<File>, what: &Value) {
    if let Some(mut report) = report.take() {
        // Whoever started this may be gone; then its connection is, too, and nobody joins.
        let _ = writeln!(report, "{what}");
    }
}

async fn keep(orders: File, report: &mut Option<File>, first: OwnedFd) -> Result<(), KeepError> {
    let mut text = Vec::new();
    orders.take(LONGEST).read_to_end(&mut text)?;
    let orders: Orders = serde_json::from_slice(&text)?;
    let folder = Folder::take(&orders.folder).await.map_err(KeepError::Folder)?;
    // A zone of an earlier keeper ends with that keeper; this is for what is left of it.
    let (zones, unreadable) =
        Zones::open(Sandboxes, folder.path()).await.map_err(KeepError::Folder)?;
    for unreadable in unreadable {
        eprintln!("gpu-zone-sandbox: {unreadable}");
    }
    let (kept, missing) = begin(orders, &zones).await?;
    let kept = Arc::new(kept);
    let served = serve(&kept, &folder, report, &missing, first).await;
    folder.close();
    let ended = kept.zone.end(None).await;
    folder.remove();
    served.and(ended.map(drop).map_err(KeepError::Io))
}

async fn begin(
    orders: Orders,
    zones: &Zones<Sandboxes>,
) -> Result<(Kept, Vec<Missing>), KeepError> {
    let Orders { name, folder: _, spec, terms, welcome } = orders;
    let launcher = std::env::current_exe()?;
    let zone = zones.create(&name, Order::Programs { launcher, spec })?;
    let missing = match zone.start().await {
        Ok(missing) => missing,
        Err(error) => {
            zone.ended().await?;
            return Err(error.into());
        }
    };
    let channel = zone.channel()?.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
    let programs = AtomicUsize::new(0);
    Ok((Kept { name, terms, welcome, zone, channel, programs }, missing))
}

/// Until the zone has nothing to run any more, or is gone.
async fn serve(
    kept: &Arc<Kept>,
    folder: &Folder,
    report: &mut Option<File>,
    missing: &[Missing],
    first: OwnedFd,
) -> Result<(), KeepError> {
    let listener = folder.listen().map_err(KeepError::Folder)?;
    let ended = packets::watched(kept.channel.try_clone()?)?;
    say(report, &json!({ "ready": missing }));
    let (leave, mut left) = mpsc::unbounded_channel();
    let greet = |line: OwnedFd| {
        let (kept, leave) = (Arc::clone(kept), leave.clone());
        tokio::spawn(async move {
            // Nobody listens when the zone ends.
            let _ = leave.send(client::serve(&kept, line).await);
        });
    };
    greet(first);
    // Those who are being heard, and programs.
    let mut open = 1_usize;
    while open > 0 {
        tokio::select! {
            gone = kept.zone.ended() => return gone.map(drop).map_err(KeepError::Io),
            Some(how) = left.recv() => match how {
                Left::Program => {}
                Left::Nothing => open = open.saturating_sub(1),
                Left::Stop(line) => return stop(kept, folder, &line).await,
            },
            done = packets::receive_soon(&ended) => match done? {
                Some(_) => {
                    client::one_less(kept);
                    open = open.saturating_sub(1);
                }
                // Its process 1 is gone, and so is the zone.
                None => return kept.zone.ended().await.map(drop).map_err(KeepError::Io),
            },
            line = accept(&listener) => if let Some(line) = line? {
                open = open.saturating_add(1);
                greet(line);
            },
        }
    }
    Ok(())
}

async fn stop(kept: &Kept, folder: &Folder, line: &OwnedFd) -> Result<(), KeepError> {
    folder.close();
    kept.zone.end(Some(GRACE)).await?;
    // Whoever asked may have gone.
    let _ = packets::send(line, json!({ "stopped": true }).to_string().as_bytes(), &[]);
    Ok(())
}

/// Somebody of the same user.
async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    use rustix::net::{SocketFlags, accept_with, sockopt::socket_peercred};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let accepted = listener
        .async_io(tokio::io::Interest::READABLE, |listener| Ok(accept_with(listener, flags)?))
        .await;
    match accepted {
        Ok(line) if socket_peercred(&line)?.uid == rustix::process::geteuid() => Ok(Some(line)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
        Err(error) => {
            // Out of descriptors, most likely: those who are served go on.
            eprintln!("gpu-zone-sandbox: cannot accept a connection: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(None)
        }
    }
}
