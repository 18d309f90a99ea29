//! When a session may give work to a GPU.

use std::time::Duration;

use gpuzone_cuda_abi::CuResult;
use gpuzone_wire::spec::ContextId;

use super::{Context, Lease, Session};
use crate::busy::{BusyClock, GpuClock};
use crate::turns::Pressure;

/// How long a session waits for a turn before it looks after its other work.
const LOOK_EVERY: Duration = Duration::from_micros(500);
/// The same where it has none: whoever grants a turn wakes it, so this is for the case that it could not.
/// Many that look often take the processors from the one that works.
const LOOK_SELDOM: Duration = Duration::from_secs(1);

impl Context {
    /// Looks whether its work is done, while it is current.
    pub(super) fn settle(&mut self, lease: &Lease, clock: &BusyClock) {
        let on = GpuClock { clock, gpu: self.device };
        if let Some(measured) = self.meter.settle(&lease.driver, on) {
            self.pace.idle(measured.0);
            lease.turns.end(self.device, measured.0);
        }
    }
}

impl Session {
    /// The most that any of the lease's GPUs is wanted by others.
    pub(super) fn pressure(&self) -> Pressure {
        self.lease.turns.most_pressure()
    }

    /// Waits until work may be given to a context, which is current then.
    pub(super) fn take_turn(&mut self, id: ContextId) -> Result<(), CuResult> {
        self.enter(id)?;
        let lease = &self.lease;
        let context = self.contexts.get_mut(&id).ok_or(CuResult::INVALID_CONTEXT)?;
        let device = context.device;
        if context.meter.is_busy() {
            if lease.turns.pressure(device) != Pressure::Recalled {
                context.pace.before(&lease.driver, lease.turns.room(device));
                // That may have taken a whole kernel's time.
                if lease.turns.pressure(device) != Pressure::Recalled {
                    return Ok(());
                }
            }
            context.meter.wait(&lease.driver);
            self.settle_current();
        }
        self.wait_for_turn(device);
        self.enter(id).map(drop)
    }

    /// Waits for a turn on a GPU. Work that is under way elsewhere is looked after meanwhile, for
    /// others may wait for its end.
    pub(super) fn wait_for_turn(&mut self, device: usize) {
        let mut patience = LOOK_EVERY;
        while !self.lease.turns.begin(device, patience) {
            // Whoever has it may want to print before it gives it back.
            self.end_printing();
            patience = if self.settle() { LOOK_EVERY } else { LOOK_SELDOM };
        }
        self.begin_printing();
    }

    /// Marks where the work that was given ends, for there is nothing else to do now.
    pub(super) fn mark_ends(&mut self) {
        let unmarked = self.contexts.iter().filter(|(_, context)| context.meter.is_unmarked());
        // A session has work in one context at a time, as a rule.
        let Some(id) = unmarked.map(|(id, _)| *id).next() else { return };
        let lease = self.lease.clone();
        if let Ok(context) = self.enter(id) {
            context.meter.mark(&lease.driver);
        }
    }

    /// Waits until nothing is under way, so that the turn can be given back whatever the session
    /// does next.
    pub(super) fn drain(&mut self) {
        let busy = self.contexts.iter().filter(|(_, context)| context.meter.is_busy());
        let busy: Vec<ContextId> = busy.map(|(id, _)| *id).collect();
        let lease = self.lease.clone();
        for id in busy {
            if let Ok(context) = self.enter(id) {
                context.meter.wait(&lease.driver);
            }
        }
        self.settle();
    }
}
