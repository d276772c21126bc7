//! Renewal: an admin asked that every token set from before a moment be replaced, whether or not
//! anybody reads it. After that a copy that was stolen before is worth nothing where refresh tokens rotate.
//!
//! The moment is kept once for a provider. What it concerns follows from a grant's own stamps, so a
//! renewal goes on after a restart, and ends by itself.

use super::attempt::Cause;
use super::grant::{Grant, PauseReason, Standing};
use super::time::UnixTime;

impl Grant {
    /// Returns whether its token set came in before `before`, and it has a refresh token to replace it with.
    fn predates(&self, before: UnixTime) -> bool {
        let came_at = self.refreshed_at.unwrap_or(self.imported_at);
        self.has_refresh_token && came_at.max(self.imported_at) < before
    }

    /// Returns whether it is to be renewed.
    ///
    /// One that people, or its provider, have put to rest is not, until that ends; one whose user is away is.
    pub fn awaits_renewal(&self, before: UnixTime) -> bool {
        let stands = matches!(
            self.standing,
            Standing::Active | Standing::Paused(PauseReason::Inactive | PauseReason::Unused)
        );
        stands && self.predates(before)
    }

    /// Returns when it is due: at once where a renewal was asked for, else as `scheduled`.
    ///
    /// Whatever its standing is: this is also asked for one that is about to be resumed.
    pub fn due_with_renewal(
        &self,
        before: Option<UnixTime>,
        scheduled: Option<UnixTime>,
    ) -> Option<UnixTime> {
        match before.filter(|before| self.predates(*before)) {
            Some(before) => Some(scheduled.map_or(before, |at| at.min(before))),
            None => scheduled,
        }
    }

    /// Returns the cause of an attempt that the schedule began at `now`. Early ones, and those in a backoff, are not the renewal's.
    pub fn cause_when_due(&self, before: Option<UnixTime>, now: UnixTime) -> Cause {
        let renews = before.is_some_and(|before| self.awaits_renewal(before))
            && self.due_at.is_some_and(|at| at <= now);
        if renews { Cause::Renewal } else { Cause::Due }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::refresh::attempt::Step;
    use crate::refresh::grant::{AccessFacts, GrantKey, Mark, NeedsReason};
    use crate::refresh::policy::{Mode, Policy, Rotation};
    use crate::refresh::token::{RefreshToken, TokenSet};

    const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn policy() -> Policy {
        Policy {
            margin: Duration::from_secs(60),
            floor: Duration::from_secs(1),
            rotation: Rotation::None,
            inactive_after: HOUR * 72,
            max_unused_refreshes: 100,
            default_lifetime: None,
            refresh_token_idle_lifetime: None,
            keep_alive: true,
            mode: Mode::Scheduled,
            refresh_not_before: None,
            refresh_while_alive: false,
            refuse_after: HOUR * 24,
            refresh_token_warning: HOUR,
        }
    }

    /// Imported an hour ago, alive for another hour, due at once by a renewal that was asked for now.
    fn grant() -> Grant {
        let tokens = TokenSet {
            access_token: None,
            token_type: "Bearer".into(),
            expires_at: None,
            obtained_at: NOW - HOUR,
            refresh_token: Some(RefreshToken::new("r".to_owned())),
            refresh_token_end: None,
            scope: None,
        };
        let key = GrantKey {
            namespace: "default".into(),
            user: "anna".into(),
            provider: "acme".into(),
            account: String::new(),
        };
        Grant {
            access: Some(AccessFacts {
                token_type: "Bearer".into(),
                obtained_at: NOW - HOUR,
                expires_at: Some(NOW + HOUR),
            }),
            due_at: Some(NOW),
            ..Grant::imported(key, &tokens, NOW - HOUR)
        }
    }

    fn step(grant: &Grant, policy: &Policy) -> Step {
        let later = NOW + Duration::from_secs(5);
        let cause = grant.cause_when_due(Some(NOW), later);
        // The user was never seen but by the import, ten days ago.
        grant.step(cause, Some(NOW - HOUR * 240), later, policy)
    }

    #[test]
    fn a_renewal_refreshes_what_rests_because_nobody_reads_it() {
        let standings = [
            Standing::Active,
            Standing::Paused(PauseReason::Inactive),
            Standing::Paused(PauseReason::Unused),
        ];
        for standing in standings {
            let grant = Grant {
                standing,
                imported_at: NOW - HOUR * 240,
                ..grant()
            };
            assert_eq!(step(&grant, &policy()), Step::Refresh, "{standing}");
        }
        let on_demand = Policy {
            mode: Mode::OnDemand,
            ..policy()
        };
        assert_eq!(step(&grant(), &on_demand), Step::Refresh);
    }

    #[test]
    fn a_renewal_leaves_alone_what_people_or_the_provider_put_to_rest() {
        let standings = [
            Standing::Paused(PauseReason::Admin),
            Standing::Paused(PauseReason::Held),
            Standing::Paused(PauseReason::Restored),
            Standing::Paused(PauseReason::Quarantined),
            Standing::NeedsAuthorization(NeedsReason::RevokedOrUsedElsewhere),
        ];
        for standing in standings {
            let grant = Grant {
                standing,
                ..grant()
            };
            assert!(!grant.awaits_renewal(NOW), "{standing}");
            assert_eq!(step(&grant, &policy()), Step::Rest, "{standing}");
        }
    }

    #[test]
    fn a_renewal_presents_no_spent_token_of_a_strict_class_while_the_access_token_lives() {
        let grant = Grant {
            mark: Some(Mark {
                first_sent_at: NOW - HOUR,
                presented: 1,
            }),
            ..grant()
        };
        let strict = Policy {
            rotation: Rotation::Strict,
            ..policy()
        };
        assert!(grant.awaits_renewal(NOW));
        assert!(matches!(step(&grant, &strict), Step::Wait(at) if at >= NOW + HOUR));
    }

    #[test]
    fn a_renewal_ends_with_the_first_token_set_after_it_and_keeps_to_a_backoff() {
        let renewed = Grant {
            refreshed_at: Some(NOW),
            ..grant()
        };
        assert!(!renewed.awaits_renewal(NOW));
        assert_eq!(
            renewed.due_with_renewal(Some(NOW), Some(NOW + HOUR)),
            Some(NOW + HOUR)
        );
        assert_eq!(
            grant().due_with_renewal(Some(NOW), Some(NOW + HOUR)),
            Some(NOW)
        );
        assert_eq!(grant().due_with_renewal(None, None), None);
        let backed_off = Grant {
            due_at: Some(NOW + HOUR),
            failures: 1,
            ..grant()
        };
        assert_eq!(step(&backed_off, &policy()), Step::Wait(NOW + HOUR));
    }
}
