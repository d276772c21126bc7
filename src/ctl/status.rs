//! `status` and `providers`.

use std::fmt::Write as _;

use super::Session;
use super::client::Call;
use super::failure::{Exit, Failure};
use super::grants::{advice, provider_and_account};
use super::output::{
    Look, count, escape, exact, length, or_dash, relative, relative_or_dash, table,
};
use crate::local_api::types::{
    CountView, GrantList, GrantView, KeyRotation, ProviderList, ProviderView, Status,
};
use crate::refresh::time::UnixTime;

/// So many grants that need authorization are shown; there may be a million.
const SHOWN: u64 = 10;

/// Says whether all is well.
pub(super) async fn status(session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let answer = session.client.send(&Call::get("/v1/status")).await?;
    let status: Status = answer.read()?;
    let troubles = troubles(&status);
    let exit = if troubles.is_empty() {
        Exit::Ok
    } else {
        Exit::Attention
    };
    if session.look.json {
        session.console.print_body(&answer.body)?;
        return Ok(exit);
    }
    let needing = total(&status.grants, "needs-authorization", None);
    let mut shown = Vec::new();
    if needing > 0 {
        let call = Call::get("/v1/grants")
            .query("limit", &SHOWN.to_string())
            .query("state", "needs-authorization");
        shown = session
            .client
            .send(&call)
            .await?
            .read::<GrantList>()?
            .grants;
        shown.truncate(SHOWN as usize);
    }
    let text = screen(session.look, &status, &troubles, &shown, answer.now);
    session.console.print(&text)?;
    Ok(exit)
}

fn total(counts: &[CountView], state: &str, reason: Option<&str>) -> u64 {
    counts
        .iter()
        .filter(|count| count.state == state && reason.is_none_or(|reason| count.reason == reason))
        .map(|count| count.grants)
        .sum()
}

/// Returns everything that needs somebody's attention, in words. A cool-down ends by itself and is not here.
fn troubles(status: &Status) -> Vec<String> {
    let mut troubles = Vec::new();
    if status.state != "running" {
        troubles.push(format!("it is {}", escape(&status.state)));
    }
    if status.store != "ok" {
        troubles.push("the store cannot be written".to_owned());
    }
    if status.held > 0 {
        troubles.push(format!(
            "{} only in memory",
            count(status.held as u64, "token set")
        ));
    }
    if status.reload_error.is_some() {
        troubles.push("the last reload was refused".to_owned());
    }
    for provider in &status.providers {
        if matches!(
            provider.state.as_str(),
            "stopped" | "paused" | "not-configured"
        ) {
            troubles.push(format!(
                "provider {} is {}",
                escape(&provider.name),
                escape(&provider.state)
            ));
        }
    }
    match total(&status.grants, "needs-authorization", None) {
        0 => {}
        1 => troubles.push("1 grant needs authorization".to_owned()),
        n => troubles.push(format!("{n} grants need authorization")),
    }
    let quarantined = total(&status.grants, "paused", Some("quarantined"));
    if quarantined > 0 {
        troubles.push(format!("{} in quarantine", count(quarantined, "grant")));
    }
    troubles
}

fn screen(
    look: Look,
    status: &Status,
    troubles: &[String],
    needing: &[GrantView],
    now: Option<UnixTime>,
) -> String {
    let all: u64 = status.grants.iter().map(|count| count.grants).sum();
    let mut out = String::new();
    if troubles.is_empty() {
        let _ = writeln!(
            out,
            "freshd is well: it looks after {}",
            count(all, "grant")
        );
    } else {
        let _ = writeln!(out, "freshd needs attention: {}", troubles.join("; "));
    }
    out.push('\n');
    out.push_str(&facts(look, status, now));
    if !status.grants.is_empty() {
        let _ = write!(out, "\nGrants\n{}", counts(look, &status.grants));
    }
    out.push_str(&daemon_trouble(status));
    out.push_str(&not_running(&status.providers, now));
    out.push_str(&need_authorization(look, status, needing, now));
    out.push_str(&not_refreshed(&status.grants));
    out
}

fn facts(look: Look, status: &Status, now: Option<UnixTime>) -> String {
    let mut rows = vec![
        ("version", status.version.clone()),
        ("running since", exact(&status.started_at, now)),
        ("configuration", status.config.join(" ")),
        ("in flight", count(status.in_flight as u64, "request")),
        (
            "next due",
            relative_or_dash(status.next_due_at.as_deref(), now),
        ),
        ("store", status.store.clone()),
    ];
    if status.revocations > 0 {
        let waiting = format!(
            "{} waiting for the provider",
            count(status.revocations, "revocation")
        );
        rows.push(("revoking", waiting));
    }
    if let Some(rotation) = &status.keys.rotation {
        rows.push(("key rotation", key_rotation(status.keys.current, rotation)));
    }
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    table(look, "  ", &[], &rows)
}

fn key_rotation(to: u32, rotation: &KeyRotation) -> String {
    let from: Vec<String> = rotation.from.iter().map(u32::to_string).collect();
    let text = format!(
        "from data key {} to {to}: {} of {} rows",
        from.join(", "),
        rotation.resealed,
        rotation.rows
    );
    match &rotation.waits_for {
        Some(waits_for) => format!("{text}; waits: {waits_for}"),
        None => text,
    }
}

fn counts(look: Look, counts: &[CountView]) -> String {
    let rows: Vec<Vec<String>> = counts
        .iter()
        .map(|count| {
            vec![
                count.provider.clone(),
                count.state.clone(),
                or_dash(&count.reason).to_owned(),
                count.grants.to_string(),
            ]
        })
        .collect();
    table(
        look,
        "  ",
        &["PROVIDER", "STATE", "REASON", "GRANTS"],
        &rows,
    )
}

fn hint(out: &mut String, text: &str) {
    let _ = writeln!(out, "  hint: {text}");
}

/// Tells about the store, held token sets and refused reloads.
fn daemon_trouble(status: &Status) -> String {
    let mut out = String::new();
    if status.store != "ok" {
        let _ = writeln!(
            out,
            "\nThe store cannot be written: {}",
            escape(&status.store)
        );
        hint(
            &mut out,
            "make room, or mend the disk, under daemon.state-dir; freshd goes on by itself",
        );
    }
    if status.held > 0 {
        let sets = count(status.held as u64, "token set");
        let _ = writeln!(
            out,
            "\n{sets} held outside the database, because the disk refused them"
        );
        hint(
            &mut out,
            "mend the disk of state-dir before you stop freshd; the log says which of them were spilled and survive a stop",
        );
    }
    if let Some(error) = &status.reload_error {
        let _ = writeln!(
            out,
            "\nThe last reload was refused, the old configuration goes on"
        );
        for line in error.lines() {
            let _ = writeln!(out, "  {}", escape(line));
        }
        hint(
            &mut out,
            "freshctl check-config, then systemctl reload freshd",
        );
    }
    out
}

fn not_running(providers: &[ProviderView], now: Option<UnixTime>) -> String {
    let mut out = String::new();
    for provider in providers
        .iter()
        .filter(|provider| provider.state != "running")
    {
        if out.is_empty() {
            out.push_str("\nProviders that are not running\n");
        }
        let name = escape(&provider.name);
        let _ = write!(out, "  {name} is {}", escape(&provider.state));
        if let Some(since) = &provider.since {
            let word = if provider.state == "cooling-down" {
                "until"
            } else {
                "since"
            };
            let _ = write!(out, " {word} {}", exact(since, now));
        }
        if !provider.reason.is_empty() {
            let _ = write!(out, ": {}", escape(&provider.reason));
        }
        out.push('\n');
        let text = match provider.state.as_str() {
            "stopped" => format!(
                "it refuses our client, not the users: mend provider.{name}'s client-id or client-secret, then \
                 systemctl reload freshd; or to try as it is: freshctl resume --provider-wide {name}"
            ),
            "paused" => format!("an admin paused it: freshctl resume --provider-wide {name}"),
            "not-configured" => format!(
                "its grants are not refreshed: put [provider.{name}] back into the configuration, or revoke them"
            ),
            "unreachable" => format!(
                "requests for several grants in a row failed: look at the network and at {name}'s own status page; \
                 it goes on by itself, or to try at once: freshctl resume --provider-wide {name}"
            ),
            _ => "nothing: it goes on by itself".to_owned(),
        };
        hint(&mut out, &text);
    }
    out
}

fn need_authorization(
    look: Look,
    status: &Status,
    shown: &[GrantView],
    now: Option<UnixTime>,
) -> String {
    let all = total(&status.grants, "needs-authorization", None);
    if all == 0 {
        return String::new();
    }
    let mut out = String::from("\nNeed authorization");
    if all > shown.len() as u64 {
        let _ = write!(out, " ({} of {all})", shown.len());
    }
    out.push('\n');
    let rows: Vec<Vec<String>> = shown
        .iter()
        .map(|grant| {
            vec![
                grant.user.clone(),
                provider_and_account(grant),
                grant.reason.clone(),
                relative(&grant.since, now),
            ]
        })
        .collect();
    out.push_str(&table(
        look,
        "  ",
        &["USER", "PROVIDER", "REASON", "SINCE"],
        &rows,
    ));
    hint(
        &mut out,
        "these users have to authorize again; all of them: freshctl grants --state needs-authorization",
    );
    if total(
        &status.grants,
        "needs-authorization",
        Some("revoked-or-used-elsewhere"),
    ) > 1
    {
        hint(
            &mut out,
            "many at once? look for another program that still refreshes the same grants",
        );
    }
    out
}

/// Tells about grants that are paused by people or by damage.
fn not_refreshed(counts: &[CountView]) -> String {
    let mut out = String::new();
    let held = total(counts, "paused", Some("held"));
    if held > 0 {
        let _ = writeln!(out, "\n{} held since the import", count(held, "grant"));
        hint(
            &mut out,
            "once the old system has stopped refreshing: freshctl release --provider PROVIDER --all",
        );
    }
    let restored = total(counts, "paused", Some("restored"));
    if restored > 0 {
        let _ = writeln!(
            out,
            "\n{} restored and not released",
            count(restored, "grant")
        );
        hint(
            &mut out,
            "if nothing else refreshes them: freshctl release --provider PROVIDER --all",
        );
    }
    let quarantined = total(counts, "paused", Some("quarantined"));
    if quarantined > 0 {
        let _ = writeln!(
            out,
            "\n{} in quarantine (freshctl grants --state paused)",
            count(quarantined, "grant")
        );
        hint(
            &mut out,
            advice("paused", "quarantined").unwrap_or_default(),
        );
    }
    out
}

/// Lists the providers.
pub(super) async fn providers(session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let answer = session.client.send(&Call::get("/v1/providers")).await?;
    if session.look.json {
        session.console.print_body(&answer.body)?;
        return Ok(Exit::Ok);
    }
    let list: ProviderList = answer.read()?;
    if list.providers.is_empty() {
        session.console.note("no provider is configured");
        return Ok(Exit::Ok);
    }
    let rows: Vec<Vec<String>> = list
        .providers
        .iter()
        .map(|provider| {
            vec![
                provider.name.clone(),
                provider.state.clone(),
                or_dash(&provider.reason).to_owned(),
                relative_or_dash(provider.since.as_deref(), answer.now),
                provider
                    .grants
                    .iter()
                    .map(|count| count.grants)
                    .sum::<u64>()
                    .to_string(),
                provider.in_flight.to_string(),
                // A margin is a few minutes; anything no clock could hold shows as the largest number.
                length(provider.margin.round() as u64),
                provider.rotation.clone(),
                provider.token_endpoint.clone(),
            ]
        })
        .collect();
    let header = [
        "PROVIDER",
        "STATE",
        "REASON",
        "SINCE",
        "GRANTS",
        "IN FLIGHT",
        "MARGIN",
        "ROTATION",
        "TOKEN ENDPOINT",
    ];
    let text = table(session.look, "", &header, &rows);
    session.console.print(&text)?;
    Ok(Exit::Ok)
}
