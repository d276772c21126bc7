//! `freshctl why` names the cause of a grant's state, from stored state, right after a restart too.

mod support;

use hyper::Method;
use serde_json::{Value, json};
use support::daemon::{Config, grant_path};
use support::{Answer, Freshd, Gate, Rotating, ScriptedServer, eventually};

/// What every token of these tests begins with, and what nothing that is told may hold.
const MARK: &str = "canary-";

fn rotating(expires_in: u64) -> Rotating {
    Rotating::new(expires_in).with_prefix(MARK)
}

async fn strict(server: &ScriptedServer) -> Freshd {
    Freshd::start(Config::new().provider("acme", server, "rotation = \"strict\"")).await
}

/// Returns Anna's story as it is told, and as JSON.
async fn told(freshd: &Freshd) -> (String, Value) {
    let text = freshd.freshctl(&["why", "anna", "acme"], "").await;
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    let json = freshd
        .freshctl(&["why", "anna", "acme", "--json"], "")
        .await;
    assert_eq!(json.code, Some(0), "{}", json.stderr);
    for said in [&text.stdout, &text.stderr, &json.stdout, &json.stderr] {
        assert!(!said.contains(MARK), "{said}");
    }
    (
        text.stdout,
        serde_json::from_str(&json.stdout).expect("JSON"),
    )
}

/// Checks that every one of `words` is told now, and again after a restart; returns the story's JSON.
async fn names(freshd: &mut Freshd, words: &[&str]) -> Value {
    let (before, json) = told(freshd).await;
    freshd.restart().await;
    let (after, _) = told(freshd).await;
    for (when, text) in [("before", before), ("after", after)] {
        for word in words {
            assert!(
                text.contains(word),
                "{word:?} is not told {when} the restart:\n{text}"
            );
        }
    }
    json
}

/// Returns the events of a story, in order.
fn events(story: &Value) -> Vec<&str> {
    let entries = story["entries"].as_array().expect("entries");
    let events = entries.iter().map(|entry| &entry["event"]);
    events.map(|event| event.as_str().expect("text")).collect()
}

#[tokio::test]
async fn a_revoked_refresh_token_is_told_by_its_fingerprint() {
    let rotating = rotating(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let mut freshd = strict(&server).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    freshd.wait_for_generation("anna", "acme", 2).await;
    rotating.revoke("anna");
    let refresh = format!("{}/refresh", grant_path("anna", "acme"));
    freshd.post(&refresh, &json!({})).await;
    freshd
        .wait_for_state("anna", "acme", "needs-authorization")
        .await;

    let words = [
        "imported: generation 1",
        "refreshed: generation 2, presented ",
        "refused with 400 invalid_grant",
        "It had been presented once only: the user or the provider revoked it, or another program used it.",
        "The access token is served until",
        "let the user authorize again",
    ];
    let story = names(&mut freshd, &words).await;

    let entries = &story["entries"];
    assert_eq!(
        events(&story),
        ["imported", "refreshed", "failed", "needs-authorization"]
    );
    assert_eq!(entries[1]["presented"], entries[0]["received"]);
    assert_ne!(entries[1]["presented"], entries[1]["received"]);
    assert_eq!(entries[2]["presented"], entries[1]["received"]);
    assert_eq!(entries[2]["status"], 400);
    assert_eq!(entries[3]["by"], "schedule");
}

#[tokio::test]
async fn a_rotation_lost_in_a_kill_is_told_with_the_moment_of_the_lost_request() {
    let rotating = rotating(3600);
    let gate = Gate::shut();
    let (held, mut rules, mut first) = (gate.clone(), rotating.script(), true);
    let server = ScriptedServer::start(move |request| {
        let answer = rules(request);
        if std::mem::take(&mut first) {
            answer.held_by(&held)
        } else {
            answer
        }
    })
    .await;
    let class = "rotation = \"strict\"\nmargin = \"30m\"";
    let mut freshd = Freshd::start(Config::new().provider("acme", &server, class)).await;
    let anna = rotating.issue("anna");
    freshd
        .import("anna", "acme", &anna.import_aged(60, 8))
        .await;
    server.nth_refresh(1).await;
    freshd.kill().await;
    gate.open();
    freshd.start_again().await;

    // Before the replay: nobody knows, and that is what is told.
    let (text, story) = told(&freshd).await;
    assert!(
        text.contains(
            "is under way, or was cut off: the server may have replaced the refresh token"
        ),
        "{text}"
    );
    let sent_at = story["unanswered"]["since"].clone();
    freshd
        .wait_for_state("anna", "acme", "needs-authorization")
        .await;

    let words = [
        "was cut off: freshd ended before the answer came",
        "was cut off when freshd ended, so the server had probably replaced it",
        "lost-rotation (probable)",
    ];
    let story = names(&mut freshd, &words).await;

    assert_eq!(
        events(&story),
        ["imported", "interrupted", "failed", "needs-authorization"]
    );
    assert_eq!(story["entries"][1]["at"], sent_at);
}

#[tokio::test]
async fn an_outage_and_its_end_are_told_in_two_lines() {
    let rotating = rotating(3600);
    let (mut rules, mut turn) = (rotating.script(), 0);
    let server = ScriptedServer::start(move |request| {
        turn += 1;
        if turn <= 2 {
            Answer::error(503, "server_error")
        } else {
            rules(request)
        }
    })
    .await;
    let mut freshd = strict(&server).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    let failing = eventually("a failure", || async {
        let (text, _) = told(&freshd).await;
        text.contains("That is no verdict on the grant")
            .then_some(text)
    });
    let text = failing.await;
    assert!(
        text.contains("the server answered 503 server_error"),
        "{text}"
    );
    freshd.wait_for_generation("anna", "acme", 2).await;

    let words = ["2 times refused with 503", "Why: All is well: refreshed on"];
    let story = names(&mut freshd, &words).await;

    assert_eq!(events(&story), ["imported", "failed", "refreshed"]);
    assert_eq!(story["entries"][1]["times"], 2);
}

#[tokio::test]
async fn an_import_that_replaces_is_told() {
    let rotating = rotating(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let mut freshd = strict(&server).await;
    for user in ["anna", "anna again"] {
        let path = format!("{}?replace=true", grant_path("anna", "acme"));
        freshd.put(&path, &rotating.issue(user).import()).await;
    }

    let words = [
        "replaced by an import: generation 2",
        "Why: All is well: imported on",
    ];
    let story = names(&mut freshd, &words).await;

    assert_eq!(events(&story), ["imported", "replaced"]);
    let entries = &story["entries"];
    assert_ne!(entries[0]["received"], entries[1]["received"]);
}

#[tokio::test]
async fn an_admins_pause_and_resume_are_told_as_his() {
    let rotating = rotating(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let mut freshd = strict(&server).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    let path = grant_path("anna", "acme");
    freshd.admin(Method::POST, &format!("{path}/pause")).await;
    let words = [
        "Why: An admin paused it on",
        "hint: freshctl resume anna acme",
    ];
    names(&mut freshd, &words).await;

    freshd.admin(Method::POST, &format!("{path}/resume")).await;
    let words = [
        "paused by an admin",
        "resumed by an admin",
        "Why: All is well",
    ];
    let story = names(&mut freshd, &words).await;

    assert_eq!(events(&story), ["imported", "paused", "resumed"]);
    assert_eq!(story["entries"][2]["by"], "admin");
}

#[tokio::test]
async fn a_stopped_provider_is_told_as_the_cause_and_the_user_is_not_blamed() {
    let rotating = rotating(3600);
    rotating.accept_only("client-acme", "another secret");
    let server = ScriptedServer::start(rotating.script()).await;
    let mut freshd = strict(&server).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    freshd.wait_for_provider("acme", "stopped").await;

    let words = [
        "refused with 401 invalid_client",
        "Why: Provider acme refuses our client, not this user (invalid_client)",
        "mend provider.acme's client-id or client-secret",
    ];
    let story = names(&mut freshd, &words).await;

    assert_eq!(story["grant"]["state"], "active");
}

#[tokio::test]
async fn an_absent_user_is_told_and_so_is_the_return() {
    let rotating = rotating(2);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .refresh("margin = \"1s\"\ninactive-after = \"2s\"")
        .provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    freshd.wait_for_state("anna", "acme", "paused").await;
    let words = [
        "paused: the user was away (inactive)",
        "Why: The user was away: no read that counts and no activity note came",
        "it resumes by itself when the user is back",
    ];
    names(&mut freshd, &words).await;

    freshd.token("anna", "acme").await.token();
    let (text, _) = told(&freshd).await;
    assert!(text.contains("resumed: the user is back"), "{text}");
}

#[tokio::test]
async fn a_deleted_grant_has_no_story_and_a_new_one_begins_its_own() {
    let rotating = rotating(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let freshd = strict(&server).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    freshd.delete(&grant_path("anna", "acme")).await;
    let history = format!("{}/history", grant_path("anna", "acme"));
    assert_eq!(freshd.get(&history).await.status, 404);

    freshd
        .import("anna", "acme", &rotating.issue("anna").import())
        .await;
    let story = freshd.get(&history).await;
    assert_eq!(events(&story.json), ["imported"]);
}

#[tokio::test]
async fn a_kill_changes_no_word_of_the_story() {
    let rotating = rotating(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let mut freshd = strict(&server).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    freshd.wait_for_generation("anna", "acme", 2).await;
    let before = told(&freshd).await.1;
    freshd.kill().await;
    freshd.start_again().await;
    assert_eq!(told(&freshd).await.1, before);
}
