//! Trouble with a provider, or with our registration there, never becomes its users' trouble (I5).

mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use support::daemon::Config;
use support::{Answer, Freshd, Rotating, ScriptedServer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_client_secret_stops_the_provider_marks_nobody_and_is_mended_by_a_reload() {
    const USERS: usize = 500;
    let rotating = Rotating::new(3600);
    rotating.accept_only("client-acme", "the right secret");
    let acme = ScriptedServer::start(rotating.script()).await;
    let others = Rotating::new(3600);
    let other = ScriptedServer::start(others.script()).await;
    let config = Config::new()
        .provider("acme", &acme, "rotation = \"strict\"\nmax-in-flight = 4")
        .provider("other", &other, "rotation = \"strict\"");
    config.write_secret("acme", "the wrong secret");
    let freshd = Freshd::start(config).await;
    for number in 0..USERS {
        let user = format!("user-{number}");
        freshd
            .import(&user, "acme", &rotating.issue(&user).import_expired())
            .await;
    }

    let provider = freshd.wait_for_provider("acme", "stopped").await;
    assert!(
        provider["reason"]
            .as_str()
            .unwrap()
            .contains("invalid_client"),
        "{provider}"
    );
    let handful = acme.refreshes().len();
    assert!(handful <= 8, "{handful} requests before it stopped");
    assert_eq!(needing_authorization(&freshd).await, 0);

    // The other provider's grants don't notice.
    freshd
        .import("user-0", "other", &others.issue("user-0").import_expired())
        .await;
    assert!(others.is_active(freshd.token("user-0", "other").await.token()));
    let reply = freshd.token_with("user-0", "acme", "wait=1").await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert_eq!(
        acme.refreshes().len(),
        handful,
        "it stays stopped, readers or not"
    );

    freshd.config.write_secret("acme", "the right secret");
    freshd.reload().await.unwrap();

    acme.nth_refresh(handful + USERS).await;
    freshd.wait_for_provider("acme", "running").await;
    for number in 0..USERS {
        let reply = freshd.token(&format!("user-{number}"), "acme").await;
        assert!(rotating.is_active(reply.token()));
    }
    assert_eq!(needing_authorization(&freshd).await, 0);
    assert_eq!(rotating.superseded_presented_outside_grace(), 0);
}

#[tokio::test]
async fn a_stopped_provider_stays_stopped_over_a_restart() {
    let server = ScriptedServer::start(|_| Answer::error(401, "invalid_client")).await;
    let mut freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    freshd
        .import(
            "anna",
            "acme",
            &Rotating::new(60).issue("anna").import_expired(),
        )
        .await;
    freshd.wait_for_provider("acme", "stopped").await;
    let before = server.refreshes().len();

    freshd.restart().await;

    assert_eq!(
        freshd.wait_for_provider("acme", "stopped").await["name"],
        "acme"
    );
    assert_eq!(
        freshd.token_with("anna", "acme", "wait=1").await.status,
        503
    );
    assert_eq!(server.refreshes().len(), before);
}

async fn needing_authorization(freshd: &Freshd) -> u64 {
    let status = freshd.status().await;
    let counts = status["grants"].as_array().expect("status counts grants");
    let needing = counts
        .iter()
        .filter(|count| count["state"] == "needs-authorization");
    needing
        .map(|count| count["grants"].as_u64().expect("a count"))
        .sum()
}

#[tokio::test]
async fn after_a_429_all_grants_of_that_provider_wait_and_no_others() {
    const WAIT: Duration = Duration::from_secs(3);
    let rotating = Rotating::new(3600);
    let mut rules = rotating.script();
    let mut first = true;
    let acme = ScriptedServer::start(move |request| {
        if std::mem::take(&mut first) {
            Answer::error(429, "slow_down").header("retry-after", "3")
        } else {
            rules(request)
        }
    })
    .await;
    let others = Rotating::new(3600);
    let other = ScriptedServer::start(others.script()).await;
    let config = Config::new()
        // One at a time, so that exactly one request meets the 429.
        .provider("acme", &acme, "rotation = \"strict\"\nmax-in-flight = 1")
        .provider("other", &other, "rotation = \"strict\"");
    let freshd = Freshd::start(config).await;
    let users: Vec<String> = (0..20).map(|number| format!("user-{number}")).collect();
    for user in &users {
        freshd
            .import(user, "acme", &rotating.issue(user).import_expired())
            .await;
    }
    let refused = acme.nth_refresh(1).await;
    freshd.wait_for_provider("acme", "cooling-down").await;

    freshd
        .import("user-0", "other", &others.issue("user-0").import_expired())
        .await;
    assert!(others.is_active(freshd.token("user-0", "other").await.token()));
    let meanwhile = other.nth_refresh(1).await;

    let next = acme.nth_refresh(2).await;
    let waited = next.at.duration_since(refused.at);
    assert!(waited >= WAIT, "the next request came after {waited:?}");
    assert!(meanwhile.at < next.at, "the other provider did not wait");
    acme.nth_refresh(users.len() + 1).await;
    for user in &users {
        assert!(rotating.is_active(freshd.token_with(user, "acme", "wait=20").await.token()));
    }
}

#[tokio::test]
async fn a_cool_down_survives_a_kill() {
    let rotating = Rotating::new(3600);
    let mut rules = rotating.script();
    let mut first = true;
    let server = ScriptedServer::start(move |request| {
        if std::mem::take(&mut first) {
            Answer::error(429, "slow_down").header("retry-after", "4")
        } else {
            rules(request)
        }
    })
    .await;
    let config = Config::new().provider("acme", &server, "rotation = \"none\"");
    let mut freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    let refused = server.nth_refresh(1).await;
    freshd.wait_for_provider("acme", "cooling-down").await;

    freshd.kill().await;
    freshd.start_again().await;

    let waited = server.nth_refresh(2).await.at.duration_since(refused.at);
    assert!(
        waited >= Duration::from_secs(4),
        "the next request came after {waited:?}"
    );
}

#[tokio::test]
async fn a_provider_that_never_answers_slows_no_other() {
    let gate = support::Gate::shut();
    let held = gate.clone();
    let silent =
        ScriptedServer::start(move |_| Answer::error(500, "never seen").held_by(&held)).await;
    let rotating = Rotating::new(3600);
    let other = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .provider("silent", &silent, "max-in-flight = 8")
        .provider("other", &other, "rotation = \"strict\"");
    let freshd = Freshd::start(config).await;
    let nobodys = Rotating::new(3600);
    for number in 0..100 {
        let user = format!("user-{number}");
        freshd
            .import(&user, "silent", &nobodys.issue(&user).import_expired())
            .await;
    }
    silent.nth_refresh(8).await;

    for number in 0..20 {
        let user = format!("user-{number}");
        freshd
            .import(&user, "other", &rotating.issue(&user).import_expired())
            .await;
        assert!(rotating.is_active(freshd.token(&user, "other").await.token()));
    }
    assert_eq!(silent.refreshes().len(), 8, "its own limit holds");
}

#[tokio::test]
async fn an_unreachable_provider_gets_single_probes_over_a_kill_and_recovers_by_itself() {
    const USERS: usize = 30;
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(|_| Answer::raw(502, "text/html", "<h1>down</h1>")).await;
    let config =
        Config::new().provider("acme", &server, "rotation = \"strict\"\nmax-in-flight = 4");
    let mut freshd = Freshd::start(config).await;
    let users: Vec<String> = (0..USERS).map(|number| format!("user-{number}")).collect();
    for user in &users {
        freshd
            .import(user, "acme", &rotating.issue(user).import_expired())
            .await;
    }
    let living = rotating.issue("living");
    freshd.import("living", "acme", &living.import()).await;

    freshd.wait_for_provider("acme", "unreachable").await;
    let opened = freshd.wait_for_log("provider-unreachable").await;
    assert!(opened.contains("acme"), "{opened}");
    // Four at once and five to open it, then one after the other, seconds apart.
    let probed = server.nth_refresh(server.refreshes().len() + 2).await;
    let few = server.refreshes().len();
    assert!(few <= 8 + 4, "{few} requests for {USERS} grants");

    // A token that lives is served (I4), a caller who can't be helped in time is told so at once.
    assert_eq!(
        freshd.token("living", "acme").await.token(),
        living.access_token
    );
    let asked = support::instant();
    let reply = freshd.token_with("user-3", "acme", "wait=1").await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert!(
        reply.json["retry_after"]
            .as_u64()
            .is_some_and(|secs| secs >= 1)
    );
    assert!(support::instant().duration_since(asked) < Duration::from_secs(5));

    freshd.kill().await;
    let before = server.refreshes().len();
    freshd.start_again().await;
    freshd.wait_for_provider("acme", "unreachable").await;
    let after = server.nth_refresh(before + 1).await;
    assert!(after.at > probed.at);
    assert!(
        server.refreshes().len() <= before + 2,
        "still one at a time"
    );

    server.answer_with(rotating.script());
    freshd.wait_for_log("provider-recovered").await;
    freshd.wait_for_provider("acme", "running").await;
    for user in &users {
        assert!(rotating.is_active(freshd.token_with(user, "acme", "wait=30").await.token()));
    }
    assert_eq!(needing_authorization(&freshd).await, 0);
    assert_eq!(rotating.superseded_presented_outside_grace(), 0);
    assert_eq!(
        freshd.logs().matches("provider-unreachable").count(),
        1,
        "told once"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_overdue_at_a_start_stay_under_the_rate_and_the_soonest_to_end_go_first() {
    const USERS: usize = 5_000;
    const ENDING: usize = 500;
    const RATE: usize = 400;
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().refresh("margin = \"1s\"").provider(
        "acme",
        &server,
        &format!("rotation = \"strict\"\nrate = \"{RATE}/s\""),
    );
    let mut freshd = Freshd::start(config).await;
    let ends: HashMap<String, i64> = (0..USERS)
        .map(|number| {
            // One in ten ends in two minutes, spread over the table; the others' lives are as good as whole.
            let left = if number % (USERS / ENDING) == 7 {
                120
            } else {
                1_000 + (number as i64 * 7) % 500
            };
            (format!("user-{number}"), left)
        })
        .collect();
    let mut owners = HashMap::new();
    let mut lines = String::new();
    for (user, left) in &ends {
        let issued = rotating.issue(user);
        let mut line = issued.import_aged(3600 - left, *left);
        line["user"] = user.as_str().into();
        line["provider"] = "acme".into();
        lines += &format!("{line}\n");
        owners.insert(issued.refresh_token, user.clone());
    }
    let file = freshd.config.path().join("grants.jsonl");
    std::fs::write(&file, lines).unwrap();
    let file = file.to_str().unwrap();
    let said = freshd.freshctl(&["import", "--jsonl", file], "").await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(server.refreshes().is_empty(), "nothing is due yet");
    freshd.stop().await;
    // Half of each lifetime: all 5,000 are overdue.
    freshd.config.refresh = "margin = \"30m\"".into();

    freshd.start_again().await;
    for tenth in 1..=10 {
        server.nth_refresh(tenth * USERS / 10).await;
    }

    let refreshes = server.refreshes();
    let arrivals: Vec<Instant> = refreshes.iter().map(|refresh| refresh.at).collect();
    // A tenth of a second's worth may leave at once, and what left apart may arrive together.
    let most = RATE + RATE / 10 + RATE / 10;
    for (first, at) in arrivals.iter().enumerate() {
        let within =
            arrivals[first..].partition_point(|later| *later - *at < Duration::from_secs(1));
        assert!(within <= most, "{within} requests within a second");
    }
    let last_ending = refreshes
        .iter()
        .rposition(|refresh| ends[&owners[refresh.refresh_token()]] == 120)
        .unwrap();
    assert!(
        last_ending < ENDING + ENDING / 10,
        "the last one that ends soon came as number {last_ending}"
    );
    let active = ends.keys().filter(|user| rotating.refreshes(user) == 1);
    assert_eq!(active.count(), USERS, "each once");
    assert_eq!(rotating.superseded_presented_outside_grace(), 0);
}
