//! `freshctl export`: every grant, no secret, in lines that an import takes once the tokens are put back.

mod support;

use serde_json::{Value, json};
use support::daemon::Config;
use support::{Freshd, Rotating, ScriptedServer};

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
