use std::fmt;
use std::str::FromStr;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Metadata key under which an error's [`ErrorKind`] travels.
pub const ERROR_KEY: &str = "gpuzone-error";

/// What kind of error it is, for whoever has to react: exit codes and retries follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request cannot be right, whatever the node has.
    InvalidRequest,
    /// The tenant may not have it.
    Quota,
    /// The node has not got it, or not now.
    NoRoom,
    /// What the request names is not there.
    NotFound,
    /// The driver, or the driver zone, could not do it.
    Driver,
    /// The agent is starting, ending or not there.
    Unavailable,
    /// A fault of gpu-zone's own.
    Internal,
}

/// A text that names no kind of error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no kind of error that this version knows")]
pub struct UnknownErrorKind(pub String);

/// An error as the agent answers it: a kind, and a sentence for the one who asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AgentError {
    /// What kind of error it is.
    pub kind: ErrorKind,
    /// What was wrong and what to do.
    pub message: String,
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::InvalidRequest,
        Self::Quota,
        Self::NoRoom,
        Self::NotFound,
        Self::Driver,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The word for it, as the metadata carries it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid-request",
            Self::Quota => "quota",
            Self::NoRoom => "no-room",
            Self::NotFound => "not-found",
            Self::Driver => "driver",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    const fn code(self) -> Code {
        match self {
            Self::InvalidRequest => Code::InvalidArgument,
            Self::Quota | Self::NoRoom => Code::ResourceExhausted,
            Self::NotFound => Code::NotFound,
            Self::Driver => Code::FailedPrecondition,
            Self::Unavailable => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ErrorKind {
    type Err = UnknownErrorKind;

    fn from_str(text: &str) -> Result<Self, UnknownErrorKind> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| UnknownErrorKind(text.to_owned()))
    }
}

impl From<AgentError> for Status {
    fn from(error: AgentError) -> Self {
        let mut status = Self::new(error.kind.code(), error.message);
        let kind = MetadataValue::from_static(error.kind.as_str());
        status.metadata_mut().insert(ERROR_KEY, kind);
        status
    }
}

impl From<Status> for AgentError {
    /// A status that is not the agent's (the transport's, or a newer agent's) gets the kind
    /// that its code suggests.
    fn from(status: Status) -> Self {
        let said = status.metadata().get(ERROR_KEY).and_then(|kind| kind.to_str().ok());
        let kind = said.and_then(|kind| kind.parse().ok());
        let kind = kind.unwrap_or_else(|| match status.code() {
            Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidRequest,
            Code::ResourceExhausted => ErrorKind::NoRoom,
            Code::NotFound => ErrorKind::NotFound,
            Code::FailedPrecondition => ErrorKind::Driver,
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => ErrorKind::Unavailable,
            // Codes are an open set of gRPC's, not ours.
            _ => ErrorKind::Internal,
        });
        Self { kind, message: status.message().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_crosses_a_status_unchanged() {
        for kind in ErrorKind::ALL {
            let error = AgentError { kind, message: "quota of tenant 'ä' is used up".into() };
            assert_eq!(AgentError::from(Status::from(error.clone())), error);
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
    }

    #[test]
    fn a_foreign_status_gets_the_nearest_kind() {
        let error = AgentError::from(Status::unavailable("connection refused"));
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert_eq!(AgentError::from(Status::data_loss("")).kind, ErrorKind::Internal);
    }
}
