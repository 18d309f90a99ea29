//! One request and its answer, over a Unix socket.
//!
//! A hypervisor that its guest has taken over is hostile: an answer has a longest head, a longest body and
//! an end.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest head of an answer.
const MAX_HEAD: usize = 16 << 10;
/// Longest body: that of `vm.info`, which lists all devices.
const MAX_BODY: usize = 1 << 20;
const MOST_HEADERS: usize = 32;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error(transparent)]
    Broken(#[from] io::Error),
    #[error("{0}")]
    Nonsense(String),
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// A socket on which all is over at one moment, however many pieces come until then.
struct Deadline {
    stream: UnixStream,
    end: Instant,
}

impl Deadline {
    fn left(&self) -> io::Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write_all(bytes).map_err(timed_out)
    }

    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        match self.stream.read(piece).map_err(timed_out)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => Ok(length),
        }
    }
}

/// A socket's own time limit ends as an attempt that would have to wait.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

/// Asks whoever listens at `socket`, and waits for the answer until `limit` has passed.
pub(super) fn exchange(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&[u8]>,
    limit: Duration,
) -> Result<Answer, HttpError> {
    let stream = UnixStream::connect(socket)?;
    let mut stream = Deadline { stream, end: Instant::now() + limit };
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    if let Some(body) = body {
        let length = body.len();
        request
            .push_str(&format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"));
    }
    request.push_str("Accept: application/json\r\n\r\n");
    let mut request = request.into_bytes();
    request.extend_from_slice(body.unwrap_or_default());
    stream.write_all(&request)?;
    answer(&mut stream)
}

fn answer(stream: &mut Deadline) -> Result<Answer, HttpError> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    let (status, head, length) = loop {
        if let Some(parsed) = head(&bytes)? {
            break parsed;
        }
        if bytes.len() > MAX_HEAD {
            return Err(HttpError::Nonsense(format!("a head of more than {MAX_HEAD} bytes")));
        }
        let length = stream.read(&mut piece)?;
        bytes.extend(piece.iter().take(length));
    };
    let mut body = bytes.split_off(head);
    while body.len() < length {
        let read = stream.read(&mut piece)?;
        body.extend(piece.iter().take(read));
    }
    if body.len() > length {
        return Err(HttpError::Nonsense("more than one answer to one question".to_owned()));
    }
    Ok(Answer { status, body })
}

/// Status, bytes of the head, and bytes of the body, once all of the head is there.
fn head(bytes: &[u8]) -> Result<Option<(u16, usize, usize)>, HttpError> {
    let nonsense = |what: String| HttpError::Nonsense(what);
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(|error| nonsense(error.to_string()))?;
    let httparse::Status::Complete(head) = parsed else { return Ok(None) };
    let status = response.code.ok_or_else(|| nonsense("an answer without a status".to_owned()))?;
    let named = |name: &str| {
        let mut found =
            response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        (found.next().map(|header| header.value), found.next().is_some())
    };
    if named("transfer-encoding").0.is_some() {
        return Err(nonsense("an answer in pieces".to_owned()));
    }
    let length = match named("content-length") {
        (None, _) => 0,
        (Some(value), false) => {
            let number = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
            number.ok_or_else(|| nonsense("a length that is no number".to_owned()))?
        }
        (Some(_), true) => return Err(nonsense("two lengths of one answer".to_owned())),
    };
    if length > MAX_BODY {
        return Err(nonsense(format!("an answer of {length} bytes, more than {MAX_BODY}")));
    }
    Ok(Some((status, head, length)))
}

/// Not more of it than fits into a log's line.
pub(super) fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}
