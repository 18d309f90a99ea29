//! Events that say when work is done, kept for the next piece of work.

use gpuzone_cuda_abi::{CUevent, CuResult, event_flags};

use crate::driver::Driver;

/// So many are kept.
const MOST: usize = 256;

/// Events of one context without a time, which end with it.
#[derive(Debug, Default)]
pub(crate) struct SpareEvents(Vec<CUevent>);

// SAFETY: events are the driver's handles, which it takes from any thread.
unsafe impl Send for SpareEvents {}

impl SpareEvents {
    /// One, in the context that is current.
    pub(crate) fn take(&mut self, driver: &Driver) -> Result<CUevent, CuResult> {
        if let Some(event) = self.0.pop() {
            return Ok(event);
        }
        let mut event = std::ptr::null_mut();
        // SAFETY: a place for the answer.
        let made = unsafe { (driver.event_create)(&raw mut event, event_flags::DISABLE_TIMING) };
        made.ok().map(|()| event)
    }

    /// Nobody looks at it any more. What was told to wait for it still does: the driver took note
    /// of that when it was told.
    pub(crate) fn give(&mut self, driver: &Driver, event: CUevent) {
        if self.0.len() < MOST {
            self.0.push(event);
        } else {
            // SAFETY: an event that is in no table any more; one that is pending may be destroyed.
            let _ = unsafe { (driver.event_destroy)(event) };
        }
    }
}
