//! Signals with where they come from.
//!
//! A key like Ctrl-C is a signal to everything in the terminal's foreground, so the program
//! has it already; one that a process sent came here alone and is passed on. Only `siginfo_t`
//! tells them apart, which no safe interface at hand shows.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A signal that came to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) number: i32,
    /// The kernel made it, for a key or for a terminal that went away.
    pub(crate) from_kernel: bool,
}

impl Received {
    /// Whether it ends a program that has not said otherwise.
    pub(crate) fn ends(self) -> bool {
        !matches!(self.number, libc::SIGTSTP | libc::SIGCONT | libc::SIGWINCH)
    }
}

const HANDLED: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTSTP,
    libc::SIGCONT,
    libc::SIGWINCH,
];

/// The signals that this process held back before [`receive`].
#[derive(Clone, Copy)]
pub(crate) struct Mask(libc::sigset_t);

impl Mask {
    /// Holds back only these again; for a child before it becomes the program, which inherits
    /// what is held back. Makes one system call and nothing else.
    pub(crate) fn restore(&self) -> io::Result<()> {
        // SAFETY: the set is initialised, and a null pointer says that the old one is not wanted.
        let failed =
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
        if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
    }
}

/// Takes the handled signals from now on, in order. To be called while this is the only
/// thread: threads and children made later inherit that they do not get them.
pub(crate) fn receive() -> io::Result<(UnboundedReceiver<Received>, Mask)> {
    let set = handled();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is initialised, and `before` has room for a set.
    let failed =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr()) };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    // SAFETY: a call that did not fail has written `before`.
    let before = Mask(unsafe { before.assume_init() });
    let (sender, receiver) = unbounded_channel();
    std::thread::Builder::new().name("signals".into()).spawn(move || pass_on(&set, &sender))?;
    Ok((receiver, before))
}

fn handled() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set that it is given, and the numbers added to it
    // are signals' numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for number in HANDLED {
            libc::sigaddset(set.as_mut_ptr(), number);
        }
        set.assume_init()
    }
}

fn pass_on(set: &libc::sigset_t, sender: &UnboundedSender<Received>) {
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
        // SAFETY: `set` is initialised, and `info` has room for what the call writes.
        let number = unsafe { libc::sigwaitinfo(set, info.as_mut_ptr()) };
        if number < 0 {
            // Interrupted by a signal that is not in the set; there is no other error.
            continue;
        }
        // SAFETY: a call that did not fail has written `info`.
        let code = unsafe { info.assume_init() }.si_code;
        // signal(7): codes of processes (`SI_USER`, `SI_QUEUE`, `SI_TKILL`) are 0 and below.
        if sender.send(Received { number, from_kernel: code > 0 }).is_err() {
            return;
        }
    }
}
