//! The answer of the token route, as bytes.

use std::time::SystemTime;

use hyper::body::Bytes;

use super::keeper::Token;
use super::shortcut::Answer;
use crate::refresh::grant::GrantKey;
use crate::refresh::time::UnixTime;

/// Room for a head before a body.
const HEAD: usize = 192;

/// A [`TokenAnswer`](super::types::TokenAnswer), with room for a head before it: so a token is copied into its answer and
/// nowhere else.
pub(super) struct TokenBody {
    bytes: Vec<u8>,
    now: UnixTime,
}

impl TokenBody {
    /// Writes it. By hand: a general serializer looks at each byte of a long token by itself, and this is most of what a
    /// read costs.
    pub(super) fn new(token: &Token, key: &GrantKey) -> Self {
        let access_token = token.access_token.expose();
        // Room for it all, so that growing leaves no second copy of the token.
        let mut bytes = Vec::with_capacity(HEAD + 2 * access_token.len() + 1024);
        bytes.resize(HEAD, 0);
        write(&mut bytes, token, key);
        TokenBody {
            bytes,
            now: token.now,
        }
    }

    /// Returns the body alone.
    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from(self.bytes).slice(HEAD..)
    }

    /// Returns the whole answer (RFC 9112 §4), after which the connection may end.
    pub(super) fn into_answer(mut self, is_last: bool) -> Answer {
        let length = self.bytes.len() - HEAD;
        let date = SystemTime::UNIX_EPOCH + self.now.since(UnixTime::EPOCH);
        let date = httpdate::HttpDate::from(date);
        let connection = if is_last { "connection: close\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
             {connection}content-length: {length}\r\ndate: {date}\r\n\r\n"
        );
        let from = HEAD - head.len();
        self.bytes[from..HEAD].copy_from_slice(head.as_bytes());
        Answer {
            bytes: self.bytes,
            from,
        }
    }
}

fn write(body: &mut Vec<u8>, token: &Token, key: &GrantKey) {
    let access_token = token.access_token.expose();
    let mut text = |before: &str, value: &str| {
        body.extend_from_slice(before.as_bytes());
        write_string(body, value);
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
            let expected = serde_json::to_string(&answer).unwrap();
            assert_eq!(TokenBody::new(&token, &key).into_bytes(), expected);
            for is_last in [false, true] {
                let answer = TokenBody::new(&token, &key).into_answer(is_last);
                let answer = String::from_utf8(answer.bytes[answer.from..].to_vec()).unwrap();
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                assert_eq!(body, expected);
                let close = if is_last { "connection: close\r\n" } else { "" };
                let length = expected.len();
                assert_eq!(
                    head,
                    format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
                         {close}content-length: {length}\r\ndate: Mon, 21 Sep 2026 14:13:20 GMT"
                    )
                );
            }
        }
    }
}
