//! The metrics say what happened, on the admin socket and where asked for on loopback, and name no user.

mod support;

use std::collections::BTreeMap;

use hyper::Method;
use support::daemon::Config;
use support::{Answer, Freshd, Rotating, ScriptedServer, eventually, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A page as a map from series to value.
fn series(page: &str) -> BTreeMap<String, f64> {
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            (series.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

async fn scrape(freshd: &Freshd) -> BTreeMap<String, f64> {
    let reply = freshd.admin(Method::GET, "/metrics").await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(
        reply.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    series(&reply.text)
}

/// Sends a request to a TCP address and returns the whole answer.
async fn raw(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .await
        .expect("it answers and hangs up");
    answer
}

#[tokio::test]
async fn what_happened_is_counted_and_what_is_held_is_shown() {
    let acme = Rotating::new(3600);
    let server = ScriptedServer::start(acme.script()).await;
    let dead = ScriptedServer::start(|_| Answer::error(400, "invalid_grant")).await;
    let config = Config::new()
        .provider("acme", &server, "rotation = \"strict\"")
        .provider("dead", &dead, "");
    let freshd = Freshd::start(config).await;
    let zero = scrape(&freshd).await;
    let needs =
        "freshd_needs_authorization_total{provider=\"dead\",reason=\"revoked-or-used-elsewhere\"}";
    assert_eq!(zero[needs], 0.0, "an increase from nothing is none");
    assert_eq!(zero["freshd_event_streams"], 0.0);

    freshd
        .import("anna", "acme", &acme.issue("anna").import_expired())
        .await;
    freshd
        .import(
            "anna",
            "dead",
            &Rotating::new(60).issue("anna").import_expired(),
        )
        .await;
    freshd.wait_for_generation("anna", "acme", 2).await;
    freshd
        .wait_for_state("anna", "dead", "needs-authorization")
        .await;
    for _ in 0..3 {
        freshd.token("anna", "acme").await.token();
    }

    let now = scrape(&freshd).await;
    for (series, value) in [
        (
            "freshd_attempts_total{provider=\"acme\",outcome=\"token-set\"}",
            1.0,
        ),
        (
            "freshd_attempts_total{provider=\"dead\",outcome=\"refused-for-good\"}",
            1.0,
        ),
        (
            "freshd_attempt_duration_seconds_count{provider=\"acme\"}",
            1.0,
        ),
        ("freshd_lateness_seconds_count{provider=\"acme\"}", 1.0),
        ("freshd_tokens_served_total{provider=\"acme\"}", 3.0),
        (
            "freshd_grants{provider=\"acme\",state=\"active\",reason=\"\"}",
            1.0,
        ),
        (
            "freshd_grants{provider=\"dead\",state=\"active\",reason=\"\"}",
            0.0,
        ),
        (
            "freshd_grants{provider=\"dead\",state=\"needs-authorization\",reason=\"revoked-or-used-elsewhere\"}",
            1.0,
        ),
        (
            "freshd_provider_state{provider=\"acme\",state=\"running\"}",
            1.0,
        ),
        (
            "freshd_provider_state{provider=\"acme\",state=\"stopped\"}",
            0.0,
        ),
        (needs, 1.0),
        ("freshd_store_failing", 0.0),
        ("freshd_held_sets", 0.0),
        ("freshd_spilled_sets", 0.0),
        ("freshd_revocations_waiting", 0.0),
    ] {
        assert_eq!(now.get(series), Some(&value), "{series}");
    }
    assert!(now["freshd_disk_free_bytes"] > 0.0);
    let soonest = now["freshd_soonest_expiry_timestamp_seconds{provider=\"acme\"}"];
    let left = soonest - support::unix_now() as f64;
    assert!((3500.0..=3601.0).contains(&left), "{left} s left");
    let due = now["freshd_next_due_timestamp_seconds"];
    assert!(due < soonest, "due at {due}, ends at {soonest}");
    assert!(!now.contains_key("freshd_soonest_expiry_timestamp_seconds{provider=\"dead\"}"));
}

#[tokio::test]
async fn no_series_names_a_user_and_apps_get_none() {
    let acme = Rotating::new(3600);
    let server = ScriptedServer::start(acme.script()).await;
    let freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    let user = "somebody-rather-unusual";
    freshd
        .import(user, "acme", &acme.issue(user).import_expired())
        .await;
    freshd.token(user, "acme").await.token();
    let page = freshd.admin(Method::GET, "/metrics").await.text;
    assert!(
        page.contains("freshd_tokens_served_total{provider=\"acme\"} 1"),
        "{page}"
    );
    assert!(!page.contains("unusual"), "{page}");
    freshd
        .get("/metrics")
        .await
        .is_problem(404, "no-such-route");
}

#[tokio::test]
async fn an_open_stream_of_events_is_counted_until_it_closes() {
    let server = ScriptedServer::start(|_| Answer::error(500, "server_error")).await;
    let freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    let listener = support::Listener::now(&freshd.config.admin_socket()).await;
    let streams = |wanted: f64| {
        let freshd = &freshd;
        eventually("the streams to be counted", move || async move {
            (scrape(freshd).await["freshd_event_streams"] == wanted).then_some(())
        })
    };
    streams(1.0).await;
    drop(listener);
    streams(0.0).await;
}

/// A daemon that serves its metrics on a loopback address, and that address.
async fn on_loopback() -> (Freshd, String) {
    let server = ScriptedServer::start(|_| Answer::error(500, "server_error")).await;
    let config = Config::new()
        .provider("acme", &server, "")
        .daemon("metrics-listen = \"127.0.0.1:0\"");
    let freshd = Freshd::start(config).await;
    let line = freshd.wait_for_log("metrics-listening").await;
    let address = line.split("address=").nth(1).expect("it is told").trim();
    (freshd, address.to_owned())
}

#[tokio::test]
async fn on_loopback_a_scraper_gets_the_metrics_and_nothing_else() {
    let (_freshd, address) = on_loopback().await;
    let address = address.as_str();

    let page = raw(
        address,
        &format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n"),
    )
    .await;
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    assert!(page.contains("\nfreshd_store_failing 0\n"), "{page}");
    for (request, status) in [
        (
            format!("GET /v1/status HTTP/1.1\r\nHost: {address}\r\n\r\n"),
            404,
        ),
        (
            format!("POST /metrics HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n"),
            405,
        ),
        (
            format!(
                "GET /metrics HTTP/1.1\r\nHost: {address}\r\nOrigin: https://evil.example\r\n\r\n"
            ),
            403,
        ),
        (
            "GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(),
            403,
        ),
    ] {
        let answer = raw(address, &request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}{answer}"
        );
        assert!(!answer.contains("freshd_store"), "{answer}");
    }
}

#[tokio::test]
async fn who_only_sits_on_the_loopback_port_makes_no_scraper_wait() {
    let (_freshd, address) = on_loopback().await;
    let address = address.as_str();
    let mut sitting = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metr").await.unwrap();
        sitting.push(stream);
    }
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let page = within("a scrape", raw(address, &request)).await;
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
}

#[test]
fn the_readme_says_what_each_metric_means() {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for metric in freshd::metrics::ALL {
        let (name, kind, labels) = (metric.name, metric.kind.name(), metric.labels.join(", "));
        let row = format!(
            "| `{name}` | {kind} | {labels} | {} | {} |",
            metric.unit, metric.help
        );
        assert!(readme.contains(&row), "README.md has no row: {row}");
    }
}
