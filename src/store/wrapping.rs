//! What a key-encryption key, or a recovery key, does for one store.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::guarded::Guarded;
use super::kek::Kek;
use super::keyring::{KeyringError, StoreId};
use super::seal;

const WRAP_INFO: &[u8] = b"freshd keyring wrap";
const COMMITMENT_INFO: &[u8] = b"freshd keyring commitment";

/// What the key-encryption key does for one store, each with a key derived for that alone.
#[derive(Clone)]
pub(super) struct Wrapping {
    pub(super) store_id: StoreId,
    /// HKDF's pseudorandom key (RFC 5869 §2.2).
    pub(super) prk: Guarded,
}

impl Wrapping {
    pub(super) fn new(kek: &Kek, store_id: StoreId) -> Wrapping {
        let (mut extracted, _) = Hkdf::<Sha256>::extract(Some(&store_id), kek.bytes());
        let mut prk = Guarded::zeroed();
        prk.copy_from_slice(&extracted);
        extracted.as_mut_slice().zeroize();
        Wrapping { store_id, prk }
    }

    fn derive(&self, info: &[u8]) -> Guarded {
        let mut key = Guarded::zeroed();
        Hkdf::<Sha256>::from_prk(&self.prk[..])
            .expect("32 bytes are HKDF-SHA256's own length")
            .expand(info, &mut *key)
            .expect("32 bytes are a length HKDF-SHA256 gives");
        key
    }

    /// An AEAD key is not proved by a value that opens: several keys can open one value. This is.
    pub(super) fn commitment(&self) -> [u8; 32] {
        hmac(&self.derive(COMMITMENT_INFO), &[&self.store_id])
    }

    pub(super) fn prove(&self, commitment: &str) -> Result<(), KeyringError> {
        let commitment =
            decode(commitment).ok_or(KeyringError::Damaged("commitment is not base64"))?;
        let ours = self.commitment();
        let same = bool::from(ours.as_slice().ct_eq(&commitment));
        same.then_some(()).ok_or(KeyringError::WrongKey)
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

    pub(super) fn wrap(&self, purpose: &str, id: u32, key: &Guarded) -> String {
        let cipher = seal::cipher(&self.derive(WRAP_INFO));
        STANDARD.encode(seal::seal_bytes(
            &cipher,
            &self.associated_data(purpose, id),
            &key[..],
        ))
    }

    pub(super) fn unwrap(&self, purpose: &str, id: u32, wrapped: &str) -> Option<Guarded> {
        let cipher = seal::cipher(&self.derive(WRAP_INFO));
        let wrapped = decode(wrapped)?;
        let plain = seal::open_bytes(&cipher, &self.associated_data(purpose, id), &wrapped).ok()?;
        Some(Guarded::of(plain.as_slice().try_into().ok()?))
    }
}

pub(super) fn random_key() -> Guarded {
    let mut key = Guarded::zeroed();
    SysRng
        .try_fill_bytes(&mut *key)
        .expect("the system's random source works");
    key
}

pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

pub(super) fn hmac(key: &Guarded, parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key[..]).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}
