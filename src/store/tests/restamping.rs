//! A clock that was set back: stamps from the future.

use std::time::Duration;

use super::*;

/// Restamps everything as of `now`, for a clock that was set back by `secs`.
async fn restamp(store: &Store, now: UnixTime, secs: u64) -> u64 {
    let (mut after, mut changed) = (None, 0);
    loop {
        let ids = store.stamped_after(now, after, 2).await.unwrap();
        let Some(last) = ids.last().copied() else {
            return changed;
        };
        let by = Duration::from_secs(secs);
        let restamper = Box::new(move |grant: &Grant| grant.restamped(now, by));
        changed += store.restamp(ids, restamper).await.unwrap();
        after = Some(last);
    }
}

#[tokio::test]
async fn a_grant_from_the_future_is_restamped_and_its_tokens_still_open() {
    let bench = Bench::new();
    let store = &bench.store;
    for user in ["anna", "bert", "cleo"] {
        bench.import(user).await;
    }
    let now = at(-7200);
    assert_eq!(restamp(store, now, 7200).await, 3);
    for user in ["anna", "bert", "cleo"] {
        let read = store.readable(&key(user), now).await.unwrap().unwrap();
        let access = read.grant.access.as_ref().unwrap();
        assert_eq!(access.obtained_at, now);
        assert_eq!(
            access.expires_at,
            Some(now + Duration::from_secs(3600)),
            "its whole lifetime, no more"
        );
        assert_eq!(read.grant.due_at, Some(now + Duration::from_secs(3000)));
        assert_eq!(read.grant.generation, 1, "I3");
        assert_eq!(read.grant.imported_at, now);
        let opened = read.access_token.map(|token| token.expose().to_owned());
        assert_eq!(opened, Some(format!("access-{user}")));
        let attemptable = store
            .attemptable(read.grant.id, now)
            .await
            .unwrap()
            .unwrap();
        let opened = attemptable
            .refresh_token
            .map(|token| token.expose().to_owned());
        assert_eq!(opened, Some(format!("refresh-{user}")));
    }
    assert_eq!(restamp(store, now, 7200).await, 0, "once is enough");
}

#[tokio::test]
async fn an_attempt_that_was_under_way_commits_over_a_restamp() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    let store = &bench.store;
    applied(store.begin_attempt(grant.id, 1, None, at(5)).await);
    assert_eq!(restamp(store, at(-7200), 7200).await, 1);
    let marked = store.grant(&key("anna")).await.unwrap().unwrap();
    assert_eq!(marked.mark.map(|mark| mark.first_sent_at), Some(at(-7200)));
    let refreshed = applied(store.commit_tokens(commit(&grant, "second")).await);
    assert_eq!(refreshed.generation, 2);
}

#[tokio::test]
async fn a_value_that_does_not_open_is_left_for_its_next_reader() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    bench
        .sql()
        .execute("UPDATE grants SET access_token = x'00'", [])
        .unwrap();
    let store = &bench.store;
    assert_eq!(restamp(store, at(-7200), 7200).await, 0);
    let now = store.grant(&key("anna")).await.unwrap().unwrap();
    assert_eq!(now.expires_at(), grant.expires_at());
}

#[tokio::test]
async fn activity_and_revocations_from_the_future_count_from_now() {
    let bench = Bench::new();
    let store = &bench.store;
    bench.import("anna").await;
    bench.import("bert").await;
    let note = |user: &str, secs| ("default".to_owned(), user.to_owned(), at(secs));
    let notes = vec![note("anna", 0), note("bert", -9000)];
    store.note_activity(notes).await.unwrap();
    assert!(
        store
            .delete(&key("anna"), at(0), true)
            .await
            .unwrap()
            .is_some()
    );
    bench.import("anna").await;
    store.note_activity(vec![note("anna", 0)]).await.unwrap();
    let job = store.revocations_due("hubspot", at(0), 1).await.unwrap()[0].id;
    store.revocation_later(job, at(60)).await.unwrap();

    let now = at(-7200);
    store.restamp_rest(now).await.unwrap();
    let last = async |user: &str| store.last_activity("default", user).await.unwrap();
    assert_eq!(last("anna").await, Some(now));
    assert_eq!(last("bert").await, Some(at(-9000)), "that was before");
    let an_hour = Duration::from_secs(3600);
    assert!(
        store
            .revocations_due("hubspot", now, 1)
            .await
            .unwrap()
            .is_empty()
    );
    let due = store
        .revocations_due("hubspot", now + an_hour, 1)
        .await
        .unwrap();
    assert_eq!(due[0].created_at, now);
}
