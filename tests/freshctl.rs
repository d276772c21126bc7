//! Each command of `freshctl` against the real daemon: what it prints, what it does, how it ends.
//! `freshctl import` is in `imports.rs`.

mod support;

use hyper::Method;
use serde_json::{Value, json};
use support::daemon::{Config, Said, freshctl, grant_path};
use support::{Answer, Freshd, Rotating, ScriptedServer, eventually};

/// A daemon with the grants of Anna and Bert at a server with single-use refresh tokens.
async fn two_grants() -> (Rotating, ScriptedServer, Freshd) {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().refresh("margin = \"60s\"").provider(
        "acme",
        &server,
        "rotation = \"strict\"",
    );
    let freshd = Freshd::start(config).await;
    for user in ["anna", "bert"] {
        let mut body = rotating.issue(user).import();
        body["scope"] = json!("contacts");
        freshd.import(user, "acme", &body).await;
    }
    (rotating, server, freshd)
}

/// Asserts the exit code; what was said comes back.
fn ended(said: Said, code: i32) -> Said {
    assert_eq!(
        said.code,
        Some(code),
        "stdout: {}\nstderr: {}",
        said.stdout,
        said.stderr
    );
    said
}

/// Reads `--json`'s output, which is one JSON value.
fn json_of(said: Said) -> Value {
    serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{e}: {}", said.stdout))
}

fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in\n{text}");
    }
}

// status

#[tokio::test]
async fn status_of_a_daemon_that_is_well() {
    let (_rotating, _server, freshd) = two_grants().await;
    let said = ended(freshd.freshctl(&["status"], "").await, 0);
    has(
        &said.stdout,
        &[
            "All is well: freshd keeps 2 grants",
            "next due",
            "store     ok",
            "acme",
            "running",
        ],
    );
    assert_eq!(said.stderr, "");
    let status = json_of(ended(freshd.freshctl(&["status", "--json"], "").await, 0));
    assert_eq!(status["state"], "running");
    assert_eq!(status["grants"][0]["grants"], 2);
}

#[tokio::test]
async fn status_names_every_trouble_and_what_to_do_about_it() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let stopped = ScriptedServer::start(|_| Answer::error(401, "invalid_client")).await;
    let config = Config::new()
        .provider("acme", &server, "rotation = \"strict\"")
        .provider("beta", &stopped, "");
    let mut freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    rotating.revoke("anna");
    let refresh = format!("{}/refresh", grant_path("anna", "acme"));
    freshd.post(&refresh, &json!({})).await;
    freshd
        .wait_for_state("anna", "acme", "needs-authorization")
        .await;
    freshd
        .import("bert", "beta", &rotating.issue("bert").import_expired())
        .await;
    freshd.wait_for_provider("beta", "stopped").await;
    freshd.config.refresh = "nonsense = 1".into();
    freshd.reload().await.expect_err("an unknown key");

    let said = ended(freshd.freshctl(&["status"], "").await, 1);
    has(
        &said.stdout,
        &[
            "3 things need you; freshd keeps 2 grants",
            "The last reload was refused",
            "Provider beta is stopped",
            "1 grant at acme needs authorization",
            "invalid_client",
            "anna",
            "revoked-or-used-elsewhere",
            "nonsense",
            "whom  anna: freshctl grants --state needs-authorization --provider acme",
            "do    mend provider.beta's client-id or client-secret",
        ],
    );
    let json = json_of(ended(freshd.freshctl(&["status", "--json"], "").await, 1));
    assert!(json["reload_error"].as_str().unwrap().contains("nonsense"));

    // What is mended is not told any more.
    freshd.config.refresh.clear();
    freshd.reload().await.unwrap();
    ended(freshd.freshctl(&["revoke", "anna", "--yes"], "").await, 0);
    let said = ended(freshd.freshctl(&["status"], "").await, 1);
    has(
        &said.stdout,
        &["1 thing needs you", "1. Provider beta is stopped"],
    );
}

// grants, show, providers

#[tokio::test]
async fn grants_are_listed_filtered_and_counted() {
    let (_rotating, _server, freshd) = two_grants().await;
    ended(freshd.freshctl(&["pause", "bert", "acme"], "").await, 0);
    let said = ended(freshd.freshctl(&["grants"], "").await, 0);
    has(
        &said.stdout,
        &[
            "USER", "PROVIDER", "STATE", "EXPIRES", "anna", "bert", "paused", "admin",
        ],
    );

    for (args, users) in [
        (&["--state", "paused"][..], &["bert"][..]),
        (&["--state", "active"], &["anna"]),
        (&["--state", "needs-authorization"], &[]),
        (&["--user", "anna"], &["anna"]),
        (&["--provider", "acme"], &["anna", "bert"]),
        (&["--provider", "beta"], &[]),
        (&["--missing-scope", "contacts"], &[]),
        (&["--missing-scope", "deals"], &["anna", "bert"]),
        (&["--limit", "1"], &["anna"]),
        (&["--namespace", "elsewhere"], &[]),
    ] {
        let all = [&["grants", "--json"], args].concat();
        let list = json_of(ended(freshd.freshctl(&all, "").await, 0));
        let found: Vec<&str> = list["grants"]
            .as_array()
            .unwrap()
            .iter()
            .map(|grant| grant["user"].as_str().unwrap())
            .collect();
        assert_eq!(found, users, "{args:?}");
    }
    let said = ended(freshd.freshctl(&["grants", "--limit", "1"], "").await, 0);
    has(&said.stderr, &["there are more"]);
}

#[tokio::test]
async fn lists_longer_than_a_page_are_one_json_value_and_one_table() {
    let (_rotating, _server, freshd) = two_grants().await;
    let file = freshd.config.path().join("many");
    let lines: Vec<String> = (0..1200)
        .map(|n| format!(r#"{{"user":"user-{n}","provider":"acme","refresh_token":"t{n}"}}"#))
        .collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    ended(
        freshd
            .freshctl(&["import", "--hold", "--jsonl", file.to_str().unwrap()], "")
            .await,
        0,
    );
    let list = json_of(ended(freshd.freshctl(&["grants", "--json"], "").await, 0));
    assert_eq!(list["grants"].as_array().unwrap().len(), 1202);
    let said = ended(freshd.freshctl(&["grants"], "").await, 0);
    assert_eq!(said.stdout.matches("USER").count(), 1, "one heading");
    has(&said.stdout, &["user-0 ", "user-1199 "]);
}

#[tokio::test]
async fn show_tells_of_a_user_and_of_a_grant() {
    let (_rotating, _server, freshd) = two_grants().await;
    freshd.token("anna", "acme").await.token();
    let said = ended(freshd.freshctl(&["show", "anna"], "").await, 0);
    has(&said.stdout, &["anna", "last active", "acme", "active"]);
    let said = ended(freshd.freshctl(&["show", "anna", "acme"], "").await, 0);
    has(
        &said.stdout,
        &["generation", "refresh token", "yes", "contacts"],
    );
    let user = json_of(ended(
        freshd.freshctl(&["show", "anna", "--json"], "").await,
        0,
    ));
    assert_eq!(user["grants"][0]["provider"], "acme");
    let grant = json_of(ended(
        freshd
            .freshctl(&["show", "anna", "acme", "--json"], "")
            .await,
        0,
    ));
    assert_eq!(grant["generation"], 1);

    for args in [
        &["show", "nobody"][..],
        &["show", "nobody", "acme"],
        &["show", "anna", "beta"],
    ] {
        ended(freshd.freshctl(args, "").await, 4);
    }
}

#[tokio::test]
async fn providers_are_told_with_how_they_fare() {
    let (_rotating, _server, freshd) = two_grants().await;
    let said = ended(freshd.freshctl(&["providers"], "").await, 0);
    has(&said.stdout, &["acme", "running", "strict"]);
    let list = json_of(ended(
        freshd.freshctl(&["providers", "--json"], "").await,
        0,
    ));
    assert_eq!(list["providers"][0]["name"], "acme");
    assert_eq!(list["providers"][0]["margin"], 60.0);
}

// token and refresh

#[tokio::test]
async fn a_token_is_printed_alone_as_json_or_as_a_header() {
    let (rotating, _server, freshd) = two_grants().await;
    let token = freshd.token("anna", "acme").await.token().to_owned();
    for (args, expected) in [
        (&[][..], format!("{token}\n")),
        (&["--format", "raw"], format!("{token}\n")),
        (
            &["--format", "header"],
            format!("Authorization: Bearer {token}\n"),
        ),
    ] {
        let all = [&["token", "anna", "acme"], args].concat();
        let said = ended(freshd.freshctl(&all, "").await, 0);
        assert_eq!(
            (said.stdout, said.stderr.as_str()),
            (expected, ""),
            "{args:?}"
        );
    }
    for args in [&["--format", "json"][..], &["--json"]] {
        let all = [&["token", "anna", "acme"], args].concat();
        let answer = json_of(ended(freshd.freshctl(&all, "").await, 0));
        assert_eq!(answer["access_token"], token);
        assert!(answer.get("refresh_token").is_none());
    }
    // A token with less than half of its hour left is refreshed for one who wants a day.
    let aged = rotating.issue("carl");
    freshd
        .import("carl", "acme", &aged.import_aged(2000, 1600))
        .await;
    let all = ["token", "carl", "acme", "--min-ttl", "86400"];
    let said = ended(freshd.freshctl(&all, "").await, 0);
    assert_ne!(said.stdout.trim(), aged.access_token);
    assert!(rotating.is_active(said.stdout.trim()));
}

#[tokio::test]
async fn a_token_that_cannot_be_had_ends_with_the_code_for_why() {
    let (rotating, server, freshd) = two_grants().await;
    ended(freshd.freshctl(&["token", "nobody", "acme"], "").await, 4);
    server.answer_with(|_| Answer::error(503, "temporarily_unavailable"));
    freshd
        .import("carl", "acme", &rotating.issue("carl").import_expired())
        .await;
    eventually("the failure to be known", || async {
        let grant = freshd.grant("carl", "acme").await;
        grant["last_failure"].as_str().map(drop)
    })
    .await;
    let said = ended(
        freshd
            .freshctl(&["token", "carl", "acme", "--wait", "0"], "")
            .await,
        75,
    );
    has(
        &said.stderr,
        &["freshctl: ", "temporarily_unavailable", "try again in "],
    );
    server.answer_with(|_| Answer::error(400, "invalid_grant"));
    freshd
        .import("dora", "acme", &rotating.issue("dora").import_expired())
        .await;
    freshd
        .wait_for_state("dora", "acme", "needs-authorization")
        .await;
    let said = ended(freshd.freshctl(&["token", "dora", "acme"], "").await, 5);
    has(&said.stderr, &["needs-authorization"]);
    assert_eq!(
        said.stdout, "",
        "nothing that a script could take for a token"
    );
    ended(freshd.freshctl(&["pause", "dora"], "").await, 0);
}

#[tokio::test]
async fn a_provider_that_is_not_configured_is_told_with_those_that_are() {
    let (_rotating, _server, freshd) = two_grants().await;
    for command in ["token", "refresh", "show", "why", "pause"] {
        let said = ended(freshd.freshctl(&[command, "anna", "nosuch"], "").await, 4);
        let told = [
            "provider \"nosuch\" is not configured (configured: acme)",
            "[provider.nosuch]",
        ];
        has(&said.stderr, &told);
        assert!(!said.stderr.contains("PUT"), "{}", said.stderr);
    }
    let said = ended(freshd.freshctl(&["token", "nobody", "acme"], "").await, 4);
    has(&said.stderr, &["user \"nobody\" has no grant at acme"]);
}

#[tokio::test]
async fn refresh_makes_a_new_token_unless_the_generation_has_passed() {
    let (_rotating, server, freshd) = two_grants().await;
    let old = freshd.token("anna", "acme").await.token().to_owned();
    let said = ended(freshd.freshctl(&["refresh", "anna", "acme"], "").await, 0);
    has(&said.stdout, &["anna at acme has generation 2, expires "]);
    let new = freshd.token("anna", "acme").await.token().to_owned();
    assert_ne!(old, new);
    assert!(!said.stdout.contains(&new), "it does not show the token");

    let args = ["refresh", "anna", "acme", "--generation", "1", "--json"];
    let answer = json_of(ended(freshd.freshctl(&args, "").await, 0));
    assert_eq!(answer["generation"], 2);
    assert!(answer.get("access_token").is_none());
    assert_eq!(server.refreshes().len(), 1);
    ended(freshd.freshctl(&["refresh", "nobody", "acme"], "").await, 4);
    let early = ["refresh", "anna", "acme", "--generation", "9"];
    ended(freshd.freshctl(&early, "").await, 65);
}

// activity, pause, resume, revoke

#[tokio::test]
async fn an_admin_who_looks_is_not_the_user_who_is_back() {
    let (_rotating, _server, freshd) = two_grants().await;
    ended(freshd.freshctl(&["token", "anna", "acme"], "").await, 0);
    let user = freshd.admin(Method::GET, "/v1/users/anna").await;
    assert!(user.json.get("last_active_at").is_none(), "{}", user.text);
    ended(
        freshd
            .freshctl(&["token", "anna", "acme", "--activity"], "")
            .await,
        0,
    );
    let user = freshd.admin(Method::GET, "/v1/users/anna").await;
    assert!(user.json.get("last_active_at").is_some(), "{}", user.text);

    let said = ended(freshd.freshctl(&["activity", "bert"], "").await, 0);
    has(&said.stdout, &["bert", "last active"]);
    let user = json_of(ended(
        freshd.freshctl(&["activity", "bert", "--json"], "").await,
        0,
    ));
    assert!(user["last_active_at"].is_string());
    ended(freshd.freshctl(&["activity", "nobody"], "").await, 4);
}

#[tokio::test]
async fn grants_users_and_providers_are_paused_and_resumed() {
    let (rotating, server, freshd) = two_grants().await;
    freshd
        .import("anna", "acme:work", &rotating.issue("anna").import())
        .await;
    for (args, said) in [
        (&["pause", "anna", "acme"][..], "paused 1 grant\n"),
        (&["pause", "anna", "acme"], "paused 0 grants\n"),
        (&["pause", "anna"], "paused 1 grant\n"),
        (&["resume", "anna"], "resumed 2 grants\n"),
        (&["resume", "anna", "acme"], "resumed 0 grants\n"),
    ] {
        assert_eq!(
            ended(freshd.freshctl(args, "").await, 0).stdout,
            said,
            "{args:?}"
        );
    }
    let args = ["pause", "--provider-wide", "acme"];
    assert_eq!(
        ended(freshd.freshctl(&args, "").await, 0).stdout,
        "paused provider acme: 3 grants\n"
    );
    let said = ended(freshd.freshctl(&["status"], "").await, 1);
    has(&said.stdout, &["Provider acme is paused"]);
    // No request leaves, not even for a caller; and it stays so over a restart.
    let answer = freshd.freshctl(&["refresh", "anna", "acme"], "").await;
    assert_eq!(
        answer.code,
        Some(0),
        "the old token lives: {}",
        answer.stderr
    );
    assert!(server.refreshes().is_empty());
    let args = ["resume", "--provider-wide", "acme", "--json"];
    let changed = json_of(ended(freshd.freshctl(&args, "").await, 0));
    assert_eq!(changed["changed"], 3);
    ended(freshd.freshctl(&["status"], "").await, 0);
    ended(freshd.freshctl(&["refresh", "anna", "acme"], "").await, 0);
    assert_eq!(server.refreshes().len(), 1);

    for args in [
        &["pause", "nobody"][..],
        &["resume", "nobody", "acme"],
        &["pause", "--provider-wide", "beta"],
    ] {
        ended(freshd.freshctl(args, "").await, 4);
    }
}

#[tokio::test]
async fn revoke_asks_first_and_then_deletes_and_revokes() {
    let (_rotating, server, freshd) = two_grants().await;
    // Nobody can be asked here.
    let said = ended(freshd.freshctl(&["revoke", "anna"], "y\n").await, 64);
    has(&said.stderr, &["--yes"]);
    freshd.token("anna", "acme").await.token();

    let said = ended(
        freshd
            .freshctl(&["revoke", "anna", "acme", "--yes"], "")
            .await,
        0,
    );
    assert_eq!(said.stdout, "revoked 1 grant\n");
    assert_eq!(server.nth_revocation(1).await.form["token"], "refresh-0-0");
    ended(freshd.freshctl(&["revoke", "anna", "--yes"], "").await, 4);
    let changed = json_of(ended(
        freshd
            .freshctl(&["revoke", "bert", "-y", "--json"], "")
            .await,
        0,
    ));
    assert_eq!(changed["changed"], 1);
    server.nth_revocation(2).await;
}

// What needs no daemon.

#[tokio::test]
async fn check_config_says_what_it_understood_or_everything_that_is_wrong() {
    let (_rotating, _server, freshd) = two_grants().await;
    let said = ended(freshd.freshctl(&["check-config"], "").await, 0);
    has(
        &said.stdout,
        &[
            "acme",
            "margin",
            "1m",
            "strict",
            "client-acme",
            "authentication basic",
        ],
    );
    assert!(!said.stdout.contains("secret of acme"));
    let json = json_of(ended(
        freshd.freshctl(&["check-config", "--json"], "").await,
        0,
    ));
    assert_eq!(json["providers"][0]["name"], "acme");

    let text = freshd.config.text();
    let wrong = text
        .replace("margin = \"60s\"", "margin = \"60 parsecs\"")
        .replace(
            "rotation = \"strict\"",
            "rotation = \"strict\"\nnonsense = 1",
        );
    std::fs::write(freshd.config.file(), wrong).unwrap();
    let said = ended(freshd.freshctl(&["check-config"], "").await, 78);
    has(
        &said.stderr,
        &[
            "freshd.toml",
            "refresh.margin",
            "60 parsecs",
            "provider.acme.nonsense",
        ],
    );
    let file = freshd.config.file();
    let file = file.to_str().unwrap();
    let named = freshctl(&["check-config", file], "").await;
    assert_eq!(
        named,
        freshctl(&["check-config", "--config", file], "").await
    );
    assert_eq!(named.code, Some(78), "{named:?}");
    let both = freshctl(&["check-config", file, "--config", file], "").await;
    assert_eq!(both.code, Some(64), "{both:?}");
    let nowhere = freshctl(&["--config", "/nowhere/freshd.toml", "check-config"], "").await;
    has(&ended(nowhere, 66).stderr, &["/nowhere/freshd.toml"]);
}

#[tokio::test]
async fn a_key_is_made_once_and_for_us_alone() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    let path = file.to_str().unwrap();
    ended(freshctl(&["key", "generate", path], "").await, 0);
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let first = std::fs::read(&file).unwrap();
    ended(freshctl(&["key", "generate", path], "").await, 73);
    assert_eq!(
        std::fs::read(&file).unwrap(),
        first,
        "it is not overwritten"
    );
    let other = dir.path().join("other");
    let made = freshctl(&["key", "generate", other.to_str().unwrap(), "--json"], "").await;
    assert_eq!(json_of(ended(made, 0))["key_file"], other.to_str().unwrap());
    assert_ne!(
        std::fs::read(&other).unwrap(),
        first,
        "two keys are two keys"
    );
}

// What every command shares.

#[tokio::test]
async fn a_wrong_command_line_is_64_and_says_how_it_goes() {
    for args in [
        &[][..],
        &["statuss"],
        &["token", "anna"],
        &["token", "anna", "acme", "--format", "xml"],
        &["grants", "--state", "odd"],
        &["grants", "--limit", "0"],
        &["show", ".."],
        &["show", ""],
        &["show", "a\nb"],
        &["release", "anna"],
        &["pause"],
        &["import", "anna", "acme", "--jsonl", "x"],
    ] {
        let said = ended(freshctl(args, "").await, 64);
        assert!(
            said.stderr.contains("--help") || said.stderr.contains("Usage"),
            "{args:?}: {}",
            said.stderr
        );
        assert_eq!(said.stdout, "", "{args:?}");
    }
    let help = ended(freshctl(&["--help"], "").await, 0);
    has(
        &help.stdout,
        &["Exit codes:", "69", "78", "status", "check-config"],
    );
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_69_and_one_that_may_not_be_asked_is_77() {
    let (_rotating, _server, mut freshd) = two_grants().await;
    let shared = freshd.config.socket();
    let shared = shared.to_str().unwrap();
    // What the rule allows goes over the shared socket, admin verbs do not.
    ended(
        freshd
            .freshctl(&["--socket", shared, "show", "anna"], "")
            .await,
        0,
    );
    for args in [
        &["status"][..],
        &["grants"],
        &["providers"],
        &["pause", "anna"],
        &["resume", "anna"],
    ] {
        let all = [&["--socket", shared], args].concat();
        let said = ended(freshd.freshctl(&all, "").await, 77);
        has(&said.stderr, &["--socket"]);
    }
    freshd.config.apps.clear();
    freshd.reload().await.unwrap();
    let said = ended(
        freshd
            .freshctl(&["--socket", shared, "show", "anna"], "")
            .await,
        77,
    );
    has(&said.stderr, &["the daemon's log shows the rule"]);

    freshd.stop().await;
    for args in [
        &["status"][..],
        &["token", "anna", "acme"],
        &["grants", "--json"],
    ] {
        let said = ended(freshd.freshctl(args, "").await, 69);
        has(
            &said.stderr,
            &["freshctl: cannot reach freshd at ", "systemctl"],
        );
        assert_eq!(said.stdout, "");
    }
}

#[tokio::test]
async fn names_from_outside_cannot_play_with_the_terminal() {
    let (_rotating, _server, freshd) = two_grants().await;
    let odd = "\u{202e}evil";
    let body = json!({ "refresh_token": "t", "access_token": "a", "expires_in": 3600, "scope": "\u{202e}red" });
    let path = grant_path(
        &percent_encoding::utf8_percent_encode(odd, percent_encoding::NON_ALPHANUMERIC).to_string(),
        "acme",
    );
    let reply = freshd.put(&path, &body).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    for args in [&["grants"][..], &["show", odd], &["show", odd, "acme"]] {
        let said = ended(freshd.freshctl(args, "").await, 0);
        assert!(
            !said.stdout.contains('\u{1b}') && !said.stdout.contains('\u{202e}'),
            "{args:?}: {:?}",
            said.stdout
        );
    }
}
