//! The events, written out as they are read: a log may be larger than the memory.

use std::io::{BufWriter, ErrorKind, Write};
use std::ops::ControlFlow;
use std::path::Path;

use gpuzone_ledger::{
    AuditEntry, Expected, ExportError, ExportFilter, Exporter, Head, printable, verify_while,
};

use super::unreadable;
use crate::arguments::Format;
use crate::error::{CliError, Kind};

/// What goes to standard output at once.
const BUFFER: usize = 64 << 10;

/// Writes the events up to `last`, which was seen to be whole; a running agent adds to it.
pub(super) fn export(
    format: Format,
    path: &Path,
    filter: &ExportFilter,
    last: Head,
) -> Result<(), CliError> {
    let out = BufWriter::with_capacity(BUFFER, std::io::stdout().lock());
    match written(format, path, filter, last, out) {
        Err(Failure::Export(error)) if error.is_broken_pipe() => Ok(()),
        Err(Failure::Export(error)) => Err(CliError::caused(Kind::Internal, &error)),
        Err(Failure::Read(error)) => Err(unreadable(path, &error)),
        Err(Failure::Changed) => {
            let message = "the audit log was changed while it was exported: this is not all of it";
            Err(CliError::new(Kind::Internal, message).hint("look at it: `gpu-zone audit verify`"))
        }
        Ok(()) => Ok(()),
    }
}

enum Failure {
    Export(ExportError),
    Read(std::io::Error),
    Changed,
}

impl From<ExportError> for Failure {
    fn from(error: ExportError) -> Self {
        Self::Export(error)
    }
}

fn written(
    format: Format,
    path: &Path,
    filter: &ExportFilter,
    last: Head,
    out: impl Write,
) -> Result<(), Failure> {
    let mut exporter = match format {
        Format::Table => To::Table(Rows::begin(out)?),
        Format::Csv => To::Other(Exporter::csv(out)?),
        Format::Json => To::Other(Exporter::json(out)?),
    };
    let mut done = Ok(());
    let each = |entry: AuditEntry| {
        if entry.seq > last.seq {
            return ControlFlow::Break(());
        }
        if filter.takes(&entry) {
            done = exporter.write(&entry);
        }
        if done.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    // Held against that head again: what is exported is what was verified.
    let expected = Expected { recorded: Some(last).filter(|last| last.seq > 0), noted: None };
    let found = verify_while(path, &expected, each).map_err(Failure::Read)?;
    done?;
    if found.head.seq < last.seq {
        return Err(Failure::Changed);
    }
    Ok(exporter.finish()?)
}

enum To<W: Write> {
    Table(Rows<W>),
    Other(Exporter<W>),
}

impl<W: Write> To<W> {
    fn write(&mut self, entry: &AuditEntry) -> Result<(), ExportError> {
        match self {
            Self::Table(rows) => rows.write(entry),
            Self::Other(exporter) => exporter.write(entry),
        }
    }

    fn finish(self) -> Result<(), ExportError> {
        match self {
            Self::Table(mut rows) => match rows.0.flush() {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
                flushed => Ok(flushed?),
            },
            Self::Other(exporter) => exporter.finish(),
        }
    }
}

/// Columns of a width that does not depend on what comes later.
struct Rows<W: Write>(W);

impl<W: Write> Rows<W> {
    fn begin(to: W) -> Result<Self, ExportError> {
        let mut rows = Self(to);
        rows.row(["SEQ", "TIME", "KIND", "ACTOR", "SUBJECT", "TENANT"].map(str::to_owned))?;
        Ok(rows)
    }

    fn row(&mut self, cells: [String; 6]) -> Result<(), ExportError> {
        let [seq, time, kind, actor, subject, tenant] = cells;
        let line =
            format!("{seq:>8}  {time:<30}  {kind:<18}  {actor:<16}  {subject:<40}  {tenant}");
        Ok(writeln!(self.0, "{}", line.trim_end())?)
    }

    fn write(&mut self, entry: &AuditEntry) -> Result<(), ExportError> {
        let nanoseconds = i128::from(entry.time_unix_ns);
        let time = jiff::Timestamp::from_nanosecond(nanoseconds);
        self.row([
            entry.seq.to_string(),
            time.map_or_else(|_| nanoseconds.to_string(), |time| time.to_string()),
            entry.kind.as_str().to_owned(),
            printable(&entry.actor),
            printable(&entry.subject),
            entry.tenant.as_ref().map_or_else(String::new, ToString::to_string),
        ])
    }
}
