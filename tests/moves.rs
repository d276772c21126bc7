//! `freshctl backup --final`: a store moves to another host, and is never refreshed in two places.

mod support;

use std::path::PathBuf;

use rustix::process::Signal;
use support::strace::Strace;
use support::{Freshd, Rotating, ScriptedServer, at_rotating_server};

struct Scene {
    rotating: Rotating,
    server: ScriptedServer,
    freshd: Freshd,
}

const REFRESH: &str = "/v1/users/anna/grants/acme/refresh";

impl Scene {
    /// Two grants at a server that kills a used refresh token at once.
    async fn new() -> Scene {
        let (freshd, rotating, server) = at_rotating_server("rotation = \"strict\"").await;
        for user in ["anna", "bert"] {
            let tokens = rotating.issue(user).import();
            freshd.import(user, "acme", &tokens).await;
        }
        Scene {
            rotating,
            server,
            freshd,
        }
    }

    fn copy(&self) -> String {
        let copy = self.freshd.config.path().join("copy");
        copy.to_str().expect("ASCII").to_owned()
    }

    async fn does(&self, args: &[&str]) -> String {
        let said = self.freshd.freshctl(args, "").await;
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        said.stdout
    }

    async fn refresh(&self) -> u64 {
        let nothing = serde_json::json!({});
        self.freshd.post(REFRESH, &nothing).await.generation()
    }
}

#[tokio::test]
async fn after_a_final_backup_nothing_is_refreshed_or_changed_and_the_copy_is_the_present() {
    let mut scene = Scene::new().await;
    let copy = scene.copy();
    assert_eq!(scene.refresh().await, 2);
    let said = scene.does(&["backup", &copy, "--final"]).await;
    assert!(said.contains("not refreshed any more"), "{said}");
    scene.freshd.wait_for_log(" moved ").await;

    let asked = scene.server.refreshes().len();
    // Living tokens are served; nothing is refreshed or changed.
    assert_eq!(scene.freshd.token("anna", "acme").await.generation(), 2);
    assert_eq!(scene.refresh().await, 2);
    let tokens = scene.rotating.issue("carl").import();
    let path = "/v1/users/carl/grants/acme";
    let reply = scene.freshd.put(path, &tokens).await;
    reply.is_problem(503, "moved");
    let reply = scene.freshd.delete("/v1/users/bert").await;
    reply.is_problem(503, "moved");
    for args in [
        &["pause", "anna", "acme"][..],
        &["key", "rotate"],
        &["backup", "/nowhere", "--final"],
    ] {
        let said = scene.freshd.freshctl(args, "").await;
        assert_eq!(said.code, Some(75), "{args:?} {}", said.stderr);
        assert!(said.stderr.contains("another host"), "{}", said.stderr);
        let hint = said.stderr.lines().last().unwrap_or_default();
        assert!(hint.contains("hint: run it on the other host"), "{hint}");
    }
    let said = scene.freshd.freshctl(&["status"], "").await;
    assert_eq!(said.code, Some(1));
    assert!(
        said.stdout.contains("was moved to another host"),
        "{}",
        said.stdout
    );
    assert!(
        said.stdout.contains("rests after a final backup"),
        "{}",
        said.stdout
    );
    assert!(!said.stdout.contains("next due"), "{}", said.stdout);
    let why = scene.does(&["why", "anna", "acme"]).await;
    assert!(why.contains("moved this store to another host"), "{why}");
    assert!(!why.contains("All is well"), "{why}");
    scene.freshd.stop().await;
    let (code, log) = scene.freshd.run_another().await;
    assert_eq!(code, Some(78), "{log}");
    assert!(log.contains("this store was moved"), "{log}");
    assert!(
        log.contains(&format!("freshctl restore {copy} --replace")),
        "{log}"
    );
    assert_eq!(scene.server.refreshes().len(), asked);

    // The other host.
    std::fs::remove_dir_all(scene.freshd.config.state_dir()).expect("ours");
    scene.does(&["restore", &copy]).await;
    scene.freshd.start_again().await;
    assert_eq!(
        scene.freshd.grant("anna", "acme").await["reason"],
        "restored"
    );
    let said = scene
        .does(&["release", "--provider", "acme", "--all"])
        .await;
    assert_eq!(said, "released 2 grants\n");
    assert_eq!(scene.server.refreshes().len(), asked);
    // At once, although the class is strict: this copy is the present.
    assert_eq!(scene.refresh().await, 3);
    let why = scene.does(&["why", "anna", "acme"]).await;
    for words in ["restored from a copy of 2", "resumed by an admin"] {
        assert!(why.contains(words), "{why}");
    }
    assert!(!why.contains("cut off"), "{why}");
}

#[tokio::test]
async fn a_final_backup_that_fails_leaves_the_source_as_it_was() {
    let mut scene = Scene::new().await;
    let copy = scene.copy();
    std::fs::write(&copy, "mine").expect("ours");
    let said = scene
        .freshd
        .freshctl(&["backup", &copy, "--final"], "")
        .await;
    assert_eq!(said.code, Some(73), "{}", said.stderr);
    assert_eq!(scene.freshd.status().await["state"], "running");
    assert_eq!(scene.refresh().await, 2);
    // Where the store can't be marked as moved there is no copy either.
    let marker = scene.freshd.config.state_dir().join("moved");
    std::fs::create_dir(&marker).expect("ours");
    std::fs::remove_file(&copy).expect("ours");
    let said = scene
        .freshd
        .freshctl(&["backup", &copy, "--final"], "")
        .await;
    assert_eq!(said.code, Some(75), "{}", said.stderr);
    assert!(!std::path::Path::new(&copy).exists());
    std::fs::remove_dir(&marker).expect("ours");
    assert_eq!(scene.refresh().await, 3);
    scene.freshd.restart().await;
    let tokens = scene.rotating.issue("carl").import();
    scene.freshd.import("carl", "acme", &tokens).await;
}

#[tokio::test]
async fn a_move_that_was_called_off_is_undone_by_restoring_the_copy() {
    let mut scene = Scene::new().await;
    let copy = scene.copy();
    scene.does(&["backup", &copy, "--final"]).await;
    scene.freshd.stop().await;
    scene.does(&["restore", &copy, "--replace"]).await;
    scene.freshd.start_again().await;
    scene.does(&["release", "anna", "acme"]).await;
    assert_eq!(scene.refresh().await, 2);
}

#[tokio::test]
async fn wherever_a_final_backup_is_killed_there_are_never_a_copy_and_a_source_that_starts() {
    let mut scene = Scene::new().await;
    scene.freshd.stop().await;
    let (state, copy) = (scene.freshd.config.state_dir(), scene.copy());
    let (marker, copied) = (state.join("moved"), PathBuf::from(&copy));
    let unfinished = PathBuf::from(format!("{copy}.freshd-unfinished"));
    let calls = [
        ("openat", vec![marker.clone(), state.clone()]),
        ("write", vec![marker.clone()]),
        ("fsync", vec![marker.clone(), state.clone()]),
        ("renameat2", vec![unfinished, copied.clone()]),
        ("fsync", vec![scene.freshd.config.path().to_owned()]),
    ];
    let mut kills = 0;
    for (syscall, files) in calls {
        for n in 1.. {
            let strace = Strace::kill_at(scene.freshd.config.path(), syscall, n).on(&files);
            if !scene.freshd.start_again_under(&strace.command()).await {
                // Not what this is about.
                scene.freshd.wait_exit().await;
                continue;
            }
            let command = ["backup", &copy, "--final"];
            let unharmed = scene.freshd.freshctl(&command, "").await.code == Some(0);
            if unharmed {
                scene.freshd.signal(Signal::TERM);
            }
            scene.freshd.wait_exit().await;
            assert!(marker.exists() || !copied.exists(), "{syscall} {n}");
            if marker.exists() {
                let (code, log) = scene.freshd.run_another().await;
                assert_eq!(code, Some(78), "{syscall} {n}: {log}");
            }
            // The way back that the log names.
            if copied.exists() {
                scene.does(&["restore", &copy, "--replace"]).await;
                std::fs::remove_file(&copied).expect("ours");
            } else {
                let _ = std::fs::remove_file(&marker);
            }
            if unharmed {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills >= 5, "{kills} kills");
    scene.freshd.start_again().await;
    assert_eq!(scene.freshd.token("anna", "acme").await.status, 200);
}
