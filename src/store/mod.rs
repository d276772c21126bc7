//! The store: sealed grants in SQLite, behind domain verbs. No SQL outside this folder.
//!
//! One thread writes and commits in groups, a few read, one checkpoints; every
//! verb is an async function on [`Store`] that returns when its transaction is on disk.
//! A caller that stops waiting cancels nothing.
//!
//! | module | holds |
//! |---|---|
//! | `kek`, `recovery`, `wrapping`, `keyring`, `seal` | the key-encryption key, the recovery key, the data keys they wrap, sealed values |
//! | `rotation`, `rekey` | another data key, online; another key-encryption or recovery key, offline |
//! | `open`, `schema` | what happens at start, in which order; tables and migrations |
//! | `writer`, `checkpoint`, `reader`, `session` | the threads, and what a verb sees |
//! | `backup`, `nightly`, `restore`, `erasures` | copies of it all, and putting one in its place without bringing back who was erased |
//! | `export` | every grant with its tokens, encrypted to recipients |
//! | `rows`, `stored_row` | a grant's row, read and opened; the same from bytes nobody vouches for |
//! | `grants`, `attempts`, `schedule`, `fingerprints`, `history`, `events`, `audit`, `revocations`, `providers`, `renewal`, `ending`, `failing`, `activity`, `restamp`, `maintenance` | the verbs |

mod activity;
mod attempts;
mod audit;
mod backup;
mod checkpoint;
mod ending;
mod erasures;
mod events;
pub mod export;
mod failing;
mod fingerprints;
mod grants;
mod guarded;
mod history;
mod kek;
mod keyring;
mod maintenance;
mod nightly;
mod open;
mod providers;
mod reader;
mod recovery;
pub mod rekey;
mod renewal;
mod restamp;
pub mod restore;
mod revocations;
mod rotation;
mod rows;
mod schedule;
mod schema;
mod seal;
mod session;
mod spill;
mod stored_row;
#[cfg(test)]
mod tests;
mod wrapping;
mod writer;

use std::fs::File;
use std::sync::{Arc, Mutex};

pub use attempts::{Cas, Failure, TokenCommit};
pub use audit::{AuditFilter, AuditNote};
pub use backup::{BackedUp, BackupError};
pub use ending::Ending;
pub use events::{EventKind, EventPage, KeptEvent};
pub use failing::Failing;
pub use fingerprints::Short;
pub use grants::{Attemptable, Import, Imported};
pub use history::{By, Entry, Event};
pub use kek::{Kek, KeyError};
pub use maintenance::{Count, Purged};
pub use nightly::{Newest, make_backup_dir, nightly_name};
pub use open::{OpenError, Options};
pub use providers::ProviderState;
pub use recovery::{NoRecoveryKey, RecoveryKey};
pub use renewal::RenewalCounts;
pub use restamp::Restamper;
pub use revocations::{RevocationId, RevocationJob};
pub use rotation::{Keys, Page, Place, Retired, RotationError};
pub use schedule::{Filter, Rescheduler};
#[doc(hidden)]
pub use schema::VERSION as SCHEMA_VERSION;
#[doc(hidden)]
pub use stored_row::{opens_as_sealed, read_untrusted_row, sealed};

use erasures::Erasures;
use keyring::SharedKeyring;
use reader::{For, Readers};
use session::{Disk, Session, Trouble};
use spill::Spill;
use tokio::sync::oneshot;
use writer::{Class, Writer};

use crate::refresh::time::UnixTime;

/// Why a verb failed. Nothing was changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The disk is full, read-only, locked or failing; try again later. (507)
    #[error("the store could not be written")]
    Unavailable,
    /// A new token set might not fit on the disk, so no refresh token may be spent. (507)
    #[error("the store's file system has no room")]
    NoSpace,
    /// The database, or the lock beside it, was deleted or replaced under this process. (507)
    #[error("the store's files were deleted or replaced")]
    Gone,
    /// Something is wrong with the database itself.
    #[error("the store is damaged")]
    Damaged,
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Returns whether trying again later makes sense.
    pub fn is_temporary(&self) -> bool {
        matches!(self, StoreError::Unavailable | StoreError::NoSpace)
    }
}

/// The open store. Cheap to clone; the last clone closes the database when dropped.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    writer: Writer,
    readers: Readers,
    keyring: Arc<SharedKeyring>,
    disk: Arc<Disk>,
    /// Absent where it could not be made; told then.
    spill: Option<Spill>,
    erasures: Erasures,
    gone: events::Gone,
    layout: open::Layout,
    written_at: Option<UnixTime>,
    /// Held until the database is closed: one daemon per state directory.
    lock: Mutex<Option<File>>,
}

impl Store {
    /// Opens the store, or makes a new one where there is none. Blocks; call it before serving.
    ///
    /// # Errors
    /// See [`OpenError`]. Where the key or the keyring is refused, not one byte has changed (I9).
    pub fn open(options: Options) -> Result<Store, OpenError> {
        let opened = open::open(&options)?;
        let database = &opened.layout.database;
        let sql = |source| OpenError::Database {
            database: database.clone(),
            source,
        };
        let readers = (0..reader::READERS)
            .map(|_| {
                let reader = schema::connect_reader(database, options.busy_timeout)?;
                // Opens its files now: it reads on if they are deleted later.
                reader.query_row("SELECT 1 FROM store", [], |_| Ok(()))?;
                Ok(reader)
            })
            .collect::<rusqlite::Result<Vec<_>>>()
            .map_err(sql)?;
        let checkpoints = schema::connect_writer(database, options.busy_timeout).map_err(sql)?;
        let store_id = *opened.keyring.store_id();
        let keyring = Arc::new(SharedKeyring::new(opened.keyring));
        let files = [&*opened.layout.database, &*opened.layout.lock];
        let disk =
            Disk::new(opened.layout.dir.clone(), &files).map_err(|source| OpenError::Io {
                path: opened.layout.dir.clone(),
                done: "read",
                source,
            })?;
        let disk = Arc::new(disk);
        let threads = |source| OpenError::Io {
            path: opened.layout.dir.clone(),
            done: "served by threads",
            source,
        };
        let readers = Readers::start(readers, &keyring, &disk).map_err(threads)?;
        let writer = Writer::start(
            opened.writer,
            checkpoints,
            Arc::clone(&keyring),
            Arc::clone(&disk),
        )
        .map_err(threads)?;
        let lock = Mutex::new(Some(opened.lock));
        let erasures = Erasures::new(&opened.layout.erasures, store_id);
        // Without it a set that the disk refuses is in memory only; that is no reason not to serve.
        let spill = Spill::open(&opened.layout.spill)
            .inspect_err(|error| tracing::warn!(%error, "spill-failed"))
            .ok();
        Ok(Store {
            inner: Arc::new(Inner {
                writer,
                readers,
                keyring,
                disk,
                spill,
                erasures,
                gone: events::Gone::default(),
                layout: opened.layout,
                written_at: opened.written_at,
                lock,
            }),
        })
    }

    /// Returns when an earlier process last wrote the database, by the clock of that time; `None` for a new one.
    pub fn written_at(&self) -> Option<UnixTime> {
        self.inner.written_at
    }

    /// Returns a keyed fingerprint (HMAC-SHA256) of a secret: equal ones are told without being kept.
    /// The same secret has unrelated fingerprints for two purposes, and in two stores.
    pub fn fingerprint(&self, purpose: &str, secret: &[u8]) -> [u8; 32] {
        self.inner.keyring.read().fingerprint(purpose, secret)
    }

    /// Looks whether the store's files are still there and the same, and tells once if not. As long as
    /// they are not, nothing is written.
    pub fn watch(&self) {
        if let Err(trouble) = self.inner.disk.check_there() {
            self.inner.writer.tell(trouble);
        }
    }

    /// Returns why the store can't be written now: the last write's error if nothing has been committed
    /// since, or that there is no room.
    pub fn failing(&self) -> Option<String> {
        let disk = &self.inner.disk;
        let trouble = || disk.check_there().and_then(|()| disk.check_room()).err();
        let now = || trouble().map(|trouble| trouble.text());
        self.inner.writer.failing().or_else(now)
    }

    /// Returns the free bytes on the store's file system, where it says.
    pub fn free_bytes(&self) -> Option<u64> {
        self.inner.disk.free_bytes()
    }

    /// Returns how many changes wait for the writer.
    pub fn queued(&self) -> usize {
        self.inner.writer.queued()
    }

    /// Writes what is queued, empties the log, closes the database and frees the state directory.
    ///
    /// Every verb answers [`StoreError::Closed`] from then on.
    pub async fn close(&self) {
        let inner = Arc::clone(&self.inner);
        // Joining threads blocks. It can't fail but by a panic, which the panic hook has shown.
        let _ = tokio::task::spawn_blocking(move || inner.close()).await;
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Session<'_>) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, StoreError> {
        answered(self.inner.readers.submit(For::Daemon, work)).await
    }

    /// Reads for a caller: after the daemon's own reads, and never with all readers.
    async fn read_for_caller<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Session<'_>) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, StoreError> {
        answered(self.inner.readers.submit(For::Caller, work)).await
    }

    async fn write<T: Send + 'static>(
        &self,
        class: Class,
        work: impl Fn(&Session<'_>) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, StoreError> {
        answered(self.inner.writer.submit(class, work)).await
    }
}

async fn answered<T>(answer: oneshot::Receiver<Result<T, StoreError>>) -> Result<T, StoreError> {
    answer.await.unwrap_or(Err(StoreError::Closed))
}

impl Inner {
    fn close(&self) {
        // Readers first: with them gone the writer can empty the log.
        self.readers.close();
        self.writer.close();
        writer::lock(&self.lock).take();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store {
    /// Returns when the writer has taken and finished a piece of work: a sign of life.
    ///
    /// # Errors
    /// [`StoreError::Closed`], or that the disk does not take writes, or no longer has what is written to.
    pub async fn alive(&self) -> Result<(), StoreError> {
        let doubtful = self.inner.writer.failing().is_some();
        self.write(Class::Rest, move |session| {
            // After a failure only a write shows that the disk takes them again.
            if doubtful {
                schema::rewrite_version(session)
            } else {
                Ok(())
            }
        })
        .await
    }
}
