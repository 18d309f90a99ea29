//! A journal's line: `{"sum":"<crc32>","seq":<number>,"step":{…}}`. The sum is over the number, as
//! eight bytes, and the step's bytes as they stand in the line.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    sum: String,
    seq: u64,
    #[serde(borrow)]
    step: &'a RawValue,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It has another form.
    #[error("it is no line of a journal ({0})")]
    Form(#[source] serde_json::Error),
    /// It was altered.
    #[error("its checksum is wrong")]
    Sum,
    /// It is of another version, or of something else.
    #[error("its step is not one that this version knows ({0})")]
    Step(#[source] serde_json::Error),
}

fn sum(sequence: u64, step: &str) -> String {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(step.as_bytes());
    format!("{:08x}", hasher.finalize())
}

/// Appends a line with this number to `to`.
///
/// # Errors
/// When the record has no form in JSON.
pub fn write(to: &mut Vec<u8>, sequence: u64, record: &impl Serialize) -> io::Result<()> {
    let step = RawValue::from_string(serde_json::to_string(record)?)?;
    let line = Line { sum: sum(sequence, step.get()), seq: sequence, step: &step };
    serde_json::to_writer(&mut *to, &line)?;
    to.push(b'\n');
    Ok(())
}

/// A line's number and what it says.
///
/// # Errors
/// When it is not as it was written.
pub fn read<R: DeserializeOwned>(line: &[u8]) -> Result<(u64, R), LineError> {
    let Line { sum: said, seq, step } = serde_json::from_slice(line).map_err(LineError::Form)?;
    if said != sum(seq, step.get()) {
        return Err(LineError::Sum);
    }
    let record = serde_json::from_str(step.get()).map_err(LineError::Step)?;
    Ok((seq, record))
}

/// Whether a crash can have left a journal's last line so: cut off, or with zeros where its blocks
/// were never written.
pub fn is_torn(line: &[u8]) -> bool {
    !line.ends_with(b"\n") || line.contains(&0)
}
