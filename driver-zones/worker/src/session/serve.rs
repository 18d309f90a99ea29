use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use gpuzone_cuda_abi::CuResult;
use gpuzone_wire::client::STICKY;
use gpuzone_wire::codec::{DecodeError, Field};
use gpuzone_wire::hello;
use gpuzone_wire::ring::{
    Direction, Header, MAX_CONTROL, Payload, Peer, Reader, Received, Region, RingError, Spin,
    Writer, flag,
};
use gpuzone_wire::spec::{Call, ContextId, Opcode, Pieces, dispatch};

use super::Session;
use crate::turns::Pressure;

/// How often a session looks whether the GPU has finished, while there is nothing else to do.
const SETTLE_EVERY: Duration = Duration::from_millis(1);
/// The same, while others wait for the GPU.
const SETTLE_SOON: Duration = Duration::from_micros(200);

/// Whether a session's tenant is there: the main thread watches its socket.
#[derive(Debug, Default)]
pub struct SessionPeer {
    /// Set when the socket was closed.
    pub gone: AtomicBool,
}

impl Peer for SessionPeer {
    fn is_there(&self, _slept: bool) -> bool {
        !self.gone.load(Ordering::SeqCst)
    }

    fn slice(&self) -> Duration {
        // The main thread wakes the session; this is for the case that it could not.
        Duration::from_secs(5)
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The tenant's process is gone.
    #[error("its process is gone")]
    Gone,
    /// The tenant wrote nonsense into the ring.
    #[error("{0}")]
    Ring(RingError),
    /// The tenant sent something that is no call.
    #[error("{0}")]
    Call(DecodeError),
}

impl From<RingError> for Ended {
    fn from(error: RingError) -> Self {
        match error {
            RingError::PeerGone => Self::Gone,
            RingError::BadPosition | RingError::BadRecord | RingError::TooLarge => {
                Self::Ring(error)
            }
        }
    }
}

/// Does a tenant's calls until it ends, one way or another. Files are handed over by `files`; nothing
/// reaches a tenant in another machine, which has none.
pub fn serve(
    session: &mut Session,
    region: Arc<Region>,
    spin: Spin,
    peer: &SessionPeer,
    files: Option<BorrowedFd<'_>>,
) -> Ended {
    session.stage_in(region.clone());
    let mut line = Rings::new(region, spin, files);
    let mut busy = false;
    loop {
        let settle_every = match session.pressure() {
            Pressure::Alone => SETTLE_EVERY,
            Pressure::Contended | Pressure::Recalled => SETTLE_SOON,
        };
        let timeout = session.looks_again().or(busy.then_some(settle_every));
        match line.next(session, timeout, peer) {
            Ok(true) => {
                if !line.has_more() {
                    session.mark_ends();
                }
                // However much more there is to answer, the turn does not stay for it.
                busy = session.pressure() != Pressure::Recalled || session.settle();
            }
            Ok(false) => busy = session.settle(),
            Err(ended) => return ended,
        }
    }
}

/// The worker's ends of a session's rings.
pub(crate) struct Rings<'a> {
    requests: Reader,
    replies: Writer,
    region: Arc<Region>,
    answer: Vec<u8>,
    files: Option<BorrowedFd<'a>>,
}

impl<'a> Rings<'a> {
    pub(crate) fn new(region: Arc<Region>, spin: Spin, files: Option<BorrowedFd<'a>>) -> Self {
        Self {
            requests: Reader::new(region.clone(), Direction::Request, spin),
            replies: Writer::new(region.clone(), Direction::Reply, spin),
            region,
            answer: Vec::new(),
            files,
        }
    }

    /// Whether there is another call already.
    fn has_more(&self) -> bool {
        self.requests.has_more()
    }

    /// Does the next call; whether one came in time.
    pub(crate) fn next(
        &mut self,
        session: &mut Session,
        timeout: Option<Duration>,
        peer: &SessionPeer,
    ) -> Result<bool, Ended> {
        if let Some(upto) = session.has_read() {
            match session.reads_records() {
                true => self.requests.release_upto(upto),
                false => self.requests.release(),
            }
        }
        let received = self.requests.receive(timeout, peer)?;
        received.map_or(Ok(false), |received| self.answer(session, received, peer).map(|()| true))
    }

    fn answer(
        &mut self,
        session: &mut Session,
        received: Received,
        peer: &SessionPeer,
    ) -> Result<(), Ended> {
        let header = received.header;
        if received.bulk.len() > session.lease.caps.record_bytes.get() {
            return Err(Ended::Ring(RingError::TooLarge));
        }
        let opcode = Opcode::of(header.opcode).map_err(Ended::Call)?;
        let wants_reply = header.flags & flag::WANTS_REPLY != 0;
        if peer.gone.load(Ordering::SeqCst) && opcode != Opcode::Unsupported {
            // What a dead process still had to say is of no use, but for the count of what it
            // missed.
            return Ok(());
        }
        self.answer.clear();
        CuResult::SUCCESS.0.put(&mut self.answer);
        // A context ends whatever happened before: that is how a program lets go of a fault. And
        // what kernels printed before it is told.
        let is_asked = wants_reply && !matches!(opcode, Opcode::ContextDestroy | Opcode::Prints);
        let deferred = if is_asked { pending(self.region.deferred()) } else { None };
        let status = match deferred {
            Some(error) => error,
            None => {
                if wants_reply && !self.replies.has_room(MAX_CONTROL, 0) {
                    // A tenant that does not read its answers keeps nobody else waiting.
                    session.drain();
                }
                let (replies, files) = (&mut self.replies, self.files);
                let mut pieces = RingPieces { replies, header, peer, files };
                let context = ContextId(header.context);
                let mut call = Call { context, bulk: received.bulk, pieces: &mut pieces };
                session.begin_printing();
                let control = self.requests.control();
                let done = dispatch(session, opcode, control, &mut call, &mut self.answer);
                session.end_printing();
                session.keeps_record(|| self.requests.hold());
                done.map_err(Ended::Call)?
            }
        };
        if wants_reply {
            self.reply(header, status, peer)
        } else {
            defer(self.region.deferred(), status);
            Ok(())
        }
    }

    fn reply(&mut self, header: Header, status: CuResult, peer: &SessionPeer) -> Result<(), Ended> {
        if status.is_context_fatal() {
            defer(self.region.deferred(), status);
        }
        if !status.is_success() || self.answer.len() > MAX_CONTROL {
            let told = if status.is_success() { CuResult::OUT_OF_MEMORY } else { status };
            self.answer.clear();
            told.0.put(&mut self.answer);
        }
        // Who waits for this before it asks again has read it by then.
        let reused = header.flags & flag::REUSED;
        let header = Header::new(header.opcode, reused, header.context, header.sequence);
        Ok(self.replies.send(header, &self.answer, Payload::NONE, peer)?)
    }
}

/// The error of an earlier posted call, which this call answers instead of being done.
fn pending(word: &AtomicU32) -> Option<CuResult> {
    let seen = word.load(Ordering::Acquire);
    if seen == 0 {
        return None;
    }
    if seen & STICKY == 0 {
        // The tenant may have taken it meanwhile; then it is told twice.
        let _ = word.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire);
    }
    Some(CuResult(seen & !STICKY))
}

/// Leaves the error of a posted call for the next call: the first one, or one that stays.
fn defer(word: &AtomicU32, status: CuResult) {
    if status.is_success() {
        return;
    }
    if status.is_context_fatal() {
        let stays = status.0 | STICKY;
        if word.load(Ordering::Acquire) & STICKY == 0 {
            word.store(stays, Ordering::Release);
        }
    } else {
        // An error that is there already is the first one, and the one that counts.
        let _ = word.compare_exchange(0, status.0, Ordering::AcqRel, Ordering::Acquire);
    }
}

struct RingPieces<'a> {
    replies: &'a mut Writer,
    header: Header,
    peer: &'a SessionPeer,
    files: Option<BorrowedFd<'a>>,
}

impl Pieces for RingPieces<'_> {
    fn hand_over(&mut self, file: BorrowedFd<'_>) -> Result<(), CuResult> {
        let to = self.files.ok_or(CuResult::NOT_SUPPORTED)?;
        hello::hand_over(to, file).map_err(|_| CuResult::OUT_OF_MEMORY)
    }

    fn has_room(&mut self, length: usize) -> bool {
        self.replies.has_room(0, length)
    }

    fn begin(&mut self, length: usize) -> Result<Option<*mut u8>, CuResult> {
        let (opcode, context) = (self.header.opcode, self.header.context);
        let header = Header::new(opcode, flag::PIECE, context, self.header.sequence);
        // When the tenant is gone, the session finds out at its next look at the ring.
        let begun = self.replies.begin(header, &[], length, self.peer);
        begun.map_err(|_| CuResult::DEVICE_UNAVAILABLE)
    }

    fn finish(&mut self) {
        self.replies.finish();
    }

    fn abandon(&mut self) {
        self.replies.abandon();
    }
}
