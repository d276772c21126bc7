//! `activity`, `pause`, `resume`, `release`, `revoke`: what changes the standing of grants.

use std::io::{BufRead, BufReader};
use std::sync::Arc;

use hyper::Method;
use tokio::task::JoinSet;

use super::Session;
use super::args::{Release, Target};
use super::call_error::CallError;
use super::client::{Answer, Call, Client, grant_path, provider_path, user_path};
use super::failure::{Exit, Failure};
use super::grants::{PAGE, provider_and_account, user_text};
use super::output::{count, escape};
use crate::local_api::types::{Changed, GrantList, GrantView, UserView};

/// Requests of `release --all` in flight at once.
const IN_FLIGHT: usize = 16;

/// Notes that a user is back.
pub(super) async fn activity(session: &mut Session<'_, '_>, user: &str) -> Result<Exit, Failure> {
    let answer = session
        .client
        .send(&Call::post(format!("{}/activity", user_path(user))))
        .await?;
    if session.look.json {
        session.console.print_body(&answer.body)?;
    } else {
        let user: UserView = answer.read()?;
        session
            .console
            .print(&user_text(session.look, &user, answer.now))?;
    }
    Ok(Exit::Ok)
}

/// Which way a standing is changed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Pause,
    Resume,
}

/// Pauses or resumes.
pub(super) async fn change(
    session: &mut Session<'_, '_>,
    target: &Target,
    way: Way,
) -> Result<Exit, Failure> {
    let (verb, done) = match way {
        Way::Pause => ("pause", "paused"),
        Way::Resume => ("resume", "resumed"),
    };
    let path = match (&target.provider_wide, &target.user) {
        (Some(provider), _) => provider_path(provider),
        (None, Some(user)) => place(user, target.provider.as_deref()),
        (None, None) => return Err(nothing_named()),
    };
    let call = Call::post(format!("{path}/{verb}"));
    let name = target.provider_wide.as_deref();
    send_change(session, &call, done, name).await
}

fn place(user: &str, provider: Option<&str>) -> String {
    provider.map_or_else(|| user_path(user), |provider| grant_path(user, provider))
}

fn nothing_named() -> Failure {
    Failure::new(Exit::Usage, "neither a user nor a provider is named")
}

/// Sends what answers with a number of grants, and says it.
async fn send_change(
    session: &mut Session<'_, '_>,
    call: &Call,
    done: &str,
    provider: Option<&str>,
) -> Result<Exit, Failure> {
    let answer = session.client.send(call).await?;
    if session.look.json {
        session.console.print_body(&answer.body)?;
        return Ok(Exit::Ok);
    }
    let changed: Changed = answer.read()?;
    let grants = count(changed.changed, "grant");
    let line = match provider {
        Some(provider) => format!("{done} provider {}: {grants}\n", escape(provider)),
        None => format!("{done} {grants}\n"),
    };
    session.console.print(&line)?;
    Ok(Exit::Ok)
}

/// Deletes and revokes, after asking.
pub(super) async fn revoke(
    session: &mut Session<'_, '_>,
    user: &str,
    provider: Option<&str>,
    yes: bool,
) -> Result<Exit, Failure> {
    if !yes && !confirmed(session, user, provider)? {
        session.console.note("nothing was revoked");
        return Ok(Exit::Ok);
    }
    let call = Call::new(Method::DELETE, place(user, provider));
    send_change(session, &call, "revoked", None).await
}

fn confirmed(
    session: &mut Session<'_, '_>,
    user: &str,
    provider: Option<&str>,
) -> Result<bool, Failure> {
    let console = &mut *session.console;
    if !console.terminals.stdin || !console.terminals.stderr {
        return Err(Failure::new(
            Exit::Usage,
            "revoke asks first, and here is no terminal to ask at",
        )
        .hint("--yes revokes without asking"));
    }
    let what = provider.map_or_else(
        || format!("every grant of {}", escape(user)),
        |provider| format!("the grant of {} at {}", escape(user), escape(provider)),
    );
    let _ = write!(
        console.stderr,
        "Delete {what} and revoke it at the provider? This cannot be undone. [y/N] "
    );
    let _ = console.stderr.flush();
    let mut line = String::new();
    BufReader::new(&mut console.stdin)
        .read_line(&mut line)
        .map_err(|error| Failure::new(Exit::Io, format!("cannot read the answer: {error}")))?;
    Ok(matches!(
        line.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

/// Resumes held imports and restored grants, and only those.
pub(super) async fn release(
    session: &mut Session<'_, '_>,
    args: &Release,
) -> Result<Exit, Failure> {
    let released = match (&args.user, &args.grant_provider, &args.of) {
        (Some(user), Some(provider), _) => release_one(session, user, provider).await?,
        (_, _, Some(provider)) => release_all(session, provider).await?,
        _ => return Err(nothing_named()),
    };
    let changed = Changed { changed: released };
    if session.look.json {
        session.console.print_json(&changed)?;
    } else {
        session
            .console
            .print(&format!("released {}\n", count(released, "grant")))?;
    }
    Ok(Exit::Ok)
}

fn is_held(grant: &GrantView) -> bool {
    grant.state == "paused" && matches!(grant.reason.as_str(), "held" | "restored")
}

async fn release_one(
    session: &mut Session<'_, '_>,
    user: &str,
    provider: &str,
) -> Result<u64, Failure> {
    let path = grant_path(user, provider);
    let grant: GrantView = session.client.send(&Call::get(&*path)).await?.read()?;
    if !is_held(&grant) {
        session
            .console
            .note("the grant is neither held nor restored, so there is nothing to release");
        return Ok(0);
    }
    let answer = session
        .client
        .send(&Call::post(format!("{path}/resume")))
        .await?;
    Ok(answer.read::<Changed>()?.changed)
}

async fn release_all(session: &mut Session<'_, '_>, provider: &str) -> Result<u64, Failure> {
    let (mut released, mut cursor): (u64, Option<String>) = (0, None);
    loop {
        let mut call = Call::get("/v1/grants")
            .query("limit", &PAGE.to_string())
            .query("state", "paused")
            .query("provider", provider);
        if let Some(cursor) = &cursor {
            call = call.query("cursor", cursor);
        }
        let page: GrantList = session.client.send(&call).await?.read()?;
        released += release_page(&session.client, page.grants).await?;
        let next = page
            .next_cursor
            .filter(|next| Some(next) != cursor.as_ref());
        if next.is_none() {
            return Ok(released);
        }
        cursor = next;
    }
}

async fn release_page(client: &Arc<Client>, grants: Vec<GrantView>) -> Result<u64, Failure> {
    let mut released = 0;
    let mut flights = JoinSet::new();
    for grant in grants.into_iter().filter(is_held) {
        if flights.len() == IN_FLIGHT {
            released += landed(flights.join_next().await)?;
        }
        let path = grant_path(&grant.user, &provider_and_account(&grant));
        let call = Call::post(format!("{path}/resume")).namespace(Some(&grant.namespace));
        let client = Arc::clone(client);
        flights.spawn(async move { client.send(&call).await });
    }
    while !flights.is_empty() {
        released += landed(flights.join_next().await)?;
    }
    Ok(released)
}

type Flight = Result<Result<Answer, CallError>, tokio::task::JoinError>;

/// Counts what one resume changed. A grant that is gone meanwhile counts nothing.
fn landed(flight: Option<Flight>) -> Result<u64, Failure> {
    match flight {
        None => Ok(0),
        Some(Err(_)) => Err(Failure::new(Exit::Internal, "a request ended unexpectedly")),
        Some(Ok(Err(CallError::Refused(problem)))) if problem.status == 404 => Ok(0),
        Some(Ok(answer)) => Ok(answer?.read::<Changed>()?.changed),
    }
}
