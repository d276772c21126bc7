//! Another key-encryption key, or another recovery key: offline, and only the keyring file is written.
//!
//! Each data key stays, so the database is not touched, and what an old keyring opens an old key still opens. To
//! make stolen copies worthless, a rotation of the data key follows.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::kek::Kek;
use super::keyring::{self, Keyring, KeyringError};
use super::open::{Layout, OpenError, keyring_refused, read_keyring, take_lock};
use super::recovery::RecoveryKey;

/// What proves that somebody may open a keyring.
#[derive(Clone, Copy)]
pub enum Proof<'a> {
    /// The key-encryption key.
    Kek(&'a Kek),
    /// The recovery key.
    Recovery(&'a RecoveryKey),
}

/// Why a keyring was not changed.
#[derive(Debug, thiserror::Error)]
pub enum RekeyError {
    /// The state directory is in use, or the keyring can't be read or opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is a recovery key, of which nothing was said.
    #[error("{keyring} has a recovery key. Nothing was changed", keyring = keyring.display())]
    HasRecovery {
        /// The keyring.
        keyring: PathBuf,
    },
    /// The file could not be written.
    #[error(
        "{keyring} could not be written; {opens}",
        keyring = keyring.display()
    )]
    Write {
        /// The keyring.
        keyring: PathBuf,
        /// Why.
        source: io::Error,
        /// What opens it now.
        opens: &'static str,
    },
}

impl RekeyError {
    /// Returns the exit code: 73 (the recovery key that is there would be lost), 74 (the disk), or the opening's.
    pub fn exit_code(&self) -> u8 {
        match self {
            RekeyError::Open(error) => error.exit_code(),
            RekeyError::HasRecovery { .. } => 73,
            RekeyError::Write { .. } => 74,
        }
    }
}

/// What to do about a missing key beside a store, where a new one would open nothing.
pub const PUT_KEY_BACK: &str = "put the key back from its copy; or, with the recovery key, another one in its place: \
    freshctl key change-kek --recovery-key-file";

/// What became of a change of the key-encryption key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The new key opens the keyring, and the old one does not.
    Done,
    /// The new key opened it already.
    Already,
}

/// Proves a key, or a recovery key, and unwraps a keyring by it.
pub(super) fn unlocked(path: &Path, text: &[u8], proof: Proof<'_>) -> Result<Keyring, OpenError> {
    match proof {
        Proof::Kek(kek) => Keyring::unlock(kek, text).map_err(|error| keyring_refused(path, error)),
        Proof::Recovery(key) => Keyring::recover(key, text).map_err(|error| match error {
            KeyringError::WrongKey => OpenError::RecoveryKey {
                keyring: path.into(),
            },
            error => keyring_refused(path, error),
        }),
    }
}

/// Returns whether there is a store, or a part of one, in `dir`.
pub fn has_store(dir: &Path) -> bool {
    Layout::new(dir).exists()
}

/// Returns the uid that the database in `dir` belongs to, where one is there and we may look.
pub fn owner(dir: &Path) -> Option<u32> {
    let about = Layout::new(dir).database.symlink_metadata();
    about.ok().map(|about| about.uid())
}

/// Proves that `kek` opens the keyring in `dir`; `false` where there is no keyring yet. Changes nothing, and
/// a daemon may run.
///
/// # Errors
/// The keyring can't be read, or it is another key's.
pub fn proves(dir: &Path, kek: &Kek) -> Result<bool, OpenError> {
    let path = Layout::new(dir).keyring;
    if !path.try_exists().unwrap_or(true) {
        return Ok(false);
    }
    unlocked(&path, &read_keyring(&path)?, Proof::Kek(kek)).map(|_| true)
}

/// Wraps the keyring in `dir` by `new` in place of the key that wraps it now. Blocks.
///
/// A recovery key that is the proof stays one. Of another nothing is known that could be wrapped anew, so with
/// `drop_recovery` it ends, and without it nothing is changed.
///
/// # Errors
/// See [`RekeyError`]. A daemon must not run: it would write its own keyring over this one.
pub fn change_kek(
    dir: &Path,
    proof: Proof<'_>,
    new: &Kek,
    drop_recovery: bool,
) -> Result<Changed, RekeyError> {
    let layout = Layout::new(dir);
    let _lock = take_lock(&layout)?;
    let path = &layout.keyring;
    let text = read_keyring(path)?;
    if Keyring::unlock(new, &text).is_ok() {
        return Ok(Changed::Already);
    }
    let old = unlocked(path, &text, proof)?;
    let mut rewrapped = old.rewrapped(new);
    match proof {
        Proof::Recovery(key) => rewrapped = rewrapped.with_recovery(Some(key)),
        Proof::Kek(_) if old.has_recovery() && !drop_recovery => {
            return Err(RekeyError::HasRecovery {
                keyring: path.clone(),
            });
        }
        Proof::Kek(_) => {}
    }
    let opens = || match read_keyring(path) {
        Ok(text) if Keyring::unlock(new, &text).is_ok() => {
            "the new key opens it now, but keep the old one until this command has gone well"
        }
        _ => "the old key still opens it",
    };
    write(path, &rewrapped, opens)?;
    unlocked(path, &read_keyring(path)?, Proof::Kek(new))?;
    Ok(Changed::Done)
}

/// Gives the keyring in `dir` this recovery key, or none. Blocks.
///
/// # Errors
/// There is one already and `replace` was not said, or none to be removed; see [`RekeyError`] for the rest.
pub fn set_recovery(
    dir: &Path,
    kek: &Kek,
    key: Option<&RecoveryKey>,
    replace: bool,
) -> Result<(), RekeyError> {
    let layout = Layout::new(dir);
    let _lock = take_lock(&layout)?;
    let path = &layout.keyring;
    let keyring = unlocked(path, &read_keyring(path)?, Proof::Kek(kek))?;
    if key.is_some() && keyring.has_recovery() && !replace {
        return Err(RekeyError::HasRecovery {
            keyring: path.clone(),
        });
    }
    if key.is_none() && !keyring.has_recovery() {
        return Err(keyring_refused(path, KeyringError::NoRecovery).into());
    }
    let opens = || "its key opens it as before; run the command again";
    write(path, &keyring.with_recovery(key), opens)?;
    if let Some(key) = key {
        unlocked(path, &read_keyring(path)?, Proof::Recovery(key))?;
    }
    Ok(())
}

fn write(
    path: &Path,
    keyring: &Keyring,
    opens: impl FnOnce() -> &'static str,
) -> Result<(), RekeyError> {
    keyring::write_file(path, &keyring.text()).map_err(|source| RekeyError::Write {
        keyring: path.into(),
        source,
        opens: opens(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_keyring() -> (tempfile::TempDir, Kek) {
        let (dir, kek) = (tempfile::tempdir().unwrap(), Kek::generate());
        let text = Keyring::create(&kek).text();
        std::fs::write(dir.path().join("keyring"), text).unwrap();
        (dir, kek)
    }

    fn opens(dir: &Path, proof: Proof<'_>) -> bool {
        let path = dir.join("keyring");
        unlocked(&path, &read_keyring(&path).unwrap(), proof).is_ok()
    }

    #[test]
    fn the_new_key_opens_it_and_the_old_one_does_not_and_again_changes_nothing() {
        let (dir, old) = with_keyring();
        let (dir, new) = (dir.path(), Kek::generate());
        let change = || change_kek(dir, Proof::Kek(&old), &new, false).unwrap();
        assert_eq!(change(), Changed::Done);
        assert!(opens(dir, Proof::Kek(&new)) && !opens(dir, Proof::Kek(&old)));
        let before = std::fs::read(dir.join("keyring")).unwrap();
        assert_eq!(change(), Changed::Already);
        assert_eq!(std::fs::read(dir.join("keyring")).unwrap(), before);
    }

    #[test]
    fn a_recovery_key_ends_only_if_that_is_said_and_stays_if_it_is_shown() {
        let (dir, old) = with_keyring();
        let (dir, new, recovery) = (dir.path(), Kek::generate(), RecoveryKey::generate());
        set_recovery(dir, &old, Some(&recovery), false).unwrap();
        let other = RecoveryKey::generate();
        let again = set_recovery(dir, &old, Some(&other), false);
        assert!(matches!(again, Err(RekeyError::HasRecovery { .. })));
        let unsaid = change_kek(dir, Proof::Kek(&old), &new, false);
        assert!(matches!(unsaid, Err(RekeyError::HasRecovery { .. })));
        let wrong = change_kek(dir, Proof::Recovery(&other), &new, false);
        assert!(matches!(
            wrong,
            Err(RekeyError::Open(OpenError::RecoveryKey { .. }))
        ));
        assert!(opens(dir, Proof::Kek(&old)) && opens(dir, Proof::Recovery(&recovery)));

        change_kek(dir, Proof::Recovery(&recovery), &new, false).unwrap();
        assert!(opens(dir, Proof::Kek(&new)) && opens(dir, Proof::Recovery(&recovery)));
        change_kek(dir, Proof::Kek(&new), &old, true).unwrap();
        assert!(opens(dir, Proof::Kek(&old)) && !opens(dir, Proof::Recovery(&recovery)));
        let none = set_recovery(dir, &old, None, false);
        assert!(matches!(
            none,
            Err(RekeyError::Open(OpenError::NoRecovery { .. }))
        ));
    }
}
