//! `refresh --all --provider X`: the daemon replaces every token set of a provider, paced; here it is asked for and watched.

use std::time::Duration;

use super::Session;
use super::client::{Call, provider_path};
use super::failure::{Exit, Failure};
use super::many::bar;
use super::output::{count, escape, exact};
use crate::local_api::types::RenewalView;
use crate::refresh::time::UnixTime;

/// A million rows are made due in about a minute.
const LONGEST: Duration = Duration::from_secs(600);
/// The daemon counts rows for each answer.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Asks for it, or with `dry_run` says what it would concern; with `wait` stays until all is done.
pub(super) async fn renew(
    session: &mut Session<'_, '_>,
    provider: &str,
    dry_run: bool,
    wait: bool,
) -> Result<Exit, Failure> {
    let path = format!("{}/refresh", provider_path(provider));
    let mut call = Call::post(&*path).waiting(LONGEST);
    if dry_run {
        call = call.query("dry_run", "true");
    }
    let mut answer = session.client.send(&call).await?;
    let mut view: RenewalView = answer.read()?;
    if !dry_run && wait {
        tell_halt(session, &view);
        let all = view.left;
        let bar = bar(session.console.terminals.stderr, all);
        while view.left > 0 {
            tokio::time::sleep(LOOK_EVERY).await;
            answer = session
                .client
                .send(&Call::get(&*path).waiting(LONGEST))
                .await?;
            view = answer.read()?;
            bar.set_message(match view.state.as_str() {
                "running" => String::new(),
                state => format!("(the provider is {})", escape(state)),
            });
            bar.set_position(all.saturating_sub(view.left));
        }
        bar.finish_and_clear();
    }
    if session.look.json {
        session.console.print_body(&answer.body)?;
        return Ok(Exit::Ok);
    }
    say(session, &view, dry_run, answer.now)?;
    if dry_run {
        return under_way(session, &path).await;
    }
    if view.left > 0 {
        tell_halt(session, &view);
        session.console.note(&format!(
            "it goes on by itself; how far it is: freshctl refresh --all --provider {provider} --dry-run"
        ));
    }
    Ok(Exit::Ok)
}

fn say(
    session: &mut Session<'_, '_>,
    view: &RenewalView,
    dry_run: bool,
    now: Option<UnixTime>,
) -> Result<(), Failure> {
    let name = escape(&view.provider);
    let left = count(view.left, "grant");
    let mut text = match (&view.since, view.left) {
        _ if dry_run => format!("would refresh {left} at {name}"),
        (Some(since), 0) => {
            let since = exact(since, now);
            format!("no token set at {name} is from before {since}, but for what rests")
        }
        _ => format!("{left} at {name} are due now, at the provider's pace"),
    };
    if view.resting > 0 {
        text.push_str(&format!(
            "; {} not touched: paused by an admin, held, restored, or in need of authorization",
            count(view.resting, "grant")
        ));
    }
    session.console.print(&format!("{text}\n"))
}

/// Says how far the one is that was asked for last.
async fn under_way(session: &mut Session<'_, '_>, path: &str) -> Result<Exit, Failure> {
    let answer = session
        .client
        .send(&Call::get(path).waiting(LONGEST))
        .await?;
    let view: RenewalView = answer.read()?;
    if let Some(since) = view.since.as_ref().filter(|_| view.left > 0) {
        let text = format!(
            "one that was asked for {} is under way: {} left\n",
            exact(since, answer.now),
            count(view.left, "grant")
        );
        session.console.print(&text)?;
        tell_halt(session, &view);
    }
    Ok(Exit::Ok)
}

fn tell_halt(session: &mut Session<'_, '_>, view: &RenewalView) {
    if matches!(view.state.as_str(), "stopped" | "paused") {
        session.console.note(&format!(
            "provider {} is {}: nothing is refreshed until it runs again (freshctl status says what to do)",
            view.provider, view.state
        ));
    }
}
