//! SIGHUP takes a good configuration whole and a bad one not at all.

mod support;

use hyper::Method;
use support::daemon::{Config, grant_path, our_uid};
use support::{Connection, Freshd, Gate, Rotating, ScriptedServer, eventually, seconds};

async fn with_margin(margin: &str) -> (Rotating, ScriptedServer, Freshd) {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .refresh(&format!("margin = {margin:?}"))
        .provider("acme", &server, "rotation = \"strict\"");
    (rotating, server, Freshd::start(config).await)
}

/// How many seconds before its expiry a grant is due.
async fn lead(freshd: &Freshd, user: &str) -> f64 {
    let grant = freshd.grant(user, "acme").await;
    seconds(&grant["expires_at"]) - seconds(&grant["due_at"])
}

#[tokio::test]
async fn a_new_margin_moves_the_due_times_of_grants_that_are_there() {
    let (rotating, server, mut freshd) = with_margin("60s").await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    // The jitter is a tenth of the margin at most, and only ever earlier.
    let before = lead(&freshd, "anna").await;
    assert!(
        (60.0..=66.5).contains(&before),
        "due {before} s before expiry"
    );

    freshd.config.refresh = "margin = \"10m\"".into();
    freshd.reload().await.unwrap();

    eventually("the due time to follow", || async {
        (600.0..=660.5)
            .contains(&lead(&freshd, "anna").await)
            .then_some(())
    })
    .await;
    assert_eq!(server.refreshes().len(), 0, "not due yet by either");
}

#[tokio::test]
async fn a_grant_that_a_new_margin_makes_due_is_refreshed() {
    let (rotating, server, mut freshd) = with_margin("60s").await;
    // Past half of its life, with 20 minutes to go.
    freshd
        .import(
            "anna",
            "acme",
            &rotating.issue("anna").import_aged(2400, 1200),
        )
        .await;
    assert_eq!(server.refreshes().len(), 0);

    freshd.config.refresh = "margin = \"30m\"".into();
    freshd.reload().await.unwrap();

    server.nth_refresh(1).await;
    freshd.wait_for_generation("anna", "acme", 2).await;
}

#[tokio::test]
async fn a_refresh_that_is_out_during_a_reload_is_due_next_by_the_new_margin() {
    let (rotating, server, mut freshd) = with_margin("60s").await;
    let gate = Gate::shut();
    let (held, mut rules) = (gate.clone(), rotating.script());
    server.answer_with(move |request| rules(request).held_by(&held));
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    server.nth_refresh(1).await;

    freshd.config.refresh = "margin = \"10m\"".into();
    freshd.reload().await.unwrap();
    gate.open();
    freshd.wait_for_generation("anna", "acme", 2).await;
    let lead = lead(&freshd, "anna").await;
    assert!(
        (600.0..=660.5).contains(&lead),
        "due {lead} s before expiry"
    );
}

#[tokio::test]
async fn a_margin_changed_while_freshd_was_down_is_followed_too() {
    let (rotating, _server, mut freshd) = with_margin("60s").await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    freshd.stop().await;
    freshd.config.refresh = "margin = \"10m\"".into();
    freshd.start_again().await;
    eventually("the due time to follow", || async {
        (600.0..=660.5)
            .contains(&lead(&freshd, "anna").await)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_new_rule_takes_effect_on_a_connection_that_is_open() {
    let (rotating, _server, mut freshd) = with_margin("60s").await;
    let anna = rotating.issue("anna").import();
    let path = grant_path("anna", "acme");
    freshd
        .config
        .apps
        .insert("test".into(), rule(r#"["read"]"#));
    freshd.reload().await.unwrap();
    let mut connection = Connection::open(&freshd.config.socket()).await;
    let refused = connection.send(Method::PUT, &path, Some(&anna)).await;
    assert_eq!(refused.status, 403, "{}", refused.text);
    let uid = rustix::process::getuid().as_raw().to_string();
    assert!(
        refused.text.contains(&uid),
        "it says who the peer is: {}",
        refused.text
    );

    freshd
        .config
        .apps
        .insert("test".into(), rule(r#"["read", "import"]"#));
    freshd.reload().await.unwrap();
    let taken = connection.send(Method::PUT, &path, Some(&anna)).await;
    assert!(
        matches!(taken.status, 200 | 201),
        "{} {}",
        taken.status,
        taken.text
    );

    freshd.config.apps.remove("test");
    freshd.reload().await.unwrap();
    let token = format!("{path}/token");
    assert_eq!(connection.send(Method::GET, &token, None).await.status, 403);
}

fn rule(may: &str) -> String {
    format!("{}\nproviders = [\"*\"]\nmay = {may}", our_uid())
}

#[tokio::test]
async fn a_provider_that_a_reload_brings_is_used() {
    let (rotating, server, mut freshd) = with_margin("60s").await;
    let section = freshd.config.providers["acme"].clone();
    freshd.config.providers.insert("second".into(), section);
    freshd.reload().await.unwrap();

    freshd
        .import("anna", "second", &rotating.issue("anna").import_expired())
        .await;
    assert!(rotating.is_active(freshd.token("anna", "second").await.token()));
    assert_eq!(server.refreshes().len(), 1);
}

#[tokio::test]
async fn a_grant_resumed_while_its_provider_is_not_configured_is_back_on_its_schedule() {
    let (rotating, _server, mut freshd) = with_margin("60s").await;
    let anna = rotating.issue("anna").import();
    freshd.import("anna", "acme", &anna).await;
    let due_at = freshd.grant("anna", "acme").await["due_at"].clone();
    let path = grant_path("anna", "acme");
    freshd.admin(Method::POST, &format!("{path}/pause")).await;
    let section = freshd.config.providers.remove("acme").unwrap();
    freshd.reload().await.unwrap();
    let resumed = freshd.admin(Method::POST, &format!("{path}/resume")).await;
    assert_eq!(resumed.status, 200, "{}", resumed.text);

    freshd.config.providers.insert("acme".into(), section);
    freshd.reload().await.unwrap();

    eventually("the due time to follow the provider's margin", || async {
        let grant = freshd.grant("anna", "acme").await;
        (grant["state"] == "active" && grant["due_at"] == due_at).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_socket_that_cannot_be_made_costs_no_other_app_its_own() {
    let (rotating, _server, mut freshd) = with_margin("60s").await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    let own = |socket: &str| format!("socket = {socket}\nproviders = [\"*\"]\nmay = [\"read\"]");
    let socket = freshd.app_socket("own");
    let path = format!("{socket:?}");
    freshd.config.apps.insert("own".into(), own(&path));
    freshd.reload().await.unwrap();
    let token = format!("{}/token", grant_path("anna", "acme"));

    freshd.config.apps.remove("own");
    let nowhere = format!("{:?}", freshd.config.file().join("no/directory.sock"));
    freshd.config.apps.insert("other".into(), own(&nowhere));
    let error = freshd.reload().await.expect_err("a file is no directory");
    assert!(error.contains("directory.sock"), "{error}");

    let mut connection = Connection::open(&socket).await;
    assert_eq!(connection.send(Method::GET, &token, None).await.status, 200);
}

#[tokio::test]
async fn a_bad_configuration_is_refused_whole_and_the_old_one_goes_on() {
    let (rotating, _server, mut freshd) = with_margin("60s").await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;
    let good = freshd.config.providers["acme"].clone();

    // One good change and one bad key: neither is taken.
    freshd.config.refresh = "margin = \"10m\"".into();
    freshd
        .config
        .providers
        .insert("acme".into(), format!("{good}\nmargn = \"5m\""));
    let error = freshd.reload().await.expect_err("an unknown key");
    assert!(
        error.contains("margn") && error.contains("freshd.toml"),
        "{error}"
    );
    let line = freshd.wait_for_log("reload-refused").await;
    assert!(line.contains("margn"), "the log names the key: {line}");
    let still = lead(&freshd, "anna").await;
    assert!(
        (60.0..=66.5).contains(&still),
        "due {still} s before expiry"
    );
    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        anna.access_token
    );

    freshd.config.providers.insert("acme".into(), good);
    freshd.reload().await.expect("taken, and the error is gone");
    eventually("the due time to follow", || async {
        (600.0..=660.5)
            .contains(&lead(&freshd, "anna").await)
            .then_some(())
    })
    .await;
}
