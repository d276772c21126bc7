//! `freshctl backup` makes one sealed, checked, private file while the daemon goes on.

mod support;

use std::os::unix::fs::MetadataExt;

use support::daemon::Config;
use support::{Freshd, Rotating, ScriptedServer};

async fn daemon_with(users: &[&str], extra: &str) -> (Rotating, ScriptedServer, Freshd) {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().daemon(extra).provider("acme", &server, "");
    let freshd = Freshd::start(config).await;
    for user in users {
        let tokens = rotating.issue(user).import();
        freshd.import(user, "acme", &tokens).await;
    }
    (rotating, server, freshd)
}

#[tokio::test]
async fn a_backup_is_private_sealed_and_never_overwrites() {
    let (_rotating, server, freshd) = daemon_with(&["anna", "bert"], "").await;
    let copy = freshd.config.path().join("copy");
    let path = copy.to_str().expect("ASCII");

    let said = freshd.freshctl(&["backup", path], "").await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(said.stdout, format!("backed up 2 grants to {path}\n"));
    assert_eq!(copy.metadata().expect("it is there").mode() & 0o7777, 0o600);
    freshd.wait_for_log("backed-up").await;

    let bytes = std::fs::read(&copy).expect("it is there");
    let token = freshd.token("anna", "acme").await;
    assert!(memchr::memmem::find(&bytes, token.token().as_bytes()).is_none());

    let again = freshd.freshctl(&["backup", path], "").await;
    assert_eq!(again.code, Some(73), "{}", again.stderr);
    assert!(again.stderr.contains("already exists"), "{}", again.stderr);
    let todo = "\n  hint: name another file";
    assert!(again.stderr.contains(todo), "{}", again.stderr);
    assert_eq!(std::fs::read(&copy).expect("it is there"), bytes);
    freshd.wait_for_log("backup-failed").await;
    assert_eq!(server.refreshes().len(), 0);

    let nowhere = freshd.config.path().join("nowhere/copy");
    let nowhere = nowhere.to_str().expect("ASCII");
    let said = freshd.freshctl(&["backup", nowhere], "").await;
    assert_eq!(said.code, Some(73), "{}", said.stderr);
    for words in [nowhere, "No such file or directory", "ReadWritePaths="] {
        assert!(said.stderr.contains(words), "{}", said.stderr);
    }
    let said = freshd.freshctl(&["restore", nowhere], "").await;
    assert_eq!(said.code, Some(66), "{}", said.stderr);
}

#[tokio::test]
async fn the_status_tells_of_a_copy_that_was_made_by_hand_where_the_nightly_ones_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let job = format!(
        "[maintenance]\nbackup = \"0 0 3 1 1 *\"\nbackup-dir = {:?}",
        dir.path()
    );
    let (_rotating, _server, freshd) = daemon_with(&["anna"], &job).await;
    let line = |said: &str| {
        let mut lines = said.lines();
        let found = lines.find(|line| line.starts_with("copies "));
        found.expect("a line about copies").to_owned()
    };
    let said = freshd.freshctl(&["status"], "").await;
    let told = line(&said.stdout);
    assert!(told.contains("none yet in "), "{told}");

    let copy = dir.path().join("first.backup");
    let copy = copy.to_str().expect("ASCII");
    assert_eq!(freshd.freshctl(&["backup", copy], "").await.code, Some(0));
    let said = freshd.freshctl(&["status"], "").await;
    let told = line(&said.stdout);
    assert!(
        told.contains("the newest ") && !told.contains(" -,"),
        "{told}"
    );
    let said = freshd.freshctl(&["status", "--json"], "").await;
    let status: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert!(status["copies"]["newest_at"].is_string(), "{status}");
}

#[tokio::test]
async fn the_maintenance_job_keeps_the_newest_copies() {
    let dir = tempfile::tempdir().expect("a directory");
    let backups = dir.path().join("backups");
    let job =
        format!("[maintenance]\nbackup = \"* * * * * *\"\nbackup-dir = {backups:?}\nkeep = 2");
    let (_rotating, _server, freshd) = daemon_with(&["anna"], &job).await;
    let made = || {
        let entries = std::fs::read_dir(&backups).into_iter().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("ours").file_name())
            .collect();
        names.retain(|name| name.to_string_lossy().ends_with("Z.backup"));
        names.sort();
        names
    };
    let first = support::eventually("a first copy", || async { made().first().cloned() }).await;
    support::eventually("the first copy to go", || async {
        let now = made();
        (now.len() == 2 && !now.contains(&first)).then_some(())
    })
    .await;
    drop(freshd);
}
