//! Changes that people ask for: import, delete, pause, resume. Each holds the grant's slot.

use super::shared::{Shared, lock};
use crate::local_api::problem;
use crate::local_api::types::Problem;
use crate::refresh::grant::{Grant, GrantKey, PauseReason, Standing};
use crate::refresh::token::TokenSet;
use crate::store::{By, Import, Imported, StoreError};

/// What a route is told when the store can't do its part.
pub(super) fn store_problem(error: StoreError) -> Problem {
    problem::store_unavailable(&error.to_string())
}

/// Runs `work` so that a caller who hangs up does not cancel it.
pub(super) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(_) => Err(problem::internal()),
    }
}

/// Imports what an app has; with `hold` it is not refreshed until it is released. Returns what became of it.
///
/// A refresh token that is replaced is not revoked: at many servers it is the same authorization as the new one, and
/// its revocation would end both (RFC 7009 §2.1 lets a server invalidate the whole grant).
pub(super) async fn import(
    shared: &Shared,
    key: GrantKey,
    tokens: TokenSet,
    replace: bool,
    hold: bool,
) -> Result<(&'static str, Grant), Problem> {
    let now = shared.clock.now();
    let (standing, due_at) = if hold {
        (Standing::Paused(PauseReason::Held), None)
    } else {
        let grant = Grant::imported(key.clone(), &tokens, now);
        (Standing::Active, shared.providers.scheduled_at(&grant))
    };
    let import = Import {
        key: key.clone(),
        tokens,
        due_at,
        standing,
        replace,
        at: now,
    };
    let _slot = shared.slots.acquire(&key).await;
    let mends = match import.replace {
        true => shared.store.grant(&key).await.map_err(store_problem)?,
        false => None,
    }
    .is_some_and(|grant| {
        matches!(
            grant.standing,
            Standing::NeedsAuthorization(_) | Standing::Paused(PauseReason::Quarantined)
        )
    });
    let imported = shared.store.import(import).await;
    let (result, grant) = match imported.map_err(store_problem)? {
        Imported::Created(grant) => ("created", grant),
        Imported::Replaced(grant) => ("replaced", grant),
        Imported::Unchanged(grant) => ("unchanged", grant),
        Imported::Exists(grant) => return Err(problem::grant_exists(&key, grant.generation)),
    };
    if result != "unchanged" {
        shared.wrote(&grant);
        if shared.in_full("imported", &key.provider, result, None) {
            tracing::info!(
                user = %shared.names.user(&key), provider = %key.provider, account = %key.account,
                namespace = %key.namespace, generation = grant.generation, held = grant.standing != Standing::Active,
                result, "imported"
            );
        }
        if mends && grant.standing == Standing::Active {
            shared.metrics.of(&key.provider).recovered();
            tracing::info!(
                user = %shared.names.user(&key), provider = %key.provider,
                generation = grant.generation, "recovered"
            );
        }
    }
    Ok((result, grant))
}

/// Hides grants that are being deleted from readers. Dropped, it shows those that are still there: a delete that failed,
/// or panicked, has deleted nothing.
pub(super) struct Hidden<'a> {
    shared: &'a Shared,
    keys: Vec<GrantKey>,
}

impl<'a> Hidden<'a> {
    pub(super) fn new(shared: &'a Shared, keys: Vec<GrantKey>) -> Self {
        lock(&shared.deleting).extend(keys.iter().cloned());
        Hidden { shared, keys }
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        let mut deleting = lock(&self.shared.deleting);
        deleting.retain(|key| !self.keys.contains(key));
    }
}

/// Deletes one grant: unreadable at once, gone when its slot is free, revoked when its provider answers.
pub(super) async fn delete(shared: &Shared, key: GrantKey, by: &str) -> Result<(), Problem> {
    let hidden = Hidden::new(shared, vec![key.clone()]);
    shared.cache.forget(&key);
    let slot = shared.slots.acquire(&key).await;
    // One that has left the configuration may come back, and only it can say that it has no endpoint.
    let revoke = shared
        .providers
        .find(&key.provider)
        .is_none_or(|live| live.config.registration.revocation_endpoint.is_some());
    let deleted = shared.store.delete(&key, shared.clock.now(), revoke).await;
    drop(slot);
    // Before it is readable again: a reader may have cached it just before it went.
    if let Ok(Some(grant)) = &deleted {
        shared.gone(grant);
    }
    drop(hidden);
    let done = deleted.map_err(store_problem)?.is_some();
    if done && shared.in_full("deleted", &key.provider, "", Some(by)) {
        tracing::info!(
            user = %shared.names.user(&key), provider = %key.provider, account = %key.account,
            namespace = %key.namespace, revoke, by, "deleted"
        );
    }
    shared.revocations.notify_one();
    Ok(())
}

/// Changes a grant's standing if it is one of `from`, under its slot: never across a running attempt. `who` asked, where
/// somebody did.
pub(super) async fn restand(
    shared: &Shared,
    key: &GrantKey,
    from: fn(Standing) -> bool,
    to: Standing,
    by: By,
    who: Option<&str>,
    told: &'static str,
) -> Result<bool, Problem> {
    let _slot = shared.slots.acquire(key).await;
    let Some(grant) = shared.store.grant(key).await.map_err(store_problem)? else {
        return Ok(false);
    };
    if !from(grant.standing) {
        return Ok(false);
    }
    let now = shared.clock.now();
    if to == Standing::Active && shared.providers.find(&key.provider).is_none() {
        let forgotten = shared.providers.forget_schedule(&key.provider).await;
        forgotten.map_err(store_problem)?;
    }
    let due_at = match to {
        // It was due while it rested: that is not late.
        Standing::Active => shared.providers.scheduled_at(&grant).map(|at| at.max(now)),
        _ => None,
    };
    let changed = shared
        .store
        .set_standing(grant.id, to, due_at, by, now)
        .await
        .map_err(store_problem)?;
    if let Some(grant) = changed {
        shared.wrote(&grant);
        if shared.in_full(told, &key.provider, to.reason(), who) {
            tracing::info!(
                user = %shared.names.user(key), provider = %key.provider, account = %key.account,
                reason = to.reason(), by = who, "{told}"
            );
        }
    }
    Ok(true)
}
