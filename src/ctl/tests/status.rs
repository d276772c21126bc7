//! `status` and `providers` as people see them.

use serde_json::{Value, json};

use super::server::{Seen, Server, grant, ok};
use super::{Terminals, run, run_at};

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
        "keys": { "current": 1 }, "store": "ok", "free_bytes": 13_000_000_000_u64,
        "copies": {"dir": "/var/backups/freshd", "newest_at": "2026-11-21T03:00:00Z"},
    })
}

fn troubled() -> Value {
    let mut status = well();
    status["state"] = "draining".into();
    status["store"] = "no space left on device".into();
    status["held"] = 2.into();
    status["spilled"] = 1.into();
    status["late"] = json!([{"provider": "hubspot", "due_at": "2026-11-21T23:50:00Z"}]);
    status["renewals"] = json!([{"provider": "hubspot", "state": "running", "reason": "",
        "since": "2026-11-21T23:30:00Z", "left": 20, "resting": 18, "grants": 1220}]);
    status["ending"] =
        json!([{"provider": "hubspot", "grants": 4, "soonest_at": "2026-11-24T00:00:00Z"}]);
    status["copies"] = json!({"dir": "/srv/copies", "newest_at": "2026-11-19T03:00:00Z",
        "missed_at": "2026-11-20T03:00:00Z"});
    status["keys"] =
        json!({"current": 2, "rotation": {"from": [1], "resealed": 300, "rows": 1218}});
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

/// Answers status, and lists of grants with two users.
fn serve(status: Value) -> Server {
    Server::start(move |seen: &Seen| {
        if seen.line == "GET /v1/status" {
            return ok(status.clone());
        }
        assert!(
            seen.line.starts_with("GET /v1/grants?limit=3"),
            "{}",
            seen.line
        );
        let users = ["mi\u{1b}[31ma", "noah"];
        let mut grants =
            users.map(|user| grant(user, "needs-authorization", "revoked-or-used-elsewhere"));
        grants[1]["namespace"] = "shop".into();
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
    let asked = server.lines();
    for filter in [
        "state=needs-authorization&provider=hubspot",
        "state=paused&reason=held&provider=hubspot",
        "state=paused&reason=quarantined&provider=hubspot",
        "ending=true&provider=hubspot",
        "provider=box",
    ] {
        let line = format!("GET /v1/grants?limit=3&{filter}");
        assert!(asked.contains(&line), "{line} is not in {asked:#?}");
    }
}

#[test]
fn what_is_well_and_what_ends_by_itself_fit_on_a_small_screen() {
    let mut status = well();
    status["keys"] = troubled()["keys"].clone();
    status["renewals"] = troubled()["renewals"].clone();
    status["grants"] = json!([
        {"provider": "hubspot", "state": "active", "grants": 1200},
        {"provider": "hubspot", "state": "needs-authorization", "reason": "refused", "grants": 1},
    ]);
    let terminals = Terminals {
        stdout: true,
        ..Terminals::default()
    };
    let ran = run_at(
        terminals,
        &serve(status).socket,
        &["--no-color", "status"],
        "",
    );
    assert!(ran.out.lines().count() <= 24, "{}", ran.out);
    assert!(
        ran.out.lines().all(|line| line.chars().count() <= 80),
        "{}",
        ran.out
    );
    assert!(ran.out.starts_with("1 thing needs you; "), "{}", ran.out);
}

#[test]
fn while_a_final_backup_drains_the_store_is_not_yet_moved() {
    for (state, words) in [
        ("moving", "draining, 1 request in flight"),
        ("moved", "was moved to another host"),
        (
            "draining",
            "freshd is stopping: draining, 1 request in flight",
        ),
    ] {
        let mut status = well();
        status["state"] = state.into();
        let ran = run(&serve(status).socket, &["status"], "");
        assert_eq!(ran.code, 1, "{state}");
        assert!(ran.out.contains(words), "{}", ran.out);
        assert_eq!(
            ran.out.contains("was moved"),
            state == "moved",
            "{}",
            ran.out
        );
    }
}

#[test]
fn after_a_final_backup_it_is_told_that_freshd_rests_and_what_to_do() {
    let mut status = well();
    status["state"] = "moved".into();
    status["in_flight"] = 0.into();
    let ran = run(&serve(status).socket, &["status"], "");
    for words in [
        "0 requests in flight, rests after a final backup: nothing is due here",
        "restore the copy there, then stop freshd here",
    ] {
        assert!(ran.out.contains(words), "{words}: {}", ran.out);
    }
    for untrue in ["next due", "running", "cooling-down"] {
        assert!(!ran.out.contains(untrue), "{untrue}: {}", ran.out);
    }
    let rows = ran.out.lines().filter(|line| line.contains(" rests "));
    assert_eq!(rows.count(), 3, "schedule, and both providers: {}", ran.out);
}

#[test]
fn what_ends_by_itself_is_told_and_is_no_trouble() {
    for (member, words) in [
        ("renewals", "1182 done, 20 left, 18 not touched"),
        (
            "keys",
            "Key rotation from data key 1 to 2: 300 of 1218 rows",
        ),
        (
            "ending",
            "4 refresh tokens at hubspot about to end, the first in 2 d",
        ),
        ("revocations", "1 revocation waiting"),
    ] {
        let mut status = well();
        status[member] = troubled()[member].clone();
        let ran = run(&serve(status).socket, &["status"], "");
        assert_eq!(ran.code, 0, "{member}: {}", ran.out);
        assert!(ran.out.contains(words), "{member}: {}", ran.out);
    }
}

#[test]
fn grants_that_fail_are_trouble_once_a_token_ended_or_ends_within_the_margin() {
    let failing = |code: &str, grants: u64, without: u64, soonest: Option<&str>| {
        json!({"provider": "hubspot", "code": code, "grants": grants, "without_token": without,
            "soonest_at": soonest, "since": "2026-11-21T23:00:00Z"})
    };
    let (ended, soon, far) = (
        Some("2026-11-21T23:59:21Z"),
        Some("2026-11-22T00:04:00Z"),
        Some("2026-11-22T00:30:00Z"),
    );
    let ends_far = failing("http-503", 2, 0, far);
    for (all, state, code, words) in [
        (
            json!([failing("dns", 1, 1, ended)]),
            "running",
            1,
            "1 grant at hubspot has no access token that lives, since 2026-11-21T23:59:21Z (39 s ago), \
             because refreshes fail: dns (the server's name does not resolve)",
        ),
        (
            json!([failing("tls", 1, 1, ended), failing("connect", 5, 1, soon)]),
            "cooling-down",
            1,
            "connect (nobody answers there), 1 tls (the server's certificate is not trusted, or it speaks no TLS); \
             4 more fail, whose tokens still live",
        ),
        (
            json!([failing("unknown-deadline", 2, 0, soon)]),
            "running",
            1,
            "unknown-deadline (no whole answer came); last refreshed 1 h ago, the first token ends in 4 m",
        ),
        (
            json!([ends_far]),
            "running",
            0,
            "2 grants at hubspot fail to be refreshed, three times or more in a row: http-503",
        ),
        (
            json!([failing("http-302", 2, 0, soon)]),
            "running",
            1,
            "http-302 (a redirect, which a token request never follows)",
        ),
        (
            json!([failing("html", 2, 0, soon)]),
            "running",
            1,
            "html (an HTML page in place of tokens)",
        ),
        (
            json!([failing("http-404", 2, 0, soon)]),
            "running",
            1,
            "http-404 (no token requests are taken there)",
        ),
        (
            json!([failing("invalid_scope", 3, 0, None)]),
            "running",
            0,
            "invalid_scope (the server refuses)",
        ),
        (
            json!([failing("dns", 9, 9, ended)]),
            "unreachable",
            1,
            "Provider hubspot is unreachable",
        ),
    ] {
        let mut status = well();
        status["providers"] = json!([provider("hubspot", state, "", None)]);
        status["failing"] = all;
        let ran = run(&serve(status).socket, &["status", "--json"], "");
        assert_eq!(ran.code, code, "{}", ran.out);
        let told: Value = serde_json::from_str(&ran.out).unwrap();
        let list = &told[if code == 0 { "notices" } else { "troubles" }];
        let mut all = list.as_array().unwrap().iter();
        let found = all.find(|it| it["what"].as_str().unwrap().contains(words));
        let list = &found.unwrap_or_else(|| panic!("{words}: {told:#}"))["whom"]["list"];
        let failing = list == "freshctl grants --provider hubspot --failing";
        assert_eq!(failing, state != "unreachable", "{list}");
    }
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
        (
            "grants",
            json!([{"provider": "p", "state": "paused", "reason": "restored", "grants": 1}]),
        ),
        (
            "grants",
            json!([{"provider": "p", "state": "paused", "reason": "held", "grants": 1}]),
        ),
        ("late", troubled()["late"].clone()),
        ("copies", troubled()["copies"].clone()),
        (
            "copies",
            json!({"dir": "/srv", "error": "the disk is full"}),
        ),
        (
            "providers",
            json!([provider("box", "unreachable", "", None)]),
        ),
        (
            "keys",
            json!({"current": 2, "rotation": {"from": [1], "resealed": 0, "rows": 9, "waits_for": "room"}}),
        ),
    ] {
        let mut status = well();
        status[member] = value;
        let ran = run(&serve(status).socket, &["status"], "");
        assert_eq!(ran.code, 1, "{member}: {}", ran.out);
    }
}

#[test]
fn json_is_the_daemons_own_with_what_follows_from_it_and_the_same_exit_code() {
    let mut status = troubled();
    status["a-member-of-a-later-version"] = json!([1]);
    let server = serve(status.clone());
    let ran = run(&server.socket, &["status", "--json"], "");
    assert_eq!(ran.code, 1);
    let told: Value = serde_json::from_str(&ran.out).unwrap();
    for (member, value) in status.as_object().unwrap() {
        assert_eq!(&told[member], value, "{member}");
    }
    assert_eq!(told["well"], false);
    let about = |word: &str| {
        let troubles = told["troubles"].as_array().unwrap().iter();
        let mut of = troubles.filter(|it| it["what"].as_str().unwrap().contains(word));
        of.next()
            .unwrap_or_else(|| panic!("{word}: {told:#}"))
            .clone()
    };
    let box_is_stopped = about("Provider box is stopped");
    assert_eq!(box_is_stopped["whom"]["grants"], 40);
    assert_eq!(
        box_is_stopped["whom"]["list"],
        "freshctl grants --provider box"
    );
    assert_eq!(box_is_stopped["whom"]["users"][1], "noah (shop)");
    assert!(
        box_is_stopped["do"][0]
            .as_str()
            .unwrap()
            .contains("systemctl reload freshd")
    );
    let ran = run(&serve(well()).socket, &["status", "--json"], "");
    let told: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (ran.code, &told["well"], &told["troubles"]),
        (0, &json!(true), &json!([]))
    );
}

#[test]
fn providers_are_listed() {
    let list = json!({"providers": troubled()["providers"]});
    let server = Server::start(move |_| ok(list.clone()));
    insta::assert_snapshot!("providers", run(&server.socket, &["providers"], "").out);
}
