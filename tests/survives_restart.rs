//! A stop, a kill and a new start lose no token. What a kill means for a refresh token under way is in
//! `rotated_refresh_token.rs`.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use support::daemon::{Config, freshctl};
use support::{Freshd, Gate, Rotating, ScriptedServer, instant};

/// A server that obeys `rotating` but holds its first answer at the gate, and a daemon at it.
async fn first_answer_held(rotating: &Rotating, rotation: &str) -> (Gate, ScriptedServer, Freshd) {
    let gate = Gate::shut();
    let held = gate.clone();
    let mut rules = rotating.script();
    let mut first = true;
    let server = ScriptedServer::start(move |request| {
        let answer = rules(request);
        if std::mem::take(&mut first) {
            answer.held_by(&held)
        } else {
            answer
        }
    })
    .await;
    let config = Config::new().provider("acme", &server, rotation);
    let freshd = Freshd::start(config).await;
    (gate, server, freshd)
}

// SIGTERM.

#[tokio::test]
async fn sigterm_waits_for_a_refresh_in_flight_and_stores_its_tokens() {
    let rotating = Rotating::new(3600);
    let (gate, server, mut freshd) = first_answer_held(&rotating, "rotation = \"strict\"").await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    server.nth_refresh(1).await;

    freshd.signal(Signal::TERM);
    freshd.wait_until_draining().await;
    gate.open();
    assert!(freshd.wait_exit().await.success());

    freshd.start_again().await;
    let reply = freshd.token("anna", "acme").await;
    assert_eq!(reply.generation(), 2);
    assert!(rotating.is_active(reply.token()));
    assert_eq!(server.refreshes().len(), 1);
}

#[tokio::test]
async fn while_it_drains_no_new_attempt_begins() {
    let rotating = Rotating::new(3600);
    let (gate, server, mut freshd) = first_answer_held(&rotating, "max-in-flight = 1").await;
    for user in ["anna", "bert"] {
        freshd
            .import(user, "acme", &rotating.issue(user).import_expired())
            .await;
    }
    server.nth_refresh(1).await;

    freshd.signal(Signal::TERM);
    freshd.wait_until_draining().await;
    gate.open();
    assert!(freshd.wait_exit().await.success());

    assert_eq!(
        server.refreshes().len(),
        1,
        "the other one waits for the next start"
    );
    freshd.start_again().await;
    server.nth_refresh(2).await;
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once() {
    let rotating = Rotating::new(3600);
    let (_gate, server, mut freshd) = first_answer_held(&rotating, "").await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    server.nth_refresh(1).await;

    freshd.signal(Signal::TERM);
    freshd.wait_until_draining().await;
    let told = instant();
    freshd.signal(Signal::TERM);
    // The gate is still shut: it did not wait for the answer.
    freshd.wait_exit().await;
    assert!(
        told.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        told.elapsed()
    );
}

// What a restart keeps.

#[tokio::test]
async fn the_schedule_survives_a_kill() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .refresh("margin = \"1s\"")
        .provider("acme", &server, "");
    let mut freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_aged(60, 4))
        .await;
    let before = freshd.grant("anna", "acme").await;

    freshd.kill().await;
    freshd.start_again().await;

    assert_eq!(
        freshd.grant("anna", "acme").await["due_at"],
        before["due_at"]
    );
    // Nobody reads: only the schedule can do this.
    server.nth_refresh(1).await;
    freshd.wait_for_generation("anna", "acme", 2).await;
}

#[tokio::test]
async fn sockets_that_a_kill_left_behind_are_replaced() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let mut freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;

    freshd.kill().await;
    assert!(
        freshd.config.socket().exists(),
        "a kill leaves its sockets behind"
    );
    freshd.start_again().await;

    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        anna.access_token
    );
    assert_eq!(freshd.status().await["state"], "running");
}

// What must not start.

#[tokio::test]
async fn a_second_daemon_on_the_same_state_directory_is_refused() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;

    let (code, log) = freshd.run_another().await;

    assert_eq!(code, Some(75), "{log}");
    let state_dir = freshd.config.state_dir();
    assert!(
        log.contains(state_dir.to_str().unwrap()),
        "it names the directory: {log}"
    );
    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        anna.access_token,
        "the first goes on"
    );
}

#[tokio::test]
async fn with_a_wrong_or_missing_key_it_stops_with_78_and_changes_not_one_byte() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let mut freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;
    // A kill, not a stop: the write-ahead log is there, and opening the database would change it.
    freshd.kill().await;
    let key = freshd.config.key_file();
    let right = std::fs::read(&key).unwrap();
    let before = contents(&freshd.config.state_dir());
    assert!(
        before.keys().any(|name| name.ends_with("-wal")),
        "{:?}",
        before.keys()
    );

    std::fs::remove_file(&key).unwrap();
    let (code, log) = freshd.run_another().await;
    assert_eq!(code, Some(78), "missing: {log}");
    assert!(
        log.contains("put the key back") && log.contains("change-kek --recovery-key-file"),
        "{log}"
    );
    assert!(
        !log.contains("key generate"),
        "a new one opens nothing: {log}"
    );
    assert_eq!(contents(&freshd.config.state_dir()), before, "missing key");
    assert!(!key.exists(), "no new key is made where a store exists");

    let made = freshctl(&["key", "generate", key.to_str().unwrap()], "").await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let (code, log) = freshd.run_another().await;
    assert_eq!(code, Some(78), "wrong: {log}");
    assert_eq!(contents(&freshd.config.state_dir()), before, "wrong key");

    support::daemon::write_private(&key, &right);
    freshd.start_again().await;
    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        anna.access_token
    );
}

#[tokio::test]
async fn where_there_is_no_store_yet_a_missing_key_is_to_be_made() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED, NOT TESTED: without root freshd makes the first key itself");
        return;
    }
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let mut freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    freshd.stop().await;
    let (key, state_dir) = (freshd.config.key_file(), freshd.config.state_dir());
    std::fs::remove_file(&key).unwrap();
    std::fs::remove_dir_all(&state_dir).unwrap();
    let (code, log) = freshd.run_another().await;
    assert_eq!(code, Some(78), "{log}");
    let todo = format!("freshctl key generate {}", key.display());
    assert!(log.contains(&todo), "{log}");
}

/// Every file below a directory, by name, with its bytes.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(directory).expect("the directory is ours");
    entries
        .map(|entry| {
            let entry = entry.expect("the directory is ours");
            let name = entry
                .file_name()
                .into_string()
                .expect("the directory is ours");
            (
                name,
                std::fs::read(entry.path()).expect("the directory is ours"),
            )
        })
        .collect()
}

#[tokio::test]
async fn stops_and_kills_in_turn_leave_a_store_that_opens() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let mut freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;
    for _ in 0..3 {
        freshd.restart().await;
        freshd.kill().await;
        freshd.start_again().await;
    }
    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        anna.access_token
    );
    assert_eq!(server.refreshes().len(), 0);
}
