//! `freshctl status` against the real daemon: what is under way, late, missing or about to end is told.

mod support;

use serde_json::{Value, json};
use support::daemon::Config;
use support::{Answer, Freshd, Gate, Rotating, ScriptedServer, eventually, fake_clock, unix_now};

async fn with_users(config: Config, users: &[&str]) -> (Rotating, ScriptedServer, Freshd) {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let freshd = Freshd::start(config.provider("acme", &server, "rotation = \"strict\"")).await;
    for user in users {
        let tokens = rotating.issue(user).import();
        freshd.import(user, "acme", &tokens).await;
    }
    (rotating, server, freshd)
}

/// Runs `freshctl status --json` and returns its exit code and what it told.
async fn told(freshd: &Freshd) -> (Option<i32>, Value) {
    let said = freshd.freshctl(&["status", "--json"], "").await;
    let value = serde_json::from_str(&said.stdout);
    (said.code, value.unwrap_or_else(|_| panic!("{said:?}")))
}

/// Returns the finding whose sentence has `words`.
fn finding<'a>(list: &'a Value, words: &str) -> Option<&'a Value> {
    let mut all = list.as_array().expect("a list").iter();
    all.find(|it| it["what"].as_str().expect("text").contains(words))
}

#[tokio::test]
async fn a_refresh_token_that_is_about_to_end_is_told_with_its_user_until_it_is_replaced() {
    let (rotating, server, freshd) = with_users(Config::new(), &["anna"]).await;
    // Due at once, and not replaced.
    server.answer_with(|_| Answer::error(503, "temporarily_unavailable"));
    let mut tokens = rotating.issue("bert").import_aged(30 * 86_400, -60);
    tokens["refresh_token_expires_at"] = json!(unix_now() + 86_400);
    freshd.import("bert", "acme", &tokens).await;
    let told_of = eventually("the end to be told", || async {
        let (_, status) = told(&freshd).await;
        finding(&status["notices"], "about to end").cloned()
    })
    .await;
    assert_eq!(told_of["whom"]["users"], json!(["bert"]));
    let list = freshd.freshctl(&["grants", "--ending", "--json"], "").await;
    let list: Value = serde_json::from_str(&list.stdout).unwrap();
    assert_eq!(list["grants"].as_array().unwrap().len(), 1, "{list}");
    let path = "/v1/users/bert/grants/acme?replace=true";
    freshd.put(path, &rotating.issue("bert").import()).await;
    let (_, status) = told(&freshd).await;
    assert_eq!(finding(&status["notices"], "about to end"), None);
}

#[tokio::test]
async fn one_grant_without_a_token_that_lives_is_trouble_until_it_is_refreshed() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    // Nobody listens there any more.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = closed.local_addr().expect("an address");
    drop(closed);
    let (token, revocation) = (format!("http://{address}/t"), format!("http://{address}/r"));
    let config = Config::new()
        .provider("acme", &server, "rotation = \"strict\"")
        .provider_at("gone", &token, &revocation, "id", "secret", "");
    let freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    assert_eq!(told(&freshd).await.0, Some(0));

    server.answer_with(|_| Answer::raw(503, "text/plain", "busy"));
    freshd
        .import("bert", "acme", &rotating.issue("bert").import_expired())
        .await;
    // Of this one there never was an access token.
    let body = json!({"refresh_token": "carls-only"});
    freshd.import("carl", "gone", &body).await;
    let (acme, gone) = eventually("both to be told", || async {
        let (code, status) = told(&freshd).await;
        let acme = finding(&status["troubles"], "at acme has no access token").cloned()?;
        let gone = finding(&status["troubles"], "at gone has no access token").cloned()?;
        assert_eq!(code, Some(1), "{status}");
        Some((acme, gone))
    })
    .await;
    let text = |found: &Value| found.to_string();
    for (found, words) in [
        (&acme, "1 grant at acme"),
        (&acme, "(1 m "),
        (&acme, "http-503 (the server has trouble of its own)"),
        (&acme, "freshctl why USER PROVIDER"),
        (&gone, "connect (nobody answers there)"),
        (&gone, "freshctl doctor"),
    ] {
        assert!(text(found).contains(words), "{words}: {found}");
    }
    assert_eq!(acme["whom"]["users"], json!(["bert"]));
    assert_eq!(
        acme["whom"]["list"],
        "freshctl grants --provider acme --failing"
    );
    assert_eq!(gone["whom"]["users"], json!(["carl"]));
    let why = freshd.freshctl(&["why", "carl", "gone"], "").await;
    assert!(why.stdout.contains("freshctl doctor"), "{why:?}");
    let list = freshd
        .freshctl(&["grants", "--failing", "--json"], "")
        .await;
    let list: Value = serde_json::from_str(&list.stdout).expect("JSON");
    assert_eq!(list["grants"].as_array().expect("a list").len(), 2);
    let metrics = freshd.admin(hyper::Method::GET, "/metrics").await.text;
    for series in [
        "{provider=\"gone\",access_token=\"none\"} 1",
        "{provider=\"gone\",access_token=\"lives\"} 0",
    ] {
        let series = format!("freshd_grants_failing{series}");
        assert!(metrics.contains(&series), "{series}");
    }

    server.answer_with(rotating.script());
    freshd.wait_for_generation("bert", "acme", 2).await;
    let (_, status) = told(&freshd).await;
    assert_eq!(finding(&status["troubles"], "acme"), None, "{status}");
}

#[tokio::test]
async fn a_renewal_is_told_with_its_progress_until_it_is_done() {
    let (_rotating, _server, freshd) = with_users(Config::new(), &["anna", "bert"]).await;
    freshd
        .freshctl(&["pause", "--provider-wide", "acme"], "")
        .await;
    let all = ["refresh", "--all", "--provider", "acme"];
    assert_eq!(freshd.freshctl(&all, "").await.code, Some(0));
    let (code, status) = told(&freshd).await;
    assert_eq!(code, Some(1), "{status}");
    let whom = &finding(&status["troubles"], "is paused").expect("told")["whom"];
    assert_eq!(
        (&whom["grants"], &whom["users"]),
        (&json!(2), &json!(["anna", "bert"]))
    );
    assert!(
        finding(&status["notices"], "0 done, 2 left").is_some(),
        "{status}"
    );
    freshd
        .freshctl(&["resume", "--provider-wide", "acme"], "")
        .await;
    eventually("the renewal to be done", || async {
        let (code, status) = told(&freshd).await;
        (code == Some(0) && status["notices"] == json!([])).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_nightly_copy_that_fails_or_is_missing_is_told_until_one_is_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let backups = dir.path().join("backups");
    std::fs::write(&backups, "a file").unwrap();
    let job = |cron: &str| format!("[maintenance]\nbackup = {cron:?}\nbackup-dir = {backups:?}");
    let config = Config::new().daemon(&job("* * * * * *"));
    let (_rotating, _server, mut freshd) = with_users(config, &["anna"]).await;
    eventually("the failure to be told", || async {
        let (code, status) = told(&freshd).await;
        let failed = finding(&status["troubles"], "The last nightly copy failed");
        failed.map(|_| assert_eq!(code, Some(1)))
    })
    .await;
    std::fs::remove_file(&backups).unwrap();
    eventually("all to be well", || async {
        let (code, status) = told(&freshd).await;
        (code == Some(0) && status["copies"]["newest_at"].is_string()).then_some(())
    })
    .await;
    freshd.stop().await;
    // Nobody has made one for a long time; the names say so.
    std::fs::remove_dir_all(&backups).unwrap();
    std::fs::create_dir(&backups).unwrap();
    std::fs::write(backups.join("freshd-20260102T030000Z.backup"), "").unwrap();
    freshd.config.daemon = job("0 0 3 * * *");
    freshd.start_again().await;
    let (code, status) = told(&freshd).await;
    assert_eq!(
        status["copies"]["missed_at"], "2026-01-03T03:00:00Z",
        "{status}"
    );
    assert!(finding(&status["troubles"], "2026-01-03T03:00:00Z").is_some() && code == Some(1));
}

#[tokio::test]
async fn a_final_backup_that_drains_says_so_and_is_no_moved_store_yet() {
    let (rotating, server, freshd) = with_users(Config::new(), &["anna"]).await;
    let (gate, answers) = (Gate::shut(), rotating.clone());
    let held = gate.clone();
    server.answer_with(move |request| answers.answer(request).held_by(&held));
    let refresh = async {
        freshd
            .post("/v1/users/anna/grants/acme/refresh", &json!({}))
            .await
    };
    let copy = freshd.config.path().join("copy");
    let last = ["backup", copy.to_str().expect("ASCII"), "--final"];
    let watch = async {
        eventually("the request", || async {
            server.refreshes().first().cloned()
        })
        .await;
        let backup = freshd.freshctl(&last, "");
        let seen = async {
            eventually("the drain to be told", || async {
                let (_, status) = told(&freshd).await;
                assert_eq!(finding(&status["troubles"], "was moved"), None, "{status}");
                finding(&status["troubles"], "draining, 1 request in flight").map(|_| ())
            })
            .await;
            gate.open();
        };
        let (backup, ()) = tokio::join!(backup, seen);
        assert_eq!(backup.code, Some(0), "{}", backup.stderr);
    };
    let (_, ()) = tokio::join!(refresh, watch);
    let (code, status) = told(&freshd).await;
    assert_eq!((code, &status["state"]), (Some(1), &json!("moved")));
    assert!(finding(&status["troubles"], "was moved to another host").is_some());
}

#[tokio::test]
async fn refreshes_that_leave_late_are_told_with_what_holds_them_up() {
    let Some(library) = fake_clock::libfaketime() else {
        return;
    };
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().provider("acme", &server, "rate = \"1/h\"");
    let freshd = Freshd::start(fake_clock::take(config, &library)).await;
    for user in ["anna", "bert", "carl"] {
        let tokens = rotating.issue(user).import();
        freshd.import(user, "acme", &tokens).await;
    }
    let (code, status) = told(&freshd).await;
    assert_eq!((code, &status["late"]), (Some(0), &Value::Null));
    fake_clock::set(&freshd.config, 2 * 3600);
    let late = eventually("the lateness to be told", || async {
        let (_, status) = told(&freshd).await;
        finding(&status["troubles"], "Refreshes at acme are late").cloned()
    })
    .await;
    assert!(
        late["do"][0]
            .as_str()
            .unwrap()
            .contains("provider.acme's rate"),
        "{late}"
    );
}
