//! Every error answer (RFC 9457), each with a stable `type`.
//!
//! Apps switch on `type`; the titles are the same for every problem of a type, and `detail` says what
//! happened this time and what to do next. No detail holds a secret or a part of a request body.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};

use super::types::Problem;
use crate::refresh::grant::{GrantKey, NAME_RULE, is_name};
use crate::refresh::time::UnixTime;

fn problem(kind: &str, status: StatusCode, title: &str, detail: impl Into<String>) -> Problem {
    Problem {
        kind: format!("urn:freshd:{kind}"),
        title: title.into(),
        status: status.as_u16(),
        detail: detail.into(),
        reason: None,
        since: None,
        retry_after: None,
    }
}

/// 400: a part of the request breaks a rule; `detail` names the part, the value and the rule.
pub fn bad_request(detail: impl Into<String>) -> Problem {
    problem(
        "bad-request",
        StatusCode::BAD_REQUEST,
        "The request is malformed",
        detail,
    )
}

/// 403: the peer's rule, or the lack of one, does not allow this (I7).
pub fn forbidden(detail: impl Into<String>) -> Problem {
    problem(
        "forbidden",
        StatusCode::FORBIDDEN,
        "This peer may not do this",
        detail,
    )
}

/// 404: there is no such grant.
pub fn no_such_grant(key: &GrantKey) -> Problem {
    let detail = format!(
        "user {:?} has no grant at {} in namespace {:?}; PUT it there to import one",
        key.user,
        key.provider_and_account(),
        key.namespace
    );
    problem(
        "no-such-grant",
        StatusCode::NOT_FOUND,
        "There is no such grant",
        detail,
    )
}

/// 404: the user has no grant at all, or none that the caller may see.
pub fn no_such_user(namespace: &str, user: &str) -> Problem {
    let detail = format!("user {user:?} has no grant in namespace {namespace:?}");
    problem(
        "no-such-grant",
        StatusCode::NOT_FOUND,
        "There is no such grant",
        detail,
    )
}

/// 404: the API has no such route on this socket.
pub fn no_such_route(method: &str, path: &str) -> Problem {
    let detail = format!("{method} {path} is no route of this socket");
    problem(
        "no-such-route",
        StatusCode::NOT_FOUND,
        "There is no such route",
        detail,
    )
}

/// 404: the configuration has no such provider, but the `configured` ones.
pub fn provider_unknown<'a>(
    provider: &str,
    configured: impl IntoIterator<Item = &'a str>,
) -> Problem {
    let configured: Vec<&str> = configured.into_iter().collect();
    let instead = match configured.as_slice() {
        [] => "none is".to_owned(),
        names => format!("configured: {}", names.join(", ")),
    };
    let detail = match is_name(provider) {
        true => format!(
            "provider {provider:?} is not configured ({instead}); an admin adds [provider.{provider}] and reloads"
        ),
        false => {
            format!("{provider:?} is no possible name of a provider: it {NAME_RULE} ({instead})")
        }
    };
    problem(
        "provider-unknown",
        StatusCode::NOT_FOUND,
        "There is no such provider",
        detail,
    )
}

/// 405: the route has other methods; the `Allow` header names them.
pub fn method_not_allowed(method: &str, path: &str) -> Problem {
    let detail = format!("{path} does not take {method}; the Allow header names what it takes");
    problem(
        "method-not-allowed",
        StatusCode::METHOD_NOT_ALLOWED,
        "The method is not allowed",
        detail,
    )
}

/// 408: the request's body did not arrive in time.
pub fn request_timeout(limit: Duration) -> Problem {
    let detail = format!("the body did not arrive within {} s", limit.as_secs_f64());
    problem(
        "request-timeout",
        StatusCode::REQUEST_TIMEOUT,
        "The request took too long",
        detail,
    )
}

/// 409: an admin paused the grant (or holds it), and its access token has expired.
pub fn paused(reason: &str, since: UnixTime) -> Problem {
    let mut problem = problem(
        "paused",
        StatusCode::CONFLICT,
        "The grant is paused",
        "the access token has expired and the grant is not refreshed until an admin resumes it",
    );
    problem.reason = Some(reason.into());
    problem.since = Some(since.rfc3339());
    problem
}

/// 409: only the user can mend the grant.
pub fn needs_authorization(reason: &str, since: UnixTime) -> Problem {
    let mut problem = problem(
        "needs-authorization",
        StatusCode::CONFLICT,
        "The user must authorize again",
        "the grant can't be refreshed any more; let the user authorize again and import the new tokens",
    );
    problem.reason = Some(reason.into());
    problem.since = Some(since.rfc3339());
    problem
}

/// 409: an import found a grant and was not asked to replace it.
pub fn grant_exists(key: &GrantKey, generation: u64) -> Problem {
    let detail = format!(
        "user {:?} has a grant at {} already (generation {generation}); import with ?replace=true to replace it",
        key.user,
        key.provider_and_account()
    );
    problem(
        "grant-exists",
        StatusCode::CONFLICT,
        "The grant exists already",
        detail,
    )
}

/// 413: the body is larger than `limit` bytes.
pub fn too_large(limit: usize) -> Problem {
    let detail = format!("the body is longer than {limit} bytes");
    problem(
        "too-large",
        StatusCode::PAYLOAD_TOO_LARGE,
        "The request is too large",
        detail,
    )
}

/// 500: freshd's own fault, whatever it was; the log has more.
pub fn internal() -> Problem {
    let detail = "something went wrong inside freshd; its log says what";
    problem(
        "internal",
        StatusCode::INTERNAL_SERVER_ERROR,
        "Internal error",
        detail,
    )
}

/// 503: the access token has expired and no refresh has succeeded yet. `failure` is a short code.
pub fn refresh_failed(failure: &str, retry_after: Duration) -> Problem {
    let detail = format!("the access token has expired and can't be renewed right now ({failure})");
    let title = "No living access token right now";
    problem(
        "refresh-failed",
        StatusCode::SERVICE_UNAVAILABLE,
        title,
        detail,
    )
    .retry(retry_after)
}

/// 503: the access token has expired and its provider is stopped until an admin acts.
pub fn provider_stopped(
    provider: &str,
    reason: &str,
    since: UnixTime,
    retry_after: Duration,
) -> Problem {
    let detail = format!("provider {provider:?} is stopped until an admin mends it and resumes it");
    let title = "The provider is stopped";
    let mut problem = problem(
        "provider-stopped",
        StatusCode::SERVICE_UNAVAILABLE,
        title,
        detail,
    );
    problem.reason = Some(reason.into());
    problem.since = Some(since.rfc3339());
    problem.retry(retry_after)
}

/// 503: freshd is about to stop and starts nothing new.
pub fn draining(retry_after: Duration) -> Problem {
    let detail = "freshd is stopping and starts no refresh any more; try again when it is back";
    problem(
        "draining",
        StatusCode::SERVICE_UNAVAILABLE,
        "freshd is stopping",
        detail,
    )
    .retry(retry_after)
}

/// 503: a final backup was made, so nothing is refreshed or changed here any more.
pub fn moved() -> Problem {
    let detail = "a final backup of this store was made for a move to another host: nothing is refreshed or changed here any more; ask freshd there";
    problem(
        "moved",
        StatusCode::SERVICE_UNAVAILABLE,
        "The store was moved",
        detail,
    )
    .retry(Duration::from_secs(60))
}

/// 503: what works through the whole store is under way, and excludes what was asked for.
pub fn busy(why: &str) -> Problem {
    problem("busy", StatusCode::SERVICE_UNAVAILABLE, "Not now", why)
}

/// 503: no answer within the request's total deadline; what was begun may still end well.
pub fn deadline_exceeded(limit: Duration) -> Problem {
    let detail = format!(
        "there was no answer within {} s; what was begun goes on, ask again to see how it ended",
        limit.as_secs_f64()
    );
    problem(
        "deadline-exceeded",
        StatusCode::SERVICE_UNAVAILABLE,
        "No answer in time",
        detail,
    )
    .retry(Duration::from_secs(1))
}

/// 429: `who` has all the event streams it gets.
pub fn too_many_streams(who: &str, limit: usize) -> Problem {
    let detail = format!("{who} has {limit} event streams, its limit; end one, or share one");
    problem(
        "too-many-streams",
        StatusCode::TOO_MANY_REQUESTS,
        "Too many event streams",
        detail,
    )
    .retry(Duration::from_secs(1))
}

/// 429: `detail` names who, the quota, its value and the key that raises it.
pub fn over_quota(detail: impl Into<String>) -> Problem {
    problem(
        "over-quota",
        StatusCode::TOO_MANY_REQUESTS,
        "Over quota",
        detail,
    )
}

/// 503: `who` has all the connections that it gets; `key` would raise that.
pub fn too_many_connections(who: &str, limit: usize, key: &str) -> Problem {
    no_connection(format!(
        "{who} has {limit} connections, its limit ({key}); close idle ones"
    ))
}

/// 503: this and further file descriptors are not for connections of apps.
pub fn too_many_files(limit: u64) -> Problem {
    no_connection(format!(
        "freshd has {limit} files and connections open, and keeps the rest of its limit for itself; close idle ones, or \
         have an admin raise LimitNOFILE="
    ))
}

fn no_connection(detail: String) -> Problem {
    let title = "Too many connections";
    problem(
        "too-many-connections",
        StatusCode::SERVICE_UNAVAILABLE,
        title,
        detail,
    )
    .retry(Duration::from_secs(1))
}

/// 507: the store can't take a write now. `why` is for people and names no secret.
pub fn store_unavailable(why: &str) -> Problem {
    let detail = format!("the store can't be written: {why}; an admin must mend it");
    problem(
        "store-unavailable",
        StatusCode::INSUFFICIENT_STORAGE,
        "Store trouble",
        detail,
    )
}

/// 400: no file can be made at the path that the request names; `why` says why, and `taken` that another name helps.
/// Nothing was overwritten.
pub fn cannot_create(why: &str, taken: bool) -> Problem {
    let problem = problem(
        "cannot-create",
        StatusCode::BAD_REQUEST,
        "The file cannot be made",
        why,
    );
    Problem {
        reason: taken.then(|| "taken".into()),
        ..problem
    }
}

/// 507: there is no backup; `why` says what stood in the way. Nothing was overwritten.
pub fn backup_failed(why: &str) -> Problem {
    problem(
        "backup-failed",
        StatusCode::INSUFFICIENT_STORAGE,
        "There is no backup",
        why,
    )
}

impl Problem {
    /// Says after how long trying again makes sense; rounded up to whole seconds, 1 at least.
    pub fn retry(mut self, after: Duration) -> Self {
        let secs = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.retry_after = Some(secs.max(1));
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).expect("a struct of strings and numbers is JSON");
        let mut response = Response::new(body.into());
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(secs) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(secs));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_that_no_configuration_can_have_is_not_advised() {
        let detail = provider_unknown("hub spot", ["y"]).detail;
        assert!(
            detail.contains(NAME_RULE) && !detail.contains("adds"),
            "{detail}"
        );
        let detail = provider_unknown("hubspot", ["y"]).detail;
        assert!(detail.contains("adds [provider.hubspot]"), "{detail}");
    }

    #[test]
    fn retry_after_is_whole_seconds_rounded_up_and_a_header() {
        let problem = refresh_failed("http-503", Duration::from_millis(1200));
        assert_eq!(problem.retry_after, Some(2));
        assert_eq!(draining(Duration::ZERO).retry_after, Some(1));
        let response = problem.into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    }

    #[test]
    fn types_are_stable() {
        let key = GrantKey {
            namespace: "default".into(),
            user: "42".into(),
            provider: "google".into(),
            account: "work".into(),
        };
        let at = UnixTime::EPOCH;
        let second = Duration::from_secs(1);
        let all = [
            (bad_request("x"), "bad-request", 400),
            (forbidden("x"), "forbidden", 403),
            (no_such_grant(&key), "no-such-grant", 404),
            (no_such_user("default", "42"), "no-such-grant", 404),
            (no_such_route("GET", "/x"), "no-such-route", 404),
            (provider_unknown("x", ["y"]), "provider-unknown", 404),
            (cannot_create("x", true), "cannot-create", 400),
            (method_not_allowed("GET", "/x"), "method-not-allowed", 405),
            (request_timeout(second), "request-timeout", 408),
            (paused("admin", at), "paused", 409),
            (
                needs_authorization("no-refresh-token", at),
                "needs-authorization",
                409,
            ),
            (grant_exists(&key, 3), "grant-exists", 409),
            (too_large(1), "too-large", 413),
            (too_many_streams("x", 1), "too-many-streams", 429),
            (over_quota("x"), "over-quota", 429),
            (internal(), "internal", 500),
            (refresh_failed("connect", second), "refresh-failed", 503),
            (
                provider_stopped("x", "invalid_client", at, second),
                "provider-stopped",
                503,
            ),
            (draining(second), "draining", 503),
            (moved(), "moved", 503),
            (busy("a backup is being made"), "busy", 503),
            (deadline_exceeded(second), "deadline-exceeded", 503),
            (
                too_many_connections("x", 1, "y"),
                "too-many-connections",
                503,
            ),
            (too_many_files(1), "too-many-connections", 503),
            (store_unavailable("disk full"), "store-unavailable", 507),
        ];
        for (problem, kind, status) in all {
            assert_eq!(problem.kind, format!("urn:freshd:{kind}"));
            assert_eq!(problem.status, status, "{kind}");
        }
        assert!(
            no_such_grant(&key)
                .detail
                .contains("\"42\" has no grant at google:work")
        );
    }
}
