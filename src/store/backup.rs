//! Copies of the whole store: one step, sealed as it is, checked before it has its name.
//!
//! A copy is one SQLite file: the database as it was at one moment, and a table more with the keyring, still
//! wrapped. It has an application id of its own, so no daemon runs on it by mistake. The copying connection reads
//! one snapshot of the write-ahead log, so writers go on meanwhile; only checkpoints can't finish.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, params};
use rustix::fs::RenameFlags;

use super::grants;
use super::kek::sync_parent;
use super::revocations;
use super::rows::{self, Opened, select_grant};
use super::schema;
use super::seal::Purpose;
use super::session::{Session, Trouble, has_room};
use super::writer::Class;
use super::{Inner, Store};
use crate::refresh::grant::{GrantId, PauseReason, Standing};
use crate::refresh::time::UnixTime;

/// "frsb": marks a file as a copy, on which no daemon runs.
pub(super) const APPLICATION_ID: i64 = 0x6672_7362;

/// What a copy has that a store has not.
const TABLE: &str = "
CREATE TABLE backup (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    made_at INTEGER NOT NULL,
    keyring TEXT NOT NULL,
    -- The erasure journal at this moment; NULL where there was none.
    journal BLOB,
    erasures INTEGER NOT NULL
) STRICT;
";

/// What a final copy has besides: it is the present, for its store has not gone on after it.
const FINAL_TABLE: &str = "CREATE TABLE final_copy (id INTEGER PRIMARY KEY) STRICT";

/// A copy under this name is not finished, or was never.
const UNFINISHED: &str = ".freshd-unfinished";
/// So many rows are checked between two queries.
const PAGE: i64 = 1_000;
/// The copy is nobody else's, and readers don't lock out each other.
const BUSY: Duration = Duration::from_secs(10);

/// A finished copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackedUp {
    /// Its length.
    pub bytes: u64,
    /// How many grants are in it.
    pub grants: u64,
    /// How many of these are quarantined: one of their values does not open, in the store neither.
    pub quarantined: u64,
    /// How many revocations wait in it.
    pub revocations: u64,
}

/// Why there is no copy. Nothing was overwritten, and nothing unfinished is left behind.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file is never overwritten.
    #[error("{path} already exists; a backup never overwrites a file, name another", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The name is one that freshd itself uses.
    #[error(
        "{path} is a name that freshd uses itself in its state directory; name a file elsewhere",
        path = path.display()
    )]
    Reserved {
        /// The file.
        path: PathBuf,
    },
    /// No file can be made there: the directory is missing, or closed to freshd.
    #[error("{path} could not be made: {source}", path = path.display())]
    CannotCreate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system of the copy has no room for it.
    #[error(
        "{path} needs about {needed} bytes, and its file system would be left without room",
        path = path.display()
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// About how many bytes.
        needed: u64,
    },
    /// A file could not be made, read or written.
    #[error("{path} could not be {done}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `made` (the mark of a final copy), `read`, `written`, `named`.
        done: &'static str,
        /// Why.
        source: io::Error,
    },
    /// SQLite could not copy.
    #[error("{path} could not be written: {source}", path = path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The copy is not what it should be; it was removed.
    #[error(
        "the copy failed its check: {reason}; check the disk that it was written to, and the store's own"
    )]
    Check {
        /// What is wrong with it.
        reason: String,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

impl Store {
    /// Copies the store to a new file of mode 0600 at `path`, checks the copy, and gives it its name only then.
    ///
    /// The check: SQLite finds it whole, there are as many grants as the counters say, and every sealed value
    /// opens. A value that does not open in the store either is quarantined there, and copied as it is. Token
    /// sets that are not stored yet are not in the copy: the caller waits for these.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub async fn backup(&self, path: &Path, at: UnixTime) -> Result<BackedUp, BackupError> {
        self.copy(path, at, false).await
    }

    /// The same, after which no daemon starts on this store: that is on disk before the copy has its name. The
    /// caller has stopped all refreshing and all changes before.
    ///
    /// # Errors
    /// See [`BackupError`]. Then the store is as it was.
    pub async fn final_backup(&self, path: &Path, at: UnixTime) -> Result<BackedUp, BackupError> {
        self.copy(path, at, true).await
    }

    async fn copy(&self, path: &Path, at: UnixTime, last: bool) -> Result<BackedUp, BackupError> {
        let (inner, path) = (Arc::clone(&self.inner), path.to_owned());
        let (part, mut backed_up, broken) = blocking(move || {
            let part = Part::copied(&inner, path, at, last)?;
            let (backed_up, broken) = part.check(&inner)?;
            Ok((part, backed_up, broken))
        })
        .await?;
        backed_up.quarantined += broken.grants.len() as u64;
        self.settle(broken, at).await?;
        let moved = last.then(|| self.inner.layout.moved.clone());
        blocking(move || part.name_after(moved.as_deref(), at)).await?;
        Ok(backed_up)
    }

    /// Quarantines what does not open. What opens in the store but not in the copy was spoiled on the way.
    async fn settle(&self, broken: Broken, at: UnixTime) -> Result<(), BackupError> {
        let settled = self.write(Class::Rest, move |session| {
            let quarantined = Some(Standing::Paused(PauseReason::Quarantined));
            for &(id, generation) in &broken.grants {
                let now = grants::quarantine(session, id, at)?;
                let same = now.filter(|grant| grant.generation == generation);
                if same.is_some() && same.map(|grant| grant.standing) != quarantined {
                    return Ok(Some(format!(
                        "a token of grant {} does not open in it",
                        id.0
                    )));
                }
            }
            for &id in &broken.revocations {
                if !revocations::set_aside_if_broken(session, id)? {
                    return Ok(Some(format!("revocation {id} does not open in it")));
                }
            }
            Ok(None)
        });
        match settled.await {
            Ok(None) => Ok(()),
            Ok(Some(reason)) => Err(BackupError::Check { reason }),
            Err(error) => Err(BackupError::Check {
                reason: format!("what does not open in it could not be quarantined: {error}"),
            }),
        }
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or(Err(BackupError::Closed))
}

/// What does not open in a copy and is not known to be quarantined.
#[derive(Default)]
struct Broken {
    grants: Vec<Read>,
    revocations: Vec<i64>,
}

/// A copy without its name. Dropped, it is removed.
struct Part {
    path: PathBuf,
    file: PathBuf,
}

impl Part {
    fn copied(inner: &Inner, path: PathBuf, at: UnixTime, last: bool) -> Result<Part, BackupError> {
        if path.symlink_metadata().is_ok() {
            return Err(BackupError::Exists { path });
        }
        if inner.layout.uses(&path) {
            return Err(BackupError::Reserved { path });
        }
        let needed = file_len(&inner.layout.database) + file_len(&inner.layout.database_log);
        let dir = path.parent().unwrap_or(Path::new("/"));
        if !has_room(dir, needed) {
            return Err(BackupError::NoRoom { path, needed });
        }
        let mut file = path.clone().into_os_string();
        file.push(UNFINISHED);
        let part = Part {
            path,
            file: file.into(),
        };
        part.remove();
        part.write(inner, at, last)?;
        Ok(part)
    }

    fn write(&self, inner: &Inner, at: UnixTime, last: bool) -> Result<(), BackupError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.file)
            .map_err(|source| BackupError::CannotCreate {
                path: self.path.clone(),
                source,
            })?;
        let keyring = &inner.layout.keyring;
        let keyring = std::fs::read_to_string(keyring).map_err(|source| BackupError::Io {
            path: keyring.clone(),
            done: "read",
            source,
        })?;
        copy(inner, &self.file, &keyring, at, last).map_err(|source| BackupError::Copy {
            path: self.path.clone(),
            source,
        })?;
        file.sync_all().map_err(self.io("written"))
    }

    fn check(&self, inner: &Inner) -> Result<(BackedUp, Broken), BackupError> {
        let check = |reason: String| BackupError::Check { reason };
        let sql = |error: rusqlite::Error| check(error.to_string());
        let conn = schema::connect_immutable(&self.file).map_err(sql)?;
        if let Some(reason) = unsound(&conn).map_err(sql)? {
            return Err(check(reason));
        }
        let keyring = inner.keyring.read();
        let session = Session {
            conn: &conn,
            keyring: &keyring,
            disk: &inner.disk,
        };
        let found = |trouble: Trouble| check(trouble.text());
        let (grants, quarantined, broken) = open_grants(&session).map_err(found)?;
        let (revocations, broken_revocations) = revocations::open_all(&session).map_err(found)?;
        let backed_up = BackedUp {
            bytes: file_len(&self.file),
            grants,
            quarantined,
            revocations,
        };
        let broken = Broken {
            grants: broken,
            revocations: broken_revocations,
        };
        Ok((backed_up, broken))
    }

    /// Gives the copy its name, for a final one after the store is known to be moved: never two that refresh.
    fn name_after(self, moved: Option<&Path>, at: UnixTime) -> Result<(), BackupError> {
        let Some(moved) = moved else {
            return self.name();
        };
        let text = format!("{} {}\n", at.rfc3339(), self.path.display());
        let marked = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(moved)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())
                    .and_then(|()| file.sync_all())
            })
            .and_then(|()| sync_parent(moved))
            .map_err(|source| BackupError::Io {
                path: moved.into(),
                done: "made",
                source,
            });
        marked.and_then(|()| self.name()).inspect_err(|_| {
            // Without the copy this store is the only one. Where the marker stays, the next start says what to do.
            let _ = std::fs::remove_file(moved).and_then(|()| sync_parent(moved));
        })
    }

    /// Gives the copy its name, unless that is taken by now.
    fn name(self) -> Result<(), BackupError> {
        let cwd = rustix::fs::CWD;
        let named =
            rustix::fs::renameat_with(cwd, &self.file, cwd, &self.path, RenameFlags::NOREPLACE);
        let named = match named.map_err(io::Error::from) {
            // NFS and a few others: a second name, which is never put over another file either.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                std::fs::hard_link(&self.file, &self.path)
            }
            named => named,
        };
        match named.and_then(|()| sync_parent(&self.path)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(BackupError::Exists {
                    path: self.path.clone(),
                })
            }
            Err(source) => Err(self.io("named")(source)),
        }
    }

    fn io(&self, done: &'static str) -> impl FnOnce(io::Error) -> BackupError + use<> {
        let path = self.path.clone();
        move |source| BackupError::Io { path, done, source }
    }

    /// Removes the unfinished copy, and what SQLite may have left beside it.
    fn remove(&self) {
        // What can't be removed makes the next step fail, which says so.
        let _ = schema::remove(&self.file);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.remove();
    }
}

fn file_len(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.len())
}

/// Copies all pages of one snapshot in one step: an incremental copy starts anew with every write.
fn copy(
    inner: &Inner,
    file: &Path,
    keyring: &str,
    at: UnixTime,
    last: bool,
) -> rusqlite::Result<()> {
    let source = schema::connect_reader(&inner.layout.database, BUSY)?;
    let erasures = {
        // Between a deletion's record and its commit there is no snapshot.
        let _gate = inner.erasures.gate.blocking_write();
        source.execute_batch("BEGIN DEFERRED")?;
        source.query_row("SELECT 1 FROM store", [], |_| Ok(()))?;
        // Where the journal can't be had, the copy says that it knows of none.
        inner.erasures.position().ok()
    };
    let mut copy = schema::connect_writer(file, BUSY)?;
    match Backup::new(&source, &mut copy)?.step(-1)? {
        StepResult::Done => {}
        _ => {
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
                Some("the store was locked".into()),
            ));
        }
    }
    // One file, without a log beside it.
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    copy.execute_batch(TABLE)?;
    if last {
        copy.execute_batch(FINAL_TABLE)?;
    }
    copy.execute(
        "INSERT INTO backup (id, made_at, keyring, journal, erasures) VALUES (1, ?1, ?2, ?3, ?4)",
        params![
            at.as_millis(),
            keyring,
            erasures.map(|position| position.journal),
            erasures.map_or(0, |position| position.records as i64),
        ],
    )?;
    copy.pragma_update(None, "application_id", APPLICATION_ID)?;
    copy.close().map_err(|(_, error)| error)
}

/// Says what SQLite finds wrong with a copy, or that its counters don't count it.
pub(super) fn unsound(conn: &Connection) -> rusqlite::Result<Option<String>> {
    let found: String = conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Ok(Some(found));
    }
    const ROWS: &str = "SELECT provider, standing, reason, count(*) FROM grants GROUP BY 1, 2, 3";
    const COUNTED: &str =
        "SELECT provider, standing, reason, grants FROM counters WHERE grants <> 0";
    for (these, those) in [(ROWS, COUNTED), (COUNTED, ROWS)] {
        let differ =
            format!("SELECT EXISTS (SELECT * FROM ({these}) EXCEPT SELECT * FROM ({those}))");
        if conn.query_row(&differ, [], |row| row.get(0))? {
            return Ok(Some("it has not as many grants as its counters say".into()));
        }
    }
    Ok(None)
}

/// A grant and the generation at which it was read.
type Read = (GrantId, u64);

/// Opens every token. Returns how many grants there are, how many of these are known to be quarantined,
/// and which others don't open.
fn open_grants(session: &Session<'_>) -> Result<(u64, u64, Vec<Read>), Trouble> {
    let (mut grants, mut quarantined, mut broken) = (0, 0, Vec::new());
    let mut after = 0;
    loop {
        let page = session.all(
            select_grant!("WHERE g.id > ?1 ORDER BY g.id LIMIT ?2"),
            params![after, PAGE],
            rows::grant,
        )?;
        let Some(last) = page.last() else {
            return Ok((grants, quarantined, broken));
        };
        after = last.id.0;
        for grant in &page {
            grants += 1;
            if grant.standing == Standing::Paused(PauseReason::Quarantined) {
                quarantined += 1;
                continue;
            }
            for purpose in [Purpose::Access, Purpose::Refresh] {
                if matches!(rows::open(session, grant, purpose)?, Opened::Broken) {
                    broken.push((grant.id, grant.generation));
                    break;
                }
            }
        }
    }
}
