//! Whoever listens hears of each change once: nothing is missing, nothing comes twice, nothing is another's.

mod support;

use std::time::Duration;

use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::daemon::{Config, grant_path};
use support::{
    Answer, Connection, Freshd, Heard, Listener, Rotating, ScriptedServer, fake_clock, instant,
    unix_now, within,
};
use tokio::io::AsyncWriteExt;

const DAY: i64 = 86_400;

fn shown(heard: &[Heard]) -> Vec<String> {
    heard.iter().map(Heard::shown).collect()
}

fn refused() -> Answer {
    Answer::error(400, "invalid_grant")
}

async fn kept(freshd: &Freshd) -> Vec<String> {
    shown(&Listener::kept(&freshd.config.admin_socket()).await)
}

/// How often the log has a line of this level and name.
fn lines(freshd: &Freshd, level: &str, name: &str) -> usize {
    let logs = freshd.logs();
    let wanted = format!(" {level} {name} ");
    logs.lines().filter(|line| line.contains(&wanted)).count()
}

async fn admin(freshd: &Freshd, user: &str, verb: &str) {
    let path = format!("{}/{verb}", grant_path(user, "acme"));
    let reply = freshd.admin(Method::POST, &path).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[tokio::test]
async fn a_grant_that_dies_is_told_once_by_one_event_and_one_warning_and_its_recovery_too() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(|_| refused()).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    let mut listener = Listener::now(&freshd.config.socket()).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    assert_eq!(listener.next().await.unwrap().shown(), "connected");
    let dead = listener.next().await.unwrap();
    assert_eq!(dead.event, "needs-authorization");
    let grant = freshd.grant("anna", "acme").await;
    for member in ["namespace", "user", "provider", "reason", "generation"] {
        assert_eq!(dead.data[member], grant[member], "{member}");
    }
    assert_eq!(dead.data["at"], grant["since"]);

    // However long it goes on, and whoever asks.
    for _ in 0..20 {
        let reply = freshd.token("anna", "acme").await;
        reply.is_problem(409, "needs-authorization");
        let refresh = format!("{}/refresh", grant_path("anna", "acme"));
        freshd.post(&refresh, &json!({})).await;
        freshd.post("/v1/users/anna/activity", &json!({})).await;
        admin(&freshd, "anna", "pause").await;
    }
    freshd.restart().await;
    freshd.token("anna", "acme").await;
    assert_eq!(kept(&freshd).await.len(), 2, "{:?}", kept(&freshd).await);
    assert_eq!(lines(&freshd, "WARN", "needs-authorization"), 1);
    assert_eq!(lines(&freshd, "INFO", "recovered"), 0);
    assert_eq!(server.refreshes().len(), 1);

    server.answer_with(rotating.script());
    let again = rotating.issue("anna").import();
    let path = format!("{}?replace=true", grant_path("anna", "acme"));
    assert_eq!(freshd.put(&path, &again).await.status, 200);
    let all = kept(&freshd).await;
    let reason = "needs-authorization revoked-or-used-elsewhere";
    assert_eq!(all, ["connected", reason, "recovered"]);
    assert_eq!(lines(&freshd, "INFO", "recovered"), 1);
}

#[tokio::test]
async fn a_day_after_invalid_grant_there_was_one_request_one_event_and_one_warning() {
    let Some(library) = fake_clock::libfaketime() else {
        return;
    };
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(|_| refused()).await;
    let config = Config::new().provider("acme", &server, "");
    let mut freshd = Freshd::start(fake_clock::take(config, &library)).await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import_expired()).await;
    freshd
        .wait_for_state("anna", "acme", "needs-authorization")
        .await;
    // A grant that lives shows that the schedule has seen the day pass.
    server.answer_with(|_| Answer::tokens("bert's", "bert's too", 3600));
    freshd
        .import("bert", "acme", &rotating.issue("bert").import())
        .await;
    fake_clock::set(&freshd.config, DAY);
    freshd.wait_for_generation("bert", "acme", 2).await;
    freshd.token("anna", "acme").await;
    freshd.restart().await;
    freshd.token("anna", "acme").await;
    assert_eq!(server.presented()[&anna.refresh_token], 1);
    let told = kept(&freshd).await;
    let dead = told.iter().filter(|event| event.starts_with("needs-auth"));
    assert_eq!(dead.count(), 1, "{told:?}");
    assert_eq!(lines(&freshd, "WARN", "needs-authorization"), 1);
}

#[tokio::test]
async fn a_pause_and_its_end_are_told_once_each_and_refreshes_only_to_who_listens() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let freshd = Freshd::start(config).await;
    let mut listener = Listener::now(&freshd.config.socket()).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    for verb in ["pause", "pause", "resume", "resume"] {
        admin(&freshd, "anna", verb).await;
    }
    let refresh = format!("{}/refresh", grant_path("anna", "acme"));
    freshd.post(&refresh, &json!({})).await.token();
    assert_eq!(freshd.delete(&grant_path("anna", "acme")).await.status, 200);
    let mut heard = Vec::new();
    while heard
        .last()
        .is_none_or(|last: &Heard| last.event != "revoked")
    {
        heard.push(listener.next().await.unwrap());
    }
    let expected = [
        "connected",
        "paused admin",
        "resumed",
        "refreshed",
        "revoked",
    ];
    assert_eq!(shown(&heard), expected);
    assert!(heard.iter().all(|event| event.data["user"] == "anna"));
    assert_eq!(heard[3].id, None);
    assert_eq!(heard[3].data["generation"], 2);
    // What was told of her is forgotten, and that she is gone is all that is kept.
    let kept = Listener::kept(&freshd.config.admin_socket()).await;
    assert_eq!(shown(&kept), ["revoked"]);
}

#[tokio::test]
async fn over_kills_and_restarts_a_reader_that_resumes_misses_nothing_and_hears_nothing_twice() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    let socket = freshd.config.socket();
    let mut listener = Listener::now(&socket).await;
    let mut last_id = listener.last_id.unwrap();
    let mut heard = Vec::new();
    let mut expected = Vec::new();
    for life in 0..4 {
        let users: Vec<String> = (0..150).map(|n| format!("user-{life}-{n}")).collect();
        for user in &users {
            let body = rotating.issue(user).import();
            freshd.import(user, "acme", &body).await;
            expected.push(format!("connected {user}"));
        }
        for user in &users[..20] {
            admin(&freshd, user, "pause").await;
            expected.push(format!("paused {user}"));
        }
        // The reader has got some way, and perhaps more is in its buffers: what it has not read is not lost.
        for _ in 0..life * 40 {
            let event = listener.next_kept().await;
            last_id = event.id.unwrap();
            heard.push(event);
        }
        if life % 2 == 0 {
            freshd.kill().await;
        } else {
            freshd.stop().await;
        }
        freshd.start_again().await;
        listener = Listener::after(&socket, last_id).await;
    }
    while heard.len() < expected.len() {
        heard.push(listener.next_kept().await);
    }
    let told: Vec<String> = heard
        .iter()
        .map(|event| format!("{} {}", event.event, event.data["user"].as_str().unwrap()))
        .collect();
    assert_eq!(told, expected);
    let ids: Vec<u64> = heard.iter().map(|event| event.id.unwrap()).collect();
    assert!(ids.is_sorted() && ids.windows(2).all(|two| two[0] != two[1]));
    // Nothing more comes: the next event is the next change.
    admin(&freshd, "user-0-0", "resume").await;
    assert_eq!(listener.next_kept().await.event, "resumed");
}

#[tokio::test]
async fn an_app_hears_nothing_of_other_namespaces_and_providers_and_a_reload_counts_at_once() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .provider("acme", &server, "")
        .provider("other", &server, "")
        .app_with_socket("small", "may = [\"read\"]\nproviders = [\"acme\"]")
        .app_with_socket(
            "apart",
            "may = [\"read\", \"import\"]\nnamespace = \"apart\"",
        );
    let mut freshd = Freshd::start(config).await;
    let (small, apart) = (freshd.app_socket("small"), freshd.app_socket("apart"));
    let mut of_small = Listener::now(&small).await;
    let mut of_apart = Listener::now(&apart).await;
    let mut of_all = Listener::now(&freshd.config.admin_socket()).await;
    for (user, provider) in [("anna", "other"), ("bert", "acme")] {
        let body = rotating.issue(user).import();
        freshd.import(user, provider, &body).await;
    }
    let carl = rotating.issue("carl").import();
    let mut there = Connection::open(&apart).await;
    let path = grant_path("carl", "acme");
    let reply = there.send(Method::PUT, &path, Some(&carl)).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    assert_eq!(of_small.next().await.unwrap().data["user"], "bert");
    assert_eq!(of_apart.next().await.unwrap().data["user"], "carl");
    for user in ["anna", "bert", "carl"] {
        assert_eq!(of_all.next().await.unwrap().data["user"], user);
    }
    assert_eq!(Listener::kept(&small).await.len(), 1);
    assert_eq!(Listener::kept(&apart).await.len(), 1);

    let rule = freshd.config.apps.get_mut("small").unwrap();
    *rule = rule.replace("\"acme\"", "\"other\"");
    freshd.reload().await.unwrap();
    admin(&freshd, "bert", "pause").await;
    let path = format!("{}/pause", grant_path("anna", "other"));
    freshd.admin(Method::POST, &path).await;
    let next = of_small.next().await.unwrap();
    assert_eq!(
        (next.data["user"].as_str(), next.shown()),
        (Some("anna"), "paused admin".into())
    );
    freshd.config.apps.remove("small");
    freshd.reload().await.unwrap();
    assert!(
        of_small.next().await.is_none(),
        "its socket is gone, and its stream"
    );
}

#[tokio::test]
async fn a_reader_that_reads_nothing_slows_neither_tokens_nor_refreshes_and_misses_nothing() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let freshd = Freshd::start(config).await;
    let socket = freshd.config.socket();
    let mut stuck = Vec::new();
    for _ in 0..8 {
        let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        let request = b"GET /v1/events HTTP/1.1\r\nhost: x\r\nlast-event-id: 0\r\n\r\n";
        stream.write_all(request).await.unwrap();
        stuck.push(stream);
    }
    let mut patient = Listener::now(&socket).await;
    let long = "x".repeat(200);
    let users: Vec<String> = (0..40).map(|n| format!("{long}-{n}")).collect();
    for user in &users {
        let body = rotating.issue(user).import();
        freshd.import(user, "acme", &body).await;
    }
    // 840 events of 450 bytes are more than what sockets and buffers take.
    for _ in 0..10 {
        for user in &users {
            admin(&freshd, user, "pause").await;
            admin(&freshd, user, "resume").await;
        }
    }
    let mut slowest = Duration::ZERO;
    for user in &users {
        let began = instant();
        freshd.token(user, "acme").await.token();
        let refresh = format!("{}/refresh", grant_path(user, "acme"));
        freshd.post(&refresh, &json!({})).await.token();
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let mut kinds = Vec::new();
    for _ in 0..users.len() * 21 {
        kinds.push(patient.next_kept().await.event);
    }
    let paused = kinds.iter().filter(|kind| *kind == "paused").count();
    assert_eq!(paused, users.len() * 10);
    drop(stuck);
}

#[tokio::test]
async fn the_end_of_a_refresh_token_is_told_before_it_comes() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let freshd = Freshd::start(config).await;
    let mut listener = Listener::now(&freshd.config.socket()).await;
    let mut body = rotating.issue("anna").import_aged(30 * DAY, -60);
    let end = unix_now() + DAY;
    body["refresh_token_expires_at"] = json!(end);
    freshd.import("anna", "acme", &body).await;
    assert_eq!(listener.next().await.unwrap().event, "connected");
    let warning = listener.next().await.unwrap();
    assert_eq!(warning.event, "refresh-token-expiring");
    assert_eq!(support::seconds(&warning.data["expires_at"]) as i64, end);
    assert!(support::seconds(&warning.data["at"]) < end as f64);
    assert_eq!(listener.next().await.unwrap().event, "refreshed");
    assert_eq!(lines(&freshd, "WARN", "refresh-token-expiring"), 1);
    assert_eq!(kept(&freshd).await.len(), 2);
}

#[tokio::test]
async fn after_a_failure_a_recovery_and_a_restart_the_status_is_well() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(|_| refused()).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    freshd
        .wait_for_state("anna", "acme", "needs-authorization")
        .await;
    let states = |status: &Value| {
        let counts = status["grants"].as_array().unwrap();
        let states = counts.iter().map(|count| count["state"].clone());
        states.collect::<Vec<Value>>()
    };
    // Trouble is read from what is stored, so a restart does not hide it.
    for restarted in [false, true] {
        if restarted {
            freshd.restart().await;
        }
        let said = freshd.freshctl(&["status"], "").await;
        assert_eq!(said.code, Some(1), "{}", said.stdout);
        assert!(said.stdout.contains("anna"), "{}", said.stdout);
        assert_eq!(states(&freshd.status().await), ["needs-authorization"]);
    }

    server.answer_with(rotating.script());
    let again = rotating.issue("anna").import_expired();
    let path = format!("{}?replace=true", grant_path("anna", "acme"));
    assert_eq!(freshd.put(&path, &again).await.status, 200);
    freshd.wait_for_generation("anna", "acme", 3).await;
    for restarted in [false, true] {
        if restarted {
            freshd.restart().await;
        }
        let said = freshd.freshctl(&["status"], "").await;
        assert_eq!(said.code, Some(0), "{}", said.stdout);
        assert_eq!(states(&freshd.status().await), ["active"]);
        let grant = freshd.grant("anna", "acme").await;
        assert_eq!(
            (&grant["failures"], &grant["last_failure"]),
            (&json!(0), &Value::Null)
        );
    }
}

#[tokio::test]
async fn a_stop_ends_streams_at_once_and_what_a_flight_brings_is_told_before() {
    let rotating = Rotating::new(3600);
    let gate = support::Gate::shut();
    let server = {
        let (mut script, gate) = (rotating.script(), gate.clone());
        ScriptedServer::start(move |request| script(request).held_by(&gate)).await
    };
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    let mut listener = Listener::now(&freshd.config.socket()).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    server.nth_refresh(1).await;
    freshd.signal(Signal::TERM);
    freshd.wait_until_draining().await;
    gate.open();
    assert_eq!(listener.next().await.unwrap().event, "connected");
    assert_eq!(listener.next().await.unwrap().event, "refreshed");
    assert!(listener.next().await.is_none());
    assert!(listener.raw.starts_with("retry: "), "{}", listener.raw);
    let status = within("freshd to end", freshd.wait_exit()).await;
    assert!(status.success(), "{status}");
    let began = instant();
    freshd.start_again().await;
    let open: Vec<Listener> = {
        let mut open = Vec::new();
        for _ in 0..5 {
            open.push(Listener::now(&freshd.config.socket()).await);
        }
        open
    };
    freshd.stop().await;
    assert!(began.elapsed() < Duration::from_secs(10));
    drop(open);
}

#[tokio::test]
async fn after_a_restore_a_reader_that_resumes_is_told_to_read_the_state_anew() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    let socket = freshd.config.socket();
    let mut listener = Listener::now(&socket).await;
    let copy = freshd.config.path().join("copy");
    let copy = copy.to_str().unwrap();
    for user in ["anna", "bert", "carl"] {
        let body = rotating.issue(user).import();
        freshd.import(user, "acme", &body).await;
        listener.next_kept().await;
        if user == "anna" {
            let said = freshd.freshctl(&["backup", copy], "").await;
            assert_eq!(said.code, Some(0), "{}", said.stderr);
        }
    }
    let mut last_id = listener.last_id.unwrap();
    // The second time, the number is one that the first restored store has given.
    for _ in 0..2 {
        freshd.stop().await;
        let said = freshd.freshctl(&["restore", "--replace", copy], "").await;
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        freshd.start_again().await;
        admin(&freshd, "anna", "resume?release=true").await;
        admin(&freshd, "anna", "pause").await;
        let mut listener = Listener::after(&socket, last_id).await;
        for expected in ["reset", "resumed", "paused admin"] {
            assert_eq!(listener.next_kept().await.shown(), expected);
        }
        assert!(listener.last_id > Some(last_id));
        last_id = listener.last_id.unwrap();
    }
}

#[tokio::test]
async fn freshctl_tells_what_has_happened_and_follows_what_happens() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .provider("acme", &server, "")
        .provider("box", &server, "");
    let freshd = Freshd::start(config).await;
    for (user, provider) in [("anna", "acme"), ("anna", "box:work"), ("bert", "acme")] {
        let body = rotating.issue(user).import();
        freshd.import(user, provider, &body).await;
    }
    admin(&freshd, "anna", "pause").await;
    let told = async |args: &[&str]| {
        let said = freshd.freshctl(&[&["events"], args].concat(), "").await;
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let words = |line: &str| line.split_once(' ').unwrap().1.to_owned();
        said.stdout.lines().map(words).collect::<Vec<String>>()
    };
    let (anna, work) = (
        "connected anna at acme, generation 1",
        "connected anna at box:work, generation 1",
    );
    let bert = "connected bert at acme, generation 1";
    let paused = "paused anna at acme, generation 1 (admin)";
    assert_eq!(told(&[]).await, [anna, work, bert, paused]);
    assert_eq!(told(&["--user", "anna"]).await, [anna, work, paused]);
    for provider in ["box", "box:work"] {
        assert_eq!(told(&["--provider", provider]).await, [work]);
    }
    let said = freshd
        .freshctl(&["events", "--json", "--user", "bert"], "")
        .await;
    let event: Value = serde_json::from_str(&said.stdout).expect("one line");
    assert_eq!(
        (&event["id"], &event["event"]),
        (&json!(3), &json!("connected"))
    );

    let file = freshd.config.file();
    let args = ["--config", file.to_str().unwrap(), "events", "--follow"];
    let mut following = support::daemon::freshctl_lines(&args);
    // When it listens only an event can show.
    let line = loop {
        admin(&freshd, "anna", "resume").await;
        admin(&freshd, "anna", "pause").await;
        let next = tokio::time::timeout(support::LOOK_AGAIN, following.next_line()).await;
        if let Ok(line) = next {
            break line.unwrap().expect("it goes on");
        }
    };
    assert!(line.contains(" anna at acme, generation 1"), "{line}");
}
