//! What is not well: each with whom it concerns and what to do about it. What ends by itself is told apart.

use clap::ValueEnum;
use serde::Serialize;

use super::args::{Grants, State};
use super::failing::failing;
use super::grants::advice;
use super::output::{count, exact, relative};
use crate::local_api::types::{CountView, KeyRotation, ProviderView, RenewalView, Status};
use crate::refresh::time::UnixTime;

/// Something that somebody should know.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    /// What it is, in one sentence.
    pub(super) what: String,
    /// Whom it concerns, where it is not everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) whom: Option<Whom>,
    /// What to do, a step each; empty where it ends by itself.
    #[serde(rename = "do", skip_serializing_if = "Vec::is_empty")]
    pub(super) todo: Vec<String>,
}

/// The grants that a finding concerns.
#[derive(Debug, Serialize)]
pub(super) struct Whom {
    pub(super) grants: u64,
    /// A few of the users, once they have been asked for.
    pub(super) users: Vec<String>,
    /// What lists them all.
    pub(super) list: String,
    #[serde(skip)]
    pub(super) filter: Grants,
}

impl Finding {
    pub(super) fn new(what: impl Into<String>, todo: &[&str]) -> Finding {
        Finding {
            what: what.into(),
            whom: None,
            todo: todo.iter().map(ToString::to_string).collect(),
        }
    }

    pub(super) fn about(self, grants: u64, filter: Grants) -> Finding {
        let list = command(&filter);
        let whom = (grants > 0).then_some(Whom {
            grants,
            users: Vec::new(),
            list,
            filter,
        });
        Finding { whom, ..self }
    }
}

/// The command that lists what a filter leaves.
fn command(filter: &Grants) -> String {
    let mut command = "freshctl grants".to_owned();
    let state = filter.state.and_then(|state| state.to_possible_value());
    let options = [
        ("--state", state.as_ref().map(|state| state.get_name())),
        ("--reason", filter.reason.as_deref()),
        ("--provider", filter.provider.as_deref()),
    ];
    for (option, value) in options {
        if let Some(value) = value {
            command.push_str(&format!(" {option} {value}"));
        }
    }
    if filter.ending {
        command.push_str(" --ending");
    }
    if filter.failing {
        command.push_str(" --failing");
    }
    command
}

/// All that is to be told.
pub(super) struct Findings {
    /// What needs somebody.
    pub(super) troubles: Vec<Finding>,
    /// What ends by itself, or is yet to come.
    pub(super) notices: Vec<Finding>,
}

/// Finds what is to be told.
pub(super) fn find(status: &Status, now: Option<UnixTime>) -> Findings {
    let mut troubles = Vec::new();
    let mut notices = Vec::new();
    troubles.extend(daemon(status));
    troubles.extend(disk(status));
    for provider in &status.providers {
        let found = provider_trouble(provider, now);
        if matches!(provider.state.as_str(), "cooling-down") {
            notices.extend(found);
        } else {
            troubles.extend(found);
        }
    }
    troubles.extend(late(status, now));
    troubles.extend(grants(&status.grants));
    troubles.extend(copies(status, now));
    notices.extend(ending(status, now));
    notices.extend(status.condition.renewals.iter().map(|it| renewal(it, now)));
    if let Some(rotation) = &status.keys.rotation {
        let found = key_rotation(status.keys.current, rotation);
        if rotation.waits_for.is_some() {
            troubles.push(found);
        } else {
            notices.push(found);
        }
    }
    if status.revocations > 0 {
        let waiting = count(status.revocations, "revocation");
        notices.push(Finding::new(
            format!("{waiting} waiting for the provider's answer, tried again by itself"),
            &[],
        ));
    }
    let mut findings = Findings { troubles, notices };
    failing(status, now, &mut findings);
    findings
}

/// The daemon as a whole: moved, ending, or with a configuration that it refused.
fn daemon(status: &Status) -> Vec<Finding> {
    let mut found = Vec::new();
    let in_flight = count(status.in_flight as u64, "request");
    match status.state.as_str() {
        "running" => {}
        "moved" => found.push(Finding::new(
            "This store was moved to another host by a final backup: nothing is refreshed or changed here",
            &[
                "restore the copy there, then stop freshd here: systemctl stop 'freshd-app@*' freshd.socket freshd-admin.socket freshd",
                "called off? stop freshd here, then: freshctl restore FILE --replace",
            ],
        )),
        "moving" => found.push(Finding::new(
            format!("A final backup is being made: draining, {in_flight} in flight; nothing else is begun"),
            &["wait for freshctl backup --final; where it fails, all goes on as before"],
        )),
        "draining" => found.push(Finding::new(
            format!("freshd is stopping: draining, {in_flight} in flight"),
            &["systemctl start freshd, unless it was to be stopped"],
        )),
        other => found.push(Finding::new(format!("freshd is {other}"), &["journalctl -u freshd"])),
    }
    if let Some(error) = &status.reload_error {
        found.push(Finding::new(
            format!("The last reload was refused, the old configuration goes on: {error}"),
            &["mend it: freshctl check-config, then systemctl reload freshd"],
        ));
    }
    found
}

/// What the disk refuses.
fn disk(status: &Status) -> Vec<Finding> {
    let mut found = Vec::new();
    if status.store != "ok" {
        found.push(Finding::new(
            // An import is written before it is answered, so trying it loses nothing; a refresh token that is spent can't be had back.
            format!(
                "The disk is in trouble: {}. No refresh token that rotates is spent; imports and other changes are taken if they can still be written, and refused otherwise",
                status.store
            ),
            &["make room, or mend the disk, under daemon.state-dir; freshd goes on by itself"],
        ));
    }
    if status.held > 0 {
        let sets = count(status.held as u64, "token set");
        let spilled = match status.condition.spilled {
            Some(spilled) if spilled >= status.held => {
                "the spill file has them all, so a stop loses none"
            }
            Some(0) => "none is in the spill file: stopping freshd now would lose them",
            Some(_) => "only some are in the spill file: stopping freshd now would lose the others",
            None => "they are being written to the spill file",
        };
        found.push(Finding::new(
            format!("{sets} held outside the database, because the disk refused them; {spilled}"),
            &["mend the disk of daemon.state-dir before you stop freshd; it writes them again by itself"],
        ));
    }
    found
}

fn provider_trouble(provider: &ProviderView, now: Option<UnixTime>) -> Option<Finding> {
    let name = &provider.name;
    let since = provider.since.as_deref();
    let since = since.map_or_else(String::new, |at| format!(" ({})", relative(at, now)));
    let reason = match provider.reason.as_str() {
        "" => String::new(),
        reason => format!(" ({reason})"),
    };
    let resume = format!("freshctl resume --provider-wide {name}");
    let found = match provider.state.as_str() {
        "running" => return None,
        "stopped" => Finding::new(
            format!(
                "Provider {name} is stopped{}: it refuses our client{reason}, not the users",
                since
            ),
            &[
                &format!(
                    "mend provider.{name}'s client-id or client-secret, then: systemctl reload freshd"
                ),
                &format!("or try as it is: {resume}"),
            ],
        ),
        "paused" => Finding::new(
            format!("Provider {name} is paused{}: an admin did", since),
            &[&resume],
        ),
        "not-configured" => Finding::new(
            format!("Provider {name} is not configured: nothing of it is refreshed"),
            &[&format!(
                "put [provider.{name}] back into the configuration, or: freshctl revoke --all --provider {name}"
            )],
        ),
        "unreachable" => Finding::new(
            format!(
                "Provider {name} is unreachable{}: requests for several grants in a row failed, so it is tried now and then",
                since
            ),
            &[
                &format!("look at the network, and at {name}'s own status page: freshctl doctor"),
                &format!("it goes on by itself; to try at once: {resume}"),
            ],
        ),
        "cooling-down" => {
            return Some(Finding::new(
                format!(
                    "Provider {name} cools down, to end {}{reason}",
                    relative(provider.since.as_deref().unwrap_or_default(), now)
                ),
                &[],
            ));
        }
        other => Finding::new(format!("Provider {name} is {other}"), &[&resume]),
    };
    let grants = provider.grants.iter().map(|count| count.grants).sum();
    Some(found.about(grants, of_provider(name)))
}

pub(super) fn of_provider(name: &str) -> Grants {
    Grants {
        provider: Some(name.to_owned()),
        ..Grants::default()
    }
}

fn late(status: &Status, now: Option<UnixTime>) -> impl Iterator<Item = Finding> {
    status.condition.late.iter().map(move |late| {
        let name = &late.provider;
        Finding::new(
            format!(
                "Refreshes at {name} are late: the first of them was due {}",
                relative(&late.due_at, now)
            ),
            &[
                &format!("raise provider.{name}'s rate or max-in-flight, or refresh.max-in-flight, if it is these that hold it up"),
                &format!("else look for answers that are slow: journalctl -u freshd FRESHD_PROVIDER={name}"),
            ],
        )
    })
}

/// What people or damage keep from being refreshed, by provider.
fn grants(counts: &[CountView]) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut providers: Vec<&str> = counts.iter().map(|it| it.provider.as_str()).collect();
    providers.sort_unstable();
    providers.dedup();
    for name in providers {
        let of = |state: &str| {
            counts
                .iter()
                .filter(move |it| it.provider == name && it.state == state && it.grants > 0)
                .collect::<Vec<_>>()
        };
        found.extend(need_authorization(name, &of("needs-authorization")));
        for paused in of("paused") {
            found.extend(waits(name, &paused.reason, paused.grants));
        }
    }
    found
}

fn need_authorization(name: &str, counts: &[&CountView]) -> Option<Finding> {
    let all: u64 = counts.iter().map(|it| it.grants).sum();
    let first = counts.iter().max_by_key(|it| it.grants)?;
    let needs = if all == 1 { "needs" } else { "need" };
    let what = if counts.len() == 1 {
        format!(
            "{} at {name} {needs} authorization: {}",
            count(all, "grant"),
            first.reason
        )
    } else {
        let reasons: Vec<String> = counts
            .iter()
            .map(|it| format!("{} {}", it.grants, it.reason))
            .collect();
        format!(
            "{} at {name} {needs} authorization: {}",
            count(all, "grant"),
            reasons.join(", ")
        )
    };
    let mut todo =
        vec!["let these users authorize again; what happened to one: freshctl why USER PROVIDER"];
    let many = |reason: &str| counts.iter().any(|it| it.reason == reason && it.grants > 1);
    if many("revoked-or-used-elsewhere") {
        todo.push("many at once? look for another program that still refreshes the same grants");
    }
    if many("refused") {
        todo.push("look at the app's registration at the provider");
    }
    let filter = Grants {
        state: Some(State::NeedsAuthorization),
        ..of_provider(name)
    };
    Some(Finding::new(what, &todo).about(all, filter))
}

fn waits(name: &str, reason: &str, grants: u64) -> Option<Finding> {
    let many = count(grants, "grant");
    let release = format!("freshctl release --all --provider {name}");
    let found = match reason {
        "held" => Finding::new(
            format!("{many} at {name} held since the import (--hold), not refreshed"),
            &[&format!(
                "once the old system has stopped refreshing: {release}"
            )],
        ),
        "restored" => Finding::new(
            format!("{many} at {name} restored from a copy, not refreshed until released"),
            &[&format!("if nothing else refreshes them: {release}")],
        ),
        "quarantined" => Finding::new(
            format!("{many} at {name} in quarantine: damaged, or edited by somebody"),
            &[advice("paused", "quarantined").unwrap_or_default()],
        ),
        _ => return None,
    };
    let filter = Grants {
        state: Some(State::Paused),
        reason: Some(reason.to_owned()),
        ..of_provider(name)
    };
    Some(found.about(grants, filter))
}

fn copies(status: &Status, now: Option<UnixTime>) -> Option<Finding> {
    let copies = status.condition.copies.as_ref()?;
    let newest = match &copies.newest_at {
        Some(at) => format!("the newest is of {}", exact(at, now)),
        None => "there is none".to_owned(),
    };
    let todo = [
        "make one now: freshctl backup FILE",
        "look why: journalctl -u freshd; a service may write only where its unit lets it (ReadWritePaths=)",
    ];
    match (&copies.error, &copies.missed_at) {
        (Some(error), _) => Some(Finding::new(
            format!(
                "The last nightly copy failed: {error}; in {} {newest}",
                copies.dir
            ),
            &todo,
        )),
        (None, Some(missed)) => Some(Finding::new(
            format!(
                "The nightly copy of {} is missing; in {} {newest}",
                exact(missed, now),
                copies.dir
            ),
            &todo,
        )),
        (None, None) => None,
    }
}

fn ending(status: &Status, now: Option<UnixTime>) -> impl Iterator<Item = Finding> {
    status.condition.ending.iter().map(move |ending| {
        let tokens = count(ending.grants, "refresh token");
        let (name, soonest) = (&ending.provider, relative(&ending.soonest_at, now));
        let filter = Grants {
            ending: true,
            ..of_provider(name)
        };
        Finding::new(
            format!("{tokens} at {name} about to end, the first {soonest}"),
            &["let these users authorize again before that"],
        )
        .about(ending.grants, filter)
    })
}

fn renewal(renewal: &RenewalView, now: Option<UnixTime>) -> Finding {
    let since = renewal.since.as_deref().unwrap_or_default();
    let done = renewal
        .grants
        .saturating_sub(renewal.left + renewal.resting);
    Finding::new(
        format!(
            "All token sets at {} are being replaced, as was asked {}: {done} done, {} left, {} not touched",
            renewal.provider,
            relative(since, now),
            renewal.left,
            renewal.resting
        ),
        &[],
    )
}

fn key_rotation(to: u32, rotation: &KeyRotation) -> Finding {
    let from: Vec<String> = rotation.from.iter().map(u32::to_string).collect();
    let text = format!(
        "Key rotation from data key {} to {to}: {} of {} rows",
        from.join(", "),
        rotation.resealed,
        rotation.rows
    );
    match &rotation.waits_for {
        Some(waits_for) => Finding::new(
            format!("{text}; it waits: {waits_for}"),
            &[
                "it goes on by itself once that is mended; until then both keys stay, and no backup is made",
            ],
        ),
        None => Finding::new(text, &[]),
    }
}
