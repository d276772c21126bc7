//! `freshctl refresh --all --provider X`: after it no token set from before is left, whoever is away; what rests is
//! left alone, it keeps to the provider's rate, and a restart ends nothing.

mod support;

use serde_json::{Value, json};
use support::{Answer, Freshd, Gate, Rotating, ScriptedServer, eventually};

use support::daemon::Config;

const ALL: [&str; 4] = ["refresh", "--all", "--provider", "acme"];

/// A daemon with a grant of each user, every token alive for an hour.
async fn with_users(toml: &str, users: &[&str]) -> (Rotating, ScriptedServer, Freshd) {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().refresh("margin = \"60s\"");
    let freshd = Freshd::start(config.provider("acme", &server, toml)).await;
    for user in users {
        freshd
            .import(user, "acme", &rotating.issue(user).import())
            .await;
    }
    (rotating, server, freshd)
}

async fn said(freshd: &Freshd, args: &[&str]) -> String {
    let said = freshd.freshctl(args, "").await;
    assert_eq!(said.code, Some(0), "{args:?}: {}", said.stderr);
    said.stdout
}

async fn look(freshd: &Freshd) -> Value {
    let path = "/v1/providers/acme/refresh";
    let reply = freshd.admin(hyper::Method::GET, path).await;
    assert_eq!(reply.status, 200, "{:?}", reply.json);
    reply.json
}

async fn wait_until_none_is_left(freshd: &Freshd) -> Value {
    eventually("the renewal to end", || async {
        let view = look(freshd).await;
        (view["left"] == 0).then_some(view)
    })
    .await
}

#[tokio::test]
async fn every_grant_is_refreshed_once_and_what_rests_is_counted_and_not_touched() {
    let users = ["anna", "bert", "cleo", "dora", "emil"];
    let (rotating, _server, freshd) = with_users("rotation = \"strict\"", &users).await;
    said(&freshd, &["pause", "cleo", "acme"]).await;
    rotating.revoke("dora");
    freshd.freshctl(&["refresh", "dora", "acme"], "").await;
    freshd
        .wait_for_state("dora", "acme", "needs-authorization")
        .await;
    let mut held = rotating.issue("held").import();
    held["scope"] = json!("a");
    let path = format!("{}?hold=true", support::daemon::grant_path("held", "acme"));
    freshd.put(&path, &held).await;
    let before = rotating.refreshes_by_user();

    let dry = said(&freshd, &[&ALL[..], &["--dry-run"]].concat()).await;
    assert!(
        dry.starts_with("would refresh 3 grants at acme; 3 grants not touched"),
        "{dry}"
    );
    assert_eq!(
        rotating.refreshes_by_user(),
        before,
        "a dry run does nothing"
    );
    assert_eq!(look(&freshd).await["since"], Value::Null);

    let done = said(&freshd, &[&ALL[..], &["--wait"]].concat()).await;
    assert!(
        done.starts_with("no token set at acme is from before"),
        "{done}"
    );
    for (user, refreshes) in [
        ("anna", 1),
        ("bert", 1),
        ("emil", 1),
        ("cleo", 0),
        ("held", 0),
    ] {
        assert_eq!(rotating.refreshes(user), refreshes, "{user}");
    }
    let view = look(&freshd).await;
    assert_eq!((&view["left"], &view["resting"]), (&json!(0), &json!(3)));
    freshd.wait_for_log("renewal-begun").await;
}

#[tokio::test]
async fn users_who_are_away_and_grants_that_are_refreshed_on_demand_are_renewed_too() {
    let toml = "rotation = \"strict\"\nrefresh = \"on-demand\"";
    let (rotating, _server, freshd) = with_users(toml, &["anna"]).await;
    said(&freshd, &ALL).await;
    wait_until_none_is_left(&freshd).await;
    assert_eq!(rotating.refreshes("anna"), 1);
    assert_eq!(freshd.grant("anna", "acme").await["state"], "active");

    // Nobody reads this one, so it is paused when it falls due.
    let rotating = Rotating::new(4);
    let server = ScriptedServer::start(rotating.script()).await;
    let toml = "rotation = \"strict\"\ninactive-after = \"1s\"";
    let freshd = Freshd::start(Config::new().provider("acme", &server, toml)).await;
    freshd
        .import("bert", "acme", &rotating.issue("bert").import())
        .await;
    freshd.wait_for_state("bert", "acme", "paused").await;
    let slept = rotating.refreshes("bert");
    said(&freshd, &ALL).await;
    wait_until_none_is_left(&freshd).await;
    assert_eq!(rotating.refreshes("bert"), slept + 1);
    let grant = freshd.grant("bert", "acme").await;
    assert_eq!(
        (&grant["state"], &grant["reason"]),
        (&json!("paused"), &json!("inactive"))
    );
}

#[tokio::test]
async fn a_renewal_keeps_to_the_providers_rate_and_goes_on_after_a_kill() {
    let users: Vec<String> = (0..30).map(|n| format!("user-{n}")).collect();
    let names: Vec<&str> = users.iter().map(String::as_str).collect();
    let toml = "rotation = \"none\"\nmax-in-flight = 2";
    let (_rotating, server, mut freshd) = with_users(toml, &names).await;
    let gate = Gate::shut();
    let held = gate.clone();
    server.answer_with(move |request| {
        Answer::tokens("anew", request.refresh_token(), 3600).held_by(&held)
    });
    said(&freshd, &ALL).await;
    server.nth_refresh(2).await;
    let providers = freshd.admin(hyper::Method::GET, "/v1/providers").await;
    assert_eq!(providers.json["providers"][0]["in_flight"], 2);
    assert_eq!(server.refreshes().len(), 2, "the cap holds");

    freshd.kill().await;
    gate.open();
    freshd.start_again().await;
    let view = wait_until_none_is_left(&freshd).await;
    assert_eq!(view["resting"], 0);
    for user in &users {
        let generation = freshd.grant(user, "acme").await["generation"].as_u64();
        assert!(generation >= Some(2), "{user}: {generation:?}");
    }
}

#[tokio::test]
async fn a_stopped_provider_is_told_and_its_grants_are_renewed_when_it_runs_again() {
    let (rotating, _server, freshd) = with_users("rotation = \"strict\"", &["anna"]).await;
    said(&freshd, &["pause", "--provider-wide", "acme"]).await;
    let asked = freshd.freshctl(&ALL, "").await;
    assert_eq!(asked.code, Some(0));
    assert!(
        asked.stdout.starts_with("1 grant at acme"),
        "{}",
        asked.stdout
    );
    assert!(
        asked.stderr.contains("provider acme is paused"),
        "{}",
        asked.stderr
    );
    let dry = said(&freshd, &[&ALL[..], &["--dry-run"]].concat()).await;
    assert!(dry.contains("is under way: 1 grant left"), "{dry}");
    assert_eq!(rotating.refreshes("anna"), 0);
    said(&freshd, &["resume", "--provider-wide", "acme"]).await;
    wait_until_none_is_left(&freshd).await;
    assert_eq!(rotating.refreshes("anna"), 1);
    let unknown = ["refresh", "--all", "--provider", "nobody"];
    assert_eq!(freshd.freshctl(&unknown, "").await.code, Some(4));
}

#[tokio::test]
async fn a_strict_grant_with_an_open_mark_waits_for_its_access_tokens_end() {
    let (rotating, server, freshd) = with_users("rotation = \"strict\"", &["anna"]).await;
    let answers = rotating.clone();
    let mut lost = false;
    server.answer_with(move |request| {
        let answer = answers.answer(request);
        match std::mem::replace(&mut lost, true) {
            false => answer.cut_after(20),
            true => answer,
        }
    });
    freshd.freshctl(&["refresh", "anna", "acme"], "").await;
    assert_eq!(server.refreshes().len(), 1);
    said(&freshd, &ALL).await;
    let waits = eventually("it to be put off", || async {
        let grant = freshd.grant("anna", "acme").await;
        let (due, ends) = (grant["due_at"].clone(), grant["expires_at"].clone());
        (support::seconds(&due) >= support::seconds(&ends)).then_some(grant)
    })
    .await;
    assert_eq!(waits["state"], "active");
    assert_eq!(
        server.refreshes().len(),
        1,
        "the spent token was not presented again"
    );
    assert_eq!(look(&freshd).await["left"], 1);
}

#[tokio::test]
async fn verbs_for_many_do_what_their_dry_run_says() {
    let users = ["anna", "bert", "cleo"];
    let (rotating, _server, freshd) = with_users("rotation = \"strict\"", &users).await;
    let mut scoped = rotating.issue("dora").import();
    scoped["scope"] = json!("files");
    freshd.import("dora", "acme", &scoped).await;
    let without = ["--all", "--missing-scope", "files"];
    for (verb, dry, done, again) in [
        (
            "pause",
            "would pause 3 grants, of 3 that match\n",
            "paused 3 grants\n",
            "paused 0 grants\n",
        ),
        (
            "resume",
            "would resume 3 grants, of 3 that match\n",
            "resumed 3 grants\n",
            "resumed 0 grants\n",
        ),
        (
            "refresh",
            "would refresh 3 grants, of 3 that match\n",
            "refreshed 3 grants\n",
            "refreshed 3 grants\n",
        ),
    ] {
        let args = [&[verb][..], &without].concat();
        let dried = said(&freshd, &[&args[..], &["--dry-run"]].concat()).await;
        assert_eq!(dried, dry);
        assert_eq!(said(&freshd, &args).await, done);
        assert_eq!(said(&freshd, &args).await, again);
    }
    assert_eq!(rotating.refreshes("dora"), 0, "not among them");
    let revoke = ["revoke", "--all", "--missing-scope", "files"];
    assert_eq!(
        freshd.freshctl(&revoke, "").await.code,
        Some(64),
        "nobody to ask"
    );
    let json = said(&freshd, &[&revoke[..], &["--dry-run", "--json"]].concat()).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["concerned"], &json["dry_run"]),
        (&json!(3), &json!(true))
    );
    assert_eq!(
        said(&freshd, &[&revoke[..], &["--yes"]].concat()).await,
        "revoked 3 grants\n"
    );
    let left = said(&freshd, &["grants", "--json"]).await;
    assert!(left.contains("dora") && !left.contains("anna"), "{left}");
    let none = freshd.freshctl(&["pause", "--all"], "").await;
    assert_eq!(none.code, Some(64), "all of everything needs a filter");
    assert!(
        none.stderr.contains("hint: name at least one of"),
        "{}",
        none.stderr
    );
}

#[tokio::test]
async fn a_grant_that_is_refused_is_told_and_the_others_go_on() {
    let (rotating, _server, freshd) = with_users("rotation = \"strict\"", &["anna", "bert"]).await;
    rotating.revoke("anna");
    let args = ["refresh", "--all", "--state", "active"];
    let ended = freshd.freshctl(&args, "").await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(rotating.refreshes("bert"), 1);
}
