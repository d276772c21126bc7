//! What a token endpoint's answer means (RFC 6749 §5.1 and §5.2).

use std::time::Duration;

use super::time::UnixTime;
use super::token::{AccessToken, RefreshToken};

/// A successful answer, read leniently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenResponse {
    /// Never empty.
    pub access_token: AccessToken,
    /// As the server wrote it; `Bearer` where it wrote none that can be shown.
    pub token_type: String,
    /// The lifetime, where the server sent a positive one, as a number or a string.
    pub expires_in: Option<Duration>,
    /// The `exp` claim of an access token that is a JWT, unverified: only a hint for the schedule.
    pub jwt_expires_at: Option<UnixTime>,
    /// A new refresh token, where the server sent a non-empty one.
    pub refresh_token: Option<RefreshToken>,
    /// How long the refresh token lives, where the server sent a positive number of seconds.
    pub refresh_token_expires_in: Option<Duration>,
    /// The granted scope; an array is joined by spaces.
    pub scope: Option<String>,
}

/// How an attempt ended, as far as the network can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A token set with a non-empty access token.
    Tokens(TokenResponse),
    /// The server refused this grant for good (`invalid_grant` and the profile's equivalents).
    RefusedForGood(Refusal),
    /// The server refused our client, so every grant (`invalid_client` and friends).
    RefusedForAll(Refusal),
    /// The server answered, but it is no verdict: 408, 429, 5xx other than a gateway's, HTML, a redirect, an unexplained 4xx.
    RefusedForNow {
        /// What it said.
        refusal: Refusal,
        /// The clamped `Retry-After`, if there was one.
        retry_after: Option<Duration>,
    },
    /// The request was sent, and no whole answer came, or only a gateway's.
    Unknown(&'static str),
    /// The request never left: `dns`, `connect`, `tls`, `proxy`.
    NotSent(&'static str),
}

/// What a refusing server said, in words that are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status code.
    pub status: u16,
    /// The error code, only if it is one we know: a server's own text may hold a secret.
    pub code: Option<&'static str>,
}

/// Error codes that may be named in logs and stored. Anything else a server writes may be a secret it echoes.
const KNOWN_CODES: [&str; 15] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "access_denied",
    "temporarily_unavailable",
    "server_error",
    "slow_down",
    "interaction_required",
    "invalid_token",
    "unsupported_token_type",
    "invalid_dpop_proof",
    "use_dpop_nonce",
];

/// The members under which servers tell the refresh token's lifetime: GitHub and Google, Intuit, Keycloak.
const REFRESH_TOKEN_LIFETIMES: [&str; 3] = [
    "refresh_token_expires_in",
    "x_refresh_token_expires_in",
    "refresh_expires_in",
];

/// The code under which a profile's own word for `invalid_grant` is recorded.
const DEAD_GRANT: &str = "dead-grant";

/// The code under which a page for people is recorded that calls itself a success.
const HTML: &str = "html";

/// What an answer of the token endpoint holds.
pub struct Answer<'a> {
    /// The HTTP status code.
    pub status: u16,
    /// The `Retry-After` header's value.
    pub retry_after: Option<&'a str>,
    /// The whole body.
    pub body: &'a [u8],
}

/// Tells what a whole answer means. `dead_grant_codes` are the profile's own words for `invalid_grant`.
///
/// - A token set needs a 2xx and a non-empty `access_token`; a 2xx with an `error` member is an error (some
///   servers answer so).
/// - `invalid_grant` refuses the grant, `invalid_client`, `unauthorized_client` and `unsupported_grant_type` refuse
///   the client. Nothing else is a verdict (I5).
/// - A 2xx that is neither JSON nor HTML may have been a token set cut short: its fate is unknown.
/// - So it is where only a gateway speaks: the server behind it may have taken the refresh token, and its
///   answer came late or broken (RFC 9110 §15.6.3 and §15.6.5). One that names a known error speaks for the server.
pub fn classify(answer: &Answer<'_>, dead_grant_codes: &[String], now: UnixTime) -> Outcome {
    let json: Option<serde_json::Value> = serde_json::from_slice(answer.body).ok();
    let object = json.as_ref().and_then(|v| v.as_object());
    let success = (200..300).contains(&answer.status);
    let code = object.and_then(|o| error_code(o, dead_grant_codes));
    let html = looks_like_html(answer.body);
    let refusal = Refusal {
        status: answer.status,
        code: code.or((success && html).then_some(HTML)),
    };
    match code {
        Some("invalid_grant" | DEAD_GRANT) if success || is_client_error(answer.status) => {
            return Outcome::RefusedForGood(refusal);
        }
        Some("invalid_client" | "unauthorized_client" | "unsupported_grant_type")
            if success || is_client_error(answer.status) =>
        {
            return Outcome::RefusedForAll(refusal);
        }
        _ => {}
    }
    if success && !object.is_some_and(|o| o.contains_key("error")) {
        if let Some(tokens) = object.and_then(read_tokens) {
            return Outcome::Tokens(tokens);
        }
        if json.is_none() && !html {
            return Outcome::Unknown("unreadable");
        }
    }
    if let (None, Some(unknown)) = (code, gateways_word(answer.status)) {
        return Outcome::Unknown(unknown);
    }
    Outcome::RefusedForNow {
        refusal,
        retry_after: answer
            .retry_after
            .and_then(|value| super::policy::retry_after(value, now)),
    }
}

/// Bad gateway and gateway timeout, and what Cloudflare answers in their place.
fn gateways_word(status: u16) -> Option<&'static str> {
    match status {
        502 => Some("http-502"),
        504 => Some("http-504"),
        520 => Some("http-520"),
        524 => Some("http-524"),
        _ => None,
    }
}

/// 4xx, but not the two that say "later" whatever the body claims.
fn is_client_error(status: u16) -> bool {
    (400..500).contains(&status) && status != 408 && status != 429
}

fn looks_like_html(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'<')
}

/// What a token is where its server does not say so.
const DEFAULT_TYPE: &str = "Bearer";

type Object = serde_json::Map<String, serde_json::Value>;

fn error_code(object: &Object, dead_grant_codes: &[String]) -> Option<&'static str> {
    let said = |member: &str| object.get(member).and_then(|v| v.as_str());
    let dead = ["error", "status", "code"]
        .into_iter()
        .filter_map(said)
        .any(|code| dead_grant_codes.iter().any(|dead| dead == code));
    if dead {
        return Some(DEAD_GRANT);
    }
    let error = said("error")?;
    KNOWN_CODES.into_iter().find(|known| *known == error)
}

fn read_tokens(object: &Object) -> Option<TokenResponse> {
    let text = |member: &str| {
        let value = object.get(member)?.as_str()?;
        (!value.is_empty()).then(|| value.to_owned())
    };
    let access_token = text("access_token")?;
    Some(TokenResponse {
        token_type: text("token_type")
            .filter(|t| showable_type(t))
            .unwrap_or_else(|| DEFAULT_TYPE.to_owned()),
        expires_in: object.get("expires_in").and_then(positive_seconds),
        jwt_expires_at: jwt_expiry(&access_token),
        refresh_token: text("refresh_token").map(RefreshToken::new),
        refresh_token_expires_in: REFRESH_TOKEN_LIFETIMES
            .into_iter()
            .find_map(|member| positive_seconds(object.get(member)?)),
        scope: object.get("scope").and_then(scope_text),
        access_token: AccessToken::new(access_token),
    })
}

/// A token type is stored and shown in the clear, so only what looks like a type name is taken (RFC 6749 §8.1).
fn showable_type(name: &str) -> bool {
    name.len() <= 32
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._:/".contains(&b))
}

/// Reads a positive number of seconds from a JSON number or a string that holds one.
///
/// Missing, zero, negative and nonsense give `None`: the server has not said a usable lifetime.
pub fn positive_seconds(value: &serde_json::Value) -> Option<Duration> {
    let secs = match value {
        serde_json::Value::Number(number) => number.as_f64()?,
        serde_json::Value::String(text) => text.trim().parse::<f64>().ok()?,
        _ => return None,
    };
    if !secs.is_finite() || secs <= 0.0 {
        return None;
    }
    // A century is for ever, and keeps sums of it with any date in range.
    Some(Duration::from_secs_f64(secs.min(3_155_760_000.0)))
}

/// No list of scopes is longer, in bytes; it is stored and shown in the clear.
pub const LONGEST_SCOPE: usize = 16 << 10;

/// Reads a scope from a string or an array of strings. What holds control characters, or is longer than any
/// scope, is none.
pub fn scope_text(value: &serde_json::Value) -> Option<String> {
    let text = match value {
        serde_json::Value::String(text) => text.trim().to_owned(),
        serde_json::Value::Array(items) => {
            let items: Vec<&str> = items.iter().filter_map(|v| v.as_str()).collect();
            items.join(" ")
        }
        _ => return None,
    };
    let showable = text.len() <= LONGEST_SCOPE && !text.chars().any(char::is_control);
    (!text.is_empty() && showable).then_some(text)
}

/// A secret shorter than this may stand in a text by chance.
const SHORTEST_SECRET: usize = 12;

impl TokenResponse {
    /// Drops what is stored and shown in the clear but repeats a secret: one of this answer's tokens, or one of
    /// `sent`, which went out with the request (I6).
    pub fn drop_echoes(&mut self, sent: &[&str]) {
        let got = [
            Some(self.access_token.expose()),
            self.refresh_token.as_ref().map(RefreshToken::expose),
        ];
        let secrets = sent.iter().copied().chain(got.into_iter().flatten());
        let (mut type_echoes, mut scope_echoes) = (false, false);
        for secret in secrets.filter(|secret| secret.len() >= SHORTEST_SECRET) {
            type_echoes |= self.token_type.contains(secret);
            scope_echoes |= self.scope.as_ref().is_some_and(|s| s.contains(secret));
        }
        if type_echoes {
            self.token_type = DEFAULT_TYPE.to_owned();
        }
        if scope_echoes {
            self.scope = None;
        }
    }
}

/// Reads the `exp` claim (RFC 7519 §4.1.4) of an access token that happens to be a JWT, unverified.
pub fn jwt_expiry(access_token: &str) -> Option<UnixTime> {
    use base64::Engine;
    let mut parts = access_token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(payload)
        .ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    let exp = claims.get("exp")?.as_f64()?;
    (exp.is_finite() && exp > 0.0).then(|| UnixTime::from_millis((exp * 1000.0) as i64))
}

impl Refusal {
    /// Returns whether nothing says why: a 4xx that names no known error, or one that explains nothing.
    ///
    /// Neither a verdict nor a trouble that passes by itself; see [`super::policy::Policy::refuse_after`].
    pub fn unexplained(&self) -> bool {
        const EXPLAINED: [&str; 3] = ["temporarily_unavailable", "server_error", "slow_down"];
        is_client_error(self.status) && !self.code.is_some_and(|code| EXPLAINED.contains(&code))
    }
}

/// What an outcome says about the server's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// It served a token set.
    Served,
    /// It answered.
    Reached,
    /// It was not reached, gave no whole answer, or has trouble of its own (5xx).
    Failed,
}

impl Outcome {
    /// Says what this outcome tells about the server's health.
    pub fn contact(&self) -> Contact {
        match self {
            Outcome::Tokens(_) => Contact::Served,
            Outcome::RefusedForNow { refusal, .. } if refusal.status >= 500 => Contact::Failed,
            Outcome::RefusedForGood(_)
            | Outcome::RefusedForAll(_)
            | Outcome::RefusedForNow { .. } => Contact::Reached,
            Outcome::Unknown(_) | Outcome::NotSent(_) => Contact::Failed,
        }
    }

    /// Returns which of the outcomes this is.
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Tokens(_) => "token-set",
            Outcome::RefusedForGood(_) => "refused-for-good",
            Outcome::RefusedForAll(_) => "refused-for-all",
            Outcome::RefusedForNow { .. } => "refused-for-now",
            Outcome::Unknown(_) => "unknown",
            Outcome::NotSent(_) => "not-sent",
        }
    }

    /// Returns a short code for logs and rows: `ok`, `http-503`, `invalid_grant`, `connect`. Never a server's own text.
    pub fn code(&self) -> String {
        match self {
            Outcome::Tokens(_) => "ok".to_owned(),
            Outcome::RefusedForGood(refusal)
            | Outcome::RefusedForAll(refusal)
            | Outcome::RefusedForNow { refusal, .. } => match refusal.code {
                Some(code) => code.to_owned(),
                None => format!("http-{}", refusal.status),
            },
            Outcome::Unknown(code) => format!("unknown-{code}"),
            Outcome::NotSent(code) => (*code).to_owned(),
        }
    }

    /// Returns the HTTP status of a whole answer that refused.
    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::RefusedForGood(refusal)
            | Outcome::RefusedForAll(refusal)
            | Outcome::RefusedForNow { refusal, .. } => Some(refusal.status),
            Outcome::Tokens(_) | Outcome::Unknown(_) | Outcome::NotSent(_) => None,
        }
    }
}

#[cfg(test)]
#[path = "token_response_tests.rs"]
mod tests;
