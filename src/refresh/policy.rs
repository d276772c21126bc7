//! Due times: margin, jitter, floor, backoff and `Retry-After`.

use std::time::Duration;

use super::grant::GrantKey;
use super::time::UnixTime;

/// Whether and how an authorization server replaces refresh tokens.
///
/// Decides what happens to a refresh token of unknown fate; see [`super::replay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The refresh token stays the same.
    None,
    /// The old refresh token lives until the new one is used, or for hours.
    Overlap,
    /// The old refresh token may be presented again for this long after its first use.
    Grace(Duration),
    /// The old refresh token dies at once; presenting it again may revoke the family.
    Strict,
    /// The refresh token is replaced now and then.
    Periodic,
    /// Nobody has said. Counts as rotating.
    Unknown,
}

impl Rotation {
    /// Returns whether a refresh token may be spent by its use, so that a mark is due before it is sent.
    pub fn rotates(self) -> bool {
        self != Rotation::None
    }

    /// Returns the name the configuration uses.
    pub fn name(self) -> &'static str {
        match self {
            Rotation::None => "none",
            Rotation::Overlap => "overlap",
            Rotation::Grace(_) => "grace",
            Rotation::Strict => "strict",
            Rotation::Periodic => "periodic",
            Rotation::Unknown => "unknown",
        }
    }
}

/// What the core needs to know about one provider to schedule its grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long before expiry a refresh is due.
    pub margin: Duration,
    /// The shortest time between two attempts at one grant.
    pub floor: Duration,
    /// How the server treats used refresh tokens.
    pub rotation: Rotation,
    /// A user without a counted read or activity note for this long is inactive.
    pub inactive_after: Duration,
    /// A grant rests after this many refreshes in a row that nobody read.
    pub max_unused_refreshes: u32,
    /// The access token's lifetime where the server does not say it.
    pub default_lifetime: Option<Duration>,
    /// After this long without use the server forgets the refresh token.
    pub refresh_token_idle_lifetime: Option<Duration>,
    /// Whether a paused grant is refreshed shortly before its refresh token dies of disuse.
    pub keep_alive: bool,
    /// When the schedule refreshes.
    pub mode: Mode,
    /// The server refuses to refresh an access token that is younger than this.
    pub refresh_not_before: Option<Duration>,
    /// The server takes a refresh only while the old access token lives. Absence pauses no grant
    /// then, because a pause would be its end; unless `keep_alive` is off.
    pub refresh_while_alive: bool,
    /// An unexplained refusal that goes on for this long past the access token's end is believed,
    /// if the provider serves other grants meanwhile.
    pub refuse_after: Duration,
    /// How long before a refresh token's end we warn.
    pub refresh_token_warning: Duration,
}

impl Policy {
    /// Names what due times depend on: where it differs, they have to be computed anew.
    pub fn schedule(&self) -> String {
        let mut name = self.margin.as_millis().to_string();
        if self.mode == Mode::OnDemand {
            name.push_str(" on-demand");
        }
        if let Some(age) = self.refresh_not_before {
            name.push_str(&format!(" not-before {}", age.as_millis()));
        }
        name
    }
}

/// When the schedule refreshes a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A margin before its access token ends.
    Scheduled,
    /// Never, but for its keep-alive: a reader who finds the token inside its margin begins a refresh.
    OnDemand,
}

impl Mode {
    /// Returns the name the configuration uses.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Scheduled => "scheduled",
            Mode::OnDemand => "on-demand",
        }
    }
}

/// Returns when the access token should be refreshed.
///
/// `expires_in` counts from `received_at` (RFC 6749 §5.1). A `margin` longer
/// than half the lifetime is cut to half, so a short-lived token never spins.
/// Returns `None` if the authorization server sent no `expires_in`.
pub fn refresh_at(
    expires_in: Option<Duration>,
    received_at: UnixTime,
    margin: Duration,
) -> Option<UnixTime> {
    let expires_in = expires_in?;
    Some(received_at + (expires_in - cut(margin, expires_in)))
}

/// Returns when a token obtained at `obtained_at` that ends at `expires_at` is due,
/// this grant's jitter included.
///
/// The jitter is a tenth of the (cut) margin at most, derived from the grant's key, so it is the
/// same after a restart, and it only ever makes the refresh earlier.
pub fn due_at(
    key: &GrantKey,
    obtained_at: UnixTime,
    expires_at: UnixTime,
    margin: Duration,
) -> UnixTime {
    let lifetime = expires_at.since(obtained_at);
    let margin = cut(margin, lifetime);
    let jitter = margin.mul_f64(0.1 * key.fraction());
    expires_at - margin - jitter
}

/// Returns the margin of a token with this lifetime: half of it at most.
pub(super) fn cut(margin: Duration, lifetime: Duration) -> Duration {
    margin.min(lifetime / 2)
}

/// Returns when to warn that a refresh token ends at `ends_at`, whose end became known at `known_at`.
///
/// `warning` before the end, or a tenth of the time there is, where that is shorter.
pub fn warn_at(known_at: UnixTime, ends_at: UnixTime, warning: Duration) -> UnixTime {
    ends_at - warning.min(ends_at.since(known_at) / 10)
}

/// The first retry comes this long after a failure; each further one doubles it.
const BACKOFF_BASE: Duration = Duration::from_secs(2);
/// No retry of a transient failure waits longer than this.
pub const BACKOFF_CAP: Duration = Duration::from_secs(5 * 60);
/// No retry of an unexplained refusal waits longer than this.
pub const REFUSED_BACKOFF_CAP: Duration = Duration::from_secs(60 * 60);
/// A caller that waits for a token shortens the backoff to this, times the failures in a row.
pub const DEMAND_RETRY: Duration = Duration::from_secs(5);
/// An unexplained refusal is not believed before so many failures in a row: a clock that was set
/// forward makes a day pass in a moment.
pub const REFUSALS_BELIEVED: u32 = 5;
/// `Retry-After` is believed up to here; a longer one is cut, so that a typing error can't silence a provider for a year.
pub const RETRY_AFTER_CAP: Duration = Duration::from_secs(60 * 60);

/// Returns how long to wait after the `failures`-th failure in a row (1 is the first).
///
/// Exponential up to `cap`, then spread over its upper half by `random`, so
/// that grants which failed together don't come back together.
pub fn backoff(failures: u32, cap: Duration, random: u64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = BACKOFF_BASE.saturating_mul(1 << doublings).min(cap);
    let fraction = (random >> 11) as f64 / (1u64 << 53) as f64;
    full / 2 + (full / 2).mul_f64(fraction)
}

/// Reads a `Retry-After` value (RFC 9110 §10.2.3): seconds, or an HTTP date, clamped to [`RETRY_AFTER_CAP`].
///
/// Returns `None` for anything else. A date in the past means now.
pub fn retry_after(value: &str, now: UnixTime) -> Option<Duration> {
    let value = value.trim();
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let wait = if digits {
        // More digits than fit are a long wait too.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let date = jiff::fmt::rfc2822::parse(value).ok()?;
        UnixTime::from_millis(date.timestamp().as_millisecond()).since(now)
    };
    Some(wait.min(RETRY_AFTER_CAP))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn key(user: &str) -> GrantKey {
        GrantKey {
            namespace: "default".into(),
            user: user.into(),
            provider: "hubspot".into(),
            account: String::new(),
        }
    }

    #[test]
    fn a_token_of_21600_s_with_a_margin_of_60_s_is_refreshed_at_21540_s() {
        let at = refresh_at(Some(secs(21_600)), NOW, secs(60));
        assert_eq!(at, Some(NOW + secs(21_540)));
    }

    #[test]
    fn a_margin_longer_than_half_the_lifetime_is_cut_to_half() {
        for lifetime in [15, 1, 0] {
            let at = refresh_at(Some(secs(lifetime)), NOW, secs(60));
            assert_eq!(at, Some(NOW + secs(lifetime) / 2), "{lifetime} s");
        }
        assert_eq!(refresh_at(None, NOW, secs(60)), None);
    }

    #[test]
    fn jitter_is_stable_small_and_only_ever_earlier() {
        let mut spread = std::collections::BTreeSet::new();
        for user in 0..1000 {
            let key = key(&format!("user-{user}"));
            let at = due_at(&key, NOW, NOW + secs(21_600), secs(60));
            assert_eq!(at, due_at(&key, NOW, NOW + secs(21_600), secs(60)));
            assert!(at <= NOW + secs(21_540), "never later than the margin");
            assert!(at >= NOW + secs(21_534), "a tenth of the margin at most");
            spread.insert(at);
        }
        assert!(spread.len() > 500, "only {} distinct moments", spread.len());
    }

    #[test]
    fn a_refresh_tokens_end_is_told_a_week_or_a_tenth_of_its_time_before() {
        let day = 86_400;
        for (lifetime, before) in [
            (90 * day, 7 * day),
            (70 * day, 7 * day),
            (day, day / 10),
            (0, 0),
        ] {
            let ends_at = NOW + secs(lifetime);
            assert_eq!(
                warn_at(NOW, ends_at, secs(7 * day)),
                ends_at - secs(before),
                "{lifetime} s"
            );
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_cap_and_spreads_over_the_upper_half() {
        for (failures, full) in [(1, 2), (2, 4), (3, 8), (8, 256), (9, 300), (u32::MAX, 300)] {
            let shortest = backoff(failures, BACKOFF_CAP, 0);
            let longest = backoff(failures, BACKOFF_CAP, u64::MAX);
            assert_eq!(shortest, secs(full) / 2, "{failures}");
            assert!(
                longest <= secs(full) && longest > secs(full) * 9 / 10,
                "{failures}"
            );
        }
        assert!(backoff(40, REFUSED_BACKOFF_CAP, 0) >= secs(1800));
    }
}
