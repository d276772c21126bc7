//! The key-encryption key and the recovery key: either the old or the new key opens the store, never neither, and
//! with a wrong one nothing is changed (I9).

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use freshd::store::rekey::{self, Proof};
use freshd::store::{Kek, RecoveryKey};
use support::daemon::{Said, freshctl};
use support::{Freshd, ScriptedServer, at_rotating_server};

struct Scene {
    freshd: Freshd,
    _server: ScriptedServer,
}

impl Scene {
    /// One grant, and a daemon that has stopped.
    async fn new() -> Scene {
        let (mut freshd, rotating, server) = at_rotating_server("rotation = \"strict\"").await;
        let tokens = rotating.issue("anna").import();
        freshd.import("anna", "acme", &tokens).await;
        freshd.stop().await;
        Scene {
            freshd,
            _server: server,
        }
    }

    fn path(&self, name: &str) -> String {
        let path = self.freshd.config.path().join(name);
        path.to_str().expect("ASCII").to_owned()
    }

    async fn new_key(&self, name: &str) -> String {
        let path = self.path(name);
        let said = freshctl(&["key", "generate", &path], "").await;
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        path
    }

    async fn does(&self, args: &[&str], stdin: &str) -> Said {
        let said = self.freshd.freshctl(args, stdin).await;
        assert_eq!(said.code, Some(0), "{args:?} {}", said.stderr);
        said
    }

    /// Puts a key where the configuration has freshd read it.
    fn install(&self, key: &str) {
        std::fs::rename(key, self.freshd.config.key_file()).expect("both are ours");
    }

    async fn serves_anna(&mut self) {
        self.freshd.start_again().await;
        assert_eq!(self.freshd.token("anna", "acme").await.status, 200);
        self.freshd.stop().await;
    }

    async fn refuses_to_start(&self) {
        let before = contents(&self.freshd.config.state_dir());
        let (code, log) = self.freshd.run_another().await;
        assert_eq!(code, Some(78), "{log}");
        assert!(log.contains("the key does not fit"), "{log}");
        assert!(contents(&self.freshd.config.state_dir()) == before, "I9");
    }
}

/// Every file of a directory.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(dir)
        .expect("it is there")
        .map(|entry| {
            let entry = entry.expect("ours");
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, std::fs::read(entry.path()).expect("ours"))
        })
        .collect()
}

#[tokio::test]
async fn a_changed_key_opens_the_store_and_the_old_one_does_not() {
    let mut scene = Scene::new().await;
    let new = scene.new_key("new-key").await;
    let before = contents(&scene.freshd.config.state_dir());

    scene.freshd.start_again().await;
    let busy = scene
        .freshd
        .freshctl(&["key", "change-kek", &new], "")
        .await;
    assert_eq!(busy.code, Some(75), "{}", busy.stderr);
    assert!(busy.stderr.contains("stop freshd first"), "{}", busy.stderr);
    scene.freshd.stop().await;

    let wrong = scene.new_key("wrong-key").await;
    let args = ["key", "change-kek", &new, "--key-file", &wrong];
    let refused = scene.freshd.freshctl(&args, "").await;
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    assert_eq!(
        contents(&scene.freshd.config.state_dir())["keyring"],
        before["keyring"]
    );

    // A missing old key is to be found again, and a missing new one to be made.
    for args in [
        &["key", "change-kek", &new, "--key-file", "/nowhere/key"][..],
        &["key", "recovery", "--key-file", "/nowhere/key"],
    ] {
        let said = scene.freshd.freshctl(args, "").await;
        assert_eq!(said.code, Some(78), "{}", said.stderr);
        assert!(said.stderr.contains("put the key back"), "{}", said.stderr);
        assert!(!said.stderr.contains("generate"), "{}", said.stderr);
    }
    let args = ["key", "change-kek", "/nowhere/key"];
    let said = scene.freshd.freshctl(&args, "").await;
    assert_eq!(said.code, Some(78), "{}", said.stderr);
    assert!(said.stderr.contains("key generate"), "{}", said.stderr);

    let said = scene.does(&["key", "change-kek", &new], "").await;
    let key_file = scene.freshd.config.key_file();
    let key_file = key_file.to_str().expect("ASCII");
    assert!(
        said.stderr.contains(key_file),
        "what to do next: {}",
        said.stderr
    );
    assert!(
        said.stdout.contains(&new) && said.stderr.contains("keep the old key"),
        "which key opens what: {} {}",
        said.stdout,
        said.stderr
    );
    let after = contents(&scene.freshd.config.state_dir());
    assert_eq!(
        after["freshd.db"], before["freshd.db"],
        "the store is not touched"
    );
    scene.refuses_to_start().await;
    scene.install(&new);
    scene.serves_anna().await;
}

#[tokio::test]
async fn a_recovery_key_opens_the_store_when_its_key_is_lost_and_a_wrong_one_changes_nothing() {
    let mut scene = Scene::new().await;
    let shown = scene.does(&["key", "recovery"], "").await;
    let recovery = shown.stdout.trim_end();
    assert_eq!(recovery.len(), 69, "alone on standard output");
    assert!(shown.stderr.contains("shown once"), "{}", shown.stderr);
    let again = scene.freshd.freshctl(&["key", "recovery"], "").await;
    assert_eq!(again.code, Some(73), "{}", again.stderr);
    assert!(again.stderr.contains("--replace"), "{}", again.stderr);
    scene.serves_anna().await;

    std::fs::remove_file(scene.freshd.config.key_file()).expect("ours");
    let new = scene.new_key("new-key").await;
    let change = ["key", "change-kek", &new, "--recovery-key-file", "-"];
    let before = contents(&scene.freshd.config.state_dir());
    let other = if recovery.starts_with('7') { "8" } else { "7" };
    let slip = format!("{other}{}", &recovery[1..]);
    let said = scene.freshd.freshctl(&change, &slip).await;
    assert_eq!(said.code, Some(65), "{}", said.stderr);
    assert!(said.stderr.contains("typing error"), "{}", said.stderr);
    let stranger = RecoveryKey::generate().expose();
    let said = scene.freshd.freshctl(&change, &stranger).await;
    assert_eq!(said.code, Some(78), "{}", said.stderr);
    let words = "the recovery key does not fit";
    assert!(said.stderr.contains(words), "{}", said.stderr);
    assert_eq!(
        contents(&scene.freshd.config.state_dir())["keyring"],
        before["keyring"]
    );

    scene.does(&change, recovery).await;
    scene.install(&new);
    scene.serves_anna().await;

    // It is still one; with the key alone it can't be kept, so that must be said.
    let newer = scene.new_key("newer-key").await;
    let unsaid = scene
        .freshd
        .freshctl(&["key", "change-kek", &newer], "")
        .await;
    assert_eq!(unsaid.code, Some(73), "{}", unsaid.stderr);
    assert!(
        unsaid.stderr.contains("--drop-recovery"),
        "{}",
        unsaid.stderr
    );
    scene.does(&["key", "recovery", "--remove"], "").await;
    scene.does(&["key", "change-kek", &newer], "").await;
    scene.install(&newer);
    let newest = scene.new_key("newest-key").await;
    let change = ["key", "change-kek", &newest, "--recovery-key-file", "-"];
    let gone = scene.freshd.freshctl(&change, recovery).await;
    assert_eq!(gone.code, Some(78), "{}", gone.stderr);
    assert!(
        gone.stderr.contains("has no recovery key"),
        "{}",
        gone.stderr
    );
    scene.serves_anna().await;
}

#[tokio::test]
async fn a_recovery_key_goes_to_a_private_new_file_and_a_file_that_others_may_read_is_warned_of() {
    let mut scene = Scene::new().await;
    let file = scene.path("recovery");
    std::fs::write(&file, "mine").expect("ours");
    let before = contents(&scene.freshd.config.state_dir());
    let args = ["key", "recovery", "--output", &file];
    let refused = scene.freshd.freshctl(&args, "").await;
    assert_eq!(refused.code, Some(73), "{}", refused.stderr);
    assert_eq!(std::fs::read(&file).expect("ours"), b"mine");
    assert!(contents(&scene.freshd.config.state_dir()) == before);

    std::fs::remove_file(&file).expect("ours");
    let said = scene.does(&args, "").await;
    let mode = std::fs::metadata(&file).expect("it is there").permissions();
    assert_eq!(mode.mode() & 0o7777, 0o600);
    let key = std::fs::read_to_string(&file).expect("ours");
    assert_eq!(key.trim_end().len(), 69);
    assert!(!said.stdout.contains(key.trim_end()) && !said.stderr.contains(key.trim_end()));

    // There is one, so no other is made, and no file stays that looks like one.
    let again = scene.path("again");
    let args = ["key", "recovery", "--output", &again];
    let refused = scene.freshd.freshctl(&args, "").await;
    assert_eq!(refused.code, Some(73), "{}", refused.stderr);
    assert!(!Path::new(&again).exists());

    let new = scene.new_key("new-key").await;
    let change = ["key", "change-kek", &new, "--recovery-key-file", &file];
    scene.does(&change, "").await;
    scene.install(&new);
    scene.serves_anna().await;

    for (mode, warned) in [(0o644, true), (0o640, true), (0o600, false)] {
        let shown = std::fs::File::create(scene.path("shown")).expect("ours");
        shown
            .set_permissions(std::fs::Permissions::from_mode(mode))
            .expect("ours");
        let ended = tokio::process::Command::new(env!("CARGO_BIN_EXE_freshctl"))
            .arg("--config")
            .arg(scene.freshd.config.file())
            .args(["key", "recovery", "--replace"])
            .stdout(shown)
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs")
            .wait_with_output()
            .await
            .expect("our child");
        let told = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{told}");
        assert_eq!(told.contains("warning: "), warned, "{mode:o} {told}");
    }
}

#[tokio::test]
async fn a_copy_is_restored_on_another_host_by_the_recovery_key() {
    let mut scene = Scene::new().await;
    let shown = scene.does(&["key", "recovery"], "").await;
    scene.freshd.start_again().await;
    let copy = scene.path("copy");
    scene.does(&["backup", &copy], "").await;
    scene.does(&["key", "rotate"], "").await;
    scene.freshd.wait_for_log("key-rotated").await;
    scene.freshd.stop().await;

    // The other host has a key of its own, and the old one is gone with the old host.
    std::fs::remove_dir_all(scene.freshd.config.state_dir()).expect("ours");
    std::fs::remove_file(scene.freshd.config.key_file()).expect("ours");
    scene.new_key("key").await;
    let refused = scene.freshd.freshctl(&["restore", &copy], "").await;
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    let restore = ["restore", &copy, "--recovery-key-file", "-"];
    scene.does(&restore, &shown.stdout).await;
    scene.serves_anna().await;
}

/// Runs a command as the last words of `strace`, and returns whether it has ended well.
async fn under_strace(scene: &Scene, tampering: &str, syscall: &str, args: &[&str]) -> bool {
    let state = scene.freshd.config.state_dir();
    let mut command = tokio::process::Command::new("strace");
    command
        .args(["-f", "-q", "-o", "/dev/null", "-e"])
        .arg(format!("inject={syscall}:{tampering}"));
    // Only what concerns the keyring, but for the directory's fsync.
    for file in [state.join("keyring.new"), state.join("keyring"), state] {
        command.arg("-P").arg(file);
    }
    let mut child = command
        .arg(env!("CARGO_BIN_EXE_freshctl"))
        .arg("--config")
        .arg(scene.freshd.config.file())
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("strace is installed (tests/run does it)");
    let ended = support::within("freshctl to end", child.wait()).await;
    ended.expect("our child").success()
}

#[tokio::test]
async fn whatever_step_of_a_change_is_killed_or_fails_one_key_opens_the_store_and_a_second_try_goes_well()
 {
    let mut scene = Scene::new().await;
    let state = scene.freshd.config.state_dir();
    let keyring = std::fs::read(state.join("keyring")).expect("it is there");
    let new = scene.new_key("new-key").await;
    let (old, change) = (scene.path("key"), ["key", "change-kek", &new]);
    // A change to the key that is there already changes nothing, and says so.
    let opens = |key: &str| {
        let key = Kek::read_file(Path::new(key)).expect("it is there");
        rekey::change_kek(&state, Proof::Kek(&key), &key, false).is_ok()
    };
    let mut points = 0;
    for syscall in ["openat", "write", "fsync", "rename"] {
        for fault in ["signal=KILL", "error=EIO", "error=ENOSPC"] {
            for n in 1.. {
                std::fs::write(state.join("keyring"), &keyring).expect("ours");
                let tampering = format!("{fault}:when={n}");
                if under_strace(&scene, &tampering, syscall, &change).await {
                    break;
                }
                points += 1;
                assert_ne!(opens(&old), opens(&new), "{syscall} {tampering}");
                scene.does(&change, "").await;
                assert!(opens(&new), "{syscall} {tampering}");
            }
        }
    }
    println!("{points} points");
    assert!(points >= 12, "{points}");
    scene.install(&new);
    scene.serves_anna().await;
}
