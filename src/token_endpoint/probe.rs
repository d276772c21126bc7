//! Asks a token endpoint whether it is one, with a request that holds no credentials and no grant.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, LOCATION};
use url::Url;

use super::{Outbound, builder, built, failure};
use crate::profile::check_endpoint;
use crate::refresh::token_response::Outcome;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(15);

/// What came back, without the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The HTTP status.
    pub status: u16,
    /// Whether the answer says that it is a page for people.
    pub html: bool,
    /// The host that a redirect leads to.
    pub redirect: Option<String>,
}

/// Posts an empty form (RFC 6749 §3.2): a token endpoint refuses it with 400 or 401.
///
/// # Errors
/// A short code for what went wrong on the way: `dns`, `tls`, `connect`, `connect-timeout`, `proxy`, `deadline` …
pub async fn ask(endpoint: &Url, outbound: &Outbound) -> Result<Seen, &'static str> {
    if check_endpoint(endpoint).is_err() {
        return Err("insecure-endpoint");
    }
    let client = builder(outbound, CONNECT_TIMEOUT, DEADLINE)
        // A redirect is one, whatever is in its Location.
        .map(|builder| builder.http1_ignore_invalid_headers_in_responses(true))
        .and_then(|builder| built(builder, outbound))
        .map_err(|_| "tls-setup")?;
    let nothing: [(&str, &str); 0] = [];
    let sent = client.post(endpoint.clone()).form(&nothing).send().await;
    let answer = sent.map_err(|error| match failure::before_answer(&error) {
        Outcome::NotSent(code) | Outcome::Unknown(code) => code,
        _ => "connection-lost",
    })?;
    let header = |name| {
        answer
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let html = header(CONTENT_TYPE).is_some_and(|kind| {
        kind.trim_start()
            .to_ascii_lowercase()
            .starts_with("text/html")
    });
    let redirect = header(LOCATION)
        .filter(|_| answer.status().is_redirection())
        .and_then(|to| endpoint.join(to).ok()?.host_str().map(str::to_owned));
    Ok(Seen {
        status: answer.status().as_u16(),
        html,
        redirect,
    })
}
