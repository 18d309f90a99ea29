//! Functions of the tenant's that run in its process when a stream comes to them.

use std::ffi::c_void;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use gpuzone_cuda_abi::CuResult;
use gpuzone_wire::spec::{Call, ContextId, HostFunction};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};

use super::Session;

/// Where the main thread finds a session's line, to close it when the tenant goes: the session's
/// own thread may be waiting for work that waits for the tenant.
pub type LinePlace = Arc<OnceLock<Arc<Line>>>;

/// The way to the tenant's thread that runs them: one number there, the same number back.
#[derive(Debug)]
pub struct Line {
    socket: OwnedFd,
    /// One at a time, as CUDA allows.
    turn: Mutex<()>,
}

impl Line {
    /// Runs one, and comes back when it is done or nobody is there to run it.
    fn run(&self, function: u64) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = function.to_le_bytes();
        let sent = retry(|| rustix::net::send(&self.socket, &bytes, SendFlags::NOSIGNAL));
        if sent != Ok(bytes.len()) {
            return;
        }
        let mut answer = [0u8; 8];
        // Whatever the answer is, the tenant can only hurt the order of its own work with it.
        let _ = retry(|| rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty()));
    }

    /// Nobody runs any more of them; whoever waits goes on.
    pub fn close(&self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

fn retry<T>(mut act: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match act() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// A function and the way to it.
pub(super) struct Pending {
    line: Arc<Line>,
    function: u64,
}

impl Pending {
    /// Runs it for the only time.
    unsafe extern "C" fn run_once(pending: *mut c_void) {
        // SAFETY: a box that was given to the driver for this one call, which is given back.
        let pending = unsafe { Box::from_raw(pending.cast::<Self>()) };
        pending.line.run(pending.function);
    }
}

impl Session {
    pub(super) fn open_line(&mut self, call: &mut Call<'_>) -> Result<(), CuResult> {
        if self.line.get().is_some() {
            return Err(CuResult::INVALID_VALUE);
        }
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let pair = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None);
        let (socket, theirs) = pair.map_err(|_| CuResult::OUT_OF_MEMORY)?;
        call.pieces.hand_over(theirs.as_fd())?;
        self.line.get_or_init(|| Arc::new(Line { socket, turn: Mutex::new(()) }));
        Ok(())
    }

    pub(super) fn pending(&self, function: u64) -> Result<Box<Pending>, CuResult> {
        let line = self.line.get().cloned().ok_or(CuResult::INVALID_VALUE)?;
        Ok(Box::new(Pending { line, function }))
    }

    pub(super) fn run_host_function(
        &mut self,
        context: ContextId,
        request: &HostFunction,
    ) -> Result<(), CuResult> {
        let stream = self.stream(context, request.stream)?;
        self.enter(context)?;
        let pending = Box::into_raw(self.pending(request.function)?);
        // SAFETY: a stream of the current context, and a function with what it takes.
        let queued = unsafe {
            let queue = self.lease.driver.launch_host_function;
            queue(stream, Some(Pending::run_once), pending.cast())
        };
        if !queued.is_success() {
            // SAFETY: the driver has not taken it.
            drop(unsafe { Box::from_raw(pending) });
        }
        self.ask(queued)
    }
}
