//! Every command of `freshctl`, the same questions to each: JSON where it is asked for, a hint with each failure, no
//! colours that nobody wants, no word about a reader who hangs up. A new command is not swept until it is in the table.

mod support;

use std::collections::BTreeSet;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use support::daemon::{Said, freshctl, grant_path};
use support::{Freshd, Rotating, ScriptedServer, at_rotating_server};

/// A command, how it goes well, and how it fails. `@` is the directory of the test.
struct Row {
    command: &'static str,
    args: &'static str,
    stdin: &'static str,
    /// Arguments with which it fails; `None`: as above, with no daemon there.
    fails: Option<&'static str>,
    needs: Needs,
}

#[derive(Clone, Copy, PartialEq)]
enum Needs {
    /// A daemon; it changes nothing, so it can be run often.
    DaemonToRead,
    DaemonToChange,
    /// That no daemon runs.
    NoDaemon,
    Nothing,
}
use Needs::{DaemonToChange, DaemonToRead, NoDaemon, Nothing};

const fn row(command: &'static str, args: &'static str, needs: Needs) -> Row {
    Row {
        command,
        args,
        stdin: "",
        fails: None,
        needs,
    }
}

const fn failing(
    command: &'static str,
    args: &'static str,
    fails: &'static str,
    needs: Needs,
) -> Row {
    Row {
        fails: Some(fails),
        ..row(command, args, needs)
    }
}

/// In the order in which they are run.
const TABLE: &[Row] = &[
    row("status", "", DaemonToRead),
    row("grants", "", DaemonToRead),
    row("show", "anna", DaemonToRead),
    row("why", "anna acme", DaemonToRead),
    row("events", "", DaemonToRead),
    row("audit", "", DaemonToRead),
    row("export", "", DaemonToRead),
    row("token", "anna acme", DaemonToRead),
    row("providers", "", DaemonToRead),
    Row {
        stdin: r#"{"refresh_token": "zoe", "access_token": "zoe", "expires_in": 3600}"#,
        ..row("import", "zoe acme", DaemonToChange)
    },
    row("release", "--all --provider acme", DaemonToChange),
    row("refresh", "anna acme", DaemonToChange),
    row("activity", "anna", DaemonToChange),
    row("pause", "anna acme", DaemonToChange),
    row("resume", "anna acme", DaemonToChange),
    row("revoke", "bert --yes", DaemonToChange),
    row("backup", "@/copy", DaemonToChange),
    row("key rotate", "", DaemonToChange),
    failing("key generate", "@/new-key", "@/new-key", Nothing),
    failing("key change-kek", "@/new-key", "/nowhere", NoDaemon),
    failing(
        "key recovery",
        "--key-file @/new-key",
        "--key-file /nowhere",
        NoDaemon,
    ),
    failing("restore", "@/copy --replace", "/nowhere", NoDaemon),
    failing("check-config", "", "/nowhere", Nothing),
    row("doctor", "--offline", Nothing),
    failing("completions", "bash", "nonsense", Nothing),
];

/// The commands that do something, by their whole names.
fn leaves(command: &clap::Command, before: &str) -> BTreeSet<String> {
    let subcommands = command
        .get_subcommands()
        .filter(|it| it.get_name() != "help");
    let all = subcommands.flat_map(|it| {
        let name = format!("{before}{}", it.get_name());
        if it.has_subcommands() {
            leaves(it, &format!("{name} "))
        } else {
            BTreeSet::from([name])
        }
    });
    all.collect()
}

#[test]
fn every_command_is_in_the_table_and_has_help_and_json() {
    let mut command = freshd::ctl::command();
    command.build();
    let swept: BTreeSet<String> = TABLE.iter().map(|row| row.command.to_owned()).collect();
    assert_eq!(swept, leaves(&command, ""));
    for name in &swept {
        let leaf = name.split(' ').fold(&command, |at, part| {
            at.find_subcommand(part).expect("it is there")
        });
        assert!(leaf.get_about().is_some(), "{name}");
        assert!(
            leaf.get_arguments().any(|it| it.get_id() == "json"),
            "{name}"
        );
    }
}

/// A scope as a provider may name one: it turns the reading direction around. One with control characters would not be
/// stored at all.
const TURNED: &str = "\u{202e}der";

/// Whether a terminal would do more than show it.
fn steers(text: &str) -> bool {
    text.contains(['\u{1b}', '\u{202e}'])
}

struct Scene {
    freshd: Freshd,
    _rotating: Rotating,
    _server: ScriptedServer,
}

impl Scene {
    async fn new() -> Scene {
        let (freshd, rotating, server) = at_rotating_server("rotation = \"strict\"").await;
        rotating.name_scope(TURNED);
        for user in ["anna", "bert"] {
            let tokens = rotating.issue(user).import();
            freshd.import(user, "acme", &tokens).await;
            let refresh = format!("{}/refresh", grant_path(user, "acme"));
            let refreshed = freshd.post(&refresh, &json!({})).await;
            assert_eq!(refreshed.status, 200, "{}", refreshed.text);
            // A provider's word is read leniently: what the commands must not let through is there.
            assert_eq!(freshd.grant(user, "acme").await["scope"], TURNED);
        }
        Scene {
            freshd,
            _rotating: rotating,
            _server: server,
        }
    }

    fn args(&self, row: &Row, args: &str) -> Vec<String> {
        let dir = self.freshd.config.path().to_str().expect("ASCII");
        let config = ["--config".to_owned(), format!("{dir}/freshd.toml")];
        let wanted = format!("{} {args}", row.command).replace('@', dir);
        // check-config takes the file itself.
        let config = config
            .into_iter()
            .filter(|_| args != "/nowhere" || row.command != "check-config");
        let words: Vec<String> = wanted.split_whitespace().map(str::to_owned).collect();
        config.chain(words).collect()
    }

    async fn run(&self, row: &Row, args: &str, option: &str) -> Said {
        let mut all = self.args(row, args);
        all.extend((!option.is_empty()).then(|| option.to_owned()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        freshctl(&all, row.stdin).await
    }
}

fn is_json(text: &str) -> bool {
    let whole = serde_json::from_str::<Value>(text).is_ok();
    whole
        || text
            .lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok())
}

#[tokio::test]
async fn every_command_speaks_json_where_it_is_asked_to_and_a_hint_comes_with_each_failure() {
    let mut scene = Scene::new().await;
    for offline in [false, true] {
        if offline {
            scene.freshd.stop().await;
        }
        for row in TABLE
            .iter()
            .filter(|row| (row.needs == NoDaemon) == offline)
        {
            let said = scene.run(row, row.args, "--json").await;
            // doctor finds fault with a test's host.
            let fine = said.code == Some(0) || row.command == "doctor" && said.code == Some(1);
            assert!(fine, "{}: {said:?}", row.command);
            let (out, name) = (&said.stdout, row.command);
            assert!(
                !out.trim().is_empty() || name == "audit",
                "{name} says nothing"
            );
            assert!(is_json(out), "{name}: {out}");
            assert!(!steers(out), "{name}: {out:?}");
        }
    }
    for row in TABLE {
        if row.command == "doctor" {
            continue; // It does not fail, it finds.
        }
        let said = scene.run(row, row.fails.unwrap_or(row.args), "").await;
        let expected: &[i32] = match row.needs {
            DaemonToRead | DaemonToChange => &[69],
            NoDaemon | Nothing => &[64, 65, 66, 73, 78],
        };
        let code = said.code.expect("no signal");
        assert!(expected.contains(&code), "{}: {said:?}", row.command);
        let hinted =
            said.stderr.contains("\n  hint: ") || code == 64 && said.stderr.contains("--help");
        assert!(hinted, "{}: {}", row.command, said.stderr);
        assert!(said.stderr.starts_with("freshctl: "), "{}", said.stderr);
        assert_eq!(said.stdout, "", "{}", row.command);
    }
}

#[tokio::test]
async fn a_reader_who_hangs_up_hears_nothing_and_is_no_failure() {
    let scene = Scene::new().await;
    for row in TABLE.iter().filter(|row| row.needs == DaemonToRead) {
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_freshctl"))
            .args(scene.args(row, row.args))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("freshctl was built");
        drop(child.stdout.take());
        let output = child.wait_with_output().await.expect("our child");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{}: {said}", row.command);
        assert!(!said.contains("pipe"), "{}: {said}", row.command);
    }
}

/// Runs a line of the shell at a terminal.
async fn at_terminal(line: &str, no_color: bool) -> Output {
    let mut script = tokio::process::Command::new("script");
    script
        .args(["-qec", line, "/dev/null"])
        .stdin(Stdio::null());
    script
        .env("TERM", "xterm")
        .env("LC_ALL", "C")
        .env_remove("NO_COLOR");
    if no_color {
        script.env("NO_COLOR", "1");
    }
    script.output().await.expect("script(1) of util-linux")
}

/// How many columns a line takes: the bytes that are not part of a colour's sequence.
fn columns(line: &str) -> usize {
    let mut parts = line.trim_end().split('\u{1b}');
    let first = parts.next().map_or(0, str::len);
    let rest = parts.filter_map(|part| part.split_once('m'));
    first + rest.map(|(_, text)| text.len()).sum::<usize>()
}

#[tokio::test]
async fn a_terminal_that_was_not_told_its_size_has_80_columns() {
    let scene = Scene::new().await;
    let long = "too-long-a-name-".repeat(5);
    let tokens = json!({"refresh_token": "r", "access_token": "a", "expires_in": 3600});
    scene.freshd.import(&long, "acme", &tokens).await;
    let args = scene.args(&row("grants", "", DaemonToRead), "").join(" ");
    let freshctl = env!("CARGO_BIN_EXE_freshctl");
    for no_color in [true, false] {
        let widest = async |of: u16| {
            let line = format!("stty rows 0 cols {of}; exec {freshctl} {args}");
            let output = at_terminal(&line, no_color).await;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().map(columns).max().unwrap_or(0)
        };
        let unknown = widest(0).await;
        assert!((60..=80).contains(&unknown), "{unknown} columns");
        assert_eq!(unknown, widest(80).await);
        assert!(widest(120).await > 80);
    }
}

#[tokio::test]
async fn a_narrow_terminal_without_colours_and_without_utf_8_gets_plain_text() {
    let scene = Scene::new().await;
    for row in TABLE.iter().filter(|row| row.needs == DaemonToRead) {
        let args = scene.args(row, row.args).join(" ");
        let line = format!(
            "stty cols 40; exec {} {args}",
            env!("CARGO_BIN_EXE_freshctl")
        );
        for no_color in [true, false] {
            let output = at_terminal(&line, no_color).await;
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(0), "{}: {text}", row.command);
            assert!(text.is_ascii(), "{}: {text}", row.command);
            if no_color {
                assert!(!text.contains('\u{1b}'), "{}: {text:?}", row.command);
            }
        }
    }
}
