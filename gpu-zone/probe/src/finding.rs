use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::catalog::{CATALOG, Entry};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Weakens a second wall.
    Low,
    /// Tells of neighbours, or leaves one wall only.
    Medium,
    /// A tenant can disturb its neighbours, or get past a limit.
    High,
    /// A tenant can reach its neighbours' data or own the machine.
    Critical,
}

impl Severity {
    /// The probe's exit code when this is the worst that it found.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Info | Self::Low => 0,
            Self::Medium => 1,
            Self::High => 2,
            Self::Critical => 3,
        }
    }

    /// As people read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Stable name of a kind of finding, like `GZP302`. Only codes of the catalog exist, and a code
/// never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Code(u16);

/// A text that is no code of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no code of a finding; `gpu-zone-probe --list` shows them all")]
pub struct UnknownCode(String);

impl Code {
    /// Only the catalog makes codes.
    pub(crate) const fn new(number: u16) -> Self {
        Self(number)
    }

    /// What the catalog says of it.
    #[must_use]
    pub fn entry(self) -> Option<&'static Entry> {
        CATALOG.iter().find(|entry| entry.code == self)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("GZP{:03}", self.0))
    }
}

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let found = CATALOG.iter().find(|entry| entry.code.to_string() == text.trim());
        found.map(|entry| entry.code).ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

impl TryFrom<String> for Code {
    type Error = UnknownCode;

    fn try_from(text: String) -> Result<Self, UnknownCode> {
        text.parse()
    }
}

impl From<Code> for String {
    fn from(code: Code) -> Self {
        code.to_string()
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind it is.
    pub code: Code,
    /// How bad it is here: mostly what the catalog says, less or more where it depends.
    pub severity: Severity,
    /// What exactly was seen.
    pub seen: String,
    /// Whether a baseline accepts it.
    pub accepted: bool,
}

impl Finding {
    /// A finding as bad as the catalog says.
    #[must_use]
    pub fn new(entry: &Entry, seen: impl Into<String>) -> Self {
        Self { code: entry.code, severity: entry.severity, seen: seen.into(), accepted: false }
    }

    /// The same, but this bad.
    #[must_use]
    pub fn at(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
}
