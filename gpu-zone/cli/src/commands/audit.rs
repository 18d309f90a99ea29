mod export;

use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuzone_api::Directories;
use gpuzone_api::agent::v1::{DescribeRequest, FlushUsageRequest};
use gpuzone_ledger::{DamageKind, Expected, ExportFilter, Ledger, Verified, verify};

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
            let found = look(&directories, head)?;
            verified(context, &directories, &found)
        }
        arguments::Audit::Export { tenant, from, to } => {
            let now = jiff::Timestamp::now();
            let moment = |text: Option<String>| text.map(|text| moment(&text, now)).transpose();
            let filter = ExportFilter { tenant, from: moment(from)?, to: moment(to)? };
            if filter.from.zip(filter.to).is_some_and(|(from, to)| from >= to) {
                return Err(CliError::new(Kind::Usage, "--from is not before --to; swap them"));
            }
            let found = look(&directories, None)?;
            export::export(context.format, &directories.audit_log(), &filter, found.head)?;
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
) -> Result<Verified, CliError> {
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
        let found = verify(&path, &Expected { recorded, noted }, drop);
        let found = found.map_err(|error| unreadable(&path, &error))?;
        let torn = found.damage.as_ref().is_some_and(|damage| damage.kind == DamageKind::Torn);
        looks += 1;
        if !torn || looks == LOOKS {
            return Ok(found);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    let message = format!("cannot read the audit log '{}': {error}", path.display());
    CliError::new(Kind::Configuration, message)
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
