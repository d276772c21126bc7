//! Requests, what is printed, and exit codes.

use serde_json::{Value, json};

use super::server::{Reply, Seen, Server, grant, ok, problem, token};
use super::{Console, Terminals, run, run_at};

const ALL: Terminals = Terminals {
    stdin: true,
    stdout: false,
    stderr: true,
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
        "providers" => json!({"providers": []}),
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
            "token alice hubspot",
            &["GET /v1/users/alice/grants/hubspot/token?activity=false"],
        ),
        (
            "token alice hubspot --min-ttl 60 --wait 3 --activity",
            &["GET /v1/users/alice/grants/hubspot/token?min_ttl=60&wait=3&activity=true"],
        ),
        (
            "refresh alice hubspot",
            &["POST /v1/users/alice/grants/hubspot/refresh"],
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
                "POST /v1/users/alice/grants/hubspot/resume",
            ],
        ),
        ("revoke alice --yes", &["DELETE /v1/users/alice"]),
        (
            "revoke alice hubspot -y",
            &["DELETE /v1/users/alice/grants/hubspot"],
        ),
        ("providers", &["GET /v1/providers"]),
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
fn a_token_that_would_add_a_header_is_refused() {
    let server = Server::start(|_| {
        let mut token = token();
        token["access_token"] = "canary\r\nX-Admin: 1".into();
        ok(token)
    });
    let ran = run(
        &server.socket,
        &["token", "alice", "hubspot", "--format", "header"],
        "",
    );
    assert_eq!((ran.code, ran.out.as_str()), (65, ""));
    assert!(!ran.err.contains("canary"), "{}", ran.err);
}

#[test]
fn each_refusal_has_its_exit_code_and_is_told_with_its_type() {
    for (status, code) in [
        (400, 65),
        (403, 77),
        (404, 4),
        (409, 5),
        (413, 65),
        (429, 75),
        (500, 70),
        (503, 75),
        (507, 75),
    ] {
        let server =
            Server::start(move |_| problem(status, "urn:freshd:x", "bad\u{1b}[2J thing, mend it"));
        let ran = run(&server.socket, &["show", "alice"], "");
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{status}");
        let line = ran.err.lines().next().unwrap();
        assert_eq!(
            line,
            "freshctl: bad\\u{1b}[2J thing, mend it (urn:freshd:x)"
        );
    }
}

#[test]
fn a_refusal_for_now_says_when_to_try_again() {
    let server = Server::start(|_| {
        Reply::Json(
            503,
            json!({"type": "urn:freshd:unavailable", "title": "t", "status": 503, "detail": "not yet", "retry_after": 90}),
        )
    });
    let ran = run(&server.socket, &["token", "alice", "hubspot"], "");
    assert_eq!(
        ran.err,
        "freshctl: not yet (urn:freshd:unavailable)\n  hint: try again in 1 m 30 s\n"
    );
}

#[test]
fn an_answer_that_is_not_freshds_is_not_shown() {
    let server = Server::start(|_| Reply::Text(502, "<html>canary</html>"));
    let ran = run(&server.socket, &["show", "alice"], "");
    assert_eq!(ran.code, 70);
    assert_eq!(
        ran.err,
        "freshctl: the answer was 502 Bad Gateway, and did not say why (about:blank)\n"
    );
    let server = Server::start(|_| ok(json!({"access_token": ["canary"]})));
    let ran = run(&server.socket, &["token", "alice", "hubspot"], "");
    assert_eq!(ran.code, 70);
    assert!(!ran.err.contains("canary"), "{}", ran.err);
}

#[test]
fn a_connection_that_ends_early_may_work_later() {
    let server = Server::start(|_| Reply::Hangup);
    let ran = run(&server.socket, &["pause", "alice"], "");
    assert_eq!(ran.code, 75);
    assert_eq!(
        server.lines().len(),
        1,
        "what may have been done is not sent again"
    );
}

#[test]
fn a_daemon_that_is_not_there_is_69_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("freshd.sock");
    for why in ["there is no such socket", "nobody listens there"] {
        let ran = run(&socket, &["status"], "");
        assert_eq!(ran.code, 69);
        assert!(ran.err.contains(why), "{}", ran.err);
        assert!(ran.err.contains("\n  hint: is it running?"), "{}", ran.err);
        drop(std::os::unix::net::UnixListener::bind(&socket));
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
        "POST /v1/users/b%2Fc/grants/hubspot:work/resume"
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

#[test]
fn an_import_over_a_grant_that_is_there_is_not_taken() {
    let server = Server::start(|_| problem(409, "urn:freshd:grant-exists", "there is one"));
    let ran = run(
        &server.socket,
        &["import", "alice", "hubspot"],
        r#"{"refresh_token":"canary"}"#,
    );
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.err,
        "freshctl: there is one (urn:freshd:grant-exists)\n  hint: --replace replaces it\n"
    );
}

#[test]
fn an_import_that_is_no_token_set_is_65_and_not_sent() {
    let server = Server::start(obliging);
    for (text, why) in [
        ("canary", "this is not a JSON object (column 1)"),
        ("{}", "there is neither an access_token nor a refresh_token"),
        (
            r#"{"access_token":{"canary":1}}"#,
            "access_token must be a string",
        ),
    ] {
        let ran = run(&server.socket, &["import", "alice", "hubspot"], text);
        assert_eq!(ran.code, 65);
        assert_eq!(ran.err, format!("freshctl: standard input: {why}\n"));
    }
    assert_eq!(server.lines().len(), 0);
}

#[test]
fn a_reader_who_hangs_up_is_no_error() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let server = Server::start(obliging);
    let mut err = Vec::new();
    let mut console = Console {
        stdin: Box::new(std::io::empty()),
        stdout: &mut Closed,
        stderr: &mut err,
        terminals: Terminals::default(),
        env: &|_| Some(server.socket.clone().into_os_string()),
        root: false,
    };
    let code = super::super::run(["freshctl", "grants"].map(Into::into), &mut console);
    assert_eq!((code, err.len()), (0, 0));
}

#[test]
fn a_wrong_command_line_is_64() {
    let nowhere = std::path::Path::new("/nowhere");
    for args in [
        &["nonsense"][..],
        &[],
        &["show"],
        &["show", ".."],
        &["show", ""],
        &["show", "a\nb"],
        &["release", "alice"],
        &["release", "--provider", "hubspot"],
        &["pause"],
        &["pause", "alice", "--provider-wide", "hubspot"],
        &["import", "alice", "hubspot", "--jsonl", "x"],
        &["grants", "--state", "asleep"],
    ] {
        let ran = run(nowhere, args, "");
        assert_eq!((ran.code, ran.out.as_str()), (64, ""), "{args:?}");
        assert!(
            !args.is_empty() && ran.err.starts_with("freshctl: ") || args.is_empty(),
            "{}",
            ran.err
        );
    }
}
