//! `status` and `providers` as people see them.

use serde_json::{Value, json};

use super::run;
use super::server::{Seen, Server, grant, ok};

fn provider(name: &str, state: &str, reason: &str, since: Option<&str>) -> Value {
    json!({
        "name": name, "token_endpoint": format!("https://{name}.example/token"), "rotation": "strict",
        "margin": 300.0, "state": state, "reason": reason, "since": since, "in_flight": 0,
        "grants": [{"provider": name, "state": "active", "grants": 40}],
    })
}

fn well() -> Value {
    json!({
        "version": "0.1.0", "started_at": "2026-11-19T00:00:00Z", "state": "running",
        "config": ["/etc/freshd/freshd.toml"],
        "grants": [
            {"provider": "hubspot", "state": "active", "grants": 1200},
            {"provider": "hubspot", "state": "paused", "reason": "inactive", "grants": 30},
        ],
        "providers": [
            provider("hubspot", "running", "", None),
            provider("google", "cooling-down", "429", Some("2026-11-22T00:00:30Z")),
        ],
        "in_flight": 1, "next_due_at": "2026-11-22T00:00:07Z", "held": 0, "revocations": 0,
        "keys": { "current": 1 }, "store": "ok",
    })
}

fn troubled() -> Value {
    let mut status = well();
    status["state"] = "draining".into();
    status["store"] = "no space left on device".into();
    status["held"] = 2.into();
    status["revocations"] = 1.into();
    status["reload_error"] = "freshd.toml: refresh.margin is 2h\nand more\u{1b}[2J".into();
    status["grants"] = json!([
        {"provider": "hubspot", "state": "active", "grants": 1200},
        {"provider": "hubspot", "state": "needs-authorization", "reason": "revoked-or-used-elsewhere", "grants": 12},
        {"provider": "hubspot", "state": "paused", "reason": "held", "grants": 5},
        {"provider": "hubspot", "state": "paused", "reason": "quarantined", "grants": 1},
    ]);
    status["providers"] = json!([
        provider(
            "box",
            "stopped",
            "invalid_client",
            Some("2026-11-21T21:00:00Z")
        ),
        provider("google", "paused", "", Some("2026-11-21T23:00:00Z")),
        provider("old", "not-configured", "", None),
    ]);
    status
}

fn serve(status: Value) -> Server {
    Server::start(move |seen: &Seen| {
        if seen.line == "GET /v1/status" {
            return ok(status.clone());
        }
        assert_eq!(
            seen.line,
            "GET /v1/grants?limit=10&state=needs-authorization"
        );
        let users = ["mi\u{1b}[31ma", "noah"];
        let grants =
            users.map(|user| grant(user, "needs-authorization", "revoked-or-used-elsewhere"));
        ok(json!({"grants": grants, "next_cursor": "10"}))
    })
}

#[test]
fn all_is_well_and_says_so() {
    let server = serve(well());
    let ran = run(&server.socket, &["status"], "");
    assert_eq!(ran.code, 0, "{}", ran.err);
    insta::assert_snapshot!("status_well", ran.out);
}

#[test]
fn whatever_is_not_well_is_named_with_what_to_do() {
    let server = serve(troubled());
    let ran = run(&server.socket, &["status"], "");
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.out.is_ascii() && !ran.out.contains('\u{1b}'));
    insta::assert_snapshot!("status_troubled", ran.out);
}

#[test]
fn each_trouble_alone_needs_attention() {
    for (member, value) in [
        ("state", json!("draining")),
        ("store", json!("read-only file system")),
        ("held", json!(1)),
        ("reload_error", json!("bad")),
        (
            "providers",
            json!([provider("box", "stopped", "invalid_client", None)]),
        ),
        (
            "grants",
            json!([{"provider": "p", "state": "needs-authorization", "reason": "x", "grants": 1}]),
        ),
        (
            "grants",
            json!([{"provider": "p", "state": "paused", "reason": "quarantined", "grants": 1}]),
        ),
    ] {
        let mut status = well();
        status[member] = value;
        let ran = run(&serve(status).socket, &["status"], "");
        assert_eq!(ran.code, 1, "{member}: {}", ran.out);
    }
}

#[test]
fn json_is_the_daemons_own_with_the_same_exit_code() {
    let mut status = troubled();
    status["a-member-of-a-later-version"] = json!([1]);
    let server = serve(status.clone());
    let ran = run(&server.socket, &["status", "--json"], "");
    assert_eq!(ran.code, 1);
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), status);
    assert_eq!(server.lines(), ["GET /v1/status"]);
}

#[test]
fn providers_are_listed() {
    let list = json!({"providers": troubled()["providers"]});
    let server = Server::start(move |_| ok(list.clone()));
    insta::assert_snapshot!("providers", run(&server.socket, &["providers"], "").out);
}
