//! However many ask for one grant at once, one request leaves, and all get its answer (I1).

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use hyper::Method;
use hyper::body::Bytes;
use serde_json::json;
use support::daemon::{Config, grant_path, token_path};
use support::{Connection, Freshd, Gate, Reply, Rotating, ScriptedServer, within};
use tokio::sync::Barrier;

/// A server that holds every answer at a gate, and a daemon with one stale grant of `user-N` for each N.
async fn stale_grants(users: usize) -> (Gate, Rotating, ScriptedServer, Freshd) {
    let gate = Gate::shut();
    let rotating = Rotating::new(3600);
    let mut rules = rotating.script();
    let held = gate.clone();
    let server = ScriptedServer::start(move |request| rules(request).held_by(&held)).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let freshd = Freshd::start(config).await;
    for number in 0..users {
        let user = format!("user-{number}");
        freshd
            .import(&user, "acme", &rotating.issue(&user).import_expired())
            .await;
    }
    (gate, rotating, server, freshd)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_of_one_stale_grant_cost_one_request_and_get_one_answer() {
    const READERS: usize = 1000;
    let (gate, rotating, server, freshd) = stale_grants(1).await;
    let all_connected = Arc::new(Barrier::new(READERS + 1));
    let path = token_path("user-0", "acme", "wait=30");
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let (all_connected, path) = (all_connected.clone(), path.clone());
            let socket = freshd.config.socket();
            tokio::spawn(async move {
                let mut connection = Connection::open(&socket).await;
                all_connected.wait().await;
                connection.send(Method::GET, &path, None).await
            })
        })
        .collect();

    within("all to connect", all_connected.wait()).await;
    server.nth_refresh(1).await;
    // A whole turn on the same socket after theirs: as near as an outsider comes to "all have asked".
    assert_eq!(freshd.get("/healthz").await.status, 200);
    gate.open();

    let replies: Vec<Reply> = join_all(readers)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let tokens: BTreeSet<&str> = replies.iter().map(Reply::token).collect();
    assert_eq!((replies.len(), tokens.len()), (READERS, 1));
    assert!(rotating.is_active(tokens.first().unwrap()));
    assert!(replies.iter().all(|reply| reply.generation() == 2));
    assert_eq!(server.refreshes().len(), 1);
}

#[tokio::test]
async fn fifty_callers_whose_api_refused_the_same_generation_cost_one_request() {
    let (gate, rotating, server, freshd) = stale_grants(0).await;
    gate.open();
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;
    let path = format!("{}/refresh", grant_path("anna", "acme"));

    let refused = json!({ "generation": 1 });
    let replies = join_all((0..50).map(|_| freshd.post(&path, &refused))).await;

    let tokens: BTreeSet<&str> = replies.iter().map(Reply::token).collect();
    assert_eq!(tokens.len(), 1);
    assert!(!tokens.contains(anna.access_token.as_str()));
    assert!(replies.iter().all(|reply| reply.generation() == 2));
    assert_eq!(server.refreshes().len(), 1);

    // One that was away meanwhile reports the old generation: it is told the current one.
    let late = freshd.post(&path, &refused).await;
    assert_eq!(late.generation(), 2);
    assert_eq!(server.refreshes().len(), 1);
}

#[tokio::test]
async fn a_token_is_stored_though_its_caller_hung_up() {
    let (gate, rotating, server, mut freshd) = stale_grants(1).await;
    let mut caller = Connection::open(&freshd.config.socket()).await;
    let path = token_path("user-0", "acme", "wait=30");
    let asking = caller.try_send(Method::GET, &path, None::<Bytes>);
    tokio::select! {
        answer = asking => panic!("answered through a shut gate: {answer:?}"),
        _ = server.nth_refresh(1) => {}
    }
    drop(caller);
    gate.open();

    freshd.wait_for_generation("user-0", "acme", 2).await;
    freshd.restart().await;
    let reply = freshd.token("user-0", "acme").await;
    assert!(rotating.is_active(reply.token()));
    assert_eq!(server.refreshes().len(), 1);
}

#[tokio::test]
async fn grants_of_different_users_are_refreshed_side_by_side() {
    let (gate, rotating, server, freshd) = stale_grants(8).await;
    // All eight are under way before the first answer comes.
    server.nth_refresh(8).await;
    assert_eq!(
        server.presented().len(),
        8,
        "eight different refresh tokens"
    );
    gate.open();
    for number in 0..8 {
        let reply = freshd.token(&format!("user-{number}"), "acme").await;
        assert!(rotating.is_active(reply.token()));
    }
    assert_eq!(server.refreshes().len(), 8);
}

#[tokio::test]
async fn an_import_that_replaces_a_grant_is_not_overwritten_by_the_answer_it_overtook() {
    let (gate, rotating, server, freshd) = stale_grants(1).await;
    server.nth_refresh(1).await;
    let newer = rotating.issue("user-0");
    let path = format!("{}?replace=true", grant_path("user-0", "acme"));
    let body = newer.import();
    let replacing = freshd.put(&path, &body);
    tokio::pin!(replacing);
    // The slot has one holder: whether the import waits for the attempt is freshd's choice.
    let early = tokio::select! {
        reply = &mut replacing => Some(reply),
        reply = freshd.get("/healthz") => { assert_eq!(reply.status, 200); None }
    };
    gate.open();
    let reply = match early {
        Some(reply) => reply,
        None => within("the import", replacing).await,
    };
    assert_eq!(reply.status, 200, "{}", reply.text);

    let read = freshd.token("user-0", "acme").await;
    assert_eq!(read.token(), newer.access_token);
    assert!(read.generation() >= 2, "it never goes back (I3)");
}
