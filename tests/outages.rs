//! What befalls many grants is a few lines in the log, with counts that add up: an outage, or a mass revocation.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::daemon::Config;
use support::{Answer, Freshd, Rotating, ScriptedServer, eventually};

/// The number behind `name=` in a log line.
fn number(line: &str, name: &str) -> u64 {
    let field = line.split(&format!("{name}=")).nth(1).expect("it is there");
    let digits = field.chars().take_while(char::is_ascii_digit);
    digits.collect::<String>().parse().expect("a number")
}

fn lines<'a>(log: &'a str, event: &str) -> Vec<&'a str> {
    let named = |line: &&str| line.split_whitespace().any(|word| word == event);
    log.lines().filter(named).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_grants_fail_and_recover_in_a_handful_of_lines() {
    const USERS: u64 = 300;
    let rotating = Rotating::new(3600);
    let (down, mut rules) = (Arc::new(AtomicBool::new(true)), rotating.script());
    let server = ScriptedServer::start({
        let down = down.clone();
        move |request| {
            // Told apart from an unreachable server: no breaker keeps the grants from being tried.
            match request.refresh_token().starts_with("dead") {
                true => Answer::error(400, "invalid_grant"),
                false if down.load(Ordering::SeqCst) => Answer::error(400, "invalid_request"),
                false => rules(request),
            }
        }
    })
    .await;
    let config = Config::new().provider("acme", &server, "rotation = \"overlap\"");
    let freshd = Freshd::start(config).await;
    for number in 0..USERS {
        let user = format!("user-{number}");
        let tokens = rotating.issue(&user).import_expired();
        freshd.import(&user, "acme", &tokens).await;
    }
    let first = freshd.wait_for_log("refresh-failing").await;
    assert!(first.contains("provider=acme"), "{first}");
    assert!(first.contains("invalid_request ×"), "{first}");
    // Verdicts in the middle of it are told, each.
    for number in 0..20 {
        let user = format!("gone-{number}");
        let tokens = serde_json::json!({ "refresh_token": format!("dead-{number}") });
        freshd.import(&user, "acme", &tokens).await;
        let needs = freshd.wait_for_state(&user, "acme", "needs-authorization");
        needs.await;
    }

    server.nth_refresh(USERS as usize + 20).await;
    down.store(false, Ordering::SeqCst);
    for number in 0..USERS {
        let user = format!("user-{number}");
        freshd.wait_for_generation(&user, "acme", 2).await;
    }
    let over = freshd.wait_for_log("refresh-failing-over").await;

    let log = freshd.logs();
    assert_eq!(number(&over, "grants"), USERS, "{over}");
    assert_eq!(number(&over, "recovered"), USERS, "{over}");
    assert_eq!(lines(&log, "needs-authorization").len(), 20, "{log}");
    let (failed, recovered) = (lines(&log, "refresh-failed"), lines(&log, "recovered"));
    assert_eq!((failed.len(), recovered.len()), (5, 5));
    let counts = lines(&log, "refresh-failing");
    assert!(counts.len() <= 5, "{counts:#?}");
    let counted: u64 = counts.iter().map(|line| number(line, "grants")).sum();
    assert!(counted <= USERS, "none is counted twice: {counts:#?}");
}

#[tokio::test]
async fn at_debug_level_each_failure_is_told() {
    const USERS: usize = 40;
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(|_| Answer::error(400, "invalid_request")).await;
    let config = Config::new()
        .provider("acme", &server, "rotation = \"overlap\"")
        .daemon("log-level = \"debug\"");
    let freshd = Freshd::start(config).await;
    for number in 0..USERS {
        let user = format!("user-{number}");
        let tokens = rotating.issue(&user).import_expired();
        freshd.import(&user, "acme", &tokens).await;
    }
    for number in 0..USERS {
        let line = freshd
            .wait_for_log(&format!("refresh-failed user=user-{number} "))
            .await;
        assert!(line.contains("INFO") || line.contains("DEBUG"), "{line}");
    }
}

#[tokio::test]
async fn a_stop_tells_what_was_counted_and_not_told_yet() {
    const USERS: u64 = 30;
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(|_| Answer::error(400, "invalid_request")).await;
    let config = Config::new().provider("acme", &server, "rotation = \"overlap\"");
    let mut freshd = Freshd::start(config).await;
    for number in 0..USERS {
        let user = format!("user-{number}");
        let tokens = rotating.issue(&user).import_expired();
        freshd.import(&user, "acme", &tokens).await;
    }
    server.nth_refresh(USERS as usize).await;
    for number in 0..USERS {
        let reply = freshd.delete(&format!("/v1/users/user-{number}")).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    freshd.stop().await;

    let log = freshd.logs();
    let told = |event, field| {
        lines(&log, event)
            .iter()
            .map(|line| number(line, field))
            .sum::<u64>()
    };
    assert_eq!(told("refresh-failing", "grants"), USERS, "{log}");
    let (counted, each): (Vec<&str>, Vec<&str>) = lines(&log, "deleted")
        .into_iter()
        .partition(|line| line.contains("grants="));
    assert_eq!(each.len(), 20, "{log}");
    assert_eq!(
        counted
            .iter()
            .map(|line| number(line, "grants"))
            .sum::<u64>(),
        USERS - 20
    );
    for line in each.iter().chain(&counted) {
        assert!(line.contains("by=\"app test\""), "{line}");
    }
}

#[tokio::test]
async fn a_mass_revocation_is_twenty_lines_and_counts_and_every_grant_has_its_event() {
    const USERS: u64 = 120;
    let server = ScriptedServer::start(|_| Answer::error(400, "invalid_grant")).await;
    let freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    for number in 0..USERS {
        let tokens = serde_json::json!({ "refresh_token": format!("dead-{number}") });
        freshd
            .import(&format!("user-{number}"), "acme", &tokens)
            .await;
    }
    for number in 0..USERS {
        let user = format!("user-{number}");
        freshd
            .wait_for_state(&user, "acme", "needs-authorization")
            .await;
    }
    for event in ["imported", "needs-authorization"] {
        let log = eventually("the counts to add up", || async {
            let log = freshd.logs();
            let counts = lines(&log, event);
            let counts = counts.iter().filter(|line| line.contains("grants="));
            let counted: u64 = counts.map(|line| number(line, "grants")).sum();
            (counted == USERS - 20).then_some(log)
        })
        .await;
        let (counts, in_full): (Vec<_>, Vec<_>) = lines(&log, event)
            .into_iter()
            .partition(|line| line.contains("grants="));
        assert_eq!(in_full.len(), 20, "{in_full:#?}");
        assert!(in_full.iter().all(|line| line.contains("user=")));
        assert!(counts.len() <= 4, "{counts:#?}");
    }
    let kept = support::Listener::kept(&freshd.config.admin_socket()).await;
    let told = kept
        .iter()
        .filter(|heard| heard.event == "needs-authorization");
    assert_eq!(told.count() as u64, USERS);
}
