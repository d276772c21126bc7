//! What a reader of a grant gets.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use super::grant::{AccessFacts, Grant, NeedsReason, PauseReason, Standing};
use super::time::UnixTime;
use super::token::AccessToken;

/// A grant with its opened access token.
#[derive(Debug)]
pub struct Readable {
    /// The grant.
    pub grant: Grant,
    /// The access token, if there is one and it opens.
    pub access_token: Option<AccessToken>,
    /// What answers say beside the token and its age, kept by who wrote the first.
    pub words: OnceLock<Words>,
    /// What was noted of its reads.
    pub noted: Noted,
}

/// What was noted of a token set's reads already, so that the next ones need not note it again.
#[derive(Debug, Default)]
pub struct Noted {
    read: AtomicBool,
    /// In milliseconds; 0 for never.
    active_at: AtomicI64,
}

impl Noted {
    /// Notes that it was read. Returns whether it is the first time.
    pub fn read(&self) -> bool {
        // A look first: readers on several processors would have to pass a write on to each other.
        !self.read.load(Ordering::Relaxed) && !self.read.swap(true, Ordering::Relaxed)
    }

    /// Notes that its user was active. Returns whether that is news: the last note is `every` old, or from the future.
    pub fn active(&self, now: UnixTime, every: Duration) -> bool {
        let last = UnixTime::from_millis(self.active_at.load(Ordering::Relaxed));
        let news = now < last || now.since(last) >= every;
        if news {
            self.active_at.store(now.as_millis(), Ordering::Relaxed);
        }
        news
    }
}

/// What is the same in all answers with one access token.
#[derive(Debug)]
pub struct Words {
    /// Whether the token can stand between quotes as it is.
    pub token_is_plain: bool,
    /// What comes between the token and its age.
    pub before_age: String,
    /// What comes after its age.
    pub after_age: String,
}

impl Readable {
    /// Makes it of what was read.
    pub fn new(grant: Grant, access_token: Option<AccessToken>) -> Self {
        Readable {
            grant,
            access_token,
            words: OnceLock::new(),
            noted: Noted::default(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refresh::grant::{GrantId, GrantKey};

    const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);

    /// A grant with `left` seconds of its hour.
    fn grant(standing: Standing, left: i64) -> Grant {
        let expires_at = UnixTime::from_millis(NOW.as_millis() + left * 1000);
        Grant {
            id: GrantId(1),
            key: GrantKey {
                namespace: "default".into(),
                user: "ann".into(),
                provider: "box".into(),
                account: String::new(),
            },
            version: 1,
            generation: 1,
            standing,
            standing_since: NOW,
            access: Some(AccessFacts {
                token_type: "Bearer".into(),
                obtained_at: expires_at - Duration::from_secs(3600),
                expires_at: Some(expires_at),
            }),
            has_refresh_token: true,
            refresh_token_end: None,
            scope: None,
            due_at: None,
            imported_at: NOW,
            refreshed_at: None,
            attempted_at: None,
            failures: 0,
            last_failure: None,
            refused_since: None,
            unused_refreshes: 0,
            mark: None,
        }
    }

    fn read(standing: Standing, left: i64, may_attempt: bool) -> Read {
        grant(standing, left).read(Duration::from_secs(10), may_attempt, NOW)
    }

    #[test]
    fn a_living_token_is_served_whatever_became_of_its_grant() {
        for standing in Standing::ALL {
            for may_attempt in [true, false] {
                assert_eq!(read(standing, 100, may_attempt), Read::Serve, "{standing}");
            }
            assert_eq!(read(standing, 5, false), Read::Serve, "{standing}");
        }
    }

    #[test]
    fn less_than_min_ttl_left_is_refreshed_where_that_is_possible() {
        for standing in Standing::ALL {
            let absent = matches!(
                standing,
                Standing::Paused(PauseReason::Inactive | PauseReason::Unused)
            );
            let expected = if standing == Standing::Active || absent {
                Read::Refresh
            } else {
                Read::Serve
            };
            assert_eq!(read(standing, 5, true), expected, "{standing}");
        }
    }

    #[test]
    fn an_ended_token_is_never_served() {
        for standing in Standing::ALL {
            let expected = match standing {
                Standing::Active
                | Standing::Paused(PauseReason::Inactive | PauseReason::Unused) => Read::Refresh,
                Standing::Paused(reason) => Read::Paused(reason),
                Standing::NeedsAuthorization(reason) => Read::NeedsAuthorization(reason),
            };
            assert_eq!(read(standing, 0, true), expected, "{standing}");
        }
    }

    #[test]
    fn min_ttl_is_clamped_to_half_the_lifetime() {
        let patient =
            |left| grant(Standing::Active, left).read(Duration::from_secs(86_400), true, NOW);
        assert_eq!(patient(1801), Read::Serve);
        assert_eq!(patient(1799), Read::Refresh);
    }

    #[test]
    fn a_token_whose_end_nobody_knows_is_served_as_it_is() {
        let mut grant = grant(Standing::Active, 5);
        grant.access.as_mut().unwrap().expires_at = None;
        assert_eq!(grant.read(Duration::from_secs(10), true, NOW), Read::Serve);
    }

    #[test]
    fn without_access_token_a_refresh_token_is_used_and_without_either_nothing_helps() {
        let mut grant = grant(Standing::Active, 5);
        grant.access = None;
        assert_eq!(grant.read(Duration::ZERO, true, NOW), Read::Refresh);
        grant.has_refresh_token = false;
        assert_eq!(
            grant.read(Duration::ZERO, true, NOW),
            Read::NeedsAuthorization(NeedsReason::NoRefreshToken)
        );
    }

    #[test]
    fn only_what_is_news_of_a_read_is_noted() {
        let noted = Noted::default();
        assert_eq!([noted.read(), noted.read()], [true, false]);
        let second = Duration::from_secs(1);
        let millis = |millis| UnixTime::from_millis(NOW.as_millis() + millis);
        let moments = [0, 999, 1000, 1001, 500, 1400, 1500].map(millis);
        let news = moments.map(|at| noted.active(at, second));
        assert_eq!(news, [true, false, true, false, true, false, true]);
    }
}
