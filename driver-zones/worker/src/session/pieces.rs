//! Answers that are copied to the host piece by piece: the driver fills some while the tenant reads
//! those before them, so that neither waits for the other.

use std::collections::VecDeque;

use gpuzone_cuda_abi::{CUevent, CUstream, CuResult};
use gpuzone_wire::spec::{Call, ContextId};
use gpuzone_wire::stats::Copied;

use super::Session;
use crate::driver::Driver;

/// Pieces that the driver fills at the same time. The tenant reads others meanwhile, and all of them
/// lie in the ring.
const AHEAD: usize = 4;

/// A piece that the driver fills.
struct Begun {
    length: usize,
    /// Happens when it is there; `None`: when the stream is idle.
    done: Option<CUevent>,
}

impl Session {
    /// Sends pieces of these lengths, each of which `copy` has the driver copy to where it is told to,
    /// on a stream of the call's context, which is current.
    pub(super) fn send_pieces(
        &mut self,
        call: &mut Call<'_>,
        stream: CUstream,
        lengths: impl Iterator<Item = usize>,
        copy: impl FnMut(&Driver, *mut u8, usize) -> CuResult,
    ) -> Result<(), CuResult> {
        let mut begun = VecDeque::new();
        let sent = self.overlap(call, stream, lengths, copy, &mut begun);
        if sent.is_err() {
            if self.enter(call.context).is_ok() {
                // The driver may still write to what was begun.
                // SAFETY: a stream of the current context.
                let _ = unsafe { (self.lease.driver.stream_synchronize)(stream) };
            }
            call.pieces.abandon();
            for piece in begun {
                self.take_back(call.context, piece.done);
            }
        }
        self.ask(sent.err().unwrap_or(CuResult::SUCCESS))
    }

    fn overlap(
        &mut self,
        call: &mut Call<'_>,
        stream: CUstream,
        lengths: impl Iterator<Item = usize>,
        mut copy: impl FnMut(&Driver, *mut u8, usize) -> CuResult,
        begun: &mut VecDeque<Begun>,
    ) -> Result<(), CuResult> {
        let mut lengths = lengths.peekable();
        loop {
            if let Some(length) = lengths.peek().copied().filter(|_| begun.len() < AHEAD) {
                if begun.is_empty() && !call.pieces.has_room(length) {
                    // However long the tenant takes to read, nobody else waits for it.
                    self.drain();
                    self.enter(call.context)?;
                }
                if let Some(target) = call.pieces.begin(length)? {
                    lengths.next();
                    copy(&self.lease.driver, target, length).ok()?;
                    let is_all = begun.is_empty() && lengths.peek().is_none();
                    let done = (!is_all).then(|| self.mark(call.context, stream)).transpose()?;
                    begun.push_back(Begun { length, done });
                    continue;
                }
            }
            let Some(first) = begun.front() else { break };
            let driver = &self.lease.driver;
            // SAFETY: a stream and an event of the current context.
            let waited = unsafe {
                match first.done {
                    Some(done) => (driver.event_synchronize)(done),
                    None => (driver.stream_synchronize)(stream),
                }
            };
            waited.ok()?;
            if let Some(first) = begun.pop_front() {
                self.take_back(call.context, first.done);
                call.pieces.finish();
                self.lease.stats.add_copied(Copied::FromDevice, first.length as u64);
            }
        }
        // Only what was begun is in the way of a piece, which is behind it then.
        if lengths.peek().is_none() { Ok(()) } else { Err(CuResult::OUT_OF_MEMORY) }
    }

    fn take_back(&mut self, context: ContextId, done: Option<CUevent>) {
        if let (Some(done), Some(context)) = (done, self.contexts.get_mut(&context)) {
            context.spare.give(&self.lease.driver, done);
        }
    }
}
