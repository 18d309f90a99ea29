//! What kernels print. The driver writes it to this process's standard output while a call of a
//! session is with it; here that is a pipe, which is read all the time, so that a driver with much
//! to say waits for no tenant. Whose the text is says the turn: a session whose modules may print
//! makes its calls in one, and what comes meanwhile is its own. Text that comes in nobody's turn is
//! dropped, as is what there is no room for.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::host_room::{Held, HostRoom};
use crate::log;

/// Bytes that are read at once.
const PIECE: usize = 16 << 10;

/// A text that was printed, or as much of it as there was room for.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) bytes: Vec<u8>,
    pub(crate) held: Held,
    /// Bytes that are not in it.
    pub(crate) lost: u64,
}

impl Text {
    pub(crate) fn none(room: &Arc<HostRoom>) -> Self {
        Self { bytes: Vec::new(), held: Held::none(room), lost: 0 }
    }

    fn add(&mut self, piece: &[u8]) {
        // What comes behind a gap would be taken for what stood there.
        let room = if self.lost > 0 { 0 } else { self.held.grow_up_to(piece.len() as u64) };
        let room = usize::try_from(room).unwrap_or(0);
        let (kept, lost) = piece.split_at(room.min(piece.len()));
        self.bytes.extend_from_slice(kept);
        self.lost = self.lost.saturating_add(lost.len() as u64);
    }
}

/// What was read, and for whom.
#[derive(Debug)]
struct Collected {
    /// `Some` while it is somebody's turn.
    text: Option<Text>,
    /// Bytes in nobody's turn.
    strays: u64,
}

/// The standard output of a worker's driver, over all sessions of its lease.
#[derive(Debug)]
pub struct Prints {
    /// None where there is no driver that prints.
    output: Option<OwnedFd>,
    room: Arc<HostRoom>,
    is_taken: Mutex<bool>,
    is_free: Condvar,
    collected: Mutex<Collected>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Prints {
    /// Of a driver that prints nothing; room for `most` bytes all the same.
    pub fn none(most: u64) -> Arc<Self> {
        Arc::new(Self::new(None, most))
    }

    fn new(output: Option<OwnedFd>, most: u64) -> Self {
        let collected = Collected { text: None, strays: 0 };
        Self {
            output,
            room: HostRoom::new(most),
            is_taken: Mutex::new(false),
            is_free: Condvar::new(),
            collected: Mutex::new(collected),
        }
    }

    /// Has this process's standard output read from now on.
    ///
    /// # Errors
    /// When the kernel has no pipe or no thread.
    pub fn of_standard_output(most: u64) -> io::Result<Arc<Self>> {
        let (output, input) = pipe_with(PipeFlags::CLOEXEC)?;
        // Of the reading end alone: who writes waits for the thread.
        rustix::io::ioctl_fionbio(&output, true)?;
        rustix::stdio::dup2_stdout(&input)?;
        let prints = Arc::new(Self::new(Some(output), most));
        let own = Arc::clone(&prints);
        std::thread::Builder::new().name("prints".to_owned()).spawn(move || own.keep_reading())?;
        Ok(prints)
    }

    pub(crate) fn room(&self) -> &Arc<HostRoom> {
        &self.room
    }

    fn keep_reading(&self) {
        let Some(output) = &self.output else { return };
        loop {
            let mut fds = [PollFd::new(output, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => {
                    log::say(&format!("what kernels print is not read any more: {error}"));
                    return;
                }
            }
            self.collect();
        }
    }

    /// Reads what has been written.
    fn collect(&self) {
        let Some(output) = &self.output else { return };
        let mut piece = [0; PIECE];
        let mut collected = lock(&self.collected);
        let strays = collected.strays;
        while let Ok(read @ 1..) =
            rustix::io::retry_on_intr(|| rustix::io::read(output, &mut piece))
        {
            match &mut collected.text {
                Some(text) => text.add(&piece[..read]),
                None => collected.strays = collected.strays.saturating_add(read as u64),
            }
        }
        let strays = collected.strays - strays;
        drop(collected);
        if strays > 0 {
            log::say(&format!("{strays} bytes on the driver's standard output are nobody's"));
        }
    }

    /// Waits until nobody has a turn, and takes one.
    pub(crate) fn begin(&self) {
        let turn = self.is_free.wait_while(lock(&self.is_taken), |taken| *taken);
        *turn.unwrap_or_else(PoisonError::into_inner) = true;
        self.collect();
        lock(&self.collected).text = Some(Text::none(&self.room));
    }

    /// Ends the turn; what was printed in it.
    pub(crate) fn end(&self) -> Text {
        flush();
        self.collect();
        let text = lock(&self.collected).text.take();
        *lock(&self.is_taken) = false;
        self.is_free.notify_one();
        text.unwrap_or_else(|| Text::none(&self.room))
    }
}

/// Has the C library, through which a driver writes, write what it has kept.
fn flush() {
    // SAFETY: null stands for all of its streams.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe(most: u64) -> (Prints, OwnedFd) {
        let (output, input) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        rustix::io::ioctl_fionbio(&output, true).expect("not blocking");
        (Prints::new(Some(output), most), input)
    }

    #[test]
    fn a_text_is_whose_turn_it_is() {
        let (prints, driver) = pipe(100);
        rustix::io::write(&driver, b"nobody's").expect("written");
        prints.begin();
        rustix::io::write(&driver, b"mine").expect("written");
        let text = prints.end();
        assert_eq!((text.bytes.as_slice(), text.lost), (&b"mine"[..], 0));
        assert_eq!((prints.room.held(), lock(&prints.collected).strays), (4, 8));
        prints.begin();
        assert_eq!(prints.end().bytes, b"");
        drop(text);
        assert_eq!(prints.room.held(), 0);
    }

    #[test]
    fn a_driver_that_prints_without_end_waits_for_nobody_and_fills_nothing() {
        let (prints, driver) = pipe(3 * PIECE as u64);
        let prints = Arc::new(prints);
        let reader = Arc::clone(&prints);
        std::thread::spawn(move || reader.keep_reading());
        prints.begin();
        for _ in 0..100 {
            rustix::io::write(&driver, &[b'a'; PIECE]).expect("written");
        }
        let text = prints.end();
        assert!(text.bytes.len() <= 3 * PIECE && text.lost > 0);
        assert_eq!(text.bytes.len() as u64 + text.lost, 100 * PIECE as u64);
    }
}
