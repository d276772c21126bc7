//! What is done with freshd itself is on record: who read as an admin, who was refused, what was changed. No name of a
//! deleted user stays in it.

mod support;

use hyper::Method;
use serde_json::Value;
use support::daemon::{Config, grant_path, token_path};
use support::{Freshd, Rotating, ScriptedServer, at_rotating_server, eventually};

/// The notes with a query, the newest first.
async fn notes(freshd: &Freshd, query: &str) -> Vec<Value> {
    let reply = freshd
        .admin(Method::GET, &format!("/v1/audit?{query}"))
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json["entries"].as_array().expect("a list").clone()
}

/// Waits for the newest note of an action.
async fn newest(freshd: &Freshd, action: &str) -> Value {
    eventually(&format!("a note of {action}"), || async {
        notes(freshd, &format!("action={action}"))
            .await
            .first()
            .cloned()
    })
    .await
}

async fn start() -> (Freshd, Rotating) {
    let (freshd, rotating, server) = at_rotating_server("rotation = \"strict\"").await;
    // Nobody needs the server any more: what is read lives for an hour.
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    freshd.wait_for_generation("anna", "acme", 2).await;
    drop(server);
    (freshd, rotating)
}

fn our_uid() -> String {
    format!("uid {}", rustix::process::getuid().as_raw())
}

#[tokio::test]
async fn the_log_names_who_paused_resumed_and_deleted() {
    let (freshd, _) = start().await;
    let anna = grant_path("anna", "acme");
    let ours = format!("by=\"{}\"", our_uid());
    for (event, method, path) in [
        ("provider-paused", Method::POST, "/v1/providers/acme/pause"),
        (
            "provider-resumed",
            Method::POST,
            "/v1/providers/acme/resume",
        ),
        ("paused", Method::POST, &format!("{anna}/pause")),
        ("resumed", Method::POST, &format!("{anna}/resume")),
        ("deleted", Method::DELETE, &anna),
    ] {
        let reply = freshd.admin(method, path).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let line = freshd.wait_for_log(&format!(" {event} ")).await;
        assert!(line.ends_with(&ours), "{line}");
    }
    // An app that deletes is named as itself.
    let tokens = serde_json::json!({ "refresh_token": "bert" });
    freshd.import("bert", "acme", &tokens).await;
    let reply = freshd.delete("/v1/users/bert").await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let line = freshd.wait_for_log(" deleted user=bert ").await;
    assert!(line.ends_with("by=\"app test\""), "{line}");
}

#[tokio::test]
async fn a_read_by_an_admin_is_told_and_one_by_an_app_is_not() {
    let (freshd, _) = start().await;
    freshd.token("anna", "acme").await.token();
    assert_eq!(notes(&freshd, "action=read").await, [] as [Value; 0]);
    let path = token_path("anna", "acme", "activity=false");
    freshd.admin(Method::GET, &path).await.token();
    let note = newest(&freshd, "read").await;
    assert_eq!(note["by"], our_uid());
    assert_eq!(
        (&note["detail"], &note["times"]),
        (&"acme".into(), &1.into())
    );
    assert!(note["user"].as_str().unwrap().starts_with("u-"), "{note}");
    assert!(!note.to_string().contains("anna"), "{note}");
    let line = freshd.wait_for_log("action=read").await;
    assert!(
        line.contains(" audit ") && line.contains("user=anna"),
        "{line}"
    );
    // By name, it is found; another name finds nothing.
    assert_eq!(notes(&freshd, "user=anna").await.len(), 1);
    assert_eq!(notes(&freshd, "user=bert").await.len(), 0);
    // A user that nobody has, read or refused, is no read.
    freshd
        .admin(Method::GET, &token_path("bert", "acme", ""))
        .await
        .is_problem(404, "no-such-grant");
    assert_eq!(notes(&freshd, "action=read").await.len(), 1);

    let said = freshd.freshctl(&["audit"], "").await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stdout
            .contains(&format!("read by {}: acme (user u-", our_uid())),
        "{}",
        said.stdout
    );
}

#[tokio::test]
async fn a_refused_peer_that_asks_a_thousand_times_is_two_notes() {
    let rotating = Rotating::new(60);
    let server = ScriptedServer::start(rotating.script()).await;
    let stranger = "unix-uid = 4000000000\nmay = [\"read\"]";
    let config = Config::new()
        .provider("acme", &server, "")
        .app("test", stranger);
    let mut freshd = Freshd::start(config).await;
    for _ in 0..1000 {
        freshd
            .token("anna", "acme")
            .await
            .is_problem(403, "forbidden");
    }
    let note = newest(&freshd, "refused").await;
    assert_eq!(note["by"], our_uid());
    assert_eq!(note["times"], 1, "the first one is told at once");
    let page = freshd.admin(Method::GET, "/metrics").await.text;
    let counted = page
        .lines()
        .find(|line| line.starts_with("freshd_peers_refused_total"));
    let counted: u64 = counted.unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    assert!(counted >= 1000, "{counted}");
    // The others are told at the end of the interval, or at the stop.
    freshd.restart().await;
    let notes = notes(&freshd, "action=refused").await;
    assert_eq!(notes.len(), 2, "{notes:#?}");
    assert_eq!(notes[0]["times"].as_u64(), Some(counted - 1));
}

#[tokio::test]
async fn reloads_copies_and_key_rotations_are_told() {
    let (freshd, _) = start().await;
    let at_start = newest(&freshd, "rules-changed").await;
    assert_eq!(at_start["by"], "start");
    let detail = at_start["detail"].as_str().unwrap();
    assert!(detail.contains("app test: "), "{detail}");
    freshd.reload().await.unwrap();
    assert_eq!(
        newest(&freshd, "rules-changed").await["id"],
        at_start["id"],
        "nothing changed"
    );
    let copy = freshd.config.path().join("copy");
    let said = freshd
        .freshctl(&["backup", copy.to_str().unwrap()], "")
        .await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(newest(&freshd, "backed-up").await["by"], our_uid());
    let said = freshd.freshctl(&["key", "rotate"], "").await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(
        newest(&freshd, "key-rotation").await["detail"],
        "to data key 2"
    );
}

#[tokio::test]
async fn a_restore_is_told_by_the_restored_store() {
    let (mut freshd, _) = start().await;
    let copy = freshd.config.path().join("copy");
    let copy = copy.to_str().unwrap();
    assert_eq!(freshd.freshctl(&["backup", copy], "").await.code, Some(0));
    freshd.stop().await;
    let said = freshd.freshctl(&["restore", copy, "--replace"], "").await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    freshd.start_again().await;
    let note = newest(&freshd, "restored").await;
    assert_eq!(note["by"], "freshctl restore");
    assert!(
        note["detail"].as_str().unwrap().starts_with("a copy of 20"),
        "{note}"
    );
}

#[tokio::test]
async fn of_a_deleted_user_no_file_of_the_state_directory_keeps_the_name() {
    let (mut freshd, rotating) = start().await;
    let user = "somebody-rather-unusual";
    freshd
        .import(user, "acme", &rotating.issue(user).import())
        .await;
    freshd
        .admin(Method::GET, &token_path(user, "acme", "activity=false"))
        .await
        .token();
    newest(&freshd, "read").await;
    assert_eq!(freshd.delete(&grant_path(user, "acme")).await.status, 200);
    assert_eq!(
        notes(&freshd, &format!("user={user}")).await.len(),
        1,
        "the note stays"
    );
    freshd.stop().await;
    for entry in std::fs::read_dir(freshd.config.state_dir()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let found = memchr::memmem::find(&bytes, user.as_bytes());
        assert_eq!(found, None, "{}", path.display());
    }
}

#[tokio::test]
async fn apps_see_no_audit() {
    let (freshd, _) = start().await;
    freshd
        .get("/v1/audit")
        .await
        .is_problem(404, "no-such-route");
}

async fn told(freshd: &Freshd) -> usize {
    notes(freshd, "action=rules-changed").await.len()
}

#[tokio::test]
async fn each_change_of_a_rule_is_told_as_it_was_and_is_also_when_a_restart_brings_it() {
    let (mut freshd, _) = start().await;
    assert_eq!(told(&freshd).await, 1, "the start");
    freshd.restart().await;
    assert_eq!(told(&freshd).await, 1, "nothing has changed");
    freshd.config.refresh = "inactive-after = \"9d\"".into();
    freshd.reload().await.unwrap();
    let wider = eventually("the note", || async {
        notes(&freshd, "action=rules-changed")
            .await
            .into_iter()
            .find(|note| note["by"] == "reload")
    })
    .await;
    let detail = wider["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("provider acme: rests after 3d or"),
        "{detail}"
    );
    assert!(detail.contains("→ rests after 9d or"), "{detail}");
    freshd.config.refresh = String::new();
    freshd.reload().await.unwrap();
    freshd.config.refresh = "inactive-after = \"9d\"".into();
    freshd.reload().await.unwrap();
    eventually("each of them", || async {
        (told(&freshd).await == 4).then_some(())
    })
    .await;
    freshd.config.refresh = String::new();
    freshd.restart().await;
    assert_eq!(told(&freshd).await, 5, "a change by a restart");
    let at_start = newest(&freshd, "rules-changed").await;
    assert_eq!(at_start["by"], "start");
}
