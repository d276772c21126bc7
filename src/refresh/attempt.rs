//! An attempt's two decisions: what a grant needs before it, and what its outcome does.

use std::time::Duration;

use super::grant::{AccessFacts, Grant, NeedsReason, PauseReason, Standing};
use super::policy::{self, Mode, Policy};
use super::replay::{self, Replay};
use super::time::UnixTime;
use super::token::{RefreshToken, RefreshTokenEnd, TokenSet};
use super::token_response::{Outcome, Refusal, TokenResponse};

/// What a due, or demanded, grant needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Refresh it.
    Refresh,
    /// Nothing before this moment.
    Wait(UnixTime),
    /// Its user is away: pause it, with the moment of its keep-alive or warning, if it has one.
    Pause(PauseReason, Option<UnixTime>),
    /// It has ended and can't be refreshed.
    NeedsAuthorization(NeedsReason),
    /// Nothing, until somebody changes it.
    Rest,
}

/// Who asks for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The schedule: `due_at` has come.
    Due,
    /// A caller waits for a token, or says that an API refused the current one.
    Demand,
    /// An admin asked that what came before a moment be replaced, read or not: see [`super::renewal`].
    Renewal,
}

impl Grant {
    /// Decides what a grant needs now. The caller holds its slot, so no attempt is under way.
    ///
    /// `last_active_at` is the user's last counted read or activity note. A spurious or early call gives
    /// [`Step::Wait`] or [`Step::Rest`] and does no harm.
    pub fn step(
        &self,
        cause: Cause,
        last_active_at: Option<UnixTime>,
        now: UnixTime,
        policy: &Policy,
    ) -> Step {
        let rests = match self.standing {
            Standing::Active => policy.mode == Mode::OnDemand && self.access.is_some(),
            Standing::Paused(PauseReason::Inactive | PauseReason::Unused) => true,
            _ => return Step::Rest,
        };
        if !self.has_refresh_token {
            return match self.expires_at() {
                Some(at) if at > now => Step::Wait(at),
                Some(_) => Step::NeedsAuthorization(NeedsReason::NoRefreshToken),
                None if self.access.is_none() => {
                    Step::NeedsAuthorization(NeedsReason::NoRefreshToken)
                }
                None => Step::Rest,
            };
        }
        if cause == Cause::Due && !self.replay_is_urgent(now, policy) {
            let waits = if rests {
                let backoff_ends_at = self.due_at.filter(|_| self.failures > 0);
                self.keep_alive_at(policy)
                    .map(|at| backoff_ends_at.map_or(at, |end| end.max(at)))
            } else {
                self.due_at
            };
            if waits.is_none_or(|at| at > now) {
                return self.next_of(waits, rests, now);
            }
            if !rests && let Some(reason) = self.absence(last_active_at, now, policy) {
                return Step::Pause(reason, self.resting_at(policy));
            }
        }
        match self.not_before(cause, now, policy) {
            Some(at) if at > now => Step::Wait(at),
            _ => Step::Refresh,
        }
    }

    /// Returns whether its refresh token of unknown fate must be presented now or never: within a server's
    /// grace, whether or not anybody needs the access token.
    fn replay_is_urgent(&self, now: UnixTime, policy: &Policy) -> bool {
        self.mark
            .is_some_and(|mark| replay::within_grace(policy.rotation, mark, now))
    }

    /// What is next for a grant that is not to be refreshed now. One that rests may have a warning to give first.
    fn next_of(&self, waits: Option<UnixTime>, rests: bool, now: UnixTime) -> Step {
        let warn_at = self.refresh_token_end.and_then(|end| end.warn_at);
        let warn_at = warn_at.filter(|at| rests && *at > now);
        match [waits, warn_at].into_iter().flatten().min() {
            Some(at) => Step::Wait(at),
            None => Step::Rest,
        }
    }

    /// Returns why nobody seems to need this grant, if so. An import counts as activity.
    fn absence(
        &self,
        last_active_at: Option<UnixTime>,
        now: UnixTime,
        policy: &Policy,
    ) -> Option<PauseReason> {
        if policy.refresh_while_alive && policy.keep_alive {
            return None; // a pause would be the end of it
        }
        let seen_at = last_active_at.map_or(self.imported_at, |at| at.max(self.imported_at));
        if now.since(seen_at) >= policy.inactive_after {
            Some(PauseReason::Inactive)
        } else if self.unused_refreshes >= policy.max_unused_refreshes {
            Some(PauseReason::Unused)
        } else {
            None
        }
    }

    /// Returns the earliest moment at which floor, backoff and replay allow an attempt.
    fn not_before(&self, cause: Cause, now: UnixTime, policy: &Policy) -> Option<UnixTime> {
        let mut earliest = None;
        // A stamp from the future (the clock was set back) says nothing. Taken as now it would move along
        // with the clock, and nothing would be refreshed until that has caught up.
        if let Some(attempted_at) = self.attempted_at.filter(|at| *at <= now) {
            let pause = match cause {
                Cause::Demand if self.failures > 0 => policy
                    .floor
                    .max(policy::DEMAND_RETRY * self.failures.min(60)),
                _ => policy.floor,
            };
            let after_backoff = match (cause, self.due_at) {
                // The caller shortens the backoff, but never makes it longer.
                (Cause::Demand, Some(due_at)) if self.failures > 0 => {
                    due_at.max(attempted_at + policy.floor)
                }
                _ => UnixTime::MAX,
            };
            earliest = Some((attempted_at + pause).min(after_backoff));
        }
        if let Some(mark) = self.mark
            && let Replay::NotBefore(at) =
                replay::may_present(policy.rotation, mark, now, self.expires_at())
        {
            earliest = earliest.max(Some(at));
        }
        earliest.max(self.refreshable_at(policy))
    }

    /// Returns whether a reader of an on-demand grant should begin a refresh behind its back: the
    /// token is inside its margin, and an attempt may begin.
    pub fn wanted_by_reader(&self, now: UnixTime, policy: &Policy) -> bool {
        let inside_margin = self.access.as_ref().is_some_and(|access| {
            access.lifetime().is_some_and(|lifetime| {
                let left = access.expires_at.map_or(Duration::MAX, |at| at.since(now));
                left < policy::cut(policy.margin, lifetime)
            })
        });
        policy.mode == Mode::OnDemand
            && inside_margin
            && self.step(Cause::Demand, None, now, policy) == Step::Refresh
    }
}

/// What an attempt's outcome does to its grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Commit these tokens, by compare-and-set on the generation that was presented.
    Commit {
        /// The new token set, with the old refresh token and scope where none came (RFC 6749 §6).
        tokens: TokenSet,
        /// When the grant is due next.
        due_at: Option<UnixTime>,
    },
    /// Record a failure that is no verdict.
    Retry {
        /// When to try again.
        due_at: UnixTime,
        /// Failures in a row, this one included.
        failures: u32,
        /// Whether the refresh token may have been spent: the mark stays.
        fate_unknown: bool,
        /// Since when the server refuses it without saying why.
        refused_since: Option<UnixTime>,
    },
    /// Record the verdict that only the user can mend this.
    NeedsAuthorization(NeedsReason),
}

/// What an attempt's outcome means for every grant of its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderEffect {
    /// Nothing.
    None,
    /// No request before this moment.
    CoolDown(UnixTime),
    /// No request until the credentials are mended.
    Stop,
}

/// A provider that says "too many requests" without saying for how long is left alone this long.
const DEFAULT_COOL_DOWN: Duration = Duration::from_secs(30);
/// No cool-down is shorter, so that a `Retry-After: 0` does not make one of each answer.
const SHORTEST_COOL_DOWN: Duration = Duration::from_secs(1);
/// Two ends of a refresh token that lie no further apart are the same one, told in whole seconds left.
const SAME_END: Duration = Duration::from_secs(60);

impl Grant {
    /// Decides what `outcome` does to this grant and its provider.
    ///
    /// `self` is the grant as it was when the attempt began; its mark, if its provider rotates, counts this
    /// attempt too. `presented` is the refresh token that was sent, and `served_at` is when the provider
    /// last served a token set to any grant.
    pub fn settle(
        &self,
        outcome: &Outcome,
        presented: &RefreshToken,
        served_at: Option<UnixTime>,
        now: UnixTime,
        policy: &Policy,
        random: u64,
    ) -> (Effect, ProviderEffect) {
        match outcome {
            Outcome::Tokens(response) => (
                self.commit(response, presented, now, policy),
                ProviderEffect::None,
            ),
            Outcome::RefusedForGood(_) => {
                let reason = match self.mark {
                    Some(mark) if mark.presented > 1 => NeedsReason::LostRotation,
                    _ if self.came_too_late(now, policy) => NeedsReason::Expired,
                    _ => NeedsReason::RevokedOrUsedElsewhere,
                };
                (Effect::NeedsAuthorization(reason), ProviderEffect::None)
            }
            // The grant did nothing wrong: it stays due, and goes on when the provider does.
            Outcome::RefusedForAll(_) => (
                Effect::Retry {
                    due_at: now,
                    failures: self.failures,
                    fate_unknown: false,
                    refused_since: self.refused_since,
                },
                ProviderEffect::Stop,
            ),
            Outcome::RefusedForNow { refusal, .. }
                if refusal.unexplained() && self.came_too_late(now, policy) =>
            {
                (
                    Effect::NeedsAuthorization(NeedsReason::Expired),
                    ProviderEffect::None,
                )
            }
            Outcome::RefusedForNow { refusal, .. }
                if refusal.unexplained() && self.refusal_is_believed(served_at, now, policy) =>
            {
                (
                    Effect::NeedsAuthorization(NeedsReason::Refused),
                    ProviderEffect::None,
                )
            }
            Outcome::RefusedForNow {
                refusal,
                retry_after,
            } => self.refused_for_now(refusal, *retry_after, now, random),
            Outcome::Unknown(_) => (self.unknown_fate(now, policy, random), ProviderEffect::None),
            Outcome::NotSent(_) => (self.retry(now, random), ProviderEffect::None),
        }
    }

    /// Returns whether the access token had ended at a server that takes a refresh only while it lives.
    fn came_too_late(&self, now: UnixTime, policy: &Policy) -> bool {
        policy.refresh_while_alive && !self.lives(now)
    }

    /// Returns whether one more unexplained refusal ends the grant (I5): it has been going on for
    /// `refuse_after` past the access token's end, again and again, and the provider serves others meanwhile.
    fn refusal_is_believed(
        &self,
        served_at: Option<UnixTime>,
        now: UnixTime,
        policy: &Policy,
    ) -> bool {
        let Some(refused_since) = self.refused_since else {
            return false;
        };
        let nothing_left_since = self
            .expires_at()
            .map_or(refused_since, |at| at.max(refused_since));
        now.since(nothing_left_since) > policy.refuse_after
            && self.failures >= policy::REFUSALS_BELIEVED
            && served_at.is_some_and(|at| {
                // Since the refusal before this one, and lately: it may have trouble with everybody by now.
                Some(at) > self.attempted_at.max(Some(refused_since))
                    && now.since(at) < policy.refuse_after
            })
    }

    fn commit(
        &self,
        response: &TokenResponse,
        presented: &RefreshToken,
        now: UnixTime,
        policy: &Policy,
    ) -> Effect {
        let expires_at = response
            .expires_in
            .map(|lifetime| now + lifetime)
            .or(response.jwt_expires_at)
            .or_else(|| Some(now + policy.default_lifetime?))
            .or_else(|| Some(now + self.access.as_ref()?.lifetime().filter(|l| !l.is_zero())?));
        let tokens = TokenSet {
            access_token: Some(response.access_token.clone()),
            token_type: response.token_type.clone(),
            expires_at,
            obtained_at: now,
            refresh_token: Some(response.refresh_token.clone().unwrap_or(presented.clone())),
            refresh_token_end: self.refresh_token_end(response, now, policy),
            scope: response.scope.clone().or_else(|| self.scope.clone()),
        };
        let refreshed = Grant {
            access: Some(AccessFacts {
                token_type: tokens.token_type.clone(),
                obtained_at: now,
                expires_at,
            }),
            refresh_token_end: tokens.refresh_token_end,
            refreshed_at: Some(now),
            ..self.clone()
        };
        let due_at = if self.standing == Standing::Active {
            refreshed
                .scheduled_at(policy)
                .map(|at| at.max(now + policy.floor))
        } else {
            refreshed.resting_at(policy)
        };
        Effect::Commit { tokens, due_at }
    }

    /// The old refresh token keeps its end, and a warning that was given; of a new one only the server knows it.
    fn refresh_token_end(
        &self,
        response: &TokenResponse,
        now: UnixTime,
        policy: &Policy,
    ) -> Option<RefreshTokenEnd> {
        let kept = match &response.refresh_token {
            None => self.refresh_token_end,
            Some(_) => None,
        };
        let Some(lifetime) = response.refresh_token_expires_in else {
            return kept;
        };
        let expires_at = now + lifetime;
        // Where the answer only tells the same end again, in seconds left, the warning stays as it is.
        let same = |end: &RefreshTokenEnd| {
            end.expires_at
                .since(expires_at)
                .max(expires_at.since(end.expires_at))
                < SAME_END
        };
        if let Some(end) = self.refresh_token_end.filter(same) {
            return Some(end);
        }
        Some(RefreshTokenEnd {
            expires_at,
            warn_at: Some(policy::warn_at(
                now,
                expires_at,
                policy.refresh_token_warning,
            )),
        })
    }

    fn retry(&self, now: UnixTime, random: u64) -> Effect {
        let failures = self.failures.saturating_add(1);
        Effect::Retry {
            due_at: now + policy::backoff(failures, policy::BACKOFF_CAP, random),
            failures,
            fate_unknown: false,
            refused_since: self.refused_since,
        }
    }

    fn refused_for_now(
        &self,
        refusal: &Refusal,
        retry_after: Option<Duration>,
        now: UnixTime,
        random: u64,
    ) -> (Effect, ProviderEffect) {
        let unexplained = refusal.unexplained();
        let cap = if unexplained {
            policy::REFUSED_BACKOFF_CAP
        } else {
            policy::BACKOFF_CAP
        };
        // "Too many, come back at once" is not to be taken at its word.
        let cool_down =
            |wait: Duration| ProviderEffect::CoolDown(now + wait.max(SHORTEST_COOL_DOWN));
        // `Retry-After` on a 429 or 503 speaks of the server; on anything else, of this request.
        let provider = match (refusal.status, retry_after) {
            (429, wait) => cool_down(wait.unwrap_or(DEFAULT_COOL_DOWN)),
            (503, Some(wait)) => cool_down(wait),
            _ => ProviderEffect::None,
        };
        let failures = self.failures.saturating_add(1);
        let backed_off = now + policy::backoff(failures, cap, random);
        let effect = Effect::Retry {
            due_at: retry_after.map_or(backed_off, |wait| backed_off.max(now + wait)),
            failures,
            fate_unknown: false,
            refused_since: match self.refused_since {
                Some(since) => Some(since),
                None => unexplained.then_some(now),
            },
        };
        (effect, provider)
    }

    fn unknown_fate(&self, now: UnixTime, policy: &Policy, random: u64) -> Effect {
        let failures = self.failures.saturating_add(1);
        let backed_off = now + policy::backoff(failures, policy::BACKOFF_CAP, random);
        let replay = self.mark.map_or(Replay::Now, |mark| {
            replay::may_present(policy.rotation, mark, now, self.expires_at())
        });
        let due_at = match replay {
            // The grace is short: waiting for a long backoff would waste it.
            Replay::Now if matches!(policy.rotation, policy::Rotation::Grace(_)) => {
                now + policy.floor
            }
            Replay::Now => backed_off,
            Replay::NotBefore(at) => at.max(backed_off),
        };
        Effect::Retry {
            due_at,
            failures,
            fate_unknown: self.mark.is_some(),
            refused_since: self.refused_since,
        }
    }
}

#[cfg(test)]
#[path = "attempt_tests.rs"]
mod tests;
