//! The scripted server does what the other tests take for granted.

mod support;

use std::time::Duration;

use serde_json::Value;
use support::{Answer, Gate, Rotating, ScriptedServer, within};

async fn present(server: &ScriptedServer, token: &str) -> Result<(u16, String), reqwest::Error> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
    let request = client
        .post(server.token_endpoint())
        .basic_auth("id", Some("a%2Bb+c"))
        .form(&form);
    let answer = within("an answer", request.send()).await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

async fn refreshed(server: &ScriptedServer, token: &str) -> Value {
    let (status, text) = present(server, token).await.expect("a whole answer");
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

#[tokio::test]
async fn answers_come_in_the_scripted_order_and_requests_are_recorded() {
    let answers = [
        Answer::error(400, "invalid_grant"),
        Answer::tokens("a", "r", 60),
    ];
    let server = ScriptedServer::in_turn(answers).await;
    assert_eq!(present(&server, "one").await.unwrap().0, 400);
    assert_eq!(refreshed(&server, "two").await["access_token"], "a");
    assert_eq!(
        present(&server, "two").await.unwrap().0,
        500,
        "the script has ended"
    );

    assert_eq!(
        server.presented(),
        [("one".into(), 1), ("two".into(), 2)].into()
    );
    let first = server.nth_refresh(1).await;
    assert_eq!(
        (first.method.as_str(), first.path.as_str()),
        ("POST", "/token")
    );
    assert_eq!(first.form["grant_type"], "refresh_token");
    assert_eq!(first.basic(), Some(("id".into(), "a+b c".into())));
    assert!(server.revocations().is_empty());
}

#[tokio::test]
async fn a_gate_holds_an_answer_whose_request_is_recorded_already() {
    let gate = Gate::shut();
    let server = ScriptedServer::in_turn([Answer::tokens("a", "r", 60).held_by(&gate)]).await;
    let asking = present(&server, "one");
    tokio::pin!(asking);
    tokio::select! {
        answer = &mut asking => panic!("answered through a shut gate: {answer:?}"),
        request = server.nth_refresh(1) => assert_eq!(request.refresh_token(), "one"),
    }
    gate.open();
    assert_eq!(asking.await.unwrap().0, 200);
}

#[tokio::test]
async fn connections_end_where_the_script_says() {
    let answer = || Answer::tokens("a", "r", 60);
    let endings = [
        answer().never_sent(),
        answer().cut_after(10),
        answer().then_closed(),
    ];
    let server = ScriptedServer::in_turn(endings).await;
    assert!(present(&server, "one").await.is_err(), "never sent");
    assert!(present(&server, "two").await.is_err(), "cut");
    assert_eq!(
        present(&server, "three").await.unwrap().0,
        200,
        "whole, then closed"
    );
    assert_eq!(server.refreshes().len(), 3);
}

#[tokio::test]
async fn a_replayed_refresh_token_ends_its_family_and_no_other() {
    let rotating = Rotating::new(60);
    let server = ScriptedServer::start(rotating.script()).await;
    let (anna, bert) = (rotating.issue("anna"), rotating.issue("bert"));
    let second = refreshed(&server, &anna.refresh_token).await;
    let second_access = second["access_token"].as_str().unwrap();
    assert!(rotating.is_active(second_access));

    assert_eq!(present(&server, &anna.refresh_token).await.unwrap().0, 400);
    assert_eq!(rotating.superseded_presented_outside_grace(), 1);
    assert!(!rotating.is_active(second_access), "the family is revoked");
    let second_refresh = second["refresh_token"].as_str().unwrap();
    assert_eq!(present(&server, second_refresh).await.unwrap().0, 400);

    refreshed(&server, &bert.refresh_token).await;
    assert_eq!(
        (rotating.refreshes("anna"), rotating.refreshes("bert")),
        (1, 1)
    );
}

#[tokio::test]
async fn within_its_grace_a_replayed_refresh_token_brings_the_identical_set() {
    let rotating = Rotating::new(60).with_grace(Duration::from_secs(30));
    let server = ScriptedServer::start(rotating.script()).await;
    let anna = rotating.issue("anna");
    let first = refreshed(&server, &anna.refresh_token).await;
    let again = refreshed(&server, &anna.refresh_token).await;
    assert_eq!(first["refresh_token"], again["refresh_token"]);
    assert_eq!(first["access_token"], again["access_token"]);
    assert_eq!(
        (rotating.refreshes("anna"), rotating.replayed_within_grace()),
        (1, 1)
    );

    let third = refreshed(&server, first["refresh_token"].as_str().unwrap()).await;
    assert_ne!(third["refresh_token"], first["refresh_token"]);
    assert_eq!(
        present(&server, &anna.refresh_token).await.unwrap().0,
        400,
        "two sets ago"
    );
    assert_eq!(rotating.superseded_presented_outside_grace(), 1);
}

#[tokio::test]
async fn a_wrong_client_secret_is_refused_before_the_refresh_token_is_looked_at() {
    let rotating = Rotating::new(60);
    rotating.accept_only("id", "another");
    let server = ScriptedServer::start(rotating.script()).await;
    let anna = rotating.issue("anna");
    let (status, text) = present(&server, &anna.refresh_token).await.unwrap();
    assert_eq!(status, 401);
    assert!(text.contains("invalid_client"), "{text}");
    rotating.accept_only("id", "a+b c");
    refreshed(&server, &anna.refresh_token).await;
}
