//! A disk that is full, read-only or locked costs time, never a refresh token (I2).
//!
//! Needs root to mount small file systems, and says so where it can't.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::daemon::{Config, grant_path, token_path};
use support::{Answer, Connection, Freshd, Gate, Rotating, ScriptedServer, eventually, within};

/// A file system of its own under a state directory. Dropping it takes it away.
struct Disk(PathBuf);

impl Disk {
    /// Mounts it; `None`, and a word about it, where that is not possible.
    fn mount(at: &Path) -> Option<Disk> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=32m,mode=0700", "freshd-test"])
            .arg(at)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Disk(at.to_owned())),
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr).into_owned();
                eprintln!("SKIPPED, NOT TESTED: trouble with the disk: {why}");
                None
            }
            Err(error) => {
                eprintln!("SKIPPED, NOT TESTED: trouble with the disk: mount: {error}");
                None
            }
        }
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Fills it up to `left` bytes.
    fn fill(&self, left: u64) {
        let stat = rustix::fs::statvfs(&self.0).expect("it is mounted");
        let free = stat.f_bavail * stat.f_frsize;
        let bytes = usize::try_from(free.saturating_sub(left)).expect("it is small");
        match std::fs::write(self.ballast(), vec![1; bytes]) {
            // The daemon wrote something itself meanwhile: full is full.
            Err(error) if left == 0 && error.kind() == std::io::ErrorKind::StorageFull => {}
            written => written.expect("so much is free"),
        }
    }

    /// Makes room again.
    fn empty(&self) {
        std::fs::remove_file(self.ballast()).expect("it was filled");
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        let done = Command::new("mount")
            .args(["-o", &options])
            .arg(&self.0)
            .status();
        assert!(done.expect("mount is there").success(), "{options}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a daemon that a failing test leaves behind may still have it open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// What is dropped first stands first: the mount goes before the directory it is on.
struct Host {
    disk: Disk,
    freshd: Freshd,
    rotating: Rotating,
    server: ScriptedServer,
    gate: Gate,
}

impl Host {
    /// A daemon on a disk of its own, and a server that holds its answers at the gate.
    async fn start() -> Option<Host> {
        let rotating = Rotating::new(3600).with_prefix(&"long".repeat(2000));
        let gate = Gate::shut();
        let held = gate.clone();
        let mut rules = rotating.script();
        let server = ScriptedServer::start(move |request| rules(request).held_by(&held)).await;
        let config = Config::new()
            .refresh("margin = \"30m\"")
            .provider("acme", &server, "rotation = \"strict\"")
            .provider("still", &server, "rotation = \"none\"")
            .provider(
                "brief",
                &server,
                "rotation = \"grace\"\ngrace = \"60s\"\nrefresh = \"on-demand\"",
            );
        let disk = Disk::mount(&config.state_dir())?;
        let freshd = Freshd::start(config).await;
        Some(Host {
            disk,
            freshd,
            rotating,
            server,
            gate,
        })
    }

    async fn status(&self) -> Value {
        self.freshd.status().await
    }

    async fn wait_for_store(&self, ok: bool) {
        eventually("the store to change", || async {
            ((self.status().await["store"] == "ok") == ok).then_some(())
        })
        .await;
    }
}

/// Less than a new token set is allowed to find, and more than it takes to write a few rows.
const TIGHT: u64 = 6 << 20;

#[tokio::test]
async fn without_room_no_rotating_refresh_token_is_spent_and_readers_go_on() {
    let Some(host) = Host::start().await else {
        return;
    };
    host.gate.open();
    host.disk.fill(TIGHT);
    // Past its margin, with ten minutes to live: due at once.
    let anna = host.rotating.issue("anna");
    host.freshd
        .import("anna", "acme", &anna.import_aged(3000, 600))
        .await;
    let bert = host.rotating.issue("bert");
    host.freshd
        .import("bert", "acme", &bert.import_expired())
        .await;

    assert_eq!(
        host.freshd.token("anna", "acme").await.token(),
        anna.access_token,
        "I4"
    );
    let refused = host.freshd.token_with("bert", "acme", "wait=1").await;
    assert!(refused.status == 507, "{}", refused.text);
    let status = host.status().await;
    assert_eq!(status["store"], "the file system has no room");
    let said = host.freshd.freshctl(&["status"], "").await;
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(said.stdout.contains("make room"), "{}", said.stdout);
    assert!(host.server.refreshes().is_empty(), "nothing has left");
    // What status says of imports is so: this one fits. And where nothing is spent nothing has to fit.
    let imports = "imports and other changes are taken if they can still be written";
    assert!(said.stdout.contains(imports), "{}", said.stdout);
    let carl = host.rotating.issue("carl");
    host.freshd
        .import("carl", "still", &carl.import_expired())
        .await;
    host.freshd.wait_for_generation("carl", "still", 2).await;

    host.disk.empty();
    host.wait_for_store(true).await;
    for user in ["anna", "bert"] {
        host.freshd.wait_for_generation(user, "acme", 2).await;
        let token = host.freshd.token(user, "acme").await;
        assert!(host.rotating.is_active(token.token()), "{user}");
    }
    assert_eq!(host.freshd.freshctl(&["status"], "").await.code, Some(0));
    assert_eq!(host.rotating.superseded_presented_outside_grace(), 0);
}

#[tokio::test]
async fn on_a_full_disk_what_cannot_be_written_is_refused_and_what_is_there_stays_readable() {
    let Some(host) = Host::start().await else {
        return;
    };
    host.gate.open();
    let mut tokens = Vec::new();
    for provider in ["acme", "acme:work"] {
        let issued = host.rotating.issue("anna");
        host.freshd.import("anna", provider, &issued.import()).await;
        tokens.push((provider, issued.access_token));
    }
    host.disk.fill(0);
    let refused = eventually("a write to be refused", || async {
        let body = host.rotating.issue("new").import();
        let reply = host.freshd.put(&grant_path("new", "acme"), &body).await;
        (reply.status != 201).then_some(reply)
    })
    .await;
    refused.is_problem(507, "store-unavailable");

    // A delete that can't be done is not half done: all is readable as before.
    let refused = host.freshd.delete("/v1/users/anna").await;
    assert_eq!(refused.status, 507, "{}", refused.text);
    for (provider, token) in &tokens {
        assert_eq!(
            host.freshd.token("anna", provider).await.token(),
            token,
            "{provider}"
        );
    }
    let line = host.freshd.wait_for_log("store-unwritable").await;
    assert!(line.contains("full"), "{line}");
    assert_eq!(host.freshd.freshctl(&["status"], "").await.code, Some(1));
    let log = host.freshd.logs();
    assert_eq!(
        log.matches("store-unwritable").count(),
        1,
        "one line, not one each"
    );

    host.disk.empty();
    let reply = eventually("writes to be taken again", || async {
        let reply = host.freshd.delete("/v1/users/anna").await;
        (reply.status == 200).then_some(reply)
    })
    .await;
    assert_eq!(reply.json["changed"], 2);
    host.freshd.wait_for_log("store-writable").await;
    assert_eq!(host.freshd.token("anna", "acme").await.status, 404);
}

#[tokio::test]
async fn a_token_set_that_finds_the_disk_full_is_served_and_stored_when_there_is_room_again() {
    let Some(mut host) = Host::start().await else {
        return;
    };
    let anna = host.rotating.issue("anna");
    host.freshd
        .import("anna", "acme", &anna.import_expired())
        .await;
    host.server.nth_refresh(1).await;
    let mut waiting = Connection::open(&host.freshd.config.socket()).await;
    let path = token_path("anna", "acme", "wait=30");
    let reply = waiting.send(hyper::Method::GET, &path, None);
    tokio::pin!(reply);
    tokio::select! {
        reply = &mut reply => panic!("answered before the server was: {reply:?}"),
        other = host.freshd.get("/healthz") => assert_eq!(other.status, 200),
    }

    // The request is out; now the disk fills up, and then the answer comes.
    host.disk.fill(0);
    host.gate.open();
    let reply = within("the waiting caller's answer", reply).await;

    assert!(host.rotating.is_active(reply.token()), "who waited gets it");
    let status = host.status().await;
    assert_eq!(status["held"], 1, "{status}");
    host.freshd.wait_for_log(" held user=").await;
    let said = host.freshd.freshctl(&["status"], "").await;
    assert_eq!(said.code, Some(1));
    assert!(
        said.stdout
            .contains("1 token set held outside the database"),
        "{}",
        said.stdout
    );
    // Everybody else gets it too, and nobody makes it be refreshed meanwhile.
    assert_eq!(
        host.freshd.token("anna", "acme").await.token(),
        reply.token()
    );
    let refresh = format!("{}/refresh?wait=1", grant_path("anna", "acme"));
    let again = host
        .freshd
        .post(&refresh, &json!({ "generation": 2 }))
        .await;
    assert_eq!(again.token(), reply.token(), "the one there is");
    assert_eq!(
        host.server.refreshes().len(),
        1,
        "I2: no refresh while it is held"
    );

    host.disk.empty();
    eventually("nothing to be held", || async {
        (host.status().await["held"] == 0).then_some(())
    })
    .await;
    host.freshd.wait_for_log("recovered").await;
    host.freshd.restart().await;
    let after = host.freshd.token("anna", "acme").await;
    assert!(after.generation() >= 2, "{}", after.text);
    assert!(host.rotating.is_active(after.token()));
    assert_eq!(host.rotating.superseded_presented_outside_grace(), 0);
}

#[tokio::test]
async fn failures_that_a_full_disk_does_not_take_keep_their_floor() {
    let Some(host) = Host::start().await else {
        return;
    };
    let held = host.gate.clone();
    host.server
        .answer_with(move |_| Answer::error(500, "no").held_by(&held));
    let carl = host.rotating.issue("carl");
    host.freshd
        .import("carl", "still", &carl.import_expired())
        .await;
    let first = host.server.nth_refresh(1).await;
    host.disk.fill(0);
    host.gate.open();

    for _ in 0..30 {
        let reply = host.freshd.token_with("carl", "still", "wait=1").await;
        assert_eq!(reply.status, 507, "{}", reply.text);
    }

    host.server.settled().await;
    let asked = host.server.refreshes().len();
    let seconds = first.at.elapsed().as_secs() as usize;
    assert!(
        asked <= 1 + seconds,
        "{asked} requests in {seconds} s, and the floor is 1 s"
    );
    host.disk.empty();
    eventually("the failure to be on disk", || async {
        let grant = host.freshd.grant("carl", "still").await;
        (grant["failures"].as_u64() > Some(0)).then_some(())
    })
    .await;
}

/// A refresh token was spent, the disk is full, and the daemon ends before there is room.
async fn with_a_held_set() -> Option<(Host, String)> {
    let host = Host::start().await?;
    let anna = host.rotating.issue("anna");
    host.freshd
        .import("anna", "acme", &anna.import_expired())
        .await;
    host.server.nth_refresh(1).await;
    host.disk.fill(0);
    host.gate.open();
    let reply = host.freshd.token_with("anna", "acme", "wait=30").await;
    let line = host.freshd.wait_for_log(" held user=").await;
    assert!(line.contains("spilled=true"), "{line}");
    let token = reply.token().to_owned();
    Some((host, token))
}

async fn is_stored_and_serves(host: &Host, token: &str) {
    eventually("nothing to be held", || async {
        (host.status().await["held"] == 0).then_some(())
    })
    .await;
    let reply = host.freshd.token("anna", "acme").await;
    assert_eq!((reply.token(), reply.generation()), (token, 2));
    assert_eq!(host.server.refreshes().len(), 1, "one refresh in all");
    assert_eq!(host.rotating.superseded_presented_outside_grace(), 0);
}

#[tokio::test]
async fn a_held_set_survives_a_stop_and_a_start_with_room() {
    let Some((mut host, token)) = with_a_held_set().await else {
        return;
    };
    host.freshd.stop().await;
    host.disk.empty();
    host.freshd.start_again().await;
    is_stored_and_serves(&host, &token).await;
    // What was taken up is not taken up again.
    host.freshd.restart().await;
    is_stored_and_serves(&host, &token).await;
}

#[tokio::test]
async fn a_held_set_survives_a_kill_and_starts_on_a_full_disk() {
    let Some((mut host, token)) = with_a_held_set().await else {
        return;
    };
    for _ in 0..2 {
        host.freshd.kill().await;
        host.freshd.start_again().await;
        let reply = host.freshd.token("anna", "acme").await;
        assert_eq!(reply.token(), token, "served from the spill file");
        assert_eq!(host.status().await["held"], 1);
    }
    host.disk.empty();
    is_stored_and_serves(&host, &token).await;
}

#[tokio::test]
async fn a_spilled_set_whose_grant_was_imported_anew_is_not_put_over_it() {
    let Some((mut host, _)) = with_a_held_set().await else {
        return;
    };
    host.freshd.kill().await;
    host.disk.empty();
    // As if the commit had reached the disk and only the spill file had not been emptied.
    let spill = std::fs::read(host.freshd.config.state_dir().join("spill")).unwrap();
    host.freshd.start_again().await;
    host.freshd.wait_for_log("recovered").await;
    let newer = host.rotating.issue("anna");
    let path = format!("{}?replace=true", grant_path("anna", "acme"));
    let reply = host.freshd.put(&path, &newer.import()).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    host.freshd.kill().await;
    std::fs::write(host.freshd.config.state_dir().join("spill"), spill).unwrap();
    host.freshd.start_again().await;

    let reply = host.freshd.token("anna", "acme").await;
    assert_eq!(
        (reply.token(), reply.generation()),
        (&*newer.access_token, 3)
    );
    assert_eq!(host.status().await["held"], 0);
}

#[tokio::test]
async fn on_a_read_only_state_directory_it_does_not_start_and_says_which() {
    let Some(mut host) = Host::start().await else {
        return;
    };
    let anna = host.rotating.issue("anna");
    host.freshd.import("anna", "acme", &anna.import()).await;
    host.freshd.stop().await;
    host.disk.remount("ro");

    let (code, log) = host.freshd.run_another().await;

    assert_eq!(code, Some(74), "{log}");
    let state_dir = host.freshd.config.state_dir();
    assert!(log.contains(state_dir.to_str().unwrap()), "{log}");
    host.disk.remount("rw");
    host.freshd.start_again().await;
    assert_eq!(
        host.freshd.token("anna", "acme").await.token(),
        anna.access_token
    );
}

#[tokio::test]
async fn a_lock_that_another_process_holds_for_seconds_delays_a_commit_and_loses_nothing() {
    let (gate, rotating) = (Gate::shut(), Rotating::new(3600));
    let held = gate.clone();
    let mut rules = rotating.script();
    let server = ScriptedServer::start(move |request| rules(request).held_by(&held)).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    server.nth_refresh(1).await;

    // This process is another one than the daemon.
    let database = freshd.config.state_dir().join("freshd.db");
    let other = rusqlite::Connection::open(database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    gate.open();
    // Three seconds go by while a reader waits in vain: what is not on disk is not answered.
    let reply = freshd.token_with("anna", "acme", "wait=3").await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert_eq!(freshd.grant("anna", "acme").await["generation"], 1);
    other.execute_batch("ROLLBACK").unwrap();

    freshd.wait_for_generation("anna", "acme", 2).await;
    freshd.restart().await;
    let reply = freshd.token("anna", "acme").await;
    assert!(rotating.is_active(reply.token()));
    assert_eq!(server.refreshes().len(), 1);
    assert!(!freshd.logs().contains(" held user="), "it was in time");
    let spill = std::fs::read(freshd.config.state_dir().join("spill")).unwrap();
    assert_eq!(
        spill[..4],
        [0; 4],
        "what was stored in time is not kept twice"
    );
}

#[tokio::test]
async fn a_lock_that_outlasts_patience_leaves_the_set_held_and_it_is_stored_after() {
    let (gate, rotating) = (Gate::shut(), Rotating::new(3600));
    let held = gate.clone();
    let mut rules = rotating.script();
    let server = ScriptedServer::start(move |request| match rules(request) {
        answer if request.is_refresh() => answer.held_by(&held),
        _ => Answer::error(500, "not asked for"),
    })
    .await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    server.nth_refresh(1).await;
    let database = freshd.config.state_dir().join("freshd.db");
    let other = rusqlite::Connection::open(database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    gate.open();

    let reply = freshd.token_with("anna", "acme", "wait=60").await;
    assert!(rotating.is_active(reply.token()), "held, and served");
    assert_eq!(freshd.status().await["held"], 1);
    other.execute_batch("ROLLBACK").unwrap();

    eventually("nothing to be held", || async {
        (freshd.status().await["held"] == 0).then_some(())
    })
    .await;
    freshd.kill().await;
    freshd.start_again().await;
    let after = freshd.token("anna", "acme").await;
    assert_eq!(after.token(), reply.token());
    assert_eq!(server.refreshes().len(), 1);
}

#[tokio::test]
async fn a_kill_while_the_first_commit_waits_for_a_lock_loses_nothing() {
    let (gate, rotating) = (Gate::shut(), Rotating::new(3600));
    let held = gate.clone();
    let mut rules = rotating.script();
    let server = ScriptedServer::start(move |request| rules(request).held_by(&held)).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    server.nth_refresh(1).await;
    let state_dir = freshd.config.state_dir();
    let other = rusqlite::Connection::open(state_dir.join("freshd.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    gate.open();

    eventually("the set to be spilled", || async {
        let spill = std::fs::read(state_dir.join("spill")).unwrap();
        (spill[..4] != [0; 4]).then_some(())
    })
    .await;
    freshd.kill().await;
    assert!(!freshd.logs().contains(" held user="), "before any verdict");
    other.execute_batch("ROLLBACK").unwrap();
    freshd.start_again().await;

    let reply = freshd.token("anna", "acme").await;
    assert_eq!(reply.generation(), 2);
    assert!(rotating.is_active(reply.token()));
    assert_eq!(server.refreshes().len(), 1, "one refresh in all");
    assert_eq!(rotating.superseded_presented_outside_grace(), 0);
}

#[tokio::test]
async fn a_state_directory_deleted_under_a_running_daemon_is_told_of_and_no_refresh_token_is_spent()
{
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;
    assert_eq!(freshd.get("/healthz").await.status, 200);

    std::fs::remove_dir_all(freshd.config.state_dir()).unwrap();

    let sick = freshd.get("/healthz").await;
    sick.is_problem(507, "store-unavailable");
    let refresh = format!("{}/refresh?wait=1", grant_path("anna", "acme"));
    let reply = freshd.post(&refresh, &json!({ "generation": 1 })).await;
    assert_eq!(reply.token(), anna.access_token, "I4");
    let body = rotating.issue("bert").import();
    let refused = freshd.put(&grant_path("bert", "acme"), &body).await;
    refused.is_problem(507, "store-unavailable");
    assert!(server.refreshes().is_empty(), "its successor would be lost");
    let line = freshd.wait_for_log("store-unwritable").await;
    assert!(line.contains("freshd.db was deleted or replaced"), "{line}");
    assert_eq!(freshd.freshctl(&["status"], "").await.code, Some(1));
    freshd.stop().await;
    assert_eq!(freshd.logs().matches("store-unwritable").count(), 1);
}

#[tokio::test]
async fn a_user_who_comes_back_does_not_wait_for_the_disk_while_the_token_lives() {
    let rotating = Rotating::new(12);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .refresh("margin = \"6s\"\ninactive-after = \"2s\"")
        .provider("acme", &server, "rotation = \"strict\"");
    let freshd = Freshd::start(config).await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;
    freshd.wait_for_state("anna", "acme", "paused").await;
    let database = freshd.config.state_dir().join("freshd.db");
    let other = rusqlite::Connection::open(database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();

    let reply = freshd.token("anna", "acme").await;
    assert_eq!(reply.token(), anna.access_token, "I4");
    assert_eq!(freshd.grant("anna", "acme").await["state"], "paused");

    other.execute_batch("ROLLBACK").unwrap();
    freshd.wait_for_state("anna", "acme", "active").await;
}

#[tokio::test]
async fn a_replay_waits_for_a_disk_that_is_full_at_the_start_no_longer_than_the_disk_is() {
    let Some(mut host) = Host::start().await else {
        return;
    };
    let rotating = Rotating::new(3600).with_grace(Duration::from_secs(60));
    let (mut rules, held) = (rotating.script(), host.gate.clone());
    host.server
        .answer_with(move |request| rules(request).held_by(&held));
    let anna = rotating.issue("anna");
    host.freshd
        .import("anna", "brief", &anna.import_expired())
        .await;
    let refresh = format!("{}/refresh?wait=0", grant_path("anna", "brief"));
    let asked = host
        .freshd
        .post(&refresh, &json!({ "generation": 1 }))
        .await;
    assert_eq!(asked.status, 503, "{}", asked.text);
    host.server.nth_refresh(1).await;
    host.freshd.kill().await;
    host.disk.fill(0);
    host.freshd.start_again().await;
    host.freshd.wait_for_log("replays-not-resumed").await;
    assert_eq!(host.server.refreshes().len(), 1);

    host.disk.empty();
    host.gate.open();

    // Nobody asks, and on demand nothing is due.
    host.freshd.wait_for_generation("anna", "brief", 2).await;
    assert_eq!(host.server.refreshes().len(), 2);
    assert_eq!(rotating.superseded_presented_outside_grace(), 0);
}
