//! The story of a grant.

use super::*;
use crate::refresh::grant::{NeedsReason, PauseReason};
use crate::store::history::ENTRIES;

/// One line per entry: event, times, generation, detail, status, by, presented, received.
async fn story(bench: &Bench, user: &str) -> Vec<String> {
    let (_, entries) = bench.store.history(&key(user)).await.unwrap().unwrap();
    entries.iter().map(line).collect()
}

fn line(entry: &Entry) -> String {
    let mut line = entry.event.name().to_owned();
    if entry.times != 1 {
        line += &format!(" x{}", entry.times);
    }
    line += &format!(" g{}", entry.generation);
    for word in [
        (!entry.detail.is_empty()).then(|| entry.detail.clone()),
        entry.status.map(|status| status.to_string()),
        entry.by.map(|by| format!("by {}", by.name())),
        entry.presented.map(|short| format!("<{short}")),
        entry.received.map(|short| format!(">{short}")),
    ]
    .into_iter()
    .flatten()
    {
        line = format!("{line} {word}");
    }
    line
}

fn short(bench: &Bench, name: &str) -> String {
    let token = format!("refresh-{name}");
    let whole = bench.store.fingerprint("refresh-token", token.as_bytes());
    Short([whole[0], whole[1], whole[2], whole[3]]).to_string()
}

#[tokio::test]
async fn a_grants_life_is_told_in_order_and_survives_a_restart() {
    let bench = Bench::new();
    let store = &bench.store;
    let grant = bench.import("anna").await;
    let [anna, one, new] = ["anna", "one", "new"].map(|name| short(&bench, name));

    applied(store.begin_attempt(grant.id, 1, None, at(1)).await);
    let refused = Failure {
        status: Some(503),
        ..failure("http-503")
    };
    applied(store.record_failure(grant.id, 1, refused.clone()).await);
    let grant = applied(store.commit_tokens(commit(&grant, "one")).await);
    let paused = Standing::Paused(PauseReason::Admin);
    store
        .set_standing(grant.id, paused, None, By::Admin, at(3))
        .await
        .unwrap();
    store
        .set_standing(grant.id, Standing::Active, None, By::Reader, at(4))
        .await
        .unwrap();
    let dead = Failure {
        status: Some(400),
        needs_authorization: Some(NeedsReason::RevokedOrUsedElsewhere),
        ..failure("invalid_grant")
    };
    applied(store.record_failure(grant.id, 2, dead).await);
    let held = Import {
        standing: Standing::Paused(PauseReason::Held),
        ..replacing("anna", "new")
    };
    store.import(held).await.unwrap();
    // What changes nothing is not told.
    store.import(replacing("anna", "new")).await.unwrap();

    let bench = bench.reopen().await;
    let expected = [
        format!("imported g1 >{anna}"),
        format!("failed g1 http-503 503 <{anna}"),
        format!("refreshed g2 <{anna} >{one}"),
        "paused g2 admin by admin".to_owned(),
        "resumed g2 by reader".to_owned(),
        format!("failed g2 invalid_grant 400 <{one}"),
        "needs-authorization g2 revoked-or-used-elsewhere by schedule".to_owned(),
        format!("replaced g3 held >{new}"),
    ];
    assert_eq!(story(&bench, "anna").await, expected);
}

#[tokio::test]
async fn what_repeats_is_told_once_with_its_beginning_and_end() {
    let bench = Bench::new();
    let store = &bench.store;
    let mut grant = bench.import("anna").await;
    for nth in 0..412 {
        let next = TokenCommit {
            at: at(100 + nth),
            ..commit(&grant, &nth.to_string())
        };
        grant = applied(store.commit_tokens(next).await);
    }
    for nth in 0..3 {
        let again = Failure {
            at: at(1000 + nth),
            ..failure("http-503")
        };
        applied(store.record_failure(grant.id, 413, again).await);
    }
    let other = failure("connect");
    applied(store.record_failure(grant.id, 413, other).await);

    let [before, last] = ["410", "411"].map(|name| short(&bench, name));
    let expected = [
        format!("imported g1 >{}", short(&bench, "anna")),
        format!("refreshed x412 g413 <{before} >{last}"),
        format!("failed x3 g413 http-503 <{last}"),
        format!("failed g413 connect <{last}"),
    ];
    assert_eq!(story(&bench, "anna").await, expected);
    let (_, entries) = store.history(&key("anna")).await.unwrap().unwrap();
    assert_eq!(
        (entries[1].first_at, entries[1].last_at),
        (at(100), at(511))
    );
}

#[tokio::test]
async fn requests_without_an_outcome_are_told_when_they_are_found() {
    let bench = Bench::new();
    let store = &bench.store;
    let grant = bench.import("anna").await;
    let anna = short(&bench, "anna");
    let unanswered = Failure {
        fate_unknown: true,
        ..failure("unknown-timeout")
    };
    applied(store.begin_attempt(grant.id, 1, None, at(1)).await);
    applied(store.record_failure(grant.id, 1, unanswered).await);
    // Cut off: no outcome.
    applied(store.begin_attempt(grant.id, 1, None, at(2)).await);
    applied(store.begin_attempt(grant.id, 1, None, at(3)).await);
    // That one was cut off too, and so was the next.
    applied(store.begin_attempt(grant.id, 1, None, at(4)).await);
    applied(store.begin_attempt(grant.id, 1, None, at(5)).await);
    let expected = [
        format!("imported g1 >{anna}"),
        format!("unanswered g1 unknown-timeout <{anna}"),
        format!("interrupted g1 <{anna}"),
        format!("interrupted g1 <{anna}"),
        format!("interrupted g1 <{anna}"),
    ];
    assert_eq!(story(&bench, "anna").await, expected);
    let (_, entries) = store.history(&key("anna")).await.unwrap().unwrap();
    assert_eq!((entries[2].first_at, entries[2].last_at), (at(3), at(3)));
}

#[tokio::test]
async fn the_first_request_that_was_cut_off_is_told_with_its_moment() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    applied(bench.store.begin_attempt(grant.id, 1, None, at(1)).await);
    applied(bench.store.begin_attempt(grant.id, 1, None, at(30)).await);
    let (_, entries) = bench.store.history(&key("anna")).await.unwrap().unwrap();
    assert_eq!(entries[1].event, Event::Interrupted);
    assert_eq!((entries[1].first_at, entries[1].last_at), (at(1), at(30)));
}

#[tokio::test]
async fn a_set_that_lost_is_told_and_one_that_is_the_grants_own_is_not() {
    let bench = Bench::new();
    let store = &bench.store;
    let grant = bench.import("anna").await;
    store.import(replacing("anna", "new")).await.unwrap();
    let late = commit(&grant, "late");
    assert_eq!(store.commit_tokens(late).await.unwrap(), Cas::Lost);
    let own = commit(&grant, "new");
    assert_eq!(store.commit_tokens(own).await.unwrap(), Cas::Lost);
    let told = story(&bench, "anna").await;
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told[2], format!("superseded g2 >{}", short(&bench, "late")));
}

#[tokio::test]
async fn a_quarantine_is_the_stores_doing() {
    let bench = Bench::new();
    bench.import("anna").await;
    bench.edit("UPDATE grants SET access_token = x'00'");
    bench.store.readable(&key("anna"), at(9)).await.unwrap();
    let told = story(&bench, "anna").await;
    assert_eq!(told[1], "paused g1 quarantined by store");
}

#[tokio::test]
async fn a_story_is_bounded_and_its_oldest_entries_go() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    for nth in 0..100 {
        let other = failure(&format!("http-{nth}"));
        applied(bench.store.record_failure(grant.id, 1, other).await);
    }
    let told = story(&bench, "anna").await;
    assert_eq!(told.len(), ENTRIES as usize);
    assert!(told[0].contains("http-36"), "{}", told[0]);
    assert!(told[63].contains("http-99"), "{}", told[63]);
}

#[tokio::test]
async fn a_purge_forgets_what_is_old_but_not_what_still_needs_a_person() {
    let bench = Bench::new();
    let store = &bench.store;
    let (well, dead) = (bench.import("anna").await, bench.import("bert").await);
    for grant in [&well, &dead] {
        applied(store.record_failure(grant.id, 1, failure("connect")).await);
    }
    applied(
        store
            .commit_tokens(TokenCommit {
                at: at(500),
                ..commit(&well, "new")
            })
            .await,
    );
    let verdict = Failure {
        needs_authorization: Some(NeedsReason::LostRotation),
        at: at(150),
        ..failure("invalid_grant")
    };
    applied(store.record_failure(dead.id, 1, verdict).await);

    let purged = store.purge(at(0), at(0), at(400)).await.unwrap();

    assert_eq!(purged.history, 4);
    assert_eq!(story(&bench, "anna").await.len(), 1);
    let left = story(&bench, "bert").await;
    assert!(left[0].starts_with("failed g1 invalid_grant"), "{left:?}");
    assert!(left[1].starts_with("needs-authorization"), "{left:?}");
    // The next entry goes on behind what is left.
    let later = commit(
        &applied(store.begin_attempt(well.id, 2, None, at(600)).await),
        "x",
    );
    applied(store.commit_tokens(later).await);
    assert_eq!(story(&bench, "anna").await.len(), 1);
}

#[tokio::test]
async fn an_entry_nobody_wrote_is_left_out() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    applied(
        bench
            .store
            .record_failure(grant.id, 1, failure("connect"))
            .await,
    );
    bench.edit("UPDATE history SET event = 99, times = -1, presented = x'00' WHERE number = 1");
    let told = story(&bench, "anna").await;
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("failed g1 connect"));
    bench.edit("UPDATE history SET event = 99");
    applied(
        bench
            .store
            .record_failure(grant.id, 1, failure("dns"))
            .await,
    );
    assert_eq!(story(&bench, "anna").await.len(), 1);
}
