//! XChaCha20-Poly1305 over single values, bound to everything that says whose they are.
//!
//! A sealed value is one version byte, a random 24-byte nonce, the ciphertext and
//! its 16-byte tag. The associated data names the row, its owner and the metadata
//! that goes with the secret, so that a swapped, copied or edited value fails to open.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::guarded::Guarded;
use super::kek::KEY_LEN;
use crate::refresh::time::UnixTime;

/// The version of the sealed form, apart from the schema's.
const SEAL_FORMAT: u8 = 1;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;
const HEAD_LEN: usize = 1 + NONCE_LEN;

/// What a sealed value is for. A value sealed for one purpose does not open for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// An access token of a grant.
    Access,
    /// A refresh token of a grant.
    Refresh,
    /// An access token that waits for its revocation.
    RevokeAccess,
    /// A refresh token that waits for its revocation.
    RevokeRefresh,
    /// A whole token set in the spill file.
    Spill,
}

impl Purpose {
    pub(super) fn name(self) -> &'static str {
        match self {
            Purpose::Access => "access",
            Purpose::Refresh => "refresh",
            Purpose::RevokeAccess => "revoke-access",
            Purpose::RevokeRefresh => "revoke-refresh",
            Purpose::Spill => "spill",
        }
    }
}

/// What a sealed value is bound to, next to the store and the key.
#[derive(Clone, Copy)]
pub(super) struct Bound<'a> {
    pub(super) purpose: Purpose,
    pub(super) row: i64,
    /// Empty, like the two that follow, where a value is nobody's any more.
    pub(super) namespace: &'a str,
    pub(super) user: &'a str,
    pub(super) provider: &'a str,
    pub(super) account: &'a str,
    pub(super) generation: u64,
    pub(super) expires_at: Option<UnixTime>,
    pub(super) scope: Option<&'a str>,
}

impl Bound<'_> {
    /// Each field is preceded by its length, so no two different bindings have the same bytes.
    fn associated_data(&self, store_id: &[u8], key_id: u32) -> Vec<u8> {
        let mut data = Vec::with_capacity(256);
        let mut field = |bytes: &[u8]| {
            data.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            data.extend_from_slice(bytes);
        };
        field(&[SEAL_FORMAT]);
        field(self.purpose.name().as_bytes());
        field(store_id);
        field(&self.row.to_le_bytes());
        field(self.namespace.as_bytes());
        field(self.user.as_bytes());
        field(self.provider.as_bytes());
        field(self.account.as_bytes());
        field(&key_id.to_le_bytes());
        field(&self.generation.to_le_bytes());
        match self.expires_at {
            Some(at) => field(&at.as_millis().to_le_bytes()),
            None => field(&[]),
        }
        // A leading byte tells an empty scope from none.
        match self.scope {
            Some(scope) => field(&[b"=", scope.as_bytes()].concat()),
            None => field(&[]),
        }
        data
    }
}

/// Says that a sealed value does not open: it was edited, moved, or sealed under another key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// One data key and the store it works for.
pub(super) struct Sealer {
    key: Guarded,
    store_id: [u8; 16],
    key_id: u32,
}

impl Sealer {
    pub(super) fn new(key: Guarded, store_id: [u8; 16], key_id: u32) -> Sealer {
        Sealer {
            key,
            store_id,
            key_id,
        }
    }

    pub(super) fn seal(&self, bound: &Bound<'_>, secret: &str) -> Vec<u8> {
        let aad = bound.associated_data(&self.store_id, self.key_id);
        seal_bytes(&cipher(&self.key), &aad, secret.as_bytes())
    }

    pub(super) fn open(
        &self,
        bound: &Bound<'_>,
        sealed: &[u8],
    ) -> Result<Zeroizing<String>, Broken> {
        let aad = bound.associated_data(&self.store_id, self.key_id);
        let mut plain = open_bytes(&cipher(&self.key), &aad, sealed)?;
        match String::from_utf8(std::mem::take(&mut *plain)) {
            Ok(secret) => Ok(Zeroizing::new(secret)),
            Err(error) => {
                drop(Zeroizing::new(error.into_bytes()));
                Err(Broken)
            }
        }
    }
}

pub(super) fn cipher(key: &[u8; KEY_LEN]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(<&Key>::from(key))
}

/// Seals `secret`. The plaintext is encrypted where it is copied to, so no second copy is left behind.
pub(super) fn seal_bytes(cipher: &XChaCha20Poly1305, aad: &[u8], secret: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_LEN] = rand::random();
    let mut sealed = Vec::with_capacity(HEAD_LEN + secret.len() + TAG_LEN);
    sealed.push(SEAL_FORMAT);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(secret);
    let tag = cipher
        .encrypt_inout_detached(&XNonce::from(nonce), aad, (&mut sealed[HEAD_LEN..]).into())
        .expect("a token is far shorter than the cipher's 256 GiB");
    sealed.extend_from_slice(&tag);
    sealed
}

pub(super) fn open_bytes(
    cipher: &XChaCha20Poly1305,
    aad: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Broken> {
    let (head, rest) = sealed.split_at_checked(HEAD_LEN).ok_or(Broken)?;
    let (text, tag) = rest
        .len()
        .checked_sub(TAG_LEN)
        .and_then(|at| rest.split_at_checked(at))
        .ok_or(Broken)?;
    if head[0] != SEAL_FORMAT {
        return Err(Broken);
    }
    let nonce = XNonce::try_from(&head[1..]).map_err(|_| Broken)?;
    let tag = Tag::try_from(tag).map_err(|_| Broken)?;
    let mut plain = Zeroizing::new(text.to_vec());
    cipher
        .decrypt_inout_detached(&nonce, aad, plain.as_mut_slice().into(), &tag)
        .map_err(|_| Broken)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Bound<'static> = Bound {
        purpose: Purpose::Access,
        row: 7,
        namespace: "default",
        user: "anna",
        provider: "hubspot",
        account: "",
        generation: 3,
        expires_at: Some(UnixTime::from_secs(1_790_000_000)),
        scope: Some("a b"),
    };

    fn sealer(key: u8, store: u8, key_id: u32) -> Sealer {
        Sealer::new(Guarded::of(&[key; KEY_LEN]), [store; 16], key_id)
    }

    #[test]
    fn a_value_opens_only_for_exactly_what_it_was_sealed_for() {
        let sealed = sealer(1, 1, 1).seal(&BOUND, "secret");
        assert_eq!(
            sealer(1, 1, 1).open(&BOUND, &sealed).unwrap().as_str(),
            "secret"
        );
        let others = [
            Bound {
                purpose: Purpose::Refresh,
                ..BOUND
            },
            Bound {
                purpose: Purpose::RevokeAccess,
                ..BOUND
            },
            Bound { row: 8, ..BOUND },
            Bound {
                namespace: "other",
                ..BOUND
            },
            Bound {
                user: "bert",
                ..BOUND
            },
            Bound {
                provider: "google",
                ..BOUND
            },
            Bound {
                account: "work",
                ..BOUND
            },
            Bound {
                generation: 4,
                ..BOUND
            },
            Bound {
                expires_at: None,
                ..BOUND
            },
            Bound {
                expires_at: Some(UnixTime::from_secs(1_790_000_001)),
                ..BOUND
            },
            Bound {
                scope: Some("a b c"),
                ..BOUND
            },
            Bound {
                scope: Some(""),
                ..BOUND
            },
            Bound {
                scope: None,
                ..BOUND
            },
            // The lengths keep neighbouring fields apart.
            Bound {
                user: "annah",
                provider: "ubspot",
                ..BOUND
            },
        ];
        for (nth, other) in others.iter().enumerate() {
            assert_eq!(
                sealer(1, 1, 1).open(other, &sealed),
                Err(Broken),
                "case {nth}"
            );
        }
        for (nth, other) in [sealer(2, 1, 1), sealer(1, 2, 1), sealer(1, 1, 2)]
            .iter()
            .enumerate()
        {
            assert_eq!(other.open(&BOUND, &sealed), Err(Broken), "sealer {nth}");
        }
    }

    #[test]
    fn an_empty_scope_is_not_no_scope() {
        let empty = Bound {
            scope: Some(""),
            ..BOUND
        };
        let none = Bound {
            scope: None,
            ..BOUND
        };
        let sealed = sealer(1, 1, 1).seal(&empty, "secret");
        assert_eq!(sealer(1, 1, 1).open(&none, &sealed), Err(Broken));
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let sealer = sealer(1, 1, 1);
        let sealed = sealer.seal(&BOUND, "secret");
        for nth in 0..sealed.len() {
            let mut edited = sealed.clone();
            edited[nth] ^= 1;
            assert_eq!(sealer.open(&BOUND, &edited), Err(Broken), "byte {nth}");
            assert_eq!(
                sealer.open(&BOUND, &sealed[..nth]),
                Err(Broken),
                "cut at {nth}"
            );
        }
    }

    #[test]
    fn the_same_secret_never_looks_the_same() {
        let sealer = sealer(1, 1, 1);
        let (one, two) = (sealer.seal(&BOUND, "secret"), sealer.seal(&BOUND, "secret"));
        assert_ne!(one[1..HEAD_LEN], two[1..HEAD_LEN]);
        assert_ne!(one[HEAD_LEN..], two[HEAD_LEN..]);
    }

    #[test]
    fn tokens_of_any_size_round_trip() {
        let sealer = sealer(1, 1, 1);
        for len in [0, 1, 64, 16 * 1024] {
            let secret = "x".repeat(len);
            let sealed = sealer.seal(&BOUND, &secret);
            assert_eq!(sealed.len(), HEAD_LEN + len + TAG_LEN);
            assert_eq!(*sealer.open(&BOUND, &sealed).unwrap(), secret);
        }
    }
}
