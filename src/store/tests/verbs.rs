use super::*;
use crate::refresh::grant::{AccessFacts, GrantId, Mark, NeedsReason, PauseReason};
use crate::refresh::pacing::Unreachable;

const ADMIN: Standing = Standing::Paused(PauseReason::Admin);

#[tokio::test]
async fn a_new_grant_never_takes_another_ones_row_or_a_deleted_ones_number() {
    let bench = Bench::new();
    let anna = bench.import("anna").await;
    bench.edit("UPDATE sqlite_sequence SET seq = 0 WHERE name = 'grants'");
    let bea = bench.import("bea").await;
    assert!(bea.id > anna.id);
    assert_eq!(bench.store.grant(&anna.key).await, Ok(Some(anna)));
    bench.store.delete(&bea.key, at(1), false).await.unwrap();
    assert!(bench.import("cleo").await.id > bea.id);

    for seq in ["'many'", "9223372036854775807"] {
        bench.edit(&format!(
            "UPDATE sqlite_sequence SET seq = {seq} WHERE name = 'grants'"
        ));
        let dora = bench.store.import(import("dora")).await;
        assert_eq!(dora.unwrap_err(), StoreError::Damaged);
        assert_eq!(bench.store.grant(&key("dora")).await, Ok(None));
    }
}

#[tokio::test]
async fn an_import_is_stored_whole_and_survives_a_restart() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    assert_eq!((grant.generation, grant.version), (1, 1));
    assert_eq!(grant.key, key("anna"));
    assert_eq!(
        grant.access,
        Some(AccessFacts {
            token_type: "Bearer".into(),
            obtained_at: at(0),
            expires_at: Some(at(3600))
        })
    );
    assert!(grant.has_refresh_token);
    assert_eq!((grant.due_at, grant.imported_at), (Some(at(3000)), at(0)));
    assert_eq!(
        (grant.standing, grant.standing_since),
        (Standing::Active, at(0))
    );
    assert_eq!(
        (grant.refreshed_at, grant.attempted_at, grant.mark),
        (None, None, None)
    );

    let bench = bench.reopen().await;
    let store = &bench.store;
    assert_eq!(
        store.grant(&key("anna")).await.unwrap().as_ref(),
        Some(&grant)
    );
    assert_eq!(
        store.grant_by_id(grant.id).await.unwrap().as_ref(),
        Some(&grant)
    );
    let read = store.readable(&key("anna"), at(1)).await.unwrap().unwrap();
    assert_eq!(read.access_token.unwrap().expose(), "access-anna");
    let attempt = store.attemptable(grant.id, at(1)).await.unwrap().unwrap();
    assert_eq!(attempt.refresh_token.unwrap().expose(), "refresh-anna");
    assert!(store.readable(&key("bert"), at(1)).await.unwrap().is_none());
    assert!(
        store
            .attemptable(GrantId(99), at(1))
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_refresh_token_alone_is_enough() {
    let bench = Bench::new();
    let alone = TokenSet {
        access_token: None,
        scope: None,
        ..tokens("anna")
    };
    let Imported::Created(grant) = bench
        .store
        .import(Import {
            tokens: alone,
            ..import("anna")
        })
        .await
        .unwrap()
    else {
        panic!("not created")
    };
    assert_eq!(grant.access, None);
    let attempt = bench
        .store
        .attemptable(grant.id, at(0))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(attempt.refresh_token.unwrap().expose(), "refresh-anna");
    let read = bench
        .store
        .readable(&key("anna"), at(0))
        .await
        .unwrap()
        .unwrap();
    assert!(read.access_token.is_none());
    assert_eq!(read.grant.standing, Standing::Active);
}

#[tokio::test]
async fn a_token_set_commits_only_on_the_generation_that_was_presented() {
    let bench = Bench::new();
    let store = &bench.store;
    let grant = bench.import("anna").await;
    let now = applied(store.commit_tokens(commit(&grant, "second")).await);
    assert_eq!((now.generation, now.version), (2, 2));
    assert_eq!(
        (now.refreshed_at, now.attempted_at),
        (Some(at(100)), Some(at(100)))
    );
    assert_eq!((now.due_at, now.unused_refreshes), (Some(at(6000)), 1));

    // The answer to a superseded attempt overwrites nothing, and its set is to be revoked (I3).
    let lost = store.commit_tokens(commit(&grant, "late")).await.unwrap();
    assert_eq!(lost, Cas::Lost);
    let read = store.readable(&key("anna"), at(1)).await.unwrap().unwrap();
    assert_eq!(read.grant, now);
    assert_eq!(read.access_token.unwrap().expose(), "access-second");
    let expected = [("hubspot".into(), TokenKind::Refresh, "refresh-late".into())];
    assert_eq!(waiting_revocations(store).await, expected);
}

#[tokio::test]
async fn a_set_for_a_deleted_grant_is_revoked() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    bench
        .store
        .delete(&key("anna"), at(1), false)
        .await
        .unwrap()
        .unwrap();
    let mut access_only = commit(&grant, "late");
    access_only.tokens = Arc::new(TokenSet {
        refresh_token: None,
        ..tokens("late")
    });
    assert_eq!(
        bench.store.commit_tokens(access_only).await.unwrap(),
        Cas::Lost
    );
    assert_eq!(
        bench
            .store
            .commit_tokens(commit(&grant, "later"))
            .await
            .unwrap(),
        Cas::Lost
    );
    let expected = [
        ("hubspot".into(), TokenKind::Access, "access-late".into()),
        ("hubspot".into(), TokenKind::Refresh, "refresh-later".into()),
    ];
    assert_eq!(waiting_revocations(&bench.store).await, expected);
}

#[tokio::test]
async fn a_lost_set_whose_refresh_token_is_the_grants_own_is_not_revoked() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    applied(bench.store.commit_tokens(commit(&grant, "anna")).await);
    // Refresh tokens stay the same here: revoking this one would end the grant.
    assert_eq!(
        bench
            .store
            .commit_tokens(commit(&grant, "anna"))
            .await
            .unwrap(),
        Cas::Lost
    );
    assert_eq!(bench.store.revocations_waiting().await.unwrap(), 0);
}

#[tokio::test]
async fn a_mark_counts_the_requests_whose_fate_is_unknown() {
    let bench = Bench::new();
    let store = &bench.store;
    let grant = bench.import("anna").await;
    let mark = |presented| {
        Some(Mark {
            first_sent_at: at(10),
            presented,
        })
    };

    let begun = applied(store.begin_attempt(grant.id, 1, None, at(10)).await);
    assert_eq!((begun.mark, begun.version), (mark(1), grant.version));
    let unknown = Failure {
        fate_unknown: true,
        ..failure("timeout")
    };
    let failed = applied(store.record_failure(grant.id, 1, unknown).await);
    assert_eq!(failed.mark, mark(1));
    assert_eq!(
        (failed.failures, failed.last_failure.as_deref()),
        (1, Some("timeout"))
    );
    assert_eq!(
        (failed.attempted_at, failed.due_at),
        (Some(at(100)), Some(at(200)))
    );

    assert_eq!(
        applied(store.begin_attempt(grant.id, 1, None, at(20)).await).mark,
        mark(2)
    );
    let refused = failure("http-503");
    assert_eq!(
        applied(store.record_failure(grant.id, 1, refused).await).mark,
        mark(1)
    );

    let bench = bench.reopen().await;
    let found = bench
        .store
        .attemptable(grant.id, at(40))
        .await
        .unwrap()
        .unwrap()
        .grant;
    assert_eq!(found.mark, mark(1));
    let now = applied(bench.store.commit_tokens(commit(&found, "second")).await);
    assert_eq!((now.mark, now.failures, now.last_failure), (None, 0, None));
}

#[tokio::test]
async fn no_mark_is_written_on_a_row_that_is_not_as_it_was_read() {
    let bench = Bench::new();
    let store = &bench.store;
    let grant = bench.import("anna").await;
    let begin = async |grant: &Grant| {
        let unchanged = Some((grant.version, grant.mark));
        let begun = store.begin_attempt(grant.id, 1, unchanged, at(10)).await;
        begun.unwrap()
    };
    let due = applied(store.set_due(grant.id, 1, Some(at(7))).await);
    let before = bench.dump();
    assert_eq!(begin(&grant).await, Cas::Lost, "its version has changed");
    assert_eq!(bench.dump(), before);
    let Cas::Applied(marked) = begin(&due).await else {
        panic!("it is as it was read")
    };
    assert_eq!(begin(&due).await, Cas::Lost, "its mark has changed");
    let Cas::Applied(again) = begin(&marked).await else {
        panic!("it is as it was read")
    };
    assert_eq!(again.mark.unwrap().presented, 2);
}

#[tokio::test]
async fn a_mark_goes_with_the_last_request_whose_fate_is_known() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    applied(bench.store.begin_attempt(grant.id, 1, None, at(10)).await);
    let now = applied(
        bench
            .store
            .record_failure(grant.id, 1, failure("connect"))
            .await,
    );
    assert_eq!(now.mark, None);
    assert!(bench.dump()["marks"].is_empty());
}

#[tokio::test]
async fn nothing_is_written_for_a_generation_that_has_passed() {
    let bench = Bench::new();
    let store = &bench.store;
    let grant = bench.import("anna").await;
    applied(store.commit_tokens(commit(&grant, "second")).await);
    let before = bench.dump();
    assert_eq!(
        store.begin_attempt(grant.id, 1, None, at(9)).await.unwrap(),
        Cas::Lost
    );
    assert_eq!(
        store
            .record_failure(grant.id, 1, failure("x"))
            .await
            .unwrap(),
        Cas::Lost
    );
    assert_eq!(store.set_due(grant.id, 1, None).await.unwrap(), Cas::Lost);
    assert_eq!(bench.dump(), before);
    assert_eq!(
        store
            .begin_attempt(GrantId(99), 1, None, at(9))
            .await
            .unwrap(),
        Cas::Lost
    );
}

#[tokio::test]
async fn a_verdict_changes_the_standing_and_its_date() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    let reason = NeedsReason::LostRotation;
    let verdict = Failure {
        needs_authorization: Some(reason),
        due_at: None,
        ..failure("invalid_grant")
    };
    let now = applied(bench.store.record_failure(grant.id, 1, verdict).await);
    assert_eq!(now.standing, Standing::NeedsAuthorization(reason));
    assert_eq!((now.standing_since, now.due_at), (at(100), None));
    let read = bench
        .store
        .readable(&key("anna"), at(101))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read.access_token.unwrap().expose(), "access-anna", "I4");
}

#[tokio::test]
async fn a_pause_that_came_during_an_attempt_outlives_it() {
    let bench = Bench::new();
    let store = &bench.store;
    for (user, standing) in [
        ("anna", ADMIN),
        ("bert", Standing::Paused(PauseReason::Held)),
    ] {
        let grant = bench.import(user).await;
        store
            .set_standing(grant.id, standing, None, By::Admin, at(5))
            .await
            .unwrap()
            .unwrap();
        let failed = applied(store.record_failure(grant.id, 1, failure("http-503")).await);
        assert_eq!((failed.standing, failed.due_at), (standing, None));
        let now = applied(
            store
                .commit_tokens(commit(&grant, &format!("{user}2")))
                .await,
        );
        assert_eq!(
            (now.standing, now.standing_since, now.due_at),
            (standing, at(5), None)
        );
        assert_eq!(now.generation, 2);
    }
    // A pause for inactivity is the outcome's to lift, and a keep-alive may keep an admin's.
    let grant = bench.import("carl").await;
    let inactive = Standing::Paused(PauseReason::Inactive);
    store
        .set_standing(grant.id, inactive, Some(at(9)), By::Admin, at(5))
        .await
        .unwrap()
        .unwrap();
    let now = applied(store.commit_tokens(commit(&grant, "carl2")).await);
    assert_eq!(
        (now.standing, now.standing_since),
        (Standing::Active, at(100))
    );
    store
        .set_standing(now.id, ADMIN, Some(at(9)), By::Admin, at(5))
        .await
        .unwrap()
        .unwrap();
    let kept = TokenCommit {
        standing: ADMIN,
        ..commit(&now, "carl3")
    };
    assert_eq!(
        applied(store.commit_tokens(kept).await).due_at,
        Some(at(6000))
    );
}

#[tokio::test]
async fn a_standing_is_dated_from_when_it_began() {
    let bench = Bench::new();
    let id = bench.import("anna").await.id;
    let set = |standing, secs| {
        bench
            .store
            .set_standing(id, standing, None, By::Admin, at(secs))
    };
    assert_eq!(
        set(ADMIN, 10).await.unwrap().unwrap().standing_since,
        at(10)
    );
    let again = set(ADMIN, 20).await.unwrap().unwrap();
    assert_eq!(
        (again.standing_since, again.generation, again.version),
        (at(10), 1, 3)
    );
    assert_eq!(
        set(Standing::Active, 30)
            .await
            .unwrap()
            .unwrap()
            .standing_since,
        at(30)
    );
    let gone = bench
        .store
        .set_standing(GrantId(99), ADMIN, None, By::Admin, at(1))
        .await
        .unwrap();
    assert_eq!(gone, None);
}

#[tokio::test]
async fn a_refresh_token_in_the_history_changes_nothing() {
    let bench = Bench::new();
    let store = &bench.store;
    let grant = bench.import("anna").await;
    let now = applied(store.commit_tokens(commit(&grant, "second")).await);
    let before = bench.dump();
    for (name, replace) in [("anna", false), ("anna", true), ("second", true)] {
        let again = Import {
            replace,
            ..replacing("anna", name)
        };
        assert_eq!(
            store.import(again).await.unwrap(),
            Imported::Unchanged(now.clone())
        );
    }
    let other = Import {
        tokens: tokens("other"),
        ..import("anna")
    };
    assert_eq!(store.import(other).await.unwrap(), Imported::Exists(now));
    assert_eq!(bench.dump(), before);
    // Another user's refresh token is another matter.
    let bert = Import {
        tokens: tokens("anna"),
        ..import("bert")
    };
    assert!(matches!(
        store.import(bert).await.unwrap(),
        Imported::Created(_)
    ));
}

#[tokio::test]
async fn marks_that_an_earlier_process_left_are_made_due_unless_an_admin_paused_their_grants() {
    let bench = Bench::new();
    let store = &bench.store;
    let mut ids = Vec::new();
    for (user, standing) in [
        ("anna", Standing::Active),
        ("bert", Standing::Paused(PauseReason::Inactive)),
        ("carl", Standing::Paused(PauseReason::Admin)),
    ] {
        let grant = bench.import(user).await;
        applied(store.begin_attempt(grant.id, 1, None, at(10)).await);
        let put = store.set_standing(grant.id, standing, Some(at(5_000)), By::Admin, at(11));
        put.await.unwrap().unwrap();
        ids.push(grant.id);
    }
    ids.push(bench.import("unmarked").await.id);
    let before = store.grant_by_id(ids[3]).await.unwrap();

    assert_eq!(store.make_marked_due("another").await.unwrap(), []);
    assert_eq!(store.make_marked_due("hubspot").await.unwrap().len(), 2);

    for (id, due_at) in [(ids[0], at(10)), (ids[1], at(10)), (ids[2], at(5_000))] {
        let grant = store.grant_by_id(id).await.unwrap().unwrap();
        assert_eq!(grant.due_at, Some(due_at), "{}", grant.key.user);
    }
    assert_eq!(store.grant_by_id(ids[3]).await.unwrap(), before);
}

#[tokio::test]
async fn a_replaced_grant_goes_on_with_the_next_generation() {
    let bench = Bench::new();
    let store = &bench.store;
    let grant = bench.import("anna").await;
    applied(store.begin_attempt(grant.id, 1, None, at(1)).await);
    let unknown = Failure {
        fate_unknown: true,
        ..failure("timeout")
    };
    applied(store.record_failure(grant.id, 1, unknown).await);
    let held = Import {
        standing: Standing::Paused(PauseReason::Held),
        due_at: None,
        ..replacing("anna", "new")
    };
    let Imported::Replaced(now) = store.import(held).await.unwrap() else {
        panic!()
    };
    assert_eq!(
        (now.id, now.generation, now.mark, now.failures),
        (grant.id, 2, None, 0)
    );
    assert_eq!((now.last_failure, now.attempted_at), (None, None));
    assert_eq!((now.standing_since, now.imported_at), (at(50), at(50)));
    assert_eq!(store.revocations_waiting().await.unwrap(), 0);
}

#[tokio::test]
async fn a_grant_remembers_its_last_refresh_tokens_only() {
    let bench = Bench::new();
    let store = &bench.store;
    let mut grant = bench.import("anna").await;
    for nth in 0..fingerprints::REMEMBERED {
        grant = applied(
            store
                .commit_tokens(commit(&grant, &format!("t{nth}")))
                .await,
        );
    }
    let known = store.import(replacing("anna", "t0")).await.unwrap();
    assert!(matches!(known, Imported::Unchanged(_)));
    let forgotten = store.import(replacing("anna", "anna")).await.unwrap();
    assert!(matches!(forgotten, Imported::Replaced(_)));
}

#[tokio::test]
async fn a_deleted_grant_leaves_only_a_nameless_revocation() {
    let bench = Bench::new();
    let store = &bench.store;
    let grant = bench.import("anna").await;
    applied(store.begin_attempt(grant.id, 1, None, at(1)).await);
    store
        .note_activity(vec![("default".into(), "anna".into(), at(1))])
        .await
        .unwrap();
    assert_eq!(
        store
            .delete(&key("anna"), at(2), true)
            .await
            .unwrap()
            .unwrap()
            .id,
        grant.id
    );
    assert_eq!(store.delete(&key("anna"), at(2), true).await.unwrap(), None);
    let dump = bench.dump();
    for table in ["grants", "marks", "history", "activity"] {
        assert!(dump[table].is_empty(), "{table}");
    }
    assert!(!format!("{:?}", dump["revocations"]).contains("anna"));

    let due = store.revocations_due("hubspot", at(2), 10).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!(
        (due[0].provider.as_str(), due[0].kind),
        ("hubspot", TokenKind::Refresh)
    );
    assert_eq!(due[0].token.as_str(), "refresh-anna");
    assert_eq!((due[0].tries, due[0].created_at), (0, at(2)));
    assert!(!format!("{:?}", due[0]).contains("refresh-anna"));

    store.revocation_later(due[0].id, at(60)).await.unwrap();
    assert!(
        store
            .revocations_due("hubspot", at(59), 10)
            .await
            .unwrap()
            .is_empty()
    );
    let later = store.revocations_due("hubspot", at(60), 10).await.unwrap();
    assert_eq!(
        (later[0].tries, later[0].token.as_str()),
        (1, "refresh-anna")
    );
    assert_eq!(store.revocations_waiting().await.unwrap(), 1);
    store.revocation_done(later[0].id).await.unwrap();
    assert_eq!(store.revocations_waiting().await.unwrap(), 0);
}

#[tokio::test]
async fn row_numbers_are_never_used_again() {
    let bench = Bench::new();
    let first = bench.import("anna").await.id;
    bench.store.delete(&key("anna"), at(1), true).await.unwrap();
    let job = bench
        .store
        .revocations_due("hubspot", at(1), 1)
        .await
        .unwrap()[0]
        .id;
    bench.store.revocation_done(job).await.unwrap();
    let bench = bench.reopen().await;
    assert!(bench.import("anna").await.id > first);
    bench.store.delete(&key("anna"), at(1), true).await.unwrap();
    assert!(
        bench
            .store
            .revocations_due("hubspot", at(1), 1)
            .await
            .unwrap()[0]
            .id
            > job
    );
}

#[tokio::test]
async fn due_rows_come_in_order_and_page_by_page() {
    let bench = Bench::new();
    let store = &bench.store;
    let mut ids = Vec::new();
    for (user, due) in [
        ("a", Some(30)),
        ("b", Some(10)),
        ("c", Some(30)),
        ("d", None),
        ("e", Some(20)),
    ] {
        let import = Import {
            due_at: due.map(at),
            ..import(user)
        };
        let Imported::Created(grant) = store.import(import).await.unwrap() else {
            panic!()
        };
        ids.push(grant.id);
    }
    let elsewhere = GrantKey {
        provider: "google".into(),
        ..key("a")
    };
    store
        .import(Import {
            key: elsewhere,
            due_at: Some(at(5)),
            ..import("a")
        })
        .await
        .unwrap();
    assert_eq!(store.next_due_at().await.unwrap(), Some(at(5)));

    let page = |after, until, limit| store.due_within("hubspot", after, at(until), limit);
    let shown = |rows: Vec<Due>| {
        rows.iter()
            .map(|row| (row.due_at, row.id))
            .collect::<Vec<_>>()
    };
    let [b, e, a, c] = [
        (at(10), ids[1]),
        (at(20), ids[4]),
        (at(30), ids[0]),
        (at(30), ids[2]),
    ];
    assert_eq!(shown(page(None, 30, 9).await.unwrap()), [b, e, a, c]);
    assert_eq!(shown(page(None, 29, 9).await.unwrap()), [b, e]);
    assert_eq!(shown(page(None, 30, 3).await.unwrap()), [b, e, a]);
    assert_eq!(shown(page(Some(a), 30, 3).await.unwrap()), [c]);
    assert_eq!(shown(page(Some(c), 30, 3).await.unwrap()), []);
    let row = page(None, 10, 1).await.unwrap()[0];
    assert_eq!((row.expires_at, row.version), (Some(at(3600)), 1));

    let moved = applied(store.set_due(ids[1], 1, Some(at(40))).await);
    assert_eq!(
        (moved.due_at, moved.version, moved.generation),
        (Some(at(40)), 2, 1)
    );
    assert_eq!(shown(page(None, 30, 1).await.unwrap()), [e]);
}

#[tokio::test]
async fn an_empty_store_has_nothing_due() {
    let bench = Bench::new();
    assert_eq!(bench.store.next_due_at().await.unwrap(), None);
    assert_eq!(
        bench
            .store
            .due_within("x", None, UnixTime::MAX, 9)
            .await
            .unwrap(),
        []
    );
    assert_eq!(bench.store.counts().await.unwrap(), []);
}

#[tokio::test]
async fn lists_filter_and_page() {
    let bench = Bench::new();
    let store = &bench.store;
    let scopes = [
        Some("crm.read crm.write"),
        Some("crm.write,files"),
        Some(""),
        None,
    ];
    for (nth, scope) in scopes.into_iter().enumerate() {
        let user = format!("u{nth}");
        let tokens = TokenSet {
            scope: scope.map(Into::into),
            ..tokens(&user)
        };
        store
            .import(Import {
                tokens,
                ..import(&user)
            })
            .await
            .unwrap();
    }
    let elsewhere = GrantKey {
        namespace: "other".into(),
        provider: "google".into(),
        ..key("u0")
    };
    store
        .import(Import {
            key: elsewhere,
            ..import("u0")
        })
        .await
        .unwrap();
    let u1 = store.grant(&key("u1")).await.unwrap().unwrap().id;
    store
        .set_standing(u1, ADMIN, None, By::Admin, at(1))
        .await
        .unwrap();

    let list = |filter| async {
        let grants = store.list(filter, None, 100).await.unwrap();
        grants
            .iter()
            .map(|g| format!("{}/{}", g.key.provider, g.key.user))
            .collect::<Vec<_>>()
    };
    let some = |text: &str| Some(text.to_owned());
    let all = [
        "hubspot/u0",
        "hubspot/u1",
        "hubspot/u2",
        "hubspot/u3",
        "google/u0",
    ];
    assert_eq!(list(Filter::default()).await, all);
    assert_eq!(
        list(Filter {
            provider: some("google"),
            ..Filter::default()
        })
        .await,
        ["google/u0"]
    );
    assert_eq!(
        list(Filter {
            namespace: some("other"),
            ..Filter::default()
        })
        .await,
        ["google/u0"]
    );
    let u0 = ["hubspot/u0", "google/u0"];
    assert_eq!(
        list(Filter {
            user: some("u0"),
            ..Filter::default()
        })
        .await,
        u0
    );
    assert_eq!(
        list(Filter {
            state: some("paused"),
            ..Filter::default()
        })
        .await,
        ["hubspot/u1"]
    );
    let active = ["hubspot/u0", "hubspot/u2", "hubspot/u3", "google/u0"];
    assert_eq!(
        list(Filter {
            state: some("active"),
            ..Filter::default()
        })
        .await,
        active
    );
    assert!(
        list(Filter {
            state: some("x' OR 1"),
            ..Filter::default()
        })
        .await
        .is_empty()
    );
    let lacks = |scope| {
        list(Filter {
            missing_scope: some(scope),
            ..Filter::default()
        })
    };
    assert_eq!(
        lacks("files").await,
        ["hubspot/u0", "hubspot/u2", "hubspot/u3", "google/u0"]
    );
    assert_eq!(lacks("crm.write").await, ["hubspot/u2", "hubspot/u3"]);
    assert_eq!(lacks("crm.writ").await, all);

    let page = store.list(Filter::default(), Some(u1), 2).await.unwrap();
    assert_eq!(
        page.iter().map(|g| g.key.user.as_str()).collect::<Vec<_>>(),
        ["u2", "u3"]
    );
    let users = store.grants_of_user("default", "u0").await.unwrap();
    assert_eq!(users.len(), 1);
}

#[tokio::test]
async fn rescheduling_pages_through_active_grants_without_failures() {
    let bench = Bench::new();
    let store = &bench.store;
    let mut grants = Vec::new();
    for user in ["a", "b", "c", "d", "e"] {
        grants.push(bench.import(user).await);
    }
    store
        .set_standing(grants[1].id, ADMIN, None, By::Admin, at(1))
        .await
        .unwrap();
    applied(
        store
            .record_failure(grants[2].id, 1, failure("http-503"))
            .await,
    );
    let due = || -> Rescheduler { Box::new(|grant: &Grant| grant.due_at.map(|_| at(2900))) };
    let (next, changed) = store.reschedule("hubspot", None, 3, due()).await.unwrap();
    assert_eq!((next, changed), (Some(grants[2].id), 1));
    let (next, changed) = store.reschedule("hubspot", next, 3, due()).await.unwrap();
    assert_eq!((next, changed), (None, 2));
    let mut dues = Vec::new();
    for grant in store.list(Filter::default(), None, 9).await.unwrap() {
        dues.push((grant.due_at, grant.version));
    }
    let moved = (Some(at(2900)), 2);
    assert_eq!(dues, [moved, (None, 2), (Some(at(200)), 2), moved, moved]);
    assert_eq!(
        store.reschedule("hubspot", None, 9, due()).await.unwrap(),
        (None, 0)
    );
}

#[tokio::test]
async fn a_renewal_pages_through_what_is_old_and_its_counts_are_the_cores() {
    let bench = Bench::new();
    let store = &bench.store;
    let mut grants = Vec::new();
    for user in ["a", "b", "c", "d", "e", "f"] {
        grants.push(bench.import(user).await);
    }
    let before = at(50);
    let standings = Standing::ALL;
    for (grant, standing) in grants
        .iter()
        .zip([standings[1], standings[3], standings[8]])
    {
        let set = store.set_standing(grant.id, standing, None, By::Admin, at(1));
        set.await.unwrap();
    }
    applied(
        store
            .record_failure(grants[3].id, 1, failure("http-503"))
            .await,
    );
    applied(store.commit_tokens(commit(&grants[4], "new")).await);

    let (mut after, mut pages) = (None, 0);
    loop {
        let page = store.make_renewals_due("hubspot", before, after, 2);
        after = page.await.unwrap();
        pages += 1;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, 4, "three full ones, and an empty one that ends it");
    let listed = store.list(Filter::default(), None, 9).await.unwrap();
    let dues: Vec<_> = listed.iter().map(|grant| grant.due_at).collect();
    let (renewed, backs_off, new) = (Some(before), Some(at(200)), Some(at(6000)));
    assert_eq!(dues, [renewed, None, None, backs_off, new, renewed]);
    let waiting = |grant: &&Grant| grant.awaits_renewal(before);
    let counts = store.renewal_counts("hubspot", before).await.unwrap();
    assert_eq!(
        (counts.left, counts.resting, counts.grants),
        (listed.iter().filter(waiting).count() as u64, 2, 6)
    );
    assert_eq!(counts.left, 3);

    // The core's word and the count's, for every standing that there is.
    for standing in Standing::ALL {
        let set = store.set_standing(grants[5].id, standing, None, By::Admin, at(2));
        set.await.unwrap();
        let grant = store.grant_by_id(grants[5].id).await.unwrap().unwrap();
        let counts = store.renewal_counts("hubspot", before).await.unwrap();
        let counted = counts.left == 3;
        assert_eq!(counted, grant.awaits_renewal(before), "{standing}");
    }
}

#[tokio::test]
async fn activity_never_goes_back() {
    let bench = Bench::new();
    bench.import("anna").await;
    let note = |secs| {
        bench
            .store
            .note_activity(vec![("default".into(), "anna".into(), at(secs))])
    };
    assert_eq!(
        bench.store.last_activity("default", "anna").await.unwrap(),
        None
    );
    for (noted, is) in [(10, 10), (5, 10), (11, 11)] {
        note(noted).await.unwrap();
        assert_eq!(
            bench.store.last_activity("default", "anna").await.unwrap(),
            Some(at(is))
        );
    }
    assert_eq!(
        bench.store.last_activity("other", "anna").await.unwrap(),
        None
    );
}

#[tokio::test]
async fn a_note_that_comes_after_the_last_grant_was_deleted_does_not_bring_the_user_back() {
    let bench = Bench::new();
    bench.import("anna").await;
    bench
        .store
        .delete(&key("anna"), at(1), false)
        .await
        .unwrap();
    let note = ("default".into(), "anna".into(), at(2));
    bench.store.note_activity(vec![note]).await.unwrap();
    assert_eq!(
        bench.store.last_activity("default", "anna").await.unwrap(),
        None
    );
}

#[tokio::test]
async fn a_refresh_tokens_end_and_an_unexplained_refusal_are_kept_until_a_new_set_or_an_import() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    assert_eq!(grant.refresh_token_end, tokens("anna").refresh_token_end);
    let refused = Failure {
        refused_since: Some(at(7)),
        ..failure("http-400")
    };
    let store = &bench.store;
    let failed = applied(store.record_failure(grant.id, 1, refused.clone()).await);
    assert_eq!(failed.refused_since, Some(at(7)));
    let warned = applied(store.warn_of_end(grant.id, 1, at(8)).await);
    let end = warned.refresh_token_end.unwrap();
    assert_eq!((end.expires_at, end.warn_at), (at(90_000), None));
    assert!(warned.version > failed.version);
    assert_eq!(store.warn_of_end(grant.id, 9, at(8)).await, Ok(Cas::Lost));
    let refreshed = applied(store.commit_tokens(commit(&warned, "second")).await);
    assert_eq!(refreshed.refused_since, None);
    assert_eq!(
        refreshed.refresh_token_end,
        tokens("second").refresh_token_end
    );
    applied(store.record_failure(grant.id, 2, refused).await);
    let import = Import {
        replace: true,
        ..replacing("anna", "third")
    };
    let Imported::Replaced(imported) = store.import(import).await.unwrap() else {
        panic!("not replaced");
    };
    assert_eq!(imported.refused_since, None);
}

#[tokio::test]
async fn a_providers_state_survives_a_restart() {
    let bench = Bench::new();
    let state = ProviderState {
        stopped: Some("invalid_client".into()),
        stopped_credentials: Some(bench.store.fingerprint("client", b"secret").to_vec()),
        stopped_at: Some(at(1)),
        cool_down_until: Some(at(2)),
        paused: true,
        schedule: Some("60000".into()),
        served_at: Some(at(3)),
        unreachable: Some(Unreachable {
            since: at(4),
            probe_at: at(5),
        }),
        renew_before: Some(at(6)),
    };
    bench
        .store
        .set_provider_state("hubspot", ProviderState::default())
        .await
        .unwrap();
    bench
        .store
        .set_provider_state("hubspot", state.clone())
        .await
        .unwrap();
    let bench = bench.reopen().await;
    let states = bench.store.provider_states().await.unwrap();
    assert_eq!(states, BTreeMap::from([("hubspot".into(), state.clone())]));
    let same = bench.store.fingerprint("client", b"secret").to_vec();
    assert_eq!(state.stopped_credentials, Some(same));
}

#[tokio::test]
async fn a_purge_takes_what_is_old_and_nobodys() {
    let bench = Bench::new();
    let store = &bench.store;
    bench.import("anna").await;
    bench.import("gone").await;
    let anna = ("default".into(), "anna".into(), at(1));
    store.note_activity(vec![anna]).await.unwrap();
    // No verb writes these: they are from a time when one did.
    bench.edit(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200)
         INSERT INTO activity SELECT 'default', 'stranger' || i, {} FROM n",
        at(1).as_millis()
    ));
    bench.edit(&format!(
        "INSERT INTO activity VALUES ('default', 'recent', {})",
        at(99).as_millis()
    ));
    store.delete(&key("gone"), at(1), true).await.unwrap();
    assert_eq!(
        store.purge(at(1), at(1), at(0)).await.unwrap(),
        Purged::default()
    );
    let purged = store.purge(at(50), at(50), at(0)).await.unwrap();
    assert_eq!(
        purged,
        Purged {
            activity: 1200,
            revocations: 1,
            history: 0,
        }
    );
    assert_eq!(
        store.last_activity("default", "anna").await.unwrap(),
        Some(at(1))
    );
    assert_eq!(
        store.last_activity("default", "recent").await.unwrap(),
        Some(at(99))
    );
    store.optimize().await.unwrap();
}
