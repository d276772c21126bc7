//! Attempts whose provider changes under them, whose outcome the disk refuses, or whose caller is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;

use super::attempt::{Wanted, run};
use super::keeper::Daemon;
use super::steps_tests::{Bench, served};
use super::view;
use crate::local_api::keeper::Keeper;
use crate::refresh::attempt::Cause;
use crate::refresh::grant::{Grant, Standing};
use crate::refresh::token::{AccessToken, RefreshToken, TokenSet};
use crate::store::TokenCommit;

#[tokio::test]
async fn a_grant_whose_provider_is_gone_for_a_moment_is_asked_for_again() {
    let bench = Bench::start("").await;
    bench.import("ann", serde_json::json!({})).await;
    let (shared, id) = (bench.shared().clone(), bench.grant("ann").await.id);
    shared.providers.configure(BTreeMap::new()).await;
    let wanted = Wanted {
        id,
        cause: Cause::Due,
        seen: None,
    };
    let (written, _) = run(shared, "acme".into(), wanted).await;
    assert!(written.due.is_some_and(|due| due.id == id));
}

#[tokio::test]
async fn a_verdict_that_the_disk_refused_is_written_once_it_takes_writes_again() {
    let bench = Bench::start("").await;
    bench.import("ann", serde_json::json!({})).await;
    let store = bench.shared().store.clone();
    bench.server.answer_with({
        let store = store.clone();
        move |_| {
            store.refuse_writes(true);
            (400, serde_json::json!({"error": "invalid_grant"}))
        }
    });
    bench.clock.pass(Duration::from_secs(3600));
    bench.until_presented(1).await;
    for _ in 0..3 {
        bench.clock.pass(Duration::from_secs(6));
        let looked_at = async || {
            let look = view::look(bench.shared()).await.unwrap();
            let waits = look.next_due_at.is_none_or(|at| at > bench.clock.now());
            (look.in_flight == 0 && waits).then_some(())
        };
        bench.until("the next try to fail", looked_at).await;
    }
    assert_eq!(bench.grant("ann").await.standing, Standing::Active);
    store.refuse_writes(false);
    bench.clock.pass(Duration::from_secs(6));
    let written = async || {
        let standing = bench.grant("ann").await.standing;
        matches!(standing, Standing::NeedsAuthorization(_)).then_some(())
    };
    bench.until("the verdict", written).await;
    assert_eq!(bench.server.presented().len(), 1);
}

#[tokio::test]
async fn a_failure_that_the_disk_refused_is_not_written_over_the_next_one() {
    let bench = Bench::start("").await;
    bench.import("ann", serde_json::json!({})).await;
    let store = bench.shared().store.clone();
    bench.server.answer_with({
        let (store, asked) = (store.clone(), AtomicU64::new(0));
        move |_| {
            let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            store.refuse_writes(first);
            (500, serde_json::Value::Null)
        }
    });
    bench.clock.pass(Duration::from_secs(3600));
    bench.until_presented(1).await;
    let mut failures = Vec::new();
    for times in 2..5 {
        bench.clock.pass(Duration::from_secs(3600));
        bench.until_presented(times).await;
        failures.push(bench.grant("ann").await.failures);
    }
    assert_eq!(failures, [2, 3, 4]);
}

#[tokio::test]
async fn a_set_that_was_held_across_a_reload_is_due_by_the_new_margin() {
    let bench = Bench::start("").await;
    let shared = bench.shared().clone();
    let store = shared.store.clone();
    bench.server.answer_with(move |_| {
        store.refuse_writes(true);
        served(3600)
    });
    bench
        .import("ann", serde_json::json!({"expires_in": 0}))
        .await;
    let held = async || (shared.held.len() == 1).then_some(());
    bench.until("the set to be held", held).await;
    shared.store.refuse_writes(false);
    bench.reload("\"1m\"", "\"10m\"").await;
    let follows = async || {
        let grant = bench.grant("ann").await;
        let lead = grant.expires_at()?.since(grant.due_at?).as_secs();
        (grant.generation == 2 && (600..=661).contains(&lead)).then_some(())
    };
    bench.until("the due time to follow", follows).await;
}

#[tokio::test]
async fn what_came_due_while_its_user_was_away_is_not_counted_as_late() {
    let bench = Bench::start("").await;
    bench.import("ann", serde_json::json!({})).await;
    bench.clock.pass(Duration::from_secs(4 * 86_400));
    let paused = async || (bench.grant("ann").await.standing != Standing::Active).then_some(());
    bench.until("the pause", paused).await;
    bench.clock.pass(Duration::from_secs(30 * 86_400));
    let daemon = Daemon(bench.shared().clone());
    daemon
        .activity("default".into(), "ann".into())
        .await
        .unwrap();
    let refreshed = async || (bench.grant("ann").await.generation == 2).then_some(());
    bench.until("the refresh", refreshed).await;
    let page = daemon.metrics().await;
    assert!(
        page.contains("freshd_lateness_seconds_count{provider=\"acme\"} 1"),
        "{page}"
    );
    assert!(
        page.contains("freshd_lateness_seconds_bucket{provider=\"acme\",le=\"60\"} 1"),
        "{page}"
    );
}

#[tokio::test]
async fn a_refresh_that_is_demanded_by_a_caller_who_does_not_wait_is_made() {
    let bench = Bench::start("").await;
    bench.import("ann", serde_json::json!({})).await;
    let (grant, now) = (bench.grant("ann").await, bench.clock.now());
    // Gone before the driver hears of it.
    let ended = bench.shared().demand(&grant, now).now_or_never();
    assert!(ended.is_none());
    bench.until_presented(1).await;
}

/// Commits a newer set, whose access token lives for so long.
async fn commit_over(bench: &Bench, grant: &Grant, lives: Duration) {
    let now = bench.clock.now();
    let tokens = TokenSet {
        access_token: Some(AccessToken::new("newer")),
        token_type: "Bearer".into(),
        expires_at: Some(now + lives),
        obtained_at: now,
        refresh_token: Some(RefreshToken::new("newer-refresh")),
        refresh_token_end: None,
        scope: None,
    };
    let commit = TokenCommit {
        id: grant.id,
        provider: "acme".into(),
        presented_generation: grant.generation,
        tokens: Arc::new(tokens),
        due_at: None,
        standing: grant.standing,
        unused_refreshes: 0,
        at: now - Duration::from_secs(60),
    };
    bench.shared().store.commit_tokens(commit).await.unwrap();
    bench.shared().cache.forget(&grant.key);
}

#[tokio::test]
async fn what_was_written_while_an_attempt_waited_for_its_slot_is_what_it_refreshes() {
    let bench = Bench::start("").await;
    bench
        .reload("rotation = \"none\"", "rotation = \"strict\"")
        .await;
    bench.import("ann", serde_json::json!({})).await;
    let (shared, grant) = (bench.shared().clone(), bench.grant("ann").await);
    let slot = shared.slots.acquire(&grant.key).await;
    let wanted = Wanted {
        id: grant.id,
        cause: Cause::Demand,
        seen: None,
    };
    let attempt = tokio::spawn(run(shared.clone(), "acme".into(), wanted));
    // It has read the row by then.
    while shared.slots.lock().wakers.is_empty() {
        tokio::task::yield_now().await;
    }
    commit_over(&bench, &grant, Duration::from_secs(3600)).await;
    drop(slot);
    attempt.await.unwrap();
    assert_eq!(*bench.server.presented(), ["newer-refresh"]);
    assert_eq!(bench.grant("ann").await.generation, 3);
}

#[tokio::test]
async fn a_reader_whose_wait_brings_an_ended_token_waits_for_the_next_one() {
    let bench = Bench::start("refresh = \"on-demand\"").await;
    bench.import("ann", serde_json::json!({})).await;
    let (shared, grant) = (bench.shared().clone(), bench.grant("ann").await);
    let slot = shared.slots.acquire(&grant.key).await;
    bench.clock.pass(Duration::from_secs(7200));
    let other_half = async {
        while shared.slots.lock().wakers.is_empty() {
            tokio::task::yield_now().await;
        }
        commit_over(&bench, &grant, Duration::ZERO).await;
        drop(slot);
    };
    let (token, ()) = tokio::join!(bench.token("ann"), other_half);
    assert_eq!(token.unwrap().access().0.expose(), "new");
    assert_eq!(*bench.server.presented(), ["newer-refresh"]);
}
