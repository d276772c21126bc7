//! `why`: the story of a grant, told as a person would.
//!
//! [`tell`] is all the wording: from what the daemon answers to text, with no clock and no request.
//! The timeline is here, the cause in `cause`.

use super::Session;
use super::cause::Teller;
use super::client::{Call, grant_path};
use super::failure::{Exit, Failure};
use super::grants::provider_and_account;
use super::output::{Look, count, escape, table};
use crate::local_api::types::{History, HistoryEntry};
use crate::refresh::time::UnixTime;

/// A timeline longer than this begins with a summary of what came before.
const SHOWN: usize = 24;

/// Tells what happened to a grant, why it is as it is, and what to do.
pub(super) async fn why(
    session: &mut Session<'_, '_>,
    user: &str,
    provider: &str,
) -> Result<Exit, Failure> {
    let path = format!("{}/history", grant_path(user, provider));
    let answer = session.client.send(&Call::get(path)).await?;
    if session.look.json {
        session.console.print_body(&answer.body)?;
    } else {
        let story: History = answer.read()?;
        let text = tell(session.look, &story, answer.now);
        session.console.print(&text)?;
    }
    Ok(Exit::Ok)
}

/// Tells a story: the timeline, the cause, what bears on it besides, what to do.
pub(super) fn tell(look: Look, story: &History, now: Option<UnixTime>) -> String {
    let teller = Teller { story, now };
    let grant = &story.grant;
    let state = match grant.reason.as_str() {
        "" => grant.state.clone(),
        reason => format!("{} ({reason})", grant.state),
    };
    let (cause, besides) = teller.cause();
    let mut out = format!(
        "{} at {}: {}\n\n",
        escape(&grant.user),
        escape(&provider_and_account(grant)),
        escape(&state)
    );
    out.push_str(&table(look, "  ", &[], &timeline(&story.entries)));
    out.push_str(&format!("\nWhy: {}\n", escape(&cause.why)));
    for more in besides {
        out.push_str(&format!("     {}\n", escape(&more)));
    }
    out.push_str(&format!("  hint: {}\n", escape(&cause.hint)));
    out
}

/// Returns a moment without its fraction of a second.
pub(super) fn whole(at: &str) -> String {
    UnixTime::from_rfc3339(at).map_or_else(
        || at.to_owned(),
        |at| UnixTime::from_secs(at.as_millis().div_euclid(1000)).rfc3339(),
    )
}

/// Returns the timeline's rows: when, and what happened.
fn timeline(entries: &[HistoryEntry]) -> Vec<Vec<String>> {
    let hidden = entries.len().saturating_sub(SHOWN);
    // A summary of one entry is longer than the entry.
    let hidden = if hidden == 1 { 0 } else { hidden };
    let (before, shown) = entries.split_at(hidden);
    let summary = before.first().zip(before.last()).map(|(first, last)| {
        let end = last.until.as_ref().unwrap_or(&last.at);
        vec![span(&first.at, Some(end)), summary(before)]
    });
    let shown = shown.iter().map(|entry| {
        // A copy's date stands in the text; what counts is when it was restored.
        if entry.event == "restored" {
            let at = entry.until.as_ref().unwrap_or(&entry.at);
            return vec![whole(at), happened(entry)];
        }
        // The end of an interruption is when it was found, and stands in the text.
        let until = entry
            .until
            .as_ref()
            .filter(|_| entry.event != "interrupted");
        vec![span(&entry.at, until), happened(entry)]
    });
    summary.into_iter().chain(shown).collect()
}

fn span(from: &str, until: Option<&String>) -> String {
    let from = whole(from);
    match until.map(|until| whole(until)) {
        Some(until) if until != from => format!("{from} to {until}"),
        _ => from,
    }
}

/// Returns what earlier entries come to.
fn summary(entries: &[HistoryEntry]) -> String {
    let total = |event: &str| -> u64 {
        let times = entries.iter().filter(|e| e.event == event).map(|e| e.times);
        times.sum()
    };
    let done = refreshes(total("refreshed"));
    let failures = total("failed") + total("unanswered") + total("interrupted");
    let text = format!("{done}, {}", count(failures, "failure"));
    let others = entries.iter().filter(|entry| {
        !matches!(
            entry.event.as_str(),
            "refreshed" | "failed" | "unanswered" | "interrupted"
        )
    });
    match others.count() as u64 {
        0 => text,
        n => format!("{text}, {}", count(n, "other change")),
    }
}

/// Returns a fingerprint as it is shown, or words for none.
pub(super) fn token(fingerprint: Option<&String>) -> String {
    fingerprint.map_or_else(
        || "without a refresh token".to_owned(),
        |token| format!("refresh token {token}"),
    )
}

/// Says one entry.
fn happened(entry: &HistoryEntry) -> String {
    let generation = entry.generation;
    let reason = entry.reason.as_deref().unwrap_or_default();
    match entry.event.as_str() {
        "refreshed" => refreshed(entry),
        "failed" | "unanswered" => failed(entry),
        "interrupted" => {
            let presented = token(entry.presented.as_ref());
            let found = entry.until.as_deref().map(whole);
            let found = found.map_or_else(String::new, |at| format!(" (found {at})"));
            match entry.times {
                1 => format!(
                    "a request with {presented} was cut off: freshd ended before the answer came{found}"
                ),
                n => format!(
                    "{n} requests with {presented} were cut off: freshd ended before the answers came{found}"
                ),
            }
        }
        "superseded" => format!(
            "an answer came too late, {}; it was queued for revocation",
            token(entry.received.as_ref())
        ),
        event @ ("imported" | "replaced") => {
            let done = match event {
                "imported" => "imported",
                _ => "replaced by an import",
            };
            let held = if reason == "held" {
                ", held until it is released"
            } else {
                ""
            };
            let received = token(entry.received.as_ref());
            format!("{done}: generation {generation}, {received}{held}")
        }
        "resumed" => match entry.by.as_deref() {
            Some("admin") => "resumed by an admin".to_owned(),
            Some("reader") => "resumed: the user is back".to_owned(),
            _ => "resumed".to_owned(),
        },
        "paused" => match reason {
            "admin" => "paused by an admin".to_owned(),
            "inactive" => "paused: the user was away (inactive)".to_owned(),
            "unused" => "paused: nobody read it (unused)".to_owned(),
            "quarantined" => "quarantined: a sealed value of it did not open".to_owned(),
            reason => format!("paused ({reason})"),
        },
        "restored" => format!(
            "restored from a copy of {}; paused until an admin releases it",
            whole(&entry.at)
        ),
        "needs-authorization" => format!("needs authorization: {reason}"),
        other => format!("{other} {reason}").trim_end().to_owned(),
    }
}

fn refreshed(entry: &HistoryEntry) -> String {
    let generation = entry.generation;
    let many = entry.times > 1;
    let (how, last) = if many {
        let n = entry.times;
        (format!("{n} refreshes, all well"), "the last ")
    } else {
        ("refreshed".to_owned(), "")
    };
    match (&entry.presented, &entry.received) {
        (Some(presented), Some(received)) if presented != received => format!(
            "{how}: generation {generation}, {last}presented {presented}, received {received}"
        ),
        (_, Some(kept)) => format!("{how}: generation {generation}, refresh token {kept} stays"),
        _ => format!("{how}: generation {generation}"),
    }
}

fn failed(entry: &HistoryEntry) -> String {
    let times = match entry.times {
        1 => String::new(),
        n => format!("{n} times "),
    };
    let presented = entry.presented.as_deref().unwrap_or("none");
    let outcome = outcome(entry);
    match kind(entry) {
        Kind::NotSent => format!("{times}not sent: {outcome}"),
        Kind::NoAnswer if entry.event == "unanswered" => {
            format!("{times}no whole answer ({outcome}); presented {presented}, which may be spent")
        }
        Kind::NoAnswer => format!("{times}no whole answer ({outcome}); presented {presented}"),
        Kind::Refused => format!("{times}refused with {outcome}; presented {presented}"),
    }
}

/// How an attempt without a token set ended.
pub(super) enum Kind {
    NotSent,
    NoAnswer,
    Refused,
}

pub(super) fn kind(entry: &HistoryEntry) -> Kind {
    let code = entry.code.as_deref().unwrap_or_default();
    if entry.event == "unanswered" || code.starts_with("unknown-") {
        Kind::NoAnswer
    } else if entry.status.is_none() {
        Kind::NotSent
    } else {
        Kind::Refused
    }
}

/// Returns an outcome in short: `503`, `400 invalid_grant`, `connect`, `deadline`.
pub(super) fn outcome(entry: &HistoryEntry) -> String {
    let code = entry.code.as_deref().unwrap_or_default();
    match entry.status {
        Some(status) if code == format!("http-{status}") => status.to_string(),
        Some(status) => format!("{status} {code}"),
        None => code.strip_prefix("unknown-").unwrap_or(code).to_owned(),
    }
}

/// Returns `1 refresh`, `2 refreshes`.
pub(super) fn refreshes(n: u64) -> String {
    match n {
        1 => "1 refresh".to_owned(),
        n => format!("{n} refreshes"),
    }
}
