use std::path::PathBuf;

use gpuzone_api::agent::v1::{DescribeRequest, FlushUsageRequest};
use gpuzone_core::Timestamp;
use gpuzone_ledger::{By, Filter, Ledger, OpenError};
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::arguments::{self, Format};
use crate::commands::{Context, answer};
use crate::error::{CliError, Kind};
use crate::output;

pub(crate) async fn report(
    context: &Context,
    arguments: arguments::Report,
) -> Result<(), CliError> {
    let now = jiff::Timestamp::now();
    let moment = |text: Option<String>| text.map(|text| moment(&text, now)).transpose();
    let filter = Filter {
        tenant: arguments.tenant,
        from: moment(arguments.from)?,
        to: moment(arguments.to)?,
    };
    if filter.from.zip(filter.to).is_some_and(|(from, to)| from >= to) {
        return Err(CliError::new(Kind::Usage, "--from is not before --to; swap them"));
    }
    let ledger = Ledger::open_read_only(&flushed(context).await?).map_err(unopened)?;
    let report =
        ledger.report(&filter).map_err(|error| CliError::caused(Kind::Internal, &error))?;
    let by = match arguments.by {
        arguments::By::Tenant => By::Tenant,
        arguments::By::Lease => By::Lease,
    };
    let text = match context.format {
        Format::Table => Ok(report.table(by)),
        Format::Csv => report.csv(by),
        Format::Json => report.json(by),
    };
    output::print(&text.map_err(|error| CliError::caused(Kind::Internal, &error))?)
}

/// The ledger's path, after a running agent has written down what it knows.
async fn flushed(context: &Context) -> Result<PathBuf, CliError> {
    let mut agent = match context.connect().await {
        Ok(agent) => agent,
        Err(error) => {
            eprintln!("note: {error}; this report is of what was recorded before");
            return Ok(context.directories.ledger());
        }
    };
    answer(agent.flush_usage(FlushUsageRequest {}).await)?;
    let described = answer(agent.describe(DescribeRequest {}).await)?;
    Ok(PathBuf::from(described.ledger_path))
}

pub(crate) fn unopened(error: OpenError) -> CliError {
    let kind = match &error {
        OpenError::Missing(_) => Kind::NotFound,
        OpenError::Unreadable { .. } | OpenError::NotALedger(_) | OpenError::Newer { .. } => {
            Kind::Configuration
        }
        OpenError::Database { .. } => Kind::Internal,
    };
    CliError::caused(kind, &error)
}

/// A moment as people write it: a point in time, a local date or time, or a span before `now`.
pub(crate) fn moment(text: &str, now: jiff::Timestamp) -> Result<Timestamp, CliError> {
    let local = |time: DateTime| TimeZone::system().to_timestamp(time).ok();
    let found = text.parse::<jiff::Timestamp>().ok();
    let found = found.or_else(|| text.parse::<DateTime>().ok().and_then(local));
    let found = found.or_else(|| {
        let date = text.parse::<Date>().ok()?;
        local(date.to_datetime(jiff::civil::Time::midnight()))
    });
    let found = found.or_else(|| {
        let span = text.trim_start_matches('-').parse::<jiff::SignedDuration>().ok()?;
        now.checked_sub(span).ok()
    });
    let nanoseconds = found.and_then(|found| u64::try_from(found.as_nanosecond()).ok());
    nanoseconds.map(Timestamp::from_nanoseconds).ok_or_else(|| {
        let message = format!("'{text}' is no moment after 1970");
        let hint = "write a date like 2026-11-20, a time like 2026-11-20T08:00 or \
                    2026-11-20T08:00:00Z, or how long ago, like 2h";
        CliError::new(Kind::Usage, message).hint(hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_in_several_ways() {
        let now: jiff::Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        let at = |text: &str| {
            let nanoseconds = moment(text, now).unwrap().nanoseconds();
            jiff::Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap()
        };
        assert_eq!(at("2026-11-20T12:00:00Z"), now);
        assert_eq!(at("2h").to_string(), "2026-11-20T10:00:00Z");
        assert_eq!(at("-30m").to_string(), "2026-11-20T11:30:00Z");
        assert_eq!(at("2026-11-20T00:00"), at("2026-11-20"));
        for wrong in ["", "yesterday", "1969-01-01T00:00:00Z", "2026-13-01"] {
            assert_eq!(moment(wrong, now).unwrap_err().kind, Kind::Usage, "{wrong}");
        }
    }
}
