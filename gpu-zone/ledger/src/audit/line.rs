//! One line. Its frame is fixed to the byte, so that whatever changes in it is seen.

use super::{AuditEntry, AuditHash};

const BEFORE_HASH: &[u8] = b"{\"hash\":\"";
const BEFORE_EVENT: &[u8] = b"\",\"event\":";
const END: &[u8] = b"}\n";
const HASH_DIGITS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("it does not have the form of a line")]
    Form,
    #[error("its hash is not that of its event")]
    Hash,
    #[error("its event is none that this version knows ({0})")]
    Event(#[source] serde_json::Error),
}

/// The line of an entry, and the hash that the next one holds.
pub(super) fn write(entry: &AuditEntry) -> Result<(Vec<u8>, AuditHash), serde_json::Error> {
    let event = serde_json::to_vec(entry)?;
    let hash = AuditHash::of(&event);
    let line = [BEFORE_HASH, hash.to_string().as_bytes(), BEFORE_EVENT, &event, END].concat();
    Ok((line, hash))
}

/// A line with its end, as [`write`] made it.
pub(super) fn read(line: &[u8]) -> Result<(AuditHash, AuditEntry), LineError> {
    let rest = line.strip_prefix(BEFORE_HASH).ok_or(LineError::Form)?;
    let (digits, rest) = rest.split_at_checked(HASH_DIGITS).ok_or(LineError::Form)?;
    let rest = rest.strip_prefix(BEFORE_EVENT).ok_or(LineError::Form)?;
    let event = rest.strip_suffix(END).ok_or(LineError::Form)?;
    let digits = std::str::from_utf8(digits).map_err(|_| LineError::Form)?;
    let hash: AuditHash = digits.parse().map_err(|_| LineError::Form)?;
    if hash != AuditHash::of(event) {
        return Err(LineError::Hash);
    }
    Ok((hash, serde_json::from_slice(event).map_err(LineError::Event)?))
}

/// Number and event of a line whose hash is not to be trusted, for saying what became of it.
pub(super) fn claimed_seq(line: &[u8]) -> Option<u64> {
    let marker = b"\"seq\":";
    let at = line.windows(marker.len()).position(|window| window == marker)?;
    let digits: Vec<u8> = line
        .get(at + marker.len()..)?
        .iter()
        .copied()
        .take_while(u8::is_ascii_digit)
        .take(20)
        .collect();
    std::str::from_utf8(&digits).ok()?.parse().ok()
}
