use std::collections::BTreeMap;
use std::path::Path;

use gpuzone_core::{LeaseId, MemoryBytes, TenantId, Timestamp, UsageCounters};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use crate::audit::Head;
use crate::records::LeaseRecord;
use crate::report::{self, Filter, Report, ReportError};
use crate::schema::{self, OpenError};

/// The database. One process writes it (the agent); any number read it.
#[derive(Debug)]
pub struct Ledger {
    connection: Connection,
}

/// Why something was not written. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Usage of a lease that was never begun.
    #[error("the ledger does not know {0}; it has to be begun before its usage is recorded")]
    UnknownLease(LeaseId),
    /// An identifier in the database that is none.
    #[error("the ledger holds a damaged identifier '{0}'; restore the file from a copy")]
    Damaged(String),
    /// The database did not take it: full disk, locked, damaged.
    #[error("the ledger cannot be written")]
    Database(#[from] rusqlite::Error),
}

/// A lease's row, as far as records need it.
struct Account {
    last: Timestamp,
    ended: bool,
    counters: UsageCounters,
}

impl Ledger {
    /// Opens the ledger at `path` for writing, and makes it if there is none.
    ///
    /// # Errors
    /// When it cannot be opened, is of a newer version, or is another file altogether.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        schema::open(path).map(|connection| Self { connection })
    }

    /// Opens the ledger at `path` for reports; a writer may be at work.
    ///
    /// # Errors
    /// As for [`Ledger::open`], and when there is none.
    pub fn open_read_only(path: &Path) -> Result<Self, OpenError> {
        schema::open_read_only(path).map(|connection| Self { connection })
    }

    /// Writes down that a lease begins. Again for the same lease: nothing happens.
    ///
    /// # Errors
    /// When the database does not take it.
    pub fn begin_lease(&mut self, lease: &LeaseRecord) -> Result<(), WriteError> {
        let transaction = self.begin()?;
        let id = lease.id.to_string();
        let start = stored(lease.start.nanoseconds());
        let added = transaction.execute(
            "INSERT INTO leases (id, tenant, zone, program, start_ns, last_ns)
             VALUES (?1, ?2, ?3, ?4, ?5, ?5) ON CONFLICT (id) DO NOTHING",
            params![id, lease.tenant.as_str(), lease.zone.to_string(), lease.program, start],
        )?;
        if added == 0 {
            return Ok(());
        }
        for (position, record) in (0_i64..).zip(&lease.grants) {
            transaction.execute(
                "INSERT INTO grants (lease, position, gpu, gpu_index, gpu_name, backing,
                     memory_bytes, share_percent)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    id,
                    position,
                    record.grant.gpu.to_string(),
                    record.gpu_index,
                    record.gpu_name,
                    record.backing.to_string(),
                    stored(record.grant.memory.get()),
                    record.grant.share.percent(),
                ],
            )?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Writes down what a lease has used from its beginning until `now`; only what was not
    /// recorded before is added. `refused` counts unsupported calls by name, also from the
    /// beginning. The lease's last counters win over a clock that went backwards: then the
    /// usage is added to the last interval. Counters above 2^63 - 1 count as that.
    ///
    /// # Errors
    /// When the lease is unknown or the database does not take it.
    pub fn record(
        &mut self,
        lease: LeaseId,
        now: Timestamp,
        counters: &UsageCounters,
        refused: &BTreeMap<String, u64>,
    ) -> Result<(), WriteError> {
        let transaction = self.begin()?;
        let account = account(&transaction, lease)?;
        // What comes late for a lease that has ended is usage, but no more time.
        let end = if account.ended { account.last } else { account.last.max(now) };
        let counters = saturated(counters);
        let used = counters.since(&account.counters);
        add_interval(&transaction, lease, account.last, end, &used)?;
        for (name, total) in refused {
            add_refused(&transaction, lease, end, name, *total)?;
        }
        keep_account(&transaction, lease, end, &account.counters.plus(&used))?;
        transaction.commit()?;
        Ok(())
    }

    /// Closes a lease; the time until `now` is billed as reserved. On disk when it returns.
    /// Again for the same lease: nothing happens.
    ///
    /// # Errors
    /// When the lease is unknown or the database does not take it.
    pub fn end_lease(
        &mut self,
        lease: LeaseId,
        now: Timestamp,
        reason: &str,
    ) -> Result<(), WriteError> {
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        let ended = self.end_lease_once(lease, now, reason);
        self.connection.pragma_update(None, "synchronous", "NORMAL")?;
        ended
    }

    fn end_lease_once(
        &mut self,
        lease: LeaseId,
        now: Timestamp,
        reason: &str,
    ) -> Result<(), WriteError> {
        let transaction = self.begin()?;
        let account = account(&transaction, lease)?;
        if account.ended {
            return Ok(());
        }
        let end = account.last.max(now);
        let nothing = UsageCounters { peak_used: account.counters.peak_used, ..Default::default() };
        add_interval(&transaction, lease, account.last, end, &nothing)?;
        transaction.execute(
            "UPDATE leases SET last_ns = ?2, end_ns = ?2, end_reason = ?3 WHERE id = ?1",
            params![lease.to_string(), stored(end.nanoseconds()), reason],
        )?;
        transaction.commit()?;
        Ok(())
    }

    /// Writes down that `tenant` was refused a lease.
    ///
    /// # Errors
    /// When the database does not take it.
    pub fn refusal(
        &mut self,
        tenant: &TenantId,
        now: Timestamp,
        kind: &str,
        message: &str,
    ) -> Result<(), WriteError> {
        self.connection.execute(
            "INSERT INTO refusals (tenant, at_ns, kind, message) VALUES (?1, ?2, ?3, ?4)",
            params![tenant.as_str(), stored(now.nanoseconds()), kind, message],
        )?;
        Ok(())
    }

    /// The leases that have not ended, each with the time it is recorded up to.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn open_leases(&self) -> Result<Vec<(LeaseId, Timestamp)>, WriteError> {
        let sql = "SELECT id, last_ns FROM leases WHERE end_ns IS NULL ORDER BY id";
        let mut statement = self.connection.prepare(sql)?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        rows.map(|row| {
            let (id, last) = row?;
            let id = id.parse().map_err(|_| WriteError::Damaged(id))?;
            Ok((id, Timestamp::from_nanoseconds(loaded(last))))
        })
        .collect()
    }

    /// Writes down where the audit log ends.
    ///
    /// # Errors
    /// When the database does not take it.
    pub fn set_audit_head(&mut self, head: &Head) -> Result<(), WriteError> {
        self.connection
            .prepare_cached(
                "INSERT INTO audit_head (id, seq, hash) VALUES (1, ?1, ?2)
                 ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, hash = excluded.hash",
            )?
            .execute(params![stored(head.seq), head.hash.to_string()])?;
        Ok(())
    }

    /// Where the audit log ended when that was last written down; `None` when it never was.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn audit_head(&self) -> Result<Option<Head>, WriteError> {
        let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'audit_head'";
        // A ledger of an earlier version, opened for reading.
        if self.connection.query_row(tables, [], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(None);
        }
        let sql = "SELECT seq, hash FROM audit_head WHERE id = 1";
        let found = self
            .connection
            .query_row(sql, [], |row| Ok((loaded(row.get(0)?), row.get::<_, String>(1)?)));
        let Some((seq, hash)) = found.optional()? else { return Ok(None) };
        let hash = hash.parse().map_err(|_| WriteError::Damaged(hash))?;
        Ok(Some(Head { seq, hash }))
    }

    /// What was held and used, as far as it was recorded.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn report(&self, filter: &Filter) -> Result<Report, ReportError> {
        report::gather(&self.connection, filter)
    }

    fn begin(&mut self) -> Result<Transaction<'_>, rusqlite::Error> {
        self.connection.transaction_with_behavior(TransactionBehavior::Immediate)
    }
}

/// The database's signed number of an amount; what does not fit is the largest that does.
fn stored(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The amount of a number that [`stored`] made; the tables hold none below zero.
pub(crate) fn loaded(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn saturated(counters: &UsageCounters) -> UsageCounters {
    let cap = |value: u64| loaded(stored(value));
    UsageCounters {
        busy_nanoseconds: cap(counters.busy_nanoseconds),
        launches: cap(counters.launches),
        bytes_to_device: cap(counters.bytes_to_device),
        bytes_from_device: cap(counters.bytes_from_device),
        bytes_on_device: cap(counters.bytes_on_device),
        refused_memory: cap(counters.refused_memory),
        refused_calls: cap(counters.refused_calls),
        used_mib_milliseconds: cap(counters.used_mib_milliseconds),
        peak_used: counters.peak_used,
    }
}

/// The nine counter columns, in the order in which every query names them.
pub(crate) const COUNTERS: &str = "busy_ns, launches, to_device, from_device, on_device, \
     refused_memory, refused_calls, used_mib_ms, peak_used";

/// The counters of a row whose column `first` is the first of [`COUNTERS`].
pub(crate) fn counters(row: &Row<'_>, first: usize) -> Result<UsageCounters, rusqlite::Error> {
    let at = |offset: usize| row.get(first + offset).map(loaded);
    Ok(UsageCounters {
        busy_nanoseconds: at(0)?,
        launches: at(1)?,
        bytes_to_device: at(2)?,
        bytes_from_device: at(3)?,
        bytes_on_device: at(4)?,
        refused_memory: at(5)?,
        refused_calls: at(6)?,
        used_mib_milliseconds: at(7)?,
        peak_used: MemoryBytes::saturating(at(8)?),
    })
}

fn columns(counters: &UsageCounters) -> [i64; 9] {
    [
        counters.busy_nanoseconds,
        counters.launches,
        counters.bytes_to_device,
        counters.bytes_from_device,
        counters.bytes_on_device,
        counters.refused_memory,
        counters.refused_calls,
        counters.used_mib_milliseconds,
        counters.peak_used.get(),
    ]
    .map(stored)
}

fn account(transaction: &Transaction<'_>, lease: LeaseId) -> Result<Account, WriteError> {
    let sql = format!("SELECT last_ns, end_ns IS NOT NULL, {COUNTERS} FROM leases WHERE id = ?1");
    let found = transaction.prepare_cached(&sql)?.query_row([lease.to_string()], |row| {
        Ok(Account {
            last: Timestamp::from_nanoseconds(loaded(row.get(0)?)),
            ended: row.get(1)?,
            counters: counters(row, 2)?,
        })
    });
    found.optional()?.ok_or(WriteError::UnknownLease(lease))
}

fn keep_account(
    transaction: &Transaction<'_>,
    lease: LeaseId,
    last: Timestamp,
    total: &UsageCounters,
) -> Result<(), rusqlite::Error> {
    let [busy, launches, to, from, on, memory, calls, used, peak] = columns(total);
    transaction
        .prepare_cached(
            "UPDATE leases SET last_ns = ?2, end_ns = iif(end_ns IS NULL, NULL, ?2),
                 busy_ns = ?3, launches = ?4, to_device = ?5, from_device = ?6, on_device = ?7,
                 refused_memory = ?8, refused_calls = ?9, used_mib_ms = ?10, peak_used = ?11
             WHERE id = ?1",
        )?
        .execute(params![
            lease.to_string(),
            stored(last.nanoseconds()),
            busy,
            launches,
            to,
            from,
            on,
            memory,
            calls,
            used,
            peak
        ])?;
    Ok(())
}

/// Adds `used` to the interval that ends at `end`, which is new unless no time has passed.
fn add_interval(
    transaction: &Transaction<'_>,
    lease: LeaseId,
    start: Timestamp,
    end: Timestamp,
    used: &UsageCounters,
) -> Result<(), rusqlite::Error> {
    let [busy, launches, to, from, on, memory, calls, mib_ms, peak] = columns(used);
    let sql = format!(
        "INSERT INTO intervals (lease, end_ns, start_ns, {COUNTERS})
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
         ON CONFLICT (lease, end_ns) DO UPDATE SET
             busy_ns = busy_ns + excluded.busy_ns,
             launches = launches + excluded.launches,
             to_device = to_device + excluded.to_device,
             from_device = from_device + excluded.from_device,
             on_device = on_device + excluded.on_device,
             refused_memory = refused_memory + excluded.refused_memory,
             refused_calls = refused_calls + excluded.refused_calls,
             used_mib_ms = used_mib_ms + excluded.used_mib_ms,
             peak_used = max(peak_used, excluded.peak_used)"
    );
    let (start, end) = (stored(start.nanoseconds()), stored(end.nanoseconds()));
    transaction.prepare_cached(&sql)?.execute(params![
        lease.to_string(),
        end,
        start,
        busy,
        launches,
        to,
        from,
        on,
        memory,
        calls,
        mib_ms,
        peak
    ])?;
    Ok(())
}

fn add_refused(
    transaction: &Transaction<'_>,
    lease: LeaseId,
    end: Timestamp,
    name: &str,
    total: u64,
) -> Result<(), rusqlite::Error> {
    let id = lease.to_string();
    let sql = "SELECT coalesce(sum(count), 0) FROM refused_calls WHERE lease = ?1 AND name = ?2";
    let before: i64 =
        transaction.prepare_cached(sql)?.query_row(params![id, name], |row| row.get(0))?;
    let added = stored(total).saturating_sub(before);
    if added > 0 {
        transaction
            .prepare_cached(
                "INSERT INTO refused_calls (lease, end_ns, name, count) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (lease, name, end_ns) DO UPDATE SET count = count + excluded.count",
            )?
            .execute(params![id, stored(end.nanoseconds()), name, added])?;
    }
    Ok(())
}
