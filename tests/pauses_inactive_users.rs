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

// Refreshes that nobody reads.

#[tokio::test]
async fn a_grant_that_nobody_reads_rests_after_max_unused_refreshes_and_one_that_is_read_does_not()
{
    let rotating = Rotating::new(LIFETIME.as_secs());
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .refresh("margin = \"1s\"\nmax-unused-refreshes = 2")
        .provider("acme", &server, "rotation = \"strict\"")
        .app_with_socket("nightly", "may = [\"read\"]\ncounts-as-activity = false");
    let freshd = Freshd::start(config).await;
    for user in ["anna", "bert"] {
        freshd
            .import(user, "acme", &rotating.issue(user).import())
            .await;
    }
    // A read by a job that doesn't count is a read all the same: somebody needs Bert's token.
    let mut job = Connection::open(&freshd.app_socket("nightly")).await;
    let path = token_path("bert", "acme", "min_ttl=0");
    let mut bert_has = async |generation: u64| {
        while job.send(Method::GET, &path, None).await.generation() < generation {
            tokio::time::sleep(support::LOOK_AGAIN).await;
        }
    };
    bert_has(4).await;
    let anna = freshd.wait_for_state("anna", "acme", "paused").await;
    assert_eq!(anna["reason"], "unused");
    assert_eq!(anna["unused_refreshes"], 2);
    assert_eq!(rotating.refreshes("anna"), 2);
    assert_eq!(freshd.grant("bert", "acme").await["state"], "active");

    // It rests: Bert's refreshes are the clock.
    let now = freshd.grant("bert", "acme").await["generation"]
        .as_u64()
        .unwrap();
    bert_has(now + 3).await;
    assert_eq!(rotating.refreshes("anna"), 2);

    let reply = freshd.token("anna", "acme").await;
    assert!(rotating.is_active(reply.token()));
    assert_eq!(rotating.refreshes("anna"), 3, "the return cost one request");
    assert_eq!(freshd.grant("anna", "acme").await["state"], "active");
}

// Who counts.

#[tokio::test]
async fn a_request_says_whether_it_counts_and_else_the_rule_does() {
    let (rotating, _server, config) = short_lived().await;
    let freshd = Freshd::start(config).await;
    let nightly = freshd.app_socket("nightly");
    let shared = freshd.config.socket();
    let table = [
        ("anna", &nightly, "", "paused"),
        ("bert", &nightly, "activity=true", "active"),
        ("carl", &shared, "activity=false", "paused"),
        ("dora", &shared, "", "active"),
    ];
    for (user, ..) in table {
        freshd
            .import(user, "acme", &rotating.issue(user).import())
            .await;
    }
    for (user, ..) in table {
        freshd.wait_for_state(user, "acme", "paused").await;
    }
    for (user, socket, query, state) in table {
        let path = token_path(user, "acme", query);
        let mut connection = Connection::open(socket).await;
        let reply = connection.send(Method::GET, &path, None).await;
        assert!(rotating.is_active(reply.token()), "{user}");
        // Who comes back while the token lives gets it at once, and is woken behind the answer.
        freshd.wait_for_state(user, "acme", state).await;
    }
    // Whoever was to be woken is, so the others would be as well.
    for (user, _, _, state) in table.iter().filter(|row| row.3 == "paused") {
        assert_eq!(freshd.grant(user, "acme").await["state"], *state, "{user}");
    }
    let reply = freshd.token_with("anna", "acme", "activity=perhaps").await;
    assert_eq!(reply.status, 400, "{}", reply.text);
}

#[tokio::test]
async fn an_activity_note_wakes_all_of_a_users_grants_and_nobody_elses() {
    let (rotating, _server, config) = short_lived().await;
    let freshd = Freshd::start(config).await;
    let all = [("anna", "acme"), ("anna", "acme:work"), ("bert", "acme")];
    for (user, provider) in all {
        freshd
            .import(user, provider, &rotating.issue(user).import())
            .await;
    }
    for (user, provider) in all {
        freshd.wait_for_state(user, provider, "paused").await;
    }

    // One that an admin has paused stays so.
    freshd
        .import("anna", "acme:old", &rotating.issue("anna").import())
        .await;
    let pause = format!("{}/pause", grant_path("anna", "acme:old"));
    assert_eq!(freshd.admin(Method::POST, &pause).await.status, 200);
    let reply = freshd.post("/v1/users/anna/activity", &json!({})).await;

    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(seconds(&reply.json["last_active_at"]) > 0.0);
    for provider in ["acme", "acme:work"] {
        assert_eq!(
            freshd.grant("anna", provider).await["state"],
            "active",
            "{provider}"
        );
    }
    assert_eq!(freshd.grant("anna", "acme:old").await["reason"], "admin");
    assert_eq!(freshd.grant("bert", "acme").await["state"], "paused");
    assert_eq!(
        freshd
            .post("/v1/users/nobody/activity", &json!({}))
            .await
            .status,
        404
    );
    // The admin's own look at it is no activity.
    freshd.wait_for_state("anna", "acme", "paused").await;
}

// Refresh tokens that die of disuse.

#[tokio::test]
async fn a_paused_grant_is_kept_alive_and_rests_again_unless_that_is_turned_off() {
    let rotating = Rotating::new(LIFETIME.as_secs());
    let server = ScriptedServer::start(rotating.script()).await;
    // A twentieth before the server would forget the refresh token: 3.8 s after its last use.
    let idle = "rotation = \"strict\"\nrefresh-token-idle-lifetime = \"4s\"";
    let config = Config::new()
        .refresh("margin = \"1s\"\ninactive-after = \"500ms\"")
        .provider("acme", &server, idle)
        .provider("off", &server, &format!("{idle}\nkeep-alive = false"));
    let mut freshd = Freshd::start(config).await;
    let began = instant();
    for (user, provider) in [("anna", "acme"), ("bert", "off")] {
        freshd
            .import(user, provider, &rotating.issue(user).import())
            .await;
    }
    for (user, provider) in [("anna", "acme"), ("bert", "off")] {
        let grant = freshd.wait_for_state(user, provider, "paused").await;
        assert_eq!(grant["reason"], "inactive");
    }
    let before = freshd.grant("anna", "acme").await["generation"]
        .as_u64()
        .unwrap();
    assert_eq!(before, 1, "the pause came before any refresh");
    freshd.restart().await;

    let kept = freshd.wait_for_generation("anna", "acme", 2).await;
    assert!(
        began.elapsed() >= Duration::from_millis(3_700),
        "it came after {:?}",
        began.elapsed()
    );
    assert_eq!(
        (&kept["state"], &kept["reason"]),
        (&json!("paused"), &json!("inactive"))
    );
    freshd.wait_for_generation("anna", "acme", 3).await;
    assert_eq!(rotating.refreshes("anna"), 2, "and rests in between");
    assert_eq!(rotating.refreshes("bert"), 0);
    assert_eq!(rotating.superseded_presented_outside_grace(), 0);
}
