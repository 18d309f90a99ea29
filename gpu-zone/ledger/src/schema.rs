use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// Version of the tables below, kept in the database's `user_version`.
const VERSION: i64 = 2;
/// "gpuz": tells a ledger from another program's database.
const APPLICATION_ID: i64 = 0x6770_757A;
/// How long a reader or writer waits for another one.
const BUSY: Duration = Duration::from_secs(5);

const TABLES: &str = "
CREATE TABLE leases (
    id              TEXT PRIMARY KEY,
    tenant          TEXT NOT NULL,
    zone            TEXT NOT NULL,
    program         TEXT NOT NULL,
    start_ns        INTEGER NOT NULL CHECK (start_ns >= 0),
    last_ns         INTEGER NOT NULL CHECK (last_ns >= start_ns),
    end_ns          INTEGER CHECK (end_ns = last_ns),
    end_reason      TEXT,
    -- The largest counters recorded so far.
    busy_ns         INTEGER NOT NULL DEFAULT 0,
    launches        INTEGER NOT NULL DEFAULT 0,
    to_device       INTEGER NOT NULL DEFAULT 0,
    from_device     INTEGER NOT NULL DEFAULT 0,
    on_device       INTEGER NOT NULL DEFAULT 0,
    refused_memory  INTEGER NOT NULL DEFAULT 0,
    refused_calls   INTEGER NOT NULL DEFAULT 0,
    used_mib_ms     INTEGER NOT NULL DEFAULT 0,
    peak_used       INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX leases_by_tenant ON leases (tenant, start_ns);
CREATE INDEX leases_open ON leases (id) WHERE end_ns IS NULL;
CREATE TABLE grants (
    lease           TEXT NOT NULL REFERENCES leases (id),
    position        INTEGER NOT NULL,
    gpu             TEXT NOT NULL,
    gpu_index       INTEGER NOT NULL,
    gpu_name        TEXT NOT NULL,
    backing         TEXT NOT NULL CHECK (backing IN ('physical', 'simulated')),
    memory_bytes    INTEGER NOT NULL CHECK (memory_bytes >= 0),
    share_percent   INTEGER NOT NULL CHECK (share_percent BETWEEN 1 AND 100),
    PRIMARY KEY (lease, position)
) STRICT, WITHOUT ROWID;
-- One row for each stretch of time between two records, known by its end.
CREATE TABLE intervals (
    lease           TEXT NOT NULL REFERENCES leases (id),
    end_ns          INTEGER NOT NULL,
    start_ns        INTEGER NOT NULL CHECK (start_ns <= end_ns),
    busy_ns         INTEGER NOT NULL,
    launches        INTEGER NOT NULL,
    to_device       INTEGER NOT NULL,
    from_device     INTEGER NOT NULL,
    on_device       INTEGER NOT NULL,
    refused_memory  INTEGER NOT NULL,
    refused_calls   INTEGER NOT NULL,
    used_mib_ms     INTEGER NOT NULL,
    peak_used       INTEGER NOT NULL,
    PRIMARY KEY (lease, end_ns)
) STRICT, WITHOUT ROWID;
-- Unsupported calls by name, within the interval that ends at end_ns.
CREATE TABLE refused_calls (
    lease           TEXT NOT NULL,
    end_ns          INTEGER NOT NULL,
    name            TEXT NOT NULL,
    count           INTEGER NOT NULL,
    PRIMARY KEY (lease, name, end_ns),
    FOREIGN KEY (lease, end_ns) REFERENCES intervals (lease, end_ns)
) STRICT, WITHOUT ROWID;
-- Requests that got no lease.
CREATE TABLE refusals (
    id              INTEGER PRIMARY KEY,
    tenant          TEXT NOT NULL,
    at_ns           INTEGER NOT NULL,
    kind            TEXT NOT NULL,
    message         TEXT NOT NULL
) STRICT;
CREATE INDEX refusals_by_tenant ON refusals (tenant, at_ns);
";
/// What version 2 added.
const TABLES_2: &str = "
-- Where the audit log ends; one row.
CREATE TABLE audit_head (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    seq             INTEGER NOT NULL,
    hash            TEXT NOT NULL
) STRICT;
";

/// Why a ledger was not opened. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file, or its folder, cannot be read.
    #[error("cannot read the ledger '{path}'; look at its permissions")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No file there.
    #[error("there is no ledger at '{0}'; it appears when the agent first runs (`gpu-zone up`)")]
    Missing(PathBuf),
    /// Something else.
    #[error("'{0}' is not a ledger of gpu-zone; move it away, or choose another state folder")]
    NotALedger(PathBuf),
    /// Written by a later release.
    #[error(
        "the ledger '{path}' has version {found}, this program knows up to {known}; use the newer gpu-zone that wrote it"
    )]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest that this program reads.
        known: i64,
    },
    /// Damaged, locked or on a full disk.
    #[error(
        "cannot open the ledger '{path}'; look at its permissions, and at the space on its disk"
    )]
    Database {
        /// Which.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

/// What a file at the ledger's place is.
enum Found {
    /// Nothing yet, or the empty file that a crash left before the first transaction.
    Nothing,
    /// A ledger of this version or an earlier one.
    Ledger,
}

pub(crate) fn open_read_only(path: &Path) -> Result<Connection, OpenError> {
    match look_at(path)? {
        Found::Nothing => Err(OpenError::Missing(path.to_owned())),
        Found::Ledger => read_only(path).map_err(|source| database(path, source)),
    }
}

pub(crate) fn open(path: &Path) -> Result<Connection, OpenError> {
    let found = look_at(path)?;
    let prepare = || -> Result<Connection, rusqlite::Error> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        match found {
            Found::Ledger | Found::Nothing => bring_up(&mut connection)?,
        }
        Ok(connection)
    };
    prepare().map_err(|source| database(path, source))
}

/// Adds the tables that later versions have.
fn bring_up(connection: &mut Connection) -> Result<(), rusqlite::Error> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found = pragma(&transaction, "user_version")?;
    if found < 1 {
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    if found < VERSION {
        transaction.execute_batch(TABLES_2)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}

/// Reads what is there without changing a byte of it.
fn look_at(path: &Path) -> Result<Found, OpenError> {
    let unreadable = |source| OpenError::Unreadable { path: path.to_owned(), source };
    let mut head = Vec::with_capacity(16);
    match File::open(path) {
        Ok(file) => file.take(16).read_to_end(&mut head).map_err(unreadable)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(unreadable(error)),
    };
    if !head.is_empty() && head != b"SQLite format 3\0" {
        return Err(OpenError::NotALedger(path.to_owned()));
    }
    let versions = || -> Result<(i64, i64, i64), rusqlite::Error> {
        let connection = read_only(path)?;
        let tables = "SELECT count(*) FROM sqlite_schema";
        let tables = connection.query_row(tables, [], |row| row.get(0))?;
        Ok((pragma(&connection, "application_id")?, pragma(&connection, "user_version")?, tables))
    };
    match versions().map_err(|source| database(path, source))? {
        (0, 0, 0) => Ok(Found::Nothing),
        (APPLICATION_ID, 1..=VERSION, _) => Ok(Found::Ledger),
        (APPLICATION_ID, found, _) if found > VERSION => {
            Err(OpenError::Newer { path: path.to_owned(), found, known: VERSION })
        }
        _ => Err(OpenError::NotALedger(path.to_owned())),
    }
}

fn read_only(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

fn pragma(connection: &Connection, name: &str) -> Result<i64, rusqlite::Error> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

fn database(path: &Path, source: rusqlite::Error) -> OpenError {
    OpenError::Database { path: path.to_owned(), source }
}
