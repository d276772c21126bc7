//! `events`: what happened to grants, and with `--follow` what happens.

use http_body_util::BodyExt;

use super::Session;
use super::args::Events;
use super::call_error::CallError;
use super::client::Call;
use super::failure::{Exit, Failure};
use super::output::escape;
use crate::local_api::types::EventView;

/// No event is nearly as long as this.
const LONGEST_LINE: usize = 64 << 10;

/// Prints the events that are kept, or those that come, one a line.
pub(super) async fn events(session: &mut Session<'_, '_>, args: &Events) -> Result<Exit, Failure> {
    let call = if args.follow {
        Call::get("/v1/events")
    } else {
        Call::get("/v1/events")
            .query("follow", "false")
            .resuming_after(0)
    };
    let mut body = session.client.stream(&call).await?;
    let mut unread = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| session.client.lost())?;
        unread.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            if let Some(data) = line.strip_prefix(b"data: ") {
                print(session, args, data)?;
            }
        }
        if unread.len() > LONGEST_LINE {
            return Err(CallError::TooLong.into());
        }
        session.console.stdout.flush().map_err(Failure::output)?;
    }
    if args.follow {
        let ended = Failure::new(Exit::Unavailable, "freshd has ended the stream");
        return Err(ended.hint(
            "it stops, or the rule no longer allows it; freshctl events shows what is kept",
        ));
    }
    Ok(Exit::Ok)
}

fn print(session: &mut Session<'_, '_>, args: &Events, data: &[u8]) -> Result<(), Failure> {
    let Ok(event) = serde_json::from_slice::<EventView>(data) else {
        // Not about a grant: that events are missing.
        if session.look.json {
            return session.console.print_body(data);
        }
        session.console.note("older events are no longer kept");
        return Ok(());
    };
    if !wanted(args, &event) {
        return Ok(());
    }
    if session.look.json {
        return session.console.print_body(data);
    }
    session.console.print(&format!("{}\n", shown(&event)))
}

fn wanted(args: &Events, event: &EventView) -> bool {
    let of_user = args.user.is_none() || args.user == event.user;
    let of_provider = args
        .provider
        .as_ref()
        .is_none_or(|provider| *provider == event.provider || *provider == at(event));
    of_user && of_provider
}

/// Returns `provider`, or `provider:account`.
fn at(event: &EventView) -> String {
    match event.account.as_str() {
        "" => event.provider.clone(),
        account => format!("{}:{account}", event.provider),
    }
}

/// Returns `2026-11-22T10:00:00Z paused 42 at hubspot, generation 7 (inactive)`.
fn shown(event: &EventView) -> String {
    let user = event.user.as_deref().unwrap_or("a deleted user");
    let mut text = format!(
        "{} {} {user} at {}, generation {}",
        event.at,
        event.event,
        at(event),
        event.generation
    );
    if event.namespace != "default" {
        text.push_str(&format!(", namespace {}", event.namespace));
    }
    if !event.reason.is_empty() {
        text.push_str(&format!(" ({})", event.reason));
    }
    if let Some(end) = &event.expires_at {
        text.push_str(&format!(" (ends {end})"));
    }
    escape(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_that_steers_no_terminal() {
        let mut event = EventView {
            id: Some(1),
            event: "paused".into(),
            at: "2026-11-22T10:00:00Z".into(),
            namespace: "default".into(),
            user: Some("4\u{1b}2".into()),
            provider: "google".into(),
            account: "work".into(),
            reason: "inactive".into(),
            expires_at: None,
            generation: 7,
        };
        let expected =
            "2026-11-22T10:00:00Z paused 4\\u{1b}2 at google:work, generation 7 (inactive)";
        assert_eq!(shown(&event), expected);
        event.user = None;
        event.event = "revoked".into();
        event.namespace = "crm".into();
        event.reason.clear();
        let expected = "2026-11-22T10:00:00Z revoked a deleted user at google:work, generation 7, namespace crm";
        assert_eq!(shown(&event), expected);
    }
}
