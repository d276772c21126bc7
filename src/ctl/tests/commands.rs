//! Requests, what is printed, and exit codes.

use serde_json::{Value, json};

use super::server::{Reply, Seen, Server, grant, ok, token};
use super::{Terminals, run, run_at};

const ALL: Terminals = Terminals {
    stdin: true,
    stdout: false,
    stderr: true,
    stdout_is_readable: false,
};

/// A daemon where everything goes well.
fn obliging(seen: &Seen) -> Reply {
    let path = seen
        .line
        .split_once(' ')
        .unwrap()
        .1
        .split('?')
        .next()
        .unwrap();
    let user = || json!({"namespace": "default", "user": "alice", "grants": [grant("alice", "active", "")]});
    ok(match path.rsplit('/').next().unwrap() {
        _ if path.ends_with("/token") || path.ends_with("/refresh") => token(),
        "pause" | "resume" => json!({"changed": 2}),
        _ if seen.line.starts_with("DELETE") => json!({"changed": 1}),
        _ if seen.line.starts_with("PUT") => {
            json!({"result": "created", "grant": grant("alice", "active", "")})
        }
        "grants" => json!({"grants": [grant("alice", "active", "")]}),
        "history" => json!({
            "grant": grant("alice", "active", ""),
            "provider": {"state": "running", "rotation": "strict"},
            "held": false, "store": "ok", "entries": [],
        }),
        "providers" => json!({"providers": []}),
        "backup" => {
            json!({"path": "/srv/copy", "made_at": "2026-01-31T03:00:00Z", "bytes": 4096,
                "grants": 2, "quarantined": 0, "revocations": 0})
        }
        "activity" | "alice" => user(),
        _ => grant("alice", "paused", "held"),
    })
}

#[test]
fn each_command_sends_its_request() {
    for (args, lines) in [
        ("grants", &["GET /v1/grants?limit=1000"][..]),
        (
            "grants --state needs-authorization --provider box --user a/b --missing-scope x.y+z --limit 5",
            &[
                "GET /v1/grants?limit=5&state=needs-authorization&provider=box&user=a%2Fb&missing_scope=x.y%2Bz",
            ],
        ),
        ("show alice", &["GET /v1/users/alice"]),
        (
            "show ali%2fce google:work",
            &["GET /v1/users/ali%252fce/grants/google:work"],
        ),
        (
            "why alice google:work",
            &["GET /v1/users/alice/grants/google:work/history"],
        ),
        (
            "token alice hubspot",
            &["GET /v1/users/alice/grants/hubspot/token?activity=false"],
        ),
        (
            "token alice hubspot --min-ttl 60 --wait 3 --activity",
            &["GET /v1/users/alice/grants/hubspot/token?min_ttl=60&wait=3&activity=true"],
        ),
        (
            "refresh alice hubspot",
            &["POST /v1/users/alice/grants/hubspot/refresh?activity=false"],
        ),
        ("activity alice", &["POST /v1/users/alice/activity"]),
        ("pause alice", &["POST /v1/users/alice/pause"]),
        (
            "pause alice hubspot",
            &["POST /v1/users/alice/grants/hubspot/pause"],
        ),
        (
            "pause --provider-wide hubspot",
            &["POST /v1/providers/hubspot/pause"],
        ),
        ("resume alice", &["POST /v1/users/alice/resume"]),
        (
            "resume alice hubspot",
            &["POST /v1/users/alice/grants/hubspot/resume"],
        ),
        (
            "resume --provider-wide hubspot",
            &["POST /v1/providers/hubspot/resume"],
        ),
        (
            "release alice hubspot",
            &[
                "GET /v1/users/alice/grants/hubspot",
                "POST /v1/users/alice/grants/hubspot/resume?release=true",
            ],
        ),
        ("revoke alice --yes", &["DELETE /v1/users/alice"]),
        (
            "revoke alice hubspot -y",
            &["DELETE /v1/users/alice/grants/hubspot"],
        ),
        ("providers", &["GET /v1/providers"]),
        ("backup /srv/copy", &["POST /v1/backup"]),
        (
            "import alice hubspot",
            &["PUT /v1/users/alice/grants/hubspot"],
        ),
        (
            "import alice hubspot --hold --replace",
            &["PUT /v1/users/alice/grants/hubspot?replace=true&hold=true"],
        ),
    ] {
        for json in [false, true] {
            let server = Server::start(obliging);
            let mut args: Vec<&str> = args.split(' ').collect();
            args.extend(json.then_some("--json"));
            let ran = run(
                &server.socket,
                &args,
                r#"{"refresh_token":"canary-refresh"}"#,
            );
            assert_eq!(ran.code, 0, "{args:?}: {}", ran.err);
            assert_eq!(server.lines(), lines, "{args:?}");
            assert!(
                !json || serde_json::from_str::<Value>(&ran.out).is_ok(),
                "{args:?}: {}",
                ran.out
            );
            let shown = ran.out + &ran.err;
            assert!(
                !shown.contains("canary") || args[0] == "token",
                "{args:?}: {shown}"
            );
        }
    }
}

#[test]
fn the_namespace_and_the_bodies_are_sent() {
    let server = Server::start(obliging);
    run(
        &server.socket,
        &[
            "refresh",
            "alice",
            "hubspot",
            "--generation",
            "7",
            "--namespace",
            "crm",
        ],
        "",
    );
    let body = r#"{"refresh_token":"r","expires_in":"60","id_token":"x","user":"mallory"}"#;
    run(&server.socket, &["import", "alice", "hubspot"], body);
    let seen = server.seen();
    assert_eq!(seen[0].namespace.as_deref(), Some("crm"));
    assert_eq!(seen[0].body, json!({"generation": 7}));
    assert_eq!(seen[1].namespace, None);
    assert_eq!(
        seen[1].body,
        json!({"refresh_token": "r", "expires_in": "60"})
    );
}

#[test]
fn a_token_is_all_that_token_prints() {
    let server = Server::start(obliging);
    for (format, shown) in [
        ("raw", "canary-token\n".to_owned()),
        ("header", "Authorization: Bearer canary-token\n".to_owned()),
        ("json", format!("{}\n", token())),
    ] {
        let ran = run(
            &server.socket,
            &["token", "alice", "hubspot", "--format", format],
            "",
        );
        assert_eq!((ran.code, ran.out, ran.err), (0, shown, String::new()));
    }
}

#[test]
fn grants_pages_through_cursors() {
    let script = |seen: &Seen| {
        ok(match seen.line.split("cursor=").nth(1) {
            None => {
                json!({"grants": [grant("a", "active", ""), grant("b", "paused", "admin")], "next_cursor": "2/x"})
            }
            Some(cursor) => {
                assert_eq!(cursor, "2%2Fx");
                json!({"grants": [grant("c", "active", "")]})
            }
        })
    };
    let server = Server::start(script);
    let ran = run(&server.socket, &["grants", "--json"], "");
    let list: Value = serde_json::from_str(&ran.out).unwrap();
    let users: Vec<&Value> = list["grants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| &g["user"])
        .collect();
    assert_eq!(users, ["a", "b", "c"]);
    assert_eq!(list["grants"][0], grant("a", "active", ""));
    let ran = run(&server.socket, &["grants", "--limit", "2"], "");
    assert_eq!(
        ran.err,
        "freshctl: there are more; a higher --limit shows them\n"
    );
    insta::assert_snapshot!("grants", run(&server.socket, &["grants"], "").out);
    insta::assert_snapshot!("show_grant", {
        let server = Server::start(|_| {
            ok(grant(
                "al\u{1b}ice",
                "needs-authorization",
                "no-refresh-token",
            ))
        });
        run(&server.socket, &["show", "alice", "hubspot"], "").out
    });
}

#[test]
fn show_says_when_the_refresh_token_ends_where_that_is_known() {
    let server = Server::start(|_| {
        let mut grant = grant("alice", "active", "");
        grant["refresh_token_expires_at"] = "2026-11-29T00:00:00Z".into();
        ok(grant)
    });
    let shown = run(&server.socket, &["show", "alice", "hubspot"], "").out;
    assert!(
        shown.contains("refresh token     ends 2026-11-29T00:00:00Z"),
        "{shown}"
    );
}

#[test]
fn release_all_resumes_held_grants_only_each_in_its_namespace() {
    let server = Server::start(|seen| {
        if seen.line.starts_with("POST") {
            return ok(json!({"changed": 1}));
        }
        let mut held = grant("b/c", "paused", "held");
        held["namespace"] = "crm".into();
        held["account"] = "work".into();
        ok(json!({"grants": [grant("a", "paused", "admin"), held]}))
    });
    let ran = run(
        &server.socket,
        &["release", "--provider", "hubspot", "--all"],
        "",
    );
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "released 1 grant\n"),
        "{}",
        ran.err
    );
    let seen = server.seen();
    assert_eq!(
        seen[0].line,
        "GET /v1/grants?limit=1000&state=paused&provider=hubspot"
    );
    assert_eq!(
        seen[1].line,
        "POST /v1/users/b%2Fc/grants/hubspot:work/resume?release=true"
    );
    assert_eq!(seen[1].namespace.as_deref(), Some("crm"));
    assert_eq!(seen.len(), 2);
}

#[test]
fn release_leaves_alone_what_is_not_held() {
    let server = Server::start(|_| ok(grant("alice", "paused", "admin")));
    let ran = run(&server.socket, &["release", "alice", "hubspot"], "");
    assert_eq!((ran.code, ran.out.as_str()), (0, "released 0 grants\n"));
    assert_eq!(server.lines(), ["GET /v1/users/alice/grants/hubspot"]);
}

#[test]
fn revoke_asks_first() {
    let server = Server::start(obliging);
    let revoke = ["revoke", "al\u{202e}ice", "hubspot"];
    let ran = run(&server.socket, &revoke, "y\n");
    assert_eq!(ran.code, 64, "here is no terminal");
    let ran = run_at(ALL, &server.socket, &revoke, "\n");
    assert_eq!(ran.code, 0);
    assert!(
        ran.err
            .starts_with("Delete the grant of al\\u{202e}ice at hubspot and"),
        "{}",
        ran.err
    );
    assert_eq!(server.lines().len(), 0);
    assert_eq!(
        run_at(ALL, &server.socket, &revoke, "Y\n").out,
        "revoked 1 grant\n"
    );
    assert_eq!(server.lines().len(), 1);
}
