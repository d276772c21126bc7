//! An attempt's two decisions: what a grant needs before it, and what its outcome does.

use std::time::Duration;

use super::grant::{Grant, NeedsReason, PauseReason, Standing};
use super::policy::{self, Policy};
use super::replay::{self, Replay};
use super::time::UnixTime;
use super::token::{RefreshToken, TokenSet};
use super::token_response::{Outcome, TokenResponse};

/// What a due, or demanded, grant needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Refresh it.
    Refresh,
    /// Nothing before this moment.
    Wait(UnixTime),
    /// Its user is away: pause it, with the moment of its keep-alive, if it has one.
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
        let kept_alive = match self.standing {
            Standing::Active => false,
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
            let waits = if kept_alive {
                self.keep_alive_at(policy)
            } else {
                self.due_at
            };
            match waits {
                None => return Step::Rest,
                Some(at) if at > now => return Step::Wait(at),
                Some(_) => {}
            }
            if !kept_alive && let Some(reason) = self.absence(last_active_at, now, policy) {
                return Step::Pause(reason, self.keep_alive_at(policy));
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

    /// Returns why nobody seems to need this grant, if so. An import counts as activity.
    fn absence(
        &self,
        last_active_at: Option<UnixTime>,
        now: UnixTime,
        policy: &Policy,
    ) -> Option<PauseReason> {
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
        // A stamp from the future (the clock was set back) counts as now.
        if let Some(attempted_at) = self.attempted_at.map(|at| at.min(now)) {
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
        earliest
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

impl Grant {
    /// Decides what `outcome` does to this grant and its provider.
    ///
    /// `self` is the grant as it was when the attempt began; its mark, if its provider rotates, counts this
    /// attempt too. `presented` is the refresh token that was sent.
    pub fn settle(
        &self,
        outcome: &Outcome,
        presented: &RefreshToken,
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
                },
                ProviderEffect::Stop,
            ),
            Outcome::RefusedForNow {
                refusal,
                retry_after,
            } => self.refused_for_now(refusal.status, *retry_after, now, random),
            Outcome::Unknown(_) => (self.unknown_fate(now, policy, random), ProviderEffect::None),
            Outcome::NotSent(_) => (
                self.retry(now, policy::BACKOFF_CAP, random),
                ProviderEffect::None,
            ),
        }
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
            scope: response.scope.clone().or_else(|| self.scope.clone()),
        };
        let due_at = if self.standing == Standing::Active {
            expires_at
                .map(|at| policy::due_at(&self.key, now, at, policy.margin).max(now + policy.floor))
        } else {
            let refreshed = Grant {
                refreshed_at: Some(now),
                ..self.clone()
            };
            refreshed.keep_alive_at(policy)
        };
        Effect::Commit { tokens, due_at }
    }

    fn retry(&self, now: UnixTime, cap: Duration, random: u64) -> Effect {
        let failures = self.failures.saturating_add(1);
        Effect::Retry {
            due_at: now + policy::backoff(failures, cap, random),
            failures,
            fate_unknown: false,
        }
    }

    fn refused_for_now(
        &self,
        status: u16,
        retry_after: Option<Duration>,
        now: UnixTime,
        random: u64,
    ) -> (Effect, ProviderEffect) {
        let unexplained = (400..500).contains(&status) && status != 408 && status != 429;
        let cap = if unexplained {
            policy::REFUSED_BACKOFF_CAP
        } else {
            policy::BACKOFF_CAP
        };
        // `Retry-After` on a 429 or 503 speaks of the server; on anything else, of this request.
        let provider = match (status, retry_after) {
            (429, wait) => ProviderEffect::CoolDown(now + wait.unwrap_or(DEFAULT_COOL_DOWN)),
            (503, Some(wait)) => ProviderEffect::CoolDown(now + wait),
            _ => ProviderEffect::None,
        };
        let mut effect = self.retry(now, cap, random);
        if let (Effect::Retry { due_at, .. }, Some(wait)) = (&mut effect, retry_after) {
            *due_at = (*due_at).max(now + wait);
        }
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
        }
    }
}

#[cfg(test)]
#[path = "attempt_tests.rs"]
mod tests;
