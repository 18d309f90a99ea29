use std::path::PathBuf;
use std::time::Duration;

use gpuzone_api::Directories;
use gpuzone_api::agent::v1::{DescribeRequest, FlushUsageRequest};
use gpuzone_ledger::{
    AuditEntry, DamageKind, Expected, ExportFilter, Ledger, Verified, export_csv, export_json,
    printable, verify,
};

use crate::arguments::{self, Format};
use crate::commands::report::{moment, unopened};
use crate::commands::{Context, answer};
use crate::error::{CliError, Kind};
use crate::output;

/// As BSD's `EX_DATAERR`: the log is not what was written.
const DAMAGED: u8 = 65;
/// A running agent writes a line at once, so a half one is whole a moment later.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const LOOKS: u32 = 5;

pub(crate) async fn audit(context: &Context, audit: arguments::Audit) -> Result<u8, CliError> {
    let directories = flushed(context).await?;
    match audit {
        arguments::Audit::Verify { head } => {
            let (found, _) = look(&directories, head, &ExportFilter::default())?;
            verified(context, &directories, &found)
        }
        arguments::Audit::Export { tenant, from, to } => {
            let now = jiff::Timestamp::now();
            let moment = |text: Option<String>| text.map(|text| moment(&text, now)).transpose();
            let filter = ExportFilter { tenant, from: moment(from)?, to: moment(to)? };
            if filter.from.zip(filter.to).is_some_and(|(from, to)| from >= to) {
                return Err(CliError::new(Kind::Usage, "--from is not before --to; swap them"));
            }
            let (found, entries) = look(&directories, None, &filter)?;
            exported(context, &entries)?;
            match found.damage {
                None => Ok(0),
                Some(damage) => {
                    eprintln!("error: {damage}; what stands behind it was not exported");
                    Ok(DAMAGED)
                }
            }
        }
    }
}

/// Where the log is, after a running agent has brought all of it to disk.
async fn flushed(context: &Context) -> Result<Directories, CliError> {
    let mut directories = context.directories.clone();
    match context.connect().await {
        Ok(mut agent) => {
            answer(agent.flush_usage(FlushUsageRequest {}).await)?;
            let described = answer(agent.describe(DescribeRequest {}).await)?;
            directories.state = PathBuf::from(described.state_dir);
        }
        Err(error) => context.say(|| format!("{error}; the log is read as it is")),
    }
    Ok(directories)
}

fn look(
    directories: &Directories,
    noted: Option<gpuzone_ledger::Head>,
    filter: &ExportFilter,
) -> Result<(Verified, Vec<AuditEntry>), CliError> {
    let path = directories.audit_log();
    let internal = |error: &dyn std::error::Error| CliError::caused(Kind::Internal, error);
    if !path.exists() && !directories.ledger().exists() {
        let message = format!("there is no audit log at '{}'", path.display());
        return Err(CliError::new(Kind::NotFound, message)
            .hint("it appears when the agent first runs (`gpu-zone up`), or name --state-dir"));
    }
    let mut looks = 0;
    loop {
        // The head first: the log only grows, so it reaches a head that was read before it.
        let ledger = Ledger::open_read_only(&directories.ledger()).map_err(unopened)?;
        let recorded = ledger.audit_head().map_err(|error| internal(&error))?;
        let mut entries = Vec::new();
        let each = |entry| entries.extend(Some(entry).filter(|entry| filter.takes(entry)));
        let found = verify(&path, &Expected { recorded, noted }, each).map_err(|error| {
            let message = format!("cannot read the audit log '{}': {error}", path.display());
            CliError::new(Kind::Configuration, message)
        })?;
        let torn = found.damage.as_ref().is_some_and(|damage| damage.kind == DamageKind::Torn);
        looks += 1;
        if !torn || looks == LOOKS {
            return Ok((found, entries));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn verified(
    context: &Context,
    directories: &Directories,
    found: &Verified,
) -> Result<u8, CliError> {
    let path = directories.audit_log();
    match context.format {
        Format::Table | Format::Csv => output::print(&match &found.damage {
            None => format!(
                "The audit log is whole: {} lines. Its head, to be noted elsewhere:\n{}\n",
                found.lines, found.head
            ),
            Some(damage) => format!(
                "The audit log '{}' is damaged: {damage}.\nUp to there it is whole; its head there: {}\n",
                path.display(),
                found.head
            ),
        }),
        Format::Json => output::print_json(&serde_json::json!({
            "log": path.display().to_string(),
            "whole": found.damage.is_none(),
            "lines": found.lines,
            "head": found.head.to_string(),
            "damage": found.damage.as_ref().map(|damage| serde_json::json!({
                "line": damage.line,
                "kind": damage.kind.as_str(),
                "detail": damage.detail,
            })),
        })),
    }?;
    Ok(if found.damage.is_none() { 0 } else { DAMAGED })
}

fn exported(context: &Context, entries: &[AuditEntry]) -> Result<(), CliError> {
    let mut text = Vec::new();
    let written = match context.format {
        Format::Table => {
            let mut table = output::table(&[">SEQ", "TIME", "KIND", "ACTOR", "SUBJECT", "TENANT"]);
            for entry in entries {
                let nanoseconds = i128::from(entry.time_unix_ns);
                let time = jiff::Timestamp::from_nanosecond(nanoseconds);
                table.add_row([
                    entry.seq.to_string(),
                    time.map_or_else(|_| nanoseconds.to_string(), |time| time.to_string()),
                    entry.kind.as_str().to_owned(),
                    printable(&entry.actor),
                    printable(&entry.subject),
                    entry.tenant.as_ref().map_or_else(String::new, ToString::to_string),
                ]);
            }
            return output::print(&format!("{}\n", table.trim_fmt()));
        }
        Format::Csv => export_csv(entries, &mut text),
        Format::Json => export_json(entries, &mut text),
    };
    written.map_err(|error| CliError::caused(Kind::Internal, &error))?;
    output::print(&String::from_utf8_lossy(&text))
}
