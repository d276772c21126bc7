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
fn a_refresh_tokens_lifetime_is_read_under_each_of_its_names_and_zero_is_unknown() {
    let read = |member: &str, value: serde_json::Value| {
        tokens(json!({"access_token": "a", member: value})).refresh_token_expires_in
    };
    for member in REFRESH_TOKEN_LIFETIMES {
        assert_eq!(
            read(member, json!(86_400)),
            Some(Duration::from_secs(86_400)),
            "{member}"
        );
        assert_eq!(
            read(member, json!("86400")),
            Some(Duration::from_secs(86_400)),
            "{member}"
        );
        for unknown in [json!(0), json!("0"), json!(-1), json!(null), json!("never")] {
            assert_eq!(read(member, unknown.clone()), None, "{member} {unknown}");
        }
    }
    assert_eq!(read("refresh_token_ttl", json!(5)), None);
}

#[test]
fn a_refusal_that_explains_nothing_is_told_from_one_that_does() {
    let table = [
        (400, None, true),
        (401, None, true),
        (403, Some("access_denied"), true),
        (400, Some("invalid_request"), true),
        (400, Some("temporarily_unavailable"), false),
        (400, Some("slow_down"), false),
        (408, None, false),
        (429, None, false),
        (500, None, false),
        (302, None, false),
        (200, None, false),
    ];
    for (status, code, unexplained) in table {
        assert_eq!(
            Refusal { status, code }.unexplained(),
            unexplained,
            "{status} {code:?}"
        );
    }
}

#[test]
fn any_answer_but_a_5xx_shows_that_the_server_is_there() {
    let contact = |status, body| classified(status, body).contact();
    assert_eq!(contact(200, r#"{"access_token":"a"}"#), Contact::Served);
    for status in [302, 400, 401, 404, 429] {
        assert_eq!(contact(status, ""), Contact::Reached, "{status}");
    }
    for status in [500, 502, 503, 599] {
        assert_eq!(contact(status, ""), Contact::Failed, "{status}");
    }
    assert_eq!(Outcome::Unknown("deadline").contact(), Contact::Failed);
    assert_eq!(Outcome::NotSent("dns").contact(), Contact::Failed);
}

#[test]
fn what_only_a_gateway_answers_leaves_the_refresh_tokens_fate_unknown() {
    for (status, code) in [
        (502, "unknown-http-502"),
        (504, "unknown-http-504"),
        (520, "unknown-http-520"),
        (524, "unknown-http-524"),
    ] {
        for body in ["", "<h1>Bad Gateway</h1>", r#"{"error":"upstream"}"#] {
            let outcome = classified(status, body);
            assert!(matches!(outcome, Outcome::Unknown(_)), "{status} {body}");
            assert_eq!(outcome.code(), code);
            assert_eq!(outcome.contact(), Contact::Failed);
        }
        // That is the server itself.
        let said = classified(status, r#"{"error":"temporarily_unavailable"}"#);
        assert!(matches!(said, Outcome::RefusedForNow { .. }), "{status}");
    }
    for status in [500, 501, 503, 521] {
        let said = classified(status, "");
        assert!(matches!(said, Outcome::RefusedForNow { .. }), "{status}");
    }
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
        (200, html, now(200, Some("html"))),
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
