//! What the program reads and writes: this process's input, output and error.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use gpuzone_wire::workload_link::{OutputName, ToWorkload};
use tokio::sync::watch;

use crate::relay::Relay;

/// As many bytes as are carried at a time.
const PIECE: usize = 32 << 10;

/// How far the program's output has come.
pub(crate) struct Outputs([watch::Receiver<u64>; 2]);

impl Outputs {
    /// Waits until so many bytes of each were passed on.
    pub(crate) async fn reached(mut self, bytes: [u64; 2]) {
        for (output, bytes) in self.0.iter_mut().zip(bytes) {
            // One that is not carried any more gets no further.
            let _ = output.wait_for(|passed| *passed >= bytes).await;
        }
    }
}

/// Carries all three, on threads of their own.
pub(crate) fn carry(streams: [UnixStream; 3], relay: Arc<Relay>) -> io::Result<Outputs> {
    let [input, output, error] = streams;
    let name = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let unwanted = |output: OutputName| {
        let relay = Arc::clone(&relay);
        // It breaks when the machine is gone, and its program with it.
        move || drop(relay.send(&ToWorkload::Unwanted { output }))
    };
    let (passed, output_passed) = watch::channel(0);
    let left = unwanted(OutputName::Output);
    name("output").spawn(move || carry_output(output, io::stdout(), left, &passed))?;
    let (passed, error_passed) = watch::channel(0);
    let left = unwanted(OutputName::Error);
    name("error").spawn(move || carry_output(error, io::stderr(), left, &passed))?;
    name("input").spawn(move || carry_input(io::stdin().lock(), input, &relay))?;
    Ok(Outputs([output_passed, error_passed]))
}

fn carry_input(mut from: impl Read, mut to: UnixStream, relay: &Relay) {
    let (mut piece, mut bytes) = (vec![0; PIECE], 0);
    loop {
        match from.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            Ok(length) => {
                if to.write_all(piece.get(..length).unwrap_or_default()).is_err() {
                    return;
                }
                bytes += length as u64;
            }
        }
    }
    // It breaks when the machine is gone, and then nobody reads.
    let _ = relay.send(&ToWorkload::InputEnds { bytes });
}

/// Passes on what the guest wrote. When nobody wants it any more, the guest is told, and what still
/// comes is only counted: the program's end is not held up by a reader that left.
fn carry_output(
    mut from: UnixStream,
    mut to: impl Write,
    left: impl FnOnce(),
    passed: &watch::Sender<u64>,
) {
    let (mut piece, mut left) = (vec![0; PIECE], Some(left));
    while let Ok(length @ 1..) = from.read(&mut piece) {
        if left.is_some() {
            let bytes = piece.get(..length).unwrap_or_default();
            if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
                left.take().into_iter().for_each(|left| left());
            }
        }
        passed.send_modify(|passed| *passed += length as u64);
    }
    let _ = from.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_left_is_told_of_once_and_all_is_counted() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (reader, to) = UnixStream::pair().unwrap();
        drop(reader);
        let writer = std::thread::spawn(move || guest.write_all(&vec![b'x'; 3 * PIECE]).unwrap());
        let (told, passed) = (std::cell::Cell::new(0), watch::Sender::new(0));
        carry_output(host, to, || told.set(told.get() + 1), &passed);
        writer.join().unwrap();
        assert_eq!((told.get(), *passed.borrow()), (1, 3 * PIECE as u64));
    }
}
