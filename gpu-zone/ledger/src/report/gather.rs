use std::collections::BTreeMap;
use std::str::FromStr;

use gpuzone_core::{GpuBacking, LeaseId, TenantId, Timestamp, UsageCounters};
use rusqlite::{Connection, params};

use super::{Backing, Filter, LeaseRow, Report, TenantRow, Usage};
use crate::store::{COUNTERS, counters, loaded};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Something in the database is not what the agent writes.
    #[error("the ledger holds a damaged {what} '{text}'; restore the file from a copy")]
    Damaged {
        /// What it should have been.
        what: &'static str,
        /// What is there.
        text: String,
    },
    /// The database cannot be read.
    #[error("the ledger cannot be read")]
    Database(#[from] rusqlite::Error),
}

/// A stretch of time in nanoseconds, without its end.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: u64,
    to: u64,
}

impl Span {
    fn of(filter: &Filter) -> Self {
        Self {
            from: filter.from.map_or(0, Timestamp::nanoseconds),
            to: filter.to.map_or(u64::MAX, Timestamp::nanoseconds),
        }
    }

    fn holds(self, moment: u64) -> bool {
        self.from <= moment && moment < self.to
    }

    /// What both have in common; a single moment counts when it is inside.
    fn common(self, other: Self) -> Option<Self> {
        if other.from == other.to {
            return self.holds(other.from).then_some(other);
        }
        let (from, to) = (self.from.max(other.from), self.to.min(other.to));
        (from < to).then_some(Self { from, to })
    }

    /// The part of `value`, spread evenly over this span, that falls into `part` of it. Parts
    /// that join add up exactly, because each is the difference of two rounded sums.
    fn share(self, value: u64, part: Self) -> u128 {
        let length = u128::from(self.to - self.from);
        let until = |moment: u64| u128::from(value) * u128::from(moment - self.from) / length;
        if length == 0 { u128::from(value) } else { until(part.to) - until(part.from) }
    }
}

struct Grants {
    backing: Backing,
    gpus: Vec<u32>,
    memory: u128,
    share_percent: u128,
}

pub(crate) fn gather(connection: &Connection, filter: &Filter) -> Result<Report, ReportError> {
    // One transaction, so that all tables are seen at one moment.
    let snapshot = connection.unchecked_transaction()?;
    let span = Span::of(filter);
    let mut rows = leases(&snapshot, filter, span)?;
    for row in &mut rows {
        fill(&snapshot, row, span)?;
    }
    let mut tenants: BTreeMap<TenantId, TenantRow> = BTreeMap::new();
    let empty = |tenant: &TenantId| TenantRow {
        tenant: tenant.clone(),
        backing: Backing::None,
        usage: Usage::default(),
    };
    for row in &rows {
        let sum = tenants.entry(row.tenant.clone()).or_insert_with(|| empty(&row.tenant));
        sum.backing = sum.backing.and(row.backing);
        sum.usage = sum.usage.plus(&row.usage);
    }
    for (tenant, count) in refusals(&snapshot, filter, span)? {
        let sum = tenants.entry(tenant.clone()).or_insert_with(|| empty(&tenant));
        sum.usage.refused_leases += count;
    }
    Ok(Report { filter: filter.clone(), tenants: tenants.into_values().collect(), leases: rows })
}

/// The leases that touch the span, oldest first, without their usage.
fn leases(
    connection: &Connection,
    filter: &Filter,
    span: Span,
) -> Result<Vec<LeaseRow>, ReportError> {
    let mut statement = connection.prepare(
        "SELECT id, tenant, program, start_ns, end_ns, end_reason, last_ns FROM leases
         WHERE ?1 IS NULL OR tenant = ?1 ORDER BY start_ns, id",
    )?;
    let mut rows = statement.query([filter.tenant.as_ref().map(TenantId::as_str)])?;
    let mut leases = Vec::new();
    while let Some(row) = rows.next()? {
        let (start, last) = (loaded(row.get(3)?), loaded(row.get(6)?));
        if !span.holds(start) && span.common(Span { from: start, to: last }).is_none() {
            continue;
        }
        let end: Option<i64> = row.get(4)?;
        leases.push(LeaseRow {
            lease: parsed::<LeaseId>("lease", row.get(0)?)?,
            tenant: parsed::<TenantId>("tenant", row.get(1)?)?,
            program: row.get(2)?,
            backing: Backing::None,
            gpus: Vec::new(),
            start: Timestamp::from_nanoseconds(start),
            end: end.map(|end| Timestamp::from_nanoseconds(loaded(end))),
            end_reason: row.get(5)?,
            usage: Usage { leases: 1, ..Usage::default() },
            refused_by_name: BTreeMap::new(),
        });
    }
    Ok(leases)
}

/// Adds what the lease held and used within the span.
fn fill(connection: &Connection, row: &mut LeaseRow, span: Span) -> Result<(), ReportError> {
    let grants = grants(connection, row.lease)?;
    let sql = format!("SELECT start_ns, end_ns, {COUNTERS} FROM intervals WHERE lease = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut intervals = statement.query([row.lease.to_string()])?;
    while let Some(found) = intervals.next()? {
        let interval = Span { from: loaded(found.get(0)?), to: loaded(found.get(1)?) };
        let Some(part) = span.common(interval) else { continue };
        let used = counters(found, 2)?;
        row.usage = row.usage.plus(&cut(interval, part, &used));
        if used.refused_calls > 0 {
            add_refused(connection, row, interval, part)?;
        }
    }
    let time = row.usage.lease_nanoseconds;
    row.usage.reserved_gpu_nanoseconds = time * grants.share_percent / 100;
    row.usage.reserved_byte_seconds = time * grants.memory / 1_000_000_000;
    row.backing = grants.backing;
    row.gpus = grants.gpus;
    Ok(())
}

fn cut(interval: Span, part: Span, used: &UsageCounters) -> Usage {
    let share = |value| interval.share(value, part);
    Usage {
        lease_nanoseconds: u128::from(part.to - part.from),
        used_mib_milliseconds: share(used.used_mib_milliseconds),
        peak_used: used.peak_used,
        busy_nanoseconds: share(used.busy_nanoseconds),
        launches: share(used.launches),
        bytes_to_device: share(used.bytes_to_device),
        bytes_from_device: share(used.bytes_from_device),
        bytes_on_device: share(used.bytes_on_device),
        refused_memory: share(used.refused_memory),
        refused_calls: share(used.refused_calls),
        ..Usage::default()
    }
}

fn add_refused(
    connection: &Connection,
    row: &mut LeaseRow,
    interval: Span,
    part: Span,
) -> Result<(), ReportError> {
    let sql = "SELECT name, count FROM refused_calls WHERE lease = ?1 AND end_ns = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let end = i64::try_from(interval.to).unwrap_or(i64::MAX);
    let mut found = statement.query(params![row.lease.to_string(), end])?;
    while let Some(refused) = found.next()? {
        let count = interval.share(loaded(refused.get(1)?), part);
        *row.refused_by_name.entry(refused.get(0)?).or_default() += count;
    }
    Ok(())
}

fn grants(connection: &Connection, lease: LeaseId) -> Result<Grants, ReportError> {
    let mut statement = connection.prepare_cached(
        "SELECT gpu_index, backing, memory_bytes, share_percent FROM grants
         WHERE lease = ?1 ORDER BY position",
    )?;
    let mut rows = statement.query([lease.to_string()])?;
    let mut sum = Grants { backing: Backing::None, gpus: Vec::new(), memory: 0, share_percent: 0 };
    while let Some(row) = rows.next()? {
        let backing: String = row.get(1)?;
        let backing = match backing.as_str() {
            "physical" => GpuBacking::Physical,
            "simulated" => GpuBacking::Simulated,
            _ => return Err(ReportError::Damaged { what: "kind of GPU", text: backing }),
        };
        sum.backing = sum.backing.and(backing.into());
        sum.gpus.push(row.get(0)?);
        sum.memory += u128::from(loaded(row.get(2)?));
        sum.share_percent += u128::from(loaded(row.get(3)?));
    }
    Ok(sum)
}

fn refusals(
    connection: &Connection,
    filter: &Filter,
    span: Span,
) -> Result<Vec<(TenantId, u128)>, ReportError> {
    let mut statement = connection.prepare(
        "SELECT tenant, count(*) FROM refusals
         WHERE (?1 IS NULL OR tenant = ?1) AND at_ns >= ?2 AND (?3 IS NULL OR at_ns < ?3)
         GROUP BY tenant",
    )?;
    let bound = |moment: u64| i64::try_from(moment).unwrap_or(i64::MAX);
    let to = filter.to.map(|to| bound(to.nanoseconds()));
    let tenant = filter.tenant.as_ref().map(TenantId::as_str);
    let mut rows = statement.query(params![tenant, bound(span.from), to])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push((parsed("tenant", row.get(0)?)?, u128::from(loaded(row.get(1)?))));
    }
    Ok(found)
}

fn parsed<T: FromStr>(what: &'static str, text: String) -> Result<T, ReportError> {
    text.parse().map_err(|_| ReportError::Damaged { what, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_of_an_interval_add_up(value: u64, from in 0u64..1 << 62, length in 0u64..1 << 61, mut cuts in proptest::collection::vec(0u64..1 << 63, 0..6)) {
            let whole = Span { from, to: from + length };
            cuts.sort_unstable();
            cuts.insert(0, 0);
            cuts.push(u64::MAX);
            let parts = cuts.windows(2).filter_map(|pair| Span { from: pair[0], to: pair[1] }.common(whole));
            prop_assert_eq!(parts.map(|part| whole.share(value, part)).sum::<u128>(), u128::from(value));
        }
    }
}
