//! Reading what an app imports: RFC 6749 §5.1 members, and the moments the app knows.

use std::time::Duration;

use crate::local_api::problem;
use crate::local_api::types::{ImportRequest, Problem, mistaken};
use crate::refresh::policy::{Policy, warn_at};
use crate::refresh::time::UnixTime;
use crate::refresh::token::{AccessToken, RefreshToken, RefreshTokenEnd, TokenSet};
use crate::refresh::token_response::{LONGEST_SCOPE, jwt_expiry, positive_seconds, scope_text};

/// Turns an import into a token set.
///
/// The end of the access token is, in this order: `expires_at`; `expires_in` counted from `obtained_at`, or from
/// now; the `exp` of a JWT; `obtained_at` and the provider's usual lifetime. Where none of these is known and there is a
/// refresh token, the end is taken to be now: the token is not served and a refresh is due. An access
/// token alone whose end nobody knows is served as it is.
///
/// # Errors
///
/// A `bad-request` that names the member, the value (never a token) and the rule.
pub(super) fn token_set(
    request: ImportRequest,
    now: UnixTime,
    policy: &Policy,
) -> Result<TokenSet, Problem> {
    if let Some((name, meant)) = request.mistaken() {
        return Err(problem::bad_request(mistaken(name, meant)));
    }
    let access_token = request.access_token.filter(|token| !token.is_empty());
    let refresh_token = request.refresh_token.filter(|token| !token.is_empty());
    if access_token.is_none() && refresh_token.is_none() {
        return Err(problem::bad_request(
            "the import holds no token: give access_token, refresh_token or both, not empty",
        ));
    }
    let obtained_at = moment("obtained_at", request.obtained_at.as_ref())?;
    // An issue date in the future is a clock that differs from ours; it counts as now.
    let obtained_at = obtained_at.map(|at| at.min(now));
    let expires_at = moment("expires_at", request.expires_at.as_ref())?;
    let expires_in = lifetime(request.expires_in.as_ref())?;
    let issued_at = obtained_at.unwrap_or(now);
    let known = expires_at
        .or_else(|| Some(issued_at + expires_in?))
        .or_else(|| jwt_expiry(access_token.as_ref()?))
        .or_else(|| Some(obtained_at? + policy.default_lifetime?));
    let expires_at = match known {
        Some(at) => Some(at),
        None if refresh_token.is_some() => Some(now),
        None => None,
    };
    let refresh_token_ends_at = moment(
        "refresh_token_expires_at",
        request.refresh_token_expires_at.as_ref(),
    )?
    .or_else(|| {
        let lifetime = request.refresh_token_expires_in.as_ref();
        // As in a token response, zero and nonsense say nothing.
        Some(issued_at + positive_seconds(lifetime?)?)
    });
    let refresh_token_end = refresh_token_ends_at
        .filter(|_| refresh_token.is_some())
        .map(|expires_at| RefreshTokenEnd {
            expires_at,
            warn_at: Some(warn_at(issued_at, expires_at, policy.refresh_token_warning)),
        });
    let scope = scope(request.scope.as_ref())?;
    let token_type = request.token_type.unwrap_or_else(|| "Bearer".to_owned());
    if token_type.len() > 32 || !token_type.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(problem::bad_request(
            "token_type must be 1 to 32 printable characters, such as Bearer",
        ));
    }
    Ok(TokenSet {
        access_token: access_token.map(AccessToken::new),
        token_type,
        expires_at,
        obtained_at: issued_at,
        refresh_token: refresh_token.map(RefreshToken::new),
        refresh_token_end,
        scope,
    })
}

/// Reads `scope` as a token response's, but where that would leave something out of it there is somebody to tell.
fn scope(value: Option<&serde_json::Value>) -> Result<Option<String>, Problem> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let parts: Option<Vec<&str>> = match value {
        serde_json::Value::String(text) => Some(vec![text]),
        serde_json::Value::Array(parts) => parts.iter().map(serde_json::Value::as_str).collect(),
        _ => None,
    };
    let Some(parts) = parts else {
        return Err(problem::bad_request(
            "scope must be a string or an array of strings",
        ));
    };
    if parts.iter().any(|part| part.chars().any(char::is_control)) {
        return Err(problem::bad_request(
            "scope must not hold control characters: it is a list of words, separated by spaces (RFC 6749 section 3.3)",
        ));
    }
    let empty = parts.iter().all(|part| part.trim().is_empty());
    match scope_text(value) {
        None if !empty => Err(problem::bad_request(format!(
            "scope must be {LONGEST_SCOPE} bytes at most"
        ))),
        scope => Ok(scope),
    }
}

/// Reads `expires_in`. Zero and less mean that the token has ended.
fn lifetime(value: Option<&serde_json::Value>) -> Result<Option<Duration>, Problem> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    if let Some(length) = positive_seconds(value) {
        return Ok(Some(length));
    }
    let number = match value {
        serde_json::Value::Number(number) => number.as_f64(),
        serde_json::Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    match number {
        Some(secs) if secs <= 0.0 => Ok(Some(Duration::ZERO)),
        _ => Err(problem::bad_request(
            "expires_in must be a number of seconds, or a string that holds one",
        )),
    }
}

/// Reads a moment: RFC 3339, or seconds since the epoch as a number or a string.
fn moment(member: &str, value: Option<&serde_json::Value>) -> Result<Option<UnixTime>, Problem> {
    let read = match value {
        None | Some(serde_json::Value::Null) => return Ok(None),
        Some(serde_json::Value::Number(number)) => number.as_f64().and_then(from_seconds),
        Some(serde_json::Value::String(text)) => {
            let text = text.trim();
            let seconds = || from_seconds(text.parse().ok()?);
            let read = UnixTime::from_rfc3339(text).or_else(seconds);
            read.or_else(|| last_days(text))
        }
        Some(_) => None,
    };
    read.map(Some).ok_or_else(|| {
        problem::bad_request(format!(
            "{member} must be an RFC 3339 date such as 2026-11-22T10:00:00Z, or seconds since 1970 (not milliseconds)"
        ))
    })
}

/// Programs write the last second of the year 9999 for "never"; our dates end a day before it.
fn last_days(text: &str) -> Option<UnixTime> {
    let pieces = jiff::fmt::temporal::Pieces::parse(text).ok()?;
    let date = pieces.date();
    let whole = pieces.time().is_some() && pieces.offset().is_some();
    (whole && (date.year(), date.month()) == (9999, 12)).then_some(LATEST)
}

/// 9999-12-30T22:00:00Z.
const LATEST: UnixTime = UnixTime::from_secs(253_402_207_200);

/// Seconds since the epoch, up to the year 9999: what lies beyond is milliseconds by mistake.
fn from_seconds(secs: f64) -> Option<UnixTime> {
    (0.0..253_402_300_800.0)
        .contains(&secs)
        .then(|| UnixTime::from_millis((secs * 1000.0) as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refresh::policy::{Mode, Rotation};
    use serde_json::json;

    const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);

    fn policy() -> Policy {
        Policy {
            margin: Duration::from_secs(60),
            floor: Duration::from_secs(1),
            rotation: Rotation::Strict,
            inactive_after: Duration::from_secs(3 * 86_400),
            max_unused_refreshes: 100,
            default_lifetime: Some(Duration::from_secs(1800)),
            refresh_token_idle_lifetime: None,
            keep_alive: true,
            mode: Mode::Scheduled,
            refresh_not_before: None,
            refresh_while_alive: false,
            refuse_after: Duration::from_secs(86_400),
            refresh_token_warning: Duration::from_secs(7 * 86_400),
        }
    }

    fn read(body: serde_json::Value) -> Result<TokenSet, Problem> {
        token_set(serde_json::from_value(body).unwrap(), NOW, &policy())
    }

    #[test]
    fn the_end_of_an_imported_token_is_found_in_order() {
        let table = [
            (json!({"expires_at": 1_790_000_100, "expires_in": 5}), 100),
            (json!({"expires_at": "2026-09-21T14:15:00Z"}), 100),
            (json!({"expires_at": "1790000100"}), 100),
            (json!({"expires_in": "100"}), 100),
            (json!({"expires_in": 0}), 0),
            (json!({"expires_in": -5}), 0),
            (
                json!({"expires_in": 3600, "obtained_at": 1_789_999_000}),
                2600,
            ),
            (json!({"obtained_at": 1_789_999_000}), 800),
            // A future issue date counts as now.
            (
                json!({"expires_in": 100, "obtained_at": 1_799_999_000}),
                100,
            ),
            (json!({}), 0),
        ];
        for (mut body, left) in table {
            body["access_token"] = json!("a");
            body["refresh_token"] = json!("r");
            let set = read(body.clone()).unwrap();
            let ends = set.expires_at.unwrap();
            assert_eq!((ends.as_millis() - NOW.as_millis()) / 1000, left, "{body}");
        }
    }

    #[test]
    fn an_access_token_alone_of_unknown_end_is_served_as_it_is() {
        let set = read(json!({"access_token": "a"})).unwrap();
        assert_eq!(set.expires_at, None);
    }

    #[test]
    fn the_end_of_an_imported_refresh_token_is_found_under_each_of_its_names() {
        let day = 86_400;
        for (body, left) in [
            (
                json!({"refresh_token_expires_at": 1_790_000_000 + 9 * day, "refresh_token_expires_in": 5}),
                9 * day,
            ),
            (json!({"refresh_token_expires_in": 9 * day}), 9 * day),
            (
                json!({"refresh_token_expires_in": "777600", "obtained_at": 1_790_000_000 - day}),
                8 * day,
            ),
            (json!({"x_refresh_token_expires_in": 9 * day}), 9 * day),
            (json!({"refresh_expires_in": 9 * day}), 9 * day),
        ] {
            let mut body = body;
            body["refresh_token"] = json!("r");
            let end = read(body.clone()).unwrap().refresh_token_end.unwrap();
            assert_eq!(end.expires_at, NOW + Duration::from_secs(left), "{body}");
            assert!(end.warn_at.is_some_and(|at| at < end.expires_at), "{body}");
        }
        for unknown in [json!(0), json!("0"), json!(null), json!("never")] {
            let set =
                read(json!({"refresh_token": "r", "refresh_token_expires_in": unknown})).unwrap();
            assert_eq!(set.refresh_token_end, None, "{unknown}");
        }
        let alone = read(json!({"access_token": "a", "refresh_token_expires_in": 5})).unwrap();
        assert_eq!(alone.refresh_token_end, None);
    }

    #[test]
    fn a_member_that_is_probably_a_mistake_is_refused_with_the_one_that_was_meant() {
        let end = 1_790_000_100;
        for (name, value, meant) in [
            ("expire_at", json!(end), "expires_at"),
            ("expiresAt", json!(end), "expires_at"),
            ("Expires-At", json!(end), "expires_at"),
            ("expires", json!(end), "expires_at"),
            ("expiry", json!(end), "expires_at"),
            ("expire_in", json!(60), "expires_in"),
            ("refreshToken", json!("canary"), "refresh_token"),
            ("scopes", json!("a b"), "scope"),
        ] {
            let problem = read(json!({"access_token": "canary", name: value})).unwrap_err();
            assert_eq!(problem.status, 400, "{name}");
            let said = format!("{name} is not a member of an import; {meant} is");
            assert!(problem.detail.contains(&said), "{}", problem.detail);
            assert!(!problem.detail.contains("canary"));
        }
        // Nothing is lost by these.
        for more in [
            json!({"expires_in": 60, "expires_on": end, "ext_expires_in": 120}),
            json!({"expires_at": end, "expiresAt": end}),
            json!({"expires_at": end, "user": "ann", "instance_url": "https://x"}),
        ] {
            let mut body = more;
            body["access_token"] = json!("a");
            assert!(read(body.clone()).unwrap().expires_at.is_some(), "{body}");
        }
    }

    #[test]
    fn the_last_second_of_the_year_9999_is_never_and_no_mistake() {
        for never in [
            json!("9999-12-31T23:59:59Z"),
            json!("9999-12-31T23:59:59.999+00:00"),
            json!("9999-12-31T00:00:00-11:00"),
            json!(253_402_300_799_i64),
        ] {
            let set = read(json!({"access_token": "a", "expires_at": never})).unwrap();
            assert!(set.expires_at.unwrap() >= LATEST, "{never}");
        }
        assert_eq!(LATEST.rfc3339(), "9999-12-30T22:00:00Z");
        let scope = json!({"access_token": "a", "scope": ["a", "b"]});
        assert_eq!(read(scope).unwrap().scope.as_deref(), Some("a b"));
    }

    #[test]
    fn a_scope_is_taken_whole_or_refused() {
        let of = |scope| read(json!({"access_token": "a", "scope": scope})).map(|set| set.scope);
        for (scope, taken) in [
            (json!("read write"), Some("read write")),
            (json!(" read "), Some("read")),
            (json!(["read", "write"]), Some("read write")),
            (json!("lire écrire"), Some("lire écrire")),
            (json!(""), None),
            (json!([]), None),
            (json!(null), None),
        ] {
            assert_eq!(of(scope.clone()).unwrap().as_deref(), taken, "{scope}");
        }
        for control in [
            json!("read\nwrite"),
            json!("read\n"),
            json!("\tread"),
            json!(["read", "write\u{7f}"]),
            json!("a\u{85}b"),
        ] {
            let problem = of(control.clone()).unwrap_err();
            assert_eq!(problem.status, 400, "{control}");
            let rule = "scope must not hold control characters";
            assert!(problem.detail.starts_with(rule), "{}", problem.detail);
        }
        let long = of(json!("x".repeat(LONGEST_SCOPE + 1))).unwrap_err();
        assert_eq!(long.detail, "scope must be 16384 bytes at most");
    }

    #[test]
    fn a_refresh_token_alone_is_enough() {
        let set = read(json!({"refresh_token": "r", "id_token": "ignored"})).unwrap();
        assert!(set.access_token.is_none());
        assert_eq!(set.expires_at, Some(NOW));
    }

    #[test]
    fn nonsense_is_refused_by_name_and_no_token_is_echoed() {
        for (body, named) in [
            (json!({}), "holds no token"),
            (
                json!({"access_token": "", "refresh_token": ""}),
                "holds no token",
            ),
            (
                json!({"access_token": "canary", "expires_in": "soon"}),
                "expires_in",
            ),
            (
                json!({"access_token": "canary", "expires_in": []}),
                "expires_in",
            ),
            (
                json!({"access_token": "canary", "expires_at": 1_790_000_000_000_i64}),
                "expires_at",
            ),
            (
                json!({"access_token": "canary", "obtained_at": "yesterday"}),
                "obtained_at",
            ),
            (json!({"access_token": "canary", "scope": 7}), "scope"),
            (
                json!({"access_token": "canary", "scope": [1]}),
                "scope must be a string or an array of strings",
            ),
            (
                json!({"access_token": "canary", "scope": ["a", null]}),
                "scope",
            ),
            (
                json!({"access_token": "canary", "expires_at": "9999-13-31T00:00:00Z"}),
                "expires_at",
            ),
            (
                json!({"access_token": "canary", "token_type": "a b"}),
                "token_type",
            ),
        ] {
            let problem = read(body.clone()).unwrap_err();
            assert_eq!(problem.status, 400);
            assert!(problem.detail.contains(named), "{body}: {}", problem.detail);
            assert!(!problem.detail.contains("canary"));
        }
    }
}
