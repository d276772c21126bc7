// What is done with an input, by the fuzzer and by `tests/fuzz_corpus.rs` alike. Each function panics where a promise is broken.

use freshd::refresh::policy;
use freshd::refresh::time::UnixTime;
use freshd::refresh::token_response::{Answer, Outcome, classify, jwt_expiry};

const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);

/// The answer of a token endpoint: two bytes of status, a line of `Retry-After`, the body.
pub fn token_response(data: &[u8]) {
    let Some((status, rest)) = data.split_at_checked(2) else {
        return;
    };
    let status = 100 + u16::from_le_bytes([status[0], status[1]]) % 500;
    let at = rest
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(rest.len());
    let (retry_after, body) = rest.split_at(at);
    let body = body.get(1..).unwrap_or_default();
    let retry_after = std::str::from_utf8(retry_after).ok();
    let answer = Answer {
        status,
        retry_after,
        body,
    };
    let dead = ["BAD_REFRESH_TOKEN".to_owned()];
    let outcome = classify(&answer, &dead, NOW);
    assert!(
        outcome.code().len() <= 40,
        "codes are ours, never the server's text"
    );
    match &outcome {
        Outcome::Tokens(tokens) => {
            assert!((200..300).contains(&status), "tokens in a {status}");
            assert!(!tokens.access_token.expose().is_empty());
            assert!(
                tokens
                    .refresh_token
                    .as_ref()
                    .is_none_or(|token| !token.expose().is_empty())
            );
            if let Some(lifetime) = tokens.expires_in {
                assert!(NOW + lifetime >= NOW);
            }
        }
        Outcome::RefusedForNow { retry_after, .. } => {
            assert!(retry_after.is_none_or(|wait| wait <= policy::RETRY_AFTER_CAP));
        }
        Outcome::RefusedForGood(_) | Outcome::RefusedForAll(_) => {
            // I5: 408, 429 and 5xx are no verdict, whatever the body claims.
            assert!(
                status < 500 && status != 408 && status != 429,
                "a verdict in a {status}"
            );
        }
        Outcome::Unknown(_) | Outcome::NotSent(_) => {}
    }
    if let Ok(text) = std::str::from_utf8(body) {
        let _ = jwt_expiry(text);
        let _ = policy::retry_after(text, NOW);
    }
}

/// A configuration file, written to `file`.
pub fn config(data: &[u8], file: &std::path::Path) {
    if std::fs::write(file, data).is_err() {
        return;
    }
    let defaults = freshd::config::Defaults::system(&|_| None);
    if let Err(errors) = freshd::config::check(file, &defaults) {
        assert!(!errors.is_empty(), "a refusal gives a reason");
        for error in errors {
            assert!(!error.to_string().is_empty());
        }
    }
}

/// A request target, and after a line feed the namespace header.
pub fn http_request(data: &[u8]) {
    let at = data
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(data.len());
    let (target, header) = data.split_at(at);
    let Ok(target) = std::str::from_utf8(target) else {
        return;
    };
    if let Err(problem) = freshd::local_api::read_token_request(target, header.get(1..)) {
        assert!((400..500).contains(&problem.status), "{}", problem.status);
        assert!(
            problem.detail.len() < 1000,
            "a message repeats a little of a value only"
        );
        assert!(
            !problem.detail.chars().any(|c| c == '\n' || c == '\r'),
            "{:?}",
            problem.detail
        );
    }
}

/// A row of the grants' table, and the same bytes as a sealed value.
pub fn stored_row(data: &[u8]) {
    assert!(
        !freshd::store::opens_as_sealed(data),
        "a value opens that nobody sealed"
    );
    if let Ok(grant) = freshd::store::read_untrusted_row(data) {
        let _ = grant.lives(NOW);
        let _ = grant.expires_at();
        let _ = format!("{} {grant:?}", grant.standing);
    }
}
