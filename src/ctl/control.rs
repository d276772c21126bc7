//! `activity`, `pause`, `resume`, `release`, `revoke`: what changes the standing of grants.

use std::io::{BufRead, BufReader};

use hyper::Method;

use super::Session;
use super::args::{Release, Revoke, Target};
use super::client::{Call, grant_path, provider_path, user_path};
use super::failure::{Exit, Failure};
use super::grants::user_text;
use super::many::{self, Verb, is_held};
use super::output::{count, escape};
use crate::local_api::types::{Changed, GrantView, UserView};

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
    if target.many.all {
        let verb = match way {
            Way::Pause => Verb::Pause,
            Way::Resume => Verb::Resume,
        };
        return many::run(session, verb, &target.many, true).await;
    }
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
    if done == "resumed" && changed.changed == 0 {
        session
            .console
            .note("nothing there was paused; what came back with a restored copy waits for freshctl release");
    }
    Ok(Exit::Ok)
}

/// Deletes and revokes, after asking.
pub(super) async fn revoke(session: &mut Session<'_, '_>, args: &Revoke) -> Result<Exit, Failure> {
    let (user, provider) = match (&args.user, args.provider.as_deref()) {
        _ if args.many.all => {
            return many::run(session, Verb::Revoke, &args.many, args.yes).await;
        }
        (Some(user), provider) => (user, provider),
        (None, _) => return Err(nothing_named()),
    };
    let what = provider.map_or_else(
        || format!("every grant of {}", escape(user)),
        |provider| format!("the grant of {} at {}", escape(user), escape(provider)),
    );
    if !args.yes && !confirmed(session, &what)? {
        session.console.note("nothing was revoked");
        return Ok(Exit::Ok);
    }
    let call = Call::new(Method::DELETE, place(user, provider));
    send_change(session, &call, "revoked", None).await
}

/// Asks whether `what` is to be revoked.
pub(super) fn confirmed(session: &mut Session<'_, '_>, what: &str) -> Result<bool, Failure> {
    let console = &mut *session.console;
    if !console.terminals.stdin || !console.terminals.stderr {
        return Err(Failure::new(
            Exit::Usage,
            "revoke asks first, and here is no terminal to ask at",
        )
        .hint("--yes revokes without asking"));
    }
    let _ = write!(
        console.stderr,
        "Delete {what} and revoke at the provider? This cannot be undone. [y/N] "
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
    let released = match (&args.user, &args.provider) {
        _ if args.many.all => return many::run(session, Verb::Release, &args.many, true).await,
        (Some(user), Some(provider)) => release_one(session, user, provider).await?,
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
        .send(&Call::post(format!("{path}/resume")).query("release", "true"))
        .await?;
    Ok(answer.read::<Changed>()?.changed)
}
