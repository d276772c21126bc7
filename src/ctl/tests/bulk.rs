//! `import --jsonl`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::run;
use super::server::{Reply, Seen, Server, grant, ok, problem};

fn answer(result: &str) -> Value {
    json!({"result": result, "grant": grant("u", "active", "")})
}

fn records(file: &Path) -> BTreeMap<u64, Value> {
    let text = std::fs::read_to_string(file).unwrap();
    let records = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    records
        .map(|record| (record["line"].as_u64().unwrap(), record))
        .collect()
}

/// 3,000 lines: every 100th is malformed, every 50th is a grant that is there, every 30th is refused.
fn three_thousand() -> String {
    let line = |n: u64| {
        if n.is_multiple_of(100) {
            return format!(
                "{{\"user\":\"u{n}\",\"provider\":\"p\",\"refresh_token\":canary-{n}}}\n"
            );
        }
        json!({"user": format!("u{n}"), "provider": "p", "access_token": format!("canary-a-{n}"),
               "refresh_token": format!("canary-r-{n}"), "expires_in": 60})
        .to_string()
            + "\n"
    };
    (1..=3000).map(line).collect()
}

fn expected(n: u64) -> &'static str {
    match n {
        _ if n.is_multiple_of(100) || n.is_multiple_of(50) || n.is_multiple_of(30) => "not-taken",
        _ if n.is_multiple_of(7) => "taken twice",
        _ => "created",
    }
}

/// A daemon that ends the connection of every 7th user's first request, after it has stored the grant,
/// and of every 11th user's before.
fn flaky() -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    let (stored, dropped) = (Mutex::new(HashSet::new()), Mutex::new(HashSet::new()));
    move |seen| {
        let user = seen.line.split('/').nth(3).unwrap().to_owned();
        let n: u64 = user[1..].parse().unwrap();
        if n.is_multiple_of(50) {
            return problem(409, "urn:freshd:grant-exists", "there is one");
        }
        if n.is_multiple_of(30) {
            let quoted = seen.body["refresh_token"].as_str().unwrap();
            return problem(400, "urn:freshd:bad-request", &format!("what is {quoted}?"));
        }
        let first = dropped.lock().unwrap().insert(n);
        if first && n.is_multiple_of(11) && !n.is_multiple_of(7) {
            return Reply::Hangup;
        }
        let new = stored.lock().unwrap().insert(n);
        if first && n.is_multiple_of(7) {
            return Reply::Hangup;
        }
        ok(answer(if new { "created" } else { "unchanged" }))
    }
}

#[test]
fn three_thousand_lines_are_taken_or_told_whatever_the_connection_does() {
    let dir = tempfile::tempdir().unwrap();
    let (file, report) = (dir.path().join("in.jsonl"), dir.path().join("report.jsonl"));
    std::fs::write(&file, three_thousand()).unwrap();
    let server = Server::start(flaky());
    let args = [
        "import",
        "--jsonl",
        file.to_str().unwrap(),
        "--report",
        report.to_str().unwrap(),
    ];
    let ran = run(&server.socket, &args, "");
    assert_eq!(ran.code, 1, "{}", ran.err);

    let mut count = BTreeMap::new();
    (1..=3000).for_each(|n| *count.entry(expected(n)).or_insert(0) += 1);
    assert_eq!(
        ran.out,
        format!(
            "3000 lines: {} created, 0 replaced, {} unchanged, {} not taken (30 malformed)\n",
            count["created"], count["taken twice"], count["not-taken"]
        )
    );
    let records = records(&report);
    assert_eq!(records.len(), 3000);
    for (n, record) in &records {
        let result = record["result"].as_str().unwrap();
        assert_eq!(
            result,
            if expected(*n) == "taken twice" {
                "unchanged"
            } else {
                expected(*n)
            }
        );
    }
    assert_eq!(records[&100]["type"], "malformed");
    assert_eq!(records[&50]["type"], "urn:freshd:grant-exists");
    assert_eq!(records[&30]["detail"], "what is [redacted]?");
    assert_eq!(records[&30]["user"], "u30");
    let shown = ran.out + &ran.err + &std::fs::read_to_string(&report).unwrap();
    assert!(!shown.contains("canary"));
    assert_eq!(ran.err.lines().count(), 21, "{}", ran.err);
    assert!(
        ran.err
            .ends_with("freshctl: more lines were not taken; --report FILE has them all\n")
    );
}

#[test]
fn an_import_goes_on_where_its_report_ends() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report");
    let report = report.to_str().unwrap();
    let lines: String = (1..=40)
        .map(|n| format!("{{\"user\":\"u{n}\",\"provider\":\"p\",\"refresh_token\":\"r{n}\"}}\n"))
        .collect();
    let down = Server::start(|seen| {
        let n: u64 = seen.line.split('/').nth(3).unwrap()[1..].parse().unwrap();
        if n <= 5 {
            return ok(answer("created"));
        }
        Reply::Json(
            503,
            json!({"type": "urn:freshd:draining", "title": "t", "status": 503, "detail": "stopping", "retry_after": 0}),
        )
    });
    let ran = run(
        &down.socket,
        &["import", "--jsonl", "-", "--report", report],
        &lines,
    );
    assert_eq!(ran.code, 75, "{}", ran.err);
    assert!(
        ran.err.contains("stopping (urn:freshd:draining)"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains(&format!(
        "hint: to go on from here: the same with --resume-from {report}"
    )));

    let taken = records(Path::new(report)).len();
    assert!(taken <= 5);
    let up = Server::start(|_| ok(answer("created")));
    let ran = run(
        &up.socket,
        &["import", "--jsonl", "-", "--resume-from", report],
        &lines,
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(
        ran.out,
        format!(
            "40 lines: {} created, 0 replaced, 0 unchanged, 0 not taken, {taken} skipped\n",
            40 - taken
        )
    );
    assert_eq!(records(Path::new(report)).len(), 40);
    assert_eq!(up.lines().len(), 40 - taken);
}

#[test]
fn two_lines_for_one_grant_are_sent_in_their_order() {
    let lines: String = (1..=60)
        .map(|n| format!("{{\"user\":\"u\",\"provider\":\"p\",\"account\":\"a{}\",\"refresh_token\":\"{n}\"}}\n", n % 3))
        .collect();
    let server = Server::start(|_| ok(answer("replaced")));
    let args = ["import", "--jsonl", "-", "--replace", "--hold", "--json"];
    let ran = run(&server.socket, &args, &lines);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(
        serde_json::from_str::<Value>(&ran.out).unwrap(),
        json!({"lines": 60, "created": 0, "replaced": 60, "unchanged": 0, "not_taken": 0, "malformed": 0, "skipped": 0})
    );
    for account in 0..3 {
        let line = format!("PUT /v1/users/u/grants/p:a{account}?replace=true&hold=true");
        let sent = server.seen().into_iter().filter(|seen| seen.line == line);
        let tokens: Vec<u64> = sent
            .map(|seen| {
                seen.body["refresh_token"]
                    .as_str()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect();
        assert_eq!(tokens.len(), 20);
        assert!(tokens.is_sorted(), "{tokens:?}");
    }
}

#[test]
fn a_line_names_its_own_namespace_and_blank_lines_are_nothing() {
    let server = Server::start(|_| ok(answer("created")));
    let lines = "\n{\"user\":\"a\",\"provider\":\"p\",\"refresh_token\":\"1\"}\n  \r\n\
                 {\"user\":\"b\",\"provider\":\"p\",\"namespace\":\"own\",\"refresh_token\":\"2\"}";
    let ran = run(
        &server.socket,
        &["import", "--jsonl", "-", "--namespace", "crm"],
        lines,
    );
    assert_eq!(
        ran.out,
        "2 lines: 2 created, 0 replaced, 0 unchanged, 0 not taken\n"
    );
    let mut seen: Vec<_> = server
        .seen()
        .into_iter()
        .map(|seen| (seen.line, seen.namespace.unwrap()))
        .collect();
    seen.sort();
    assert_eq!(seen[0].1, "crm");
    assert_eq!(seen[1].1, "own");
}

#[test]
fn a_line_longer_than_any_token_set_is_told_and_the_rest_goes_on() {
    let long = format!(
        "{{\"user\":\"a\",\"refresh_token\":\"{}\"}}\n",
        "x".repeat(3 << 20)
    );
    let lines = long + "{\"user\":\"b\",\"provider\":\"p\",\"refresh_token\":\"2\"}\n";
    let server = Server::start(|_| ok(answer("created")));
    let ran = run(&server.socket, &["import", "--jsonl", "-"], &lines);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.out,
        "2 lines: 1 created, 0 replaced, 0 unchanged, 1 not taken (1 malformed)\n"
    );
    assert!(
        ran.err
            .starts_with("freshctl: line 1: longer than 1048576 bytes"),
        "{}",
        ran.err
    );
}

#[test]
fn what_cannot_be_opened_or_reached_is_told_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report");
    let report = report.to_str().unwrap();
    let nowhere = dir.path().join("freshd.sock");
    let ran = run(
        &nowhere,
        &["import", "--jsonl", "-", "--report", report],
        "",
    );
    assert_eq!(ran.code, 69, "{}", ran.err);
    assert!(!Path::new(report).exists());
    let server = Server::start(|_| ok(answer("created")));
    let ran = run(
        &server.socket,
        &["import", "--jsonl", "/nowhere/in", "--report", report],
        "",
    );
    assert_eq!(ran.code, 66, "{}", ran.err);
    std::fs::write(report, "").unwrap();
    let ran = run(
        &server.socket,
        &["import", "--jsonl", "-", "--report", report],
        "",
    );
    assert_eq!(ran.code, 73, "{}", ran.err);
}
