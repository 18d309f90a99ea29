//! The host's end of a guest's vsock port: a Unix socket of Cloud Hypervisor's, and a line that names the
//! port.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const AGAIN: Duration = Duration::from_millis(20);
/// `OK` and the number of a port of the host's.
const LONGEST: usize = 16;

/// Connects to a port, waiting until the guest has come so far that it listens there.
///
/// # Errors
/// When it does not within `patience`, or what answers is something else.
pub(super) fn connect(socket: &Path, port: u32, patience: Duration) -> io::Result<UnixStream> {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let message = format!("the guest does not listen at port {port}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        match once(socket, port, left) {
            Ok(stream) => return Ok(stream),
            Err(error) if is_early(&error) => std::thread::sleep(AGAIN),
            Err(error) => return Err(error),
        }
    }
}

/// Whether nobody listens there yet: the connection is closed, or not answered.
fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::TimedOut
    )
}

fn once(socket: &Path, port: u32, limit: Duration) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    // By the byte: what is behind the line's end is the guest's.
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte)?;
        line.extend(byte);
        if line.len() > LONGEST {
            break;
        }
    }
    let number = line.strip_prefix(b"OK ").and_then(|rest| rest.strip_suffix(b"\n"));
    if !number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit)) {
        let message = "what answers at the guest's port is no Cloud Hypervisor";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(stream)
}
