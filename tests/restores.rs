//! A restored copy can't be told from the present by itself: no request leaves for a grant that rotates until an
//! admin releases it, erased users stay erased, and what does not fit changes nothing.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use support::daemon::{Config, Said, freshctl};
use support::{Freshd, Rotating, ScriptedServer, eventually};

struct Scene {
    rotating: Rotating,
    server: ScriptedServer,
    freshd: Freshd,
}

impl Scene {
    /// A daemon at a provider of this rotation class.
    async fn new(rotation: &str) -> Scene {
        let rotating = Rotating::new(3600);
        let server = ScriptedServer::start(rotating.script()).await;
        let config = Config::new().provider("acme", &server, rotation);
        let freshd = Freshd::start(config).await;
        Scene {
            rotating,
            server,
            freshd,
        }
    }

    async fn import(&self, user: &str) {
        let tokens = self.rotating.issue(user).import();
        self.freshd.import(user, "acme", &tokens).await;
    }

    fn copy(&self) -> String {
        let copy = self.freshd.config.path().join("copy");
        copy.to_str().expect("ASCII").to_owned()
    }

    async fn back_up(&self) {
        let said = self.freshd.freshctl(&["backup", &self.copy()], "").await;
        assert_eq!(said.code, Some(0), "{}", said.stderr);
    }

    async fn restore(&self, more: &[&str]) -> Said {
        let copy = self.copy();
        let mut args = vec!["restore", &copy];
        args.extend(more);
        self.freshd.freshctl(&args, "").await
    }

    /// Puts the copy in the place of what is there.
    async fn put_back(&self) -> Said {
        let said = self.restore(&["--replace"]).await;
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        said
    }

    /// Refreshes once, so that the copy's refresh token is superseded.
    async fn rotate(&self, user: &str) {
        let path = format!("/v1/users/{user}/grants/acme/refresh");
        let reply = self.freshd.post(&path, &serde_json::json!({})).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
}

/// Every file of the state directory but the lock.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(dir)
        .expect("it is there")
        .map(|entry| entry.expect("ours"))
        .filter(|entry| entry.file_name() != "lock" && entry.path().is_file())
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, std::fs::read(entry.path()).expect("ours"))
        })
        .collect()
}

#[tokio::test]
async fn no_request_leaves_for_a_restored_grant_until_it_is_released() {
    let mut scene = Scene::new("rotation = \"strict\"").await;
    for user in ["anna", "bert"] {
        scene.import(user).await;
    }
    scene.back_up().await;
    scene.freshd.stop().await;
    let asked = scene.server.refreshes().len();

    let said = scene.put_back().await;
    assert!(said.stdout.contains("restored 2 grants"), "{}", said.stdout);
    assert!(
        said.stdout
            .contains("2 grants not refreshed until released")
    );
    scene.freshd.start_again().await;

    for user in ["anna", "bert"] {
        let grant = scene.freshd.grant(user, "acme").await;
        assert_eq!(grant["state"], "paused");
        assert_eq!(grant["reason"], "restored");
        // A reader, activity, and "the API refused it" change nothing about that (I4).
        assert_eq!(scene.freshd.token(user, "acme").await.status, 200);
        let path = format!("/v1/users/{user}/activity");
        let reply = scene.freshd.post(&path, &serde_json::json!({})).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let path = format!("/v1/users/{user}/grants/acme/refresh");
        scene.freshd.post(&path, &serde_json::json!({})).await;
    }
    scene.freshd.restart().await;
    assert_eq!(scene.server.refreshes().len(), asked, "not one request");

    let said = scene
        .freshd
        .freshctl(&["release", "anna", "acme"], "")
        .await;
    assert_eq!(said.stdout, "released 1 grant\n", "{}", said.stderr);
    assert_eq!(scene.freshd.grant("anna", "acme").await["state"], "active");
    assert_eq!(scene.freshd.grant("bert", "acme").await["state"], "paused");
    let all = ["release", "--provider", "acme", "--all"];
    let said = scene.freshd.freshctl(&all, "").await;
    assert_eq!(said.stdout, "released 1 grant\n", "{}", said.stderr);
}

#[tokio::test]
async fn a_resume_does_not_release_what_came_back_with_a_copy() {
    let mut scene = Scene::new("rotation = \"strict\"").await;
    scene.import("anna").await;
    scene.back_up().await;
    scene.freshd.stop().await;
    scene.put_back().await;
    scene.freshd.start_again().await;

    for args in [&["resume", "anna", "acme"][..], &["resume", "anna"]] {
        let said = scene.freshd.freshctl(args, "").await;
        assert_eq!(said.stdout, "resumed 0 grants\n", "{}", said.stderr);
        assert!(said.stderr.contains("freshctl release"), "{}", said.stderr);
    }
    let grant = scene.freshd.grant("anna", "acme").await;
    assert_eq!(grant["reason"], "restored");
    let said = scene
        .freshd
        .freshctl(&["release", "anna", "acme"], "")
        .await;
    assert_eq!(said.stdout, "released 1 grant\n", "{}", said.stderr);
    assert_eq!(scene.freshd.grant("anna", "acme").await["state"], "active");

    let why = scene.freshd.freshctl(&["why", "anna", "acme"], "").await;
    for words in [
        "Why: It came back on 2",
        "with a copy of 2",
        "and was released on 2",
    ] {
        assert!(why.stdout.contains(words), "{words}: {}", why.stdout);
    }
    assert!(!why.stdout.contains("A request of"), "{}", why.stdout);
}

#[tokio::test]
async fn a_released_grant_whose_refresh_token_was_spent_since_is_told_as_a_lost_rotation() {
    let mut scene = Scene::new("rotation = \"strict\"").await;
    // Expired by the time of the restore: without the pause a request would leave at the start.
    let tokens = scene.rotating.issue("anna").import_aged(0, 3);
    scene.freshd.import("anna", "acme", &tokens).await;
    scene.back_up().await;
    scene.rotate("anna").await;
    scene.freshd.stop().await;
    let asked = scene.server.refreshes().len();
    scene.put_back().await;
    scene.freshd.start_again().await;
    eventually("the copy's access token to end", || async {
        let reply = scene.freshd.token("anna", "acme").await;
        (reply.status == 409).then_some(())
    })
    .await;
    assert_eq!(scene.server.refreshes().len(), asked, "not one request");

    let said = scene
        .freshd
        .freshctl(&["release", "anna", "acme"], "")
        .await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let state = "needs-authorization";
    let grant = scene.freshd.wait_for_state("anna", "acme", state).await;
    assert_eq!(grant["reason"], "lost-rotation (probable)");
    assert_eq!(scene.server.refreshes().len(), asked + 1);
    let why = scene.freshd.freshctl(&["why", "anna", "acme"], "").await;
    for words in [
        "restored from a copy of 2",
        "resumed by an admin",
        "It had come back with a copy of 2",
    ] {
        assert!(why.stdout.contains(words), "{words}: {}", why.stdout);
    }
    assert!(!why.stdout.contains("cut off"), "{}", why.stdout);
}

#[tokio::test]
async fn grants_that_do_not_rotate_go_on() {
    let mut scene = Scene::new("rotation = \"none\"").await;
    scene.import("anna").await;
    scene.back_up().await;
    scene.freshd.stop().await;
    let said = scene.put_back().await;
    assert!(!said.stdout.contains("released"), "{}", said.stdout);
    scene.freshd.start_again().await;
    assert_eq!(scene.freshd.grant("anna", "acme").await["state"], "active");
}

#[tokio::test]
async fn users_erased_since_the_copy_stay_erased() {
    let mut scene = Scene::new("").await;
    for user in ["anna", "bert", "carl"] {
        scene.import(user).await;
    }
    // Before the copy: carl is back, and stays.
    assert_eq!(scene.freshd.delete("/v1/users/carl").await.status, 200);
    scene.import("carl").await;
    scene.back_up().await;
    assert_eq!(scene.freshd.delete("/v1/users/anna").await.status, 200);
    scene.freshd.stop().await;

    for _ in 0..2 {
        // The second restore finds the journal as well.
        let said = scene.restore(&["--replace"]).await;
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert!(
            said.stdout.contains("1 grant deleted since then"),
            "{}",
            said.stdout
        );
    }
    scene.freshd.start_again().await;
    assert_eq!(scene.freshd.token("anna", "acme").await.status, 404);
    for user in ["bert", "carl"] {
        assert_eq!(scene.freshd.token(user, "acme").await.status, 200);
    }
}

#[tokio::test]
async fn on_another_host_it_is_told_that_nobody_knows_who_was_erased() {
    let mut scene = Scene::new("").await;
    scene.import("anna").await;
    scene.back_up().await;
    scene.freshd.stop().await;
    let state = scene.freshd.config.state_dir();
    std::fs::remove_dir_all(&state).expect("ours");
    let said = scene.restore(&[]).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("erasure journal"), "{}", said.stderr);
    scene.freshd.start_again().await;
    assert_eq!(scene.freshd.token("anna", "acme").await.status, 200);
}

#[tokio::test]
async fn what_does_not_fit_changes_nothing() {
    let mut scene = Scene::new("").await;
    scene.import("anna").await;
    scene.back_up().await;
    let busy = scene.restore(&["--replace"]).await;
    assert_eq!(busy.code, Some(75), "a daemon runs: {}", busy.stderr);
    scene.freshd.stop().await;
    let state = scene.freshd.config.state_dir();
    let before = contents(&state);

    let there = scene.restore(&[]).await;
    assert_eq!(there.code, Some(73), "{}", there.stderr);
    let todo = "\n  hint: --replace moves the store";
    assert!(there.stderr.contains(todo), "{}", there.stderr);

    let missing = scene
        .freshd
        .freshctl(&["restore", "/nowhere", "--replace"], "")
        .await;
    assert_eq!(missing.code, Some(66), "{}", missing.stderr);
    let reason = "No such file or directory";
    assert_eq!(
        missing.stderr.matches(reason).count(),
        1,
        "{}",
        missing.stderr
    );
    assert!(missing.stderr.contains("/nowhere"), "{}", missing.stderr);

    let other = scene.freshd.config.path().join("other-key");
    let other = other.to_str().expect("ASCII");
    assert_eq!(
        freshctl(&["key", "generate", other], "").await.code,
        Some(0)
    );
    let wrong = scene.restore(&["--replace", "--key-file", other]).await;
    assert_eq!(wrong.code, Some(78), "{}", wrong.stderr);
    let none = scene
        .restore(&["--replace", "--key-file", "/nowhere"])
        .await;
    assert_eq!(none.code, Some(78), "{}", none.stderr);
    let todo = "the key that freshd had when the copy was made";
    assert!(none.stderr.contains(todo), "{}", none.stderr);

    let copy = scene.copy();
    let mut bytes = std::fs::read(&copy).expect("it is there");
    let half = bytes.len() / 2;
    bytes[half..].fill(0x5a);
    std::fs::write(&copy, &bytes).expect("ours");
    let damaged = scene.restore(&["--replace"]).await;
    assert_eq!(damaged.code, Some(65), "{}", damaged.stderr);

    assert!(contents(&state) == before, "nothing was changed");
    scene.freshd.start_again().await;
    assert_eq!(scene.freshd.token("anna", "acme").await.status, 200);
}

#[tokio::test]
async fn no_daemon_starts_on_an_interrupted_restore_and_the_same_command_mends_it() {
    let mut scene = Scene::new("").await;
    scene.import("anna").await;
    scene.back_up().await;
    scene.freshd.stop().await;
    let state = scene.freshd.config.state_dir();
    // As a kill between the old store's move and the new one's leaves it.
    std::fs::write(state.join("restoring"), "").expect("ours");
    std::fs::remove_file(state.join("freshd.db")).expect("ours");
    let (code, log) = scene.freshd.run_another().await;
    assert_eq!(code, Some(78), "{log}");
    assert!(log.contains("freshctl restore"), "{log}");
    scene.put_back().await;
    scene.freshd.start_again().await;
    assert_eq!(scene.freshd.token("anna", "acme").await.status, 200);
}

#[tokio::test]
async fn after_a_kill_at_any_point_of_a_restore_another_copy_is_restored_whole() {
    if std::process::Command::new("strace")
        .arg("-V")
        .output()
        .is_err()
    {
        eprintln!("SKIPPED, NOT TESTED: kills within a restore: strace is missing");
        return;
    }
    let mut scene = Scene::new("rotation = \"strict\"").await;
    for number in 0..30 {
        scene.import(&format!("user-{number}")).await;
    }
    let older = scene.freshd.config.path().join("older");
    let args = ["backup", older.to_str().expect("ASCII")];
    assert_eq!(scene.freshd.freshctl(&args, "").await.code, Some(0));
    for number in 0..10 {
        let gone = scene
            .freshd
            .delete(&format!("/v1/users/user-{number}"))
            .await;
        assert_eq!(gone.status, 200, "{}", gone.text);
    }
    for number in 10..30 {
        scene.rotate(&format!("user-{number}")).await;
    }
    scene.back_up().await;
    scene.freshd.stop().await;
    let mut kills = 0;
    for (syscall, step) in [("fsync", 1), ("rename", 1), ("unlink", 1), ("pwrite64", 7)] {
        for nth in (1..).step_by(step) {
            let mut restoring = tokio::process::Command::new("strace");
            restoring
                .args([
                    "-f",
                    "-q",
                    "-o",
                    "/dev/null",
                    "-e",
                    &format!("trace={syscall}"),
                ])
                .args(["-e", &format!("inject={syscall}:signal=KILL:when={nth}")])
                .arg(env!("CARGO_BIN_EXE_freshctl"))
                .arg("--config")
                .arg(scene.freshd.config.file())
                .arg("restore")
                .arg(&older)
                .arg("--replace");
            let killed = !restoring
                .output()
                .await
                .expect("strace runs")
                .status
                .success();
            let said = scene.restore(&["--replace"]).await;
            assert_eq!(said.code, Some(0), "{syscall} {nth}: {}", said.stderr);
            assert!(
                said.stdout.contains("restored 20 grants"),
                "{syscall} {nth}: {}",
                said.stdout
            );
            let database = scene.freshd.config.state_dir().join("freshd.db");
            let database = rusqlite::Connection::open(database).expect("it is there");
            let found = "SELECT (SELECT * FROM pragma_integrity_check), count(*), min(generation) FROM grants";
            let found = database.query_row(found, [], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, i64>(1)?,
                    row.get::<_, i64>(2)?,
                ))
            });
            let found = found.expect("it is a database");
            assert_eq!(found, ("ok".to_owned(), 20, 2), "{syscall} {nth}");
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills >= 20, "{kills} kills");
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused_and_not_waited_for() {
    let mut scene = Scene::new("rotation = \"strict\"").await;
    scene.freshd.stop().await;
    let pipe = scene.freshd.config.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    for path in [pipe.as_path(), scene.freshd.config.path()] {
        let said = scene
            .freshd
            .freshctl(&["restore", path.to_str().expect("ASCII")], "")
            .await;
        assert_eq!(said.code, Some(65), "{}", said.stderr);
        assert!(
            said.stderr.contains("it is not a regular file"),
            "{}",
            said.stderr
        );
    }
}

#[tokio::test]
async fn what_root_moves_aside_stays_the_owners_of_the_state_directory() {
    use std::os::unix::fs::{MetadataExt, chown};
    if !rustix::process::getuid().is_root() {
        eprintln!("SKIPPED: only root can give files away");
        return;
    }
    let mut scene = Scene::new("rotation = \"strict\"").await;
    scene.import("anna").await;
    scene.back_up().await;
    scene.freshd.stop().await;
    let state = scene.freshd.config.state_dir();
    chown(&state, Some(4242), Some(4243)).expect("we are root");
    scene.put_back().await;
    let entries = std::fs::read_dir(&state).expect("ours");
    let aside = entries
        .map(|entry| entry.expect("ours"))
        .find(|entry| entry.file_name().to_string_lossy().starts_with("replaced-"))
        .expect("it was moved aside");
    let about = aside.metadata().expect("ours");
    assert_eq!((about.uid(), about.gid()), (4242, 4243));
}
