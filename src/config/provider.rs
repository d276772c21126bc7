//! `[provider.NAME]`, with its profile laid under it.

use std::time::Duration;

use url::Url;

use super::client_secret::{Credentials, client_secret};
use super::file::{Files, show, show_url};
use super::load::count;
use super::shape::{Length, ProviderShape, RefreshShape};
use super::value::{self, show_duration};
use crate::profile::{ClientAuth, PROFILES, Provider, Registration, check_endpoint};
use crate::refresh::pacing::Pace;
use crate::refresh::policy::{Mode, Policy, Rotation};

/// Time for a few retries before readers notice an outage.
const MARGIN: Duration = Duration::from_secs(5 * 60);
/// Keeps a server that hands out expired tokens from being asked in a loop.
const FLOOR: Duration = Duration::from_secs(1);
/// A weekend and a day.
const INACTIVE_AFTER: Duration = Duration::from_secs(3 * 86_400);
/// Four days of hourly refreshes.
const MAX_UNUSED_REFRESHES: usize = 100;
/// Long enough for somebody to notice and mend what a server objects to without saying so.
const REFUSE_AFTER: Duration = Duration::from_secs(86_400);
/// Time for a user who comes by once a week.
const REFRESH_TOKEN_WARNING: Duration = Duration::from_secs(7 * 86_400);
/// What browsers of six hosts would open; few authorization servers mind.
const MAX_IN_FLIGHT: usize = 32;
/// A TCP connection and a TLS handshake across the world, with two lost packets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What gateways commonly give the server behind them.
const DEADLINE: Duration = Duration::from_secs(30);

/// `[refresh]`: what providers have unless they say otherwise.
#[derive(Debug)]
pub struct Base {
    margin: Duration,
    floor: Duration,
    inactive_after: Duration,
    max_unused_refreshes: usize,
    refuse_after: Duration,
    refresh_token_warning: Duration,
}

impl Base {
    /// Reads the defaults from `[refresh]`.
    pub fn new(files: &mut Files, shape: RefreshShape) -> Base {
        let mut length = |key: &str, text| positive(files, &format!("refresh.{key}"), text);
        Base {
            margin: length("margin", shape.margin).unwrap_or(MARGIN),
            floor: length("floor", shape.floor).unwrap_or(FLOOR),
            inactive_after: length("inactive-after", shape.inactive_after)
                .unwrap_or(INACTIVE_AFTER),
            refuse_after: length("refuse-after", shape.refuse_after).unwrap_or(REFUSE_AFTER),
            refresh_token_warning: length("refresh-token-warning", shape.refresh_token_warning)
                .unwrap_or(REFRESH_TOKEN_WARNING),
            max_unused_refreshes: count(
                files,
                "refresh.max-unused-refreshes",
                shape.max_unused_refreshes,
                1,
                MAX_UNUSED_REFRESHES,
            ),
        }
    }
}

/// Reads one provider; `None` if anything about it is wrong that leaves a hole.
pub fn provider(
    files: &mut Files,
    name: &str,
    base: &Base,
    credentials: &mut Credentials,
) -> Option<Provider> {
    let section = format!("provider.{name}");
    let named = files.parse(&section, name, value::name);
    let profiled = lay_profile(files, &section);
    let mut shape: ProviderShape = files.section(&section);
    let rotation = rotation(
        files,
        &section,
        shape.rotation.as_deref(),
        shape.grace.take(),
    );
    let profile = shape.profile.take();
    let scopes = shape.scopes.take().unwrap_or_default();
    for scope in &scopes {
        files.parse(&format!("{section}.scopes"), scope, value::scope);
    }
    let pace = pace(files, &section, &shape);
    let policy = policy(files, &section, &mut shape, rotation, base);
    let registration = registration(files, name, shape, rotation, credentials);
    named.and(profiled)?;
    Some(Provider {
        profile,
        registration: registration?,
        policy,
        pace,
        scopes,
    })
}

/// Lays the profile that the section names under it. `None` if there is no such profile.
fn lay_profile(files: &mut Files, section: &str) -> Option<()> {
    let Some(toml::Value::String(name)) = files.peek(section, "profile") else {
        return Some(());
    };
    let name = name.clone();
    let names = PROFILES.map(|(name, _)| name);
    let Some((_, source)) = PROFILES.iter().find(|(known, _)| *known == name) else {
        let rule = format!(
            "is {} but must be one of {}; or leave it out and give the endpoints",
            show(&name),
            names.join(", ")
        );
        files.fail(&format!("{section}.profile"), rule);
        return None;
    };
    let mut table: toml::Table = source
        .parse()
        .expect("shipped profiles are TOML; a test reads each");
    // A section that has its own rotation has its own grace, or none.
    if files.peek(section, "rotation").is_some() {
        table.remove("grace");
    }
    files.underlay(section, table);
    Some(())
}

fn rotation(
    files: &mut Files,
    section: &str,
    text: Option<&str>,
    grace: Option<Length>,
) -> Rotation {
    let grace_key = format!("{section}.grace");
    let text = text.unwrap_or("unknown");
    let rotation = match text {
        "none" => Rotation::None,
        "overlap" => Rotation::Overlap,
        "strict" => Rotation::Strict,
        "periodic" => Rotation::Periodic,
        "unknown" => Rotation::Unknown,
        "grace" => {
            if grace.is_none() {
                files.fail_missing(
                    &grace_key,
                    "is missing but rotation is \"grace\"; say how long an old refresh token still works, \
                     such as grace = \"30s\"",
                );
            }
            return positive(files, &grace_key, grace).map_or(Rotation::Unknown, Rotation::Grace);
        }
        other => {
            files.fail(
                &format!("{section}.rotation"),
                format!(
                    "is {} but must be one of none, overlap, grace, strict, periodic, unknown",
                    show(other)
                ),
            );
            return Rotation::Unknown;
        }
    };
    if let Some(Length(grace)) = grace {
        files.fail(
            &grace_key,
            format!(
                "is {} but must be left out where rotation is {text:?}, not \"grace\"",
                show(&grace)
            ),
        );
    }
    rotation
}

fn pace(files: &mut Files, section: &str, shape: &ProviderShape) -> Pace {
    let key = format!("{section}.max-in-flight");
    let rate = shape.rate.as_deref();
    Pace {
        max_in_flight: count(files, &key, shape.max_in_flight, 1, MAX_IN_FLIGHT),
        rate: rate.and_then(|text| files.parse(&format!("{section}.rate"), text, value::rate)),
    }
}

fn policy(
    files: &mut Files,
    section: &str,
    shape: &mut ProviderShape,
    rotation: Rotation,
    base: &Base,
) -> Policy {
    let mut length =
        |key: &str, text: Option<Length>| positive(files, &format!("{section}.{key}"), text);
    let margin = length("margin", shape.margin.take());
    let floor = length("floor", shape.floor.take());
    let inactive_after = length("inactive-after", shape.inactive_after.take());
    let default_lifetime = length("access-token-lifetime", shape.access_token_lifetime.take());
    let idle_lifetime = length(
        "refresh-token-idle-lifetime",
        shape.refresh_token_idle_lifetime.take(),
    );
    let refresh_not_before = length("refresh-not-before", shape.refresh_not_before.take());
    let refuse_after = length("refuse-after", shape.refuse_after.take());
    let warning = length("refresh-token-warning", shape.refresh_token_warning.take());
    let mode = mode(files, section, shape);
    let unused = count(
        files,
        &format!("{section}.max-unused-refreshes"),
        shape.max_unused_refreshes,
        1,
        base.max_unused_refreshes,
    );
    Policy {
        margin: margin.unwrap_or(base.margin),
        floor: floor.unwrap_or(base.floor),
        rotation,
        inactive_after: inactive_after.unwrap_or(base.inactive_after),
        max_unused_refreshes: u32::try_from(unused).unwrap_or(u32::MAX),
        default_lifetime,
        refresh_token_idle_lifetime: idle_lifetime,
        keep_alive: shape.keep_alive.unwrap_or(true),
        mode,
        refresh_not_before,
        refresh_while_alive: shape.refresh_while_alive.unwrap_or(false),
        refuse_after: refuse_after.unwrap_or(base.refuse_after),
        refresh_token_warning: warning.unwrap_or(base.refresh_token_warning),
    }
}

fn mode(files: &mut Files, section: &str, shape: &ProviderShape) -> Mode {
    let key = format!("{section}.refresh");
    let text = shape.refresh.as_deref().unwrap_or("scheduled");
    let mode = files.parse(&key, text, |text| match text {
        "scheduled" => Ok(Mode::Scheduled),
        "on-demand" => Ok(Mode::OnDemand),
        _ => Err("must be \"scheduled\" or \"on-demand\"".into()),
    });
    if mode == Some(Mode::OnDemand) && shape.refresh_while_alive == Some(true) {
        let rule = "is \"on-demand\" but must be \"scheduled\" where refresh-while-alive is true: \
                    a grant that nobody reads in time would end";
        files.fail(&key, rule.into());
    }
    mode.unwrap_or(Mode::Scheduled)
}

fn registration(
    files: &mut Files,
    name: &str,
    shape: ProviderShape,
    rotation: Rotation,
    credentials: &mut Credentials,
) -> Option<Registration> {
    let section = format!("provider.{name}");
    let key = |key: &str| format!("{section}.{key}");
    let (connect_timeout, deadline) = timeouts(
        files,
        &section,
        shape.connect_timeout,
        shape.deadline,
        rotation,
    );
    let dead_grant_codes = shape.dead_grant_codes.unwrap_or_default();
    if dead_grant_codes.iter().any(String::is_empty) {
        files.fail(
            &key("dead-grant-codes"),
            "has \"\" but must be codes, none empty".into(),
        );
    }
    let token_endpoint = endpoint(
        files,
        &key("token-endpoint"),
        shape.token_endpoint.as_deref(),
    );
    if shape.token_endpoint.is_none() && !files.failed(&key("profile")) {
        let missing = "is missing; give it, or name a profile that has it";
        files.fail_missing(&key("token-endpoint"), missing);
    }
    let revocation_endpoint = endpoint(
        files,
        &key("revocation-endpoint"),
        shape.revocation_endpoint.as_deref(),
    );
    let client_id = client_id(files, &key("client-id"), shape.client_id);
    let client_auth = shape.client_auth.as_deref().unwrap_or("basic");
    let client_auth = files.parse(&key("client-auth"), client_auth, |text| match text {
        "basic" => Ok(ClientAuth::Basic),
        "body" => Ok(ClientAuth::Body),
        "none" => Ok(ClientAuth::None),
        _ => Err("must be \"basic\", \"body\" or \"none\"".into()),
    });
    let secret_key = key("client-secret");
    let client_secret = client_secret(
        files,
        &secret_key,
        shape.client_secret,
        client_auth?,
        credentials,
    )?;
    Some(Registration {
        provider: name.to_owned(),
        token_endpoint: token_endpoint?,
        revocation_endpoint,
        client_auth: client_auth?,
        client_id: client_id?,
        client_secret,
        dead_grant_codes,
        connect_timeout,
        deadline,
    })
}

fn client_id(files: &mut Files, key: &str, text: Option<String>) -> Option<String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        files.fail_missing(key, "is missing or empty; the provider gave you one");
        return None;
    };
    files.parse(key, &text, |text| {
        if text.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
            Ok(text.to_owned())
        } else {
            Err("must be printable ASCII (RFC 6749 appendix A.1)".into())
        }
    })
}

/// Reads the connect timeout and the deadline, which depend on each other and on the grace.
///
/// With a grace, one request and a second one after it must both fit, so a default is cut to fit.
fn timeouts(
    files: &mut Files,
    section: &str,
    connect: Option<Length>,
    deadline: Option<Length>,
    rotation: Rotation,
) -> (Duration, Duration) {
    let (connect_key, deadline_key) = (
        format!("{section}.connect-timeout"),
        format!("{section}.deadline"),
    );
    let connect = positive(files, &connect_key, connect);
    let given = positive(files, &deadline_key, deadline);
    let longest = match rotation {
        Rotation::Grace(grace) => Some(grace / 2),
        _ => None,
    };
    let deadline = given.unwrap_or(longest.map_or(DEADLINE, |longest| longest.min(DEADLINE)));
    if let (Some(longest), true) = (longest, given.is_some())
        && deadline > longest
    {
        let (is, most) = (show_duration(deadline), show_duration(longest));
        files.fail(
            &deadline_key,
            format!("is {is} but must be at most half the grace ({most})"),
        );
    }
    let connect = connect.unwrap_or(CONNECT_TIMEOUT.min(deadline / 2));
    if connect >= deadline {
        let (is, under) = (show_duration(connect), show_duration(deadline));
        files.fail(
            &connect_key,
            format!("is {is} but must be under the deadline ({under})"),
        );
    }
    (connect, deadline)
}

fn endpoint(files: &mut Files, key: &str, text: Option<&str>) -> Option<Url> {
    let text = text?;
    let Ok(url) = Url::parse(text) else {
        // Not shown: what cannot be taken apart cannot be searched for a password either.
        files.fail(
            key,
            "is not a URL; it must be like https://auth.example.com/token".into(),
        );
        return None;
    };
    if let Err(rule) = check_endpoint(&url) {
        files.fail(key, format!("is {} but {rule}", show_url(&url)));
        return None;
    }
    Some(url)
}

fn positive(files: &mut Files, key: &str, text: Option<Length>) -> Option<Duration> {
    files.parse(key, &text?.0, value::positive_duration)
}
