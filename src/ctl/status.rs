//! `status`: whether all is well, and if not, whom it concerns and what to do, in one screen.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::Session;
use super::client::{Answer, Call};
use super::failure::{Exit, Failure};
use super::grants::page;
use super::output::{Look, count, escape, fill, relative, relative_or_dash, size, table};
use super::troubles::{Finding, Findings, find};
use crate::local_api::types::{GrantList, GrantView, Status};
use crate::refresh::time::UnixTime;

/// So many of the users whom something concerns are named; there may be a million.
const NAMED: u64 = 3;
/// So many providers are listed: more would push what matters off the screen.
const LISTED: usize = 8;

/// Says whether all is well.
pub(super) async fn status(session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let answer = session.client.send(&Call::get("/v1/status")).await?;
    let status: Status = answer.read()?;
    let mut findings = find(&status, answer.now);
    let all = findings.troubles.iter_mut().chain(&mut findings.notices);
    for finding in all {
        name_users(session, finding).await;
    }
    if session.look.json {
        let told = json(&answer, &findings)?;
        session.console.print_json(&told)?;
    } else {
        let text = screen(session.look, &status, &findings, answer.now);
        session.console.print(&text)?;
    }
    Ok(if findings.troubles.is_empty() {
        Exit::Ok
    } else {
        Exit::Attention
    })
}

/// Names a few of those whom it concerns. Where they can't be read now, the rest is told all the same.
async fn name_users(session: &Session<'_, '_>, finding: &mut Finding) {
    let Some(whom) = &mut finding.whom else {
        return;
    };
    let answer = session.client.send(&page(&whom.filter, NAMED, None)).await;
    let list = answer.ok().and_then(|it| it.read::<GrantList>().ok());
    let mut grants = list.map_or_else(Vec::new, |list| list.grants);
    grants.truncate(NAMED as usize);
    whom.users = grants.iter().map(user).collect();
    whom.users.dedup();
}

fn user(grant: &GrantView) -> String {
    match grant.namespace.as_str() {
        "default" => grant.user.clone(),
        namespace => format!("{} ({namespace})", grant.user),
    }
}

/// The daemon's own answer, and what follows from it.
fn json(answer: &Answer, findings: &Findings) -> Result<Value, Failure> {
    let mut told: Map<String, Value> = answer.read()?;
    let value = |list| serde_json::to_value(list).expect("our own shapes serialize");
    told.insert("well".to_owned(), findings.troubles.is_empty().into());
    told.insert("troubles".to_owned(), value(&findings.troubles));
    told.insert("notices".to_owned(), value(&findings.notices));
    Ok(Value::Object(told))
}

fn screen(look: Look, status: &Status, findings: &Findings, now: Option<UnixTime>) -> String {
    let all = status.grants.iter().map(|count| count.grants).sum();
    let mut out = match findings.troubles.len() as u64 {
        0 => format!("All is well: freshd keeps {}\n", count(all, "grant")),
        1 => format!("1 thing needs you; freshd keeps {}\n", count(all, "grant")),
        n => format!(
            "{n} things need you; freshd keeps {}\n",
            count(all, "grant")
        ),
    };
    for (nth, trouble) in findings.troubles.iter().enumerate() {
        out.push('\n');
        say(&mut out, look, &format!("{}. ", nth + 1), trouble);
    }
    if !findings.notices.is_empty() {
        out.push_str("\nAlso, but no trouble:\n");
    }
    for notice in &findings.notices {
        say(&mut out, look, "- ", notice);
    }
    out.push('\n');
    out.push_str(&facts(look, status, now));
    out.push_str(&providers(look, status));
    out
}

fn say(out: &mut String, look: Look, mark: &str, finding: &Finding) {
    // A refused configuration has several lines.
    let what: Vec<String> = finding.what.lines().map(escape).collect();
    fill(out, look, mark, &what.join("; "));
    if let Some(whom) = &finding.whom {
        let users: Vec<String> = whom.users.iter().map(|user| escape(user)).collect();
        let more = whom.grants.saturating_sub(users.len() as u64);
        let mut text = match (users.is_empty(), more) {
            (true, _) => count(whom.grants, "grant"),
            (false, 0) => users.join(", "),
            (false, more) => format!("{} and {more} more", users.join(", ")),
        };
        let _ = write!(text, ": {}", whom.list);
        fill(out, look, "   whom  ", &text);
    }
    for (nth, step) in finding.todo.iter().enumerate() {
        let mark = if nth == 0 { "   do    " } else { "         " };
        fill(out, look, mark, &escape(step));
    }
}

/// Whether another host has the store now.
fn rests(status: &Status) -> bool {
    status.state == "moved"
}

fn facts(look: Look, status: &Status, now: Option<UnixTime>) -> String {
    let free = status.condition.free_bytes;
    let free = free.map_or_else(String::new, |free| format!(", {} free", size(free)));
    let copies = match &status.condition.copies {
        None => "none by night: maintenance.backup-dir is not set".to_owned(),
        Some(copies) => match &copies.newest_at {
            Some(at) => format!("the newest {}, in {}", relative(at, now), copies.dir),
            None => format!("none yet in {}", copies.dir),
        },
    };
    let in_flight = count(status.in_flight as u64, "request");
    let next = match rests(status) {
        true => "rests after a final backup: nothing is due here".to_owned(),
        false => format!(
            "next due {}",
            relative_or_dash(status.next_due_at.as_deref(), now)
        ),
    };
    let rows = [
        (
            "freshd",
            format!(
                "{}, started {}",
                status.version,
                relative(&status.started_at, now)
            ),
        ),
        ("schedule", format!("{in_flight} in flight, {next}")),
        ("store", format!("{}{free}", status.store)),
        ("copies", copies),
    ];
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    table(look, "", &[], &rows)
}

/// One line for each provider, those with the most grants first.
fn providers(look: Look, status: &Status) -> String {
    let mut all: Vec<(u64, Vec<String>)> = status
        .providers
        .iter()
        .map(|provider| {
            let sum = |state: &str, reasons: Option<&[&str]>| {
                let of = provider.grants.iter().filter(|it| {
                    it.state == state && reasons.is_none_or(|all| all.contains(&it.reason.as_str()))
                });
                of.map(|it| it.grants).sum::<u64>()
            };
            let away = sum("paused", Some(&["inactive", "unused"]));
            let (active, needing) = (sum("active", None), sum("needs-authorization", None));
            let paused = sum("paused", None) - away;
            let row = vec![
                provider.name.clone(),
                match rests(status) {
                    true => "rests".to_owned(),
                    false => provider.state.clone(),
                },
                active.to_string(),
                away.to_string(),
                paused.to_string(),
                needing.to_string(),
            ];
            (active + away + paused + needing, row)
        })
        .collect();
    if all.is_empty() {
        return String::new();
    }
    all.sort_by_key(|(grants, _)| std::cmp::Reverse(*grants));
    let rows: Vec<Vec<String>> = all
        .iter()
        .take(LISTED)
        .map(|(_, row)| row.clone())
        .collect();
    let header = [
        "PROVIDER",
        "STATE",
        "ACTIVE",
        "AWAY",
        "PAUSED",
        "NEED AUTHORIZATION",
    ];
    let mut out = format!("\n{}", table(look, "", &header, &rows));
    let more = all.len().saturating_sub(LISTED);
    if more > 0 {
        let _ = writeln!(
            out,
            "and {}: freshctl providers",
            count(more as u64, "more provider")
        );
    }
    out
}
