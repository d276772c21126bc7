//! The erasure journal: which grants were deleted, so that a restored copy does not bring them back.
//!
//! A file beside the database that outlives a restore. It names nobody: each record is a keyed hash of a grant's key
//! and the time. A copy notes how long the journal was at its moment; what came later is replayed on it. A record is
//! on disk before its deletion is committed: a deletion that failed after that is one when a copy is restored.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tokio::sync::RwLock;

use super::kek::sync_parent;
use super::keyring::{Keyring, StoreId};
use super::writer::lock;
use crate::refresh::grant::GrantKey;
use crate::refresh::time::UnixTime;

const MAGIC: &[u8; 8] = b"frshers1";
/// Magic, store id and the journal's own random id; or a hash and a time.
const RECORD: usize = 40;

/// A keyed hash of a grant's key.
pub(super) type Erased = [u8; 32];

/// Returns how the journal names a grant.
pub(super) fn name(keyring: &Keyring, key: &GrantKey) -> Erased {
    let mut text = Vec::with_capacity(256);
    for part in [&key.namespace, &key.user, &key.provider, &key.account] {
        text.extend_from_slice(&(part.len() as u64).to_le_bytes());
        text.extend_from_slice(part.as_bytes());
    }
    keyring.fingerprint("erasure", &text)
}

/// Where a journal is at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) journal: [u8; 16],
    pub(super) records: u64,
}

/// The journal of an open store. It is opened, or made, when it is needed first.
pub(super) struct Erasures {
    path: PathBuf,
    store_id: StoreId,
    journal: Mutex<Option<Journal>>,
    /// Read-locked from a record to its commit; write-locked while a copy takes its snapshot and its position.
    pub(super) gate: RwLock<()>,
}

impl Erasures {
    pub(super) fn new(path: &Path, store_id: StoreId) -> Erasures {
        Erasures {
            path: path.to_owned(),
            store_id,
            journal: Mutex::default(),
            gate: RwLock::default(),
        }
    }

    /// Appends a record; it is on disk when this returns.
    pub(super) fn append(&self, erased: &Erased, at: UnixTime) -> io::Result<()> {
        self.with(|journal| {
            let mut record = erased.to_vec();
            record.extend_from_slice(&at.as_millis().to_le_bytes());
            let end = (journal.records + 1) * RECORD as u64;
            journal.file.write_all_at(&record, end)?;
            journal.file.sync_data()?;
            journal.records += 1;
            Ok(())
        })
    }

    pub(super) fn position(&self) -> io::Result<Position> {
        self.with(|journal| {
            Ok(Position {
                journal: journal.id,
                records: journal.records,
            })
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Journal) -> io::Result<T>) -> io::Result<T> {
        let mut journal = lock(&self.journal);
        if journal.is_none() {
            *journal = Some(Journal::open(&self.path, &self.store_id)?);
        }
        work(journal.as_mut().expect("it was opened above"))
    }
}

struct Journal {
    file: File,
    id: [u8; 16],
    records: u64,
}

impl Journal {
    fn open(path: &Path, store_id: &StoreId) -> io::Result<Journal> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path);
        match file {
            Ok(file) => match head(&file)? {
                Some((id, store)) if store == *store_id => {
                    // What a crash tore off at the end is written over.
                    let records = (file.metadata()?.len() / RECORD as u64).saturating_sub(1);
                    return Ok(Journal { file, id, records });
                }
                // Another store's, or damaged: kept, but not gone on with.
                _ => std::fs::rename(path, path.with_extension("other"))?,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let id: [u8; 16] = rand::random();
        file.write_all_at(&[&MAGIC[..], store_id, &id].concat(), 0)?;
        file.sync_all()?;
        sync_parent(path)?;
        Ok(Journal {
            file,
            id,
            records: 0,
        })
    }
}

fn head(file: &File) -> io::Result<Option<([u8; 16], StoreId)>> {
    let mut head = [0; RECORD];
    match file.read_exact_at(&mut head, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let sixteen = |at: usize| std::array::from_fn(|nth| head[at + nth]);
    Ok(head.starts_with(MAGIC).then(|| (sixteen(24), sixteen(8))))
}

/// Reads what was erased since `position`. `None` if the file is not there, or is not the journal that the position
/// is of: then nobody knows.
pub(super) fn since(
    path: &Path,
    store_id: &StoreId,
    position: Position,
) -> io::Result<Option<BTreeSet<Erased>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let records = (file.metadata()?.len() / RECORD as u64).saturating_sub(1);
    let ours = head(&file)? == Some((position.journal, *store_id));
    if !ours || records < position.records {
        return Ok(None);
    }
    let mut erased = BTreeSet::new();
    for nth in position.records..records {
        let mut record = [0; RECORD];
        file.read_exact_at(&mut record, (nth + 1) * RECORD as u64)?;
        erased.insert(std::array::from_fn(|at| record[at]));
    }
    Ok(Some(erased))
}
