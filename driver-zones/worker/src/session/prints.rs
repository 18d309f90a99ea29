//! What a session's kernels print.

use std::time::Duration;

use gpuzone_cuda_abi::{CUevent, CUstream, CuResult};
use gpuzone_wire::spec::{ContextId, Printed};

use super::Session;
use crate::driver::Driver;
use crate::prints::Text;

/// The most that one answer brings.
const AT_ONCE: usize = 64 << 10;
/// How long work is left alone between looks at it.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// Whether a session's kernels may print, and what they have printed.
pub(super) struct Printing {
    may: bool,
    /// Whether it has the turn, see [`crate::prints::Prints`].
    has_turn: bool,
    text: Text,
    /// Bytes of the text that were taken.
    taken: usize,
}

impl Printing {
    pub(super) fn of(lease: &super::Lease) -> Self {
        let text = Text::none(lease.prints.room());
        Self { may: false, has_turn: false, text, taken: 0 }
    }
}

impl Session {
    /// A module is about to come whose kernels may print.
    pub(super) fn expect_prints(&mut self) {
        self.printing.may = true;
        self.begin_printing();
    }

    /// To be called before calls of the driver: it may write to the standard output in any.
    pub(super) fn begin_printing(&mut self) {
        if self.printing.may && !self.printing.has_turn {
            self.lease.prints.begin();
            self.printing.has_turn = true;
        }
    }

    /// Keeps what was printed, and lets others print.
    pub(super) fn end_printing(&mut self) {
        if !std::mem::take(&mut self.printing.has_turn) {
            return;
        }
        let mut more = self.lease.prints.end();
        let text = &mut self.printing.text;
        if text.lost > 0 {
            // Nothing comes behind a gap before the tenant was told of it.
            text.lost = text.lost.saturating_add(more.bytes.len() as u64).saturating_add(more.lost);
            return;
        }
        more.held.hand_to(&mut text.held);
        text.bytes.append(&mut more.bytes);
        text.lost = more.lost;
    }

    /// Waits for work while others may print: it may last, or wait for the tenant itself.
    fn look_until_done(&mut self, is_done: impl Fn(&Driver) -> CuResult) {
        while self.printing.has_turn && is_done(&self.lease.driver) == CuResult::NOT_READY {
            self.end_printing();
            std::thread::sleep(LOOK_EVERY);
            self.begin_printing();
        }
    }

    /// To be called before a stream of the current context is waited for.
    pub(super) fn before_waiting(&mut self, stream: CUstream) {
        // SAFETY: a stream of the current context, or one of CUDA's own.
        self.look_until_done(|driver| unsafe { (driver.stream_query)(stream) });
    }

    /// To be called before all work of the current context is waited for.
    pub(super) fn before_waiting_for_all(&mut self, context: ContextId) {
        if !self.printing.has_turn {
            return;
        }
        let own = self.streams.values().filter(|(of, _)| *of == context);
        let streams: Vec<CUstream> = own.map(|(_, stream)| *stream).collect();
        self.before_waiting(std::ptr::null_mut());
        streams.into_iter().for_each(|stream| self.before_waiting(stream));
    }

    /// To be called before an event of the current context is waited for.
    pub(super) fn before_waiting_for_event(&mut self, event: CUevent) {
        // SAFETY: an event of the current context.
        self.look_until_done(|driver| unsafe { (driver.event_query)(event) });
    }

    /// The next part of what was printed.
    pub(super) fn take_prints(&mut self) -> Printed {
        let printing = &mut self.printing;
        let rest = printing.text.bytes.get(printing.taken..).unwrap_or(&[]);
        let text = rest.get(..AT_ONCE).unwrap_or(rest).to_vec();
        printing.taken += text.len();
        let mut lost = 0;
        if printing.taken >= printing.text.bytes.len() {
            lost = printing.text.lost;
            printing.taken = 0;
            printing.text = Text::none(self.lease.prints.room());
        }
        Printed { text, lost }
    }
}
