//! Against a real authorization server that revokes a family when a refresh token is replayed,
//! every token freshd hands out is alive, and no refresh is wasted.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use support::daemon::{Config, grant_path, token_path};
use support::node_server::NodeServer;
use support::{Connection, Freshd, instant};
use tokio::time::MissedTickBehavior;

const USERS: usize = 50;
/// Long enough for a slow machine to refresh 50 grants within the margin, short enough to see three.
const LIFETIME: Duration = Duration::from_secs(12);
const LIFETIMES: u32 = 3;

fn users() -> Vec<String> {
    (1..=USERS).map(|number| format!("user-{number}")).collect()
}

/// A daemon in front of `server`, with these token responses imported.
async fn freshd_with(server: &NodeServer, logins: &BTreeMap<String, Value>) -> Freshd {
    let about = &server.about;
    let config = Config::new().refresh("margin = \"2s\"").provider_at(
        "real",
        &about.token_endpoint,
        &about.revocation_endpoint,
        &about.client_id,
        &about.client_secret,
        "rotation = \"strict\"",
    );
    let freshd = Freshd::start(config).await;
    for (user, tokens) in logins {
        freshd.import(user, "real", tokens).await;
    }
    freshd
}

/// Reads every user's token once and asks the server about each.
async fn every_token_is_active(
    freshd: &Freshd,
    server: &NodeServer,
    logins: &BTreeMap<String, Value>,
) {
    let mut connection = Connection::open(&freshd.config.socket()).await;
    for user in logins.keys() {
        let reply = connection
            .send(Method::GET, &token_path(user, "real", "min_ttl=1"), None)
            .await;
        let token = reply.token();
        assert!(
            server.is_active(token).await,
            "{user} got a dead token: generation {}",
            reply.generation()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_grants_stay_fresh_for_three_lifetimes_across_a_restart_and_a_kill() {
    let server = NodeServer::start(LIFETIME.as_secs()).await;
    let logins = server.log_in(&users()).await;
    assert_eq!(logins.len(), USERS);
    let mut freshd = freshd_with(&server, &logins).await;

    let began = instant();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut restarted, mut killed) = (false, false);
    while began.elapsed() < LIFETIME * LIFETIMES {
        second.tick().await;
        every_token_is_active(&freshd, &server, &logins).await;
        if !restarted && began.elapsed() > LIFETIME {
            freshd.restart().await;
            restarted = true;
        }
        // Between two waves of refreshes: a kill inside one is `survives_restart.rs`'s matter.
        if !killed && began.elapsed() > LIFETIME * 2 && in_flight(&freshd).await == 0 {
            freshd.kill().await;
            freshd.start_again().await;
            killed = true;
        }
    }
    assert!(restarted && killed);

    let seen = server.counters().await;
    assert_eq!((seen.replays, seen.refused), (0, 0), "{seen:?}");
    let total: u64 = seen.refreshes.values().sum();
    let bound = f64::from(LIFETIMES) * USERS as f64 * 1.2;
    assert!(
        total as f64 <= bound,
        "{total} refreshes, at most {bound} are needed"
    );
    assert!(
        total >= USERS as u64 * 2,
        "{total} refreshes: this test saw no three lifetimes"
    );
}

async fn in_flight(freshd: &Freshd) -> u64 {
    freshd.status().await["in_flight"]
        .as_u64()
        .expect("status counts attempts")
}

#[tokio::test]
async fn a_grant_revoked_at_the_server_needs_authorization_and_its_neighbour_does_not() {
    let server = NodeServer::start(4).await;
    let logins = server.log_in(&["anna".to_owned(), "bert".to_owned()]).await;
    let freshd = freshd_with(&server, &logins).await;

    server.revoke("anna").await;

    let anna = freshd
        .wait_for_state("anna", "real", "needs-authorization")
        .await;
    assert_eq!(anna["reason"], "revoked-or-used-elsewhere");
    freshd.wait_for_generation("bert", "real", 2).await;
    assert_eq!(freshd.grant("bert", "real").await["state"], "active");
}

#[tokio::test]
async fn a_deleted_grant_is_revoked_at_the_server() {
    let server = NodeServer::start(600).await;
    let logins = server.log_in(&["anna".to_owned()]).await;
    let freshd = freshd_with(&server, &logins).await;
    let token = freshd.token("anna", "real").await.token().to_owned();
    assert!(server.is_active(&token).await);

    let reply = freshd.delete(&grant_path("anna", "real")).await;

    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(freshd.token("anna", "real").await.status, 404);
    support::eventually("the server to hear of it", || async {
        (!server.is_active(&token).await).then_some(())
    })
    .await;
}

/// Not about freshd: if this fails, the tests above can't fail when they should.
#[tokio::test]
async fn the_server_itself_ends_a_family_whose_refresh_token_is_used_twice_at_once() {
    let server = NodeServer::start(600).await;
    let logins = server.log_in(&["anna".to_owned()]).await;
    let refresh_token = logins["anna"]["refresh_token"].as_str().unwrap();

    let uses = futures_util::future::join_all((0..8).map(|_| server.refresh(refresh_token))).await;

    let successes: Vec<&Value> = uses
        .iter()
        .filter(|(status, _)| *status == 200)
        .map(|(_, answer)| answer)
        .collect();
    assert_eq!(successes.len(), 1, "{uses:?}");
    let access_token = successes[0]["access_token"].as_str().unwrap();
    assert!(
        !server.is_active(access_token).await,
        "the family is dead, the winner's token too"
    );
    // Those that come after the family's end find nothing left to replay.
    assert!(server.counters().await.replays >= 1);
}
