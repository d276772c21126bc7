//! What goes wrong, how it is told, and its exit codes.

use serde_json::json;

use super::server::{Reply, Server, grant, ok, problem, token};
use super::{Console, Terminals, run};

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
fn wrong_input_is_told_with_the_command_whose_help_says_more() {
    let server = Server::start(|_| problem(400, "urn:freshd:bad-request", "it breaks a rule"));
    let empty = run(&server.socket, &["import", "alice", "hubspot"], " \n");
    assert_eq!(empty.code, 65);
    assert_eq!(
        empty.err,
        "freshctl: standard input is empty\n  hint: freshctl import --help says what it takes\n"
    );
    let args = ["--namespace", "A B", "import", "alice", "hubspot"];
    let unnamed = run(&server.socket, &args, r#"{"refresh_token": "r"}"#);
    assert_eq!(unnamed.code, 64);
    assert_eq!(
        unnamed.err,
        "freshctl: \"A B\" is no possible name of a namespace: it must be 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", and begin with a letter or digit\n  hint: freshctl import --help says what it takes\n"
    );
    assert_eq!(server.lines().len(), 0, "nothing was sent");
    let refused = run(&server.socket, &["key", "rotate"], "");
    assert_eq!(refused.code, 65);
    let todo = "\n  hint: freshctl key rotate --help says what it takes\n";
    assert!(refused.err.ends_with(todo), "{}", refused.err);
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
        "freshctl: the answer was 502 Bad Gateway, and did not say why (about:blank)\n  hint: is this freshd's socket? --socket names another\n"
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
    let server = Server::start(|_| ok(json!({"grants": [grant("alice", "active", "")]})));
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
        assert!(
            ran.err
                .starts_with(&format!("freshctl: standard input: {why}\n  hint: "))
        );
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
    let server = Server::start(|_| ok(json!({"grants": [grant("alice", "active", "")]})));
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
