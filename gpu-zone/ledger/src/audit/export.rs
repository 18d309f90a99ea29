use std::io::{self, Write};

use gpuzone_core::{TenantId, Timestamp};

use super::AuditEntry;

/// Which events are exported.
#[derive(Clone, Debug, Default)]
pub struct ExportFilter {
    /// Only this tenant's.
    pub tenant: Option<TenantId>,
    /// From this moment.
    pub from: Option<Timestamp>,
    /// To this moment, exclusive.
    pub to: Option<Timestamp>,
}

/// Why events cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// They cannot be written.
    #[error("the events cannot be written out")]
    Write(#[from] io::Error),
    /// They are no JSON.
    #[error("an event cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// They are no CSV.
    #[error("an event cannot be written as CSV")]
    Csv(#[from] csv::Error),
}

impl ExportFilter {
    /// Whether an event is asked for.
    pub fn takes(&self, entry: &AuditEntry) -> bool {
        let time = Timestamp::from_nanoseconds(entry.time_unix_ns);
        self.tenant.as_ref().is_none_or(|tenant| entry.tenant.as_ref() == Some(tenant))
            && self.from.is_none_or(|from| time >= from)
            && self.to.is_none_or(|to| time < to)
    }
}

fn when(entry: &AuditEntry) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(entry.time_unix_ns))
        .map_or_else(|_| entry.time_unix_ns.to_string(), |time| time.to_string())
}

/// Writes events out one by one, and keeps none of them.
pub struct Exporter<W: Write> {
    form: Form<W>,
}

enum Form<W: Write> {
    Json { to: W, first: bool },
    Csv(Box<csv::Writer<W>>),
}

impl<W: Write> Exporter<W> {
    /// As a JSON object whose `events` is the array of all, one a line, each with its time as
    /// people read it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn json(mut to: W) -> Result<Self, ExportError> {
        to.write_all(b"{\"events\": [")?;
        Ok(Self { form: Form::Json { to, first: true } })
    }

    /// As CSV, the detail as JSON in its last column. Texts that a spreadsheet would take for a
    /// formula get a `'` in front.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn csv(to: W) -> Result<Self, ExportError> {
        let mut rows = csv::Writer::from_writer(to);
        rows.write_record(["seq", "time", "kind", "actor", "subject", "tenant", "detail"])?;
        Ok(Self { form: Form::Csv(Box::new(rows)) })
    }

    /// Writes one event.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, entry: &AuditEntry) -> Result<(), ExportError> {
        match &mut self.form {
            Form::Json { to, first } => {
                let mut event = serde_json::to_value(entry)?;
                event["time"] = when(entry).into();
                to.write_all(if std::mem::take(first) { b"\n" } else { b",\n" })?;
                Ok(to.write_all(&serde_json::to_vec(&event)?)?)
            }
            Form::Csv(rows) => Ok(rows.write_record([
                entry.seq.to_string(),
                when(entry),
                entry.kind.as_str().to_owned(),
                harmless(&entry.actor),
                harmless(&entry.subject),
                entry.tenant.as_ref().map_or("", TenantId::as_str).to_owned(),
                serde_json::to_string(&entry.detail)?,
            ])?),
        }
    }

    /// Writes the end.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> Result<(), ExportError> {
        match self.form {
            Form::Json { mut to, .. } => {
                to.write_all(b"\n]}\n")?;
                Ok(to.flush()?)
            }
            Form::Csv(mut rows) => Ok(rows.flush()?),
        }
    }
}

impl ExportError {
    /// Whether whoever reads has seen enough.
    pub fn is_broken_pipe(&self) -> bool {
        let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        match self {
            Self::Write(error) => broken(error),
            Self::Csv(error) => matches!(error.kind(), csv::ErrorKind::Io(error) if broken(error)),
            Self::Json(_) => false,
        }
    }
}

fn harmless(text: &str) -> String {
    match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => format!("'{text}"),
        false => text.to_owned(),
    }
}
