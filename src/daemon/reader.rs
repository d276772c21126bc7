//! What a reader gets: a living token at once, else what an attempt brings while it waits, else the reason.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::changes::{self, detached, store_problem};
use super::keeper::Daemon;
use super::providers::Halt;
use super::shared::{Ended, lock};
use crate::local_api::keeper::{Token, TokenRequest};
use crate::local_api::problem;
use crate::local_api::types::Problem;
use crate::refresh::grant::{Grant, GrantKey, NeedsReason, PauseReason, Standing};
use crate::refresh::policy::{Mode, Policy};
use crate::refresh::reading::{Read, Readable};
use crate::refresh::time::UnixTime;
use crate::store::By;

/// Without a better idea, a caller should come back after this.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// A stopped provider waits for an admin.
const STOPPED_RETRY: Duration = Duration::from_secs(60);
/// A restart takes about this long.
const DRAINED_RETRY: Duration = Duration::from_secs(5);

impl Daemon {
    /// Answers a reader: a living token at once, else what an attempt brings in time.
    pub(super) async fn token_for(&self, request: &TokenRequest) -> Result<Token, Problem> {
        let (readable, now) = self.read(request).await?;
        match self.decide(request, &readable.grant, now) {
            Read::Serve => {
                Token::of(readable.clone(), now).ok_or_else(|| self.refusal(&readable.grant))
            }
            Read::Refresh => self.refreshed(request, &readable.grant).await,
            Read::Paused(_) | Read::NeedsAuthorization(_) => Err(self.refusal(&readable.grant)),
        }
    }

    /// Answers a reader with a living token that is in memory, if that is all there is to do.
    pub(super) fn token_in_memory(&self, request: &TokenRequest) -> Option<Token> {
        let now = self.0.clock.now();
        let readable = self.0.in_memory(&request.key, now).ok()??;
        let grant = &readable.grant;
        if is_away(grant.standing) || self.decide(request, grant, now) != Read::Serve {
            return None;
        }
        let counts = request.counts_as_activity;
        self.0.activity.note_read(&readable, counts, now);
        Token::of(readable, now)
    }

    /// Decides what a reader gets. If that is the token, its refresh begins behind their back where it is time for it.
    fn decide(&self, request: &TokenRequest, grant: &Grant, now: UnixTime) -> Read {
        let providers = &self.0.providers;
        let live = providers.find(&request.key.provider);
        let live = live
            .filter(|_| !self.0.draining() && providers.halted(&request.key.provider).is_none());
        let read = grant.read(request.min_ttl, live.is_some(), now);
        if let (Read::Serve, Some(live)) = (read, live) {
            self.refresh_behind(request, grant, &live.config.policy, now);
        }
        read
    }

    /// Answers a caller whose API refused `generation`, or whatever is current.
    pub(super) async fn newer_token_for(
        &self,
        request: &TokenRequest,
        generation: Option<u64>,
    ) -> Result<Token, Problem> {
        let (readable, now) = self.read(request).await?;
        let grant = &readable.grant;
        if let Some(generation) = generation
            && generation > grant.generation
        {
            return Err(problem::bad_request(format!(
                "generation {generation} is not known yet; the current one is {}",
                grant.generation
            )));
        }
        // Somebody has refreshed it since: the caller gets that, if it lives.
        let superseded = generation.is_some_and(|refused| refused < grant.generation);
        if superseded && grant.lives(now) {
            return Token::of(readable.clone(), now).ok_or_else(|| self.refusal(grant));
        }
        let refreshable = grant.standing == Standing::Active || is_away(grant.standing);
        if !refreshable || !grant.has_refresh_token {
            return match Token::of(readable.clone(), now) {
                Some(token) if grant.lives(now) => Ok(token),
                _ => Err(self.refusal(grant)),
            };
        }
        self.refreshed(request, grant).await
    }

    /// Finds what a reader reads, notes the read, and wakes a user who is back.
    async fn read(&self, request: &TokenRequest) -> Result<(Arc<Readable>, UnixTime), Problem> {
        let key = &request.key;
        let found = self.0.readable(key).await.map_err(store_problem)?;
        let Some((readable, now)) = found else {
            return Err(self.missing(key));
        };
        let counts = request.counts_as_activity;
        self.0.activity.note_read(&readable, counts, now);
        if !counts || !is_away(readable.grant.standing) {
            return Ok((readable, now));
        }
        let woken = self.wake_behind(&readable.grant);
        if readable.grant.lives(now) {
            return Ok((readable, now)); // whether or not the disk takes it now (I4)
        }
        let _ = woken.await;
        let found = self.0.readable(key).await.map_err(store_problem)?;
        found.ok_or_else(|| self.missing(key))
    }

    /// Resumes a grant, and then the user's others, behind its reader's back. Returns what tells when the first is done.
    /// What can't be resumed now is resumed by its own next read.
    fn wake_behind(&self, grant: &Grant) -> oneshot::Receiver<()> {
        let (done, woken) = oneshot::channel();
        let (daemon, grant) = (self.clone(), grant.clone());
        tokio::spawn(async move {
            let _ = daemon.wake(&grant).await;
            let _ = done.send(());
            let (namespace, user) = (&grant.key.namespace, &grant.key.user);
            if let Ok(grants) = daemon.grants_of(namespace, user).await {
                let _ = daemon.wake_user(&grants, false).await;
            }
        });
        woken
    }

    /// Begins the refresh of an on-demand grant whose reader has found it inside its margin. The reader does not
    /// wait: the token it gets is good for long enough.
    fn refresh_behind(
        &self,
        request: &TokenRequest,
        grant: &Grant,
        policy: &Policy,
        now: UnixTime,
    ) {
        if policy.mode == Mode::OnDemand && grant.wanted_by_reader(now, policy) {
            let (shared, grant, wait) = (self.0.clone(), grant.clone(), request.wait);
            tokio::spawn(async move {
                let demand = shared.demand(&grant, now + wait);
                // How it ends is the next reader's business.
                let _ = tokio::time::timeout(wait, demand).await;
            });
        }
    }

    /// Joins or starts an attempt and waits for it as long as the caller does.
    async fn refreshed(&self, request: &TokenRequest, grant: &Grant) -> Result<Token, Problem> {
        let not_before = self.0.providers.not_before(&request.key.provider);
        let now = self.0.clock.now();
        // What can't begin within the caller's patience is known to end in nothing.
        let hopeless = not_before.is_some_and(|until| until.since(now) > request.wait);
        if !hopeless {
            // What can't begin while the token lives is not worth waiting for: the old one is the answer (I4).
            let patience = match grant.expires_at() {
                Some(at) if at > now => at.min(now + request.wait),
                _ => now + request.wait,
            };
            let living = self.living(grant, patience);
            if let Ok(Some(token)) = tokio::time::timeout(request.wait, living).await {
                return Ok(token);
            }
        }
        let found = self.0.readable(&request.key).await.map_err(store_problem)?;
        let Some((readable, now)) = found else {
            return Err(self.missing(&request.key));
        };
        match Token::of(readable.clone(), now) {
            Some(token) if readable.grant.lives(now) => Ok(token),
            _ => Err(self.refusal(&readable.grant)),
        }
    }

    /// Joins or starts attempts until one brings a living token. One that was imported may have ended by the time that it
    /// is on disk.
    async fn living(&self, grant: &Grant, patience: UnixTime) -> Option<Token> {
        let mut ended: Option<Token> = None;
        loop {
            let seen = ended.as_ref().map_or(grant, Token::grant);
            let Some(Ended::Refreshed(mut token)) = self.0.demand(seen, patience).await else {
                return None;
            };
            token.now = self.0.clock.now();
            if token.grant().lives(token.now) {
                return Some(token);
            }
            ended = Some(token);
        }
    }

    /// Says why there is no such grant: it may be that there can be none.
    pub(super) fn missing(&self, key: &GrantKey) -> Problem {
        match self.0.providers.find(&key.provider) {
            Some(_) => problem::no_such_grant(key),
            None => self.provider_unknown(&key.provider),
        }
    }

    pub(super) fn provider_unknown(&self, name: &str) -> Problem {
        let configured = self.0.providers.all();
        problem::provider_unknown(name, configured.keys().map(String::as_str))
    }

    /// Says why there is no living token to answer with.
    fn refusal(&self, grant: &Grant) -> Problem {
        let since = grant.standing_since;
        match grant.standing {
            Standing::NeedsAuthorization(_) => {
                return problem::needs_authorization(grant.standing.reason(), since);
            }
            Standing::Paused(
                PauseReason::Admin
                | PauseReason::Held
                | PauseReason::Restored
                | PauseReason::Quarantined,
            ) => {
                return problem::paused(grant.standing.reason(), since);
            }
            Standing::Active | Standing::Paused(PauseReason::Inactive | PauseReason::Unused) => {}
        }
        if !grant.has_refresh_token {
            let reason = NeedsReason::NoRefreshToken;
            let since = grant.expires_at().unwrap_or(since);
            let standing = Standing::NeedsAuthorization(reason);
            return problem::needs_authorization(standing.reason(), since);
        }
        if self.0.moving.begun() {
            return problem::moved();
        }
        if self.0.draining() {
            return problem::draining(DRAINED_RETRY);
        }
        let provider = &grant.key.provider;
        match self.0.halt(provider) {
            Some(Halt::NotConfigured) => return self.provider_unknown(provider),
            Some(Halt::Paused) => return problem::paused("provider paused", since),
            Some(Halt::Stopped(code, at)) => {
                return problem::provider_stopped(
                    provider,
                    &code,
                    at.unwrap_or(since),
                    STOPPED_RETRY,
                );
            }
            None => {}
        }
        if let Some(failure) = self.0.store.failing() {
            return problem::store_unavailable(&failure);
        }
        let now = self.0.clock.now();
        let again = grant
            .due_at
            .max(self.0.providers.not_before(provider))
            .map_or(RETRY_SOON, |at| at.since(now));
        let failure = grant.last_failure.as_deref().unwrap_or("still running");
        problem::refresh_failed(failure, again.max(RETRY_SOON))
    }

    pub(super) async fn grants_of(
        &self,
        namespace: &str,
        user: &str,
    ) -> Result<Vec<Grant>, Problem> {
        let grants = self
            .0
            .store
            .grants_of_user(namespace, user)
            .await
            .map_err(store_problem)?;
        let deleting = lock(&self.0.deleting);
        Ok(grants
            .into_iter()
            .filter(|grant| !deleting.contains(&grant.key))
            .collect())
    }

    /// Resumes what absence paused among a user's grants: those of the whole user, and with `unused`
    /// those that nobody read as well.
    pub(super) async fn wake_user(&self, grants: &[Grant], unused: bool) -> Result<(), Problem> {
        for grant in grants {
            let wakes = match grant.standing {
                Standing::Paused(PauseReason::Inactive) => true,
                Standing::Paused(PauseReason::Unused) => unused,
                _ => false,
            };
            if wakes {
                self.wake(grant).await?;
            }
        }
        Ok(())
    }

    async fn wake(&self, grant: &Grant) -> Result<(), Problem> {
        let (shared, key) = (self.0.clone(), grant.key.clone());
        detached(async move {
            changes::restand(
                &shared,
                &key,
                is_away,
                Standing::Active,
                By::Reader,
                None,
                "resumed",
            )
            .await
        })
        .await?;
        Ok(())
    }
}

/// Whether it is paused for its user's absence, which a read ends.
fn is_away(standing: Standing) -> bool {
    matches!(
        standing,
        Standing::Paused(PauseReason::Inactive | PauseReason::Unused)
    )
}
