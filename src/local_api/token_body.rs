//! The answer of the token route, as bytes.

use super::keeper::Token;
use crate::refresh::grant::GrantKey;

/// Writes a [`TokenAnswer`](super::types::TokenAnswer). By hand: a general serializer looks at each byte of a long token by itself, and
/// this is most of what a read costs. A token is copied into its answer and nowhere else.
pub(super) fn token_body(token: &Token, key: &GrantKey) -> Vec<u8> {
    let access_token = token.access_token.expose();
    // Room for it all, so that growing leaves no second copy of the token.
    let mut body = Vec::with_capacity(2 * access_token.len() + 1024);
    let mut text = |before: &str, value: &str| {
        body.extend_from_slice(before.as_bytes());
        write_string(&mut body, value);
    };
    text("{\"access_token\":", access_token);
    text(",\"token_type\":", &token.token_type);
    if let Some(at) = token.expires_at {
        let left = at.since(token.now).as_secs();
        text(
            &format!(",\"expires_in\":{left},\"expires_at\":"),
            &at.rfc3339(),
        );
    }
    if let Some(scope) = &token.scope {
        text(",\"scope\":", scope);
    }
    text(
        &format!(",\"generation\":{},\"user\":", token.generation),
        &key.user,
    );
    text(",\"provider\":", &key.provider);
    if !key.account.is_empty() {
        text(",\"account\":", &key.account);
    }
    body.push(b'}');
    body
}

/// Writes a JSON string.
fn write_string(body: &mut Vec<u8>, text: &str) {
    // Without an early end the compiler looks at many bytes at once.
    let plain = text.bytes().fold(true, |plain, byte| {
        plain & (byte >= 0x20) & (byte != b'"') & (byte != b'\\')
    });
    if plain {
        body.push(b'"');
        body.extend_from_slice(text.as_bytes());
        body.push(b'"');
    } else {
        serde_json::to_writer(body, text).expect("a string is JSON, and a Vec takes it");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::types::TokenAnswer;
    use super::*;
    use crate::refresh::time::UnixTime;
    use crate::refresh::token::AccessToken;

    #[test]
    fn a_token_is_answered_as_its_type_is_serialized_whatever_is_in_it() {
        let now = UnixTime::from_millis(1_790_000_000_250);
        let odd = ["", "plain-token.~+/=", "a\"b\\c\u{1}\n", "\u{7f}é—🦀"];
        for (nth, text) in odd.iter().enumerate() {
            let known = nth % 2 == 0;
            let key = GrantKey {
                namespace: "default".into(),
                user: (*text).into(),
                provider: "acme".into(),
                account: if known { String::new() } else { (*text).into() },
            };
            let expires_at = known.then(|| now + Duration::from_secs(1800));
            let token = Token {
                access_token: AccessToken::new(*text),
                token_type: "Bearer".into(),
                expires_at,
                scope: known.then(|| (*text).into()),
                generation: 7,
                now,
            };
            let answer = TokenAnswer {
                access_token: (*text).into(),
                token_type: "Bearer".into(),
                expires_in: known.then_some(1800),
                expires_at: expires_at.map(UnixTime::rfc3339),
                scope: known.then(|| (*text).into()),
                generation: 7,
                user: key.user.clone(),
                provider: "acme".into(),
                account: key.account.clone(),
            };
            let body = String::from_utf8(token_body(&token, &key)).unwrap();
            assert_eq!(body, serde_json::to_string(&answer).unwrap());
        }
    }
}
