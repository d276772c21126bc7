//! `doctor`: looks at everything around the daemon that it can't mend itself, and says what to do about each finding.
//!
//! Nothing is changed, and no secret leaves: token endpoints are sent an empty form.

mod host;
mod network;
mod service;

use std::path::Path;

use serde::Serialize;

use super::console::Console;
use super::failure::{Exit, Failure};
use super::local::{Place, defaults};
use super::output::{Look, escape};
use crate::config;

const AS_ROOT: &str = "run freshctl doctor as root, or as the user that freshd runs as";

/// How a finding is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// It could not be looked at from here.
    Unknown,
    /// Somebody should do something.
    Wrong,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    /// What was looked at: `config`, `key`, `state` …
    check: String,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    todo: Option<String>,
}

/// What has been found so far.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        check: &str,
        verdict: Verdict,
        found: impl Into<String>,
        todo: Option<String>,
    ) {
        self.0.push(Finding {
            check: check.to_owned(),
            verdict,
            found: found.into(),
            todo,
        });
    }

    fn ok(&mut self, check: &str, found: impl Into<String>) {
        self.add(check, Verdict::Ok, found, None);
    }

    fn unknown(&mut self, check: &str, found: impl Into<String>, todo: impl Into<String>) {
        self.add(check, Verdict::Unknown, found, Some(todo.into()));
    }

    fn wrong(&mut self, check: &str, found: impl Into<String>, todo: impl Into<String>) {
        self.add(check, Verdict::Wrong, found, Some(todo.into()));
    }

    fn wrongs(&self) -> usize {
        let wrong = |finding: &&Finding| finding.verdict == Verdict::Wrong;
        self.0.iter().filter(wrong).count()
    }
}

/// Looks at everything; without the network where `offline`.
pub(super) fn doctor(
    offline: bool,
    socket: Option<&Path>,
    config: Option<&Path>,
    look: Look,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot start: {error}")))?;
    let mut findings = Findings::default();
    let defaults = defaults(config, console);
    let file = config.unwrap_or(&defaults.file);
    match config::look(file, &defaults) {
        Ok((described, closed)) => {
            let files = described.files.join(", ");
            match closed.is_empty() {
                true => findings.ok("config", format!("{files} is sound")),
                false => findings.unknown(
                    "config",
                    format!(
                        "{files} is sound but for {}, which we may not read",
                        closed.join(", ")
                    ),
                    AS_ROOT,
                ),
            }
            let place = Place {
                defaults,
                described,
            };
            host::key(&mut findings, &place);
            host::state(&mut findings, &place);
            host::room(&mut findings, &place);
            host::clock(&mut findings, &place);
            if offline {
                findings.unknown("providers", "left out", "run it without --offline");
            } else {
                runtime.block_on(network::providers(&mut findings, &place.described));
            }
            service::sockets(&mut findings, &place);
        }
        Err(errors) => {
            for error in &errors {
                if error.message.ends_with("permission denied") {
                    findings.unknown("config", error.to_string(), AS_ROOT);
                    continue;
                }
                findings.wrong(
                    "config",
                    error.to_string(),
                    "mend it (freshctl check-config says the same), then systemctl reload freshd",
                );
            }
        }
    }
    service::sandbox(&mut findings);
    let socket = super::socket::find(socket, config, console.env, console.root);
    runtime.block_on(service::daemon(&mut findings, socket));
    say(&findings, look, console)
}

fn say(findings: &Findings, look: Look, console: &mut Console<'_>) -> Result<Exit, Failure> {
    let wrongs = findings.wrongs();
    let exit = match wrongs {
        0 => Exit::Ok,
        _ => Exit::Attention,
    };
    if look.json {
        console.print_json(&serde_json::json!({
            "well": wrongs == 0,
            "findings": findings.0,
        }))?;
        return Ok(exit);
    }
    let paint = |verdict| {
        let (word, code) = match verdict {
            Verdict::Ok => ("ok   ", "32"),
            Verdict::Unknown => ("?    ", "33"),
            Verdict::Wrong => ("wrong", "31"),
        };
        match look.terminal && look.color {
            true => format!("\u{1b}[{code}m{word}\u{1b}[0m"),
            false => word.to_owned(),
        }
    };
    for finding in &findings.0 {
        let (check, found) = (escape(&finding.check), escape(&finding.found));
        console.print(&format!("{}  {check}: {found}\n", paint(finding.verdict)))?;
        for line in finding.todo.iter().flat_map(|todo| todo.lines()) {
            console.print(&format!("         hint: {}\n", escape(line)))?;
        }
    }
    console.print(&match wrongs {
        0 => "\nnothing is wrong\n".to_owned(),
        1 => "\n1 thing is wrong\n".to_owned(),
        n => format!("\n{n} things are wrong\n"),
    })?;
    Ok(exit)
}
