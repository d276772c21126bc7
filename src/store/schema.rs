//! The tables, their forward migrations, and how every connection is set up.

use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::session::{Session, Trouble};

/// "frsh": marks the file as ours.
pub(super) const APPLICATION_ID: i64 = 0x6672_7368;
/// The schema this freshd writes.
pub const VERSION: i64 = MIGRATIONS.len() as i64;

/// One step per version, never edited once released. `user_version` counts the steps taken.
const MIGRATIONS: &[&str] = &[V1, V2, V3, V4, V5, V6, V7, V8, V9];

const V1: &str = "
CREATE TABLE store (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    store_id BLOB NOT NULL
) STRICT;

-- The secrets come last: a query for a grant's facts never reads their pages.
CREATE TABLE grants (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    user TEXT NOT NULL,
    provider TEXT NOT NULL,
    account TEXT NOT NULL,
    version INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    standing TEXT NOT NULL,
    reason TEXT NOT NULL,
    standing_since INTEGER NOT NULL,
    token_type TEXT NOT NULL,
    obtained_at INTEGER NOT NULL,
    expires_at INTEGER,
    scope TEXT,
    due_at INTEGER,
    imported_at INTEGER NOT NULL,
    refreshed_at INTEGER,
    attempted_at INTEGER,
    failures INTEGER NOT NULL,
    last_failure TEXT,
    unused_refreshes INTEGER NOT NULL,
    key_id INTEGER NOT NULL,
    access_token BLOB,
    refresh_token BLOB,
    UNIQUE (namespace, user, provider, account)
) STRICT;
CREATE INDEX grants_due ON grants (provider, due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX grants_provider ON grants (provider, id);
-- Lists of what needs a person; nearly all grants are active, so it stays small.
CREATE INDEX grants_troubled ON grants (standing, id) WHERE standing <> 'active';

-- Narrow, because one is written before every request.
CREATE TABLE marks (
    grant_id INTEGER PRIMARY KEY,
    first_sent_at INTEGER NOT NULL,
    presented INTEGER NOT NULL
) STRICT;

CREATE TABLE fingerprints (
    grant_id INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (grant_id, fingerprint)
) STRICT, WITHOUT ROWID;

CREATE TABLE activity (
    namespace TEXT NOT NULL,
    user TEXT NOT NULL,
    last_active_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, user)
) STRICT, WITHOUT ROWID;

CREATE TABLE providers (
    name TEXT PRIMARY KEY,
    stopped TEXT,
    stopped_credentials BLOB,
    stopped_at INTEGER,
    cool_down_until INTEGER,
    paused INTEGER NOT NULL,
    margin_ms INTEGER
) STRICT, WITHOUT ROWID;

-- Nameless: nothing here says whose token it was. next_at is NULL where the value does not open.
CREATE TABLE revocations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    provider TEXT NOT NULL,
    kind TEXT NOT NULL,
    key_id INTEGER NOT NULL,
    token BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    next_at INTEGER,
    tries INTEGER NOT NULL
) STRICT;
CREATE INDEX revocations_due ON revocations (next_at, id) WHERE next_at IS NOT NULL;

-- Kept by triggers, so that no write to grants can forget them.
CREATE TABLE counters (
    provider TEXT NOT NULL,
    standing TEXT NOT NULL,
    reason TEXT NOT NULL,
    grants INTEGER NOT NULL,
    PRIMARY KEY (provider, standing, reason)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER grants_counted AFTER INSERT ON grants BEGIN
    INSERT INTO counters VALUES (new.provider, new.standing, new.reason, 1)
        ON CONFLICT DO UPDATE SET grants = grants + 1;
END;
CREATE TRIGGER grants_uncounted AFTER DELETE ON grants BEGIN
    UPDATE counters SET grants = grants - 1
        WHERE provider = old.provider AND standing = old.standing AND reason = old.reason;
END;
CREATE TRIGGER grants_recounted AFTER UPDATE OF standing, reason ON grants
WHEN old.standing <> new.standing OR old.reason <> new.reason BEGIN
    UPDATE counters SET grants = grants - 1
        WHERE provider = old.provider AND standing = old.standing AND reason = old.reason;
    INSERT INTO counters VALUES (new.provider, new.standing, new.reason, 1)
        ON CONFLICT DO UPDATE SET grants = grants + 1;
END;
";

const V2: &str = "
-- Keyed fingerprints of the refresh tokens that a grant has had, 8 bytes each, the newest last.
ALTER TABLE grants ADD COLUMN refresh_tokens BLOB;
UPDATE grants SET refresh_tokens = (
    SELECT unhex(group_concat(hex(substr(f.fingerprint, 1, 8)), '' ORDER BY f.generation))
    FROM fingerprints f WHERE f.grant_id = grants.id);
DROP TABLE fingerprints;

-- A grant's story. Short rows: event, changed_by and times take no byte where they are 0 or 1,
-- and there is no index by age, because every refresh would have to write it.
CREATE TABLE history (
    grant_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    event INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    times INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    detail TEXT,
    status INTEGER,
    changed_by INTEGER,
    presented BLOB,
    received BLOB,
    PRIMARY KEY (grant_id, number)
) STRICT, WITHOUT ROWID;
";

/// The due index carries what a page of the schedule needs, so that a backlog is read without its rows.
const V3: &str = "
ALTER TABLE grants ADD COLUMN refused_since INTEGER;
ALTER TABLE grants ADD COLUMN refresh_token_expires_at INTEGER;
ALTER TABLE grants ADD COLUMN refresh_token_warn_at INTEGER;
ALTER TABLE providers ADD COLUMN schedule TEXT;
UPDATE providers SET schedule = margin_ms;
ALTER TABLE providers DROP COLUMN margin_ms;
ALTER TABLE providers ADD COLUMN served_at INTEGER;
ALTER TABLE providers ADD COLUMN unreachable_since INTEGER;
ALTER TABLE providers ADD COLUMN probe_at INTEGER;
DROP INDEX grants_due;
CREATE INDEX grants_due ON grants (provider, due_at, id, expires_at, version)
    WHERE due_at IS NOT NULL;
";

const V4: &str = "
-- Whose it was stands in the grant's own row, and goes with it.
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    grant_id INTEGER NOT NULL,
    namespace TEXT NOT NULL,
    provider TEXT NOT NULL,
    kind TEXT NOT NULL,
    at INTEGER NOT NULL,
    reason TEXT,
    expires_at INTEGER,
    generation INTEGER NOT NULL
) STRICT;
CREATE INDEX events_grant ON events (grant_id);
-- Events up to this one may be missing.
ALTER TABLE store ADD COLUMN events_after INTEGER NOT NULL DEFAULT 0;
";

const V5: &str = "
-- A user is a keyed hash here, so that a deletion has nothing to delete.
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    action TEXT NOT NULL,
    made_by TEXT NOT NULL,
    user TEXT NOT NULL,
    detail TEXT NOT NULL,
    first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    times INTEGER NOT NULL
) STRICT;
";

const V6: &str = "
-- Every token set of the provider from before this is to be replaced.
ALTER TABLE providers ADD COLUMN renew_before INTEGER;
";

const V7: &str = "
-- Grants whose refresh token's end was announced: a few, so that counting them costs nothing.
CREATE INDEX grants_ending ON grants (provider, refresh_token_expires_at)
    WHERE refresh_token_expires_at IS NOT NULL AND refresh_token_warn_at IS NULL;
";

const V8: &str = "
-- Nearly all grants do not fail, so it stays small.
CREATE INDEX grants_failing ON grants (provider, last_failure)
    WHERE failures > 0 AND standing = 'active';
";

/// SQLite keeps copies of all pages that a statement changes if it may fail halfway: one with triggers whose constraints undo
/// it, as an upsert's always do. With OR FAIL, in the trigger and in the statement that sets it off, there are none. What a
/// statement that failed had changed is undone all the same, by who ran it: see the writer's `run_all`.
const V9: &str = "
DROP TRIGGER grants_counted;
DROP TRIGGER grants_uncounted;
DROP TRIGGER grants_recounted;
CREATE TRIGGER grants_counted AFTER INSERT ON grants BEGIN
    INSERT OR FAIL INTO counters SELECT new.provider, new.standing, new.reason, 0
        WHERE NOT EXISTS (SELECT 1 FROM counters
            WHERE provider = new.provider AND standing = new.standing AND reason = new.reason);
    UPDATE OR FAIL counters SET grants = grants + 1
        WHERE provider = new.provider AND standing = new.standing AND reason = new.reason;
END;
CREATE TRIGGER grants_uncounted AFTER DELETE ON grants BEGIN
    UPDATE OR FAIL counters SET grants = grants - 1
        WHERE provider = old.provider AND standing = old.standing AND reason = old.reason;
END;
CREATE TRIGGER grants_recounted AFTER UPDATE OF standing, reason ON grants
WHEN old.standing <> new.standing OR old.reason <> new.reason BEGIN
    UPDATE OR FAIL counters SET grants = grants - 1
        WHERE provider = old.provider AND standing = old.standing AND reason = old.reason;
    INSERT OR FAIL INTO counters SELECT new.provider, new.standing, new.reason, 0
        WHERE NOT EXISTS (SELECT 1 FROM counters
            WHERE provider = new.provider AND standing = new.standing AND reason = new.reason);
    UPDATE OR FAIL counters SET grants = grants + 1
        WHERE provider = new.provider AND standing = new.standing AND reason = new.reason;
END;
";

/// Opens a connection for writing, set up as every writer is.
///
/// Checkpoints belong to a thread of their own, closing included.
pub(super) fn connect_writer(path: &Path, busy: Duration) -> rusqlite::Result<Connection> {
    let conn = connect(path, busy)?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    // What a savepoint would have to put back stays in memory: else each entry's goes to a temporary file.
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(conn)
}

/// Opens a connection that refuses to write.
pub(super) fn connect_reader(path: &Path, busy: Duration) -> rusqlite::Result<Connection> {
    let conn = connect(path, busy)?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "query_only", true)?;
    // SQLite opens the log with the first read. That must not be one that comes after the files were deleted.
    conn.query_row("SELECT count(*) FROM store", [], |_| Ok(()))?;
    Ok(conn)
}

fn connect(path: &Path, busy: Duration) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(busy)?;
    conn.set_transaction_behavior(TransactionBehavior::Immediate);
    conn.set_prepared_statement_cache_capacity(64);
    // One who can write the file can write the schema: it must not call functions with side effects.
    conn.pragma_update(None, "trusted_schema", false)?;
    // SQLite would look at the bound values for a better plan, and for that compile a cached statement anew at
    // each use (rusqlite clears its bindings, which counts as binding others): most of what a refresh cost.
    // No plan here depends on a value.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(conn)
}

/// Turns an empty file into a store of the newest version.
pub(super) fn create(conn: &mut Connection, store_id: &[u8]) -> rusqlite::Result<()> {
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    migrate(conn, MIGRATIONS)?;
    conn.execute(
        "INSERT INTO store (id, store_id) VALUES (1, ?1)",
        [store_id],
    )?;
    checkpoint_all(conn)?;
    Ok(())
}

/// Takes the steps that are missing, each in a transaction of its own. Returns whether there were any.
pub(super) fn upgrade(conn: &mut Connection) -> rusqlite::Result<bool> {
    let upgraded = migrate(conn, MIGRATIONS)?;
    if upgraded {
        // So that the version can be read from the file alone; see `identify`.
        checkpoint_all(conn)?;
    }
    Ok(upgraded)
}

fn migrate(conn: &mut Connection, steps: &[&str]) -> rusqlite::Result<bool> {
    let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let taken = usize::try_from(version).unwrap_or(0);
    for (nth, step) in steps.iter().enumerate().skip(taken) {
        let tx = conn.transaction()?;
        tx.execute_batch(step)?;
        tx.pragma_update(None, "user_version", nth as i64 + 1)?;
        tx.commit()?;
    }
    Ok(taken < steps.len())
}

/// Writes the version that is there once more: a page of the database changes hands, and nothing in it.
pub(super) fn rewrite_version(session: &Session<'_>) -> Result<(), Trouble> {
    let version = MIGRATIONS.len();
    session.write(&format!("PRAGMA user_version = {version}"), [])?;
    Ok(())
}

/// Copies the whole write-ahead log into the database file and empties it. Returns false if a reader was in the way.
pub(super) fn checkpoint_all(conn: &Connection) -> rusqlite::Result<bool> {
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
        row.get::<_, i64>(0)
    })
    .map(|busy| busy == 0)
}

/// Removes a database, and what a process that was killed may have left beside it: SQLite would roll an old journal or log
/// back into whatever gets the database's name next.
pub(super) fn remove(database: &Path) -> io::Result<()> {
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let mut file = database.as_os_str().to_owned();
        file.push(suffix);
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// What a database file says it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) application_id: i64,
    pub(super) version: i64,
    /// `None` where the table is not there.
    pub(super) store_id: Option<Vec<u8>>,
}

/// Reads a connection's identity.
pub(super) fn identity(conn: &Connection) -> rusqlite::Result<Identity> {
    let application_id = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let store_id = conn
        .query_row("SELECT store_id FROM store", [], |row| row.get(0))
        .ok();
    Ok(Identity {
        application_id,
        version,
        store_id,
    })
}

/// Reads a file's identity without changing or creating a byte: no log, no index, no lock.
///
/// The log is not read either, which is why whatever sets the identity also checkpoints it.
pub(super) fn identify(path: &Path) -> rusqlite::Result<Identity> {
    identity(&connect_immutable(path)?)
}

/// Opens a file that nobody writes, for reading. No log, no index, no lock.
pub(super) fn connect_immutable(path: &Path) -> rusqlite::Result<Connection> {
    let path = percent_encoding::percent_encode(
        path.as_os_str().as_encoded_bytes(),
        percent_encoding::NON_ALPHANUMERIC,
    );
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let conn = Connection::open_with_flags(format!("file:{path}?immutable=1"), flags)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    Ok(conn)
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
