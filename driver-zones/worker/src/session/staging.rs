//! The rings as memory of copies. Once a session has copied much, the driver is told of its rings'
//! memory, so that it copies from there and to there itself, and not by way of memory of its own
//! with the processor's help: on an H200, 8 GB a second without it and 44 with it.
//!
//! Kernels can reach that memory then, as the tenant's program can anyway.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpuzone_cuda_abi::{CUevent, CUstream, CuResult};
use gpuzone_wire::ring::{Bulk, Region};
use gpuzone_wire::spec::ContextId;

use super::Session;

/// So many bytes are copied before the driver is told, which takes a millisecond or two.
const WORTH_IT: u64 = 8 << 20;
/// From here on it is cheaper to keep a record until it was copied than to copy it aside.
const LARGE: usize = 64 << 10;

/// Copies out of the ring are looked at so soon, and so late at most.
const SOONEST: Duration = Duration::from_micros(50);
const LATEST: Duration = Duration::from_millis(1);

/// What the driver knows of a session's rings.
#[derive(Default)]
pub(super) struct Staging {
    rings: Option<Arc<Region>>,
    copied: u64,
    known: Known,
    /// Bytes that were copied aside.
    aside: Vec<u8>,
    /// Copies that still read the ring, in the order of their records.
    reads: VecDeque<Read>,
    /// What marks the end of the copy that the last call began, if it still reads its record.
    begun: Option<(ContextId, CUevent)>,
    /// When such a copy was last begun, or seen to be done.
    moved: Option<Instant>,
}

/// A copy that reads the ring.
struct Read {
    context: ContextId,
    /// Happens when it is done; `None`: it is.
    done: Option<CUevent>,
    /// Where its record ends.
    upto: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Known {
    #[default]
    NotYet,
    /// In this context.
    In(ContextId),
    /// It does not want to.
    Never,
}

/// Bytes to be copied to a device.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub(super) at: *const c_void,
    /// Whether the driver still reads them when its call is back.
    pub(super) is_read_later: bool,
}

impl Session {
    /// The rings that this session's records come from.
    pub(crate) fn stage_in(&mut self, rings: Arc<Region>) {
        self.staging.rings = Some(rings);
    }

    /// So much is about to be copied by way of the rings, in a context that is current.
    pub(super) fn expect_copies(&mut self, context: ContextId, bytes: u64) {
        self.staging.copied = self.staging.copied.saturating_add(bytes);
        let Some(rings) = self
            .staging
            .rings
            .as_ref()
            .filter(|_| self.staging.known == Known::NotYet && self.staging.copied >= WORTH_IT)
        else {
            return;
        };
        let (at, bytes) = rings.records();
        // SAFETY: mapped for as long as the session has the rings, which unregisters it before.
        let told = unsafe { (self.lease.driver.host_register)(at.cast(), bytes, 0) };
        let is_known = told.is_success();
        self.staging.known = if is_known { Known::In(context) } else { Known::Never };
    }

    /// Where the bytes of a record are to be read from.
    pub(super) fn source(&mut self, bulk: Bulk) -> Source {
        let in_ring = bulk.as_ptr().cast();
        match self.staging.known {
            // Memory that the driver does not know, it has read when its call is back.
            Known::NotYet | Known::Never => Source { at: in_ring, is_read_later: false },
            Known::In(_) if bulk.len() >= LARGE => Source { at: in_ring, is_read_later: true },
            Known::In(_) => {
                self.staging.aside.clear();
                // SAFETY: the record is released after the call that it is.
                unsafe { bulk.append_to(&mut self.staging.aside) };
                Source { at: self.staging.aside.as_ptr().cast(), is_read_later: false }
            }
        }
    }

    /// The copy that was just given to a stream still reads its record.
    pub(super) fn keeps_reading(
        &mut self,
        context: ContextId,
        stream: CUstream,
    ) -> Result<(), CuResult> {
        match self.mark(context, stream) {
            Ok(done) => {
                self.staging.begun = Some((context, done));
                Ok(())
            }
            // Where its end cannot be marked it is waited for.
            Err(_) => self.wait_for(stream),
        }
    }

    /// Whether the call that was just done still reads its record, which ends at `upto`.
    pub(super) fn keeps_record(&mut self, upto: impl FnOnce() -> u64) {
        if let Some((context, done)) = self.staging.begun.take() {
            let read = Read { context, done: Some(done), upto: upto() };
            self.staging.reads.push_back(read);
            self.staging.moved = Some(Instant::now());
        }
    }

    /// Whether records are kept for copies.
    pub(super) fn reads_records(&self) -> bool {
        !self.staging.reads.is_empty()
    }

    /// How soon to look at such copies again, if there are some: the longer they take, the later.
    pub(super) fn looks_again(&self) -> Option<Duration> {
        let waited = self.staging.moved.filter(|_| self.reads_records())?.elapsed();
        Some((waited / 4).clamp(SOONEST, LATEST))
    }

    /// Up to where the ring is read now, if that is further than before.
    pub(super) fn has_read(&mut self) -> Option<u64> {
        if !self.reads_records() {
            return None;
        }
        let lease = self.lease.clone();
        let mut upto = None;
        while let Some(read) = self.staging.reads.front() {
            if let Some(done) = read.done {
                // SAFETY: an event of a context that was not destroyed.
                let state = unsafe { (lease.driver.event_query)(done) };
                if state == CuResult::NOT_READY {
                    break;
                }
                // An error shows with the next call.
                let context = self.contexts.get_mut(&read.context);
                if let Some(context) = context {
                    context.spare.give(&lease.driver, done);
                }
            }
            upto = self.staging.reads.pop_front().map(|read| read.upto);
        }
        if upto.is_some() {
            self.staging.moved = Some(Instant::now());
        }
        upto
    }

    /// Whether the driver knows the rings by this context.
    pub(super) fn is_staged_by(&self, context: ContextId) -> bool {
        self.staging.known == Known::In(context)
    }

    /// A context that is current is going, and with it what the driver knows by it. Its work must
    /// be done.
    pub(super) fn unstage(&mut self, context: ContextId) {
        if !self.is_staged_by(context) {
            return;
        }
        self.staging.known = Known::NotYet;
        if let Some(rings) = &self.staging.rings {
            // SAFETY: memory that was registered in this context.
            let _ = unsafe { (self.lease.driver.host_unregister)(rings.records().0.cast()) };
        }
    }

    /// A context is gone, and its copies are done.
    pub(super) fn forget_reads(&mut self, context: ContextId) {
        for read in self.staging.reads.iter_mut().filter(|read| read.context == context) {
            read.done = None;
        }
    }
}
