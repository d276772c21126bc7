//! The hot cache: grants with their opened access tokens, never refresh tokens.
//!
//! Bounded in bytes; the access tokens are wiped when their entries go. An entry
//! is inserted only if its grant has not changed since it was read: every change bumps
//! its shard's epoch, and a reader brings the epoch it saw before it read.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use crate::refresh::grant::GrantKey;
use crate::store::Readable;

const SHARDS: usize = 16;
/// What an entry costs beside its strings: the grant, the maps, the allocations.
const ENTRY_BYTES: usize = 640;

/// Grants that were read lately.
pub(super) struct Cache {
    hasher: RandomState,
    shard_bytes: usize,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    epoch: u64,
    bytes: usize,
    uses: u64,
    entries: HashMap<GrantKey, Entry>,
    /// Least recently used first.
    order: BTreeMap<u64, GrantKey>,
}

struct Entry {
    readable: Arc<Readable>,
    used: u64,
    bytes: usize,
}

/// What a shard's state was before a read.
#[derive(Clone, Copy)]
pub(super) struct Epoch(u64);

impl Cache {
    /// Makes a cache of at most `bytes`; 0 keeps nothing.
    pub(super) fn new(bytes: usize) -> Self {
        Cache {
            hasher: RandomState::new(),
            shard_bytes: bytes / SHARDS,
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Returns the entry, or the epoch to insert one with.
    pub(super) fn find(&self, key: &GrantKey) -> Result<Arc<Readable>, Epoch> {
        let mut shard = self.shard(key);
        let shard = &mut *shard;
        let Some(entry) = shard.entries.get_mut(key) else {
            return Err(Epoch(shard.epoch));
        };
        shard.uses += 1;
        if let Some(key) = shard.order.remove(&entry.used) {
            shard.order.insert(shard.uses, key);
        }
        entry.used = shard.uses;
        Ok(entry.readable.clone())
    }

    /// Inserts what was read, unless something has changed since `epoch`.
    pub(super) fn insert(&self, readable: Arc<Readable>, epoch: Epoch) {
        let mut shard = self.shard(&readable.grant.key);
        if shard.epoch == epoch.0 {
            shard.put(readable, self.shard_bytes);
        }
    }

    /// Replaces the entry by what was just committed.
    pub(super) fn replace(&self, readable: Arc<Readable>) {
        let mut shard = self.shard(&readable.grant.key);
        shard.epoch += 1;
        shard.put(readable, self.shard_bytes);
    }

    /// Forgets an entry whose grant has changed.
    pub(super) fn forget(&self, key: &GrantKey) {
        let mut shard = self.shard(key);
        shard.epoch += 1;
        shard.drop_entry(key);
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

    fn shard(&self, key: &GrantKey) -> std::sync::MutexGuard<'_, Shard> {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn put(&mut self, readable: Arc<Readable>, most: usize) {
        let key = readable.grant.key.clone();
        self.drop_entry(&key);
        let token = readable.access_token.as_ref();
        let bytes = ENTRY_BYTES
            + 3 * (key.user.len() + key.namespace.len() + key.provider.len() + key.account.len())
            + token.map_or(0, |token| token.expose().len())
            + readable.grant.scope.as_ref().map_or(0, String::len);
        if bytes > most {
            return;
        }
        self.uses += 1;
        self.bytes += bytes;
        self.order.insert(self.uses, key.clone());
        let used = self.uses;
        self.entries.insert(
            key,
            Entry {
                readable,
                used,
                bytes,
            },
        );
        while self.bytes > most
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.drop_entry(&oldest);
        }
    }

    fn drop_entry(&mut self, key: &GrantKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}
