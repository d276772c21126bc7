//! One attempt: from a grant's slot to its outcome on disk.
//!
//! Runs detached: a caller who hangs up cancels nothing. The decisions are
//! [`Grant::step`] and [`Grant::settle`]; this file does what they say, in the
//! order that loses nothing: mark, request, commit, then answers.

use std::sync::Arc;
use std::time::Duration;

use super::driver::Event;
use super::held;
use super::owed;
use super::providers::Live;
use super::shared::{Ended, Shared, gone, lock, written};
use crate::local_api::keeper::Token;
use crate::refresh::attempt::{Cause, Effect, ProviderEffect, Step};
use crate::refresh::grant::{Grant, GrantId, GrantKey, Mark, NeedsReason, Standing};
use crate::refresh::horizon::{Due, Written};
use crate::refresh::policy::{Policy, Rotation};
use crate::refresh::reading::Readable;
use crate::refresh::time::UnixTime;
use crate::refresh::token::{RefreshToken, TokenSet};
use crate::refresh::token_response::{Contact, Outcome};
use crate::store::{Attemptable, By, Cas, Failure, StoreError, TokenCommit};

/// What an attempt is wanted for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) id: GrantId,
    pub(super) cause: Cause,
    /// The newest generation that the waiting callers have seen; a newer one satisfies them without a request.
    pub(super) seen: Option<u64>,
}

/// How an attempt leaves its grant: what the schedule is told, and what callers are told.
pub(super) type Done = (Written, Ended);

/// A row that the store could not give, or take the mark of, is tried again after this.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// Runs one attempt.
pub(super) async fn run(shared: Arc<Shared>, provider: String, wanted: Wanted) -> Done {
    let Some(live) = shared.providers.find(&provider) else {
        // It has left the configuration, and may have come back before the driver hears of either.
        let later = shared.clock.now() + STORE_RETRY;
        return (unknown(wanted.id, later), Ended::NoToken);
    };
    let attempt = Attempt {
        shared,
        live,
        wanted,
    };
    match attempt.run().await {
        // What the disk refused is written as soon as it takes writes, whenever its grant is due.
        Ok((_, ended)) if attempt.shared.owed.is_owed(wanted.id) => (attempt.again_later(), ended),
        Ok(done) => done,
        Err(error) => {
            // The store itself tells when it begins to refuse, once.
            tracing::debug!(%provider, %error, "attempt-not-begun");
            (attempt.again_later(), Ended::NoToken)
        }
    }
}

/// Finds the row of a grant whose attempt panicked. Its mark, if it had one, says that its fate is unknown.
pub(super) async fn after_panic(shared: &Shared, id: GrantId) -> Written {
    tracing::error!(grant = id.0, "attempt-panicked");
    let later = shared.clock.now() + STORE_RETRY;
    match shared.store.grant_by_id(id).await {
        Ok(Some(grant)) => {
            let mut written = written(&grant);
            if let Some(due) = &mut written.due {
                due.due_at = due.due_at.max(later);
            }
            written
        }
        Ok(None) => gone(id),
        Err(_) => unknown(id, later),
    }
}

/// What the schedule is told when the row is not known: any other word about it rules.
fn unknown(id: GrantId, due_at: UnixTime) -> Written {
    Written {
        id,
        version: 0,
        due: Some(Due {
            id,
            due_at,
            expires_at: None,
            version: 0,
        }),
    }
}

struct Attempt {
    shared: Arc<Shared>,
    live: Arc<Live>,
    wanted: Wanted,
}

impl Attempt {
    async fn run(&self) -> Result<Done, StoreError> {
        let (store, id) = (&self.shared.store, self.wanted.id);
        // Without a mark, only what is read under the slot is of use: then the token is left sealed till then.
        let (key, early) = if self.rotates() {
            let found = store.attemptable(id, self.shared.clock.now()).await?;
            (found.as_ref().map(|it| it.grant.key.clone()), found)
        } else {
            let grant = store.grant_by_id(id).await?;
            (grant.map(|grant| grant.key), None)
        };
        let Some(key) = key else {
            return Ok(self.gone());
        };
        // Held until the outcome is on disk (I1, I2).
        let _slot = self.shared.slots.acquire(&key).await;
        // What was read before the slot was ours may be old by now, which the mark finds out.
        if let Some(early) = early.filter(|_| !self.shared.owed.is_owed(id))
            && let Some(done) = self.go(early, None, true).await?
        {
            return Ok(done);
        }
        // Looked at before the store is, as what leaves the memory is written by then.
        let seen_before = self.shared.activity.in_memory(&key.namespace, &key.user);
        let Some(found) = store.attemptable(id, self.shared.clock.now()).await? else {
            return Ok(self.gone());
        };
        let done = self.go(found, seen_before, false).await?;
        Ok(done.expect("what was read in time rules"))
    }

    fn rotates(&self) -> bool {
        self.live.config.policy.rotation.rotates()
    }

    /// Does what is to be done by what was found. `seen_before` is its user's last activity as it was in memory before,
    /// and `is_early` whether all that was before the slot was ours. Returns `None` if it may be too old then: only a
    /// refresh whose mark finds the row as it was goes on.
    async fn go(
        &self,
        found: Attemptable,
        seen_before: Option<UnixTime>,
        is_early: bool,
    ) -> Result<Option<Done>, StoreError> {
        let Attemptable {
            mut grant,
            last_active_at,
            refresh_token,
        } = found;
        let unchanged = is_early.then_some((grant.version, grant.mark));
        grant = owed::paid(&self.shared, grant, self.rotates()).await?;
        if self.shared.activity.is_read(grant.id) {
            grant.unused_refreshes = 0;
        }
        let satisfied = self.wanted.seen.is_some_and(|seen| grant.generation > seen);
        let halted = self.shared.halt(&grant.key.provider).is_some();
        if is_early && (satisfied || halted) {
            return Ok(None);
        }
        if satisfied {
            return self.satisfied(grant).await.map(Some);
        }
        if halted {
            return Ok(Some((written(&grant), Ended::NoToken)));
        }
        let now = self.shared.clock.now();
        if let Some(restamped) = grant.restamped(now, Duration::ZERO) {
            // The floor goes by the stamp as it is: one that is now, each time anew, would never let an attempt begin.
            grant = Grant {
                attempted_at: grant.attempted_at,
                ..restamped
            };
        }
        let provider = &self.live.config.registration.provider;
        let cause = match self.wanted.cause {
            Cause::Due => grant.cause_when_due(self.shared.providers.renew_before(provider), now),
            cause => cause,
        };
        let last_active_at = match cause {
            Cause::Due => {
                let activity = &self.shared.activity;
                let last = activity.in_memory(&grant.key.namespace, &grant.key.user);
                let last = last.or(seen_before).or(last_active_at);
                // An import counts as activity.
                let seen_at = last.map_or(grant.imported_at, |at| at.max(grant.imported_at));
                Some(activity.forgiven(seen_at))
            }
            Cause::Demand | Cause::Renewal => None,
        };
        let warning = grant.warning(now);
        if let Some(expires_at) = warning.filter(|_| !is_early) {
            grant = self.warn(grant, expires_at).await?;
        }
        let policy = &self.live.config.policy;
        let step = grant.step(cause, last_active_at, now, policy);
        if is_early && (step != Step::Refresh || warning.is_some() || refresh_token.is_none()) {
            return Ok(None);
        }
        match step {
            Step::Refresh => match refresh_token {
                Some(refresh_token) => {
                    return self.refresh(grant, refresh_token, unchanged).await;
                }
                // It did not open: the store has told of it and put the grant aside.
                None => self.wrote(None).await,
            },
            // What the schedule says is not changed by a caller who came too early.
            Step::Wait(at) if self.wanted.cause == Cause::Demand => {
                Ok((written(&grant), Ended::NotBefore(at)))
            }
            Step::Wait(at) => {
                let waits = self
                    .shared
                    .store
                    .set_due(grant.id, grant.generation, Some(at));
                self.wrote(applied(waits.await?)).await
            }
            Step::Pause(reason, due_at) => {
                let standing = Standing::Paused(reason);
                let paused = self.set_standing(&grant, standing, due_at).await?;
                let (provider, reason) = (&grant.key.provider, standing.reason());
                if self.shared.in_full("paused", provider, reason, None) {
                    let user = self.shared.names.user(&grant.key);
                    tracing::info!(%user, %provider, reason, "paused");
                }
                self.wrote(paused).await
            }
            Step::NeedsAuthorization(reason) => {
                let standing = Standing::NeedsAuthorization(reason);
                let dead = self.set_standing(&grant, standing, None).await?;
                self.tell_needs_authorization(&grant, reason, "-");
                self.wrote(dead).await
            }
            Step::Rest if self.wanted.cause == Cause::Due && grant.due_at.is_some() => {
                let rests = self.shared.store.set_due(grant.id, grant.generation, None);
                self.wrote(applied(rests.await?)).await
            }
            Step::Rest => {
                let rests = Written {
                    due: None,
                    ..written(&grant)
                };
                Ok((rests, Ended::NoToken))
            }
        }
        .map(Some)
    }

    /// Tells that a refresh token ends soon, and notes that it was told.
    async fn warn(&self, grant: Grant, expires_at: UnixTime) -> Result<Grant, StoreError> {
        let (store, now) = (&self.shared.store, self.shared.clock.now());
        let warned = store.warn_of_end(grant.id, grant.generation, now).await?;
        let Some(warned) = applied(warned) else {
            return Ok(grant); // the token set has just been replaced
        };
        let GrantKey {
            provider, account, ..
        } = &grant.key;
        if self
            .shared
            .in_full("refresh-token-expiring", provider, "", None)
        {
            let user = self.shared.names.user(&grant.key);
            let hint = "the user has to authorize again before then";
            tracing::warn!(%user, %provider, %account, %expires_at, hint, "refresh-token-expiring");
        }
        self.shared.cache.forget(&grant.key);
        Ok(Grant {
            unused_refreshes: grant.unused_refreshes,
            ..warned
        })
    }

    /// Another attempt, or an import, brought what the callers wait for.
    async fn satisfied(&self, grant: Grant) -> Result<Done, StoreError> {
        let ended = match self.shared.readable(&grant.key).await? {
            Some((readable, _)) => token(&readable, &self.shared),
            None => Ended::NoToken,
        };
        Ok((written(&grant), ended))
    }

    /// Refreshes a grant. Returns `None` if it is not `unchanged`.
    async fn refresh(
        &self,
        grant: Grant,
        refresh_token: RefreshToken,
        unchanged: Option<(u64, Option<Mark>)>,
    ) -> Result<Option<Done>, StoreError> {
        let shared = &self.shared;
        let due_at = grant.due_at.filter(|_| self.wanted.cause == Cause::Due);
        let grant = if self.rotates() {
            let (store, sent_at) = (&shared.store, shared.clock.now());
            let begun = store.begin_attempt(grant.id, grant.generation, unchanged, sent_at);
            match begun.await? {
                Cas::Applied(grant) => grant,
                Cas::Lost if unchanged.is_some() => return Ok(None),
                Cas::Lost => return self.wrote(None).await.map(Some),
            }
        } else {
            grant
        };
        self.send(grant, refresh_token, due_at).await.map(Some)
    }

    /// Sends the request, and does what its outcome says.
    async fn send(
        &self,
        grant: Grant,
        refresh_token: RefreshToken,
        due_at: Option<UnixTime>,
    ) -> Result<Done, StoreError> {
        let shared = &self.shared;
        let numbers = shared.metrics.of(&grant.key.provider);
        let began = shared.clock.running();
        if let Some(due_at) = due_at {
            numbers.late(shared.clock.now().since(due_at));
        }
        let outcome = self
            .live
            .client
            .refresh(&refresh_token, shared.clock.now())
            .await;
        let took = shared.clock.running().saturating_sub(began);
        numbers.attempted(outcome.name(), took);
        let now = shared.clock.now();
        self.tell_contact(&outcome, now);
        let served_at = shared
            .providers
            .state(&grant.key.provider)
            .and_then(|state| state.served_at);
        let policy = self.policy_now();
        let (effect, provider_effect) = grant.settle(
            &outcome,
            &refresh_token,
            served_at,
            now,
            &policy,
            rand::random(),
        );
        self.apply_to_provider(provider_effect, &outcome).await;
        match effect {
            Effect::Commit { tokens, due_at } => {
                let scheduled_by = policy.schedule();
                let (written, ended) = self.commit(&grant, Arc::new(tokens), due_at).await;
                let written = self.rescheduled(written, &scheduled_by).await;
                Ok((written, ended))
            }
            Effect::Retry {
                due_at,
                failures,
                fate_unknown,
                refused_since,
            } => {
                let failure = Failure {
                    code: outcome.code(),
                    status: outcome.status(),
                    due_at: Some(due_at),
                    failures,
                    fate_unknown,
                    refused_since,
                    needs_authorization: None,
                    at: now,
                };
                self.tell_failed(&grant, &failure);
                let replays = fate_unknown && matches!(policy.rotation, Rotation::Grace(_));
                let recorded = self.record(&grant, failure).await;
                if replays {
                    self.hurry(policy.floor);
                }
                recorded
            }
            Effect::NeedsAuthorization(reason) => {
                let code = outcome.code();
                self.tell_needs_authorization(&grant, reason, &code);
                let failure = Failure {
                    code,
                    status: outcome.status(),
                    due_at: None,
                    failures: grant.failures.saturating_add(1),
                    fate_unknown: false,
                    refused_since: grant.refused_since,
                    needs_authorization: Some(reason),
                    at: now,
                };
                self.record(&grant, failure).await
            }
        }
    }

    /// The provider's policy as it is now: a reload may have changed it while the request was out.
    fn policy_now(&self) -> Policy {
        let provider = &self.live.config.registration.provider;
        let live = self.shared.providers.find(provider);
        live.as_ref().unwrap_or(&self.live).config.policy.clone()
    }

    /// Computes a due time anew that was committed under another policy than there is now: the reload may have looked
    /// at the row before the commit, which a held set makes wait for long.
    async fn rescheduled(&self, written: Written, scheduled_by: &str) -> Written {
        let policy = self.policy_now();
        if written.due.is_none() || policy.schedule() == scheduled_by {
            return written;
        }
        let store = &self.shared.store;
        let Ok(Some(grant)) = store.grant_by_id(self.wanted.id).await else {
            return written;
        };
        if grant.standing != Standing::Active || grant.failures > 0 || grant.mark.is_some() {
            return written;
        }
        let before = self.shared.providers.renew_before(&grant.key.provider);
        let due_at = grant.due_with_renewal(before, grant.scheduled_at(&policy));
        match store.set_due(grant.id, grant.generation, due_at).await {
            Ok(Cas::Applied(grant)) => {
                self.shared.cache.forget(&grant.key);
                super::shared::written(&grant)
            }
            // Refreshed by the old policy once more.
            Ok(Cas::Lost) | Err(_) => written,
        }
    }

    /// Has a replay made within the server's grace, whatever else is due.
    fn hurry(&self, floor: Duration) {
        let (driver, id) = (self.shared.driver.clone(), self.wanted.id);
        let provider = self.live.config.registration.provider.clone();
        tokio::spawn(async move {
            tokio::time::sleep(floor).await;
            let _ = driver.send(Event::Urgent { provider, id });
        });
    }

    /// Commits a token set. If the disk refuses it, the callers are answered with the held one meanwhile (I2).
    async fn commit(&self, grant: &Grant, tokens: Arc<TokenSet>, due_at: Option<UnixTime>) -> Done {
        let shared = &self.shared;
        shared.owed.forget(grant.id); // of before: it goes well again
        let unused_refreshes = if shared.activity.take_read(grant.id) {
            0
        } else {
            grant.unused_refreshes.saturating_add(1)
        };
        let set = TokenCommit {
            id: grant.id,
            provider: grant.key.provider.clone(),
            presented_generation: grant.generation,
            tokens: tokens.clone(),
            due_at,
            standing: grant.standing,
            unused_refreshes,
            at: shared.clock.now(),
        };
        let mut was_held = false;
        let committed = held::commit(shared, grant, set, |readable| {
            was_held = true;
            let _ = shared.driver.send(Event::Answer {
                provider: grant.key.provider.clone(),
                id: grant.id,
                ended: token(readable, shared),
            });
        })
        .await;
        let done = match committed {
            Cas::Applied(after) => self.committed(after, &tokens, was_held || grant.failures > 0),
            Cas::Lost => {
                shared.revocations.notify_one();
                tracing::warn!(
                    user = %shared.names.user(&grant.key), provider = %grant.key.provider,
                    generation = grant.generation, "superseded"
                );
                let now_is = self.now_is().await.unwrap_or_else(|_| self.again_later());
                (now_is, Ended::NoToken)
            }
        };
        held::release(shared, &grant.key).await;
        done
    }

    fn committed(&self, grant: Grant, tokens: &TokenSet, recovered: bool) -> Done {
        let shared = &self.shared;
        let (user, provider) = (shared.names.user(&grant.key), grant.key.provider.clone());
        if recovered {
            shared.metrics.of(&provider).recovered();
        }
        if recovered && lock(&shared.outages).recovered(&provider) {
            tracing::info!(%user, %provider, generation = grant.generation, "recovered");
        } else if recovered {
            tracing::debug!(%user, %provider, generation = grant.generation, "recovered");
        } else {
            tracing::debug!(%user, %provider, generation = grant.generation, "refreshed");
        }
        let readable = Arc::new(Readable::new(grant, tokens.access_token.clone()));
        shared.cache.replace(readable.clone());
        shared.live.refreshed(&readable.grant);
        (written(&readable.grant), token(&readable, shared))
    }

    async fn record(&self, grant: &Grant, failure: Failure) -> Result<Done, StoreError> {
        let recorded = owed::record(&self.shared, grant, failure).await?;
        self.wrote(applied(recorded)).await
    }

    async fn set_standing(
        &self,
        grant: &Grant,
        standing: Standing,
        due_at: Option<UnixTime>,
    ) -> Result<Option<Grant>, StoreError> {
        let now = self.shared.clock.now();
        self.shared
            .store
            .set_standing(grant.id, standing, due_at, By::Schedule, now)
            .await
    }

    /// After a write: what the grant is now. Where the write found another grant than ours, that is looked up.
    async fn wrote(&self, grant: Option<Grant>) -> Result<Done, StoreError> {
        let now_is = match grant {
            Some(grant) => {
                self.shared.cache.forget(&grant.key);
                written(&grant)
            }
            None => self.now_is().await?,
        };
        Ok((now_is, Ended::NoToken))
    }

    async fn now_is(&self) -> Result<Written, StoreError> {
        let Some(grant) = self.shared.store.grant_by_id(self.wanted.id).await? else {
            return Ok(gone(self.wanted.id));
        };
        self.shared.cache.forget(&grant.key);
        Ok(written(&grant))
    }

    /// Nothing is owed of a grant that is gone, and nobody waits for it.
    fn gone(&self) -> Done {
        self.shared.owed.forget(self.wanted.id);
        (gone(self.wanted.id), Ended::NoToken)
    }

    /// What the schedule is told when the store could not be asked.
    fn again_later(&self) -> Written {
        unknown(self.wanted.id, self.shared.clock.now() + STORE_RETRY)
    }

    /// Tells the provider's breaker how the server fares, before this attempt's end frees its place.
    fn tell_contact(&self, outcome: &Outcome, now: UnixTime) {
        let contact = outcome.contact();
        let provider = self.live.config.registration.provider.clone();
        if contact == Contact::Served {
            let (shared, provider) = (self.shared.clone(), provider.clone());
            tokio::spawn(async move {
                // It rules in memory already; the next one will be written.
                let _ = shared.providers.served(&provider, now).await;
            });
        }
        let _ = self.shared.driver.send(Event::Contact {
            provider,
            id: self.wanted.id,
            contact,
        });
    }

    async fn apply_to_provider(&self, effect: ProviderEffect, outcome: &Outcome) {
        if effect == ProviderEffect::None {
            return;
        }
        let shared = &self.shared;
        let provider = &self.live.config.registration.provider;
        let (now, code) = (shared.clock.now(), outcome.code());
        let news = shared
            .providers
            .apply(&self.live, effect, &code, now)
            .await
            // It rules in memory already; the next one will be written.
            .unwrap_or(true);
        match effect {
            ProviderEffect::CoolDown(until) if news => {
                tracing::warn!(%provider, code, %until, "provider-cooling-down");
            }
            ProviderEffect::Stop if news => {
                tracing::warn!(
                    %provider, code,
                    hint = "mend client-id or client-secret, then reload (a secret in a file) or restart (a systemd credential); no grant was touched",
                    "provider-stopped"
                );
            }
            _ => {}
        }
    }

    /// The first failure in a row is news, as long as not too many grants have one; the others are for debugging.
    fn tell_failed(&self, grant: &Grant, failure: &Failure) {
        let user = self.shared.names.user(&grant.key);
        let (provider, code, failures) = (&grant.key.provider, &failure.code, failure.failures);
        let retry_at = failure.due_at.unwrap_or_default();
        let now = self.shared.clock.running();
        let mut outages = lock(&self.shared.outages);
        let in_full = outages.failed(provider, code, failures == 1, now);
        drop(outages);
        if in_full {
            tracing::info!(%user, %provider, code, failures, %retry_at, "refresh-failed");
        } else {
            tracing::debug!(%user, %provider, code, failures, %retry_at, "refresh-failed");
        }
    }

    fn tell_needs_authorization(&self, grant: &Grant, reason: NeedsReason, code: &str) {
        let reason = Standing::NeedsAuthorization(reason).reason();
        let numbers = self.shared.metrics.of(&grant.key.provider);
        numbers.needs_authorization(reason);
        if self
            .shared
            .in_full("needs-authorization", &grant.key.provider, reason, None)
        {
            tracing::warn!(
                user = %self.shared.names.user(&grant.key), provider = %grant.key.provider,
                account = %grant.key.account, reason, code,
                "needs-authorization"
            );
        }
    }
}

fn applied(cas: Cas) -> Option<Grant> {
    match cas {
        Cas::Applied(grant) => Some(grant),
        Cas::Lost => None,
    }
}

/// A committed or held token, as callers get it.
fn token(readable: &Arc<Readable>, shared: &Shared) -> Ended {
    match Token::of(Arc::clone(readable), shared.clock.now()) {
        Some(token) => Ended::Refreshed(token),
        None => Ended::NoToken,
    }
}
