//! `freshctl doctor`: each broken part of an instance is found, told with what to do, and by exit code 1.

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use support::daemon::{Config, Said};
use support::{Answer, Freshd, Rotating, ScriptedServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn well() -> (ScriptedServer, Freshd) {
    let server = ScriptedServer::start(|_| Answer::error(400, "invalid_request")).await;
    let freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    (server, freshd)
}

async fn doctor(freshd: &Freshd) -> Said {
    freshd.freshctl(&["doctor"], "").await
}

/// Asserts that one thing is wrong, and that both it and what to do about it are told.
fn finds(said: &Said, found: &str, hint: &str) {
    assert_eq!(said.code, Some(1), "{}{}", said.stdout, said.stderr);
    assert!(
        said.stdout.contains(found),
        "{found:?} is not in\n{}",
        said.stdout
    );
    assert!(
        said.stdout.contains(hint),
        "{hint:?} is not in\n{}",
        said.stdout
    );
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn nothing_is_wrong_with_a_sound_instance_and_no_secret_was_sent() {
    let (server, freshd) = well().await;
    let said = freshd.freshctl(&["doctor", "--json"], "").await;
    let json: Value = serde_json::from_str(&said.stdout).unwrap();
    let findings = json["findings"].as_array().unwrap();
    let verdict = |check: &str| {
        let found = findings.iter().find(|finding| finding["check"] == check);
        found.map(|finding| finding["verdict"].as_str().unwrap().to_owned())
    };
    for check in [
        "config",
        "key",
        "state",
        "disk",
        "provider acme",
        "shared socket",
        "admin socket",
        "daemon",
    ] {
        assert_eq!(verdict(check).as_deref(), Some("ok"), "{check}: {json}");
    }
    // Whether this host keeps its clock is not this test's business.
    assert!(verdict("clock").is_some() && verdict("sandbox").is_some());
    let asked = server.nth_refresh(1).await.echo();
    assert!(
        !asked.contains("secret of acme") && !asked.to_lowercase().contains("authorization"),
        "{asked}"
    );
}

#[tokio::test]
async fn the_key_is_proved_against_the_keyring() {
    let (_server, freshd) = well().await;
    let key = freshd.config.key_file();
    chmod(&key, 0o644);
    finds(&doctor(&freshd).await, "has mode 0644", "0400 or 0600");
    std::fs::remove_file(&key).unwrap();
    let said = doctor(&freshd).await;
    finds(&said, "does not exist", "change-kek --recovery-key-file");
    assert!(!said.stdout.contains("key generate"), "{}", said.stdout);
    // A database alone is a store too, or what is left of one.
    let keyring = freshd.config.state_dir().join("keyring");
    let aside = keyring.with_extension("aside");
    std::fs::rename(&keyring, &aside).unwrap();
    let said = doctor(&freshd).await;
    assert!(!said.stdout.contains("key generate"), "{}", said.stdout);
    let made = freshd
        .freshctl(&["key", "generate", key.to_str().unwrap()], "")
        .await;
    assert_eq!(made.code, Some(0));
    finds(
        &doctor(&freshd).await,
        "has lost its keyring",
        "put the keyring back",
    );
    std::fs::rename(&aside, &keyring).unwrap();
    finds(
        &doctor(&freshd).await,
        "wrong  key:",
        "put the right key back",
    );
}

#[tokio::test]
async fn a_state_directory_that_others_may_read_or_change_is_told() {
    let (_server, freshd) = well().await;
    let dir = freshd.config.state_dir();
    chmod(&dir, 0o777);
    finds(&doctor(&freshd).await, "has mode 0777", "chmod 0700");
    chmod(&dir, 0o755);
    finds(&doctor(&freshd).await, "has mode 0755", "chmod 0700");
    chmod(&dir, 0o700);
    let file = dir.join("copy");
    std::fs::write(&file, "x").unwrap();
    chmod(&file, 0o644);
    finds(&doctor(&freshd).await, "copy has mode 0644", "chmod go=");
}

#[tokio::test]
async fn a_clock_behind_the_store_is_told() {
    let (_server, freshd) = well().await;
    let file = std::fs::File::create(freshd.config.state_dir().join("later")).unwrap();
    chmod(&freshd.config.state_dir().join("later"), 0o600);
    #[expect(
        clippy::disallowed_methods,
        reason = "a file's stamp is a wall clock's"
    )]
    let later = SystemTime::now() + Duration::from_secs(3 * 86_400);
    file.set_modified(later).unwrap();
    finds(
        &doctor(&freshd).await,
        "the clock was set back",
        "timedatectl set-ntp true",
    );
}

#[tokio::test]
async fn a_token_endpoint_that_is_none_is_explained() {
    let (server, freshd) = well().await;
    server.answer_with(|_| Answer::raw(200, "text/html; charset=utf-8", "<html>Log in</html>"));
    finds(
        &doctor(&freshd).await,
        "answers with an HTML page (200)",
        "this looks like the authorization URL",
    );
    server.answer_with(|_| {
        Answer::raw(302, "text/plain", "").header("location", "https://login.example/authorize")
    });
    finds(
        &doctor(&freshd).await,
        "redirects to login.example (302)",
        "this looks like the authorization URL",
    );
    for odd in [
        "http://[",
        "https://login.example/a b|ü",
        "https://login.example:99999/",
        "//",
        "",
    ] {
        server.answer_with(move |_| Answer::raw(302, "text/plain", "").header("location", odd));
        finds(
            &doctor(&freshd).await,
            "(302)",
            "this looks like the authorization URL",
        );
    }
    server.answer_with(|_| Answer::error(404, "not_found"));
    finds(
        &doctor(&freshd).await,
        "takes no token requests (404)",
        "look at token-endpoint",
    );

    // Trouble of the provider's own is none of ours.
    server.answer_with(|_| Answer::raw(503, "text/html", "<html>"));
    let said = doctor(&freshd).await;
    assert!(
        said.stdout.contains("has trouble of its own (503)"),
        "{}",
        said.stdout
    );
    server.answer_with(|_| Answer::raw(302, "text/plain", "").header("location", "/x"));
    let offline = freshd.freshctl(&["doctor", "--offline"], "").await;
    assert!(
        !offline.stdout.contains("provider acme"),
        "{}",
        offline.stdout
    );
}

#[tokio::test]
async fn a_provider_that_nobody_answers_for_is_told() {
    let rotating = Rotating::new(60);
    let server = ScriptedServer::start(rotating.script()).await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    let at = format!("http://127.0.0.1:{port}/token");
    let config = Config::new()
        .provider("acme", &server, "")
        .provider_at("gone", &at, &at, "client", "secret", "");
    let freshd = Freshd::start(config).await;
    finds(
        &doctor(&freshd).await,
        "cannot be reached (connect)",
        "look at firewall and route",
    );
}

#[tokio::test]
async fn a_daemon_and_sockets_that_are_not_there_are_told() {
    let (_server, mut freshd) = well().await;
    chmod(&freshd.config.admin_socket(), 0o666);
    finds(
        &doctor(&freshd).await,
        "everybody is an admin",
        "SocketMode=0660",
    );
    freshd.stop().await;
    let said = doctor(&freshd).await;
    finds(
        &said,
        "wrong  daemon: cannot reach freshd",
        "systemctl start freshd",
    );
    let _ = std::fs::remove_file(freshd.config.socket());
    finds(
        &doctor(&freshd).await,
        "shared/freshd.sock is not there",
        "systemctl enable --now",
    );
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_told_and_the_rest_goes_on() {
    let (_server, mut freshd) = well().await;
    freshd.config.refresh = "nonsense = 1".into();
    freshd.config.write();
    let said = doctor(&freshd).await;
    finds(&said, "nonsense", "freshctl check-config");
    assert!(said.stdout.contains("daemon: "), "{}", said.stdout);
}

#[tokio::test]
async fn what_we_may_not_read_is_no_mistake_and_the_rest_is_looked_at() {
    let (_server, freshd) = well().await;
    chmod(freshd.config.path(), 0o755);
    let args = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let mut command = tokio::process::Command::new("setpriv");
    command.args(args).arg(env!("CARGO_BIN_EXE_freshctl"));
    let file = freshd.config.file();
    chmod(&file, 0o644);
    command.args(["doctor", "--json", "--config"]).arg(&file);
    let output = command.output().await.expect("setpriv of util-linux");
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(127) || text.is_empty() {
        let why = String::from_utf8_lossy(&output.stderr);
        eprintln!("SKIPPED, NOT TESTED: only root can become somebody else here: {why}");
        return;
    }
    let json: Value = serde_json::from_str(&text).unwrap();
    let verdict = |check: &str| {
        let findings = json["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["check"] == check);
        found.map(|finding| finding["verdict"].as_str().unwrap().to_owned())
    };
    for check in ["config", "key", "state"] {
        assert_eq!(
            verdict(check).as_deref(),
            Some("unknown"),
            "{check}: {json}"
        );
    }
    for check in ["disk", "provider acme"] {
        assert_eq!(verdict(check).as_deref(), Some("ok"), "{check}: {json}");
    }
}

/// Whom freshd runs as, and somebody else; both without a name.
const FRESHD: u32 = 61_001;
const OTHER: u32 = 61_002;

/// A daemon with another uid than root's, whose the whole directory is; `None` where only root could make one.
async fn of_another_user() -> Option<(ScriptedServer, Freshd)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED, NOT TESTED: only root can run freshd as somebody else");
        return None;
    }
    let (server, mut freshd) = well().await;
    freshd.stop().await;
    chown_all(freshd.config.path());
    let ids = [format!("--reuid={FRESHD}"), format!("--regid={FRESHD}")];
    let command = ["setpriv", &ids[0], &ids[1], "--clear-groups", "--"];
    assert!(freshd.start_again_under(&command.map(str::to_owned)).await);
    Some((server, freshd))
}

fn chown(path: &Path, uid: u32) {
    std::os::unix::fs::chown(path, Some(uid), None).unwrap();
}

fn chown_all(directory: &Path) {
    chown(directory, FRESHD);
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => chown_all(&path),
            false => chown(&path, FRESHD),
        }
    }
}

fn uid_of(path: &Path) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&path.metadata().unwrap())
}

/// What is found of key and state directory: the lines, each with its hints.
async fn owners_found(freshd: &Freshd) -> Vec<Value> {
    let said = freshd
        .freshctl(&["doctor", "--offline", "--json"], "")
        .await;
    let json: Value = serde_json::from_str(&said.stdout).unwrap();
    let findings = json["findings"].as_array().unwrap().iter();
    let asked = findings.filter(|it| it["check"] == "key" || it["check"] == "state");
    asked.filter(|it| it["verdict"] != "ok").cloned().collect()
}

/// Does what the hints say, by the shell.
fn obey(findings: &[Value]) {
    for finding in findings {
        let todo = finding["todo"].as_str().unwrap();
        let done = std::process::Command::new("sh").args(["-c", todo]).status();
        assert!(done.unwrap().success(), "{todo}");
    }
}

#[tokio::test]
async fn root_finds_whose_key_and_store_are_not_freshds_and_the_hints_mend_it() {
    let Some((_server, freshd)) = of_another_user().await else {
        return;
    };
    let (key, dir) = (freshd.config.key_file(), freshd.config.state_dir());
    let database = dir.join("freshd.db");
    assert_eq!(owners_found(&freshd).await, [] as [Value; 0], "all is well");
    chown(&key, 0);
    assert_eq!(owners_found(&freshd).await, [] as [Value; 0], "root's key");
    for (path, uid, said) in [
        (&key, OTHER, "belongs to uid 61002"),
        (&database, 0, "belongs to uid 0 and the store to uid 61001"),
        (&dir, 0, "belongs to uid 0 and the store to uid 61001"),
    ] {
        chown(path, uid);
        let found = owners_found(&freshd).await;
        assert_eq!(found.len(), 1, "{found:?}");
        let told = found[0]["found"].as_str().unwrap();
        assert!(
            told.contains(path.to_str().unwrap()) && told.contains(said),
            "{told}"
        );
        obey(&found);
        assert_eq!(uid_of(path), FRESHD, "{found:?}");
        assert_eq!(owners_found(&freshd).await, [] as [Value; 0], "mended");
    }
}

#[tokio::test]
async fn between_two_owners_of_a_store_root_is_not_told_a_guess() {
    let Some((_server, mut freshd)) = of_another_user().await else {
        return;
    };
    freshd.stop().await;
    let dir = freshd.config.state_dir();
    chown(&dir, OTHER);
    let found = owners_found(&freshd).await;
    let said = format!("{found:?}");
    assert!(said.contains("belongs to uid 61002 and the store in it to uid 61001"));
    assert!(said.contains("chown -R USER"), "{said}");
    // Whichever of the two it is, no hint gives anything to the other.
    assert!(!said.contains("chown 6100"), "{said}");
}

#[tokio::test]
async fn a_redirect_is_told_whatever_is_in_its_location() {
    let server = ScriptedServer::start(|_| Answer::error(400, "invalid_request")).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}/token", listener.local_addr().unwrap());
    let answers = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let answer =
                b"HTTP/1.1 302 Found\r\nlocation: https://x/\x01\x7f\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(answer).await;
        }
    });
    let config = Config::new().provider("acme", &server, "");
    let config = config.provider_at("odd", &at, &at, "client", "secret", "");
    let freshd = Freshd::start(config).await;
    finds(
        &doctor(&freshd).await,
        "redirects (302)",
        "this looks like the authorization URL",
    );
    answers.abort();
}
