use gpuzone_api::{AgentError, ConnectError, ErrorKind};

use crate::arguments::Format;

/// What kind of error it is. The exit code follows from it, as in BSD's sysexits(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The command line, or the request on it, cannot be right.
    Usage,
    /// What is named is not there.
    NotFound,
    /// No agent answers.
    Unavailable,
    /// A fault of gpu-zone's own.
    Internal,
    /// No room now; later perhaps.
    NoRoom,
    /// The driver, or the driver zone, could not do it.
    Driver,
    /// The tenant may not have it.
    Quota,
    /// The node is not set up for it.
    Configuration,
    /// The program is there and cannot be run; as shells have it.
    NotExecutable,
    /// There is no such program; as shells have it.
    NoProgram,
}

impl Kind {
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 64,
            Self::NotFound => 66,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::NoRoom => 75,
            Self::Driver => 76,
            Self::Quota => 77,
            Self::Configuration => 78,
            Self::NotExecutable => 126,
            Self::NoProgram => 127,
        }
    }

    const ALL: [Self; 10] = [
        Self::Usage,
        Self::NotFound,
        Self::Unavailable,
        Self::Internal,
        Self::NoRoom,
        Self::Driver,
        Self::Quota,
        Self::Configuration,
        Self::NotExecutable,
        Self::NoProgram,
    ];

    /// The kind with that name, as another process of this program says it.
    pub(crate) fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).unwrap_or(Self::Internal)
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::NoRoom => "no-room",
            Self::Driver => "driver",
            Self::Quota => "quota",
            Self::Configuration => "configuration",
            Self::NotExecutable => "not-executable",
            Self::NoProgram => "no-program",
        }
    }
}

impl From<ErrorKind> for Kind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidRequest => Self::Usage,
            ErrorKind::Quota => Self::Quota,
            ErrorKind::NoRoom => Self::NoRoom,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Driver => Self::Driver,
            ErrorKind::Unavailable => Self::Unavailable,
            ErrorKind::Internal => Self::Internal,
        }
    }
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CliError {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl CliError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// With what caused it, down to the last source.
    pub(crate) fn caused(kind: Kind, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self::new(kind, message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Writes it to standard error.
    pub(crate) fn show(&self, format: Format) {
        match format {
            Format::Table | Format::Csv => {
                eprintln!("error: {}", self.message);
                if let Some(hint) = &self.hint {
                    eprintln!("hint: {hint}");
                }
            }
            Format::Json => eprintln!("{}", self.json()),
        }
    }

    pub(crate) fn json(&self) -> String {
        let error = serde_json::json!({
            "kind": self.kind.as_str(),
            "exit_code": self.kind.exit_code(),
            "message": self.message,
            "hint": self.hint,
        });
        serde_json::json!({ "error": error }).to_string()
    }
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        let kind = match &error {
            ConnectError::PathTooLong(_) => Kind::Configuration,
            ConnectError::NoSocket(_)
            | ConnectError::Stale(_)
            | ConnectError::Denied(_)
            | ConnectError::Io { .. }
            | ConnectError::Transport { .. } => Kind::Unavailable,
        };
        Self::caused(kind, &error)
    }
}

impl From<AgentError> for CliError {
    fn from(error: AgentError) -> Self {
        Self::new(error.kind.into(), error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_json_for_programs() {
        let error = CliError::new(Kind::Quota, "no \"more\"").hint("ask less");
        let json: serde_json::Value = serde_json::from_str(&error.json()).unwrap();
        assert_eq!(json["error"]["kind"], "quota");
        assert_eq!(json["error"]["exit_code"], 77);
        assert_eq!(json["error"]["message"], "no \"more\"");
        assert_eq!(json["error"]["hint"], "ask less");
    }
}
