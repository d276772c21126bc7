//! `grants` and `show`.

use clap::ValueEnum;
use serde_json::Value;

use super::Session;
use super::args::Grants;
use super::client::{Answer, Call, grant_path, user_path};
use super::failure::{Exit, Failure};
use super::output::{Look, Pages, exact, or_dash, relative_or_dash, table};
use crate::local_api::types::{GrantList, GrantView, UserView};
use crate::refresh::time::UnixTime;

/// The route's own upper bound.
pub(super) const PAGE: u64 = 1000;

/// What to do about a grant that is not refreshed; `None` where nothing has to be done.
pub(super) fn advice(state: &str, reason: &str) -> Option<&'static str> {
    match (state, reason) {
        ("needs-authorization", "revoked-or-used-elsewhere") => Some(
            "the user has to authorize again; if it recurs, look for another program that still refreshes this grant",
        ),
        ("needs-authorization", "no-refresh-token") => {
            Some("the user has to authorize again, with offline access; or import a refresh token")
        }
        ("needs-authorization", "refused") => Some(
            "the provider refuses it and does not say why: look at the app's registration there; the user has to authorize again",
        ),
        ("needs-authorization", "expired") => Some(
            "the user has to authorize again; this provider refreshes a token only while the old one lives, so look for an outage before it ended",
        ),
        ("needs-authorization", _) => Some("the user has to authorize again"),
        ("paused", "admin") => Some("an admin paused it; freshctl resume USER PROVIDER"),
        ("paused", "held") => Some("imported with --hold; freshctl release USER PROVIDER"),
        ("paused", "restored") => {
            Some("it came back with a restored copy; freshctl release USER PROVIDER")
        }
        ("paused", "quarantined") => Some(
            "a sealed value of it does not open; import it anew with --replace, or let the user authorize again",
        ),
        ("paused", _) => Some("nothing: it resumes by itself when the user is back"),
        _ => None,
    }
}

/// Lists grants, page by page.
pub(super) async fn list(session: &mut Session<'_, '_>, args: &Grants) -> Result<Exit, Failure> {
    let mut wanted = args.limit.unwrap_or(u64::MAX);
    let mut cursor: Option<String> = None;
    let (mut first, mut pages) = (true, Pages::default());
    loop {
        let answer = session
            .client
            .send(&page(args, wanted.min(PAGE), cursor.as_deref()))
            .await?;
        let list: GrantList = answer.read()?;
        print_page(session, &answer, &list.grants, first, &mut pages)?;
        first = false;
        wanted = wanted.saturating_sub(list.grants.len() as u64);
        // A cursor that does not move would never end.
        let next = list
            .next_cursor
            .filter(|next| Some(next) != cursor.as_ref());
        if next.is_none() || wanted == 0 {
            if session.look.json {
                session.console.print("]}\n")?;
            } else if next.is_some() {
                session
                    .console
                    .note("there are more; a higher --limit shows them");
            }
            return Ok(Exit::Ok);
        }
        cursor = next;
    }
}

/// Makes the request for a page of what the filters leave.
pub(super) fn page(args: &Grants, limit: u64, cursor: Option<&str>) -> Call {
    let state = args.state.and_then(|state| state.to_possible_value());
    let filters = [
        (
            "state",
            state.as_ref().map(clap::builder::PossibleValue::get_name),
        ),
        ("reason", args.reason.as_deref()),
        ("ending", args.ending.then_some("true")),
        ("failing", args.failing.then_some("true")),
        ("provider", args.provider.as_deref()),
        ("user", args.user.as_deref()),
        ("missing_scope", args.missing_scope.as_deref()),
        ("cursor", cursor),
    ];
    let call = Call::get("/v1/grants").query("limit", &limit.to_string());
    filters
        .into_iter()
        .fold(call, |call, (name, value)| match value {
            Some(value) => call.query(name, value),
            None => call,
        })
}

/// Prints one page: a table, or its part of one JSON list in the shape of a single page.
fn print_page(
    session: &mut Session<'_, '_>,
    answer: &Answer,
    grants: &[GrantView],
    first: bool,
    pages: &mut Pages,
) -> Result<(), Failure> {
    if !session.look.json {
        if first && grants.is_empty() {
            session.console.note("no grant is like that");
            return Ok(());
        }
        // One namespace needs no column; several do, and which ones is not known before the last page.
        let mut header = HEADER.to_vec();
        let mut rows: Vec<Vec<String>> =
            grants.iter().map(|grant| row(grant, answer.now)).collect();
        if session.client.namespace().is_none() {
            header.insert(0, "NAMESPACE");
            for (row, grant) in rows.iter_mut().zip(grants) {
                row.insert(0, grant.namespace.clone());
            }
        }
        return session
            .console
            .print(&pages.next(session.look, &header, &rows));
    }
    // As values, so that members this version does not know stay.
    let body: Value = answer.read()?;
    session
        .console
        .print(if first { "{\"grants\":[" } else { "" })?;
    for (n, grant) in body["grants"].as_array().into_iter().flatten().enumerate() {
        let comma = if first && n == 0 { "" } else { "," };
        session.console.print(comma)?;
        session.console.print_json(grant)?;
    }
    Ok(())
}

const HEADER: [&str; 8] = [
    "USER", "PROVIDER", "STATE", "REASON", "EXPIRES", "DUE", "GEN", "FAILURES",
];

fn row(grant: &GrantView, now: Option<UnixTime>) -> Vec<String> {
    vec![
        grant.user.clone(),
        provider_and_account(grant),
        grant.state.clone(),
        or_dash(&grant.reason).to_owned(),
        relative_or_dash(grant.expires_at.as_deref(), now),
        relative_or_dash(grant.due_at.as_deref(), now),
        grant.generation.to_string(),
        failures(grant),
    ]
}

/// Returns `provider`, or `provider:account`.
pub(super) fn provider_and_account(grant: &GrantView) -> String {
    if grant.account.is_empty() {
        return grant.provider.clone();
    }
    format!("{}:{}", grant.provider, grant.account)
}

fn failures(grant: &GrantView) -> String {
    match (grant.failures, &grant.last_failure) {
        (0, _) => "-".to_owned(),
        (n, Some(code)) => format!("{n} ({code})"),
        (n, None) => n.to_string(),
    }
}

/// Shows a user, or one grant.
pub(super) async fn show(
    session: &mut Session<'_, '_>,
    user: &str,
    provider: Option<&str>,
) -> Result<Exit, Failure> {
    let path = provider.map_or_else(|| user_path(user), |provider| grant_path(user, provider));
    let answer = session.client.send(&Call::get(path)).await?;
    if session.look.json {
        session.console.print_body(&answer.body)?;
    } else if provider.is_some() {
        let grant: GrantView = answer.read()?;
        session
            .console
            .print(&details(session.look, &grant, answer.now))?;
    } else {
        let user: UserView = answer.read()?;
        session
            .console
            .print(&user_text(session.look, &user, answer.now))?;
    }
    Ok(Exit::Ok)
}

/// Says what is known of a user.
pub(super) fn user_text(look: Look, user: &UserView, now: Option<UnixTime>) -> String {
    let active = user
        .last_active_at
        .as_deref()
        .map_or_else(|| "not known".to_owned(), |at| exact(at, now));
    let rows = [
        vec!["user".to_owned(), user.user.clone()],
        vec!["namespace".to_owned(), user.namespace.clone()],
        vec!["last active".to_owned(), active],
    ];
    let grants: Vec<Vec<String>> = user.grants.iter().map(|grant| row(grant, now)).collect();
    format!(
        "{}\n{}",
        table(look, "", &[], &rows),
        table(look, "", &HEADER, &grants)
    )
}

/// Says everything about one grant, one line each.
fn details(look: Look, grant: &GrantView, now: Option<UnixTime>) -> String {
    let at = |moment: &Option<String>| {
        moment
            .as_deref()
            .map_or_else(|| "-".to_owned(), |moment| exact(moment, now))
    };
    let mut rows = vec![
        ("user", grant.user.clone()),
        ("namespace", grant.namespace.clone()),
        ("provider", provider_and_account(grant)),
        ("state", grant.state.clone()),
        ("reason", or_dash(&grant.reason).to_owned()),
        ("since", exact(&grant.since, now)),
        ("expires", at(&grant.expires_at)),
        ("next due", at(&grant.due_at)),
        ("generation", grant.generation.to_string()),
        (
            "refresh token",
            match &grant.refresh_token_expires_at {
                Some(ends) => format!("ends {}", exact(ends, now)),
                None => if grant.has_refresh_token { "yes" } else { "no" }.to_owned(),
            },
        ),
        (
            "scope",
            grant.scope.clone().unwrap_or_else(|| "-".to_owned()),
        ),
        ("imported", exact(&grant.imported_at, now)),
        ("refreshed", at(&grant.refreshed_at)),
        ("last attempt", at(&grant.attempted_at)),
        ("failures", failures(grant)),
        ("unread refreshes", grant.unused_refreshes.to_string()),
    ];
    if let Some(text) = advice(&grant.state, &grant.reason) {
        rows.push(("what to do", text.to_owned()));
    }
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    table(look, "", &[], &rows)
}
