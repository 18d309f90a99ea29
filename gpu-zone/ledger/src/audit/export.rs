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

/// A JSON array of the events, each with its time as people read it.
///
/// # Errors
/// When it cannot be written.
pub fn export_json(entries: &[AuditEntry], to: &mut dyn Write) -> Result<(), ExportError> {
    let events = entries.iter().map(|entry| {
        let mut event = serde_json::to_value(entry)?;
        event["time"] = when(entry).into();
        Ok(event)
    });
    let events = events.collect::<Result<Vec<_>, serde_json::Error>>()?;
    serde_json::to_writer_pretty(&mut *to, &serde_json::json!({ "events": events }))?;
    Ok(writeln!(to)?)
}

/// The events as CSV, the detail as JSON in its last column. Texts that a spreadsheet would take
/// for a formula get a `'` in front.
///
/// # Errors
/// When it cannot be written.
pub fn export_csv(entries: &[AuditEntry], to: &mut dyn Write) -> Result<(), ExportError> {
    let mut rows = csv::Writer::from_writer(to);
    rows.write_record(["seq", "time", "kind", "actor", "subject", "tenant", "detail"])?;
    for entry in entries {
        rows.write_record([
            entry.seq.to_string(),
            when(entry),
            entry.kind.as_str().to_owned(),
            harmless(&entry.actor),
            harmless(&entry.subject),
            entry.tenant.as_ref().map_or("", TenantId::as_str).to_owned(),
            serde_json::to_string(&entry.detail)?,
        ])?;
    }
    Ok(rows.flush()?)
}

fn harmless(text: &str) -> String {
    match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => format!("'{text}"),
        false => text.to_owned(),
    }
}
