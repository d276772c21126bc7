//! One grant: its identity, its standing, and what each event does to it.

use std::fmt;
use std::time::Duration;

use super::policy::{self, Mode, Policy};
use super::time::UnixTime;
use super::token::{RefreshTokenEnd, TokenSet};

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

/// What providers, apps and namespaces are called.
pub const NAME_RULE: &str =
    "must be 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", and begin with a letter or digit";

/// Returns whether a provider, an app or a namespace can be called so ([`NAME_RULE`]): names appear in paths, routes
/// and logs.
pub fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    begins && text.len() <= 64 && text.chars().all(allowed)
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
    /// It came back with a restored copy, which may be older than what its provider knows, and waits to be released.
    Restored,
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
    /// The server went on refusing it without saying why, while it served others.
    Refused,
    /// The access token ended first, at a server that takes a refresh only while it lives.
    Expired,
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
                PauseReason::Restored => "restored",
                PauseReason::Quarantined => "quarantined",
            },
            Standing::NeedsAuthorization(reason) => match reason {
                NeedsReason::RevokedOrUsedElsewhere => "revoked-or-used-elsewhere",
                NeedsReason::LostRotation => "lost-rotation (probable)",
                NeedsReason::NoRefreshToken => "no-refresh-token",
                NeedsReason::Refused => "refused",
                NeedsReason::Expired => "expired",
            },
        }
    }

    /// Every standing there is, in the order of severity.
    pub const ALL: [Standing; 12] = [
        Standing::Active,
        Standing::Paused(PauseReason::Inactive),
        Standing::Paused(PauseReason::Unused),
        Standing::Paused(PauseReason::Admin),
        Standing::Paused(PauseReason::Held),
        Standing::Paused(PauseReason::Restored),
        Standing::Paused(PauseReason::Quarantined),
        Standing::NeedsAuthorization(NeedsReason::RevokedOrUsedElsewhere),
        Standing::NeedsAuthorization(NeedsReason::LostRotation),
        Standing::NeedsAuthorization(NeedsReason::NoRefreshToken),
        Standing::NeedsAuthorization(NeedsReason::Refused),
        Standing::NeedsAuthorization(NeedsReason::Expired),
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
    /// The refresh token's own end, where the server tells it.
    pub refresh_token_end: Option<RefreshTokenEnd>,
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
    /// Since when the server refuses it without saying why; a success or an import ends that.
    pub refused_since: Option<UnixTime>,
    /// Refreshes in a row that nobody read.
    pub unused_refreshes: u32,
    /// A request of unknown fate, if any.
    pub mark: Option<Mark>,
}

/// A part of the idle lifetime that is left when a paused grant is kept alive.
const KEEP_ALIVE_RESERVE: u32 = 20;

impl Grant {
    /// Returns the grant that an import makes, before it has a row.
    pub fn imported(key: GrantKey, tokens: &TokenSet, now: UnixTime) -> Grant {
        Grant {
            id: GrantId(0),
            key,
            version: 0,
            generation: 0,
            standing: Standing::Active,
            standing_since: now,
            access: tokens.access_token.as_ref().map(|_| AccessFacts {
                token_type: tokens.token_type.clone(),
                obtained_at: tokens.obtained_at,
                expires_at: tokens.expires_at,
            }),
            has_refresh_token: tokens.refresh_token.is_some(),
            refresh_token_end: tokens.refresh_token_end,
            scope: tokens.scope.clone(),
            due_at: None,
            imported_at: now,
            refreshed_at: None,
            attempted_at: None,
            failures: 0,
            last_failure: None,
            refused_since: None,
            unused_refreshes: 0,
            mark: None,
        }
    }

    /// Returns this grant with the moments of a clock that was set back by `by` to `now` taken as moments of
    /// the new one; `None` where no stamp is in the future.
    ///
    /// A token keeps what is left of its lifetime: it counts from `by` before the old stamp, or from
    /// now, whichever is sooner. So does a due time that followed from a stamp. Where `by` is zero, it is not
    /// known: then a request of unknown fate counts as sent long ago, for no grace can be relied on.
    pub fn restamped(&self, now: UnixTime, by: Duration) -> Option<Grant> {
        let back = |at: UnixTime| if at > now { (at - by).min(now) } else { at };
        let obtained_at = self.access.as_ref().map(|access| access.obtained_at);
        let followed = [obtained_at, self.attempted_at, Some(self.imported_at)];
        let followed = followed.into_iter().flatten().max()?;
        let marked_at = self.mark.map(|mark| mark.first_sent_at);
        let others = [
            self.refreshed_at,
            self.refused_since,
            marked_at,
            Some(self.standing_since),
        ];
        let newest = others.into_iter().flatten().max()?.max(followed);
        if newest <= now {
            return None;
        }
        let mut grant = self.clone();
        if let Some(access) = grant
            .access
            .as_mut()
            .filter(|access| access.obtained_at > now)
        {
            let lifetime = access.lifetime();
            access.obtained_at = back(access.obtained_at);
            access.expires_at = lifetime.map(|lifetime| access.obtained_at + lifetime);
        }
        if followed > now {
            let kept = |at: UnixTime| back(followed) + at.since(followed);
            grant.due_at = self.due_at.map(|at| if at > now { kept(at) } else { at });
        }
        grant.attempted_at = self.attempted_at.map(back);
        grant.refreshed_at = self.refreshed_at.map(back);
        grant.refused_since = self.refused_since.map(back);
        grant.imported_at = back(self.imported_at);
        grant.standing_since = back(self.standing_since);
        if let Some(mark) = grant.mark.as_mut().filter(|mark| mark.first_sent_at > now) {
            mark.first_sent_at = if by.is_zero() {
                UnixTime::EPOCH
            } else {
                back(mark.first_sent_at)
            };
        }
        Some(grant)
    }

    /// Returns whether the access token lives at `now`.
    pub fn lives(&self, now: UnixTime) -> bool {
        self.access.as_ref().is_some_and(|access| access.lives(now))
    }

    /// Returns when the access token ends, if that is known.
    pub fn expires_at(&self) -> Option<UnixTime> {
        self.access.as_ref()?.expires_at
    }

    /// Returns when this grant's schedule makes it due: its margin and jitter before expiry, or on demand only.
    ///
    /// A grant without a refresh token is due when its access token ends, and one without an
    /// access token at once. `None` where nobody knows the end: then a refresh happens only on demand.
    pub fn scheduled_at(&self, policy: &Policy) -> Option<UnixTime> {
        let Some(access) = &self.access else {
            return self.has_refresh_token.then_some(self.imported_at);
        };
        if !self.has_refresh_token {
            return access.expires_at;
        }
        if policy.mode == Mode::OnDemand {
            return self.resting_at(policy);
        }
        let (obtained_at, expires_at) = (access.obtained_at, access.expires_at?);
        // A refresh token that ends before the access token has to be used before its own end. Where using it puts off
        // nothing, what is left halves each time, so the end comes after a few requests.
        let refreshable_until = self.refresh_token_end.map(|end| end.expires_at);
        let ends_at = refreshable_until
            .filter(|end| *end > obtained_at)
            .map_or(expires_at, |end| end.min(expires_at));
        let due_at = policy::due_at(&self.key, obtained_at, ends_at, policy.margin);
        Some(due_at.max(self.refreshable_at(policy).unwrap_or(due_at)))
    }

    /// Returns before when the server would refuse a refresh because the access token is too young.
    ///
    /// The token's end at the latest: one that has ended is never too young.
    pub fn refreshable_at(&self, policy: &Policy) -> Option<UnixTime> {
        let access = self.access.as_ref()?;
        let at = access.obtained_at + policy.refresh_not_before?;
        Some(
            access
                .expires_at
                .map_or(at, |expires_at| at.min(expires_at)),
        )
    }

    /// Returns what a grant that is not refreshed on schedule is due for: its keep-alive, or a warning.
    pub fn resting_at(&self, policy: &Policy) -> Option<UnixTime> {
        let warn_at = self.refresh_token_end.and_then(|end| end.warn_at);
        [self.keep_alive_at(policy), warn_at]
            .into_iter()
            .flatten()
            .min()
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

    /// Returns the refresh token's end, if it is time to warn of it. Once per refresh token.
    pub fn warning(&self, now: UnixTime) -> Option<UnixTime> {
        let end = self.refresh_token_end?;
        let warns = end.warn_at.is_some_and(|at| at <= now)
            && !matches!(self.standing, Standing::NeedsAuthorization(_));
        warns.then_some(end.expires_at)
    }
}
