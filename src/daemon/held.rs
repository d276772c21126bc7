//! Token sets on their way to the disk (I2).
//!
//! A set that the disk refuses is held: served from memory, written to the spill file, and
//! committed again until it sticks. Whoever commits holds the grant's slot all that time, so no
//! further refresh of the grant starts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::shared::{Shared, lock};
use super::steps;
use crate::refresh::grant::{AccessFacts, Grant, GrantKey};
use crate::refresh::reading::Readable;
use crate::store::{Cas, StoreError, TokenCommit};

/// A write that the disk refused is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// A set that is not on disk after this is spilled before the store has said yes or no: another process may hold the
/// database's lock for longer than a service manager waits before it kills.
const SPILL_AFTER: Duration = Duration::from_secs(1);

/// The sets that are held.
#[derive(Default)]
pub(super) struct Held {
    sets: Mutex<BTreeMap<GrantKey, Arc<Readable>>>,
    /// How many sets are in the spill file, or should be, and are not stored yet. Locked while one enters the
    /// file, or the last one leaves it.
    spilled: tokio::sync::Mutex<usize>,
}

impl Held {
    /// Returns the set that is held for a grant, as readers get it.
    pub(super) fn find(&self, key: &GrantKey) -> Option<Arc<Readable>> {
        lock(&self.sets).get(key).cloned()
    }

    /// Returns how many sets are in the spill file, or should be; `None` while one is being written there.
    pub(super) fn spilled(&self) -> Option<usize> {
        self.spilled.try_lock().ok().map(|sets| *sets)
    }

    /// Returns how many sets are held.
    pub(super) fn len(&self) -> usize {
        lock(&self.sets).len()
    }
}

/// Commits a token set, however long that takes. If it has to be held, `held` is called once with the grant as
/// readers get it from then on.
///
/// The caller calls [`release`] when readers find what was committed elsewhere.
pub(super) async fn commit(
    shared: &Shared,
    grant: &Grant,
    commit: TokenCommit,
    held: impl FnOnce(&Arc<Readable>),
) -> Cas {
    let mut committing = std::pin::pin!(shared.store.commit_tokens(commit.clone()));
    let mut spilled = None;
    let committed = match tokio::time::timeout(SPILL_AFTER, &mut committing).await {
        Ok(committed) => committed,
        Err(_) => {
            spilled = Some(spill(shared, &commit).await);
            committing.await
        }
    };
    let error = match committed {
        Ok(committed) => {
            if spilled.is_some() {
                unspill(shared).await;
            }
            return steps::restamped(shared, committed).await;
        }
        Err(error) => error,
    };
    let readable = hold(shared, grant, &commit);
    let spilled = match spilled {
        Some(spilled) => spilled,
        None => spill(shared, &commit).await,
    };
    tracing::error!(
        user = %shared.names.user(&grant.key), provider = %grant.key.provider, %error, spilled,
        hint = "make room on, or mend, the disk of state-dir; until then the set is served from memory",
        "held"
    );
    held(&readable);
    stored(shared, commit).await
}

/// Lets a set go that has been stored, if it was held.
pub(super) async fn release(shared: &Shared, key: &GrantKey) {
    let held = lock(&shared.held.sets).remove(key).is_some();
    if held {
        unspill(shared).await;
    }
}

/// Takes up the sets that an earlier process spilled, before anything else may touch their grants.
///
/// A set whose grant is gone, or has gone on without it, goes to the revocation queue.
///
/// # Errors
///
/// The store can't be read.
pub(super) async fn take_up(shared: &Arc<Shared>) -> Result<(), StoreError> {
    // What can't be read back has been told by the store, and waits in the file for the next start.
    let spilled = shared.store.spilled().await.unwrap_or_default();
    *shared.held.spilled.lock().await = spilled.len();
    for set in spilled {
        let grant = shared.store.grant_by_id(set.id).await?;
        let slot = match &grant {
            Some(grant) => Some(shared.slots.acquire(&grant.key).await),
            None => None,
        };
        let shared = shared.clone();
        if let Ok(committed) = shared.store.commit_tokens(set.clone()).await {
            // The clock may have been set back since it came.
            let committed = steps::restamped(&shared, committed).await;
            finish(&shared, grant, committed).await;
            continue;
        }
        if let Some(grant) = &grant {
            hold(&shared, grant, &set);
        }
        tokio::spawn(async move {
            let committed = stored(&shared, set).await;
            finish(&shared, grant, committed).await;
            drop(slot);
        });
    }
    Ok(())
}

async fn finish(shared: &Shared, grant: Option<Grant>, committed: Cas) {
    let Some(grant) = grant else {
        return unspill(shared).await;
    };
    if let Cas::Applied(stored) = &committed {
        shared.wrote(stored);
        shared.live.refreshed(stored);
        shared.metrics.of(&stored.key.provider).recovered();
        tracing::info!(
            user = %shared.names.user(&stored.key), provider = %stored.key.provider,
            generation = stored.generation, "recovered"
        );
    }
    if lock(&shared.held.sets).remove(&grant.key).is_some() {
        shared.cache.forget(&grant.key);
    }
    unspill(shared).await;
}

fn hold(shared: &Shared, grant: &Grant, commit: &TokenCommit) -> Arc<Readable> {
    let tokens = &commit.tokens;
    let served = Grant {
        generation: commit.presented_generation + 1,
        access: Some(AccessFacts {
            token_type: tokens.token_type.clone(),
            obtained_at: tokens.obtained_at,
            expires_at: tokens.expires_at,
        }),
        scope: tokens.scope.clone(),
        ..grant.clone()
    };
    let readable = Arc::new(Readable::new(served, tokens.access_token.clone()));
    lock(&shared.held.sets).insert(grant.key.clone(), readable.clone());
    shared.cache.forget(&grant.key);
    readable
}

/// Returns whether the set is in the spill file.
async fn spill(shared: &Shared, commit: &TokenCommit) -> bool {
    let mut sets = shared.held.spilled.lock().await;
    *sets += 1;
    shared.store.spill(commit.clone()).await.is_ok()
}

async fn stored(shared: &Shared, commit: TokenCommit) -> Cas {
    loop {
        tokio::time::sleep(RETRY).await;
        if let Ok(committed) = shared.store.commit_tokens(commit.clone()).await {
            return steps::restamped(shared, committed).await;
        }
    }
}

/// One spilled set less; the last one empties the file. Sets that stay in it by a fault lose their
/// compare-and-set at the next start, and nothing else.
async fn unspill(shared: &Shared) {
    let mut spilled = shared.held.spilled.lock().await;
    *spilled = spilled.saturating_sub(1);
    if *spilled == 0 {
        let _ = shared.store.clear_spill().await;
    }
}
