//! Keep-alive, deadlines, caps, shutdown, and whatever bytes a peer may send.

use std::io::{Read, Write};

use proptest::prelude::*;

use super::*;
use crate::local_api::request::{Names, Query};

const TOKEN: &str = "GET /v1/users/42/grants/google/token";
const SLOW: &str = "GET /v1/users/slow/grants/google/token";

fn raw(request: &str) -> Vec<u8> {
    format!("{request} HTTP/1.1\r\nhost: freshd\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn a_reload_takes_effect_on_an_open_connection() {
    let site = Site::shared();
    let mut client = site.connect().await;
    assert_eq!(client.ask(TOKEN).await.status, 200);
    site.rules.store(Arc::new(Rules::new(vec![])));
    assert_eq!(client.ask(TOKEN).await.status, 403);
    let moved = Rule {
        namespace: "moved".into(),
        ..rule()
    };
    site.rules.store(Arc::new(Rules::new(vec![moved])));
    site.keeper.calls();
    assert_eq!(client.ask(TOKEN).await.status, 200);
    assert!(site.keeper.calls()[0].starts_with("token moved/42/google "));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let site = Site::shared();
    let mut client = site.connect().await;
    let three = [raw(TOKEN), raw("GET /nothing"), raw(TOKEN)].concat();
    client.send(&three).await;
    for expected in [200, 404, 200] {
        assert_eq!(client.reply().await.unwrap().status, expected);
    }
}

fn short() -> Limits {
    let instant = Duration::from_millis(50);
    Limits {
        head_read: instant,
        body_read: instant,
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_client_whose_head_trickles_is_dropped_and_an_idle_one_is_not() {
    let site = Site::limited(SocketKind::Shared, vec![rule()], short());
    let mut idle = site.connect().await;
    assert_eq!(idle.ask(TOKEN).await.status, 200);
    let mut slow = site.connect().await;
    slow.send(b"GET /v1/users/42 HT").await;
    assert!(slow.reply().await.is_none());
    assert_eq!(
        idle.ask(TOKEN).await.status,
        200,
        "rested longer than a head may take"
    );
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_408() {
    let site = Site::limited(SocketKind::Shared, vec![rule()], short());
    let mut client = site.connect().await;
    client
        .send(b"PUT /v1/users/42/grants/google HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        .await;
    let reply = client.reply().await.unwrap();
    assert_eq!(
        (reply.status, &reply.json()["type"]),
        (408, &"urn:freshd:request-timeout".into())
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed_at_its_limit() {
    let limits = Limits {
        idle: Duration::from_millis(50),
        ..Limits::default()
    };
    let site = Site::limited(SocketKind::Shared, vec![rule()], limits);
    let mut client = site.connect().await;
    assert_eq!(client.ask(TOKEN).await.status, 200);
    assert!(client.reply().await.is_none());
    assert!(
        site.connect().await.reply().await.is_none(),
        "one that never asks, too"
    );
}

#[tokio::test]
async fn a_request_has_a_deadline_as_a_whole() {
    let limits = Limits {
        request: Duration::from_millis(50),
        ..Limits::default()
    };
    let site = Site::limited(SocketKind::Shared, vec![rule()], limits);
    let reply = site.ask(SLOW).await;
    assert_eq!(
        (reply.status, &reply.json()["type"]),
        (503, &"urn:freshd:deadline-exceeded".into())
    );
    assert_eq!(reply.headers["retry-after"], "1");
    assert_eq!(reply.headers["cache-control"], "no-store");
}

#[tokio::test]
async fn connections_beyond_the_cap_are_turned_away_until_one_ends() {
    let limits = Limits {
        connections: 2,
        reserved: 0,
        ..Limits::default()
    };
    let site = Site::limited(SocketKind::Shared, vec![rule()], limits);
    let mut first = site.connect().await;
    let mut second = site.connect().await;
    assert_eq!(first.ask(TOKEN).await.status, 200);
    assert_eq!(second.ask(TOKEN).await.status, 200);
    let turned_away = site.connect().await.reply().await.unwrap();
    assert_eq!(turned_away.status, 503);
    assert_eq!(
        turned_away.json()["type"],
        "urn:freshd:too-many-connections"
    );
    drop(first);
    let mut third = loop {
        let mut client = site.connect().await;
        client.send(&raw(TOKEN)).await;
        // The server may not have seen yet that the first is gone.
        match client.reply().await {
            Some(reply) if reply.status == 200 => break client,
            _ => tokio::task::yield_now().await,
        }
    };
    assert_eq!(second.ask(TOKEN).await.status, 200);
    assert_eq!(third.ask(TOKEN).await.status, 200);
}

#[tokio::test]
async fn peers_without_a_rule_cannot_take_the_places_of_those_with_one() {
    let limits = Limits {
        // One uid of them gets half.
        strangers: 4,
        ..Limits::default()
    };
    let site = Site::limited(SocketKind::Shared, vec![], limits);
    let mut strangers = [site.connect().await, site.connect().await];
    for stranger in &mut strangers {
        assert_eq!(stranger.ask(TOKEN).await.status, 403);
    }
    let turned_away = site.connect().await.reply().await.unwrap();
    assert_eq!(turned_away.status, 503);

    site.rules.store(Arc::new(Rules::new(vec![rule()])));
    assert_eq!(site.ask(TOKEN).await.status, 200);
}

#[tokio::test]
async fn shutdown_waits_for_the_first_request_of_who_has_just_connected() {
    let site = Site::shared();
    let mut fresh = site.connect().await;
    // Accepted in turn: when this one is answered, the first is no longer in the backlog.
    let mut idle = site.connect().await;
    assert_eq!(idle.ask(TOKEN).await.status, 200);
    let path = site.path();
    site.stop.send(()).unwrap();
    while UnixStream::connect(&path).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(fresh.ask(TOKEN).await.status, 200);
    assert!(idle.reply().await.is_none());
    site.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn shutdown_finishes_requests_in_flight_closes_idle_connections_and_returns() {
    let site = Site::shared();
    let mut idle = site.connect().await;
    assert_eq!(idle.ask(TOKEN).await.status, 200);
    let mut fresh = site.connect().await;
    let mut busy = site.connect().await;
    busy.send(&raw(SLOW)).await;
    site.keeper.slow_began.notified().await;
    site.stop.send(()).unwrap();
    assert!(idle.reply().await.is_none());
    assert!(fresh.reply().await.is_none());
    let refused = async {
        // A child that another test forks right now holds a copy of the listener until its exec.
        while UnixStream::connect(site.directory.path().join("s"))
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), refused)
        .await
        .expect("a closed listener");
    assert!(!site.server.is_finished());
    site.keeper.slow.add_permits(1);
    let reply = busy.reply().await.unwrap();
    assert_eq!(
        (reply.status, reply.headers["connection"].as_str()),
        (200, "close")
    );
    site.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_was_sent_before_the_stop_is_answered_and_who_sends_later_knows_that_it_was_not_taken()
{
    for headers in ["", "freshd-namespace: default\r\n"] {
        let site = Site::shared();
        let mut client = site.connect().await;
        assert_eq!(client.ask(TOKEN).await.status, 200);
        let request = format!("{TOKEN} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        // What serves the connection runs on this thread, and sees neither before both are done.
        let sent = client.stream.try_write(request.as_bytes()).unwrap();
        assert_eq!(sent, request.len());
        site.stop.send(()).unwrap();
        // Only if it is answered after the last connection was taken, on another thread, it says that it is the last.
        assert_eq!(client.reply().await.expect("an answer").status, 200);
        site.server.await.unwrap().unwrap();
        let later = client.stream.try_write(request.as_bytes()).unwrap_err();
        assert_eq!(later.kind(), std::io::ErrorKind::BrokenPipe);
        assert!(client.reply().await.is_none());
    }
}

#[tokio::test]
async fn a_client_that_ends_what_it_says_is_answered_all_the_same() {
    let site = Site::shared();
    site.keeper.slow.add_permits(1);
    let import = format!("{{\"refresh_token\":\"{CANARY}\"}}");
    let import = format!(
        "PUT /v1/users/42/grants/google HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{import}",
        import.len()
    );
    let requests = [
        (raw(TOKEN), 200),
        (raw(SLOW), 200),
        (raw("GET /v1/users/nobody/grants/google/token"), 404),
        (raw("GET /v1/users/42"), 200),
        (raw("POST /v1/users/42/grants/google/refresh"), 200),
        (raw("GET /healthz"), 200),
        (import.into_bytes(), 201),
    ];
    for (request, status) in requests {
        let mut client = site.connect().await;
        client.send(&request).await;
        client.stream.shutdown().await.unwrap();
        let reply = client.reply().await.expect("an answer");
        assert_eq!(
            reply.status,
            status,
            "{}",
            String::from_utf8_lossy(&request)
        );
        assert!(client.reply().await.is_none());
    }
}

#[tokio::test]
async fn a_client_that_goes_leaves_its_place_at_once() {
    let limits = Limits {
        streams: 1,
        heartbeat: Duration::from_secs(3600),
        ..Limits::default()
    };
    let site = Site::limited(SocketKind::Shared, vec![rule()], limits);
    let (_feed, events) = mpsc::unbounded_channel();
    *site.keeper.feed.lock().unwrap() = Some(events);
    let mut gone = site.connect().await;
    gone.send(&raw("GET /v1/events")).await;
    assert!(gone.more().await);
    assert_eq!(site.ask("GET /v1/events").await.status, 429);
    drop(gone);
    let again = async {
        while site.ask("GET /v1/events").await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(20), again);
    again.await.expect("a place for another stream");
}

#[tokio::test]
async fn refusals_are_logged_once_with_the_rule_that_would_admit_and_secrets_never() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let writer = Arc::clone(&log);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || Writer(Arc::clone(&writer)))
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let site = Site::new(SocketKind::Shared, vec![]);
    for _ in 0..3 {
        assert_eq!(site.ask(TOKEN).await.status, 403);
    }
    site.rules.store(Arc::new(Rules::new(vec![rule()])));
    let import = format!("PUT /v1/users/42/grants/google\n\n{{\"refresh_token\":\"{CANARY}\"}}");
    assert_eq!(site.ask(&import).await.status, 201);
    let bad = format!("PUT /v1/users/42/grants/google\n\n{{\"refresh_token\":[\"{CANARY}\"]}}");
    let reply = site.ask(&bad).await;
    assert!(!String::from_utf8(reply.body).unwrap().contains(CANARY));
    assert_eq!(site.ask(TOKEN).await.status, 200);
    assert_eq!(
        site.ask("POST /v1/users/42/grants/google/refresh")
            .await
            .status,
        200
    );
    let mut garbage = site.connect().await;
    garbage
        .send(format!("{CANARY} \0\r\n\r\n").as_bytes())
        .await;
    while garbage.more().await {}
    tracing::info!("the log works");

    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    assert!(log.contains("the log works"));
    assert_eq!(log.matches("peer-refused").count(), 1, "{log}");
    let uid = rustix::process::geteuid().as_raw();
    assert!(
        log.contains(&format!("rule=\"[app.NAME] unix-uid = {uid}\"")),
        "{log}"
    );
    assert!(log.contains(&format!("uid {uid}, gid ")), "{log}");
    assert!(!log.contains(CANARY), "{log}");
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Sends bytes, ends its side, and returns all that comes until the server ends its own.
fn exchange(path: &std::path::Path, bytes: &[u8], end: bool) -> Vec<u8> {
    let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let _ = stream.write_all(bytes);
    if end {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("neither answer nor end")
        }
        // A reset is an end as well: it means that something we sent was never read.
        _ => answer,
    }
}

#[test]
fn whatever_a_peer_sends_it_gets_an_answer_or_an_end() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let site = runtime.block_on(async { Site::admin() });
    let path = site.path();
    let piece = prop_oneof![
        any::<Vec<u8>>(),
        "(GET|PUT|POST|DELETE|OPTIONS|X) ".prop_map(String::into_bytes),
        "/v1/(users|grants|providers|status)(/[ -~]{0,12}){0,4}".prop_map(String::into_bytes),
        Just(b" HTTP/1.1\r\n".to_vec()),
        "(content-length|transfer-encoding|expect|connection|origin): [ -~]{0,12}\r\n"
            .prop_map(String::into_bytes),
        Just(b"\r\n\r\n".to_vec()),
        Just(b"{\"generation\":7}".to_vec()),
    ];
    let bytes = proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
    proptest!(ProptestConfig::with_cases(300), |(bytes in bytes)| {
        exchange(&path, &bytes, true);
    });
    // Sound HTTP is always answered: a panic would end the connection without.
    let target = "/(v1|healthz|%2e)(/(users|grants|providers|token|pause|%[0-9a-fA-F]{2}|[!-~&&[^#?]]{0,9})){0,6}(\\?[!-~&&[^#]]{0,20})?";
    let method = "GET|PUT|POST|DELETE|HEAD|OPTIONS|PATCH|BREW";
    proptest!(ProptestConfig::with_cases(300), |(method in method, target in target, body in any::<Vec<u8>>())| {
        let mut request = format!(
            "{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len()
        ).into_bytes();
        request.extend_from_slice(&body);
        let answer = exchange(&path, &request, false);
        prop_assert!(answer.starts_with(b"HTTP/1.1 "), "{method} {target}: no answer");
        prop_assert!(!answer.starts_with(b"HTTP/1.1 500"), "{method} {target}");
    });
    runtime.block_on(async { assert_eq!(site.ask("GET /healthz").await.status, 200) });
}

proptest! {
    #[test]
    fn no_path_or_query_makes_the_readers_panic_and_what_they_accept_is_sound(
        path in "/v1/users/[ -~ü%]{0,30}/grants/[ -~%]{0,30}", query in "[!-~&&[^#]]{0,30}"
    ) {
        if let Ok(names) = Names::of(&path) {
            for name in [names.user, names.provider.map(|(provider, _)| provider)].into_iter().flatten() {
                prop_assert!(!name.is_empty() && name != "." && name != ".." && name.len() <= 255);
                prop_assert!(!name.chars().any(char::is_control));
            }
        }
        if let Ok(uri) = format!("/x?{query}").parse() {
            let _ = Query::of(&uri, &["a", "wait"]);
        }
    }
}
