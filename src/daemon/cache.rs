//! The hot cache: grants with their opened access tokens, never refresh tokens.
//!
//! Bounded in bytes; the access tokens are wiped when their entries go. What was not read for a while goes first: a
//! hand goes around the entries and takes those that were not read since it came by ("clock"), so that a read
//! moves nothing. An entry is inserted only if its grant has not changed since it was read: every change bumps its
//! shard's epoch, and a reader brings the epoch it saw before it read.

use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use indexmap::IndexMap;

use crate::refresh::grant::GrantKey;
use crate::refresh::reading::Readable;

const SHARDS: usize = 16;
/// What an entry costs beside its strings: the grant, the words of its answers, the maps, the allocations.
const ENTRY_BYTES: usize = 960;

/// Grants that were read lately.
pub(super) struct Cache {
    /// Its key is this process's own. Names that share a hash would cost all but one of them their place, and no more.
    hasher: SeedableRandomState,
    shard_bytes: usize,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    epoch: u64,
    bytes: usize,
    /// By the hash of the key. Should two keys ever have the same, one of them is not cached.
    entries: IndexMap<u64, Entry, BuildHasherDefault<AsItIs>>,
    /// Where to look for what goes next.
    hand: usize,
}

struct Entry {
    readable: Arc<Readable>,
    /// Whether it was read since the hand passed.
    read_again: bool,
    bytes: usize,
}

/// Hashes what is a hash already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only a u64 is hashed");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What a shard's state was before a read.
#[derive(Clone, Copy)]
pub(super) struct Epoch(u64);

impl Cache {
    /// Makes a cache of at most `bytes`; 0 keeps nothing.
    pub(super) fn new(bytes: usize) -> Self {
        // There is one cache for as long as the process lives. Its key is drawn where all chance comes from.
        let seed = Box::leak(Box::new(SharedSeed::from_u64(rand::random())));
        Cache {
            hasher: SeedableRandomState::with_seed(rand::random(), seed),
            shard_bytes: bytes / SHARDS,
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Returns the entry, or the epoch to insert one with.
    pub(super) fn find(&self, key: &GrantKey) -> Result<Arc<Readable>, Epoch> {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash);
        match shard.entries.get_mut(&hash) {
            Some(entry) if entry.readable.grant.key == *key => {
                entry.read_again = true;
                Ok(entry.readable.clone())
            }
            _ => Err(Epoch(shard.epoch)),
        }
    }

    /// Inserts what was read, unless something has changed since `epoch`.
    pub(super) fn insert(&self, readable: Arc<Readable>, epoch: Epoch) {
        let hash = self.hasher.hash_one(&readable.grant.key);
        let mut shard = self.shard(hash);
        if shard.epoch == epoch.0 {
            shard.put(hash, readable, self.shard_bytes);
        }
    }

    /// Replaces the entry by what was just committed.
    pub(super) fn replace(&self, readable: Arc<Readable>) {
        let hash = self.hasher.hash_one(&readable.grant.key);
        let mut shard = self.shard(hash);
        shard.epoch += 1;
        shard.put(hash, readable, self.shard_bytes);
    }

    /// Forgets an entry whose grant has changed.
    pub(super) fn forget(&self, key: &GrantKey) {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash);
        shard.epoch += 1;
        shard.take(hash);
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let epoch = shard.epoch + 1;
            *shard = Shard {
                epoch,
                ..Shard::default()
            };
        }
    }

    fn shard(&self, hash: u64) -> std::sync::MutexGuard<'_, Shard> {
        // The map in the shard goes by the low bits.
        let index = (hash >> 32) as usize % SHARDS;
        self.shards[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn put(&mut self, hash: u64, readable: Arc<Readable>, most: usize) {
        let key = &readable.grant.key;
        let token = readable.access_token.as_ref();
        let bytes = ENTRY_BYTES
            + key.user.len()
            + key.namespace.len()
            + key.provider.len()
            + key.account.len()
            + token.map_or(0, |token| token.expose().len())
            + readable.grant.scope.as_ref().map_or(0, String::len);
        let before = self.take(hash);
        if bytes > most {
            return;
        }
        while self.bytes + bytes > most {
            self.turn();
        }
        self.bytes += bytes;
        let read_again = before.is_some_and(|before| before.read_again);
        let entry = Entry {
            readable,
            read_again,
            bytes,
        };
        self.entries.insert(hash, entry);
    }

    /// Moves the hand on by one entry, which goes if it was not read since the hand was there before.
    fn turn(&mut self) {
        if self.hand >= self.entries.len() {
            self.hand = 0;
        }
        let Some((_, entry)) = self.entries.get_index_mut(self.hand) else {
            return;
        };
        if std::mem::take(&mut entry.read_again) {
            self.hand += 1;
        } else if let Some((_, gone)) = self.entries.swap_remove_index(self.hand) {
            self.bytes -= gone.bytes;
        }
    }

    fn take(&mut self, hash: u64) -> Option<Entry> {
        let gone = self.entries.swap_remove(&hash)?;
        self.bytes -= gone.bytes;
        Some(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refresh::grant::Grant;
    use crate::refresh::time::UnixTime;
    use crate::refresh::token::{AccessToken, TokenSet};

    const TOKEN: usize = 1000;

    fn key(user: &str) -> GrantKey {
        GrantKey {
            namespace: "default".into(),
            user: user.into(),
            provider: "acme".into(),
            account: String::new(),
        }
    }

    fn readable(user: &str) -> Arc<Readable> {
        let now = UnixTime::from_secs(1_700_000_000);
        let tokens = TokenSet {
            access_token: Some(AccessToken::new("x".repeat(TOKEN))),
            token_type: "Bearer".into(),
            expires_at: None,
            obtained_at: now,
            refresh_token: None,
            refresh_token_end: None,
            scope: None,
        };
        let grant = Grant::imported(key(user), &tokens, now);
        Arc::new(Readable::new(grant, tokens.access_token))
    }

    fn read(cache: &Cache, user: &str) -> bool {
        match cache.find(&key(user)) {
            Ok(found) => {
                assert_eq!(found.grant.key.user, user);
                true
            }
            Err(epoch) => {
                cache.insert(readable(user), epoch);
                false
            }
        }
    }

    #[test]
    fn what_is_read_often_stays_while_ever_others_come() {
        let cache = Cache::new(SHARDS * 10 * (ENTRY_BYTES + TOKEN + 100));
        for nth in 0..10_000 {
            read(&cache, &format!("passer-by-{nth}"));
            let known = read(&cache, "regular");
            assert_eq!(known, nth > 0, "after {nth} others");
        }
    }

    #[test]
    fn no_shard_holds_more_than_its_bytes_and_none_counts_wrong() {
        let cache = Cache::new(SHARDS * 10 * (ENTRY_BYTES + TOKEN + 100));
        for nth in 0..5000 {
            let user = format!("user-{}", nth * 7919 % 1009);
            match nth % 5 {
                0 => cache.forget(&key(&user)),
                1 => cache.replace(readable(&user)),
                _ => drop(read(&cache, &user)),
            }
        }
        for shard in &cache.shards {
            let shard = shard.lock().unwrap();
            let bytes: usize = shard.entries.values().map(|entry| entry.bytes).sum();
            assert_eq!(shard.bytes, bytes);
            assert!(
                bytes <= cache.shard_bytes && shard.entries.len() >= 5,
                "{bytes}"
            );
        }
    }

    #[test]
    fn what_was_read_before_a_change_is_not_inserted_after_it() {
        let cache = Cache::new(1 << 20);
        let Err(epoch) = cache.find(&key("anna")) else {
            panic!("nothing is there yet");
        };
        cache.forget(&key("anna"));
        cache.insert(readable("anna"), epoch);
        assert!(cache.find(&key("anna")).is_err());
    }

    #[test]
    fn what_is_larger_than_a_shard_is_not_kept_and_drives_nothing_out() {
        let cache = Cache::new(SHARDS * (ENTRY_BYTES + TOKEN / 2));
        assert!(!read(&cache, "anna"));
        assert!(!read(&cache, "anna"));
    }
}
