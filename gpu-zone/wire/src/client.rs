//! The tenant's side of the rings: calls, typed by the spec.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gpuzone_cuda_abi::CuResult;

use crate::codec::{Field, Source};
use crate::hello;
use crate::ring::places::RecordPlace;
use crate::ring::{
    Bulk, Direction, Header, Payload, Peer, Reader, Region, RingError, Spin, Writer, flag,
};
use crate::spec::{ContextId, Request};

/// Set in the word of deferred errors when the error stays for ever.
pub const STICKY: u32 = 1 << 31;

/// The connection of a tenant's process to its worker.
#[derive(Debug)]
pub struct Client {
    region: Arc<Region>,
    requests: Writer,
    replies: Reader,
    spin: Spin,
    peer: SocketPeer,
    sequence: u32,
    scratch: Vec<u8>,
    trouble: Option<RingError>,
}

#[derive(Debug)]
struct SocketPeer(OwnedFd);

impl Peer for SocketPeer {
    fn is_there(&self, slept: bool) -> bool {
        // A look costs a system call: only when the worker was silent for a whole slice.
        !slept || !hello::is_closed(&self.0)
    }

    fn slice(&self) -> Duration {
        Duration::from_millis(50)
    }
}

impl Client {
    /// The client of a region that came over `socket`.
    pub fn new(region: Region, socket: OwnedFd, spin: Spin) -> Self {
        let region = Arc::new(region);
        Self {
            requests: Writer::new(region.clone(), Direction::Request, spin),
            replies: Reader::new(region.clone(), Direction::Reply, spin),
            region,
            spin,
            peer: SocketPeer(socket),
            sequence: 0,
            scratch: Vec::with_capacity(4096),
            trouble: None,
        }
    }

    /// From now on, how long it looks for answers and for room before it sleeps.
    pub fn set_spin(&mut self, spin: Spin) {
        self.spin = spin;
        self.requests.set_spin(spin);
    }

    /// Where the next request goes and where the next answer is expected, for who uses the rings without
    /// this, too, as a hostile tenant does.
    pub fn places(&self) -> (RecordPlace, RecordPlace) {
        (self.requests.place(), self.replies.place())
    }

    /// What broke the connection, if it is broken.
    pub fn trouble(&self) -> Option<RingError> {
        self.trouble
    }

    /// The first error of a posted call that nobody was told of yet.
    ///
    /// # Errors
    /// That error; unless it is one that stays, it is forgotten then.
    #[inline]
    pub fn take_deferred(&self) -> Result<(), CuResult> {
        let word = self.region.deferred();
        let seen = word.load(Ordering::Acquire);
        if seen == 0 {
            return Ok(());
        }
        if seen & STICKY == 0 {
            // Fails when a fault that stays has come in between: that one is kept.
            let _ = word.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire);
        }
        Err(CuResult(seen & !STICKY))
    }

    /// Sends a call that nobody answers.
    ///
    /// # Errors
    /// That of an earlier posted call; or that the worker is gone.
    #[inline]
    pub fn post<R: Request>(
        &mut self,
        context: ContextId,
        request: &R,
        bulk: Payload,
    ) -> Result<(), CuResult> {
        self.take_deferred()?;
        self.send(context, request, bulk, 0).map_err(|error| self.broken(error))
    }

    /// Sends a call that gives something back. It is sent whatever went wrong before.
    ///
    /// # Errors
    /// As [`Client::post`]; but for a worker that is gone, the call was sent all the same.
    pub fn post_release<R: Request>(
        &mut self,
        context: ContextId,
        request: &R,
    ) -> Result<(), CuResult> {
        let before = self.take_deferred();
        self.send(context, request, Payload::NONE, 0).map_err(|error| self.broken(error))?;
        before
    }

    /// Takes the file that came with the last answer.
    ///
    /// # Errors
    /// When none came.
    pub fn take_file(&mut self) -> Result<OwnedFd, CuResult> {
        hello::take_over(&self.peer.0).map_err(|_| self.broken(RingError::BadRecord))
    }

    /// Makes a call and waits for its answer.
    ///
    /// # Errors
    /// The call's, that of an earlier posted call, or that the worker is gone.
    #[inline]
    pub fn call<R: Request>(
        &mut self,
        context: ContextId,
        request: &R,
        bulk: Payload,
    ) -> Result<R::Reply, CuResult> {
        self.call_for_pieces(context, request, bulk, |_| Err(RingError::BadRecord))
    }

    /// As [`Client::call`]; the pieces of the answer are given to `piece`.
    ///
    /// # Errors
    /// As [`Client::call`].
    #[inline]
    pub fn call_for_pieces<R: Request>(
        &mut self,
        context: ContextId,
        request: &R,
        bulk: Payload,
        mut piece: impl FnMut(Bulk) -> Result<(), RingError>,
    ) -> Result<R::Reply, CuResult> {
        // Nothing more is sent until it is answered.
        let reused = if bulk.is_empty() { flag::REUSED } else { 0 };
        let answered = self
            .send(context, request, bulk, flag::WANTS_REPLY | reused)
            .and_then(|()| self.answer::<R::Reply>(&mut piece));
        answered.map_err(|error| self.broken(error))?
    }

    #[inline]
    fn send<R: Request>(
        &mut self,
        context: ContextId,
        request: &R,
        bulk: Payload,
        flags: u16,
    ) -> Result<(), RingError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.scratch.clear();
        request.put(&mut self.scratch);
        let header = Header::new(R::OPCODE as u16, flags, context.0, self.sequence);
        self.requests.send(header, &self.scratch, bulk, &self.peer)
    }

    #[inline]
    fn answer<T: Field>(
        &mut self,
        piece: &mut dyn FnMut(Bulk) -> Result<(), RingError>,
    ) -> Result<Result<T, CuResult>, RingError> {
        let spin = if self.requests.woke() { self.spin.after_a_wake() } else { self.spin };
        loop {
            let received = self.replies.receive_looking(spin, None, &self.peer)?;
            let Some(received) = received else { continue };
            if received.header.sequence != self.sequence {
                return Err(RingError::BadRecord);
            }
            if received.header.flags & flag::PIECE != 0 {
                piece(received.bulk)?;
                continue;
            }
            let mut source = Source::new(self.replies.control());
            return decode(&mut source).map_err(|_| RingError::BadRecord);
        }
    }

    fn broken(&mut self, error: RingError) -> CuResult {
        match error {
            // Nothing was sent, the connection is as good as before.
            RingError::TooLarge => CuResult::INVALID_VALUE,
            RingError::PeerGone | RingError::BadPosition | RingError::BadRecord => {
                self.trouble.get_or_insert(error);
                CuResult::DEVICE_UNAVAILABLE
            }
        }
    }
}

fn decode<T: Field>(
    source: &mut Source<'_>,
) -> Result<Result<T, CuResult>, crate::codec::DecodeError> {
    let status = CuResult(u32::get(source)?);
    if let Err(error) = status.ok() {
        return Ok(Err(error));
    }
    let reply = T::get(source)?;
    source.finish()?;
    Ok(Ok(reply))
}
