//! Putting a copy in a store's place: offline, all or nothing, and without a request for any grant that rotates.
//!
//! The new database is made ready beside the old one. Then a marker says that files are being moved, with which no
//! daemon starts; the old store goes into a directory of its own, keyring and database take its place, and the marker
//! goes. A crash in between is mended by the same command again.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, params};

use super::audit::{self, AuditNote};
use super::backup;
use super::erasures::{self, Position};
use super::events;
use super::grants;
use super::history::{By, Event};
use super::kek::{Kek, sync_parent};
use super::keyring::{self, Keyring};
use super::nightly;
use super::open::{Layout, OpenError, prepare_dir, take_lock};
use super::recovery::RecoveryKey;
use super::rekey::{self, Proof};
use super::rows::{self, select_grant};
use super::schema;
use super::session::{Disk, Session, Trouble};
use crate::refresh::grant::{Grant, GrantId, GrantKey, PauseReason, Standing};
use crate::refresh::time::UnixTime;

const BUSY: Duration = Duration::from_secs(10);
const PAGE: i64 = 1_000;

/// What is to be restored, and where.
pub struct Restore<'a> {
    /// The copy.
    pub file: &'a Path,
    /// The state directory.
    pub dir: &'a Path,
    /// The key that is to open the store. Without a recovery key it is the one that the copied store was made with.
    pub kek: &'a Kek,
    /// What opens the copy in place of its key. Its keyring is wrapped by `kek` then.
    pub recovery: Option<&'a RecoveryKey>,
    /// Whether a store that is there is moved aside.
    pub replace: bool,
    /// Whether a provider's refresh tokens may be spent by their use; an unknown provider's may.
    pub rotates: &'a dyn Fn(&str) -> bool,
    /// Now.
    pub at: UnixTime,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// When the copy was made.
    pub made_at: UnixTime,
    /// How many grants there are now.
    pub grants: u64,
    /// How many of these wait to be released.
    pub suspended: u64,
    /// How many were erased since the copy, and again now; `None` where nobody knows, for want of the journal.
    pub erased: Option<u64>,
    /// Where the store that was there is now.
    pub moved_to: Option<PathBuf>,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state directory is in use or unusable, the key does not fit, the copy is a newer freshd's.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file can't be opened.
    #[error("nothing was changed: {file} cannot be opened", file = file.display())]
    Unopened {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no copy, or a damaged one.
    #[error("{file} cannot be restored: {reason}. Nothing was changed", file = file.display())]
    NoCopy {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is a store, and `--replace` was not said.
    #[error("there is a store in {dir} already. Nothing was changed", dir = dir.display())]
    Exists {
        /// The state directory.
        dir: PathBuf,
    },
}

impl RestoreError {
    /// Returns the exit code: 65 (the copy), 66 (it can't be opened), 73 (there is a store), or the opening's.
    pub fn exit_code(&self) -> u8 {
        match self {
            RestoreError::Open(error) => error.exit_code(),
            RestoreError::NoCopy { .. } => 65,
            RestoreError::Unopened { .. } => 66,
            RestoreError::Exists { .. } => 73,
        }
    }
}

/// What a copy says of itself.
struct Copy {
    keyring_text: String,
    made_at: UnixTime,
    position: Option<Position>,
    /// Whether its store has not gone on after it.
    last: bool,
}

/// Restores a copy. Blocks.
///
/// # Errors
/// See [`RestoreError`]. Before the old store is moved nothing is changed.
pub fn restore(restore: &Restore<'_>) -> Result<Restored, RestoreError> {
    let (copy, keyring) = prove(restore)?;
    prepare_dir(restore.dir)?;
    let layout = Layout::new(restore.dir);
    let _lock = take_lock(&layout)?;
    let there = layout.exists();
    if there && !restore.replace {
        return Err(RestoreError::Exists {
            dir: restore.dir.into(),
        });
    }
    let prepared = layout.prepared.clone();
    let made = prepare(restore, &layout, &copy, &keyring, &prepared);
    let mut restored = match made {
        Ok(restored) => restored,
        Err(error) => {
            // Useless; the first error is the one to report.
            let _ = schema::remove(&prepared);
            return Err(error);
        }
    };
    put_in_place(restore, &layout, &copy, &prepared, &mut restored).map_err(|source| {
        OpenError::Io {
            path: layout.dir.clone(),
            done: "filled with the copy",
            source,
        }
    })?;
    Ok(restored)
}

/// Reads the copy and proves the key on its keyring, before anything is touched.
fn prove(restore: &Restore<'_>) -> Result<(Copy, Keyring), RestoreError> {
    let no_copy = |reason: String| RestoreError::NoCopy {
        file: restore.file.into(),
        reason,
    };
    let unopened = |source: io::Error| RestoreError::Unopened {
        file: restore.file.into(),
        source,
    };
    // Opening a pipe would wait for somebody to write into it.
    if !restore.file.metadata().map_err(unopened)?.is_file() {
        return Err(no_copy("it is not a regular file".into()));
    }
    File::open(restore.file).map_err(unopened)?;
    let sql = |error: rusqlite::Error| no_copy(error.to_string());
    let conn = schema::connect_immutable(restore.file).map_err(sql)?;
    let identity = schema::identity(&conn).map_err(sql)?;
    if identity.application_id != backup::APPLICATION_ID {
        return Err(no_copy("`freshctl backup` did not make it".into()));
    }
    if identity.version > schema::VERSION {
        return Err(OpenError::Newer {
            database: restore.file.into(),
            found: identity.version,
            known: schema::VERSION,
        }
        .into());
    }
    let mut copy = read_copy(&conn).map_err(sql)?;
    let proof = restore
        .recovery
        .map_or(Proof::Kek(restore.kek), Proof::Recovery);
    let unlocked = rekey::unlocked(restore.file, copy.keyring_text.as_bytes(), proof);
    let mut keyring = unlocked.map_err(|error| match error {
        OpenError::Keyring { reason, .. } => no_copy(format!("its keyring is no good: {reason}")),
        error => error.into(),
    })?;
    if restore.recovery.is_some() {
        keyring = keyring
            .rewrapped(restore.kek)
            .with_recovery(restore.recovery);
        copy.keyring_text = keyring.text();
    }
    if identity.store_id.as_deref() != Some(keyring.store_id()) {
        return Err(no_copy("its keyring is another store's".into()));
    }
    match backup::unsound(&conn).map_err(sql)? {
        Some(reason) => Err(no_copy(reason)),
        None => Ok((copy, keyring)),
    }
}

fn read_copy(conn: &Connection) -> rusqlite::Result<Copy> {
    let last = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'final_copy')";
    let last = conn.query_row(last, [], |row| row.get(0))?;
    conn.query_row(
        "SELECT keyring, made_at, journal, erasures FROM backup",
        [],
        |row| {
            let journal: Option<[u8; 16]> = row.get(2)?;
            let records: i64 = row.get(3)?;
            Ok(Copy {
                keyring_text: row.get(0)?,
                made_at: rows::time(row, 1)?,
                last,
                position: journal.map(|journal| Position {
                    journal,
                    records: u64::try_from(records).unwrap_or(0),
                }),
            })
        },
    )
}

/// Makes the database that takes the old one's place.
fn prepare(
    restore: &Restore<'_>,
    layout: &Layout,
    copy: &Copy,
    keyring: &Keyring,
    prepared: &Path,
) -> Result<Restored, RestoreError> {
    let io = |source| OpenError::Io {
        path: prepared.into(),
        done: "written",
        source,
    };
    write_copy(restore.file, prepared).map_err(io)?;
    let erased = match copy.position {
        Some(position) => erasures::since(&layout.erasures, keyring.store_id(), position),
        None => Ok(None),
    }
    .map_err(|source| OpenError::Io {
        path: layout.erasures.clone(),
        done: "read",
        source,
    })?;
    let sql = |source| OpenError::Database {
        database: prepared.into(),
        source,
    };
    let mut conn = schema::connect_writer(prepared, BUSY).map_err(sql)?;
    let disk = Disk::new(layout.dir.clone(), &[]).map_err(io)?;
    let mut unsound = None;
    let mut change = |conn: &mut Connection| -> Result<Restored, Trouble> {
        // What is killed here is made anew from the copy, never rolled back.
        conn.pragma_update(None, "journal_mode", "MEMORY")?;
        conn.execute_batch("DROP TABLE backup; DROP TABLE IF EXISTS final_copy")?;
        conn.pragma_update(None, "application_id", schema::APPLICATION_ID)?;
        schema::upgrade(conn)?;
        let tx = conn.transaction()?;
        let session = Session {
            conn: &tx,
            keyring,
            disk: &disk,
        };
        let erased = match &erased {
            Some(erased) => Some(erase(&session, erased, restore.at)?),
            None => None,
        };
        let suspended = suspend(&session, restore, copy)?;
        events::forget_all(&session, restore.at)?;
        audit::keep(&session, &note(restore.at, copy))?;
        let count = |row: &rusqlite::Row<'_>| rows::count(row, 0);
        let grants = session.first("SELECT count(*) FROM grants", [], count)?;
        tx.commit()?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        schema::checkpoint_all(conn)?;
        unsound = backup::unsound(conn)?;
        Ok(Restored {
            made_at: copy.made_at,
            grants: grants.unwrap_or(0),
            suspended,
            erased,
            moved_to: None,
        })
    };
    let restored = change(&mut conn).map_err(|trouble| match trouble {
        Trouble::Sqlite(source) => sql(source),
        Trouble::NoRoom => io(io::ErrorKind::StorageFull.into()),
        Trouble::ReadOnly => io(io::ErrorKind::ReadOnlyFilesystem.into()),
        Trouble::Gone(_) => io(io::ErrorKind::NotFound.into()),
    })?;
    if let Some(reason) = unsound {
        return Err(RestoreError::NoCopy {
            file: restore.file.into(),
            reason: format!("what was made of it is not sound: {reason}"),
        });
    }
    conn.close().map_err(|(_, source)| sql(source))?;
    File::open(prepared)
        .and_then(|file| file.sync_all())
        .map_err(io)?;
    Ok(restored)
}

/// What the audit says of it.
fn note(at: UnixTime, copy: &Copy) -> AuditNote {
    AuditNote {
        action: "restored".to_owned(),
        by: "freshctl restore".to_owned(),
        user: String::new(),
        detail: format!("a copy of {}", copy.made_at.rfc3339()),
        first_at: at,
        last_at: at,
        times: 1,
    }
}

fn write_copy(from: &Path, to: &Path) -> io::Result<()> {
    schema::remove(to)?;
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    io::copy(&mut File::open(from)?, &mut to).map(drop)
}

/// Deletes what the journal says; its provider has heard of that already.
fn erase(
    session: &Session<'_>,
    erased: &std::collections::BTreeSet<erasures::Erased>,
    at: UnixTime,
) -> Result<u64, Trouble> {
    let (mut after, mut gone) = (0, 0);
    if erased.is_empty() {
        return Ok(0);
    }
    loop {
        let page: Vec<Grant> = session.all(
            select_grant!("WHERE g.id > ?1 ORDER BY g.id LIMIT ?2"),
            params![after, PAGE],
            rows::grant,
        )?;
        let Some(GrantId(last)) = page.last().map(|grant| grant.id) else {
            return Ok(gone);
        };
        after = last;
        let named = |key: &GrantKey| erased.contains(&erasures::name(session.keyring, key));
        for grant in page.iter().filter(|grant| named(&grant.key)) {
            grants::remove(session, &grant.key, at, false)?;
            gone += 1;
        }
    }
}

/// Pauses every grant whose refresh token may have been spent since the copy was made.
///
/// Each gets a mark from that moment: the request that spent it may have been made, and its fate is unknown here. So a
/// released grant presents it as its rotation class allows, and a refusal is told as what it probably is. Not after a
/// final copy, which is the present as long as it is restored once.
fn suspend(session: &Session<'_>, restore: &Restore<'_>, copy: &Copy) -> Result<u64, Trouble> {
    let providers: Vec<String> =
        session.all("SELECT DISTINCT provider FROM grants", [], |row| row.get(0))?;
    let restored = Standing::Paused(PauseReason::Restored);
    let mut suspended = 0;
    for provider in providers.iter().filter(|name| (restore.rotates)(name)) {
        let paused = [
            Standing::Paused(PauseReason::Inactive).reason(),
            Standing::Paused(PauseReason::Unused).reason(),
        ];
        session.write(
            "INSERT INTO history (grant_id, number, event, first_at, last_at, times, generation,
                detail, changed_by)
             SELECT id, 1 + coalesce((SELECT max(number) FROM history WHERE grant_id = id), 0),
                ?2, ?3, ?4, 1, generation, ?5, ?6
             FROM grants WHERE provider = ?1
                AND (standing = 'active' OR (standing = 'paused' AND reason IN (?7, ?8)))",
            params![
                provider,
                Event::Restored as i64,
                copy.made_at.as_millis(),
                restore.at.as_millis(),
                restored.reason(),
                By::Admin as i64,
                paused[0],
                paused[1],
            ],
        )?;
        suspended += session.write(
            "UPDATE grants SET version = version + 1, standing = ?2, reason = ?3,
                standing_since = ?4, due_at = NULL
             WHERE provider = ?1
                AND (standing = 'active' OR (standing = 'paused' AND reason IN (?5, ?6)))",
            params![
                provider,
                restored.name(),
                restored.reason(),
                restore.at.as_millis(),
                paused[0],
                paused[1],
            ],
        )?;
        if copy.last {
            continue;
        }
        session.write(
            "INSERT INTO marks (grant_id, first_sent_at, presented)
             SELECT id, ?2, 1 FROM grants WHERE provider = ?1 AND refresh_token IS NOT NULL
             ON CONFLICT DO NOTHING",
            params![provider, copy.made_at.as_millis()],
        )?;
    }
    Ok(suspended as u64)
}

fn put_in_place(
    restore: &Restore<'_>,
    layout: &Layout,
    copy: &Copy,
    prepared: &Path,
    restored: &mut Restored,
) -> io::Result<()> {
    // Made by root for a service's directory, the files must be the service's.
    let owner = layout.dir.metadata()?;
    let give = |path: &Path| -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(())
    };
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&layout.restoring)?
        .sync_all()?;
    sync_parent(&layout.restoring)?;
    if layout.exists() {
        let aside = move_aside(layout, restore.at)?;
        give(&aside)?;
        restored.moved_to = Some(aside);
    }
    keyring::write_file(&layout.keyring, &copy.keyring_text)?;
    std::fs::rename(prepared, &layout.database)?;
    for file in [&layout.database, &layout.lock] {
        give(file)?;
    }
    sync_parent(&layout.database)?;
    std::fs::remove_file(&layout.restoring)?;
    sync_parent(&layout.restoring)
}

/// Moves the store's files into a directory of their own, in which they are a whole state directory.
fn move_aside(layout: &Layout, at: UnixTime) -> io::Result<PathBuf> {
    let stamp = nightly::stamp(at);
    let mut dir = layout.dir.join(format!("replaced-{stamp}"));
    let mut nth = 1;
    while dir.exists() {
        nth += 1;
        dir = layout.dir.join(format!("replaced-{stamp}-{nth}"));
    }
    DirBuilder::new().mode(0o700).create(&dir)?;
    for file in layout.store_files() {
        let Some(name) = file.file_name() else {
            continue;
        };
        match std::fs::rename(&file, dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    File::open(&dir)?.sync_all()?;
    sync_parent(&dir)?;
    Ok(dir)
}
