//! The real daemon while its wall clock is set: libfaketime stands between it and the system's clock.
//!
//! What the clock may do in all its variety is tested in `src/daemon/steps_tests.rs`, with a clock of our own.

mod support;

use support::daemon::Config;
use support::{Freshd, Rotating, ScriptedServer, eventually, fake_clock, unix_now};

const EIGHT_HOURS: i64 = 8 * 3600;

#[tokio::test]
async fn a_clock_set_forward_and_back_by_8_hours_is_a_catch_up_and_no_storm() {
    let Some(library) = fake_clock::libfaketime() else {
        return;
    };
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let config = fake_clock::take(config, &library);
    let freshd = Freshd::start(config).await;
    let users: Vec<String> = (0..10).map(|number| format!("user-{number}")).collect();
    for user in &users {
        freshd
            .import(user, "acme", &rotating.issue(user).import())
            .await;
    }
    freshd.token("user-0", "acme").await;
    assert_eq!(server.refreshes().len(), 0);

    // Everything is overdue at once: each is refreshed, once.
    fake_clock::set(&freshd.config, EIGHT_HOURS);
    for user in &users {
        freshd.wait_for_generation(user, "acme", 2).await;
    }
    freshd.wait_for_log("clock-stepped").await;

    // Tokens from the future count from now; nothing is asked for again.
    fake_clock::set(&freshd.config, 0);
    eventually("the grants to be restamped", || async {
        let mut ends = Vec::new();
        for user in &users {
            let grant = freshd.grant(user, "acme").await;
            ends.push(support::seconds(&grant["expires_at"]));
        }
        let latest = unix_now() as f64 + 3605.0;
        // A look at the status also wakes the driver, which looks at the clock within seconds anyway.
        freshd.status().await;
        ends.iter().all(|at| *at <= latest).then_some(())
    })
    .await;
    let reply = freshd.token("user-0", "acme").await;
    assert!(rotating.is_active(reply.token()));
    assert!(
        reply.json["expires_in"].as_u64().unwrap() <= 3600,
        "{}",
        reply.text
    );
    assert_eq!(server.refreshes().len(), users.len(), "no storm");
    for user in &users {
        assert_eq!(
            freshd.grant(user, "acme").await["state"],
            "active",
            "{user}"
        );
        assert_eq!(rotating.refreshes(user), 1, "{user}");
    }
    assert_eq!(rotating.superseded_presented_outside_grace(), 0);
    let steps = freshd.logs().matches("clock-stepped").count();
    assert_eq!(steps, 2, "{}", freshd.logs());
}
