//! Functions of the program that run when a stream comes to them. The worker says when; a thread of
//! this library runs them, and says when they are done.

use std::collections::HashMap;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use gpuzone_cuda_abi::{CUstream, CuResult};
use gpuzone_wire::spec::{HostChannel, HostFunction};

use crate::ffi::{Answer, api};
use crate::graphs::Work;
use crate::state::{State, with};

/// A function and what it is called with, as addresses: they are the program's.
#[derive(Clone, Copy)]
pub(super) enum Function {
    Plain {
        function: unsafe extern "C" fn(*mut c_void),
        data: usize,
    },
    /// Of `cuStreamAddCallback`: it is told its stream and how the work went.
    OfStream {
        function: OfStream,
        stream: usize,
        data: usize,
    },
}

type OfStream = unsafe extern "C" fn(CUstream, CuResult, *mut c_void);

impl Function {
    fn run(self) {
        let pointer = std::ptr::with_exposed_provenance_mut::<c_void>;
        // SAFETY: the program's function with what the program gave for it.
        unsafe {
            match self {
                Self::Plain { function, data } => function(pointer(data)),
                Self::OfStream { function, stream, data } => {
                    function(pointer(stream), CuResult::SUCCESS, pointer(data));
                }
            }
        }
    }
}

/// What may be asked for, and whether it stays after that. The worker only ever names one of them.
#[derive(Default)]
struct Known {
    functions: HashMap<u64, (Function, bool)>,
    last: u64,
}

static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

fn with_known<T>(act: impl FnOnce(&mut Known) -> T) -> T {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    act(known.get_or_insert_default())
}

/// Enters a function, and answers its number.
pub(super) fn enter(function: Function, stays: bool) -> u64 {
    with_known(|known| {
        known.last += 1;
        known.functions.insert(known.last, (function, stays));
        known.last
    })
}

pub(super) fn forget(number: u64) {
    with_known(|known| known.functions.remove(&number));
}

/// A function that stays.
pub(super) fn entered(number: u64) -> Option<Function> {
    with_known(|known| known.functions.get(&number).map(|(function, _)| *function))
}

fn find(number: u64) -> Option<Function> {
    with_known(|known| match known.functions.get(&number).copied() {
        Some((function, true)) => Some(function),
        Some((function, false)) => {
            known.functions.remove(&number);
            Some(function)
        }
        None => None,
    })
}

/// The thread: runs what it is told to, until the worker is gone.
fn run_all(socket: &OwnedFd) {
    let mut number = [0u8; 8];
    loop {
        // SAFETY: room for eight bytes.
        let read = unsafe { libc::recv(socket.as_raw_fd(), number.as_mut_ptr().cast(), 8, 0) };
        if read < 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted {
            continue;
        }
        if read != 8 {
            return;
        }
        if let Some(function) = find(u64::from_le_bytes(number)) {
            function.run();
        }
        let flags = libc::MSG_NOSIGNAL;
        // SAFETY: eight bytes.
        unsafe { libc::send(socket.as_raw_fd(), number.as_ptr().cast(), 8, flags) };
    }
}

/// Opens the way from the worker, once.
pub(super) fn open(state: &mut State) -> Answer {
    if state.hears_worker {
        return Ok(());
    }
    state.call(gpuzone_wire::spec::ContextId(0), &HostChannel {})?;
    let socket = state.client.take_file()?;
    state.hears_worker = true;
    let thread = std::thread::Builder::new().name("gpu-zone host functions".to_owned());
    thread.spawn(move || run_all(&socket)).map(drop).map_err(|_| CuResult::OPERATING_SYSTEM)
}

fn queue(stream: CUstream, function: Function) -> Answer {
    with(|state| {
        let (stream, context) = state.stream(stream)?;
        open(state)?;
        if state.graphs.is_capturing(stream) {
            return state.captures(stream, || Work::Host(enter(function, true))).map(drop);
        }
        let number = enter(function, false);
        let posted = state.post(context, &HostFunction { function: number, stream });
        posted.inspect_err(|_| forget(number))
    })
}

/// Runs a function of a graph.
pub(super) fn run_again(number: u64, stream: CUstream) -> Answer {
    with(|state| {
        let (stream, context) = state.stream(stream)?;
        if state.captures(stream, || Work::Host(number))? {
            return Ok(());
        }
        state.post(context, &HostFunction { function: number, stream })
    })
}

api! {
    fn cuLaunchHostFunc | cuLaunchHostFunc_ptsz(
        stream: CUstream, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void,
    ) {
        let function = function.ok_or(CuResult::INVALID_VALUE)?;
        queue(stream, Function::Plain { function, data: data.expose_provenance() })
    }

    fn cuStreamAddCallback | cuStreamAddCallback_ptsz(
        stream: CUstream, function: Option<OfStream>, data: *mut c_void, flags: u32,
    ) {
        let function = function.ok_or(CuResult::INVALID_VALUE)?;
        if flags != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        let (of, data) = (stream.expose_provenance(), data.expose_provenance());
        queue(stream, Function::OfStream { function, stream: of, data })
    }
}
