//! `freshctl export`: every grant, no secret, in lines that an import takes once the tokens are put back.

mod support;

use std::io::Read;
use std::os::unix::fs::MetadataExt;

use age::secrecy::ExposeSecret;
use serde_json::{Value, json};
use support::daemon::{Config, Said};
use support::{Freshd, Rotating, ScriptedServer, eventually};

#[tokio::test]
async fn an_export_holds_every_grant_and_no_token_and_is_imported_again_with_its_tokens() {
    let rotating = Rotating::new(3600).with_prefix("canary-");
    let server = ScriptedServer::start(rotating.script()).await;
    let config = || Config::new().provider("acme", &server, "rotation = \"strict\"");
    let (from, to) = (Freshd::start(config()).await, Freshd::start(config()).await);
    let mut secrets = std::collections::BTreeMap::new();
    for user in ["anna", "bert", "ü \"x\""] {
        let mut tokens = rotating.issue(user).import();
        tokens["scope"] = json!("contacts files");
        let mut line = tokens.clone();
        line["user"] = json!(user);
        line["provider"] = json!("acme:work");
        let taken = from
            .freshctl(&["import", "--jsonl", "-"], &line.to_string())
            .await;
        assert_eq!(taken.code, Some(0), "{}", taken.stderr);
        secrets.insert(user.to_owned(), tokens);
    }
    from.freshctl(&["pause", "bert", "acme:work"], "").await;

    let said = from.freshctl(&["export"], "").await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stderr.contains("3 grants, without tokens"),
        "{}",
        said.stderr
    );
    for tokens in secrets.values() {
        for name in ["access_token", "refresh_token"] {
            let secret = tokens[name].as_str().unwrap();
            assert!(!said.stdout.contains(secret), "{name}\n{}", said.stdout);
        }
    }
    let lines = said.stdout.lines().map(serde_json::from_str::<Value>);
    let lines: Vec<Value> = lines.collect::<Result<_, _>>().unwrap();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[1]["state"], "paused");

    let whole: Vec<String> = lines
        .into_iter()
        .map(|mut line| {
            let tokens = &secrets[line["user"].as_str().unwrap()];
            line["access_token"] = tokens["access_token"].clone();
            line["refresh_token"] = tokens["refresh_token"].clone();
            line.to_string()
        })
        .collect();
    let taken = to
        .freshctl(&["import", "--jsonl", "-"], &whole.join("\n"))
        .await;
    assert_eq!(taken.code, Some(0), "{}", taken.stderr);
    for user in secrets.keys() {
        let show = ["show", user.as_str(), "acme:work", "--json"];
        let [there, here] = [&from, &to].map(|freshd| freshd.freshctl(&show, ""));
        let [there, here] = [there.await, here.await].map(|said| {
            let value: Value = serde_json::from_str(&said.stdout).unwrap();
            (value["scope"].clone(), value["expires_at"].clone())
        });
        assert_eq!(there, here, "{user}");
    }

    let one = from.freshctl(&["export", "--state", "paused"], "").await;
    assert_eq!(one.stdout.lines().count(), 1);
}

// With secrets.

/// Decrypts an export as its reader does, and returns its lines.
fn decrypted(bytes: &[u8], identity: &age::x25519::Identity) -> Vec<Value> {
    let decryptor = age::Decryptor::new(bytes).expect("it is of age");
    let identities = std::iter::once(identity as &dyn age::Identity);
    let mut text = String::new();
    let mut reader = decryptor.decrypt(identities).expect("it is for us");
    reader.read_to_string(&mut text).expect("it is whole");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    lines.collect()
}

/// Waits until the newest note on an export has these words, and returns it.
async fn audited(freshd: &Freshd, words: &str) -> Value {
    eventually(&format!("{words:?} in the audit"), || async {
        let reply = freshd
            .admin(hyper::Method::GET, "/v1/audit?action=exported")
            .await;
        let entries = reply.json["entries"].as_array()?.clone();
        let told = |it: &Value| it["detail"].as_str().is_some_and(|it| it.contains(words));
        entries.into_iter().find(told)
    })
    .await
}

struct Scene {
    rotating: Rotating,
    server: ScriptedServer,
    freshd: Freshd,
    identity: age::x25519::Identity,
}

impl Scene {
    async fn new(users: &[&str]) -> Scene {
        let rotating = Rotating::new(3600).with_prefix("canary-");
        let server = ScriptedServer::start(rotating.script()).await;
        let config = Config::new().daemon("allow-export = true");
        let freshd = Freshd::start(config.provider("acme", &server, "rotation = \"strict\"")).await;
        for user in users {
            let mut tokens = rotating.issue(user).import();
            tokens["scope"] = json!("contacts files");
            tokens["refresh_token_expires_at"] = json!("2030-01-31T00:00:00Z");
            freshd.import(user, "acme:work", &tokens).await;
        }
        let identity = age::x25519::Identity::generate();
        Scene {
            rotating,
            server,
            freshd,
            identity,
        }
    }

    fn recipient(&self) -> String {
        self.identity.to_public().to_string()
    }

    /// Runs an export with secrets.
    async fn export(&self, options: &[&str]) -> Said {
        let to = self.recipient();
        let args = ["export", "--with-secrets", "--recipient", &to];
        self.freshd
            .freshctl(&[&args[..], options].concat(), "")
            .await
    }

    /// Panics where anything but the encrypted file shows a token.
    fn no_canary_in(&self, said: &Said) {
        for text in [&said.stdout, &said.stderr, &self.freshd.logs()] {
            assert!(!text.contains("canary-"), "{text}");
        }
    }
}

#[tokio::test]
async fn an_export_with_secrets_decrypts_to_all_of_them_and_another_freshd_takes_it() {
    let scene = Scene::new(&["anna", "bert", "carl"]).await;
    let file = scene.freshd.config.path().join("export.age");
    let path = file.to_str().unwrap();
    let other = age::x25519::Identity::generate();
    let also = other.to_public().to_string();
    let said = scene
        .export(&["--output", path, "--recipient", &also])
        .await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stdout.starts_with("exported 3 grants, ")
            && said.stdout.contains("encrypted to 2 recipients"),
        "{}",
        said.stdout
    );
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
    let bytes = std::fs::read(&file).unwrap();
    assert!(memchr::memmem::find(&bytes, b"canary-").is_none());
    let lines = decrypted(&bytes, &scene.identity);
    assert_eq!(lines, decrypted(&bytes, &other), "either can read it");
    assert_eq!(lines[0]["freshd_export"], 1);
    assert_eq!(
        lines[4]["freshd_export_end"],
        json!({"grants": 3, "left_out": 0})
    );
    let anna = &lines[1];
    assert_eq!(
        (
            &anna["user"],
            &anna["account"],
            &anna["generation"],
            &anna["state"]
        ),
        (&json!("anna"), &json!("work"), &json!(1), &json!("active"))
    );
    // Who asked, to whom and how many; and no token anywhere.
    let note = audited(&scene.freshd, "3 grants with secrets to age1").await;
    assert!(
        note["detail"].as_str().unwrap().ends_with(", done"),
        "{note}"
    );
    assert!(
        note["detail"]
            .as_str()
            .unwrap()
            .contains(&scene.recipient()),
        "{note}"
    );
    audited(&scene.freshd, "begun").await;
    scene.no_canary_in(&said);
    // What is there is not overwritten.
    let again = scene.export(&["--output", path]).await;
    assert_eq!(again.code, Some(73), "{}", again.stderr);
    assert_eq!(std::fs::read(&file).unwrap(), bytes);

    let config = Config::new().provider("acme", &scene.server, "rotation = \"strict\"");
    let to = Freshd::start(config).await;
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    let import = ["import", "--jsonl", "-"];
    let taken = to.freshctl(&import, &text.join("\n")).await;
    assert_eq!(taken.code, Some(0), "{}", taken.stderr);
    for user in ["anna", "bert"] {
        let (there, here) = (
            scene.freshd.token(user, "acme:work").await,
            to.token(user, "acme:work").await,
        );
        assert_eq!(there.token(), here.token(), "{user}");
        for member in ["scope", "expires_at", "token_type"] {
            assert_eq!(there.json[member], here.json[member], "{user} {member}");
        }
        let grant = to.grant(user, "acme:work").await;
        assert_eq!(grant["refresh_token_expires_at"], "2030-01-31T00:00:00Z");
    }
    // The refresh token came along: it is presented, and works.
    let said = to.freshctl(&["refresh", "anna", "acme:work"], "").await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(scene.rotating.refreshes("anna"), 1);
    // One that was cut short is no whole.
    let cut = to.freshctl(&import, &text[..2].join("\n")).await;
    assert_eq!(cut.code, Some(65), "{}", cut.stderr);
    assert!(cut.stderr.contains("cut short"), "{}", cut.stderr);
}

#[tokio::test]
async fn without_a_recipient_or_with_a_wrong_one_nothing_is_exported_and_the_rule_is_named() {
    let scene = Scene::new(&["anna"]).await;
    let secret = scene.identity.to_string().expose_secret().to_owned();
    for (recipient, words) in [
        (None, "--recipient must name the public key"),
        (Some("age1nonsense"), "must be an X25519 public key of age"),
        (
            Some("ssh-ed25519 AAAA"),
            "must be an X25519 public key of age",
        ),
        (Some(secret.as_str()), "this is a secret key"),
        (
            Some("age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z"),
            "is no key that anybody has",
        ),
    ] {
        let mut args = vec!["export", "--with-secrets"];
        args.extend(recipient.iter().flat_map(|it| ["--recipient", it]));
        let said = scene.freshd.freshctl(&args, "").await;
        assert_eq!(said.code, Some(64), "{}", said.stderr);
        assert!(said.stderr.contains(words), "{}", said.stderr);
        assert!(!said.stderr.contains(&secret), "{}", said.stderr);
        assert_eq!(said.stdout, "");
    }
    // On a terminal it stops too, and writes nothing there.
    let config = scene.freshd.config.file();
    let line = format!(
        "{} --config {} export --with-secrets --recipient {}",
        env!("CARGO_BIN_EXE_freshctl"),
        config.display(),
        scene.recipient()
    );
    let mut script = tokio::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]);
    let output = script.output().await.expect("script(1) of util-linux");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(
        text.contains("is a terminal") && !text.contains("age-encryption.org"),
        "{text}"
    );
}

#[tokio::test]
async fn offline_it_needs_the_store_to_itself_and_is_told_by_its_audit() {
    let mut scene = Scene::new(&["anna", "bert"]).await;
    let file = scene.freshd.config.path().join("export.age");
    let offline = ["--offline", "--output", file.to_str().unwrap()];
    let said = scene.export(&offline).await;
    assert_eq!(said.code, Some(75), "{}", said.stderr);
    assert!(
        said.stderr.contains("hint: stop freshd first"),
        "{}",
        said.stderr
    );
    assert!(!file.exists(), "nothing is left of it");
    scene.freshd.stop().await;
    let said = scene.export(&offline).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stdout.starts_with("exported 2 grants, "),
        "{}",
        said.stdout
    );
    let lines = decrypted(&std::fs::read(&file).unwrap(), &scene.identity);
    assert_eq!(lines.len(), 4);
    assert!(
        lines[1]["refresh_token"]
            .as_str()
            .unwrap()
            .starts_with("canary-")
    );
    scene.no_canary_in(&said);
    scene.freshd.start_again().await;
    audited(&scene.freshd, "2 grants with secrets to age1").await;
    assert_eq!(scene.freshd.token("anna", "acme:work").await.status, 200);
}

#[tokio::test]
async fn an_export_whose_reader_hangs_up_is_told_as_not_done() {
    let scene = Scene::new(&[]).await;
    let long = "x".repeat(8 << 10);
    let lines: Vec<String> = (0..450)
        .map(|n| {
            let line = json!({"user": n.to_string(), "provider": "acme", "refresh_token": format!("r-{n}"),
                "access_token": long, "expires_in": 3600});
            line.to_string()
        })
        .collect();
    let import = ["import", "--jsonl", "-"];
    let taken = scene.freshd.freshctl(&import, &lines.join("\n")).await;
    assert_eq!(taken.code, Some(0), "{}", taken.stderr);
    let line = format!(
        "{} --config {} export --with-secrets --recipient {} | head -c 1000 >/dev/null; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_freshctl"),
        scene.freshd.config.file().display(),
        scene.recipient()
    );
    let mut shell = tokio::process::Command::new("bash");
    let output = shell.args(["-c", &line]).output().await.expect("bash");
    assert_eq!(
        output.status.code(),
        Some(0),
        "a reader who hangs up is no failure"
    );
    let note = audited(&scene.freshd, "not done: the reader hung up").await;
    assert!(
        !note["detail"].as_str().unwrap().starts_with("450 "),
        "{note}"
    );
    // And whole, over several pages.
    let file = scene.freshd.config.path().join("export.age");
    let said = scene.export(&["--output", file.to_str().unwrap()]).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let lines = decrypted(&std::fs::read(&file).unwrap(), &scene.identity);
    let mut users: Vec<u64> = lines[1..=450]
        .iter()
        .map(|line| line["user"].as_str().unwrap().parse().unwrap())
        .collect();
    users.sort_unstable();
    assert_eq!(users, (0..450).collect::<Vec<u64>>());
}

#[tokio::test]
async fn an_export_without_secrets_and_a_renewal_are_in_the_audit() {
    let scene = Scene::new(&["anna"]).await;
    let freshd = &scene.freshd;
    assert_eq!(freshd.freshctl(&["grants"], "").await.code, Some(0));
    assert_eq!(freshd.freshctl(&["export"], "").await.code, Some(0));
    let note = audited(freshd, "without secrets").await;
    assert_eq!(note["times"], 1, "{note}");
    let renew = ["refresh", "--all", "--provider", "acme"];
    let dry = [&renew[..], &["--dry-run"]].concat();
    assert_eq!(freshd.freshctl(&dry, "").await.code, Some(0));
    assert_eq!(freshd.freshctl(&renew, "").await.code, Some(0));
    let renewed = eventually("the renewal in the audit", || async {
        let path = "/v1/audit?action=renewed";
        let reply = freshd.admin(hyper::Method::GET, path).await;
        reply.json["entries"].as_array()?.first().cloned()
    })
    .await;
    assert_eq!(
        (&renewed["detail"], &renewed["times"]),
        (&json!("acme"), &json!(1))
    );
}

#[tokio::test]
async fn an_admin_who_is_not_root_exports_no_secrets_unless_the_configuration_says_so() {
    let mut scene = Scene::new(&["anna"]).await;
    scene.freshd.stop().await;
    scene.freshd.config.daemon.clear();
    scene.freshd.start_again().await;
    let body = json!({ "recipients": [scene.recipient()] }).to_string();
    let socket = scene.freshd.config.admin_socket();
    let mut command = tokio::process::Command::new("curl");
    if rustix::process::getuid().is_root() {
        // Somebody else, who may use the socket.
        for path in [
            socket.as_path(),
            socket.parent().unwrap(),
            scene.freshd.config.path(),
        ] {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
        }
        command = tokio::process::Command::new("setpriv");
        command.args([
            "--reuid",
            "4242",
            "--regid",
            "4242",
            "--clear-groups",
            "curl",
        ]);
    }
    command.args([
        "-sS",
        "--unix-socket",
        socket.to_str().unwrap(),
        "-d",
        &body,
    ]);
    command.args([
        "-H",
        "content-type: application/json",
        "http://localhost/v1/export",
    ]);
    let output = command.output().await.expect("setpriv and curl");
    let text = String::from_utf8_lossy(&output.stdout);
    let told: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text} {output:?}"));
    assert_eq!(
        (&told["status"], &told["type"]),
        (&json!(403), &json!("urn:freshd:forbidden"))
    );
    assert!(
        told["detail"]
            .as_str()
            .unwrap()
            .contains("daemon.allow-export"),
        "{told}"
    );
    let note = audited(&scene.freshd, "refused: allow-export is false").await;
    assert_ne!(note["by"], "uid 0", "{note}");
}

#[tokio::test]
async fn a_provider_that_nobody_knows_is_no_empty_export() {
    let mut scene = Scene::new(&["anna"]).await;
    let file = scene.freshd.config.path().join("export.age");
    let options = ["--provider", "acne", "--output", file.to_str().unwrap()];
    let said = scene.export(&options).await;
    assert_eq!(said.code, Some(4), "{}", said.stderr);
    assert!(said.stderr.contains("\"acne\""), "{}", said.stderr);
    scene.freshd.stop().await;
    let said = scene.export(&[&options[..], &["--offline"]].concat()).await;
    assert_eq!(said.code, Some(4), "{}", said.stderr);
    assert!(
        said.stderr.contains("\"acne\"") && !file.exists(),
        "{}",
        said.stderr
    );
}
