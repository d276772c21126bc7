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
    /// The server answered, but it is no verdict: 408, 429, 5xx, HTML, a redirect, an unexplained 4xx.
    RefusedForNow {
        /// What it said.
        refusal: Refusal,
        /// The clamped `Retry-After`, if there was one.
        retry_after: Option<Duration>,
    },
    /// The request was sent, and no whole answer came.
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

/// The code under which a profile's own word for `invalid_grant` is recorded.
const DEAD_GRANT: &str = "dead-grant";

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
pub fn classify(answer: &Answer<'_>, dead_grant_codes: &[String], now: UnixTime) -> Outcome {
    let json: Option<serde_json::Value> = serde_json::from_slice(answer.body).ok();
    let object = json.as_ref().and_then(|v| v.as_object());
    let success = (200..300).contains(&answer.status);
    let code = object.and_then(|o| error_code(o, dead_grant_codes));
    let refusal = Refusal {
        status: answer.status,
        code,
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
        if json.is_none() && !looks_like_html(answer.body) {
            return Outcome::Unknown("unreadable");
        }
    }
    Outcome::RefusedForNow {
        refusal,
        retry_after: answer
            .retry_after
            .and_then(|value| super::policy::retry_after(value, now)),
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

/// No list of scopes is longer; it is stored and shown in the clear.
const LONGEST_SCOPE: usize = 16 << 10;

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

impl Outcome {
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
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);

    fn classified(status: u16, body: &str) -> Outcome {
        let answer = Answer {
            status,
            retry_after: None,
            body: body.as_bytes(),
        };
        classify(&answer, &["BAD_REFRESH_TOKEN".to_owned()], NOW)
    }

    fn tokens(body: serde_json::Value) -> TokenResponse {
        match classified(200, &body.to_string()) {
            Outcome::Tokens(tokens) => tokens,
            other => panic!("{body} gave {other:?}"),
        }
    }

    #[test]
    fn expires_in_is_read_leniently() {
        let read = |value: serde_json::Value| {
            tokens(json!({"access_token": "a", "expires_in": value})).expires_in
        };
        assert_eq!(read(json!(21_600)), Some(Duration::from_secs(21_600)));
        assert_eq!(read(json!("3600")), Some(Duration::from_secs(3600)));
        assert_eq!(read(json!(" 3600 ")), Some(Duration::from_secs(3600)));
        assert_eq!(read(json!(59.5)), Some(Duration::from_millis(59_500)));
        for unusable in [
            json!(0),
            json!(-5),
            json!("0"),
            json!("soon"),
            json!(null),
            json!(true),
            json!("NaN"),
            json!("-inf"),
            json!([3600]),
        ] {
            assert_eq!(read(unusable.clone()), None, "{unusable}");
        }
        assert!(read(json!(1e300)).is_some_and(|d| NOW + d > NOW));
        assert_eq!(tokens(json!({"access_token": "a"})).expires_in, None);
    }

    #[test]
    fn token_type_is_kept_as_written_and_defaults_to_bearer() {
        let read = |value: serde_json::Value| {
            tokens(json!({"access_token": "a", "token_type": value})).token_type
        };
        assert_eq!(read(json!("bearer")), "bearer");
        assert_eq!(read(json!("BEARER")), "BEARER");
        assert_eq!(read(json!("DPoP")), "DPoP");
        assert_eq!(read(json!("")), "Bearer");
        assert_eq!(read(json!(7)), "Bearer");
        assert_eq!(read(json!("x".repeat(200))), "Bearer");
        assert_eq!(tokens(json!({"access_token": "a"})).token_type, "Bearer");
    }

    #[test]
    fn a_16_kib_token_and_unknown_members_are_taken() {
        let long = "t".repeat(16 * 1024);
        let read = tokens(json!({"access_token": long, "hub_id": 7, "nested": {"a": [1]}}));
        assert_eq!(read.access_token.expose(), long);
    }

    #[test]
    fn an_empty_refresh_token_counts_as_none_sent() {
        assert_eq!(
            tokens(json!({"access_token": "a", "refresh_token": ""})).refresh_token,
            None
        );
        assert_eq!(
            tokens(json!({"access_token": "a", "refresh_token": null})).refresh_token,
            None
        );
    }

    #[test]
    fn scope_may_be_a_string_or_an_array() {
        let read =
            |value: serde_json::Value| tokens(json!({"access_token": "a", "scope": value})).scope;
        assert_eq!(read(json!("a b")).as_deref(), Some("a b"));
        assert_eq!(read(json!(["a", "b"])).as_deref(), Some("a b"));
        assert_eq!(read(json!("")), None);
        assert_eq!(read(json!([])), None);
        assert_eq!(read(json!("a\u{1b}[31m b")), None);
        assert_eq!(read(json!(["a\nb"])), None);
        assert_eq!(read(json!("a ".repeat(10_000))), None);
    }

    #[test]
    fn a_secret_that_a_server_echoes_is_not_taken_for_a_scope_or_a_type() {
        for secret in [
            "access-canary",
            "refresh-canary",
            "presented-canary",
            "client-canary",
        ] {
            let mut read = tokens(json!({
                "access_token": "access-canary", "refresh_token": "refresh-canary",
                "token_type": secret, "scope": format!("read {secret}"),
            }));
            read.drop_echoes(&["presented-canary", "client-canary"]);
            assert_eq!((read.token_type.as_str(), read.scope), ("Bearer", None));
        }
        let mut read = tokens(json!({"access_token": "read", "scope": "read write"}));
        read.drop_echoes(&["write", ""]);
        assert_eq!(read.scope.as_deref(), Some("read write"));
    }

    #[test]
    fn a_jwt_tells_its_expiry() {
        use base64::Engine;
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let jwt = format!("{}.{}.sig", encode("{}"), encode(r#"{"exp":1790003600}"#));
        assert_eq!(
            tokens(json!({"access_token": jwt})).jwt_expires_at,
            Some(UnixTime::from_secs(1_790_003_600))
        );
        for not_a_jwt in ["opaque", "a.b.c", "a..c", "...", "é.é.é"] {
            assert_eq!(jwt_expiry(not_a_jwt), None);
        }
    }

    /// What each answer means.
    #[test]
    fn answers_are_told_apart() {
        let now = |status, code| Outcome::RefusedForNow {
            refusal: Refusal { status, code },
            retry_after: None,
        };
        let good = |status, code| {
            Outcome::RefusedForGood(Refusal {
                status,
                code: Some(code),
            })
        };
        let all = |status, code| {
            Outcome::RefusedForAll(Refusal {
                status,
                code: Some(code),
            })
        };
        let html = "  <!doctype html><h1>log in</h1>";
        let table = [
            (
                400,
                r#"{"error":"invalid_grant"}"#,
                good(400, "invalid_grant"),
            ),
            (
                401,
                r#"{"error":"invalid_grant"}"#,
                good(401, "invalid_grant"),
            ),
            (
                403,
                r#"{"error":"invalid_grant"}"#,
                good(403, "invalid_grant"),
            ),
            (
                200,
                r#"{"error":"invalid_grant"}"#,
                good(200, "invalid_grant"),
            ),
            (
                400,
                r#"{"status":"BAD_REFRESH_TOKEN","message":"m"}"#,
                good(400, DEAD_GRANT),
            ),
            (
                401,
                r#"{"error":"invalid_client"}"#,
                all(401, "invalid_client"),
            ),
            (
                400,
                r#"{"error":"unauthorized_client"}"#,
                all(400, "unauthorized_client"),
            ),
            (
                400,
                r#"{"error":"unsupported_grant_type"}"#,
                all(400, "unsupported_grant_type"),
            ),
            (
                503,
                r#"{"error":"invalid_grant"}"#,
                now(503, Some("invalid_grant")),
            ),
            (
                429,
                r#"{"error":"invalid_client"}"#,
                now(429, Some("invalid_client")),
            ),
            (408, "", now(408, None)),
            (400, "", now(400, None)),
            (400, html, now(400, None)),
            (
                400,
                r#"{"error":"invalid_request"}"#,
                now(400, Some("invalid_request")),
            ),
            (400, r#"{"error":"s3cr3t-echoed"}"#, now(400, None)),
            (400, r#"{"error":{"code":"x"}}"#, now(400, None)),
            (302, "", now(302, None)),
            (500, html, now(500, None)),
            (200, html, now(200, None)),
            (200, r#"{"access_token":""}"#, now(200, None)),
            (200, r#"{"access_token":7}"#, now(200, None)),
            (200, r#"["access_token"]"#, now(200, None)),
            (
                200,
                r#"{"error":"nope","access_token":"a"}"#,
                now(200, None),
            ),
            (
                200,
                r#"{"access_token":"a","exp"#,
                Outcome::Unknown("unreadable"),
            ),
            (200, "", Outcome::Unknown("unreadable")),
        ];
        for (status, body, meaning) in table {
            assert_eq!(classified(status, body), meaning, "{status} {body}");
        }
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_date_and_clamped() {
        let wait = |value: &str| {
            let answer = Answer {
                status: 429,
                retry_after: Some(value),
                body: b"",
            };
            match classify(&answer, &[], NOW) {
                Outcome::RefusedForNow { retry_after, .. } => retry_after,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(
            wait("999999999"),
            Some(super::super::policy::RETRY_AFTER_CAP)
        );
        // 2026-09-21T14:13:20Z is NOW.
        assert_eq!(
            wait("Mon, 21 Sep 2026 14:14:20 GMT"),
            Some(Duration::from_secs(60))
        );
        assert_eq!(wait("Mon, 21 Sep 2020 14:14:20 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("-3"), None);
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn a_servers_own_words_never_become_a_code() {
        let outcome = classified(
            400,
            r#"{"error":"canary-token","error_description":"canary"}"#,
        );
        assert_eq!(outcome.code(), "http-400");
        assert!(!format!("{outcome:?}").contains("canary"));
    }
}
