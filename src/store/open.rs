//! Opening: the lock first, then the key is proved, and only then does SQLite touch anything (I9).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use rustix::fs::FlockOperation;

use super::kek::{Kek, sync_parent};
use super::keyring::{self, Keyring, KeyringError};
use super::schema;
use crate::refresh::time::UnixTime;

const DATABASE: &str = "freshd.db";
const DATABASE_LOG: &str = "freshd.db-wal";
/// A new store's database until its keyring is in place.
const UNNAMED_DATABASE: &str = "freshd.db.new";
const KEYRING: &str = "keyring";
const LOCK: &str = "lock";
const SPILL: &str = "spill";
const ERASURES: &str = "erasures";
/// There for good after a final copy: when it was made, and where.
const MOVED: &str = "moved";
/// There while a restore moves files about.
const RESTORING: &str = "restoring";

/// Where and with which key.
#[derive(Debug)]
pub struct Options {
    /// The state directory. Made with mode 0700 if it is not there.
    pub dir: PathBuf,
    /// The key-encryption key.
    pub kek: Kek,
    /// How long a writer waits for a lock another process holds.
    pub busy_timeout: Duration,
}

/// Why the store could not be opened. Not one byte of it has changed then (I9).
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon has this state directory.
    #[error("state directory {dir} is in use by another freshd", dir = dir.display())]
    Locked {
        /// The state directory.
        dir: PathBuf,
    },
    /// A file or directory could not be made, read or written.
    #[error("{path} could not be {done}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `made`, `read`, `written`.
        done: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Others may write in the state directory.
    #[error(
        "state directory {dir} has mode {mode:04o} but must not be writable by group or others; `chmod 0700` it",
        dir = dir.display()
    )]
    Directory {
        /// The state directory.
        dir: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key is not the one this store was made with.
    #[error(
        "the key does not fit {keyring}; start freshd with the key this store was made with. Nothing was changed",
        keyring = keyring.display()
    )]
    Key {
        /// The keyring.
        keyring: PathBuf,
    },
    /// The recovery key is not this keyring's.
    #[error("the recovery key does not fit {keyring}. Nothing was changed", keyring = keyring.display())]
    RecoveryKey {
        /// The keyring.
        keyring: PathBuf,
    },
    /// A recovery key was shown, or is to be removed, and the keyring has none.
    #[error(
        "{keyring} has no recovery key; only its key opens it. Nothing was changed",
        keyring = keyring.display()
    )]
    NoRecovery {
        /// The keyring.
        keyring: PathBuf,
    },
    /// The keyring is damaged, or belongs to another store.
    #[error(
        "{keyring} cannot be used: {reason}; put this store's own keyring back from a copy. Nothing was changed",
        keyring = keyring.display()
    )]
    Keyring {
        /// The keyring.
        keyring: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is a database without its keyring: nothing in it could be opened.
    #[error(
        "{database} is there but its keyring {keyring} is not; put the keyring back from a copy. Nothing was changed",
        database = database.display(),
        keyring = keyring.display()
    )]
    NoKeyring {
        /// The database.
        database: PathBuf,
        /// Where its keyring should be.
        keyring: PathBuf,
    },
    /// There is a keyring without its database.
    #[error(
        "{keyring} is there but its database {database} is not; put the database back, or move the keyring away to begin anew. Nothing was changed",
        database = database.display(),
        keyring = keyring.display()
    )]
    NoDatabase {
        /// Where the database should be.
        database: PathBuf,
        /// The keyring.
        keyring: PathBuf,
    },
    /// The database was written by a newer freshd.
    #[error(
        "{database} has version {found} but this freshd knows versions up to {known}; start a newer freshd. Nothing was changed",
        database = database.display()
    )]
    Newer {
        /// The database.
        database: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version this freshd knows.
        known: i64,
    },
    /// A restore was interrupted while it moved files.
    #[error(
        "a restore of {dir} was interrupted; run `freshctl restore FILE --replace` again. Nothing was changed",
        dir = dir.display()
    )]
    Restoring {
        /// The state directory.
        dir: PathBuf,
    },
    /// A final copy has been made, and its store is refreshed elsewhere.
    #[error(
        "a final backup was made on {made_at}; this store was moved, and is refreshed elsewhere. If that was called off: \
         freshctl restore {file} --replace; or where there is no such file, remove {marker}, and {file}.freshd-unfinished if that is there. Nothing was changed",
        file = file.display(),
        marker = marker.display()
    )]
    Moved {
        /// When.
        made_at: String,
        /// The copy.
        file: PathBuf,
        /// The file that says so.
        marker: PathBuf,
    },
    /// The file is some other program's.
    #[error("{database} is not a freshd database. Nothing was changed", database = database.display())]
    NotOurs {
        /// The file.
        database: PathBuf,
    },
    /// SQLite could not open or upgrade the database.
    #[error("{database} could not be opened", database = database.display())]
    Database {
        /// The database.
        database: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

impl OpenError {
    /// Returns the exit code: 75 (try again), 74 (an input or output error) or 78 (a person must act).
    pub fn exit_code(&self) -> u8 {
        match self {
            OpenError::Locked { .. } => 75,
            OpenError::Io { .. } => 74,
            _ => 78,
        }
    }
}

/// The files of a state directory.
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) database: PathBuf,
    pub(super) database_log: PathBuf,
    unnamed_database: PathBuf,
    pub(super) keyring: PathBuf,
    pub(super) lock: PathBuf,
    pub(super) spill: PathBuf,
    pub(super) erasures: PathBuf,
    pub(super) restoring: PathBuf,
    /// What a restore makes of a copy, before it takes the database's place.
    pub(super) prepared: PathBuf,
    pub(super) moved: PathBuf,
}

impl Layout {
    pub(super) fn new(dir: &Path) -> Layout {
        Layout {
            dir: dir.into(),
            database: dir.join(DATABASE),
            database_log: dir.join(DATABASE_LOG),
            unnamed_database: dir.join(UNNAMED_DATABASE),
            keyring: dir.join(KEYRING),
            lock: dir.join(LOCK),
            spill: dir.join(SPILL),
            erasures: dir.join(ERASURES),
            restoring: dir.join(RESTORING),
            prepared: dir.join("restore.new"),
            moved: dir.join(MOVED),
        }
    }

    /// The files that belong to one store. Lock and erasure journal belong to the directory.
    pub(super) fn store_files(&self) -> [PathBuf; 7] {
        [
            self.database.clone(),
            self.database_log.clone(),
            self.dir.join("freshd.db-shm"),
            self.unnamed_database.clone(),
            self.keyring.clone(),
            self.spill.clone(),
            self.moved.clone(),
        ]
    }

    /// Whether a path in the state directory has a name that freshd uses, or may come to use, for something else.
    pub(super) fn uses(&self, path: &Path) -> bool {
        let Some((parent, name)) = path.parent().zip(path.file_name()) else {
            return false;
        };
        let here = self.dir.canonicalize().ok();
        if here.is_none() || parent.canonicalize().ok() != here {
            return false;
        }
        let ours = [&self.lock, &self.spill, &self.erasures, &self.restoring];
        let ours = ours.into_iter().chain([&self.prepared, &self.moved]);
        let ours = ours.filter_map(|file| file.file_name());
        let name = name.to_string_lossy();
        // With what SQLite and a write that was cut short put beside them.
        [DATABASE, KEYRING]
            .into_iter()
            .map(Into::into)
            .chain(ours.map(|ours| ours.to_string_lossy()))
            .any(|ours| name.starts_with(&*ours))
    }

    /// Whether a store, or a part of one, is there.
    pub(super) fn exists(&self) -> bool {
        let files = [
            &self.database,
            &self.database_log,
            &self.unnamed_database,
            &self.keyring,
            &self.moved,
        ];
        files.iter().any(|file| file.symlink_metadata().is_ok())
    }
}

/// An opened state directory: the lock, the proved keys and the writer's connection.
pub(super) struct Opened {
    pub(super) layout: Layout,
    pub(super) lock: File,
    pub(super) keyring: Keyring,
    pub(super) writer: Connection,
    pub(super) written_at: Option<UnixTime>,
}

/// Opens or makes the store in `options.dir`.
pub(super) fn open(options: &Options) -> Result<Opened, OpenError> {
    let layout = Layout::new(&options.dir);
    prepare_dir(&layout.dir)?;
    let lock = take_lock(&layout)?;
    if layout.restoring.symlink_metadata().is_ok() {
        return Err(OpenError::Restoring { dir: layout.dir });
    }
    if let Ok(made) = std::fs::read_to_string(&layout.moved) {
        return Err(moved(layout.moved, &made));
    }
    let there = |path: &Path| match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(OpenError::Io {
            path: path.into(),
            done: "read",
            source,
        }),
    };
    let written_at = written_at(&layout);
    let database = there(&layout.database)? || there(&layout.database_log)?;
    let keyring = match (there(&layout.keyring)?, database) {
        (true, true) => unlock(&layout, &options.kek)?,
        (false, false) => make(&layout, options)?,
        (true, false) if there(&layout.unnamed_database)? => {
            let keyring = unlock(&layout, &options.kek)?;
            check_identity(&layout.unnamed_database, &layout.keyring, &keyring)?;
            name_database(&layout)?;
            keyring
        }
        (true, false) => {
            return Err(OpenError::NoDatabase {
                database: layout.database,
                keyring: layout.keyring,
            });
        }
        (false, true) => {
            return Err(OpenError::NoKeyring {
                database: layout.database,
                keyring: layout.keyring,
            });
        }
    };
    check_identity(&layout.database, &layout.keyring, &keyring)?;
    // Of a restore that was killed before it had moved anything. It is in nobody's way.
    let _ = schema::remove(&layout.prepared);
    let writer = open_writer(&layout, &keyring, options.busy_timeout)?;
    Ok(Opened {
        layout,
        lock,
        keyring,
        writer,
        written_at,
    })
}

fn moved(marker: PathBuf, made: &str) -> OpenError {
    let (made_at, file) = made.trim_end().split_once(' ').unwrap_or((made, "FILE"));
    OpenError::Moved {
        made_at: made_at.into(),
        file: file.into(),
        marker,
    }
}

/// When the database was last written, by the clock of that time: what its file says before anybody else writes it.
fn written_at(layout: &Layout) -> Option<UnixTime> {
    [&layout.database, &layout.database_log]
        .into_iter()
        .filter_map(|file| {
            let file = file.metadata().ok()?;
            let secs = file.mtime().saturating_mul(1000);
            Some(UnixTime::from_millis(secs + file.mtime_nsec() / 1_000_000))
        })
        .max()
}

pub(super) fn prepare_dir(dir: &Path) -> Result<(), OpenError> {
    let io = |done| {
        move |source| OpenError::Io {
            path: dir.into(),
            done,
            source,
        }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io("made"))?;
    let mode = dir.metadata().map_err(io("read"))?.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(OpenError::Directory {
            dir: dir.into(),
            mode,
        });
    }
    Ok(())
}

pub(super) fn take_lock(layout: &Layout) -> Result<File, OpenError> {
    let io = |source| OpenError::Io {
        path: layout.lock.clone(),
        done: "made",
        source,
    };
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&layout.lock)
        .map_err(io)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked {
            dir: layout.dir.clone(),
        }),
        Err(errno) => Err(io(errno.into())),
    }
}

fn unlock(layout: &Layout, kek: &Kek) -> Result<Keyring, OpenError> {
    let text = read_keyring(&layout.keyring)?;
    Keyring::unlock(kek, &text).map_err(|error| keyring_refused(&layout.keyring, error))
}

pub(super) fn read_keyring(path: &Path) -> Result<Vec<u8>, OpenError> {
    std::fs::read(path).map_err(|source| OpenError::Io {
        path: path.into(),
        done: "read",
        source,
    })
}

/// Says of which file a keyring was refused, and why.
pub(super) fn keyring_refused(path: &Path, error: KeyringError) -> OpenError {
    let reason = match error {
        KeyringError::WrongKey => {
            return OpenError::Key {
                keyring: path.into(),
            };
        }
        KeyringError::NoRecovery => {
            return OpenError::NoRecovery {
                keyring: path.into(),
            };
        }
        KeyringError::Damaged(reason) => reason.into(),
        KeyringError::Newer(found) => format!(
            "it has format {found} but this freshd knows formats up to {}",
            keyring::FORMAT
        ),
    };
    OpenError::Keyring {
        keyring: path.into(),
        reason,
    }
}

/// Makes a new store so that a crash at any step leaves either nothing that counts or one whole store:
/// the database under another name, then the keyring, then the database's name.
fn make(layout: &Layout, options: &Options) -> Result<Keyring, OpenError> {
    let keyring = Keyring::create(&options.kek);
    let path = &layout.unnamed_database;
    let io = |source| OpenError::Io {
        path: path.clone(),
        done: "made",
        source,
    };
    schema::remove(path).map_err(io)?;
    // SQLite gives its log and index the mode of the database.
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    let sql = |source| OpenError::Database {
        database: path.clone(),
        source,
    };
    let mut conn = schema::connect_writer(path, options.busy_timeout).map_err(sql)?;
    schema::create(&mut conn, keyring.store_id()).map_err(sql)?;
    conn.close().map_err(|(_, source)| sql(source))?;
    file.sync_all().map_err(io)?;
    keyring::write_file(&layout.keyring, &keyring.text()).map_err(|source| OpenError::Io {
        path: layout.keyring.clone(),
        done: "written",
        source,
    })?;
    name_database(layout)?;
    Ok(keyring)
}

fn name_database(layout: &Layout) -> Result<(), OpenError> {
    std::fs::rename(&layout.unnamed_database, &layout.database)
        .and_then(|()| sync_parent(&layout.database))
        .map_err(|source| OpenError::Io {
            path: layout.database.clone(),
            done: "made",
            source,
        })
}

/// Refuses a file that is not ours, newer, or not this keyring's, before anything is changed.
///
/// A file that can't be read here (a crash in a checkpoint may leave one that only
/// the log completes) is left to SQLite's recovery and to the same check after it.
fn check_identity(database: &Path, path: &Path, keyring: &Keyring) -> Result<(), OpenError> {
    match schema::identify(database) {
        Ok(identity) => check(database, path, keyring, &identity),
        Err(rusqlite::Error::SqliteFailure(error, _))
            if error.code == rusqlite::ErrorCode::NotADatabase =>
        {
            Err(OpenError::NotOurs {
                database: database.into(),
            })
        }
        Err(_) => Ok(()),
    }
}

fn check(
    database: &Path,
    path: &Path,
    keyring: &Keyring,
    identity: &schema::Identity,
) -> Result<(), OpenError> {
    if identity.application_id != schema::APPLICATION_ID {
        return Err(OpenError::NotOurs {
            database: database.into(),
        });
    }
    if identity.version > schema::VERSION {
        return Err(OpenError::Newer {
            database: database.into(),
            found: identity.version,
            known: schema::VERSION,
        });
    }
    match identity.store_id.as_deref() {
        Some(id) if id == keyring.store_id() => Ok(()),
        Some(_) => Err(OpenError::Keyring {
            keyring: path.into(),
            reason: "it belongs to another store".into(),
        }),
        None => Err(OpenError::NotOurs {
            database: database.into(),
        }),
    }
}

fn open_writer(
    layout: &Layout,
    keyring: &Keyring,
    busy_timeout: Duration,
) -> Result<Connection, OpenError> {
    let sql = |source| OpenError::Database {
        database: layout.database.clone(),
        source,
    };
    let mut conn = schema::connect_writer(&layout.database, busy_timeout).map_err(sql)?;
    let identity = schema::identity(&conn).map_err(sql)?;
    check(&layout.database, &layout.keyring, keyring, &identity)?;
    schema::upgrade(&mut conn).map_err(sql)?;
    Ok(conn)
}
