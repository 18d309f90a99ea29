//! Errors as sentences.

use std::error::Error;

use gpuzone_api::{AgentError, ErrorKind};

/// The error and all that it came from, in one sentence.
pub(crate) fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors repeat their source.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// A fault that the one who asked can do nothing about.
pub(crate) fn internal(message: impl Into<String>) -> AgentError {
    AgentError { kind: ErrorKind::Internal, message: message.into() }
}
