//! What is deleted is unreadable at once, revoked at its provider however long that takes, and leaves nothing behind.

mod support;

use hyper::Method;
use serde_json::json;
use support::daemon::{Config, grant_path};
use support::store::{change, files_with};
use support::{
    Answer, Connection, Freshd, Gate, RecordedRequest, Rotating, ScriptedServer, eventually, within,
};

/// A server that follows `rotating`'s rules and answers revocations with `revocation`.
async fn server_with(
    rotating: &Rotating,
    mut revocation: impl FnMut(&RecordedRequest) -> Answer + Send + 'static,
) -> ScriptedServer {
    let mut rules = rotating.script();
    ScriptedServer::start(move |request| {
        if request.is_refresh() {
            rules(request)
        } else {
            revocation(request)
        }
    })
    .await
}

fn ok() -> Answer {
    Answer::raw(200, "text/plain", "")
}

async fn revocations_waiting(freshd: &Freshd) -> u64 {
    freshd.status().await["revocations"]
        .as_u64()
        .expect("a number")
}

async fn wait_until_none_waits(freshd: &Freshd) {
    eventually("the revocation queue to be empty", || async {
        (revocations_waiting(freshd).await == 0).then_some(())
    })
    .await;
}

// At once.

#[tokio::test]
async fn a_deleted_grant_is_404_for_everybody_at_once_although_an_attempt_is_in_flight() {
    let (gate, rotating) = (Gate::shut(), Rotating::new(3600));
    let held = gate.clone();
    let mut rules = rotating.script();
    let server = ScriptedServer::start(move |request| match rules(request) {
        answer if request.is_refresh() => answer.held_by(&held),
        answer => answer,
    })
    .await;
    let config = Config::new().refresh("margin = \"30m\"").provider(
        "acme",
        &server,
        "rotation = \"strict\"",
    );
    let freshd = Freshd::start(config).await;
    // Past its margin, with ten minutes to live: readers would be served.
    let anna = rotating.issue("anna");
    freshd
        .import("anna", "acme", &anna.import_aged(3000, 600))
        .await;
    server.nth_refresh(1).await;
    let grant = grant_path("anna", "acme");
    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        anna.access_token
    );

    let mut deleting = Connection::open(&freshd.config.socket()).await;
    let deleted = deleting.send(Method::DELETE, &grant, None);
    tokio::pin!(deleted);
    let gone = eventually("the grant to be gone", || async {
        let reply = freshd.token_with("anna", "acme", "wait=0").await;
        (reply.status == 404).then_some(reply)
    });
    tokio::select! {
        reply = &mut deleted => panic!("the attempt holds the slot: {reply:?}"),
        gone = gone => { gone.is_problem(404, "no-such-grant"); }
    }
    freshd.get(&grant).await.is_problem(404, "no-such-grant");
    freshd
        .admin(Method::GET, &grant)
        .await
        .is_problem(404, "no-such-grant");
    assert_eq!(freshd.get("/v1/users/anna").await.status, 404);
    let refresh = format!("{grant}/refresh");
    assert_eq!(freshd.post(&refresh, &json!({})).await.status, 404);

    gate.open();
    assert_eq!(within("the delete", deleted).await.status, 200);
    assert_eq!(freshd.token("anna", "acme").await.status, 404);
    assert_eq!(server.refreshes().len(), 1);
}

#[tokio::test]
async fn deleting_a_user_deletes_every_grant_of_that_user_and_of_nobody_else() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .provider("acme", &server, "")
        .provider("beta", &server, "");
    let freshd = Freshd::start(config).await;
    let mut tokens = Vec::new();
    for provider in ["acme", "acme:work", "beta"] {
        let issued = rotating.issue("anna");
        freshd.import("anna", provider, &issued.import()).await;
        tokens.push(issued.refresh_token);
    }
    let bert = rotating.issue("bert");
    freshd.import("bert", "acme", &bert.import()).await;

    let reply = freshd.delete("/v1/users/anna").await;

    assert_eq!(
        (reply.status, &reply.json["changed"]),
        (200, &json!(3)),
        "{}",
        reply.text
    );
    assert_eq!(freshd.get("/v1/users/anna").await.status, 404);
    server.nth_revocation(3).await;
    let mut revoked: Vec<String> = server
        .revocations()
        .iter()
        .map(|request| request.form["token"].clone())
        .collect();
    revoked.sort();
    assert_eq!(revoked, tokens);
    assert_eq!(
        freshd.token("bert", "acme").await.token(),
        bert.access_token
    );
    assert_eq!(
        freshd.delete("/v1/users/anna").await.status,
        404,
        "nothing is left of it"
    );
    assert_eq!(freshd.delete(&grant_path("anna", "acme")).await.status, 404);
}

#[tokio::test]
async fn a_user_who_comes_back_begins_anew() {
    let rotating = Rotating::new(3600);
    let server = server_with(&rotating, |_| ok()).await;
    let freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    let first = rotating.issue("anna");
    freshd.import("anna", "acme", &first.import()).await;
    assert_eq!(freshd.delete(&grant_path("anna", "acme")).await.status, 200);
    let again = rotating.issue("anna");
    let reply = freshd
        .put(&grant_path("anna", "acme"), &again.import())
        .await;
    assert_eq!(
        (reply.status, &reply.json["result"]),
        (201, &json!("created")),
        "{}",
        reply.text
    );
    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        again.access_token
    );
}

// The request (RFC 7009 §2.1).

#[tokio::test]
async fn the_refresh_token_is_revoked_with_the_clients_own_authentication() {
    for (auth, secret_in_body) in [("basic", false), ("body", true)] {
        let rotating = Rotating::new(3600);
        let server = server_with(&rotating, |_| ok()).await;
        let auth = format!("client-auth = {auth:?}");
        let freshd = Freshd::start(Config::new().provider("acme", &server, &auth)).await;
        let anna = rotating.issue("anna");
        freshd.import("anna", "acme", &anna.import()).await;

        assert_eq!(freshd.delete(&grant_path("anna", "acme")).await.status, 200);

        let request = server.nth_revocation(1).await;
        assert_eq!(
            (request.method.as_str(), request.path.as_str()),
            ("POST", "/revoke")
        );
        let kind = request.headers["content-type"].to_str().unwrap();
        assert_eq!(kind, "application/x-www-form-urlencoded");
        assert_eq!(request.form["token"], anna.refresh_token);
        assert_eq!(request.form["token_type_hint"], "refresh_token");
        let basic = Some(("client-acme".to_owned(), "secret of acme".to_owned()));
        if secret_in_body {
            assert_eq!(request.basic(), None);
            assert_eq!(request.form["client_id"], "client-acme");
            assert_eq!(request.form["client_secret"], "secret of acme");
        } else {
            assert_eq!(request.basic(), basic);
            assert!(!request.form.contains_key("client_secret"));
        }
        wait_until_none_waits(&freshd).await;
        freshd.wait_for_log("revoked").await;
        assert_eq!(server.revocations().len(), 1, "once");
    }
}

#[tokio::test]
async fn where_there_is_no_refresh_token_the_access_token_is_revoked() {
    let rotating = Rotating::new(3600);
    let server = server_with(&rotating, |_| ok()).await;
    let freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    let body = json!({ "access_token": "the only one", "expires_in": 3600 });
    freshd.import("anna", "acme", &body).await;
    assert_eq!(freshd.delete(&grant_path("anna", "acme")).await.status, 200);
    let request = server.nth_revocation(1).await;
    assert_eq!(request.form["token"], "the only one");
    assert_eq!(request.form["token_type_hint"], "access_token");
}

#[tokio::test]
async fn a_provider_without_a_revocation_endpoint_is_not_asked_and_nothing_waits() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let mut config = Config::new().provider("acme", &server, "");
    let section = config.providers["acme"].clone();
    let without: Vec<&str> = section
        .lines()
        .filter(|line| !line.starts_with("revocation-endpoint"))
        .collect();
    config.providers.insert("acme".into(), without.join("\n"));
    let freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;

    assert_eq!(freshd.delete(&grant_path("anna", "acme")).await.status, 200);

    assert_eq!(freshd.token("anna", "acme").await.status, 404);
    assert_eq!(revocations_waiting(&freshd).await, 0);
    let line = freshd.wait_for_log("deleted").await;
    assert!(line.contains("revoke=false"), "an admin can see it: {line}");
    assert!(server.revocations().is_empty());
}

#[tokio::test]
async fn a_grant_of_a_provider_that_left_the_configuration_is_revoked_when_it_comes_back() {
    let rotating = Rotating::new(3600);
    let server = server_with(&rotating, |_| ok()).await;
    let config = Config::new()
        .provider("acme", &server, "")
        .provider("beta", &server, "");
    let mut freshd = Freshd::start(config).await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;
    let section = freshd.config.providers.remove("acme").unwrap();
    freshd.restart().await;

    assert_eq!(freshd.delete(&grant_path("anna", "acme")).await.status, 200);
    assert_eq!(revocations_waiting(&freshd).await, 1);
    freshd.config.providers.insert("acme".into(), section);
    freshd.stop().await;
    let sql = "UPDATE revocations SET next_at = created_at";
    assert_eq!(change(&freshd.config, sql), 1);
    freshd.start_again().await;

    assert_eq!(
        server.nth_revocation(1).await.form["token"],
        anna.refresh_token
    );
    wait_until_none_waits(&freshd).await;
}

// However long it takes.

#[tokio::test]
async fn a_revocation_that_is_not_answered_survives_stops_and_kills_and_is_sent_until_it_is() {
    let rotating = Rotating::new(3600);
    let server = server_with(&rotating, |_| Answer::error(503, "temporarily_unavailable")).await;
    let mut freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;

    // RFC 7009 §2.2.1: 503 means that the token still lives.
    assert_eq!(freshd.delete(&grant_path("anna", "acme")).await.status, 200);
    server.nth_revocation(1).await;
    assert_eq!(revocations_waiting(&freshd).await, 1);
    // As if the backoff had passed meanwhile.
    let due = "UPDATE revocations SET next_at = created_at";
    freshd.stop().await;
    assert_eq!(change(&freshd.config, due), 1);
    freshd.start_again().await;
    server.nth_revocation(2).await;
    freshd.kill().await;
    assert_eq!(change(&freshd.config, due), 1);
    let mut rules = rotating.script();
    server.answer_with(move |request| rules(request));
    freshd.start_again().await;
    server.nth_revocation(3).await;

    wait_until_none_waits(&freshd).await;
    for request in server.revocations() {
        assert_eq!(request.form["token"], anna.refresh_token);
    }
    assert!(
        !rotating.is_active(&anna.access_token),
        "the server has ended the family"
    );
    assert_eq!(server.revocations().len(), 3);
    freshd.wait_for_log("revoked").await;
}

#[tokio::test]
async fn a_revocation_is_tried_again_by_itself() {
    let rotating = Rotating::new(3600);
    let mut first = true;
    let server = server_with(&rotating, move |_| {
        if std::mem::take(&mut first) {
            Answer::error(503, "temporarily_unavailable")
        } else {
            ok()
        }
    })
    .await;
    let freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    assert_eq!(freshd.delete(&grant_path("anna", "acme")).await.status, 200);
    server.nth_revocation(2).await;
    wait_until_none_waits(&freshd).await;
}

#[tokio::test]
async fn a_provider_that_answers_no_revocation_holds_up_its_own_only() {
    let (gate, rotating) = (Gate::shut(), Rotating::new(3600));
    let held = gate.clone();
    let silent = server_with(&rotating, move |_| ok().held_by(&held)).await;
    let server = server_with(&rotating, |_| ok()).await;
    // Longer than any test waits.
    let patient = "rotation = \"strict\"\ndeadline = \"10m\"";
    let config = Config::new()
        .provider("silent", &silent, patient)
        .provider("acme", &server, patient);
    let freshd = Freshd::start(config).await;
    for number in 0..20 {
        let user = format!("user-{number}");
        let issued = rotating.issue(&user);
        freshd.import(&user, "silent", &issued.import()).await;
        freshd.delete(&grant_path(&user, "silent")).await;
    }
    // The first alone, or all that are worked on at once: none of them is answered.
    silent.nth_revocation(1).await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;
    freshd.delete(&grant_path("anna", "acme")).await;

    let revoked = server.nth_revocation(1).await;
    assert_eq!(revoked.form["token"], anna.refresh_token);
    eventually("the others to wait alone", || async {
        (revocations_waiting(&freshd).await == 20).then_some(())
    })
    .await;
    gate.open();
    wait_until_none_waits(&freshd).await;
}

#[tokio::test]
async fn a_revocation_is_given_up_after_revocation_days_and_not_before() {
    let rotating = Rotating::new(3600);
    let server = server_with(&rotating, |_| Answer::error(503, "temporarily_unavailable")).await;
    let config = Config::new()
        .daemon("revocation-days = 7")
        .provider("acme", &server, "");
    let mut freshd = Freshd::start(config).await;
    for user in ["anna", "bert"] {
        freshd
            .import(user, "acme", &rotating.issue(user).import())
            .await;
        assert_eq!(freshd.delete(&grant_path(user, "acme")).await.status, 200);
    }
    server.nth_revocation(2).await;

    // Anna's has waited a minute less than seven days, and Bert's a minute longer.
    freshd.stop().await;
    for (id, minutes) in [(1, 7 * 24 * 60 - 1), (2, 7 * 24 * 60 + 1)] {
        let sql = format!(
            "UPDATE revocations SET next_at = created_at, created_at = created_at - {} WHERE id = {id}",
            minutes * 60_000
        );
        assert_eq!(change(&freshd.config, &sql), 1);
    }
    freshd.start_again().await;

    // Each is tried once more, and only then given up.
    server.nth_revocation(4).await;
    let line = freshd.wait_for_log("revocation-given-up").await;
    assert!(line.contains("acme"), "{line}");
    eventually("one to be given up", || async {
        (revocations_waiting(&freshd).await == 1).then_some(())
    })
    .await;
    freshd.stop().await;
    assert_eq!(
        change(&freshd.config, "DELETE FROM revocations WHERE id = 1"),
        1
    );
    let told = freshd.logs().matches("revocation-given-up").count();
    assert_eq!(told, 1);
}

#[tokio::test]
async fn a_token_that_the_server_will_never_revoke_is_not_sent_for_ever() {
    let rotating = Rotating::new(3600);
    let server = server_with(&rotating, |_| Answer::error(400, "unsupported_token_type")).await;
    let freshd = Freshd::start(Config::new().provider("acme", &server, "")).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    assert_eq!(freshd.delete(&grant_path("anna", "acme")).await.status, 200);
    server.nth_revocation(1).await;
    wait_until_none_waits(&freshd).await;
    freshd.wait_for_log("revocation-refused").await;
    assert_eq!(server.revocations().len(), 1);
}

// Nothing is left.

#[tokio::test]
async fn after_delete_and_revocation_no_file_of_the_store_knows_the_user() {
    let rotating = Rotating::new(3600).with_prefix("canary-token-");
    let server = server_with(&rotating, |_| Answer::error(503, "not yet")).await;
    let config = Config::new()
        .provider("acme", &server, "")
        .provider("beta", &server, "");
    let mut freshd = Freshd::start(config).await;
    let user = "canary-user-anna";
    for provider in ["acme", "beta:canary-account"] {
        let mut body = rotating.issue(user).import();
        body["scope"] = json!("canary-scope");
        freshd.import(user, provider, &body).await;
        // A life: reads and an activity note, a refresh, a pause and its end.
        freshd.token(user, provider).await.token();
        let grant = grant_path(user, provider);
        freshd
            .post(&format!("{grant}/refresh"), &json!({}))
            .await
            .token();
        for verb in ["pause", "resume"] {
            let reply = freshd.admin(Method::POST, &format!("{grant}/{verb}")).await;
            assert_eq!(reply.status, 200, "{}", reply.text);
        }
    }
    let note = freshd
        .post(&format!("/v1/users/{user}/activity"), &json!({}))
        .await;
    assert_eq!(note.status, 200, "{}", note.text);
    freshd
        .import("bert", "acme", &rotating.issue("bert").import())
        .await;
    let state_dir = freshd.config.state_dir();
    assert!(
        !files_with(&state_dir, user.as_bytes()).is_empty(),
        "the search finds a user"
    );

    assert_eq!(
        freshd.delete(&format!("/v1/users/{user}")).await.status,
        200
    );
    server.nth_revocation(2).await;
    freshd.stop().await;
    // The waiting jobs are sealed, and nameless.
    for canary in [
        "canary-user",
        "canary-token",
        "canary-scope",
        "canary-account",
    ] {
        assert_eq!(
            files_with(&state_dir, canary.as_bytes()),
            Vec::<std::path::PathBuf>::new(),
            "{canary}"
        );
    }

    assert_eq!(
        change(
            &freshd.config,
            "UPDATE revocations SET next_at = created_at"
        ),
        2
    );
    let mut rules = rotating.script();
    server.answer_with(move |request| rules(request));
    freshd.start_again().await;
    server.nth_revocation(4).await;
    wait_until_none_waits(&freshd).await;
    freshd.stop().await;
    for canary in [
        "canary-user",
        "canary-token",
        "canary-scope",
        "canary-account",
    ] {
        assert_eq!(
            files_with(&state_dir, canary.as_bytes()),
            Vec::<std::path::PathBuf>::new(),
            "{canary}"
        );
    }
    assert_eq!(
        files_with(&state_dir, b"bert").len(),
        1,
        "others are untouched"
    );
}
