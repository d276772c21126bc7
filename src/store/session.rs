//! What a verb sees while it runs: one transaction, the keys and the disk; and what can go wrong.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, Params};

use super::StoreError;
use super::keyring::Keyring;

/// With less than this free, no refresh token is spent: its successor might not fit.
const ROOM: u64 = 8 * 1024 * 1024;

/// Returns whether `bytes` more leave room on the file system of `dir`. One that can't be asked is told apart by the
/// write itself.
pub(super) fn has_room(dir: &Path, bytes: u64) -> bool {
    rustix::fs::statvfs(dir).map_or(true, |stat| {
        stat.f_bavail.saturating_mul(stat.f_frsize) >= bytes.saturating_add(ROOM)
    })
}

/// Why a verb's part of a transaction did not work.
#[derive(Debug)]
pub(super) enum Trouble {
    /// SQLite said so.
    Sqlite(rusqlite::Error),
    /// The file system has no room.
    NoRoom,
    /// The file system takes no writes, whatever room it has.
    ReadOnly,
    /// What is open is no longer what lies at its path: this file.
    Gone(PathBuf),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Trouble {
        Trouble::Sqlite(error)
    }
}

impl Trouble {
    /// Returns what the caller is told.
    pub(super) fn store_error(&self) -> StoreError {
        match self {
            Trouble::NoRoom => StoreError::NoSpace,
            Trouble::ReadOnly => StoreError::Unavailable,
            Trouble::Gone(_) => StoreError::Gone,
            Trouble::Sqlite(_) if self.is_the_disks() => StoreError::Unavailable,
            Trouble::Sqlite(_) => StoreError::Damaged,
        }
    }

    /// Returns whether the disk, and not this verb, is at fault: then nothing else can be written either.
    pub(super) fn is_the_disks(&self) -> bool {
        let error = match self {
            Trouble::ReadOnly => return true,
            Trouble::Sqlite(rusqlite::Error::SqliteFailure(error, _)) => error,
            _ => return false,
        };
        matches!(
            error.code,
            ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::OutOfMemory
                | ErrorCode::PermissionDenied
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OperationInterrupted
        )
    }

    /// Returns SQLite's own words. They name tables and columns, never values.
    pub(super) fn text(&self) -> String {
        match self {
            Trouble::NoRoom => "the file system has no room".into(),
            Trouble::ReadOnly => "the file system is read-only".into(),
            Trouble::Gone(file) => format!(
                "{} was deleted or replaced under the running freshd; stop it and put a copy back (freshctl restore)",
                file.display()
            ),
            Trouble::Sqlite(error) => error.to_string(),
        }
    }
}

/// The disk beneath the store; test builds can make it fail.
pub(super) struct Disk {
    dir: PathBuf,
    /// The files that must stay what they were: each with its device and inode.
    files: Vec<(PathBuf, u64, u64)>,
    #[cfg(test)]
    pub(super) faults: super::tests::Faults,
}

impl Disk {
    /// `files` are open, and lie in `dir`.
    pub(super) fn new(dir: PathBuf, files: &[&Path]) -> std::io::Result<Disk> {
        let identity = |path: &&Path| {
            let file = path.symlink_metadata()?;
            Ok((path.to_path_buf(), file.dev(), file.ino()))
        };
        Ok(Disk {
            dir,
            files: files.iter().map(identity).collect::<std::io::Result<_>>()?,
            #[cfg(test)]
            faults: Default::default(),
        })
    }

    /// Checks that the files are still there and the same. What is written to one that is not is lost with this
    /// process, and a second freshd could hold the same grants.
    pub(super) fn check_there(&self) -> Result<(), Trouble> {
        let same = |(path, dev, ino): &&(PathBuf, u64, u64)| match path.symlink_metadata() {
            Ok(file) => (file.dev(), file.ino()) == (*dev, *ino),
            // Anything else is told apart by the write itself.
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        };
        match self.files.iter().find(|file| !same(file)) {
            Some((path, ..)) => Err(Trouble::Gone(path.clone())),
            None => Ok(()),
        }
    }

    /// Checks that a token set will fit and that the file system takes writes.
    pub(super) fn check_room(&self) -> Result<(), Trouble> {
        #[cfg(test)]
        if self.faults.full() {
            return Err(Trouble::NoRoom);
        }
        // A file system that can't be asked is told apart by the write itself.
        let Ok(stat) = rustix::fs::statvfs(&self.dir) else {
            return Ok(());
        };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Err(Trouble::ReadOnly);
        }
        if free < ROOM {
            return Err(Trouble::NoRoom);
        }
        Ok(())
    }

    /// Returns the free bytes, where the file system says.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.dir).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Stands before every write and commit.
    pub(super) fn step(&self) -> Result<(), Trouble> {
        #[cfg(test)]
        self.faults.step()?;
        Ok(())
    }
}

/// One transaction as the verbs see it.
pub(super) struct Session<'a> {
    pub(super) conn: &'a Connection,
    pub(super) keyring: &'a Keyring,
    pub(super) disk: &'a Disk,
}

impl Session<'_> {
    /// Runs one statement that writes; returns how many rows it changed.
    pub(super) fn write(&self, sql: &str, params: impl Params) -> Result<usize, Trouble> {
        self.disk.step()?;
        Ok(self.conn.prepare_cached(sql)?.execute(params)?)
    }

    /// Returns the first row of a query, if there is one.
    pub(super) fn first<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, Trouble> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        Ok(rows.next()?.map(read).transpose()?)
    }

    /// Returns all rows of a query.
    pub(super) fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Trouble> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let rows = statement.query_map(params, read)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}
