//! The nightly copies in a directory: their names, and which go.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backup::{APPLICATION_ID, BackupError, blocking};
use super::{Store, rows, schema};
use crate::refresh::time::UnixTime;

/// Returns the name of a nightly copy. Names sort by age: `freshd-20260131T030000Z.backup`.
pub fn nightly_name(at: UnixTime) -> String {
    format!("{NIGHTLY}{}{NIGHTLY_END}", stamp(at))
}

/// Returns a moment in the form 20260131T030000Z, which sorts by age.
pub(super) fn stamp(at: UnixTime) -> String {
    let text = at.rfc3339();
    let seconds = text.chars().take_while(|c| *c != '.');
    let digits: String = seconds
        .filter(|c| c.is_ascii_digit() || *c == 'T')
        .collect();
    digits + "Z"
}

const NIGHTLY: &str = "freshd-";
const NIGHTLY_END: &str = ".backup";

fn is_nightly_name(name: &str) -> bool {
    let stamp = name
        .strip_prefix(NIGHTLY)
        .and_then(|name| name.strip_suffix(NIGHTLY_END));
    stamp.is_some_and(|stamp| {
        stamp.len() == "20260131T030000Z".len()
            && stamp.char_indices().all(|(at, c)| match at {
                8 => c == 'T',
                15 => c == 'Z',
                _ => c.is_ascii_digit(),
            })
    })
}

impl Store {
    /// Removes the oldest nightly copies in `dir` beyond the newest `keep`; returns their number.
    ///
    /// Only a regular file with a name of [`nightly_name`] that is a copy of this very store is one.
    ///
    /// # Errors
    /// The directory can't be read, or a file not be removed.
    pub async fn remove_old_backups(&self, dir: &Path, keep: usize) -> Result<usize, BackupError> {
        let (inner, dir) = (Arc::clone(&self.inner), dir.to_owned());
        blocking(move || {
            let mut copies =
                nightly_copies(&dir, inner.keyring.read().store_id()).map_err(|source| {
                    BackupError::Io {
                        path: dir,
                        done: "read",
                        source,
                    }
                })?;
            let old = copies.len().saturating_sub(keep);
            copies.sort();
            for path in copies.drain(..old) {
                std::fs::remove_file(&path).map_err(|source| BackupError::Io {
                    path,
                    done: "removed",
                    source,
                })?;
            }
            Ok(old)
        })
        .await
    }
}

fn nightly_copies(dir: &Path, store_id: &[u8]) -> io::Result<Vec<PathBuf>> {
    let mut copies = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let named = entry.file_name().to_str().is_some_and(is_nightly_name);
        if !named || !entry.file_type()?.is_file() {
            continue;
        }
        if copied_at(&entry.path(), store_id).is_some() {
            copies.push(entry.path());
        }
    }
    Ok(copies)
}

/// Of when the copies in a directory are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// The newest nightly one, by its name.
    pub nightly: Option<UnixTime>,
    /// The newest of this store, whoever made it and whatever its name.
    pub any: Option<UnixTime>,
}

/// So many files that are no nightly copies are looked into, those that were written last.
const LOOKED_INTO: usize = 16;

impl Store {
    /// Returns of when the newest copies in `dir` are; none where there is no such directory.
    ///
    /// # Errors
    /// The directory can't be read.
    pub async fn newest_copies(&self, dir: &Path) -> io::Result<Newest> {
        let (inner, dir) = (Arc::clone(&self.inner), dir.to_owned());
        // It may wait for a disk.
        let looked = tokio::task::spawn_blocking(move || {
            newest_copies(&dir, inner.keyring.read().store_id())
        });
        looked.await.map_err(io::Error::other)?
    }
}

fn newest_copies(dir: &Path, store_id: &[u8]) -> io::Result<Newest> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Newest::default()),
        entries => entries?,
    };
    let (mut nightly, mut others) = (None, Vec::new());
    for entry in entries {
        let entry = entry?;
        match made_at(&entry.file_name()) {
            // One that has gone meanwhile is no copy any more.
            None => others.extend(entry.metadata().ok().and_then(|found| {
                let written = found.modified().ok()?;
                found.is_file().then(|| (written, entry.path()))
            })),
            at => nightly = nightly.max(at),
        }
    }
    others.sort();
    let others = others.iter().rev().take(LOOKED_INTO);
    let by_hand = others
        .filter_map(|(_, path)| copied_at(path, store_id))
        .max();
    Ok(Newest {
        nightly,
        any: nightly.max(by_hand),
    })
}

/// Reads of when a copy of this store is; `None` where the file is none.
fn copied_at(path: &Path, store_id: &[u8]) -> Option<UnixTime> {
    let conn = schema::connect_immutable(path).ok()?;
    let identity = schema::identity(&conn).ok()?;
    let ours =
        identity.application_id == APPLICATION_ID && identity.store_id.as_deref() == Some(store_id);
    let made_at = || conn.query_row("SELECT made_at FROM backup", [], |row| rows::time(row, 0));
    ours.then(made_at)?.ok()
}

/// Reads the moment in a name of [`nightly_name`].
fn made_at(name: &OsStr) -> Option<UnixTime> {
    let name = name.to_str().filter(|name| is_nightly_name(name))?;
    let stamp = &name[NIGHTLY.len()..name.len() - NIGHTLY_END.len()];
    let (date, time) = stamp.split_once('T')?;
    UnixTime::from_rfc3339(&format!(
        "{}-{}-{}T{}:{}:{}Z",
        &date[..4],
        &date[4..6],
        &date[6..],
        &time[..2],
        &time[2..4],
        &time[4..6]
    ))
}

/// Makes a directory of mode 0700 for copies, if it is not there.
///
/// # Errors
/// It can't be made.
pub fn make_backup_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    File::open(dir).map(drop)
}
