//! Nothing is refreshed for a user who is away, and the first read after the return brings a live token.

mod support;

use std::time::Duration;

use hyper::Method;
use serde_json::json;
use support::daemon::{Config, grant_path, token_path};
use support::{Connection, Freshd, Rotating, ScriptedServer, instant, seconds};

const LIFETIME: Duration = Duration::from_secs(2);

/// Access tokens live 2 s, and a user is inactive after 2 s.
async fn short_lived() -> (Rotating, ScriptedServer, Config) {
    let rotating = Rotating::new(LIFETIME.as_secs());
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .refresh("margin = \"1s\"\ninactive-after = \"2s\"")
        .provider("acme", &server, "rotation = \"strict\"")
        .app_with_socket("nightly", "may = [\"read\"]\ncounts-as-activity = false");
    (rotating, server, config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_user_costs_no_request_for_ten_lifetimes_and_one_on_return() {
    let (rotating, _server, config) = short_lived().await;
    let freshd = Freshd::start(config).await;
    let others = ["bert", "carl"];
    for user in ["anna", "bert", "carl"] {
        freshd
            .import(user, "acme", &rotating.issue(user).import())
            .await;
        freshd.token(user, "acme").await.token();
    }
    let paused = freshd.wait_for_state("anna", "acme", "paused").await;
    assert_eq!(paused["reason"], "inactive");
    let before = rotating.refreshes("anna");

    // A job that doesn't count reads the others all the while, by both ways of not counting.
    let mut job = Connection::open(&freshd.app_socket("nightly")).await;
    let began = instant();
    let mut beat = tokio::time::interval(Duration::from_millis(250));
    while began.elapsed() < LIFETIME * 10 {
        beat.tick().await;
        for user in others {
            job.send(Method::GET, &token_path(user, "acme", ""), None)
                .await
                .token();
            freshd
                .token_with(user, "acme", "activity=false")
                .await
                .token();
        }
    }
    assert_eq!(rotating.refreshes("anna"), before, "nobody asked for her");
    assert_eq!(freshd.grant("anna", "acme").await["state"], "paused");

    let reply = freshd.token("anna", "acme").await;
    assert!(
        rotating.is_active(reply.token()),
        "generation {}",
        reply.generation()
    );
    assert_eq!(
        rotating.refreshes("anna"),
        before + 1,
        "the return cost one request"
    );
    assert_eq!(freshd.grant("anna", "acme").await["state"], "active");
    assert_eq!(rotating.superseded_presented_outside_grace(), 0);
}

#[tokio::test]
async fn a_read_that_does_not_count_gets_a_live_token_and_leaves_the_grant_paused() {
    let (rotating, _server, config) = short_lived().await;
    let freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    freshd.wait_for_state("anna", "acme", "paused").await;

    let reply = freshd.token_with("anna", "acme", "activity=false").await;

    assert!(rotating.is_active(reply.token()));
    assert_eq!(freshd.grant("anna", "acme").await["state"], "paused");
}

#[tokio::test]
async fn an_activity_note_resumes_and_refreshes_what_is_stale() {
    let (rotating, _server, config) = short_lived().await;
    let freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    let paused = freshd.wait_for_state("anna", "acme", "paused").await;
    let generation = paused["generation"].as_u64().unwrap();

    let reply = freshd.post("/v1/users/anna/activity", &json!({})).await;

    assert_eq!(reply.status, 200, "{}", reply.text);
    let grant = freshd
        .wait_for_generation("anna", "acme", generation + 1)
        .await;
    assert_eq!(grant["state"], "active");
}

#[tokio::test]
async fn a_user_who_is_read_is_never_paused() {
    let (rotating, _server, config) = short_lived().await;
    let freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    let began = instant();
    let mut beat = tokio::time::interval(Duration::from_millis(250));
    while began.elapsed() < LIFETIME * 3 {
        beat.tick().await;
        assert!(rotating.is_active(freshd.token("anna", "acme").await.token()));
        assert_eq!(freshd.grant("anna", "acme").await["state"], "active");
    }
    assert!(
        rotating.refreshes("anna") >= 3,
        "refreshed ahead of its expiry, not by the reads alone"
    );
}

#[tokio::test]
async fn a_paused_grant_stays_paused_over_a_restart() {
    let (rotating, server, config) = short_lived().await;
    let mut freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    freshd
        .import("bert", "acme", &rotating.issue("bert").import())
        .await;
    freshd.wait_for_state("anna", "acme", "paused").await;
    freshd.wait_for_state("bert", "acme", "paused").await;
    let before = server.refreshes().len();

    freshd.restart().await;

    // Bert's return shows that the schedule works; Anna is not part of it.
    freshd.token("bert", "acme").await.token();
    assert_eq!(server.refreshes().len(), before + 1);
    let anna = freshd.admin(Method::GET, &grant_path("anna", "acme")).await;
    assert_eq!(
        (anna.json["state"].as_str(), anna.json["reason"].as_str()),
        (Some("paused"), Some("inactive"))
    );
    assert!(seconds(&anna.json["since"]) > 0.0);
}
