//! The keyring: data keys and the fingerprint key, wrapped by the key-encryption key.
//!
//! A small JSON file beside the database. Its commitment proves the
//! key-encryption key before SQLite touches anything (I9); every data key has an
//! id that the values it sealed carry, so several can live side by side: while there is
//! more than the current one, a rotation is under way. A recovery key, which is kept elsewhere, opens
//! what the key-encryption key derives for this store, so that keys can come and go without it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::guarded::Guarded;
use super::kek::{Kek, sync_parent};
use super::recovery::RecoveryKey;
use super::seal::{Bound, Broken, Sealer};
use super::wrapping::{Wrapping, decode, hmac, random_key};

/// The version of the keyring file that is written. Version 1 is read too: it knows no recovery key.
pub(super) const FORMAT: u32 = 2;

/// A store's random number; tells stores apart that share a key-encryption key.
pub(super) type StoreId = [u8; 16];

/// The unwrapped keys of one store.
pub(super) struct Keyring {
    file: KeyringFile,
    /// Kept, so that a rotation can wrap the next data key: whoever reads our memory has the data keys anyhow.
    wrapping: Wrapping,
    /// The current one seals; the others only open.
    sealers: BTreeMap<u32, Sealer>,
    fingerprint_key: Guarded,
}

/// Why a keyring was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeyringError {
    /// The commitment was made with another key (or for another store).
    WrongKey,
    /// There is no recovery key.
    NoRecovery,
    /// The file is damaged; the text says where.
    Damaged(&'static str),
    /// The file was written by a newer freshd.
    Newer(u32),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyringFile {
    format: u32,
    store_id: String,
    commitment: String,
    current: u32,
    keys: Vec<WrappedKey>,
    fingerprint_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recovery: Option<Recovery>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrappedKey {
    id: u32,
    wrapped: String,
}

/// What the key-encryption key derives for this store, wrapped by a recovery key.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recovery {
    commitment: String,
    wrapped: String,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl Keyring {
    /// Makes a keyring for a new store: its id, one data key and the fingerprint key.
    pub(super) fn create(kek: &Kek) -> Keyring {
        let mut store_id = [0; 16];
        SysRng
            .try_fill_bytes(&mut store_id)
            .expect("the system's random source works");
        let wrapping = Wrapping::new(kek, store_id);
        let file = KeyringFile {
            format: FORMAT,
            store_id: STANDARD.encode(store_id),
            commitment: STANDARD.encode(wrapping.commitment()),
            current: 1,
            keys: vec![WrappedKey {
                id: 1,
                wrapped: wrapping.wrap("data", 1, &random_key()),
            }],
            fingerprint_key: wrapping.wrap("fingerprint", 0, &random_key()),
            recovery: None,
        };
        Keyring::of(file, wrapping).expect("it was wrapped just now")
    }

    /// Proves the key-encryption key and unwraps every key.
    pub(super) fn unlock(kek: &Kek, text: &[u8]) -> Result<Keyring, KeyringError> {
        let (file, store_id) = parse(text)?;
        Keyring::of(file, Wrapping::new(kek, store_id))
    }

    /// Proves the recovery key, and by it unwraps every key.
    pub(super) fn recover(key: &RecoveryKey, text: &[u8]) -> Result<Keyring, KeyringError> {
        let (file, store_id) = parse(text)?;
        let recovery = file.recovery.as_ref().ok_or(KeyringError::NoRecovery)?;
        let by_recovery = Wrapping::new(key.kek(), store_id);
        by_recovery.prove(&recovery.commitment)?;
        let prk = by_recovery
            .unwrap("recovery", 0, &recovery.wrapped)
            .ok_or(KeyringError::Damaged("its recovery part does not unwrap"))?;
        Keyring::of(file, Wrapping { store_id, prk })
    }

    fn of(file: KeyringFile, wrapping: Wrapping) -> Result<Keyring, KeyringError> {
        let damaged = KeyringError::Damaged;
        wrapping.prove(&file.commitment)?;
        let mut sealers = BTreeMap::new();
        for key in &file.keys {
            let data_key = wrapping
                .unwrap("data", key.id, &key.wrapped)
                .ok_or(damaged("a data key does not unwrap"))?;
            let sealer = Sealer::new(data_key, wrapping.store_id, key.id);
            sealers.insert(key.id, sealer);
        }
        if !sealers.contains_key(&file.current) {
            return Err(damaged("the current data key is not in it"));
        }
        let fingerprint_key = wrapping
            .unwrap("fingerprint", 0, &file.fingerprint_key)
            .ok_or(damaged("the fingerprint key does not unwrap"))?;
        Ok(Keyring {
            file,
            wrapping,
            sealers,
            fingerprint_key,
        })
    }

    /// Returns what the file is to hold.
    pub(super) fn text(&self) -> String {
        let file = KeyringFile {
            format: FORMAT,
            ..self.file.clone()
        };
        serde_json::to_string_pretty(&file).expect("strings and numbers serialize") + "\n"
    }

    /// Returns this keyring with one data key more, which seals from then on. An id is never used again.
    pub(super) fn with_new_key(&self) -> Keyring {
        let id = self.sealers.last_key_value().map_or(0, |(id, _)| *id) + 1;
        let mut file = self.file.clone();
        file.keys.push(WrappedKey {
            id,
            wrapped: self.wrapping.wrap("data", id, &random_key()),
        });
        file.current = id;
        self.changed(file)
    }

    /// Returns this keyring with its current data key only: what the others sealed opens no more.
    pub(super) fn without_old_keys(&self) -> Keyring {
        let mut file = self.file.clone();
        file.keys.retain(|key| key.id == self.current());
        self.changed(file)
    }

    /// Returns this keyring with this recovery key, or without one.
    pub(super) fn with_recovery(&self, key: Option<&RecoveryKey>) -> Keyring {
        let recovery = key.map(|key| {
            let wrapping = Wrapping::new(key.kek(), self.wrapping.store_id);
            Recovery {
                commitment: STANDARD.encode(wrapping.commitment()),
                wrapped: wrapping.wrap("recovery", 0, &self.wrapping.prk),
            }
        });
        self.changed(KeyringFile {
            recovery,
            ..self.file.clone()
        })
    }

    fn changed(&self, file: KeyringFile) -> Keyring {
        Keyring::of(file, self.wrapping.clone()).expect("it was wrapped just now, or opened before")
    }

    /// Returns this keyring wrapped by another key-encryption key, without a recovery key: that one opens what the old
    /// key-encryption key derived.
    pub(super) fn rewrapped(&self, kek: &Kek) -> Keyring {
        let (old, new) = (&self.wrapping, Wrapping::new(kek, self.wrapping.store_id));
        let rewrap = |purpose, id, wrapped: &str| {
            let key = old.unwrap(purpose, id, wrapped);
            new.wrap(purpose, id, &key.expect("it was opened before"))
        };
        let keys = self.file.keys.iter().map(|key| WrappedKey {
            id: key.id,
            wrapped: rewrap("data", key.id, &key.wrapped),
        });
        let file = KeyringFile {
            commitment: STANDARD.encode(new.commitment()),
            keys: keys.collect(),
            fingerprint_key: rewrap("fingerprint", 0, &self.file.fingerprint_key),
            recovery: None,
            ..self.file.clone()
        };
        Keyring::of(file, new).expect("it was wrapped just now")
    }

    pub(super) fn store_id(&self) -> &StoreId {
        &self.wrapping.store_id
    }

    /// Returns whether there is a recovery key.
    pub(super) fn has_recovery(&self) -> bool {
        self.file.recovery.is_some()
    }

    /// Seals with the current data key; returns that key's id too.
    pub(super) fn seal(&self, bound: &Bound<'_>, secret: &str) -> (u32, Vec<u8>) {
        (
            self.current(),
            self.sealers[&self.current()].seal(bound, secret),
        )
    }

    /// Opens a value that the data key `key_id` sealed.
    pub(super) fn open(
        &self,
        bound: &Bound<'_>,
        key_id: i64,
        sealed: &[u8],
    ) -> Result<Zeroizing<String>, Broken> {
        let key_id = u32::try_from(key_id).map_err(|_| Broken)?;
        self.sealers.get(&key_id).ok_or(Broken)?.open(bound, sealed)
    }

    /// Returns the current data key's id.
    pub(super) fn current(&self) -> u32 {
        self.file.current
    }

    /// Returns the ids of the data keys that only open: those that a rotation is to retire.
    pub(super) fn old_keys(&self) -> Vec<u32> {
        let ids = self.sealers.keys().copied();
        ids.filter(|id| *id != self.current()).collect()
    }

    /// Returns a keyed HMAC-SHA256: equal secrets are told to be equal without being kept.
    /// Its key stays in a rotation, or a refresh token that a grant has had would no longer be known.
    pub(super) fn fingerprint(&self, purpose: &str, secret: &[u8]) -> [u8; 32] {
        let length = (purpose.len() as u64).to_le_bytes();
        hmac(
            &self.fingerprint_key,
            &[&length, purpose.as_bytes(), secret],
        )
    }
}

/// The keyring of an open store.
///
/// Whoever is in a transaction holds it for reading all that time. So a replacement is a barrier: it waits until no
/// transaction is left that began with the old keys, and no value is sealed with them afterwards.
pub(super) struct SharedKeyring(RwLock<Keyring>);

impl SharedKeyring {
    pub(super) fn new(keyring: Keyring) -> SharedKeyring {
        SharedKeyring(RwLock::new(keyring))
    }

    /// Never call it twice on one thread: a replacement that waits in between would never end.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Keyring> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn replace(&self, keyring: Keyring) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keyring;
    }
}

fn parse(text: &[u8]) -> Result<(KeyringFile, StoreId), KeyringError> {
    let damaged = KeyringError::Damaged;
    let FormatOnly { format } =
        serde_json::from_slice(text).map_err(|_| damaged("it is not the JSON freshd wrote"))?;
    if format > FORMAT {
        return Err(KeyringError::Newer(format));
    }
    let file: KeyringFile =
        serde_json::from_slice(text).map_err(|_| damaged("it is not the JSON freshd wrote"))?;
    let store_id = decode(&file.store_id)
        .and_then(|id| id.as_slice().try_into().ok())
        .ok_or(damaged("store_id is not 16 bytes of base64"))?;
    Ok((file, store_id))
}

/// Writes a keyring file: whole and on disk under its name, or what was there before. Written by root in a service's
/// directory, it is the service's.
pub(super) fn write_file(path: &Path, text: &str) -> io::Result<()> {
    let unnamed = path.with_extension("new");
    match std::fs::remove_file(&unnamed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unnamed)?;
    if rustix::process::geteuid().is_root() {
        let owner = path.parent().unwrap_or(Path::new(".")).metadata()?;
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    let named = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&unnamed, path));
    if named.is_err() {
        // Useless; the first error is the one to report.
        let _ = std::fs::remove_file(&unnamed);
    }
    named.and_then(|()| sync_parent(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::seal::Purpose;

    const BOUND: Bound<'static> = Bound {
        purpose: Purpose::Access,
        row: 1,
        namespace: "default",
        user: "anna",
        provider: "hubspot",
        account: "",
        generation: 1,
        expires_at: None,
        scope: None,
    };

    #[test]
    fn a_keyring_unlocks_with_its_own_key_only() {
        let kek = Kek::generate();
        let made = Keyring::create(&kek);
        let text = made.text();
        let (key_id, sealed) = made.seal(&BOUND, "secret");
        let again = Keyring::unlock(&kek, text.as_bytes()).unwrap();
        assert_eq!(again.store_id(), made.store_id());
        assert_eq!(again.current(), key_id);
        assert_eq!(
            *again.open(&BOUND, key_id.into(), &sealed).unwrap(),
            "secret"
        );
        assert_eq!(again.open(&BOUND, 2, &sealed), Err(Broken));
        assert_eq!(again.open(&BOUND, -1, &sealed), Err(Broken));
        let other = Keyring::unlock(&Kek::generate(), text.as_bytes());
        assert_eq!(other.err(), Some(KeyringError::WrongKey));
    }

    #[test]
    fn any_edit_of_the_file_is_noticed() {
        let kek = Kek::generate();
        let text = Keyring::create(&kek).text();
        for nth in 0..text.len() {
            let mut edited = text.clone().into_bytes();
            if edited[nth].is_ascii_whitespace() {
                continue;
            }
            // Another character of the base64 alphabet where there was one.
            edited[nth] = if edited[nth] == b'A' { b'B' } else { b'A' };
            assert!(
                Keyring::unlock(&kek, &edited).is_err(),
                "byte {nth} of {text}"
            );
            assert!(
                Keyring::unlock(&kek, &edited[..nth]).is_err(),
                "cut at {nth}"
            );
        }
    }

    #[test]
    fn several_data_keys_live_side_by_side_and_the_current_one_seals() {
        let kek = Kek::generate();
        let first = Keyring::create(&kek);
        let (old_id, old) = first.seal(&BOUND, "old");
        let both = Keyring::unlock(&kek, first.with_new_key().text().as_bytes()).unwrap();
        let (new_id, new) = both.seal(&BOUND, "new");
        assert_eq!((old_id, new_id), (1, 2));
        assert_eq!((both.current(), both.old_keys()), (2, vec![1]));
        assert_eq!(*both.open(&BOUND, 1, &old).unwrap(), "old");
        assert_eq!(*both.open(&BOUND, 2, &new).unwrap(), "new");
        assert_eq!(both.open(&BOUND, 1, &new), Err(Broken));

        let mut file = both.file.clone();
        file.current = 3;
        let lost = Keyring::unlock(&kek, &serde_json::to_vec(&file).unwrap());
        assert!(matches!(lost.err(), Some(KeyringError::Damaged(_))));
    }

    #[test]
    fn a_retired_key_is_gone_from_the_file_and_its_id_is_not_used_again() {
        let kek = Kek::generate();
        let both = Keyring::create(&kek).with_new_key();
        let (_, new) = both.seal(&BOUND, "new");
        let text = both.without_old_keys().text();
        let one = Keyring::unlock(&kek, text.as_bytes()).unwrap();
        assert_eq!((one.current(), one.old_keys()), (2, vec![]));
        assert_eq!(*one.open(&BOUND, 2, &new).unwrap(), "new");
        assert!(!text.contains(&both.file.keys[0].wrapped));
        assert_eq!(one.with_new_key().current(), 3);
        assert_eq!(one.fingerprint("a", b"x"), both.fingerprint("a", b"x"));
    }

    #[test]
    fn a_keyring_of_format_1_is_read_and_written_anew_as_format_2() {
        let kek = Kek::generate();
        let made = Keyring::create(&kek);
        let old = made.text().replace("\"format\": 2", "\"format\": 1");
        assert!(!old.contains("recovery"), "as format 1 was");
        let read = Keyring::unlock(&kek, old.as_bytes()).unwrap();
        assert_eq!(read.text(), made.text());
    }

    #[test]
    fn another_key_encryption_key_opens_the_same_keys_and_the_old_one_opens_nothing() {
        let (old_kek, new_kek) = (Kek::generate(), Kek::generate());
        let old = Keyring::create(&old_kek).with_new_key();
        let (key_id, sealed) = old.seal(&BOUND, "secret");
        let text = old.rewrapped(&new_kek).text();
        let new = Keyring::unlock(&new_kek, text.as_bytes()).unwrap();
        assert_eq!(*new.open(&BOUND, key_id.into(), &sealed).unwrap(), "secret");
        assert_eq!((new.current(), new.old_keys()), (2, vec![1]));
        assert_eq!(new.fingerprint("a", b"x"), old.fingerprint("a", b"x"));
        let wrong = Keyring::unlock(&old_kek, text.as_bytes());
        assert_eq!(wrong.err(), Some(KeyringError::WrongKey));
        for key in &old.file.keys {
            assert!(!text.contains(&key.wrapped));
        }
    }

    #[test]
    fn a_recovery_key_opens_the_keyring_through_rotations_until_it_is_replaced() {
        let kek = Kek::generate();
        let (key, other) = (RecoveryKey::generate(), RecoveryKey::generate());
        let bare = Keyring::create(&kek);
        let refused = |key: &RecoveryKey, keyring: &Keyring| {
            Keyring::recover(key, keyring.text().as_bytes()).err()
        };
        assert_eq!(refused(&key, &bare), Some(KeyringError::NoRecovery));
        let with = bare.with_recovery(Some(&key));
        assert_eq!(refused(&other, &with), Some(KeyringError::WrongKey));
        assert!(Keyring::unlock(&kek, with.text().as_bytes()).is_ok());

        let rotated = with.with_new_key().without_old_keys();
        let (key_id, sealed) = rotated.seal(&BOUND, "secret");
        let opened = Keyring::recover(&key, rotated.text().as_bytes()).unwrap();
        assert_eq!(
            *opened.open(&BOUND, key_id.into(), &sealed).unwrap(),
            "secret"
        );

        let new_kek = Kek::generate();
        let kept = opened.rewrapped(&new_kek).with_recovery(Some(&key));
        assert!(Keyring::unlock(&new_kek, kept.text().as_bytes()).is_ok());
        assert!(Keyring::recover(&key, kept.text().as_bytes()).is_ok());
        assert_eq!(
            refused(&key, &opened.rewrapped(&new_kek)),
            Some(KeyringError::NoRecovery)
        );
        let replaced = kept.with_recovery(Some(&other));
        assert_eq!(refused(&key, &replaced), Some(KeyringError::WrongKey));
        assert_eq!(
            refused(&other, &replaced.with_recovery(None)),
            Some(KeyringError::NoRecovery)
        );
    }

    #[test]
    fn wrapped_keys_cannot_take_each_others_place() {
        let kek = Kek::generate();
        let text = Keyring::create(&kek).text();
        let mut file: KeyringFile = serde_json::from_str(&text).unwrap();
        std::mem::swap(&mut file.keys[0].wrapped, &mut file.fingerprint_key);
        let swapped = Keyring::unlock(&kek, &serde_json::to_vec(&file).unwrap());
        assert!(matches!(swapped.err(), Some(KeyringError::Damaged(_))));
    }

    #[test]
    fn a_newer_format_is_named() {
        let newer = Keyring::unlock(&Kek::generate(), br#"{"format": 3, "else": 1}"#);
        assert_eq!(newer.err(), Some(KeyringError::Newer(3)));
    }

    #[test]
    fn fingerprints_are_keyed_and_separate_by_purpose() {
        let kek = Kek::generate();
        let (one, two) = (Keyring::create(&kek), Keyring::create(&kek));
        let again = Keyring::unlock(&kek, one.text().as_bytes()).unwrap();
        assert_eq!(one.fingerprint("a", b"x"), again.fingerprint("a", b"x"));
        assert_ne!(one.fingerprint("a", b"x"), two.fingerprint("a", b"x"));
        assert_ne!(one.fingerprint("a", b"x"), one.fingerprint("b", b"x"));
        assert_ne!(one.fingerprint("a", b"bx"), one.fingerprint("ab", b"x"));
    }
}
