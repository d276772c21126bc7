use super::*;
use crate::refresh::grant::{NeedsReason, PauseReason};

/// What was told since `after`: kind, user, reason, generation.
async fn told(store: &Store, after: u64) -> Vec<(&'static str, String, String, u64)> {
    let page = store.events_after(after, 1000).await.unwrap();
    assert!(page.complete);
    page.events
        .into_iter()
        .map(|event| {
            let user = event.who.map_or("-".to_owned(), |(user, _)| user);
            (event.kind.name(), user, event.reason, event.generation)
        })
        .collect()
}

/// The same without user and generation.
async fn kinds(store: &Store, after: u64) -> Vec<String> {
    let told = told(store, after).await;
    let show = |(kind, _, reason, _): &(&str, String, String, u64)| format!("{kind} {reason}");
    told.iter()
        .map(|event| show(event).trim_end().to_owned())
        .collect()
}

fn verdict() -> Failure {
    Failure {
        needs_authorization: Some(NeedsReason::RevokedOrUsedElsewhere),
        due_at: None,
        ..failure("invalid_grant")
    }
}

async fn stand(store: &Store, grant: &Grant, standing: Standing) {
    let set = store.set_standing(grant.id, standing, None, By::Admin, at(60));
    set.await.unwrap().unwrap();
}

#[tokio::test]
async fn each_transition_is_told_once_and_standing_still_never() {
    let bench = Bench::new();
    let store = &bench.store;
    let grant = bench.import("anna").await;
    let inactive = Standing::Paused(PauseReason::Inactive);
    for standing in [inactive, inactive, Standing::Active, Standing::Active] {
        stand(store, &grant, standing).await;
    }
    applied(store.record_failure(grant.id, 1, failure("http-503")).await);
    let refreshed = applied(store.commit_tokens(commit(&grant, "second")).await);
    applied(store.record_failure(grant.id, 2, verdict()).await);
    applied(store.record_failure(grant.id, 2, verdict()).await);
    store.import(replacing("anna", "third")).await.unwrap();
    store.import(replacing("anna", "third")).await.unwrap();
    store.import(replacing("anna", "fourth")).await.unwrap();
    assert_eq!(refreshed.generation, 2);
    let line =
        |kind, reason: &str, generation| (kind, "anna".to_owned(), reason.to_owned(), generation);
    assert_eq!(
        told(store, 0).await,
        [
            line("connected", "", 1),
            line("paused", "inactive", 1),
            line("resumed", "", 1),
            line("needs-authorization", "revoked-or-used-elsewhere", 2),
            line("recovered", "", 3),
            line("connected", "", 4),
        ]
    );
}

#[tokio::test]
async fn a_held_import_mends_nothing_until_it_is_released() {
    let bench = Bench::new();
    let store = &bench.store;
    let grant = bench.import("anna").await;
    applied(store.record_failure(grant.id, 1, verdict()).await);
    let held = Import {
        standing: Standing::Paused(PauseReason::Held),
        ..replacing("anna", "second")
    };
    store.import(held).await.unwrap();
    stand(store, &grant, Standing::Active).await;
    let after = ["connected held", "resumed"];
    assert_eq!(kinds(store, 2).await, after);
}

#[tokio::test]
async fn quarantine_is_a_pause_and_an_import_recovers_from_it() {
    let bench = Bench::new();
    bench.import("anna").await;
    bench.edit("UPDATE grants SET access_token = x'00'");
    let store = &bench.store;
    for _ in 0..3 {
        store.readable(&key("anna"), at(9)).await.unwrap();
    }
    store.import(replacing("anna", "anna")).await.unwrap();
    assert_eq!(kinds(store, 1).await, ["paused quarantined", "recovered"]);
}

#[tokio::test]
async fn the_end_of_a_refresh_token_is_told_with_its_moment() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    let store = &bench.store;
    applied(store.warn_of_end(grant.id, 1, at(8)).await);
    let page = store.events_after(1, 9).await.unwrap();
    let event = &page.events[0];
    assert_eq!(event.kind, EventKind::RefreshTokenExpiring);
    assert_eq!((event.at, event.expires_at), (at(8), Some(at(90_000))));
    assert_eq!((page.events.len(), page.end), (1, 2));
}

#[tokio::test]
async fn what_was_told_of_a_deleted_grant_is_forgotten_and_its_name_with_the_process() {
    let bench = Bench::new();
    bench.import("bert").await;
    bench.import("anna").await;
    let store = &bench.store;
    store.delete(&key("anna"), at(9), false).await.unwrap();
    let revoked = |user: &str| {
        vec![
            ("connected", "bert".to_owned(), String::new(), 1),
            ("revoked", user.to_owned(), String::new(), 1),
        ]
    };
    assert_eq!(told(store, 0).await, revoked("anna"));
    let bench = bench.reopen().await;
    assert_eq!(told(&bench.store, 0).await, revoked("-"));
    // The name is free for another grant, of which the old events say nothing.
    bench.import("anna").await;
    assert_eq!(told(&bench.store, 1).await[0].1, "-");
}

#[tokio::test]
async fn a_change_that_is_undone_tells_nothing_and_one_that_commits_wakes_its_listeners() {
    let bench = Bench::new();
    let store = &bench.store;
    let mut committed = store.events_committed();
    for nth in 1.. {
        committed.mark_unchanged();
        bench.faults().fail_nth(nth);
        let imported = store.import(import("anna")).await;
        let told = told(store, 0).await.len();
        if imported.is_ok() {
            assert_eq!(told, 1);
            assert!(!bench.faults().is_pending() || nth > 3);
            break;
        }
        assert_eq!(told, 0, "undone at step {nth}");
        assert!(!committed.has_changed().unwrap());
    }
    assert!(committed.has_changed().unwrap());
    bench.faults().fail_nth(0);
    committed.mark_unchanged();
    let activity = ("default".into(), "anna".into(), at(1));
    store.note_activity(vec![activity]).await.unwrap();
    assert!(!committed.has_changed().unwrap(), "that was no event");
}

#[tokio::test]
async fn pages_follow_each_other_without_a_gap_and_say_so_where_there_is_one() {
    let bench = Bench::new();
    let store = &bench.store;
    for user in 0..7 {
        bench.import(&format!("user-{user}")).await;
    }
    let mut users = Vec::new();
    let mut after = 0;
    loop {
        let page = store.events_after(after, 3).await.unwrap();
        assert!(page.complete);
        if page.events.is_empty() {
            assert_eq!(page.end, 7);
            break;
        }
        after = page.end;
        users.extend(page.events.into_iter().map(|event| event.who.unwrap().0));
    }
    assert_eq!(users.len(), 7);
    assert_eq!(store.last_event().await.unwrap(), 7);
    let beyond = store.events_after(8, 3).await.unwrap();
    assert!(!beyond.complete, "nobody has told that one");
}

#[tokio::test]
async fn a_purge_of_events_is_noticed_by_who_comes_back_after_it() {
    let bench = Bench::new();
    let store = &bench.store;
    bench.edit(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 1199)
         INSERT INTO events (grant_id, namespace, provider, kind, at, generation)
         SELECT 1, 'default', 'box', 'paused', {} + i * 1000, 1 FROM n",
        at(0).as_millis()
    ));
    assert_eq!(store.purge_events(at(1100)).await, Ok(1100));
    let bench = bench.reopen().await;
    let store = &bench.store;
    let late = store.events_after(1099, 1000).await.unwrap();
    assert!(!late.complete);
    assert_eq!((late.events.len(), late.events[0].id), (100, 1101));
    let in_time = store.events_after(1100, 1000).await.unwrap();
    assert!(in_time.complete);
    assert_eq!(in_time.events.len(), 100);
    bench.import("new").await;
    assert_eq!(bench.store.last_event().await.unwrap(), 1201);
}
