//! Grants whose refreshes fail while their provider is not known to be down: what to tell, and what a code means.

use std::time::Duration;

use super::args::Grants;
use super::output::{count, exact, relative};
use super::troubles::{Finding, Findings, of_provider};
use crate::local_api::types::{FailingView, ProviderView, Status};
use crate::refresh::time::UnixTime;

/// Adds what fails at each provider. Of a provider that is stopped, paused, unreachable or gone its state tells all.
pub(super) fn failing(status: &Status, now: Option<UnixTime>, found: &mut Findings) {
    if status.state == "moved" {
        return;
    }
    for provider in &status.providers {
        let all = status.condition.failing.iter();
        let of: Vec<&FailingView> = all.filter(|it| it.provider == provider.name).collect();
        if of.is_empty() || !matches!(provider.state.as_str(), "running" | "cooling-down") {
            continue;
        }
        let told = tell(&provider.name, &of, now);
        if urgent(provider, &of, now) {
            found.troubles.push(told);
        } else {
            found.notices.push(told);
        }
    }
}

/// Whether a token has ended, or ends within the provider's margin. Without a clock the worse is taken.
fn urgent(provider: &ProviderView, of: &[&FailingView], now: Option<UnixTime>) -> bool {
    if of.iter().any(|it| it.without_token > 0) {
        return true;
    }
    let margin = Duration::try_from_secs_f64(provider.margin).unwrap_or_default();
    let Some(end) = soonest(of).and_then(UnixTime::from_rfc3339) else {
        return false;
    };
    now.is_none_or(|now| end <= now + margin)
}

fn soonest<'a>(of: &[&'a FailingView]) -> Option<&'a str> {
    let ends = of.iter().filter_map(|it| it.soonest_at.as_deref());
    ends.min_by_key(|at| UnixTime::from_rfc3339(at))
}

fn tell(name: &str, of: &[&FailingView], now: Option<UnixTime>) -> Finding {
    let grants: u64 = of.iter().map(|it| it.grants).sum();
    let without: u64 = of.iter().map(|it| it.without_token).sum();
    let mut codes = of.to_vec();
    codes.sort_by_key(|it| std::cmp::Reverse(it.grants));
    let how: Vec<String> = codes
        .iter()
        .map(|it| match codes.len() {
            1 => meaning(&it.code),
            _ => format!("{} {}", it.grants, meaning(&it.code)),
        })
        .collect();
    let how = how.join(", ");
    let since = codes.iter().map(|it| it.since.as_str());
    let since = since.min_by_key(|at| UnixTime::from_rfc3339(at));
    let what = if without > 0 {
        let (have, live) = (
            if without == 1 { "has" } else { "have" },
            match grants - without.min(grants) {
                0 => String::new(),
                n => format!("; {n} more fail, whose tokens still live"),
            },
        );
        format!(
            "{} at {name} {have} no access token that lives, since {}, because refreshes fail: {how}{live}",
            count(without, "grant"),
            exact(soonest(of).unwrap_or_default(), now),
        )
    } else {
        let keep = if grants == 1 { "fails" } else { "fail" };
        let ends = soonest(of).map_or_else(String::new, |at| {
            format!(", the first token ends {}", relative(at, now))
        });
        format!(
            "{} at {name} {keep} to be refreshed, three times or more in a row: {how}; last refreshed {}{ends}",
            count(grants, "grant"),
            relative(since.unwrap_or_default(), now),
        )
    };
    let mut todo = Vec::new();
    for it in &codes {
        let step = step(&it.code, name);
        if !todo.contains(&step) {
            todo.push(step);
        }
    }
    todo.push(
        "it is tried again by itself; what happened to one: freshctl why USER PROVIDER".into(),
    );
    let todo: Vec<&str> = todo.iter().map(String::as_str).collect();
    let filter = Grants {
        failing: true,
        ..of_provider(name)
    };
    Finding::new(what, &todo).about(grants, filter)
}

/// What a failure's code says about where the fault is.
enum Fault {
    /// Between this host and the server.
    Way,
    /// The server has trouble of its own, or did not answer.
    Server,
    /// Something answers that takes no token requests.
    Address,
    /// The server refuses, and does not blame the grant.
    Refusal,
}

fn fault(code: &str) -> Fault {
    match code {
        "dns" | "tls" | "tls-setup" | "connect" | "connect-timeout" | "proxy"
        | "insecure-endpoint" => Fault::Way,
        "http-429" => Fault::Server,
        "html" | "http-404" | "http-405" | "http-410" | "http-501" => Fault::Address,
        _ if code.starts_with("http-3") => Fault::Address,
        _ if code.starts_with("unknown-") || code.starts_with("http-5") => Fault::Server,
        "temporarily_unavailable" | "server_error" | "slow_down" => Fault::Server,
        _ => Fault::Refusal,
    }
}

fn meaning(code: &str) -> String {
    let words = match code {
        "dns" => "the server's name does not resolve",
        "tls" => "the server's certificate is not trusted, or it speaks no TLS",
        "tls-setup" => "this host has no CA certificates",
        "connect" | "connect-timeout" => "nobody answers there",
        "proxy" => "the proxy refuses",
        "insecure-endpoint" => "the endpoint is not https",
        "http-429" => "too many requests",
        "html" => "an HTML page in place of tokens",
        "" => return "no code was kept".to_owned(),
        _ => match fault(code) {
            Fault::Server if code.starts_with("unknown-") => "no whole answer came",
            Fault::Server => "the server has trouble of its own",
            Fault::Address if code.starts_with("http-3") => {
                "a redirect, which a token request never follows"
            }
            Fault::Address => "no token requests are taken there",
            Fault::Way | Fault::Refusal => "the server refuses",
        },
    };
    format!("{code} ({words})")
}

fn step(code: &str, provider: &str) -> String {
    match fault(code) {
        Fault::Way => format!(
            "freshctl doctor says why {provider} cannot be reached, and what to mend; also look at provider.{provider}'s token-endpoint"
        ),
        Fault::Address => address(code, provider),
        Fault::Server => {
            format!("wait; if it lasts, look at {provider}'s status page, or ask the provider")
        }
        Fault::Refusal => {
            format!("look at the app's registration at {provider}, or ask the provider")
        }
    }
}

/// What to do where something answers that is no token endpoint.
fn address(code: &str, provider: &str) -> String {
    let looks = match code.starts_with("http-3") || code == "html" {
        true => "this looks like the authorization URL, or like an address for people: ",
        false => "",
    };
    format!(
        "{looks}look at provider.{provider}.token-endpoint, which must be where token requests are posted; freshctl doctor tries it"
    )
}

/// What to do about one grant whose last attempt at `provider` ended with `code`.
pub(super) fn hint(code: &str, provider: &str) -> String {
    match fault(code) {
        Fault::Way => {
            "freshctl doctor says why the server cannot be reached, and what to mend; it is tried again by itself".to_owned()
        }
        Fault::Address => address(code, provider),
        Fault::Server | Fault::Refusal => {
            "nothing for this user: it is tried again by itself; if it lasts, ask the provider".to_owned()
        }
    }
}
