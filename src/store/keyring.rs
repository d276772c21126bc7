//! The keyring: data keys and the fingerprint key, wrapped by the key-encryption key.
//!
//! A small JSON file beside the database. Its commitment proves the
//! key-encryption key before SQLite touches anything (I9); every data key has an
//! id that the values it sealed carry, so several can live side by side.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::guarded::Guarded;
use super::kek::{Kek, sync_parent};
use super::seal::{self, Bound, Broken, Sealer};

/// The version of the keyring file.
const FORMAT: u32 = 1;
const WRAP_INFO: &[u8] = b"freshd keyring wrap";
const COMMITMENT_INFO: &[u8] = b"freshd keyring commitment";

/// A store's random number; tells stores apart that share a key-encryption key.
pub(super) type StoreId = [u8; 16];

/// The unwrapped keys of one store.
pub(super) struct Keyring {
    store_id: StoreId,
    /// The data key that seals; the others only open.
    current: u32,
    sealers: BTreeMap<u32, Sealer>,
    fingerprint_key: Guarded,
}

/// Why a keyring was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeyringError {
    /// The commitment was made with another key (or for another store).
    WrongKey,
    /// The file is damaged; the text says where.
    Damaged(&'static str),
    /// The file was written by a newer freshd.
    Newer(u32),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyringFile {
    format: u32,
    store_id: String,
    commitment: String,
    current: u32,
    keys: Vec<WrappedKey>,
    fingerprint_key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrappedKey {
    id: u32,
    wrapped: String,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl Keyring {
    /// Makes a keyring for a new store: its id, one data key and the fingerprint key.
    pub(super) fn create(kek: &Kek) -> (Keyring, String) {
        let mut store_id = [0; 16];
        SysRng
            .try_fill_bytes(&mut store_id)
            .expect("the system's random source works");
        let (data_key, fingerprint_key) = (random_key(), random_key());
        let wrapping = Wrapping::new(kek, store_id);
        let file = KeyringFile {
            format: FORMAT,
            store_id: STANDARD.encode(store_id),
            commitment: STANDARD.encode(wrapping.commitment()),
            current: 1,
            keys: vec![WrappedKey {
                id: 1,
                wrapped: wrapping.wrap("data", 1, &data_key),
            }],
            fingerprint_key: wrapping.wrap("fingerprint", 0, &fingerprint_key),
        };
        let sealer = Sealer::new(data_key, store_id, 1);
        let sealers = BTreeMap::from([(1, sealer)]);
        let text = serde_json::to_string_pretty(&file).expect("strings and numbers serialize");
        (
            Keyring {
                store_id,
                current: 1,
                sealers,
                fingerprint_key,
            },
            text + "\n",
        )
    }

    /// Proves the key-encryption key and unwraps every key.
    pub(super) fn unlock(kek: &Kek, text: &[u8]) -> Result<Keyring, KeyringError> {
        let damaged = KeyringError::Damaged;
        let FormatOnly { format } =
            serde_json::from_slice(text).map_err(|_| damaged("it is not the JSON freshd wrote"))?;
        if format > FORMAT {
            return Err(KeyringError::Newer(format));
        }
        let file: KeyringFile =
            serde_json::from_slice(text).map_err(|_| damaged("it is not the JSON freshd wrote"))?;
        let store_id: StoreId = decode(&file.store_id)
            .and_then(|id| id.as_slice().try_into().ok())
            .ok_or(damaged("store_id is not 16 bytes of base64"))?;
        let commitment = decode(&file.commitment).ok_or(damaged("commitment is not base64"))?;
        let wrapping = Wrapping::new(kek, store_id);
        if !bool::from(wrapping.commitment().as_slice().ct_eq(&commitment)) {
            return Err(KeyringError::WrongKey);
        }
        let mut sealers = BTreeMap::new();
        for key in &file.keys {
            let data_key = wrapping
                .unwrap("data", key.id, &key.wrapped)
                .ok_or(damaged("a data key does not unwrap"))?;
            sealers.insert(key.id, Sealer::new(data_key, store_id, key.id));
        }
        if !sealers.contains_key(&file.current) {
            return Err(damaged("the current data key is not in it"));
        }
        let fingerprint_key = wrapping
            .unwrap("fingerprint", 0, &file.fingerprint_key)
            .ok_or(damaged("the fingerprint key does not unwrap"))?;
        Ok(Keyring {
            store_id,
            current: file.current,
            sealers,
            fingerprint_key,
        })
    }

    pub(super) fn store_id(&self) -> &StoreId {
        &self.store_id
    }

    /// Seals with the current data key; returns that key's id too.
    pub(super) fn seal(&self, bound: &Bound<'_>, secret: &str) -> (u32, Vec<u8>) {
        (
            self.current,
            self.sealers[&self.current].seal(bound, secret),
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
        self.current
    }

    /// Returns a keyed HMAC-SHA256: equal secrets are told to be equal without being kept.
    pub(super) fn fingerprint(&self, purpose: &str, secret: &[u8]) -> [u8; 32] {
        let length = (purpose.len() as u64).to_le_bytes();
        hmac(
            &self.fingerprint_key,
            &[&length, purpose.as_bytes(), secret],
        )
    }
}

/// Writes a new keyring file: whole and on disk under its name, or not there.
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
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unnamed, path)?;
    sync_parent(path)
}

/// What the key-encryption key does for one store, each with a key derived for that alone.
struct Wrapping {
    store_id: StoreId,
    wrap_key: Guarded,
    commitment_key: Guarded,
}

impl Wrapping {
    fn new(kek: &Kek, store_id: StoreId) -> Wrapping {
        let derive = |info| {
            let mut key = Guarded::zeroed();
            Hkdf::<Sha256>::new(Some(&store_id), kek.bytes())
                .expand(info, &mut *key)
                .expect("32 bytes are a length HKDF-SHA256 gives");
            key
        };
        Wrapping {
            store_id,
            wrap_key: derive(WRAP_INFO),
            commitment_key: derive(COMMITMENT_INFO),
        }
    }

    /// An AEAD key is not proved by a value that opens: several keys can open one value. This is.
    fn commitment(&self) -> [u8; 32] {
        hmac(&self.commitment_key, &[&self.store_id])
    }

    fn associated_data(&self, purpose: &str, id: u32) -> Vec<u8> {
        [
            WRAP_INFO,
            &self.store_id,
            &id.to_le_bytes(),
            purpose.as_bytes(),
        ]
        .concat()
    }

    fn wrap(&self, purpose: &str, id: u32, key: &Guarded) -> String {
        let cipher = seal::cipher(&self.wrap_key);
        STANDARD.encode(seal::seal_bytes(
            &cipher,
            &self.associated_data(purpose, id),
            &key[..],
        ))
    }

    fn unwrap(&self, purpose: &str, id: u32, wrapped: &str) -> Option<Guarded> {
        let cipher = seal::cipher(&self.wrap_key);
        let wrapped = decode(wrapped)?;
        let plain = seal::open_bytes(&cipher, &self.associated_data(purpose, id), &wrapped).ok()?;
        Some(Guarded::of(plain.as_slice().try_into().ok()?))
    }
}

fn random_key() -> Guarded {
    let mut key = Guarded::zeroed();
    SysRng
        .try_fill_bytes(&mut *key)
        .expect("the system's random source works");
    key
}

fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

fn hmac(key: &Guarded, parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key[..]).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
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
        let (made, text) = Keyring::create(&kek);
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
        let (_, text) = Keyring::create(&kek);
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
        let (first, text) = Keyring::create(&kek);
        let (old_id, old) = first.seal(&BOUND, "old");
        let mut file: KeyringFile = serde_json::from_str(&text).unwrap();
        let wrapping = Wrapping::new(&kek, *first.store_id());
        file.keys.push(WrappedKey {
            id: 2,
            wrapped: wrapping.wrap("data", 2, &random_key()),
        });
        file.current = 2;
        let both = Keyring::unlock(&kek, &serde_json::to_vec(&file).unwrap()).unwrap();
        let (new_id, new) = both.seal(&BOUND, "new");
        assert_eq!((old_id, new_id), (1, 2));
        assert_eq!(*both.open(&BOUND, 1, &old).unwrap(), "old");
        assert_eq!(*both.open(&BOUND, 2, &new).unwrap(), "new");
        assert_eq!(both.open(&BOUND, 1, &new), Err(Broken));

        file.current = 3;
        let lost = Keyring::unlock(&kek, &serde_json::to_vec(&file).unwrap());
        assert!(matches!(lost.err(), Some(KeyringError::Damaged(_))));
    }

    #[test]
    fn wrapped_keys_cannot_take_each_others_place() {
        let kek = Kek::generate();
        let (_, text) = Keyring::create(&kek);
        let mut file: KeyringFile = serde_json::from_str(&text).unwrap();
        std::mem::swap(&mut file.keys[0].wrapped, &mut file.fingerprint_key);
        let swapped = Keyring::unlock(&kek, &serde_json::to_vec(&file).unwrap());
        assert!(matches!(swapped.err(), Some(KeyringError::Damaged(_))));
    }

    #[test]
    fn a_newer_format_is_named() {
        let newer = Keyring::unlock(&Kek::generate(), br#"{"format": 2, "else": 1}"#);
        assert_eq!(newer.err(), Some(KeyringError::Newer(2)));
    }

    #[test]
    fn fingerprints_are_keyed_and_separate_by_purpose() {
        let kek = Kek::generate();
        let ((one, text), (two, _)) = (Keyring::create(&kek), Keyring::create(&kek));
        let again = Keyring::unlock(&kek, text.as_bytes()).unwrap();
        assert_eq!(one.fingerprint("a", b"x"), again.fingerprint("a", b"x"));
        assert_ne!(one.fingerprint("a", b"x"), two.fingerprint("a", b"x"));
        assert_ne!(one.fingerprint("a", b"x"), one.fingerprint("b", b"x"));
        assert_ne!(one.fingerprint("a", b"bx"), one.fingerprint("ab", b"x"));
    }
}
