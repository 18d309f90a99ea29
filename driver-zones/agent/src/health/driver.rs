//! The threads that ask the driver.
//!
//! ```text
//! supervisor ─ opens the library, again and again when it breaks
//!    ├─ each 2 s: how is each GPU?  ──────────────┐
//!    └─ a thread for each GPU: its events ────────┴─▶ inbox
//! ```
//!
//! A driver that hangs keeps these threads waiting and nobody else; whoever reads the inbox sees
//! that nothing comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gpuzone_core::GpuUuid;
use gpuzone_hw::{Condition, EventsError, NvmlLibrary};

use super::inbox::Inbox;
use crate::errors::sentence;
use crate::gpus::Gpus;

/// How often each GPU is looked at.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// How long one wait for an event is: a thread looks so often whether it is still wanted.
const WAIT: Duration = Duration::from_millis(500);
/// So many looks without one answer, and the library is opened anew: its driver was restarted.
const SILENT_LOOKS: u32 = 3;
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// After so many events without a pause, there is one: a flood leaves the processor to others.
const AT_ONCE: u32 = 64;
const BREATH: Duration = Duration::from_millis(20);

/// Asks the driver until the process ends.
pub(super) fn ask_for_ever(gpus: &Gpus, inbox: &Inbox) {
    let mut pause = SHORTEST_PAUSE;
    loop {
        match gpus.library() {
            Some(library) => {
                pause = SHORTEST_PAUSE;
                ask(&library, gpus, inbox);
                tracing::warn!("the driver answers for no GPU; its library is opened anew");
                // All who use it have to let go of it before it lets go of its driver.
                gpus.close();
            }
            None => {
                if let Err(error) = gpus.open() {
                    let reason = sentence(&error);
                    tracing::warn!(error = reason, "the driver's library cannot be opened");
                    for gpu in gpus.of_driver() {
                        inbox.looked_at(gpu, Condition::Silent(reason.clone()));
                    }
                    inbox.looked();
                    thread::sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

/// Asks until there are no answers any more.
fn ask(library: &Arc<NvmlLibrary>, gpus: &Gpus, inbox: &Inbox) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for gpu in gpus.of_driver() {
            let over = &over;
            let named = thread::Builder::new().name("gpu-events".to_owned());
            let listening = move || listen(library, gpu, gpus, inbox, over);
            if let Err(error) = named.spawn_scoped(scope, listening) {
                tracing::error!(%gpu, %error, "no thread waits for its events");
                gpus.set_events(gpu, false);
            }
        }
        let mut silent = 0;
        while silent < SILENT_LOOKS {
            silent = if look(library, gpus, inbox) { 0 } else { silent + 1 };
            thread::sleep(LOOK);
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// Looks at each GPU; whether the driver answered for one.
fn look(library: &NvmlLibrary, gpus: &Gpus, inbox: &Inbox) -> bool {
    let mut answered = gpus.of_driver().next().is_none();
    for gpu in gpus.of_driver() {
        let condition = library.condition(gpu);
        answered |= match &condition {
            Condition::Reached { .. } | Condition::Lost => true,
            Condition::Silent(_) => false,
        };
        inbox.looked_at(gpu, condition);
    }
    inbox.looked();
    answered
}

/// Waits for one GPU's events.
fn listen(library: &NvmlLibrary, gpu: GpuUuid, gpus: &Gpus, inbox: &Inbox, over: &AtomicBool) {
    let mut told = String::new();
    while !over.load(Ordering::Relaxed) {
        let Err(error) = hear(library, gpu, gpus, inbox, over) else { return };
        let text = sentence(&error);
        if text != told {
            tracing::warn!(%gpu, error = text, "its events are not heard");
            told = text;
        }
        gpus.set_events(gpu, false);
        match error {
            // What is looked at regularly has to do.
            EventsError::Unsupported(_) => return,
            EventsError::Lost(_) => inbox.looked_at(gpu, Condition::Lost),
            EventsError::Failed { .. } => {}
        }
        thread::sleep(LOOK);
    }
}

fn hear(
    library: &NvmlLibrary,
    gpu: GpuUuid,
    gpus: &Gpus,
    inbox: &Inbox,
    over: &AtomicBool,
) -> Result<(), EventsError> {
    let events = library.events(gpu)?;
    gpus.set_events(gpu, true);
    let mut at_once = 0;
    while !over.load(Ordering::Relaxed) {
        match events.next(WAIT)? {
            Some(event) => {
                inbox.happened(gpu, event);
                at_once += 1;
            }
            None => at_once = 0,
        }
        if at_once >= AT_ONCE {
            thread::sleep(BREATH);
            at_once = 0;
        }
    }
    Ok(())
}
