//! One verb for many grants: counted first, then done, a few at a time.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::Session;
use super::args::Many;
use super::bulk::{TRIES, pause};
use super::call_error::CallError;
use super::client::{Answer, Call, Client, grant_path};
use super::control::confirmed;
use super::failure::{Exit, Failure};
use super::grants::{PAGE, provider_and_account};
use super::output::{count, escape};
use crate::local_api::types::{GrantList, GrantView};

/// Requests in flight at once.
const IN_FLIGHT: usize = 16;
/// So many grants that were refused are told of.
const TOLD: u64 = 20;
/// How long the daemon may wait for one refresh: many wait for the provider's rate.
const REFRESH_WAIT: Duration = Duration::from_secs(60);

/// What is done to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Pause,
    Resume,
    Release,
    Refresh,
    Revoke,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::Release => "release",
            Verb::Refresh => "refresh",
            Verb::Revoke => "revoke",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Verb::Pause => "paused",
            Verb::Resume => "resumed",
            Verb::Release => "released",
            Verb::Refresh => "refreshed",
            Verb::Revoke => "revoked",
        }
    }

    /// Whether it changes anything about a grant like this.
    ///
    /// Resuming many undoes pausing many: users who are away come back by themselves, and what is held or restored is
    /// only for `release`.
    fn concerns(self, grant: &GrantView) -> bool {
        let rests = matches!(grant.reason.as_str(), "inactive" | "unused");
        match (self, grant.state.as_str()) {
            (Verb::Revoke, _) | (Verb::Pause, "active") => true,
            (Verb::Refresh, "active") => grant.has_refresh_token,
            (Verb::Refresh, "paused") => rests && grant.has_refresh_token,
            (Verb::Pause, "paused") => rests,
            (Verb::Resume, "paused") => grant.reason == "admin",
            (Verb::Release, "paused") => is_held(grant),
            _ => false,
        }
    }

    fn call(self, grant: &GrantView) -> Call {
        let path = grant_path(&grant.user, &provider_and_account(grant));
        let call = match self {
            Verb::Pause => Call::post(format!("{path}/pause")),
            Verb::Resume => Call::post(format!("{path}/resume")),
            Verb::Release => Call::post(format!("{path}/resume")).query("release", "true"),
            Verb::Refresh => Call::post(format!("{path}/refresh"))
                .query("activity", "false")
                .query("wait", &REFRESH_WAIT.as_secs().to_string())
                .json(&serde_json::json!({ "generation": grant.generation }))
                .waiting(REFRESH_WAIT),
            Verb::Revoke => Call::new(Method::DELETE, path),
        };
        call.namespace(Some(&grant.namespace))
    }
}

/// Whether a grant waits to be released.
pub(super) fn is_held(grant: &GrantView) -> bool {
    grant.state == "paused" && matches!(grant.reason.as_str(), "held" | "restored")
}

/// What came of it.
#[derive(Default, Serialize)]
struct Totals {
    dry_run: bool,
    /// Grants that the filters leave.
    matched: u64,
    /// Of these: the ones that the verb changes something about.
    concerned: u64,
    changed: u64,
    /// The daemon, or the provider, refused these.
    refused: u64,
}

/// Does `verb` to every grant that the filters leave, after asking where it can't be undone.
pub(super) async fn run(
    session: &mut Session<'_, '_>,
    verb: Verb,
    many: &Many,
    yes: bool,
) -> Result<Exit, Failure> {
    if !many.has_filter() && session.client.namespace().is_none() {
        let message = format!("--all needs to be told of which grants to {}", verb.name());
        return Err(Failure::new(Exit::Usage, message).hint(
            "name at least one of --provider, --state, --missing-scope and --namespace; --dry-run shows how many these are",
        ));
    }
    let asks = verb == Verb::Revoke && !yes;
    let watched = session.console.terminals.stderr;
    let mut expected = Totals::default();
    if many.dry_run || asks || watched {
        expected = survey(session, verb, many).await?;
    }
    if many.dry_run {
        return summary(session, verb, &expected);
    }
    if asks && expected.concerned > 0 {
        let what = count(expected.concerned, "grant");
        if !confirmed(session, &what)? {
            session.console.note("nothing was revoked");
            return Ok(Exit::Ok);
        }
    }
    let mut totals = Totals::default();
    let bar = bar(watched, expected.concerned);
    let done = work(session, verb, many, &mut totals, &bar).await;
    bar.finish_and_clear();
    done.map_err(|error| {
        let so_far = format!("{} {}", verb.done(), count(totals.changed, "grant"));
        error.hint_also(format!("{so_far} before that; run it again for the rest"))
    })?;
    summary(session, verb, &totals)
}

/// A bar on a terminal, nothing elsewhere.
pub(super) fn bar(terminal: bool, length: u64) -> ProgressBar {
    if !terminal {
        return ProgressBar::hidden();
    }
    let shape = "{bar:30} {pos} of {len} {msg}";
    ProgressBar::new(length)
        .with_style(ProgressStyle::with_template(shape).expect("the template is well-formed"))
}

/// Counts what the verb is for.
async fn survey(session: &mut Session<'_, '_>, verb: Verb, many: &Many) -> Result<Totals, Failure> {
    let mut cursor = None;
    let mut totals = Totals {
        dry_run: many.dry_run,
        ..Totals::default()
    };
    loop {
        let page = page(&session.client, verb, many, cursor.as_deref()).await?;
        totals.matched += page.grants.len() as u64;
        let concerned = page.grants.iter().filter(|grant| verb.concerns(grant));
        totals.concerned += concerned.count() as u64;
        match following(&cursor, page.next_cursor) {
            None => return Ok(totals),
            next => cursor = next,
        }
    }
}

/// A cursor that does not move would never end.
fn following(before: &Option<String>, next: Option<String>) -> Option<String> {
    next.filter(|next| Some(next) != before.as_ref())
}

async fn page(
    client: &Client,
    verb: Verb,
    many: &Many,
    cursor: Option<&str>,
) -> Result<GrantList, Failure> {
    let state = many.state.and_then(|state| state.to_possible_value());
    let state = state.as_ref().map(clap::builder::PossibleValue::get_name);
    // What is not active has an index of its own.
    let state = state.or(match verb {
        Verb::Resume | Verb::Release => Some("paused"),
        _ => None,
    });
    let filters = [
        ("state", state),
        ("provider", many.of.as_deref()),
        ("missing_scope", many.missing_scope.as_deref()),
        ("cursor", cursor),
    ];
    let call = Call::get("/v1/grants").query("limit", &PAGE.to_string());
    let call = filters
        .into_iter()
        .fold(call, |call, (name, value)| match value {
            Some(value) => call.query(name, value),
            None => call,
        });
    client.send(&call).await?.read()
}

async fn work(
    session: &mut Session<'_, '_>,
    verb: Verb,
    many: &Many,
    totals: &mut Totals,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let mut cursor = None;
    loop {
        let page = page(&session.client, verb, many, cursor.as_deref()).await?;
        let mut flights = JoinSet::new();
        totals.matched += page.grants.len() as u64;
        for grant in page.grants.into_iter().filter(|grant| verb.concerns(grant)) {
            if flights.len() == IN_FLIGHT {
                land(session, &mut flights, totals, bar).await?;
            }
            totals.concerned += 1;
            flights.spawn(fly(Arc::clone(&session.client), verb, grant));
        }
        while !flights.is_empty() {
            land(session, &mut flights, totals, bar).await?;
        }
        match following(&cursor, page.next_cursor) {
            None => return Ok(()),
            next => cursor = next,
        }
    }
}

/// Does it to one grant, and again where that may help.
async fn fly(client: Arc<Client>, verb: Verb, grant: GrantView) -> Flight {
    let call = verb.call(&grant);
    let mut tries = 0;
    let answer = loop {
        tries += 1;
        match client.send(&call).await {
            Err(error) if error.may_pass() && tries < TRIES => {
                tokio::time::sleep(pause(&error, tries)).await;
            }
            answer => break answer,
        }
    };
    (grant, answer)
}

type Flight = (GrantView, Result<Answer, CallError>);

/// Counts what became of one. A grant that is gone meanwhile counts nothing.
async fn land(
    session: &mut Session<'_, '_>,
    flights: &mut JoinSet<Flight>,
    totals: &mut Totals,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let Some(flight) = flights.join_next().await else {
        return Ok(());
    };
    let (grant, answer) =
        flight.map_err(|_| Failure::new(Exit::Internal, "a request ended unexpectedly"))?;
    bar.inc(1);
    match answer {
        Ok(answer) => {
            let done: Done = answer.read()?;
            // A token that still lives is answered whatever became of its refresh (I4).
            match (done.generation, done.changed) {
                (Some(generation), _) if generation > grant.generation => totals.changed += 1,
                (Some(_), _) => refused(session, totals, bar, &grant, "it was not refreshed"),
                (None, changed) => totals.changed += changed,
            }
        }
        Err(CallError::Refused(problem, _)) if problem.status == 404 => {}
        Err(error @ CallError::Refused(..)) => {
            refused(session, totals, bar, &grant, &error.to_string());
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// What a verb answers with: a number of grants, or a token.
#[derive(Deserialize)]
struct Done {
    #[serde(default)]
    changed: u64,
    generation: Option<u64>,
}

/// Counts a grant that was refused, and tells of the first ones.
fn refused(
    session: &mut Session<'_, '_>,
    totals: &mut Totals,
    bar: &ProgressBar,
    grant: &GrantView,
    why: &str,
) {
    totals.refused += 1;
    if totals.refused > TOLD {
        return;
    }
    let (user, provider) = (&grant.user, provider_and_account(grant));
    let text = format!("{user} at {provider}: {why}; see: freshctl why {user} {provider}");
    bar.suspend(|| session.console.note(&text));
}

fn summary(session: &mut Session<'_, '_>, verb: Verb, totals: &Totals) -> Result<Exit, Failure> {
    let exit = match totals.refused {
        0 => Exit::Ok,
        _ => Exit::Attention,
    };
    if session.look.json {
        session.console.print_json(totals)?;
        return Ok(exit);
    }
    let mut text = if totals.dry_run {
        let (name, concerned) = (verb.name(), count(totals.concerned, "grant"));
        format!("would {name} {concerned}, of {} that match", totals.matched)
    } else {
        format!("{} {}", verb.done(), count(totals.changed, "grant"))
    };
    if totals.refused > 0 {
        text.push_str(&format!("; {} refused", totals.refused));
    }
    session.console.print(&format!("{}\n", escape(&text)))?;
    Ok(exit)
}
