//! What a reader gets, row by row.

mod support;

use hyper::Method;
use serde_json::json;
use support::daemon::{Config, grant_path};
use support::{
    Answer, Freshd, Gate, Rotating, ScriptedServer, eventually, instant, seconds, unix_now,
};

/// A daemon whose one provider answers by `rotating`'s rules, with a margin so small that only
/// readers ask for a refresh before a token's last second.
async fn lazy(rotating: &Rotating) -> (ScriptedServer, Freshd) {
    let server = ScriptedServer::start(rotating.script()).await;
    let freshd = freshd_at(&server, "1s").await;
    (server, freshd)
}

async fn freshd_at(server: &ScriptedServer, margin: &str) -> Freshd {
    let config = Config::new()
        .refresh(&format!("margin = {margin:?}"))
        .provider("acme", server, "rotation = \"strict\"");
    Freshd::start(config).await
}

// Row 1: the token lives, at least `min_ttl` seconds left.

#[tokio::test]
async fn a_living_token_is_answered_at_once_and_costs_nothing() {
    let rotating = Rotating::new(3600);
    let (server, freshd) = lazy(&rotating).await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;

    let reply = freshd.token("anna", "acme").await;

    assert_eq!(reply.token(), anna.access_token);
    assert_eq!(reply.header("cache-control"), "no-store", "RFC 6749 §5.1");
    assert_eq!(reply.json["token_type"], "Bearer");
    assert_eq!(reply.json["generation"], 1);
    assert_eq!(reply.json["user"], "anna");
    assert_eq!(reply.json["provider"], "acme");
    assert!(
        reply.json.get("refresh_token").is_none(),
        "apps never see one"
    );
    let left = reply.json["expires_in"].as_f64().unwrap();
    assert!((3500.0..=3600.0).contains(&left), "{left}");
    let ends = seconds(&reply.json["expires_at"]) - unix_now() as f64;
    assert!(
        (ends - left).abs() < 5.0,
        "expires_at says {ends}, expires_in {left}"
    );
    assert_eq!(server.refreshes().len(), 0);
}

#[tokio::test]
async fn min_ttl_is_clamped_to_half_the_lifetime() {
    let rotating = Rotating::new(3600);
    let (server, freshd) = lazy(&rotating).await;
    let anna = rotating.issue("anna");
    freshd
        .import("anna", "acme", &anna.import_aged(20, 100))
        .await;

    // "At least a day" can't be had of a token that lives for two minutes.
    let reply = freshd.token_with("anna", "acme", "min_ttl=86400").await;

    assert_eq!(reply.token(), anna.access_token);
    assert_eq!(server.refreshes().len(), 0);
}

// Row 2: it lives, less left.

#[tokio::test]
async fn a_token_with_less_left_than_asked_is_refreshed_first() {
    let rotating = Rotating::new(3600);
    let (server, freshd) = lazy(&rotating).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_aged(90, 20))
        .await;

    let reply = freshd.token_with("anna", "acme", "min_ttl=40").await;

    assert_eq!(reply.generation(), 2);
    assert!(rotating.is_active(reply.token()));
    assert_eq!(server.refreshes().len(), 1);
}

#[tokio::test]
async fn a_503_inside_the_margin_still_serves_the_old_token() {
    let server = ScriptedServer::start(|_| Answer::raw(503, "text/html", "<h1>busy</h1>")).await;
    let freshd = freshd_at(&server, "1s").await;
    let anna = Rotating::new(3600).issue("anna");
    freshd
        .import("anna", "acme", &anna.import_aged(90, 20))
        .await;

    let reply = freshd.token_with("anna", "acme", "min_ttl=40&wait=2").await;

    assert_eq!(reply.token(), anna.access_token, "I4");
    let left = reply.json["expires_in"].as_u64().unwrap();
    assert!((1..=20).contains(&left), "its true expires_in, not {left}");
    assert!(!server.refreshes().is_empty(), "it was tried");
}

#[tokio::test]
async fn a_reader_waits_no_longer_than_it_said_and_gets_the_old_token() {
    let gate = Gate::shut();
    let held = gate.clone();
    let server =
        ScriptedServer::start(move |_| Answer::tokens("new", "next", 60).held_by(&held)).await;
    let freshd = freshd_at(&server, "1s").await;
    let anna = Rotating::new(3600).issue("anna");
    freshd
        .import("anna", "acme", &anna.import_aged(90, 20))
        .await;

    let asked = instant();
    let reply = freshd.token_with("anna", "acme", "min_ttl=40&wait=1").await;

    assert_eq!(reply.token(), anna.access_token);
    assert!(
        asked.elapsed().as_secs() < 8,
        "it waited {:?}",
        asked.elapsed()
    );
    gate.open();
    freshd.wait_for_generation("anna", "acme", 2).await;
    assert_eq!(freshd.token("anna", "acme").await.token(), "new");
}

// Row 3: expired.

#[tokio::test]
async fn a_reader_of_an_expired_token_joins_the_attempt_and_gets_the_new_one() {
    let gate = Gate::shut();
    let held = gate.clone();
    let rotating = Rotating::new(3600);
    let mut rules = rotating.script();
    let server = ScriptedServer::start(move |request| rules(request).held_by(&held)).await;
    let freshd = freshd_at(&server, "1s").await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    server.nth_refresh(1).await;

    let reading = freshd.token_with("anna", "acme", "wait=30");
    tokio::pin!(reading);
    tokio::select! {
        reply = &mut reading => panic!("answered before the server was: {reply:?}"),
        reply = freshd.get("/healthz") => assert_eq!(reply.status, 200),
    }
    gate.open();

    let reply = reading.await;
    assert!(rotating.is_active(reply.token()));
    assert_eq!(server.refreshes().len(), 1);
}

#[tokio::test]
async fn a_reader_of_an_expired_token_is_told_when_to_come_back() {
    let server = ScriptedServer::start(|_| Answer::error(503, "temporarily_unavailable")).await;
    let freshd = freshd_at(&server, "1s").await;
    let anna = Rotating::new(3600).issue("anna");
    freshd.import("anna", "acme", &anna.import_expired()).await;

    let reply = freshd.token_with("anna", "acme", "wait=1").await;

    assert_eq!(reply.status, 503, "{}", reply.text);
    assert_eq!(reply.header("content-type"), "application/problem+json");
    let seconds: u64 = reply.header("retry-after").parse().expect("whole seconds");
    assert!(seconds >= 1);
    assert_eq!(reply.json["retry_after"], seconds);
    assert!(!reply.text.contains(&anna.access_token));
    assert_eq!(
        freshd.grant("anna", "acme").await["state"],
        "active",
        "I5: it is tried again"
    );
}

#[tokio::test]
async fn a_reader_whose_wait_ends_first_gets_503_and_the_attempt_goes_on() {
    let gate = Gate::shut();
    let held = gate.clone();
    let server =
        ScriptedServer::start(move |_| Answer::tokens("new", "next", 3600).held_by(&held)).await;
    let freshd = freshd_at(&server, "1s").await;
    freshd
        .import(
            "anna",
            "acme",
            &Rotating::new(3600).issue("anna").import_expired(),
        )
        .await;

    let reply = freshd.token_with("anna", "acme", "wait=1").await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert!(!reply.header("retry-after").is_empty());

    gate.open();
    freshd.wait_for_generation("anna", "acme", 2).await;
    assert_eq!(freshd.token("anna", "acme").await.token(), "new");
    assert_eq!(server.refreshes().len(), 1);
}

#[tokio::test]
async fn a_refresh_token_alone_is_enough_to_import() {
    let rotating = Rotating::new(3600);
    let (_server, freshd) = lazy(&rotating).await;
    let refresh_token = rotating.issue("anna").refresh_token;
    freshd
        .import("anna", "acme", &json!({ "refresh_token": refresh_token }))
        .await;

    let reply = freshd.token("anna", "acme").await;

    assert!(rotating.is_active(reply.token()));
}

// Row 4: paused for inactivity. What a read costs and resumes is in `pauses_inactive_users.rs`.

#[tokio::test]
async fn a_read_resumes_a_grant_that_inactivity_paused() {
    let rotating = Rotating::new(2);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .refresh("margin = \"1s\"\ninactive-after = \"1s\"")
        .provider("acme", &server, "rotation = \"strict\"");
    let freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    freshd.wait_for_state("anna", "acme", "paused").await;

    let reply = freshd.token("anna", "acme").await;

    assert!(rotating.is_active(reply.token()));
}

// Row 5: paused by an admin, or draining.

#[tokio::test]
async fn a_grant_paused_by_an_admin_is_served_while_it_lives_and_then_409() {
    let rotating = Rotating::new(3600);
    let (server, freshd) = lazy(&rotating).await;
    let anna = rotating.issue("anna");
    freshd
        .import("anna", "acme", &anna.import_aged(60, 3))
        .await;
    let pause = format!("{}/pause", grant_path("anna", "acme"));
    let paused = freshd.admin(Method::POST, &pause).await;
    assert_eq!(
        (paused.status, &paused.json["changed"]),
        (200, &json!(1)),
        "{}",
        paused.text
    );

    let reply = freshd.token("anna", "acme").await;
    assert_eq!(reply.token(), anna.access_token);
    let reply = eventually("the token to end", || async {
        let reply = freshd.token("anna", "acme").await;
        (reply.status != 200).then_some(reply)
    })
    .await;
    reply.is_problem(409, "paused");
    assert_eq!(reply.json["reason"], "admin");
    assert_eq!(
        server.refreshes().len(),
        0,
        "nothing leaves for a paused grant"
    );

    let resume = format!("{}/resume", grant_path("anna", "acme"));
    assert_eq!(freshd.admin(Method::POST, &resume).await.status, 200);
    assert!(rotating.is_active(freshd.token("anna", "acme").await.token()));
}

#[tokio::test]
async fn while_freshd_drains_living_tokens_are_served_and_expired_ones_get_503() {
    let gate = Gate::shut();
    let held = gate.clone();
    let rotating = Rotating::new(3600);
    let mut rules = rotating.script();
    let server = ScriptedServer::start(move |request| rules(request).held_by(&held)).await;
    let mut freshd = freshd_at(&server, "1s").await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;
    freshd
        .import("bert", "acme", &rotating.issue("bert").import_expired())
        .await;
    server.nth_refresh(1).await;

    freshd.signal(rustix::process::Signal::TERM);
    freshd.wait_until_draining().await;
    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        anna.access_token
    );
    let reply = freshd.token_with("bert", "acme", "wait=0").await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert!(!reply.header("retry-after").is_empty());

    gate.open();
    assert!(freshd.wait_exit().await.success());
}

// Row 6: needs authorization.

#[tokio::test]
async fn a_revoked_grant_is_served_while_it_lives_and_then_409_says_why_and_since_when() {
    let server = ScriptedServer::start(|_| Answer::error(400, "invalid_grant")).await;
    let freshd = freshd_at(&server, "30m").await;
    let rotating = Rotating::new(3600);
    let (anna, bert) = (rotating.issue("anna"), rotating.issue("bert"));
    // Past its margin, with ten minutes to live; and past its end.
    freshd
        .import("anna", "acme", &anna.import_aged(3000, 600))
        .await;
    freshd.import("bert", "acme", &bert.import_expired()).await;
    freshd
        .wait_for_state("anna", "acme", "needs-authorization")
        .await;
    freshd
        .wait_for_state("bert", "acme", "needs-authorization")
        .await;

    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        anna.access_token,
        "I4"
    );
    let reply = freshd.token("bert", "acme").await;
    reply.is_problem(409, "needs-authorization");
    assert_eq!(reply.json["reason"], "revoked-or-used-elsewhere");
    assert!((seconds(&reply.json["since"]) - unix_now() as f64).abs() < 30.0);
    assert_eq!(
        server.refreshes().len(),
        2,
        "each was asked for once, and never again"
    );
}

// And where there is nothing.

#[tokio::test]
async fn a_grant_that_is_not_there_is_404() {
    let (_server, freshd) = lazy(&Rotating::new(3600)).await;
    let reply = freshd.token("nobody", "acme").await;
    assert_eq!(reply.status, 404, "{}", reply.text);
    assert_eq!(reply.header("content-type"), "application/problem+json");
}

#[tokio::test]
async fn a_user_whose_deletion_the_disk_refused_is_still_there() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .provider("acme", &server, "rotation = \"strict\"")
        .provider("bolt", &server, "rotation = \"strict\"");
    let freshd = Freshd::start(config).await;
    for provider in ["acme", "bolt"] {
        let anna = rotating.issue("anna").import();
        freshd.import("anna", provider, &anna).await;
    }

    // Longer than the store waits for a lock.
    let other = rusqlite::Connection::open(freshd.config.state_dir().join("freshd.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = freshd.delete("/v1/users/anna").await;
    assert_eq!(refused.status, 507, "{}", refused.text);
    drop(other);

    for provider in ["acme", "bolt"] {
        assert_eq!(freshd.token("anna", provider).await.status, 200);
    }
    assert_eq!(freshd.delete("/v1/users/anna").await.status, 200);
    for provider in ["acme", "bolt"] {
        assert_eq!(freshd.token("anna", provider).await.status, 404);
    }
}
