//! Paths, queries and bodies, read strictly: what is not understood is refused, naming it.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use axum::body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes};
use hyper::{HeaderMap, Uri};
use serde::de::DeserializeOwned;

use super::limits::Limits;
use super::problem;
use super::types::Problem;

/// The longest user, provider, account or namespace, in bytes.
const LONGEST_NAME: usize = 255;

/// How much of a refused value a message repeats, in characters.
const SHOWN: usize = 64;

/// The header by which an admin names a namespace.
pub(super) const NAMESPACE_HEADER: &str = "freshd-namespace";

/// The names in a path, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// What follows `/users/`.
    pub(super) user: Option<String>,
    /// What follows `/grants/` or `/providers/`: provider and account.
    pub(super) provider: Option<(String, String)>,
}

impl Names {
    /// Reads the names out of a path, whose every segment has to be sound.
    pub(super) fn of(path: &str) -> Result<Names, Problem> {
        if let Some((user, provider)) = token_path(path) {
            return Ok(Names {
                user: Some(name("user", user)?.into_owned()),
                provider: Some(provider_and_account(&name("provider", provider)?)?),
            });
        }
        let mut names = Names::default();
        let mut before = "";
        let segments = path.strip_prefix('/').unwrap_or_default();
        if segments.is_empty() {
            return Ok(names);
        }
        for segment in segments.split('/') {
            // What follows a name is never a name, so a user called "grants" confuses nobody.
            before = match before {
                "users" => {
                    names.user = Some(name("user", segment)?.into_owned());
                    ""
                }
                "grants" | "providers" => {
                    names.provider = Some(provider_and_account(&name("provider", segment)?)?);
                    ""
                }
                _ => {
                    name("path segment", segment)?;
                    segment
                }
            };
        }
        Ok(names)
    }
}

/// Returns a target's path and query.
pub(super) fn path_and_query(target: &str) -> (&str, &str) {
    split(target, b'?').unwrap_or((target, ""))
}

/// Returns user and provider as they are in a path, if it is the token route's.
pub(super) fn token_path(path: &str) -> Option<(&str, &str)> {
    grant_path(path, "/token")
}

/// Whether a path's route answers with a token.
pub(super) fn gives_token(path: &str) -> bool {
    token_path(path).is_some() || grant_path(path, "/refresh").is_some()
}

fn grant_path<'a>(path: &'a str, last: &str) -> Option<(&'a str, &'a str)> {
    let rest = path.strip_prefix("/v1/users/")?.strip_suffix(last)?;
    let (user, rest) = split(rest, b'/')?;
    let provider = rest.strip_prefix("grants/")?;
    split(provider, b'/').is_none().then_some((user, provider))
}

/// Splits at the first such byte, which is ASCII.
fn split(text: &str, at: u8) -> Option<(&str, &str)> {
    let at = memchr::memchr(at, text.as_bytes())?;
    Some((&text[..at], &text[at + 1..]))
}

/// Splits at the first colon; `google:` and `:work` are refused.
fn provider_and_account(text: &str) -> Result<(String, String), Problem> {
    let Some((provider, account)) = text.split_once(':') else {
        return Ok((text.into(), String::new()));
    };
    check_name("provider", provider)?;
    check_name("account", account)?;
    Ok((provider.into(), account.into()))
}

/// Decodes a path segment once, and checks that it can be a name.
fn name<'a>(what: &str, raw: &'a str) -> Result<Cow<'a, str>, Problem> {
    // Nearly all are of this kind, and there is nothing to decode or to refuse.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if (1..=LONGEST_NAME).contains(&raw.len()) && raw.bytes().all(plain) {
        return Ok(raw.into());
    }
    let decoded = decode(what, raw)?;
    check_name(what, &decoded)?;
    Ok(decoded)
}

/// Checks that `text` can be a user, provider, account or namespace.
fn check_name(what: &str, text: &str) -> Result<(), Problem> {
    let rule = match text {
        "" => "is empty but must be 1 to 255 bytes",
        "." | ".." => "must not be . or ..",
        _ if text.len() > LONGEST_NAME => {
            let detail = format!("{what} is {} bytes but must be 1 to 255 bytes", text.len());
            return Err(problem::bad_request(detail));
        }
        _ if text.chars().any(char::is_control) => "must not hold control characters",
        _ => return Ok(()),
    };
    Err(refuse(what, text, rule))
}

/// Decodes `%XX` exactly once.
fn decode<'a>(what: &str, raw: &'a str) -> Result<Cow<'a, str>, Problem> {
    let mut rest = raw.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        if !matches!(rest.get(at + 1..at + 3), Some(hex) if hex.iter().all(u8::is_ascii_hexdigit)) {
            return Err(refuse(
                what,
                raw,
                "must have two hexadecimal digits after each %",
            ));
        }
        rest = &rest[at + 3..];
    }
    percent_encoding::percent_decode_str(raw)
        .decode_utf8()
        .map_err(|_| refuse(what, raw, "must be UTF-8 when decoded"))
}

fn refuse(what: &str, value: &str, rule: &str) -> Problem {
    problem::bad_request(format!("{what} {:?} {rule}", shown(value)))
}

/// Returns as much of a value as a message repeats.
pub(super) fn shown(value: &str) -> Cow<'_, str> {
    match value.char_indices().nth(SHOWN) {
        None => value.into(),
        Some((end, _)) => format!("{}…", &value[..end]).into(),
    }
}

/// Reads the namespace an admin names, if any.
pub(super) fn namespace(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(NAMESPACE_HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| problem::bad_request("header Freshd-Namespace must be UTF-8"))?;
    if values.next().is_some() {
        return Err(problem::bad_request(
            "header Freshd-Namespace must be there once only",
        ));
    }
    check_name("header Freshd-Namespace", text)?;
    Ok(Some(text.into()))
}

/// Reads a request target and a namespace header with what the routes read theirs, for the fuzzer.
///
/// # Errors
/// Whatever is not understood, as the caller would be told.
#[doc(hidden)]
pub fn read_token_request(target: &str, namespace_header: Option<&[u8]>) -> Result<(), Problem> {
    let uri: Uri = target
        .parse()
        .map_err(|_| problem::bad_request("the request target is no URI"))?;
    Names::of(uri.path())?;
    let query = Query::of(&uri, &["min_ttl", "wait", "activity", "provider"])?;
    query.whole("min_ttl", 0..=86_400)?;
    query.whole("wait", 0..=u64::MAX)?;
    query.flag("activity")?;
    query.name("provider")?;
    let mut headers = HeaderMap::new();
    if let Some(value) = namespace_header.map(hyper::header::HeaderValue::from_bytes) {
        let value = value.map_err(|_| problem::bad_request("the header is no header"))?;
        headers.insert(NAMESPACE_HEADER, value);
    }
    namespace(&headers).map(drop)
}

/// A query, of which every parameter is known to its route and given once.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the query of a route that knows the `allowed` parameters.
    pub(super) fn of(uri: &Uri, allowed: &[&str]) -> Result<Query, Problem> {
        Query::read(uri.query().unwrap_or_default(), allowed)
    }

    /// The same, of what follows the question mark.
    pub(super) fn read(query: &str, allowed: &[&str]) -> Result<Query, Problem> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(key) = allowed.iter().find(|name| **name == key) else {
                let rule = match allowed {
                    [] => "is unknown: this route takes none".to_owned(),
                    _ => format!("is unknown: this route takes {}", allowed.join(", ")),
                };
                return Err(refuse("query parameter", key, &rule));
            };
            if pairs.iter().any(|(known, _)| known == key) {
                return Err(refuse("query parameter", key, "must be given once only"));
            }
            let value = decode(key, &value.replace('+', " "))?.into_owned();
            pairs.push(((*key).to_owned(), value));
        }
        Ok(Query(pairs))
    }

    /// Refuses any parameter at all.
    pub(super) fn none(uri: &Uri) -> Result<(), Problem> {
        Query::of(uri, &[]).map(drop)
    }

    /// Returns a parameter's text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns a parameter that is a name.
    pub(super) fn name(&self, name: &str) -> Result<Option<String>, Problem> {
        self.text(name)
            .map(|text| check_name(name, text).map(|()| text.to_owned()))
            .transpose()
    }

    /// Returns a parameter that is one of `words`, of which there are two at least.
    pub(super) fn one_of(&self, name: &str, words: &[&str]) -> Result<Option<String>, Problem> {
        match self.text(name) {
            Some(text) if !words.contains(&text) => {
                let (last, others) = words.split_last().expect("there are words to choose from");
                Err(refuse(
                    name,
                    text,
                    &format!("must be {} or {last}", others.join(", ")),
                ))
            }
            text => Ok(text.map(str::to_owned)),
        }
    }

    /// Returns a parameter that is `true` or `false`.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Problem> {
        Ok(self
            .one_of(name, &["true", "false"])?
            .map(|text| text == "true"))
    }

    /// Returns a parameter that is a whole number in `range`.
    pub(super) fn whole(
        &self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, Problem> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits && range.contains(&number) => Ok(Some(number)),
            _ => {
                let rule = format!(
                    "must be a whole number from {} to {}",
                    range.start(),
                    range.end()
                );
                Err(refuse(name, text, &rule))
            }
        }
    }
}

/// Reads a body that must be a JSON object.
///
/// # Errors
///
/// 400 with the position, never with a part of the body; 408 and 413 by `limits`.
pub(super) async fn object<T: DeserializeOwned>(body: Body, limits: &Limits) -> Result<T, Problem> {
    let bytes = read(body, limits).await?;
    if bytes.is_empty() {
        return Err(problem::bad_request(
            "the body is empty but must be a JSON object",
        ));
    }
    parse(&bytes)
}

/// Reads a body that may be left out.
pub(super) async fn optional_object<T: DeserializeOwned + Default>(
    body: Body,
    limits: &Limits,
) -> Result<T, Problem> {
    let bytes = read(body, limits).await?;
    if bytes.is_empty() {
        Ok(T::default())
    } else {
        parse(&bytes)
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // serde would take an array for a struct, member by member.
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'{') {
        return Err(problem::bad_request(
            "the body must be a JSON object, but does not begin with {",
        ));
    }
    // serde_json's own message can quote the body, and with it a token (I6).
    serde_json::from_slice(bytes).map_err(|error| {
        let rule = if error.is_data() {
            "has an unknown member, a member twice, or one of the wrong type"
        } else {
            "is not JSON"
        };
        let (line, column) = (error.line(), error.column());
        problem::bad_request(format!("the body {rule}, at line {line} column {column}"))
    })
}

async fn read(body: Body, limits: &Limits) -> Result<Bytes, Problem> {
    let limit = limits.body_bytes;
    if body.size_hint().lower() > limit as u64 {
        return Err(problem::too_large(limit));
    }
    let whole = tokio::time::timeout(limits.body_read, Limited::new(body, limit).collect());
    match whole.await {
        Err(_) => Err(problem::request_timeout(limits.body_read)),
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(problem::too_large(limit)),
        Ok(Err(_)) => Err(problem::bad_request(
            "the body ended early or is not framed as HTTP/1.1 says",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &str) -> String {
        let problem = Names::of(path).expect_err(path);
        assert_eq!(
            (problem.status, problem.kind.as_str()),
            (400, "urn:freshd:bad-request")
        );
        problem.detail
    }

    #[test]
    fn names_are_decoded_exactly_once() {
        let names =
            Names::of("/v1/users/a%2Fb%252e%20%C3%BC/grants/google%3Awork:x/token").unwrap();
        assert_eq!(names.user.as_deref(), Some("a/b%2e ü"));
        assert_eq!(names.provider, Some(("google".into(), "work:x".into())));
        assert_eq!(
            Names::of("/v1/users/a+b").unwrap().user.as_deref(),
            Some("a+b")
        );
        let only = |user: &str| Names {
            user: Some(user.into()),
            provider: None,
        };
        assert_eq!(
            Names::of("/v1/users/users/activity").unwrap(),
            only("users")
        );
        assert_eq!(Names::of("/v1/users/grants/pause").unwrap(), only("grants"));
        let names = Names::of("/v1/users/users/grants/grants/pause").unwrap();
        assert_eq!(names.provider, Some(("grants".into(), String::new())));
        assert_eq!(Names::of("/").unwrap(), Names::default());
        assert_eq!(Names::of("*").unwrap(), Names::default());
    }

    #[test]
    fn unsound_segments_are_refused_by_name_value_and_rule() {
        assert_eq!(refused("/v1/users/.."), "user \"..\" must not be . or ..");
        assert_eq!(
            refused("/v1/users/%2e%2E/grants/x"),
            "user \"..\" must not be . or .."
        );
        assert_eq!(
            refused("/v1/users/a/grants/."),
            "provider \".\" must not be . or .."
        );
        assert_eq!(
            refused("/v1/../x"),
            "path segment \"..\" must not be . or .."
        );
        assert_eq!(
            refused("/v1/users//x"),
            "user \"\" is empty but must be 1 to 255 bytes"
        );
        assert!(refused("/v1/users/a/").contains("path segment \"\" is empty"));
        assert!(refused("/v1/users/a%0Ab").contains("\"a\\nb\" must not hold control characters"));
        assert!(refused("/v1/users/a%00").contains("control characters"));
        assert!(refused("/v1/users/%C2%85").contains("control characters"));
        assert!(refused("/v1/users/%ff").contains("must be UTF-8"));
        assert!(
            refused("/v1/users/%c0%ae").contains("must be UTF-8"),
            "an overlong dot"
        );
        assert!(refused("/v1/users/%4").contains("two hexadecimal digits"));
        assert!(refused("/v1/users/%+1").contains("two hexadecimal digits"));
        assert!(refused("/v1/users/a%").contains("two hexadecimal digits"));
        assert!(refused("/v1/users/a/grants/google:").contains("account \"\" is empty"));
        assert!(refused("/v1/users/a/grants/:work").contains("provider \"\" is empty"));
        assert!(refused("/v1/users/a/grants/google:..").contains("account \"..\""));
    }

    #[test]
    fn a_name_has_255_bytes_at_most() {
        let longest = "%C3%BC".repeat(127) + "x";
        assert_eq!(
            Names::of(&format!("/v1/users/{longest}"))
                .unwrap()
                .user
                .unwrap()
                .len(),
            255
        );
        assert_eq!(
            refused(&format!("/v1/users/{}", "x".repeat(256))),
            "user is 256 bytes but must be 1 to 255 bytes"
        );
    }

    fn query(text: &str) -> Result<Query, Problem> {
        let uri = format!("/x?{text}").parse().unwrap();
        Query::of(&uri, &["min_ttl", "activity", "missing_scope"])
    }

    #[test]
    fn a_query_is_read_strictly() {
        let good = query("min_ttl=30&activity=false&&missing_scope=https%3A%2F%2Fx%2Fa+b").unwrap();
        assert_eq!(good.whole("min_ttl", 0..=86400).unwrap(), Some(30));
        assert_eq!(good.flag("activity").unwrap(), Some(false));
        assert_eq!(good.text("missing_scope"), Some("https://x/a b"));
        assert_eq!(
            query("min-ttl=3").unwrap_err().detail,
            "query parameter \"min-ttl\" is unknown: this route takes min_ttl, activity, missing_scope"
        );
        assert!(
            query("activity=true&activity=false")
                .unwrap_err()
                .detail
                .contains("once only")
        );
        assert!(query("missing_scope=%f").is_err());
        for number in [
            "",
            "-1",
            "+1",
            "1.5",
            "86401",
            "99999999999999999999",
            "%20",
        ] {
            let query = query(&format!("min_ttl={number}")).unwrap();
            let detail = query.whole("min_ttl", 0..=86400).unwrap_err().detail;
            assert!(
                detail.ends_with("must be a whole number from 0 to 86400"),
                "{detail}"
            );
        }
        let flag = query("activity=yes").unwrap().flag("activity").unwrap_err();
        assert_eq!(flag.detail, "activity \"yes\" must be true or false");
    }

    #[test]
    fn a_body_must_be_an_object_and_is_never_quoted() {
        use super::super::types::{ImportRequest, RefreshRequest};
        let good: RefreshRequest = parse(b" \n{\"generation\": 7}").unwrap();
        assert_eq!(good.generation, Some(7));
        for bad in [
            &b"[7]"[..],
            b"7",
            b"\"canary\"",
            b"{\"generation\":\"canary\"}",
            b"{\"canary\":1}",
            b"{\"generation\":1,\"generation\":2}",
            b"{\"generation\":7} canary",
            b"{canary",
        ] {
            let problem = parse::<RefreshRequest>(bad).unwrap_err();
            assert_eq!(problem.status, 400);
            assert!(!problem.detail.contains("canary"), "{}", problem.detail);
        }
        let problem = parse::<ImportRequest>(b"{\n\"access_token\":{\"canary\":1}}")
            .err()
            .unwrap();
        assert!(
            problem.detail.ends_with("at line 2 column 15"),
            "{}",
            problem.detail
        );
    }

    #[test]
    fn messages_repeat_little_of_what_they_refuse() {
        assert_eq!(shown("short"), "short");
        assert_eq!(shown(&"ü".repeat(65)), "ü".repeat(64) + "…");
    }
}
