//! One grant: its identity, its standing, and what each event does to it.

use std::fmt;
use std::time::Duration;

use super::policy::{self, Policy};
use super::replay::{self, Replay};
use super::time::UnixTime;
use super::token::{RefreshToken, TokenSet};
use super::token_response::{Outcome, TokenResponse};

/// Names one grant: what one user gave us at one provider.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantKey {
    /// Keeps apart apps that both have a user "42".
    pub namespace: String,
    /// The app's own opaque name for the resource owner.
    pub user: String,
    /// The configured provider's name.
    pub provider: String,
    /// Tells two grants of one user at one provider apart; mostly empty.
    pub account: String,
}

impl GrantKey {
    /// Returns `provider`, or `provider:account` where there is an account.
    pub fn provider_and_account(&self) -> String {
        if self.account.is_empty() {
            self.provider.clone()
        } else {
            format!("{}:{}", self.provider, self.account)
        }
    }

    /// Returns a number in 0.0..1.0 that is always the same for this key (FNV-1a, 64 bit).
    pub fn fraction(&self) -> f64 {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for part in [&self.namespace, &self.user, &self.provider, &self.account] {
            for byte in part.as_bytes().iter().chain(&[0xff]) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        (hash >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A grant's row number in the store; never used again for another grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantId(pub i64);

/// What people and providers decided about a grant. Separate from whether an attempt runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Refreshed when due.
    Active,
    /// Not refreshed until something resumes it.
    Paused(PauseReason),
    /// Only the user can mend it, by authorizing again.
    NeedsAuthorization(NeedsReason),
}

/// Why a grant is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseReason {
    /// No counted read or activity note came for `inactive-after`.
    Inactive,
    /// `max-unused-refreshes` refreshes in a row were read by nobody.
    Unused,
    /// An admin paused it.
    Admin,
    /// It was imported with `hold` and waits to be released.
    Held,
    /// A sealed value of it does not open.
    Quarantined,
}

/// Why a grant needs authorization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeedsReason {
    /// The server refused a refresh token that we had presented once only:
    /// the user or the provider revoked it, or another program used it.
    RevokedOrUsedElsewhere,
    /// The server refused a refresh token whose earlier use has no known outcome:
    /// it had probably been replaced by one that never reached us.
    LostRotation,
    /// The access token ended and there is no refresh token.
    NoRefreshToken,
}

impl Standing {
    /// Returns `active`, `paused` or `needs-authorization`: the wire's `state`.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Active => "active",
            Standing::Paused(_) => "paused",
            Standing::NeedsAuthorization(_) => "needs-authorization",
        }
    }

    /// Returns the reason's name on the wire and in the store, empty for `active`.
    pub fn reason(self) -> &'static str {
        match self {
            Standing::Active => "",
            Standing::Paused(reason) => match reason {
                PauseReason::Inactive => "inactive",
                PauseReason::Unused => "unused",
                PauseReason::Admin => "admin",
                PauseReason::Held => "held",
                PauseReason::Quarantined => "quarantined",
            },
            Standing::NeedsAuthorization(reason) => match reason {
                NeedsReason::RevokedOrUsedElsewhere => "revoked-or-used-elsewhere",
                NeedsReason::LostRotation => "lost-rotation (probable)",
                NeedsReason::NoRefreshToken => "no-refresh-token",
            },
        }
    }

    /// Every standing there is, in the order of severity.
    pub const ALL: [Standing; 9] = [
        Standing::Active,
        Standing::Paused(PauseReason::Inactive),
        Standing::Paused(PauseReason::Unused),
        Standing::Paused(PauseReason::Admin),
        Standing::Paused(PauseReason::Held),
        Standing::Paused(PauseReason::Quarantined),
        Standing::NeedsAuthorization(NeedsReason::RevokedOrUsedElsewhere),
        Standing::NeedsAuthorization(NeedsReason::LostRotation),
        Standing::NeedsAuthorization(NeedsReason::NoRefreshToken),
    ];

    /// Reads the two names that [`Standing::name`] and [`Standing::reason`] give.
    pub fn from_names(name: &str, reason: &str) -> Option<Standing> {
        Standing::ALL
            .into_iter()
            .find(|s| s.name() == name && s.reason() == reason)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason() {
            "" => f.write_str(self.name()),
            reason => write!(f, "{} ({reason})", self.name()),
        }
    }
}

/// Says that a refresh token left, or was about to leave, without an outcome on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When the first of these requests was about to leave.
    pub first_sent_at: UnixTime,
    /// How many requests with this refresh token have no known outcome.
    pub presented: u32,
}

/// What is known of a grant's access token, without the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessFacts {
    /// The token type as the server wrote it.
    pub token_type: String,
    /// When the access token was obtained.
    pub obtained_at: UnixTime,
    /// When it expires; `None` where nobody knows, and then it is served as it is.
    pub expires_at: Option<UnixTime>,
}

impl AccessFacts {
    /// Returns the lifetime it was issued with.
    pub fn lifetime(&self) -> Option<Duration> {
        Some(self.expires_at?.since(self.obtained_at))
    }

    /// Returns whether the token still lives at `now`.
    pub fn lives(&self, now: UnixTime) -> bool {
        self.expires_at.is_none_or(|at| at > now)
    }
}

/// One grant as the store holds it, without its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The row's number.
    pub id: GrantId,
    /// Whose grant it is, and where.
    pub key: GrantKey,
    /// Counts every write to the row; a newer version wins in memory.
    pub version: u64,
    /// Counts committed token sets, from 1; never goes back (I3).
    pub generation: u64,
    /// What people and providers decided about it.
    pub standing: Standing,
    /// Since when it has this standing.
    pub standing_since: UnixTime,
    /// The access token's facts, if there is one.
    pub access: Option<AccessFacts>,
    /// Whether there is a refresh token.
    pub has_refresh_token: bool,
    /// The granted scope.
    pub scope: Option<String>,
    /// The next moment at which anything must happen to it.
    pub due_at: Option<UnixTime>,
    /// When its tokens last came in by import.
    pub imported_at: UnixTime,
    /// When a refresh last succeeded.
    pub refreshed_at: Option<UnixTime>,
    /// When an attempt last ended, whatever its outcome.
    pub attempted_at: Option<UnixTime>,
    /// Failures in a row since the last success.
    pub failures: u32,
    /// A short code of the last failure (`http-503`, `connect`, `invalid_grant`); never a server's own text.
    pub last_failure: Option<String>,
    /// Refreshes in a row that nobody read.
    pub unused_refreshes: u32,
    /// A request of unknown fate, if any.
    pub mark: Option<Mark>,
}

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

/// A part of the idle lifetime that is left when a paused grant is kept alive.
const KEEP_ALIVE_RESERVE: u32 = 20;

impl Grant {
    /// Returns whether the access token lives at `now`.
    pub fn lives(&self, now: UnixTime) -> bool {
        self.access.as_ref().is_some_and(|access| access.lives(now))
    }

    /// Returns when the access token ends, if that is known.
    pub fn expires_at(&self) -> Option<UnixTime> {
        self.access.as_ref()?.expires_at
    }

    /// Returns when this grant's schedule makes it due: its margin and jitter before expiry.
    ///
    /// A grant without a refresh token is due when its access token ends, and one without an
    /// access token at once. `None` where nobody knows the end: then a refresh happens only on demand.
    pub fn scheduled_at(&self, margin: Duration) -> Option<UnixTime> {
        let Some(access) = &self.access else {
            return self.has_refresh_token.then_some(self.imported_at);
        };
        let expires_at = access.expires_at?;
        if !self.has_refresh_token {
            return Some(expires_at);
        }
        Some(policy::due_at(
            &self.key,
            access.obtained_at,
            expires_at,
            margin,
        ))
    }

    /// Returns when a paused grant is refreshed so that its refresh token does not die of disuse.
    ///
    /// A twentieth of the idle lifetime before that (3 days of Box's 60).
    pub fn keep_alive_at(&self, policy: &Policy) -> Option<UnixTime> {
        let idle = policy.refresh_token_idle_lifetime?;
        if !policy.keep_alive || !self.has_refresh_token {
            return None;
        }
        let used_at = self.refreshed_at.unwrap_or(self.imported_at);
        Some(used_at.max(self.imported_at) + (idle - idle / KEEP_ALIVE_RESERVE))
    }

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
        if cause == Cause::Due {
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

/// What a reader of a grant gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The access token, at once.
    Serve,
    /// The outcome of an attempt, which is joined or started; at the end of the wait, the old token if it lives.
    Refresh,
    /// Nothing: it is paused, and not for its user's absence.
    Paused(PauseReason),
    /// Nothing: only the user can mend it.
    NeedsAuthorization(NeedsReason),
}

impl Grant {
    /// Decides what a reader gets who wants at least `min_ttl` of lifetime left.
    ///
    /// `min_ttl` is clamped to half the token's lifetime, so no reader can make short-lived tokens spin.
    /// `may_attempt` is false while the provider is paused or stopped or the daemon drains.
    pub fn read(&self, min_ttl: Duration, may_attempt: bool, now: UnixTime) -> Read {
        if self.lives(now) {
            let enough = match self.access.as_ref() {
                Some(AccessFacts {
                    expires_at: Some(at),
                    obtained_at,
                    ..
                }) => at.since(now) >= min_ttl.min(at.since(*obtained_at) / 2),
                _ => true,
            };
            let refreshable = may_attempt
                && self.has_refresh_token
                && matches!(
                    self.standing,
                    Standing::Active
                        | Standing::Paused(PauseReason::Inactive | PauseReason::Unused)
                );
            return if enough || !refreshable {
                Read::Serve
            } else {
                Read::Refresh
            };
        }
        match self.standing {
            Standing::Active | Standing::Paused(PauseReason::Inactive | PauseReason::Unused) => {
                if self.has_refresh_token {
                    Read::Refresh
                } else {
                    Read::NeedsAuthorization(NeedsReason::NoRefreshToken)
                }
            }
            Standing::Paused(reason) => Read::Paused(reason),
            Standing::NeedsAuthorization(reason) => Read::NeedsAuthorization(reason),
        }
    }
}
