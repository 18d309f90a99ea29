//! One line: `{"sum":"<crc32>","seq":<number>,"step":{…}}`. The sum is over the number, as eight
//! bytes, and the step's bytes as they stand in the line.

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Record;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    sum: String,
    seq: u64,
    #[serde(borrow)]
    step: &'a RawValue,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("it is no line of a journal ({0})")]
    Form(#[source] serde_json::Error),
    #[error("its checksum is wrong")]
    Sum,
    #[error("its step is not one that this version knows ({0})")]
    Step(#[source] serde_json::Error),
}

fn sum(sequence: u64, step: &str) -> String {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(step.as_bytes());
    format!("{:08x}", hasher.finalize())
}

pub(super) fn write(to: &mut Vec<u8>, sequence: u64, record: &Record) -> io::Result<()> {
    let step = RawValue::from_string(serde_json::to_string(record)?)?;
    let line = Line { sum: sum(sequence, step.get()), seq: sequence, step: &step };
    serde_json::to_writer(&mut *to, &line)?;
    to.push(b'\n');
    Ok(())
}

pub(super) fn read(line: &[u8]) -> Result<(u64, Record), LineError> {
    let Line { sum: said, seq, step } = serde_json::from_slice(line).map_err(LineError::Form)?;
    if said != sum(seq, step.get()) {
        return Err(LineError::Sum);
    }
    let record = serde_json::from_str(step.get()).map_err(LineError::Step)?;
    Ok((seq, record))
}
