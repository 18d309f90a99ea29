//! Lines to a guest, which may not read them.
//!
//! Whoever sends never waits: lines are queued, up to a limit of bytes, and a thread writes them. A
//! guest that takes none of them for too long, or lets too many come together, is not spoken to any
//! more: the connection is shut, whoever reads from it sees its end, and the zone is over.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a guest may take to read anything at all of what it is sent: an emulated one on a busy
/// host is slow.
pub const STALLED: Duration = Duration::from_secs(60);
/// Most bytes that wait for a guest: two of the longest lines.
const MOST_BYTES: usize = 10 << 20;

/// What waits for a guest.
#[derive(Debug)]
pub struct Outbox(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stream: UnixStream,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<(Option<u64>, Vec<u8>)>,
    /// Of lines that need not wait twice.
    keys: BTreeSet<u64>,
    bytes: usize,
    over: Option<String>,
}

impl Outbox {
    /// Writes to `stream`, on a thread of its own, until the guest takes nothing for `stalled`.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(stream: UnixStream, stalled: Duration) -> io::Result<Self> {
        stream.set_write_timeout(Some(stalled))?;
        let (queue, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { stream, queue, changed });
        let writing = Arc::clone(&shared);
        std::thread::Builder::new().name("to guest".to_owned()).spawn(move || {
            let reason = writing.write(stalled);
            writing.end(reason);
        })?;
        Ok(Self(shared))
    }

    /// Sends a line. Never waits.
    ///
    /// # Errors
    /// When the guest is not spoken to any more; why.
    pub fn send(&self, line: Vec<u8>) -> io::Result<()> {
        self.0.put(None, line)
    }

    /// The same; nothing is sent where a line of this key waits already.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_once(&self, key: u64, line: Vec<u8>) -> io::Result<()> {
        self.0.put(Some(key), line)
    }

    /// Why the guest is not spoken to any more, if it is not.
    pub fn trouble(&self) -> Option<String> {
        self.0.queue().over.clone()
    }

    /// Shuts the connection; what waits is dropped.
    pub fn close(&self) {
        self.0.end("the connection was closed".to_owned());
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, key: Option<u64>, line: Vec<u8>) -> io::Result<()> {
        let mut queue = self.queue();
        if let Some(reason) = &queue.over {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, reason.clone()));
        }
        if key.is_some_and(|key| !queue.keys.insert(key)) {
            return Ok(());
        }
        queue.bytes += line.len();
        queue.lines.push_back((key, line));
        if queue.bytes > MOST_BYTES {
            drop(queue);
            let reason = format!("the guest leaves {MOST_BYTES} bytes unread at its control port");
            self.end(reason.clone());
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, reason));
        }
        drop(queue);
        self.changed.notify_one();
        Ok(())
    }

    /// Writes until that fails; why.
    fn write(&self, stalled: Duration) -> String {
        loop {
            let line = {
                let mut queue = self.queue();
                loop {
                    if let Some(reason) = &queue.over {
                        return reason.clone();
                    }
                    let Some((key, line)) = queue.lines.pop_front() else {
                        queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                        continue;
                    };
                    // One that is rung while this is on its way is rung for something newer.
                    key.map(|key| queue.keys.remove(&key));
                    break line;
                }
            };
            // Each write that takes a byte may take as long again.
            match (&self.stream).write_all(&line) {
                Ok(()) => self.queue().bytes -= line.len(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let seconds = stalled.as_secs_f32();
                    return format!("the guest read nothing at its control port for {seconds} s");
                }
                Err(error) => return format!("the guest's control port is gone: {error}"),
            }
        }
    }

    /// The first reason stays.
    fn end(&self, reason: String) {
        let mut queue = self.queue();
        queue.over.get_or_insert(reason);
        (queue.lines, queue.keys) = Default::default();
        drop(queue);
        // It is shut already where the guest is gone.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn lines_arrive_in_order_and_one_that_waits_already_is_not_sent_again() {
        let (guest, host) = UnixStream::pair().unwrap();
        let outbox = Outbox::start(host, LONG).unwrap();
        // More than a socket takes, so that what follows waits.
        let first = vec![b'x'; 4 << 20];
        outbox.send([&first[..], b"\n"].concat()).unwrap();
        for _ in 0..1000 {
            outbox.send_once(7, b"bell\n".to_vec()).unwrap();
        }
        outbox.send(b"last\n".to_vec()).unwrap();
        let mut lines = BufReader::new(guest).split(b'\n');
        assert_eq!(lines.next().unwrap().unwrap().len(), first.len());
        assert_eq!(lines.next().unwrap().unwrap(), b"bell");
        assert_eq!(lines.next().unwrap().unwrap(), b"last");
        outbox.send_once(7, b"again\n".to_vec()).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), b"again");
    }

    #[test]
    fn who_sends_to_a_guest_that_does_not_read_never_waits_and_its_connection_is_shut() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let mut reader = host.try_clone().unwrap();
        let outbox = Outbox::start(host, Duration::from_millis(50)).unwrap();
        outbox.send(vec![b'x'; 4 << 20]).unwrap();
        // Whoever reads from the guest sees the end, though the guest never left.
        assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
        let said = outbox.send(b"x\n".to_vec()).unwrap_err().to_string();
        assert!(said.contains("read nothing at its control port"), "{said}");
        assert_eq!(outbox.trouble(), Some(said));
        // What the socket had taken is there for the guest, and then its end.
        let mut left = Vec::new();
        guest.read_to_end(&mut left).unwrap();
        assert!(left.len() < 4 << 20);
    }

    #[test]
    fn what_waits_has_a_limit() {
        let (_guest, host) = UnixStream::pair().unwrap();
        let outbox = Outbox::start(host, LONG).unwrap();
        let mut sent = 0;
        let error = loop {
            match outbox.send(vec![b'x'; 1 << 20]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            assert!(sent < 100, "without a limit");
        };
        assert!(error.to_string().contains("unread at its control port"), "{error}");
        assert!(sent >= MOST_BYTES >> 20);
    }
}
