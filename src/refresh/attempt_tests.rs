use super::*;
use crate::refresh::grant::{AccessFacts, GrantId, GrantKey, Mark};
use crate::refresh::policy::Rotation;
use crate::refresh::token::AccessToken;
use crate::refresh::token_response::Refusal;

const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);
const DAY: Duration = Duration::from_secs(86_400);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn policy() -> Policy {
    Policy {
        margin: secs(60),
        floor: secs(1),
        rotation: Rotation::Strict,
        inactive_after: 3 * DAY,
        max_unused_refreshes: 100,
        default_lifetime: None,
        refresh_token_idle_lifetime: Some(60 * DAY),
        keep_alive: true,
    }
}

/// A grant whose token has 30 s of its hour left, so it is due.
fn due_grant() -> Grant {
    Grant {
        id: GrantId(7),
        key: GrantKey {
            namespace: "default".into(),
            user: "ann".into(),
            provider: "box".into(),
            account: String::new(),
        },
        version: 3,
        generation: 2,
        standing: Standing::Active,
        standing_since: NOW - DAY,
        access: Some(AccessFacts {
            token_type: "bearer".into(),
            obtained_at: NOW - secs(3570),
            expires_at: Some(NOW + secs(30)),
        }),
        has_refresh_token: true,
        scope: Some("files".into()),
        due_at: Some(NOW - secs(30)),
        imported_at: NOW - DAY,
        refreshed_at: Some(NOW - secs(3570)),
        attempted_at: Some(NOW - secs(3570)),
        failures: 0,
        last_failure: None,
        unused_refreshes: 0,
        mark: None,
    }
}

fn due(grant: &Grant) -> Step {
    grant.step(Cause::Due, Some(NOW), NOW, &policy())
}

fn demanded(grant: &Grant) -> Step {
    grant.step(Cause::Demand, None, NOW, &policy())
}

#[test]
fn a_due_grant_of_an_active_user_is_refreshed() {
    assert_eq!(due(&due_grant()), Step::Refresh);
}

#[test]
fn an_early_call_waits_and_does_no_harm() {
    let mut grant = due_grant();
    grant.due_at = Some(NOW + secs(9));
    assert_eq!(due(&grant), Step::Wait(NOW + secs(9)));
    grant.due_at = None;
    assert_eq!(due(&grant), Step::Rest);
}

#[test]
fn an_absent_users_grant_is_paused_when_it_falls_due_with_its_keep_alive() {
    let mut grant = due_grant();
    grant.imported_at = NOW - 10 * DAY;
    let step = grant.step(Cause::Due, Some(NOW - 3 * DAY), NOW, &policy());
    let keep_alive_at = NOW - secs(3570) + 57 * DAY;
    assert_eq!(
        step,
        Step::Pause(PauseReason::Inactive, Some(keep_alive_at))
    );
    assert_eq!(
        grant.step(Cause::Due, Some(NOW - 3 * DAY + secs(1)), NOW, &policy()),
        Step::Refresh,
        "a second short of inactive"
    );
    let without = Policy {
        keep_alive: false,
        ..policy()
    };
    let step = grant.step(Cause::Due, None, NOW, &without);
    assert_eq!(step, Step::Pause(PauseReason::Inactive, None));
}

#[test]
fn an_import_counts_as_activity() {
    let grant = due_grant();
    assert_eq!(grant.step(Cause::Due, None, NOW, &policy()), Step::Refresh);
}

#[test]
fn a_grant_nobody_reads_rests_after_so_many_refreshes() {
    let mut grant = due_grant();
    grant.unused_refreshes = 99;
    assert_eq!(due(&grant), Step::Refresh);
    grant.unused_refreshes = 100;
    assert!(matches!(due(&grant), Step::Pause(PauseReason::Unused, _)));
    assert_eq!(demanded(&grant), Step::Refresh, "a reader brings it back");
}

#[test]
fn a_paused_grant_is_kept_alive_shortly_before_its_refresh_token_dies_of_disuse() {
    let mut grant = due_grant();
    grant.standing = Standing::Paused(PauseReason::Inactive);
    let at = grant.keep_alive_at(&policy()).unwrap();
    grant.due_at = Some(at);
    assert_eq!(due(&grant), Step::Wait(at));
    let step = |now| grant.step(Cause::Due, None, now, &policy());
    assert_eq!(step(at), Step::Refresh);
    assert!(at < grant.refreshed_at.unwrap() + 60 * DAY);
}

#[test]
fn what_an_admin_paused_and_what_needs_authorization_rests() {
    for standing in Standing::ALL {
        let mut grant = due_grant();
        grant.standing = standing;
        let refreshable = matches!(
            standing,
            Standing::Active | Standing::Paused(PauseReason::Inactive | PauseReason::Unused)
        );
        assert_eq!(demanded(&grant) == Step::Refresh, refreshable, "{standing}");
    }
}

#[test]
fn without_a_refresh_token_it_needs_authorization_when_its_token_ends_and_not_before() {
    let mut grant = due_grant();
    grant.has_refresh_token = false;
    assert_eq!(due(&grant), Step::Wait(NOW + secs(30)));
    let later = grant.step(Cause::Due, Some(NOW), NOW + secs(30), &policy());
    assert_eq!(later, Step::NeedsAuthorization(NeedsReason::NoRefreshToken));
    grant.access.as_mut().unwrap().expires_at = None;
    assert_eq!(due(&grant), Step::Rest, "nobody knows its end");
}

#[test]
fn attempts_keep_the_floor_even_on_demand_and_even_after_the_clock_was_set_back() {
    let mut grant = due_grant();
    grant.attempted_at = Some(NOW - Duration::from_millis(200));
    let at = NOW + Duration::from_millis(800);
    assert_eq!(demanded(&grant), Step::Wait(at));
    assert_eq!(due(&grant), Step::Wait(at));
    grant.attempted_at = Some(NOW + 365 * DAY);
    assert_eq!(
        demanded(&grant),
        Step::Wait(NOW + secs(1)),
        "a stamp from the future is now"
    );
}

#[test]
fn a_waiting_caller_shortens_a_backoff_but_not_to_nothing() {
    let mut grant = due_grant();
    grant.failures = 1;
    grant.attempted_at = Some(NOW - secs(3));
    grant.due_at = Some(NOW + secs(200));
    assert_eq!(demanded(&grant), Step::Wait(NOW + secs(2)));
    grant.failures = 10;
    assert_eq!(
        demanded(&grant),
        Step::Wait(NOW + secs(47)),
        "five seconds per failure"
    );
    grant.due_at = Some(NOW + secs(5));
    assert_eq!(
        demanded(&grant),
        Step::Wait(NOW + secs(5)),
        "never longer than the backoff"
    );
}

#[test]
fn a_refresh_token_of_unknown_fate_waits_for_the_end_of_the_access_token_even_on_demand() {
    let mut grant = due_grant();
    grant.mark = Some(Mark {
        first_sent_at: NOW - secs(20),
        presented: 1,
    });
    assert_eq!(due(&grant), Step::Wait(NOW + secs(30)));
    assert_eq!(demanded(&grant), Step::Wait(NOW + secs(30)));
    let overlap = Policy {
        rotation: Rotation::Overlap,
        ..policy()
    };
    assert_eq!(
        grant.step(Cause::Due, Some(NOW), NOW, &overlap),
        Step::Refresh
    );
}

#[test]
fn a_replay_within_the_grace_waits_neither_for_its_due_time_nor_for_its_user() {
    let policy = Policy {
        rotation: Rotation::Grace(secs(30)),
        ..policy()
    };
    let mut grant = due_grant();
    grant.due_at = Some(NOW + secs(600));
    grant.refreshed_at = Some(NOW - secs(60));
    let long_ago = Some(NOW - 30 * DAY);
    for standing in [
        Standing::Active,
        Standing::Paused(PauseReason::Inactive),
        Standing::Paused(PauseReason::Admin),
    ] {
        grant.standing = standing;
        for (presented, age) in [(1, 29), (1, 30), (2, 29)] {
            grant.mark = Some(Mark {
                first_sent_at: NOW - secs(age),
                presented,
            });
            let replayed = grant.step(Cause::Due, long_ago, NOW, &policy) == Step::Refresh;
            let urgent = (presented, age) == (1, 29);
            let allowed = standing != Standing::Paused(PauseReason::Admin);
            assert_eq!(
                replayed,
                urgent && allowed,
                "{standing:?} {presented} {age}"
            );
        }
    }
}

fn settle(grant: &Grant, outcome: &Outcome) -> (Effect, ProviderEffect) {
    grant.settle(outcome, &RefreshToken::new("presented"), NOW, &policy(), 0)
}

fn response() -> TokenResponse {
    TokenResponse {
        access_token: AccessToken::new("new"),
        token_type: "bearer".into(),
        expires_in: Some(secs(3600)),
        jwt_expires_at: None,
        refresh_token: None,
        scope: None,
    }
}

fn committed(grant: &Grant, response: TokenResponse) -> (TokenSet, Option<UnixTime>) {
    match settle(grant, &Outcome::Tokens(response)) {
        (Effect::Commit { tokens, due_at }, ProviderEffect::None) => (tokens, due_at),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_old_refresh_token_and_scope_are_kept_when_none_is_sent() {
    let (tokens, due_at) = committed(&due_grant(), response());
    assert_eq!(tokens.refresh_token, Some(RefreshToken::new("presented")));
    assert_eq!(tokens.scope.as_deref(), Some("files"));
    assert_eq!(tokens.expires_at, Some(NOW + secs(3600)));
    assert!(due_at.is_some_and(|at| at <= NOW + secs(3540) && at > NOW + secs(3530)));
}

#[test]
fn a_new_refresh_token_replaces_the_old_one() {
    let sent = TokenResponse {
        refresh_token: Some(RefreshToken::new("rotated")),
        ..response()
    };
    let (tokens, _) = committed(&due_grant(), sent);
    assert_eq!(tokens.refresh_token, Some(RefreshToken::new("rotated")));
}

#[test]
fn an_unsaid_lifetime_falls_back_to_the_jwt_then_the_profile_then_the_last_one() {
    let silent = || TokenResponse {
        expires_in: None,
        ..response()
    };
    let jwt = TokenResponse {
        jwt_expires_at: Some(NOW + secs(99)),
        ..silent()
    };
    assert_eq!(
        committed(&due_grant(), jwt).0.expires_at,
        Some(NOW + secs(99))
    );
    assert_eq!(
        committed(&due_grant(), silent()).0.expires_at,
        Some(NOW + secs(3600))
    );
    let profile = Policy {
        default_lifetime: Some(secs(1800)),
        ..policy()
    };
    let outcome = Outcome::Tokens(silent());
    let (effect, _) = due_grant().settle(&outcome, &RefreshToken::new("r"), NOW, &profile, 0);
    assert!(matches!(
        effect,
        Effect::Commit { tokens, .. } if tokens.expires_at == Some(NOW + secs(1800))
    ));
    let mut never_said = due_grant();
    never_said.access.as_mut().unwrap().expires_at = None;
    assert_eq!(
        committed(&never_said, silent()),
        (
            TokenSet {
                expires_at: None,
                ..committed(&never_said, silent()).0
            },
            None,
        )
    );
}

#[test]
fn short_lives_never_make_attempts_spin() {
    for lifetime in [15, 1] {
        let short = TokenResponse {
            expires_in: Some(secs(lifetime)),
            ..response()
        };
        let (_, due_at) = committed(&due_grant(), short);
        assert!(due_at.unwrap() >= NOW + secs(1), "{lifetime}");
    }
}

#[test]
fn a_keep_alive_leaves_the_grant_paused_until_the_next_one() {
    let mut grant = due_grant();
    grant.standing = Standing::Paused(PauseReason::Inactive);
    let (_, due_at) = committed(&grant, response());
    assert_eq!(due_at, Some(NOW + 57 * DAY));
}

#[test]
fn invalid_grant_is_a_verdict_and_names_a_lost_rotation_only_where_one_is_probable() {
    let refused = Outcome::RefusedForGood(Refusal {
        status: 400,
        code: Some("invalid_grant"),
    });
    let reason = |presented: Option<u32>| {
        let mut grant = due_grant();
        grant.mark = presented.map(|presented| Mark {
            first_sent_at: NOW,
            presented,
        });
        settle(&grant, &refused).0
    };
    let revoked = Effect::NeedsAuthorization(NeedsReason::RevokedOrUsedElsewhere);
    assert_eq!(reason(None), revoked);
    assert_eq!(reason(Some(1)), revoked, "this attempt's own mark");
    assert_eq!(
        reason(Some(2)),
        Effect::NeedsAuthorization(NeedsReason::LostRotation)
    );
}

#[test]
fn a_refused_client_stops_the_provider_and_leaves_the_grant_as_it_is() {
    let refused = Outcome::RefusedForAll(Refusal {
        status: 401,
        code: Some("invalid_client"),
    });
    let mut grant = due_grant();
    grant.failures = 4;
    let expected = Effect::Retry {
        due_at: NOW,
        failures: 4,
        fate_unknown: false,
    };
    assert_eq!(settle(&grant, &refused), (expected, ProviderEffect::Stop));
}

fn for_now(status: u16, retry_after: Option<u64>) -> Outcome {
    Outcome::RefusedForNow {
        refusal: Refusal { status, code: None },
        retry_after: retry_after.map(secs),
    }
}

#[test]
fn a_429_cools_the_whole_provider_down_and_a_503_does_if_it_says_how_long() {
    let provider = |outcome| settle(&due_grant(), &outcome).1;
    assert_eq!(
        provider(for_now(429, Some(7))),
        ProviderEffect::CoolDown(NOW + secs(7))
    );
    assert_eq!(
        provider(for_now(429, None)),
        ProviderEffect::CoolDown(NOW + secs(30))
    );
    assert_eq!(
        provider(for_now(503, Some(7))),
        ProviderEffect::CoolDown(NOW + secs(7))
    );
    assert_eq!(provider(for_now(503, None)), ProviderEffect::None);
    assert_eq!(provider(for_now(400, Some(7))), ProviderEffect::None);
}

#[test]
fn transient_failures_back_off_and_an_unexplained_4xx_up_to_an_hour() {
    let waits = |outcome: Outcome, failures| {
        let grant = Grant {
            failures,
            ..due_grant()
        };
        match grant
            .settle(&outcome, &RefreshToken::new("r"), NOW, &policy(), u64::MAX)
            .0
        {
            Effect::Retry {
                due_at,
                failures: counted,
                fate_unknown,
            } => {
                assert_eq!(counted, failures + 1);
                assert!(!fate_unknown);
                due_at.since(NOW)
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(waits(for_now(500, None), 0) <= secs(2));
    assert!(waits(for_now(500, None), 30) <= secs(300));
    assert!(waits(Outcome::NotSent("dns"), 30) <= secs(300));
    assert!(waits(for_now(400, None), 30) > secs(3500));
    assert!(
        waits(for_now(400, Some(1800)), 0) >= secs(1800),
        "Retry-After is kept"
    );
}

#[test]
fn an_unknown_fate_is_retried_by_rotation_class() {
    let due_after = |rotation| {
        let grant = Grant {
            mark: Some(Mark {
                first_sent_at: NOW - secs(5),
                presented: 1,
            }),
            ..due_grant()
        };
        let policy = Policy {
            rotation,
            ..policy()
        };
        let outcome = Outcome::Unknown("deadline");
        match grant
            .settle(&outcome, &RefreshToken::new("r"), NOW, &policy, 0)
            .0
        {
            Effect::Retry {
                due_at,
                fate_unknown,
                ..
            } => {
                assert!(fate_unknown);
                due_at.since(NOW)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(due_after(Rotation::Overlap), secs(1), "an ordinary retry");
    assert_eq!(
        due_after(Rotation::Grace(secs(30))),
        secs(1),
        "within the grace"
    );
    assert_eq!(
        due_after(Rotation::Grace(secs(4))),
        secs(30),
        "the grace is over"
    );
    assert_eq!(
        due_after(Rotation::Strict),
        secs(30),
        "when the access token ends"
    );
    assert_eq!(due_after(Rotation::Unknown), secs(30));
    let outcome = Outcome::Unknown("deadline");
    let (effect, _) = due_grant().settle(&outcome, &RefreshToken::new("r"), NOW, &policy(), 0);
    assert!(
        matches!(
            effect,
            Effect::Retry {
                fate_unknown: false,
                ..
            }
        ),
        "without a mark nothing rotates"
    );
}
