//! What an app already has comes in by PUT or by `freshctl import`, in every form, and never twice.

mod support;

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Method;
use serde_json::{Value, json};
use support::daemon::{Config, grant_path};
use support::{Freshd, Reply, Rotating, ScriptedServer, eventually, seconds, unix_now, within};

/// A daemon whose grants are not due for long, and the server it would ask.
async fn quiet() -> (Rotating, ScriptedServer, Freshd) {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().refresh("margin = \"60s\"").provider(
        "acme",
        &server,
        "rotation = \"strict\"",
    );
    (rotating, server, Freshd::start(config).await)
}

async fn put(freshd: &Freshd, user: &str, query: &str, body: &Value) -> Reply {
    freshd
        .put(&format!("{}{query}", grant_path(user, "acme")), body)
        .await
}

/// A JWT as an access token may be one; nobody checks its signature.
fn jwt(exp: i64) -> String {
    let part = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    format!(
        "{}.{}.c2ln",
        part(json!({ "alg": "none" })),
        part(json!({ "exp": exp }))
    )
}

fn rfc3339(at: i64) -> String {
    jiff::Timestamp::from_second(at)
        .expect("it is in range")
        .to_string()
}

// When the access token ends.

#[tokio::test]
async fn the_end_of_the_access_token_is_told_in_many_ways() {
    let (_rotating, server, freshd) = quiet().await;
    let now = unix_now();
    let forms = [
        ("expires_in", json!({ "expires_in": 1000 })),
        ("expires_in as text", json!({ "expires_in": "1000" })),
        ("expires_at", json!({ "expires_at": now + 1000 })),
        (
            "expires_at as text",
            json!({ "expires_at": (now + 1000).to_string() }),
        ),
        (
            "expires_at in RFC 3339",
            json!({ "expires_at": rfc3339(now + 1000) }),
        ),
        (
            "expires_at beats expires_in",
            json!({ "expires_at": now + 1000, "expires_in": 5 }),
        ),
        (
            "obtained_at",
            json!({ "expires_in": 1500, "obtained_at": now - 500 }),
        ),
        (
            "obtained_at in RFC 3339",
            json!({ "expires_in": 1500, "obtained_at": rfc3339(now - 500) }),
        ),
        ("an exp", json!({ "access_token": jwt(now + 1000) })),
        (
            "expires_in beats an exp",
            json!({ "access_token": jwt(now + 7), "expires_in": 1000 }),
        ),
    ];
    for (n, (form, mut body)) in forms.into_iter().enumerate() {
        let user = format!("user-{n}");
        let own = format!("access-of-{n}");
        let token = body["access_token"].as_str().unwrap_or(&own).to_owned();
        body["access_token"] = json!(token);
        body["refresh_token"] = json!(format!("refresh-of-{n}"));
        body["id_token"] = json!("members that nobody knows are ignored");

        let reply = put(&freshd, &user, "", &body).await;
        assert_eq!(
            (reply.status, &reply.json["result"]),
            (201, &json!("created")),
            "{form}: {}",
            reply.text
        );
        let ends = seconds(&reply.json["grant"]["expires_at"]) - now as f64;
        assert!(
            (999.0..=1030.0).contains(&ends),
            "{form}: it ends in {ends} s"
        );
        let read = freshd.token(&user, "acme").await;
        assert_eq!(read.token(), token, "{form}");
        assert_eq!(read.json["token_type"], "Bearer", "{form}");
        let left = read.json["expires_in"].as_u64().unwrap();
        assert!((960..=1000).contains(&left), "{form}: expires_in {left}");
    }
    assert!(server.refreshes().is_empty(), "none of them is due");
}

#[tokio::test]
async fn token_type_and_scope_come_back_as_they_were_given() {
    let (_rotating, _server, freshd) = quiet().await;
    for (n, (scope, expected)) in [
        (json!("contacts  deals"), "contacts  deals"),
        (json!(["contacts", "deals"]), "contacts deals"),
    ]
    .into_iter()
    .enumerate()
    {
        let user = format!("user-{n}");
        let body = json!({
            "access_token": "a", "refresh_token": format!("r-{n}"), "expires_in": 3600,
            "token_type": "bearer", "scope": scope,
        });
        put(&freshd, &user, "", &body).await;
        let read = freshd.token(&user, "acme").await;
        assert_eq!(read.json["scope"], expected);
        assert_eq!(read.json["token_type"], "bearer");
    }
}

#[tokio::test]
async fn a_refresh_token_alone_is_enough_and_refreshed_at_once() {
    let (rotating, server, freshd) = quiet().await;
    let anna = rotating.issue("anna");
    let body = json!({ "refresh_token": anna.refresh_token });
    let reply = put(&freshd, "anna", "", &body).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    // Nobody reads: the schedule does it.
    assert_eq!(
        server.nth_refresh(1).await.refresh_token(),
        anna.refresh_token
    );
    freshd.wait_for_generation("anna", "acme", 2).await;
    assert!(rotating.is_active(freshd.token("anna", "acme").await.token()));
}

#[tokio::test]
async fn an_access_token_whose_end_nobody_knows_is_not_served_but_refreshed_at_once() {
    let (rotating, server, freshd) = quiet().await;
    let anna = rotating.issue("anna");
    let body = json!({ "access_token": anna.access_token, "refresh_token": anna.refresh_token });
    assert_eq!(put(&freshd, "anna", "", &body).await.status, 201);

    let read = freshd.token("anna", "acme").await;

    assert_ne!(read.token(), anna.access_token);
    assert!(rotating.is_active(read.token()));
    assert_eq!(server.refreshes().len(), 1);
}

#[tokio::test]
async fn an_access_token_alone_is_served_to_its_end_and_then_the_user_must_authorize() {
    let (_rotating, server, freshd) = quiet().await;
    let body = json!({ "access_token": "the only one", "expires_in": 2 });
    assert_eq!(put(&freshd, "anna", "", &body).await.status, 201);
    let grant = freshd.grant("anna", "acme").await;
    assert_eq!(
        (&grant["state"], &grant["has_refresh_token"]),
        (&json!("active"), &json!(false))
    );
    assert_eq!(freshd.token("anna", "acme").await.token(), "the only one");

    let dead = freshd
        .wait_for_state("anna", "acme", "needs-authorization")
        .await;
    assert_eq!(dead["reason"], "no-refresh-token");
    freshd
        .token("anna", "acme")
        .await
        .is_problem(409, "needs-authorization");
    assert!(server.refreshes().is_empty());
}

// Hold and release.

#[tokio::test]
async fn a_held_import_is_served_and_not_refreshed_until_it_is_released() {
    let (rotating, server, freshd) = quiet().await;
    let anna = rotating.issue("anna");
    let bert = rotating.issue("bert");
    // Anna's is due at once, Bert's has ended: neither is touched while the old system may still use them.
    put(&freshd, "anna", "?hold=true", &anna.import_aged(3570, 30)).await;
    let reply = put(&freshd, "bert", "?hold=true", &bert.import_expired()).await;
    assert_eq!(reply.json["grant"]["reason"], "held", "{}", reply.text);

    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        anna.access_token
    );
    let refused = freshd.token("bert", "acme").await;
    refused.is_problem(409, "paused");
    assert_eq!(refused.json["reason"], "held");
    let refresh = format!("{}/refresh", grant_path("anna", "acme"));
    let reply = freshd.post(&refresh, &json!({ "generation": 1 })).await;
    assert_eq!(
        reply.token(),
        anna.access_token,
        "not even when an API refused it"
    );
    // Activity does not release it: only an admin does.
    freshd.post("/v1/users/anna/activity", &json!({})).await;
    assert_eq!(freshd.grant("anna", "acme").await["reason"], "held");
    assert!(server.refreshes().is_empty());

    for user in ["anna", "bert"] {
        let said = freshd.freshctl(&["release", user, "acme"], "").await;
        assert_eq!(
            (said.code, said.stdout.as_str()),
            (Some(0), "released 1 grant\n"),
            "{}",
            said.stderr
        );
        freshd.wait_for_generation(user, "acme", 2).await;
        assert!(rotating.is_active(freshd.token(user, "acme").await.token()));
    }
}

#[tokio::test]
async fn a_hold_survives_a_kill() {
    let (rotating, server, mut freshd) = quiet().await;
    put(
        &freshd,
        "anna",
        "?hold=true",
        &rotating.issue("anna").import_expired(),
    )
    .await;
    // Due at once and not held: its refresh shows that the schedule has run.
    freshd.kill().await;
    freshd.start_again().await;
    put(
        &freshd,
        "bert",
        "",
        &rotating.issue("bert").import_expired(),
    )
    .await;
    freshd.wait_for_generation("bert", "acme", 2).await;
    assert_eq!(freshd.grant("anna", "acme").await["reason"], "held");
    assert_eq!(server.refreshes().len(), 1);
}

// A grant that is there.

#[tokio::test]
async fn a_grant_that_is_there_is_replaced_only_on_request_and_goes_on_counting() {
    let (rotating, _server, freshd) = quiet().await;
    let (first, second) = (rotating.issue("anna"), rotating.issue("anna"));
    put(&freshd, "anna", "", &first.import()).await;

    let refused = put(&freshd, "anna", "", &second.import()).await;
    refused.is_problem(409, "grant-exists");
    assert!(
        refused.text.contains("replace=true"),
        "it says what to do: {}",
        refused.text
    );
    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        first.access_token
    );

    let taken = put(&freshd, "anna", "?replace=true", &second.import()).await;
    assert_eq!(
        (taken.status, &taken.json["result"]),
        (200, &json!("replaced")),
        "{}",
        taken.text
    );
    assert_eq!(taken.json["grant"]["generation"], 2, "I3");
    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        second.access_token
    );
}

#[tokio::test]
async fn a_refresh_token_of_the_history_changes_nothing_even_with_replace() {
    let (rotating, server, mut freshd) = quiet().await;
    let anna = rotating.issue("anna");
    put(&freshd, "anna", "", &anna.import()).await;
    for query in ["", "?replace=true"] {
        let same = put(&freshd, "anna", query, &anna.import()).await;
        assert_eq!(
            (same.status, &same.json["result"]),
            (200, &json!("unchanged")),
            "{}",
            same.text
        );
    }
    let refresh = format!("{}/refresh", grant_path("anna", "acme"));
    for _ in 0..2 {
        freshd.post(&refresh, &json!({})).await.token();
    }
    let current = freshd.token("anna", "acme").await;
    assert_eq!(current.generation(), 3);

    // An app that pushes what it had at login, on every start of its own.
    for query in ["", "?replace=true", "?replace=true&hold=true"] {
        let old = put(&freshd, "anna", query, &anna.import()).await;
        assert_eq!(
            (old.status, &old.json["result"]),
            (200, &json!("unchanged")),
            "{}",
            old.text
        );
        assert_eq!(old.json["grant"]["generation"], 3);
    }
    freshd.restart().await;
    let old = put(&freshd, "anna", "?replace=true", &anna.import()).await;
    assert_eq!(
        old.json["result"], "unchanged",
        "the history survives a restart: {}",
        old.text
    );
    assert_eq!(freshd.token("anna", "acme").await.token(), current.token());
    assert_eq!(freshd.grant("anna", "acme").await["state"], "active");
    freshd.post(&refresh, &json!({})).await.token();
    assert_eq!(server.nth_refresh(3).await.refresh_token(), "refresh-0-2");
    assert_eq!(rotating.superseded_presented_outside_grace(), 0);
}

#[tokio::test]
async fn an_import_that_replaces_heals_a_grant_that_needs_authorization() {
    let (rotating, _server, freshd) = quiet().await;
    put(
        &freshd,
        "anna",
        "",
        &rotating.issue("anna").import_expired(),
    )
    .await;
    rotating.revoke("anna");
    let refused = freshd.token("anna", "acme").await;
    // Whether the attempt or the revocation came first, the grant is dead after one more refresh.
    if refused.status == 200 {
        let refresh = format!("{}/refresh", grant_path("anna", "acme"));
        freshd.post(&refresh, &json!({})).await;
    }
    freshd
        .wait_for_state("anna", "acme", "needs-authorization")
        .await;

    let again = rotating.issue("anna-again");
    let reply = put(&freshd, "anna", "?replace=true", &again.import()).await;

    assert_eq!(reply.json["grant"]["state"], "active", "{}", reply.text);
    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        again.access_token
    );
}

// Accounts and namespaces.

#[tokio::test]
async fn two_accounts_at_one_provider_are_two_grants() {
    let (rotating, _server, freshd) = quiet().await;
    let mut issued = Vec::new();
    for provider in ["acme", "acme:work", "acme:home"] {
        let one = rotating.issue("anna");
        freshd.import("anna", provider, &one.import()).await;
        issued.push((provider, one));
    }
    for (provider, one) in &issued {
        assert_eq!(
            freshd.token("anna", provider).await.token(),
            one.access_token,
            "{provider}"
        );
    }
    let user = freshd.get("/v1/users/anna").await;
    let accounts: Vec<&str> = user.json["grants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|grant| grant["account"].as_str().unwrap_or(""))
        .collect();
    assert_eq!(accounts, ["", "home", "work"]);
}

// What is refused.

#[tokio::test]
async fn a_bad_import_is_refused_by_member_and_rule_and_leaves_nothing() {
    let (_rotating, server, freshd) = quiet().await;
    let with = |member: &str, value: Value| {
        let mut body = json!({ "access_token": "a", "refresh_token": "r" });
        body[member] = value;
        body
    };
    let long = "x".repeat(200);
    let bad = [
        (json!({}), "access_token"),
        (
            json!({ "access_token": "", "refresh_token": "" }),
            "refresh_token",
        ),
        (json!({ "scope": "s", "expires_in": 5 }), "access_token"),
        (with("expires_in", json!("soon")), "expires_in"),
        (with("expires_in", json!([])), "expires_in"),
        (with("expires_at", json!("tomorrow")), "expires_at"),
        (with("expires_at", json!(unix_now() * 1000)), "milliseconds"),
        (with("obtained_at", json!({})), "obtained_at"),
        (with("scope", json!(7)), "scope"),
        (with("scope", json!("read\nwrite")), "control characters"),
        (with("token_type", json!("two words")), "token_type"),
        (with("token_type", json!(long)), "token_type"),
        (json!([]), ""),
        (json!("refresh-token"), ""),
    ];
    for (body, named) in bad {
        let reply = put(&freshd, "anna", "", &body).await;
        assert_eq!(reply.status, 400, "{body}: {}", reply.text);
        reply.is_problem(400, "bad-request");
        assert!(
            reply.text.contains(named),
            "{body} is told without {named}: {}",
            reply.text
        );
    }
    for query in ["?replace=perhaps", "?hold=", "?force=true"] {
        let reply = put(&freshd, "anna", query, &with("expires_in", json!(60))).await;
        assert_eq!(reply.status, 400, "{query}: {}", reply.text);
    }
    for (user, provider, status) in [
        ("anna", "nowhere", 404),
        (".", "acme", 400),
        ("..", "acme", 400),
        ("a%00b", "acme", 400),
        ("a%0Ab", "acme", 400),
        (&*"u".repeat(256), "acme", 400),
    ] {
        let reply = freshd
            .put(&grant_path(user, provider), &with("expires_in", json!(60)))
            .await;
        assert_eq!(reply.status, status, "{user} at {provider}: {}", reply.text);
    }
    let list = freshd.admin(Method::GET, "/v1/grants").await;
    assert_eq!(list.json["grants"], json!([]), "{}", list.text);
    assert!(server.refreshes().is_empty());
}

#[tokio::test]
async fn an_odd_name_and_a_large_token_are_fine() {
    let (_rotating, _server, mut freshd) = quiet().await;
    let token = "t".repeat(16 * 1024);
    let names = [
        "a%2Fb",
        "%F0%9F%90%99",
        "a%20b",
        "a%3Ab",
        "%25",
        &"u".repeat(255),
    ];
    for (n, user) in names.iter().enumerate() {
        let body =
            json!({ "access_token": token, "refresh_token": format!("r{n}"), "expires_in": 3600 });
        let reply = put(&freshd, user, "", &body).await;
        assert_eq!(reply.status, 201, "{user}: {}", reply.text);
    }
    freshd.restart().await;
    for user in names {
        assert_eq!(freshd.token(user, "acme").await.token(), token, "{user}");
    }
    let list = freshd.admin(Method::GET, "/v1/grants?user=a%2Fb").await;
    assert_eq!(list.json["grants"][0]["user"], "a/b", "{}", list.text);
}

// `freshctl import`.

#[tokio::test]
async fn freshctl_imports_one_grant_from_standard_input() {
    let (rotating, _server, freshd) = quiet().await;
    let anna = rotating.issue("anna");
    let body = anna.import().to_string();
    let said = freshd.freshctl(&["import", "anna", "acme"], &body).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stdout
            .starts_with("created: anna at acme, generation 1, active"),
        "{}",
        said.stdout
    );
    assert_eq!(
        freshd.token("anna", "acme").await.token(),
        anna.access_token
    );

    let said = freshd.freshctl(&["import", "anna", "acme"], &body).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.starts_with("unchanged: "), "{}", said.stdout);

    let other = rotating.issue("anna").import().to_string();
    let said = freshd.freshctl(&["import", "anna", "acme"], &other).await;
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(said.stderr.contains("--replace"), "{}", said.stderr);
    let said = freshd
        .freshctl(
            &["import", "--replace", "--hold", "anna", "acme", "--json"],
            &other,
        )
        .await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let json: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(
        (&json["result"], &json["grant"]["reason"]),
        (&json!("replaced"), &json!("held"))
    );

    for bad in ["", "{", "[]", "{\"refresh_token\": 7}", "{}"] {
        let said = freshd.freshctl(&["import", "bert", "acme"], bad).await;
        assert_eq!(said.code, Some(65), "{bad}: {}", said.stderr);
    }
}

/// One line of the file a JSONL import reads, and what must become of it.
struct Line {
    text: String,
    result: &'static str,
    kind: &'static str,
}

/// 2,000 lines, most of them good; some malformed, some refused by the daemon, some twice.
fn lines() -> Vec<Line> {
    let good = |n: usize| {
        json!({ "user": format!("user-{n}"), "provider": "acme", "refresh_token": format!("token-{n}"),
            "access_token": format!("a-{n}"), "expires_in": 3600 })
        .to_string()
    };
    (0..2000)
        .map(|n| match n {
            100 => line("{\"user\": \"canary-secret".into(), "not-taken", "malformed"),
            200 => line(r#"{"user":"x","provider":"acme"}"#.into(), "not-taken", "malformed"),
            300 => line(r#"{"provider":"acme","refresh_token":"canary-secret"}"#.into(), "not-taken", "malformed"),
            400 => line(
                r#"{"user":"x","provider":"nowhere","refresh_token":"canary-secret"}"#.into(),
                "not-taken",
                "urn:freshd:provider-unknown",
            ),
            450 => line(
                r#"{"user":"x","provider":"acme","refresh_token":"canary-secret","scope":"read\n"}"#.into(),
                "not-taken",
                "urn:freshd:bad-request",
            ),
            500 => line(
                r#"{"user":"x","provider":"acme","refresh_token":"canary-secret","expires_in":"soon"}"#.into(),
                "not-taken",
                "urn:freshd:bad-request",
            ),
            // The same grant as line 601 has: the same token changes nothing, another one is a grant that exists.
            601 => line(good(600), "unchanged", ""),
            602 => line(
                r#"{"user":"user-600","provider":"acme","refresh_token":"canary-secret"}"#.into(),
                "not-taken",
                "urn:freshd:grant-exists",
            ),
            700 => line(
                r#"{"user":"user-600","provider":"acme","account":"work","refresh_token":"r-work","expires_in":60,"access_token":"a"}"#
                    .into(),
                "created",
                "",
            ),
            _ => line(good(n), "created", ""),
        })
        .collect()
}

fn line(text: String, result: &'static str, kind: &'static str) -> Line {
    Line { text, result, kind }
}

fn records(report: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(report).expect("it was written");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freshctl_imports_two_thousand_lines_and_says_what_it_did_not_take() {
    let (_rotating, server, freshd) = quiet().await;
    let lines = lines();
    let file = freshd.config.path().join("grants.jsonl");
    let report = freshd.config.path().join("report");
    let (file_arg, report_arg) = (file.to_str().unwrap(), report.to_str().unwrap());
    let text = lines.iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{}", line.text);
        text
    });
    std::fs::write(&file, text).unwrap();

    let args = [
        "import", "--jsonl", file_arg, "--report", report_arg, "--hold",
    ];
    let said = freshd.freshctl(&args, "").await;

    assert_eq!(said.code, Some(1), "{}\n{}", said.stdout, said.stderr);
    assert_eq!(
        said.stdout,
        "2000 lines: 1992 created, 0 replaced, 1 unchanged, 7 not taken (3 malformed)\n"
    );
    assert!(said.stderr.contains("line 101: "), "{}", said.stderr);
    assert!(!said.stderr.contains("canary"), "{}", said.stderr);
    let mut told = records(&report);
    told.sort_by_key(|record| record["line"].as_u64());
    assert_eq!(told.len(), lines.len(), "a record for each line");
    for (n, (record, line)) in told.iter().zip(&lines).enumerate() {
        assert_eq!(record["line"], n + 1);
        assert_eq!(record["result"], line.result, "line {}: {record}", n + 1);
        assert_eq!(
            record["type"].as_str().unwrap_or(""),
            line.kind,
            "line {}",
            n + 1
        );
    }
    let report_text = std::fs::read_to_string(&report).unwrap();
    assert!(!report_text.contains("canary") && !report_text.contains("token-1999"));
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        std::fs::metadata(&report).unwrap().mode() & 0o777,
        0o600,
        "it names users"
    );
    let held: u64 = freshd.status().await["grants"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|count| count["reason"] == "held")
        .map(|count| count["grants"].as_u64().unwrap())
        .sum();
    assert_eq!(held, 1992);
    assert!(server.refreshes().is_empty(), "held");

    // The same again: nothing is changed, the exit code still tells of what is not taken.
    let said = freshd
        .freshctl(&["import", "--jsonl", file_arg, "--json"], "")
        .await;
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    let totals: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(
        (&totals["created"], &totals["unchanged"]),
        (&json!(0), &json!(1993)),
        "{totals}"
    );
    let release = ["release", "--all", "--provider", "acme"];
    let said = freshd.freshctl(&release, "").await;
    assert_eq!(said.stdout, "released 1992 grants\n", "{}", said.stderr);
}

#[tokio::test]
async fn an_import_that_was_cut_off_goes_on_where_its_report_ends() {
    let (_rotating, _server, mut freshd) = quiet().await;
    let file = freshd.config.path().join("grants.jsonl");
    let report = freshd.config.path().join("report");
    let (file_arg, report_arg) = (file.to_str().unwrap(), report.to_str().unwrap());
    let good = |n: usize| {
        json!({ "user": format!("user-{n}"), "provider": "acme", "refresh_token": format!("token-{n}"),
            "access_token": "a", "expires_in": 3600 })
        .to_string()
    };
    let all: Vec<String> = (0..300).map(good).collect();
    let mut broken = all.clone();
    broken[150] = "{".into();
    std::fs::write(&file, broken[..200].join("\n")).unwrap();
    let said = freshd
        .freshctl(&["import", "--jsonl", file_arg, "--report", report_arg], "")
        .await;
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert_eq!(records(&report).len(), 200);

    // A report is never overwritten.
    let said = freshd
        .freshctl(&["import", "--jsonl", file_arg, "--report", report_arg], "")
        .await;
    assert_eq!(said.code, Some(73), "{}", said.stderr);
    assert!(said.stderr.contains("--resume-from"), "{}", said.stderr);

    // The daemon is away: nothing is lost but time.
    freshd.stop().await;
    std::fs::write(&file, all.join("\n")).unwrap();
    let resume = [
        "import",
        "--jsonl",
        file_arg,
        "--resume-from",
        report_arg,
        "--json",
    ];
    let said = freshd.freshctl(&resume, "").await;
    assert_eq!(said.code, Some(69), "{}", said.stderr);
    // A run that was killed leaves half a record.
    let mut text = std::fs::read_to_string(&report).unwrap();
    text.push_str("{\"line\":201,\"us");
    std::fs::write(&report, text).unwrap();

    freshd.start_again().await;
    let said = freshd.freshctl(&resume, "").await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let totals: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(
        (&totals["skipped"], &totals["created"]),
        (&json!(199), &json!(101)),
        "{totals}"
    );
    let grants = freshd.admin(Method::GET, "/v1/grants?limit=1000").await;
    assert_eq!(grants.json["grants"].as_array().unwrap().len(), 300);
}

#[tokio::test]
async fn an_import_waits_for_a_daemon_that_restarts_under_it() {
    let (_rotating, _server, mut freshd) = quiet().await;
    let file = freshd.config.path().join("grants.jsonl");
    let text: String = (0..1500).fold(String::new(), |mut text, n| {
        let _ = writeln!(
            text,
            r#"{{"user":"user-{n}","provider":"acme","refresh_token":"r-{n}","access_token":"a","expires_in":3600}}"#
        );
        text
    });
    std::fs::write(&file, text).unwrap();
    let config_file = freshd.config.file();
    let args = [
        "--config",
        config_file.to_str().unwrap(),
        "import",
        "--jsonl",
        file.to_str().unwrap(),
    ];
    let importing = support::daemon::freshctl(&args, "");
    tokio::pin!(importing);
    let begun = eventually("the import to be under way", || async {
        let grants = freshd.admin(Method::GET, "/v1/grants?limit=20").await;
        (grants.json["grants"].as_array()?.len() == 20).then_some(())
    });
    tokio::select! {
        said = &mut importing => panic!("over before the restart: {said:?}"),
        () = begun => {}
    }
    tokio::select! {
        said = &mut importing => panic!("over before the restart: {said:?}"),
        () = freshd.kill() => {}
    }
    let ((), said) = tokio::join!(freshd.start_again(), &mut importing);
    assert_eq!(said.code, Some(0), "{}\n{}", said.stdout, said.stderr);
    let status = freshd.status().await;
    assert_eq!(status["grants"][0]["grants"], 1500, "{status}");
}

#[tokio::test]
async fn an_import_that_is_told_to_stop_ends_at_once_and_says_what_is_done() {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    let (rotating, _server, mut freshd) = quiet().await;
    let config = freshd.config.file();
    let mut importing = tokio::process::Command::new(env!("CARGO_BIN_EXE_freshctl"))
        .env_clear()
        .args([
            "--config",
            config.to_str().unwrap(),
            "import",
            "--jsonl",
            "-",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = importing.stdin.take().unwrap();
    let mut line = async |user: &str| {
        let mut body = rotating.issue(user).import();
        (body["user"], body["provider"]) = (json!(user), json!("acme"));
        let line = format!("{body}\n");
        input.write_all(line.as_bytes()).await.unwrap();
    };
    line("anna").await;
    eventually("the first line to be taken", || async {
        let reply = freshd.get(&grant_path("anna", "acme")).await;
        (reply.status == 200).then_some(())
    })
    .await;

    // It waits for a daemon that is away, and says so.
    freshd.stop().await;
    line("bert").await;
    let mut stderr = BufReader::new(importing.stderr.take().unwrap()).lines();
    let told = within("word of the wait", stderr.next_line())
        .await
        .unwrap();
    assert!(told.unwrap().contains("trying again for about a minute"));

    let pid = rustix::process::Pid::from_raw(importing.id().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = within("freshctl to end", importing.wait()).await.unwrap();
    assert_eq!(ended.code(), Some(75));
    let mut rest = String::new();
    stderr.into_inner().read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("stopped by a signal"), "{rest}");
    assert!(rest.contains("run it again"), "{rest}");
    let mut said = String::new();
    let mut stdout = importing.stdout.take().unwrap();
    stdout.read_to_string(&mut said).await.unwrap();
    assert!(said.contains("2 lines: 1 created"), "{said}");
    assert!(said.contains("1 without an answer"), "{said}");
}
