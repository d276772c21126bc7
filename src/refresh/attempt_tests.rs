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
        mode: Mode::Scheduled,
        refresh_not_before: None,
        refresh_while_alive: false,
        refuse_after: DAY,
        refresh_token_warning: 7 * DAY,
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
        refresh_token_end: None,
        scope: Some("files".into()),
        due_at: Some(NOW - secs(30)),
        imported_at: NOW - DAY,
        refreshed_at: Some(NOW - secs(3570)),
        attempted_at: Some(NOW - secs(3570)),
        failures: 0,
        last_failure: None,
        refused_since: None,
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
fn a_keep_alive_that_failed_waits_for_its_backoff_whenever_it_is_looked_at() {
    let mut grant = due_grant();
    let at = grant.keep_alive_at(&policy()).unwrap();
    let retry_at = at + secs(600);
    (grant.failures, grant.due_at) = (3, Some(retry_at));
    for (standing, policy) in [
        (Standing::Paused(PauseReason::Inactive), policy()),
        (Standing::Active, on_demand()),
    ] {
        grant.standing = standing;
        let step = |now| grant.step(Cause::Due, None, now, &policy);
        assert_eq!(step(at + secs(5)), Step::Wait(retry_at));
        assert_eq!(step(retry_at), Step::Refresh);
    }
}

#[test]
fn attempts_keep_the_floor_even_on_demand() {
    let mut grant = due_grant();
    grant.attempted_at = Some(NOW - Duration::from_millis(200));
    let at = NOW + Duration::from_millis(800);
    assert_eq!(demanded(&grant), Step::Wait(at));
    assert_eq!(due(&grant), Step::Wait(at));
}

#[test]
fn after_a_clock_was_set_back_no_attempt_waits_for_it_to_catch_up() {
    for ahead in [secs(1), secs(40), 365 * DAY] {
        let grant = Grant {
            attempted_at: Some(NOW + ahead),
            ..due_grant()
        };
        assert_eq!(due(&grant), Step::Refresh, "{ahead:?}");
        assert_eq!(demanded(&grant), Step::Refresh, "{ahead:?}");
        let failing = Grant {
            failures: 9,
            ..grant
        };
        assert_eq!(demanded(&failing), Step::Refresh, "{ahead:?}");
    }
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
    grant.settle(
        outcome,
        &RefreshToken::new("presented"),
        None,
        NOW,
        &policy(),
        0,
    )
}

fn response() -> TokenResponse {
    TokenResponse {
        access_token: AccessToken::new("new"),
        token_type: "bearer".into(),
        expires_in: Some(secs(3600)),
        jwt_expires_at: None,
        refresh_token: None,
        refresh_token_expires_in: None,
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
    let (effect, _) = due_grant().settle(&outcome, &RefreshToken::new("r"), None, NOW, &profile, 0);
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
        refused_since: None,
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
    assert_eq!(
        provider(for_now(429, Some(0))),
        ProviderEffect::CoolDown(NOW + secs(1))
    );
}

#[test]
fn transient_failures_back_off_and_an_unexplained_4xx_up_to_an_hour() {
    let waits = |outcome: Outcome, failures| {
        let grant = Grant {
            failures,
            ..due_grant()
        };
        match grant
            .settle(
                &outcome,
                &RefreshToken::new("r"),
                None,
                NOW,
                &policy(),
                u64::MAX,
            )
            .0
        {
            Effect::Retry {
                due_at,
                failures: counted,
                fate_unknown,
                ..
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
            .settle(&outcome, &RefreshToken::new("r"), None, NOW, &policy, 0)
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
    let (effect, _) =
        due_grant().settle(&outcome, &RefreshToken::new("r"), None, NOW, &policy(), 0);
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

/// A grant whose token ended `ended` ago and which the server has refused for `refused`, `failures` times.
fn refused_grant(ended: Duration, refused: Duration, failures: u32) -> Grant {
    let mut grant = due_grant();
    grant.access.as_mut().unwrap().expires_at = Some(NOW - ended);
    grant.refused_since = Some(NOW - refused);
    grant.failures = failures;
    grant
}

#[test]
fn an_unexplained_refusal_is_believed_only_a_day_past_expiry_while_others_are_served() {
    let table = [
        // ended, refused for, failures, others served: believed
        (
            DAY + secs(1),
            DAY + secs(300),
            20,
            Some(NOW - secs(5)),
            true,
        ),
        (
            DAY - secs(1),
            DAY + secs(300),
            20,
            Some(NOW - secs(5)),
            false,
        ),
        (DAY, DAY + secs(300), 20, Some(NOW - secs(5)), false),
        // A daemon that was down for three days asks for a day as well.
        (3 * DAY, secs(60), 20, Some(NOW - secs(5)), false),
        (3 * DAY, DAY + secs(1), 20, Some(NOW - secs(5)), true),
        // Nobody was served since: the provider may have trouble with everybody.
        (DAY + secs(1), DAY + secs(300), 20, None, false),
        (
            DAY + secs(1),
            DAY + secs(300),
            20,
            Some(NOW - DAY - secs(301)),
            false,
        ),
        // A clock that was set forward by a day is no day of refusals.
        (
            DAY + secs(1),
            DAY + secs(300),
            4,
            Some(NOW - secs(5)),
            false,
        ),
    ];
    for (ended, refused, failures, served_at, believed) in table {
        let grant = refused_grant(ended, refused, failures);
        for outcome in [
            for_now(400, None),
            for_now(403, None),
            for_now(404, Some(60)),
        ] {
            let presented = RefreshToken::new("r");
            let (effect, provider) =
                grant.settle(&outcome, &presented, served_at, NOW, &policy(), 0);
            let ended_it = effect == Effect::NeedsAuthorization(NeedsReason::Refused);
            assert_eq!(
                ended_it, believed,
                "{ended:?} {refused:?} {failures} {served_at:?}"
            );
            assert_eq!(provider, ProviderEffect::None);
        }
    }
}

#[test]
fn a_provider_that_serves_nobody_any_more_is_not_believed() {
    let believed = |attempted: Duration, served: Duration| {
        let mut grant = refused_grant(9 * DAY, 9 * DAY, 20);
        grant.attempted_at = Some(NOW - attempted);
        let (effect, _) = grant.settle(
            &for_now(400, None),
            &RefreshToken::new("r"),
            Some(NOW - served),
            NOW,
            &policy(),
            0,
        );
        effect == Effect::NeedsAuthorization(NeedsReason::Refused)
    };
    assert!(believed(secs(3600), secs(3599)));
    assert!(
        !believed(secs(3600), secs(3600)),
        "not since the refusal before"
    );
    // A grant that is asked for once in two days, on demand.
    assert!(believed(2 * DAY, DAY - secs(1)));
    assert!(!believed(2 * DAY, DAY), "not lately");
}

#[test]
fn only_an_unexplained_refusal_is_a_verdict_however_long_it_went_on() {
    let grant = refused_grant(9 * DAY, 9 * DAY, 99);
    for outcome in [
        for_now(408, None),
        for_now(429, None),
        for_now(500, None),
        for_now(503, Some(9)),
        for_now(302, None),
        Outcome::Unknown("deadline"),
        Outcome::NotSent("dns"),
        Outcome::RefusedForNow {
            refusal: Refusal {
                status: 400,
                code: Some("temporarily_unavailable"),
            },
            retry_after: None,
        },
    ] {
        let presented = RefreshToken::new("r");
        let (effect, _) = grant.settle(&outcome, &presented, Some(NOW), NOW, &policy(), 0);
        let Effect::Retry { refused_since, .. } = effect else {
            panic!("{outcome:?} is no verdict: {effect:?}");
        };
        assert_eq!(
            refused_since, grant.refused_since,
            "a blip in between forgets nothing"
        );
    }
}

#[test]
fn the_first_unexplained_refusal_is_remembered_and_other_failures_are_not_refusals() {
    let since = |outcome| match settle(&due_grant(), &outcome).0 {
        Effect::Retry { refused_since, .. } => refused_since,
        other => panic!("{other:?}"),
    };
    assert_eq!(since(for_now(400, None)), Some(NOW));
    assert_eq!(since(for_now(500, None)), None);
    assert_eq!(since(Outcome::NotSent("dns")), None);
}

fn on_demand() -> Policy {
    Policy {
        mode: Mode::OnDemand,
        ..policy()
    }
}

#[test]
fn an_on_demand_grant_is_refreshed_for_readers_and_for_its_keep_alive_only() {
    let mut grant = due_grant();
    let step = |grant: &Grant, cause, now| grant.step(cause, None, now, &on_demand());
    let keep_alive_at = grant.keep_alive_at(&on_demand()).unwrap();
    assert_eq!(step(&grant, Cause::Due, NOW), Step::Wait(keep_alive_at));
    assert_eq!(step(&grant, Cause::Demand, NOW), Step::Refresh);
    assert_eq!(
        step(&grant, Cause::Due, keep_alive_at),
        Step::Refresh,
        "nobody pauses it first"
    );
    let outcome = Outcome::Tokens(response());
    let presented = RefreshToken::new("r");
    let (effect, _) = grant.settle(&outcome, &presented, None, NOW, &on_demand(), 0);
    assert!(matches!(effect, Effect::Commit { due_at, .. } if due_at == Some(NOW + 57 * DAY)));
    grant.access = None;
    grant.due_at = Some(NOW);
    assert_eq!(
        step(&grant, Cause::Due, NOW),
        Step::Refresh,
        "its first access token"
    );
}

#[test]
fn a_reader_of_an_on_demand_grant_begins_a_refresh_inside_the_margin_and_not_before() {
    let wanted = |left: u64, policy: &Policy| {
        let mut grant = due_grant();
        grant.access.as_mut().unwrap().expires_at = Some(NOW + secs(left));
        grant.wanted_by_reader(NOW, policy)
    };
    assert!(!wanted(61, &on_demand()));
    assert!(wanted(59, &on_demand()));
    assert!(!wanted(59, &policy()), "the schedule sees to it");
    let mut failing = due_grant();
    failing.failures = 1;
    failing.attempted_at = Some(NOW - secs(1));
    failing.due_at = Some(NOW + secs(60));
    assert!(!failing.wanted_by_reader(NOW, &on_demand()), "it backs off");
}

/// Exact Online: tokens of 600 s, no refresh before they are 570 s old.
#[test]
fn no_refresh_begins_before_the_token_is_as_old_as_the_server_wants() {
    let exact = Policy {
        refresh_not_before: Some(secs(570)),
        ..policy()
    };
    let mut grant = due_grant();
    grant.access = Some(AccessFacts {
        token_type: "bearer".into(),
        obtained_at: NOW - secs(500),
        expires_at: Some(NOW + secs(100)),
    });
    let allowed = Step::Wait(NOW + secs(70));
    for cause in [Cause::Due, Cause::Demand] {
        assert_eq!(
            grant.step(cause, Some(NOW), NOW, &exact),
            allowed,
            "{cause:?}"
        );
        assert_eq!(
            grant.step(cause, Some(NOW), NOW + secs(70), &exact),
            Step::Refresh
        );
    }
    assert_eq!(grant.scheduled_at(&exact), Some(NOW + secs(70)));
    let outcome = Outcome::Tokens(TokenResponse {
        expires_in: Some(secs(600)),
        ..response()
    });
    let (effect, _) = grant.settle(&outcome, &RefreshToken::new("r"), None, NOW, &exact, 0);
    assert!(matches!(effect, Effect::Commit { due_at, .. } if due_at == Some(NOW + secs(570))));
    // One that has ended is never too young.
    grant.access.as_mut().unwrap().expires_at = Some(NOW - secs(1));
    assert_eq!(
        grant.step(Cause::Due, Some(NOW), NOW, &exact),
        Step::Refresh
    );
}

#[test]
fn where_a_refresh_is_taken_only_while_the_token_lives_absence_pauses_nobody() {
    let alive = Policy {
        refresh_while_alive: true,
        ..policy()
    };
    let mut grant = due_grant();
    grant.imported_at = NOW - 10 * DAY;
    grant.unused_refreshes = 1000;
    assert_eq!(grant.step(Cause::Due, None, NOW, &alive), Step::Refresh);
    let without = Policy {
        keep_alive: false,
        ..alive
    };
    assert!(matches!(
        grant.step(Cause::Due, None, NOW, &without),
        Step::Pause(..)
    ));
}

#[test]
fn a_refusal_after_the_tokens_end_is_final_where_a_refresh_is_taken_only_while_it_lives() {
    let alive = Policy {
        refresh_while_alive: true,
        ..policy()
    };
    let invalid_grant = Outcome::RefusedForGood(Refusal {
        status: 400,
        code: Some("invalid_grant"),
    });
    let settled = |left: i64, outcome: &Outcome| {
        let mut grant = due_grant();
        let ends_at = UnixTime::from_millis(NOW.as_millis() + left * 1000);
        grant.access.as_mut().unwrap().expires_at = Some(ends_at);
        grant
            .settle(outcome, &RefreshToken::new("r"), None, NOW, &alive, 0)
            .0
    };
    let expired = Effect::NeedsAuthorization(NeedsReason::Expired);
    assert_eq!(settled(-1, &for_now(400, None)), expired);
    assert_eq!(settled(-1, &invalid_grant), expired);
    assert!(matches!(
        settled(30, &for_now(400, None)),
        Effect::Retry { .. }
    ));
    let revoked = Effect::NeedsAuthorization(NeedsReason::RevokedOrUsedElsewhere);
    assert_eq!(settled(30, &invalid_grant), revoked);
    // The server is asked, whatever our clock says: it may have been set forward.
    for no_verdict in [for_now(503, None), Outcome::NotSent("dns")] {
        assert!(matches!(settled(-1, &no_verdict), Effect::Retry { .. }));
    }
    assert!(matches!(
        settled(-1, &Outcome::Tokens(response())),
        Effect::Commit { .. }
    ));
}

/// What a commit makes of a refresh token's end: the known end, what the answer brings, what is known then.
#[test]
fn a_refresh_tokens_end_is_kept_renewed_or_forgotten_with_the_refresh_token() {
    let end = |days: u32, warned: bool| RefreshTokenEnd {
        expires_at: NOW + days * DAY,
        warn_at: (!warned).then_some(NOW + (days - 7) * DAY),
    };
    let table = [
        // known, a new refresh token, its lifetime: known then
        (None, false, None, None),
        (Some(end(80, false)), false, None, Some(end(80, false))),
        (Some(end(80, true)), false, None, Some(end(80, true))),
        (Some(end(80, false)), true, None, None),
        (None, true, Some(90 * DAY), Some(end(90, false))),
        (
            Some(end(80, true)),
            true,
            Some(90 * DAY),
            Some(end(90, false)),
        ),
        // The same end again, in seconds left: it was told already.
        (
            Some(end(80, true)),
            true,
            Some(80 * DAY - secs(1)),
            Some(end(80, true)),
        ),
        (
            Some(end(80, true)),
            false,
            Some(80 * DAY),
            Some(end(80, true)),
        ),
    ];
    for (known, rotates, lifetime, then) in table {
        let mut grant = due_grant();
        grant.refresh_token_end = known;
        let sent = TokenResponse {
            refresh_token: rotates.then(|| RefreshToken::new("rotated")),
            refresh_token_expires_in: lifetime,
            ..response()
        };
        let (tokens, _) = committed(&grant, sent);
        assert_eq!(
            tokens.refresh_token_end, then,
            "{known:?} {rotates} {lifetime:?}"
        );
    }
}

#[test]
fn a_refresh_token_that_ends_is_warned_of_once_even_while_its_user_is_away() {
    let mut grant = due_grant();
    grant.standing = Standing::Paused(PauseReason::Inactive);
    let warn_at = NOW + 10 * DAY;
    grant.refresh_token_end = Some(RefreshTokenEnd {
        expires_at: NOW + 17 * DAY,
        warn_at: Some(warn_at),
    });
    assert_eq!(
        grant.resting_at(&policy()),
        Some(warn_at),
        "sooner than its keep-alive"
    );
    assert_eq!(due(&grant), Step::Wait(warn_at));
    assert_eq!(grant.warning(NOW), None);
    assert_eq!(grant.warning(warn_at), Some(NOW + 17 * DAY));
    // Told: then only the keep-alive is left.
    grant.refresh_token_end.as_mut().unwrap().warn_at = None;
    assert_eq!(grant.warning(warn_at), None);
    let step = grant.step(Cause::Due, None, warn_at, &policy());
    assert_eq!(step, Step::Wait(grant.keep_alive_at(&policy()).unwrap()));
    let without = Policy {
        keep_alive: false,
        ..policy()
    };
    assert_eq!(grant.step(Cause::Due, None, warn_at, &without), Step::Rest);
}

#[test]
fn what_needs_authorization_is_not_warned_of() {
    let mut grant = due_grant();
    grant.refresh_token_end = Some(RefreshTokenEnd {
        expires_at: NOW,
        warn_at: Some(NOW - DAY),
    });
    assert!(grant.warning(NOW).is_some());
    grant.standing = Standing::NeedsAuthorization(NeedsReason::Refused);
    assert_eq!(grant.warning(NOW), None);
}

#[test]
fn a_clock_that_was_set_back_leaves_each_token_what_was_left_of_its_life() {
    // Obtained half an hour before the clock was set back by eight hours.
    let hours = |n: u64| secs(3600 * n);
    let grant = Grant {
        attempted_at: Some(NOW),
        refreshed_at: Some(NOW),
        access: Some(AccessFacts {
            token_type: "bearer".into(),
            obtained_at: NOW,
            expires_at: Some(NOW + hours(1)),
        }),
        due_at: Some(NOW + secs(3540)),
        ..due_grant()
    };
    let now = NOW + secs(1800) - hours(8);
    let after = grant.restamped(now, hours(8)).unwrap();
    assert_eq!(after.expires_at(), Some(now + secs(1800)));
    assert_eq!(after.due_at, Some(now + secs(1740)), "no refresh is missed");
    assert_eq!(after.attempted_at, Some(now - secs(1800)));
    assert_eq!(
        after.imported_at, grant.imported_at,
        "from before is from before"
    );
    assert_eq!(after.restamped(now, hours(8)), None);
    // By how much is not known: all of its lifetime, counted from now.
    let after = grant.restamped(now, Duration::ZERO).unwrap();
    assert_eq!(after.expires_at(), Some(now + hours(1)));
    assert_eq!(after.due_at, Some(now + secs(3540)));
    assert_eq!(
        grant.restamped(NOW + secs(1), hours(8)),
        None,
        "nothing is from the future"
    );
}

#[test]
fn a_clock_that_was_set_back_keeps_a_backoff_as_long_as_it_was() {
    let grant = Grant {
        failures: 3,
        attempted_at: Some(NOW),
        due_at: Some(NOW + secs(8)),
        refused_since: Some(NOW - secs(60)),
        standing_since: NOW - secs(90),
        mark: Some(Mark {
            first_sent_at: NOW - secs(5),
            presented: 1,
        }),
        access: None,
        ..due_grant()
    };
    let now = NOW - DAY - DAY;
    let after = grant.restamped(now, 2 * DAY).unwrap();
    assert_eq!(after.due_at, Some(now + secs(8)));
    assert_eq!(after.refused_since, Some(now - secs(60)));
    assert_eq!(after.standing_since, now - secs(90));
    assert_eq!(
        after.mark.map(|mark| mark.first_sent_at),
        Some(now - secs(5))
    );
    assert!(after.imported_at <= now);
    let after = grant.restamped(now, Duration::ZERO).unwrap();
    let sent_at = after.mark.map(|mark| mark.first_sent_at);
    assert_eq!(sent_at, Some(UnixTime::EPOCH), "no grace can be relied on");
}

#[test]
fn a_refresh_token_that_ends_before_the_access_token_is_used_before_its_end() {
    let mut grant = due_grant();
    let access = |obtained_at| AccessFacts {
        token_type: "bearer".into(),
        obtained_at,
        expires_at: Some(obtained_at + DAY),
    };
    let ends = |expires_at| {
        Some(RefreshTokenEnd {
            expires_at,
            warn_at: None,
        })
    };
    grant.access = Some(access(NOW));
    grant.refresh_token_end = None;
    let usual = grant.scheduled_at(&policy()).unwrap();
    grant.refresh_token_end = ends(NOW + 2 * DAY);
    assert_eq!(grant.scheduled_at(&policy()), Some(usual), "it ends later");
    grant.refresh_token_end = ends(NOW - secs(1));
    assert_eq!(grant.scheduled_at(&policy()), Some(usual), "nothing to win");

    let end = NOW + DAY / 2;
    grant.refresh_token_end = ends(end);
    // Using it puts off nothing: a few requests, each nearer to the end, and no storm.
    let mut requests = 0;
    loop {
        let due_at = grant.scheduled_at(&policy()).unwrap();
        let obtained_at = grant.access.as_ref().unwrap().obtained_at;
        let due_at = due_at.max(obtained_at + policy().floor);
        if due_at >= end {
            break;
        }
        requests += 1;
        grant.access = Some(access(due_at));
    }
    assert!((1..=12).contains(&requests), "{requests}");
}
