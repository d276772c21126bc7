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
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

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
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    fn new_file(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("a ?#%.db");
        std::fs::write(&path, b"").unwrap();
        path
    }

    #[test]
    fn a_file_is_identified_without_touching_anything() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        create(&mut conn, b"0123456789abcdef").unwrap();
        drop(conn);
        let names = || {
            let mut names: Vec<_> = std::fs::read_dir(dir.path())
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        let (bytes, listed) = (std::fs::read(&path).unwrap(), names());
        let identity = identify(&path).unwrap();
        assert_eq!(identity.application_id, APPLICATION_ID);
        assert_eq!(identity.version, VERSION);
        assert_eq!(
            identity.store_id.as_deref(),
            Some(b"0123456789abcdef".as_slice())
        );
        assert_eq!((std::fs::read(&path).unwrap(), names()), (bytes, listed));
    }

    #[test]
    fn a_store_of_version_one_takes_only_the_steps_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        assert!(migrate(&mut conn, &[V1]).unwrap());
        conn.execute("INSERT INTO activity VALUES ('default', 'anna', 5)", [])
            .unwrap();
        let later = [
            V1,
            "ALTER TABLE activity ADD COLUMN extra INTEGER; UPDATE activity SET extra = 6",
        ];
        assert!(migrate(&mut conn, &later).unwrap());
        assert!(!migrate(&mut conn, &later).unwrap());
        let row: (i64, i64) = conn
            .query_row("SELECT last_active_at, extra FROM activity", [], |r| {
                Ok((r.get(0)?, r.get(1)?))
            })
            .unwrap();
        assert_eq!(row, (5, 6));
        assert_eq!(identity(&conn).unwrap().version, 2);
    }

    #[test]
    fn the_step_to_stories_keeps_which_refresh_tokens_a_grant_has_had() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        migrate(&mut conn, &[V1]).unwrap();
        conn.execute_batch(
            "INSERT INTO grants (id, namespace, user, provider, account, version, generation,
                standing, reason, standing_since, token_type, obtained_at, imported_at, failures,
                unused_refreshes, key_id)
             VALUES (7, '', 'anna', 'acme', '', 1, 3, 'active', '', 0, '', 0, 0, 0, 0, 1),
                (8, '', 'bert', 'acme', '', 1, 3, 'active', '', 0, '', 0, 0, 0, 0, 1);
             INSERT INTO fingerprints VALUES (7, x'0a02030405060708ffff', 3),
                (7, x'0b02030405060708ffff', 2), (9, x'0c02030405060708ffff', 1);",
        )
        .unwrap();
        assert!(upgrade(&mut conn).unwrap());
        let kept = |id: i64| {
            let sql = "SELECT hex(refresh_tokens) FROM grants WHERE id = ?1";
            conn.query_row(sql, [id], |row| row.get::<_, String>(0))
                .unwrap()
        };
        assert_eq!(
            kept(7),
            "0B020304050607080A02030405060708",
            "the newest last"
        );
        assert_eq!(kept(8), "");
        assert_eq!(identity(&conn).unwrap().version, VERSION);
    }

    #[test]
    fn the_step_to_audits_adds_an_empty_table_and_keeps_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        migrate(&mut conn, &MIGRATIONS[..4]).unwrap();
        conn.execute("INSERT INTO activity VALUES ('default', 'anna', 5)", [])
            .unwrap();
        assert!(upgrade(&mut conn).unwrap());
        let sql = "SELECT (SELECT count(*) FROM audit), (SELECT count(*) FROM activity)";
        let counts: (i64, i64) = conn
            .query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert_eq!(counts, (0, 1));
        assert_eq!(identity(&conn).unwrap().version, VERSION);
    }

    #[test]
    fn a_grant_of_version_one_is_kept_by_the_step_to_breakers() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        migrate(&mut conn, &[V1, V2]).unwrap();
        conn.execute_batch(
            "INSERT INTO grants (namespace, user, provider, account, version, generation, standing,
                reason, standing_since, token_type, obtained_at, due_at, imported_at, failures,
                unused_refreshes, key_id)
             VALUES ('default', 'ann', 'box', '', 4, 3, 'active', '', 1, 'Bearer', 2, 9, 3, 0, 0, 1);
             INSERT INTO providers (name, paused, margin_ms) VALUES ('box', 1, 300000);",
        )
        .unwrap();
        assert!(upgrade(&mut conn).unwrap());
        let row: (i64, i64, Option<i64>, Option<i64>) = conn
            .query_row(
                "SELECT generation, due_at, refused_since, refresh_token_warn_at FROM grants",
                [],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)),
            )
            .unwrap();
        assert_eq!(row, (3, 9, None, None));
        let row: (bool, Option<i64>, String) = conn
            .query_row(
                "SELECT paused, probe_at, schedule FROM providers",
                [],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
            )
            .unwrap();
        assert_eq!(row, (true, None, "300000".to_owned()));
        assert_eq!(identity(&conn).unwrap().version, VERSION);
    }

    #[test]
    fn a_store_from_before_there_were_events_keeps_them_from_the_first_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        migrate(&mut conn, &MIGRATIONS[..3]).unwrap();
        conn.execute("INSERT INTO store VALUES (1, x'07')", [])
            .unwrap();
        assert!(upgrade(&mut conn).unwrap());
        conn.execute_batch(
            "INSERT INTO events (grant_id, namespace, provider, kind, at, generation)
             VALUES (3, 'default', 'box', 'paused', 9, 1)",
        )
        .unwrap();
        let row: (i64, i64) = conn
            .query_row(
                "SELECT events.id, events_after FROM events, store",
                [],
                |r| Ok((r.get(0)?, r.get(1)?)),
            )
            .unwrap();
        assert_eq!(row, (1, 0), "none before it is missing");
        assert_eq!(identity(&conn).unwrap().store_id, Some(vec![7]));
    }

    #[test]
    fn a_store_from_before_there_were_renewals_has_none_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        migrate(&mut conn, &MIGRATIONS[..5]).unwrap();
        conn.execute("INSERT INTO providers (name, paused) VALUES ('box', 1)", [])
            .unwrap();
        assert!(upgrade(&mut conn).unwrap());
        let row: (bool, Option<i64>) = conn
            .query_row("SELECT paused, renew_before FROM providers", [], |r| {
                Ok((r.get(0)?, r.get(1)?))
            })
            .unwrap();
        assert_eq!(row, (true, None));
    }

    #[test]
    fn a_store_from_before_the_ends_of_refresh_tokens_were_counted_has_those_that_were_announced() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        migrate(&mut conn, &MIGRATIONS[..6]).unwrap();
        let insert = "INSERT INTO grants (namespace, user, provider, account, version, generation, standing,
                reason, standing_since, token_type, obtained_at, imported_at, failures, unused_refreshes, key_id,
                refresh_token_expires_at, refresh_token_warn_at)
             VALUES ('d', ?1, 'box', '', 1, 1, ?2, '', 0, 'b', 0, 0, 0, 0, 1, ?3, ?4)";
        for (user, standing, ends, warns) in [
            ("announced", "active", Some(90), None),
            ("also", "paused", Some(70), None),
            ("not-yet", "active", Some(80), Some(60)),
            ("over", "active", Some(20), None),
            ("dead", "needs-authorization", Some(90), None),
            ("endless", "active", None, None),
        ] {
            conn.execute(insert, (user, standing, ends, warns)).unwrap();
        }
        assert!(upgrade(&mut conn).unwrap());
        let counted: (String, i64, i64) = conn
            .query_row(crate::store::ending::COUNTED, [50], |r| {
                Ok((r.get(0)?, r.get(1)?, r.get(2)?))
            })
            .unwrap();
        assert_eq!(counted, ("box".to_owned(), 2, 70));
    }

    #[test]
    fn a_store_from_before_failing_grants_were_counted_has_those_that_fail() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        migrate(&mut conn, &MIGRATIONS[..7]).unwrap();
        let insert = "INSERT INTO grants (namespace, user, provider, account, version, generation, standing,
                reason, standing_since, token_type, obtained_at, imported_at, unused_refreshes, key_id,
                access_token, expires_at, failures, last_failure, refreshed_at)
             VALUES ('d', ?1, 'box', '', 1, 1, ?2, '', 0, 'b', 0, 7, 0, 1, ?3, ?4, ?5, ?6, ?7)";
        let token = Some(b"sealed".to_vec());
        for (user, standing, token, ends, failures, code, refreshed) in [
            ("ended", "active", &token, Some(40), 1, Some("dns"), Some(9)),
            ("often", "active", &token, Some(90), 3, Some("dns"), Some(8)),
            ("endless", "active", &token, None, 3, Some("dns"), Some(9)),
            ("never", "active", &None, None, 1, Some("http-503"), None),
            ("twice", "active", &token, Some(90), 2, Some("dns"), None),
            ("well", "active", &token, Some(40), 0, None, None),
            ("away", "paused", &token, Some(40), 9, Some("dns"), None),
        ] {
            let row = (user, standing, token, ends, failures, code, refreshed);
            conn.execute(insert, row).unwrap();
        }
        assert!(upgrade(&mut conn).unwrap());
        let mut counted = conn.prepare(crate::store::failing::COUNTED).unwrap();
        let counted: Vec<(String, i64, i64, i64, i64)> = counted
            .query_map([50], |r| {
                Ok((r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?))
            })
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let both = [
            ("dns".to_owned(), 3, 1, 40, 8),
            ("http-503".to_owned(), 1, 1, 7, 7),
        ];
        assert_eq!(counted, both);
    }

    #[test]
    fn a_store_from_before_its_triggers_could_fail_goes_on_counting() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        migrate(&mut conn, &MIGRATIONS[..8]).unwrap();
        let add = |conn: &Connection, user| {
            let sql = "INSERT INTO grants (namespace, user, provider, account, version, generation, standing,
                reason, standing_since, token_type, obtained_at, imported_at, failures, unused_refreshes, key_id)
             VALUES ('d', ?1, 'box', '', 1, 1, 'active', '', 0, 'b', 0, 0, 0, 0, 1)";
            conn.execute(sql, [user]).unwrap();
        };
        add(&conn, "ann");
        assert!(upgrade(&mut conn).unwrap());
        add(&conn, "bea");
        add(&conn, "cleo");
        conn.execute_batch(
            "UPDATE grants SET standing = 'paused', reason = 'admin' WHERE user = 'bea';
             UPDATE grants SET standing = 'paused', reason = 'admin' WHERE user = 'cleo';
             DELETE FROM grants WHERE user = 'cleo';",
        )
        .unwrap();
        let mut counters = conn
            .prepare("SELECT standing, grants FROM counters ORDER BY standing")
            .unwrap();
        let counters: Vec<(String, i64)> = counters
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(
            counters,
            [("active".to_owned(), 1), ("paused".to_owned(), 1)]
        );
    }

    #[test]
    fn a_step_that_does_not_work_leaves_the_version_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        let broken = [V1, "CREATE TABLE half (a); SELECT nonsense"];
        assert!(migrate(&mut conn, &broken).is_err());
        assert_eq!(identity(&conn).unwrap().version, 1);
        assert!(
            conn.execute("SELECT a FROM half", []).is_err(),
            "the half step was undone"
        );
    }

    #[test]
    fn every_writer_is_set_up_for_durability() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::from_millis(1234)).unwrap();
        create(&mut conn, b"0123456789abcdef").unwrap();
        let text = |name| {
            conn.pragma_query_value(None, name, |r| r.get::<_, String>(0))
                .unwrap()
        };
        let number = |name| {
            conn.pragma_query_value(None, name, |r| r.get::<_, i64>(0))
                .unwrap()
        };
        assert_eq!(text("journal_mode"), "wal");
        assert_eq!(number("synchronous"), 2, "FULL");
        assert_eq!(number("secure_delete"), 1);
        assert_eq!(number("wal_autocheckpoint"), 0);
        assert_eq!(number("temp_store"), 2, "MEMORY");
        assert_eq!(number("busy_timeout"), 1234);
        let reader = connect_reader(&path, Duration::ZERO).unwrap();
        assert!(reader.execute("DELETE FROM grants", []).is_err());
    }

    #[test]
    fn a_cached_statement_is_compiled_once_however_often_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        create(&mut conn, b"0123456789abcdef").unwrap();
        for sql in [
            "SELECT g.id FROM grants g LEFT JOIN marks m ON m.grant_id = g.id WHERE g.id = ?1",
            "SELECT number FROM history WHERE grant_id = ?1 ORDER BY number DESC LIMIT 1",
            "UPDATE grants SET version = version + 1 WHERE id = ?1 AND generation = ?1",
        ] {
            for nth in 1..5 {
                let mut statement = conn.prepare_cached(sql).unwrap();
                let mut rows = statement.query([nth]).unwrap();
                assert!(rows.next().unwrap().is_none());
            }
            let statement = conn.prepare_cached(sql).unwrap();
            let again = statement.get_status(StatementStatus::RePrepare);
            assert_eq!(again, 0, "{sql}");
        }
    }

    #[test]
    fn the_schedule_and_the_lists_are_read_from_their_indexes() {
        let dir = tempfile::tempdir().unwrap();
        let path = new_file(dir.path());
        let mut conn = connect_writer(&path, Duration::ZERO).unwrap();
        create(&mut conn, b"0123456789abcdef").unwrap();
        let troubled = "SELECT g.id FROM grants g WHERE g.id > ?1 AND g.standing = ?
             AND g.standing <> 'active' ORDER BY g.id LIMIT ?";
        let failing = format!(
            "SELECT g.id FROM grants g WHERE g.id > ?1{} ORDER BY g.id LIMIT ?",
            crate::store::failing::AMONG
        );
        for (sql, index) in [
            (crate::store::schedule::DUE_WITHIN, "grants_due"),
            (crate::store::schedule::RESCHEDULE, "grants_provider"),
            (troubled, "grants_troubled"),
            (crate::store::ending::COUNTED, "grants_ending"),
            (crate::store::failing::COUNTED, "grants_failing"),
            (&failing, "grants_failing"),
        ] {
            let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let values = vec![1; plan.parameter_count()];
            let steps: Vec<String> = plan
                .query_map(rusqlite::params_from_iter(values), |row| row.get(3))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            let steps = steps.join("; ");
            assert!(
                steps.contains(index) && !steps.contains("TEMP B-TREE"),
                "{steps}"
            );
            // The list goes from the index to the rows, never through all of them.
            assert!(!steps.contains("SCAN g;"), "{steps}");
            assert!(
                index != "grants_due" || steps.contains("COVERING INDEX"),
                "{steps}"
            );
        }
    }
}
