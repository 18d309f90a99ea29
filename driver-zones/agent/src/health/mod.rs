//! Watching GPUs: what the driver tells of them, and whether their driver zone answers.
//!
//! ```text
//! driver's threads ──▶ inbox ──┐
//! broker's socket ─────────────┴─▶ this task ─▶ book (health, journal) ─▶ audit, watchers
//! ```

mod driver;
mod inbox;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use gpuzone_core::{Level, Signal, Xid, XidClass};
use gpuzone_hw::{Condition, DeviceEvent};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::errors::sentence;
use crate::gpus::Gpus;
use crate::leases::Leases;
use inbox::{Inbox, Seen};

/// How often time goes on for what settles, and how often the zone is asked.
const TICK: Duration = Duration::from_secs(1);
/// A broker answers at once.
const ZONE_LIMIT: Duration = Duration::from_secs(2);
/// A driver that answers nothing for so long hangs.
const HANGS: Duration = Duration::from_secs(15);
/// How long the agent waits at its start until GPUs' events are heard.
const HEARS_WITHIN: Duration = Duration::from_secs(10);
/// What comes within this time is judged together.
const TOGETHER: Duration = Duration::from_millis(20);

/// Starts the threads that ask the driver, and returns the task that judges what they see.
///
/// # Errors
/// When no thread can be had.
pub(crate) fn start(
    leases: Arc<Leases>,
    gpus: Arc<Gpus>,
) -> io::Result<impl Future<Output = ()> + Send> {
    let inbox = Arc::new(Inbox::new());
    let to = Arc::clone(&inbox);
    let named = std::thread::Builder::new().name("driver-watch".to_owned());
    named.spawn(move || driver::ask_for_ever(&gpus, &to))?;
    let (zone, zones) = watch::channel(None);
    let asked = Arc::clone(&leases);
    Ok(async move {
        tokio::select! {
            () = ask_zone(&asked, &zone) => {}
            () = judge(&leases, &inbox, zones) => {}
        }
    })
}

/// Waits until GPUs' events are heard, so that none that comes while the agent serves is missed: a driver tells
/// of those alone that come after it was asked. One that hangs keeps nobody waiting for long.
pub(crate) async fn listening(gpus: &Gpus) {
    if tokio::time::timeout(HEARS_WITHIN, gpus.asked_for_events()).await.is_err() {
        tracing::warn!(
            "the driver takes long to say whether it tells of GPUs' events; until then none is heard"
        );
    }
}

/// Asks the driver zone's broker whether it is there, for ever.
async fn ask_zone(leases: &Leases, zone: &watch::Sender<Option<Signal>>) {
    loop {
        let asked = tokio::time::timeout(ZONE_LIMIT, leases.link.hello());
        let signal = match asked.await {
            Ok(Ok(_)) => Signal::Well(Level::Zone),
            Ok(Err(error)) => Signal::Trouble(Level::Zone, sentence(&error)),
            Err(_) => {
                let reason = format!("its broker has not answered within {ZONE_LIMIT:?}");
                Signal::Trouble(Level::Zone, reason)
            }
        };
        zone.send_replace(Some(signal));
        tokio::time::sleep(TICK).await;
    }
}

async fn judge(leases: &Leases, inbox: &Inbox, zone: watch::Receiver<Option<Signal>>) {
    let mut timer = tokio::time::interval(TICK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = timer.tick() => {}
            () = inbox.arrived() => tokio::time::sleep(TOGETHER).await,
        }
        let (mut seen, silent) = inbox.take();
        for gpu in leases.inventory.gpus() {
            let seen = seen.remove(&gpu.uuid).unwrap_or_default();
            log(gpu.uuid, &seen);
            let signals = match leases.inventory.exposure(gpu.uuid).has_worker() {
                true => signals(seen, silent).into_iter().chain(zone.borrow().clone()).collect(),
                // Neither our driver nor its zone has a part in it, so nothing is wrong with them.
                false => Level::ALL.map(Signal::Well).to_vec(),
            };
            if let Err(error) = leases.observe(gpu.uuid, signals).await {
                tracing::error!(%error, "GPUs' health is not watched any more");
                return;
            }
        }
    }
}

/// What it means for the GPU's health; the driver was silent for so long.
fn signals(seen: Seen, silent: Duration) -> Vec<Signal> {
    let event = |(event, count)| match event {
        DeviceEvent::Xid(xid) => Signal::Xid(xid, count),
        DeviceEvent::UncorrectableEcc => Signal::UncorrectableEcc,
    };
    let mut signals: Vec<Signal> = seen.events.into_iter().map(event).collect();
    match seen.condition {
        Some(Condition::Reached { remap_failed, action }) => {
            signals.push(Signal::Well(Level::Driver));
            signals.extend(remap_failed.then_some(Signal::RemapFailed));
            signals.push(match action {
                Some(action) => Signal::Trouble(Level::Action, action.to_string()),
                None => Signal::Well(Level::Action),
            });
        }
        Some(Condition::Lost) => signals.push(Signal::Lost),
        Some(Condition::Silent(reason)) => signals.push(Signal::Trouble(Level::Driver, reason)),
        None if silent >= HANGS => {
            let reason = format!("it has not answered for {} s", HANGS.as_secs());
            signals.push(Signal::Trouble(Level::Driver, reason));
        }
        None => {}
    }
    signals
}

fn log(gpu: gpuzone_core::GpuUuid, seen: &Seen) {
    for (event, count) in &seen.events {
        match event {
            DeviceEvent::Xid(xid) => {
                let what = Xid::entry(*xid).what;
                match xid.class() {
                    // Programs can bring these about as fast as they like.
                    XidClass::Application => {
                        tracing::debug!(%gpu, %xid, count, what, "the driver reports");
                    }
                    XidClass::Notice
                    | XidClass::Contained
                    | XidClass::Device
                    | XidClass::Unknown => {
                        tracing::warn!(%gpu, %xid, count, what, "the driver reports");
                    }
                }
            }
            DeviceEvent::UncorrectableEcc => {
                tracing::warn!(%gpu, count, "the driver counts uncorrectable memory errors");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use gpuzone_hw::RecoveryAction;

    use super::*;

    #[test]
    fn what_is_seen_becomes_what_is_judged() {
        let now = Duration::ZERO;
        let mut seen = Seen::default();
        seen.events.insert(DeviceEvent::Xid(Xid::new(79)), 2);
        seen.condition =
            Some(Condition::Reached { remap_failed: true, action: Some(RecoveryAction::Reset) });
        let expected = [
            Signal::Xid(Xid::new(79), 2),
            Signal::Well(Level::Driver),
            Signal::RemapFailed,
            Signal::Trouble(Level::Action, "reset the GPU".into()),
        ];
        assert_eq!(signals(seen, now), expected);
        // Not having looked yet says nothing, until it has been so for long.
        assert!(signals(Seen::default(), now).is_empty());
        let hangs = signals(Seen::default(), HANGS);
        assert!(matches!(&hangs[..], [Signal::Trouble(Level::Driver, _)]), "{hangs:?}");
    }
}
