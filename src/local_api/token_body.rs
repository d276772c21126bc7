//! The answer of the token route, as bytes.

use std::cell::{Cell, RefCell};
use std::time::SystemTime;

use hyper::body::Bytes;

use super::keeper::Token;
use super::shortcut::Answer;
use crate::refresh::grant::{AccessFacts, Grant};
use crate::refresh::reading::Words;
use crate::refresh::time::UnixTime;
use crate::refresh::token::AccessToken;

/// Room for a head before a body.
const HEAD: usize = 192;
/// Room that a thread keeps for its next answer.
const KEPT: usize = 16 * 1024;

thread_local! {
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A [`TokenAnswer`](super::types::TokenAnswer), with room for a head before it: so a token is copied into its answer and
/// nowhere else.
pub(super) struct TokenBody {
    bytes: Vec<u8>,
    now: UnixTime,
}

impl TokenBody {
    /// Writes it. By hand: a general serializer looks at each byte of a long token by itself, and at all the rest again for
    /// each reader, and this is most of what a read costs.
    pub(super) fn new(token: &Token) -> Self {
        let length = token.access().0.expose().len();
        // Room for it all, so that growing leaves no second copy of the token.
        let room = HEAD + 2 * length + 1024;
        let mut bytes = ROOM.take();
        if bytes.capacity() < room {
            bytes = Vec::with_capacity(room);
        }
        bytes.resize(HEAD, 0);
        write(&mut bytes, token);
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
        let mut from = HEAD;
        // From its end on, so that it ends where the body begins.
        let mut before = |text: &str| {
            self.bytes[from - text.len()..from].copy_from_slice(text.as_bytes());
            from -= text.len();
        };
        before("\r\n\r\n");
        with_date(self.now, &mut before);
        before("\r\ndate: ");
        before(itoa::Buffer::new().format(length));
        before("content-length: ");
        if is_last {
            before("connection: close\r\n");
        }
        before("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\n");
        Answer {
            bytes: self.bytes,
            from,
        }
    }
}

impl Answer {
    /// Wipes what was written out, and keeps its room.
    pub(super) fn give_back(&mut self) {
        let Answer { mut bytes, .. } = std::mem::take(self);
        if (1..=KEPT).contains(&bytes.capacity()) {
            bytes.fill(0);
            bytes.clear();
            ROOM.set(bytes);
        }
    }
}

/// Writes a moment as HTTP does (RFC 9110 §5.6.7). Each thread keeps what it wrote last, for the rest of that second.
fn with_date(at: UnixTime, write: impl FnOnce(&str)) {
    thread_local! {
        static LAST: RefCell<(u64, String)> = RefCell::default();
    }
    let since_epoch = at.since(UnixTime::EPOCH);
    LAST.with_borrow_mut(|(second, text)| {
        if *second != since_epoch.as_secs() || text.is_empty() {
            *second = since_epoch.as_secs();
            *text = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + since_epoch);
        }
        write(text);
    });
}

/// Writes what differs from answer to answer, and copies the rest.
fn write(body: &mut Vec<u8>, token: &Token) {
    let (access_token, access) = token.access();
    let words = token.words(|| words(token.grant(), access_token, access));
    if words.token_is_plain {
        body.extend_from_slice(b"{\"access_token\":\"");
        body.extend_from_slice(access_token.expose().as_bytes());
        body.push(b'"');
    } else {
        body.extend_from_slice(b"{\"access_token\":");
        let written = serde_json::to_writer(&mut *body, access_token.expose());
        written.expect("a string is JSON, and a Vec takes it");
    }
    body.extend_from_slice(words.before_age.as_bytes());
    if let Some(at) = access.expires_at {
        let left = at.since(token.now).as_secs();
        body.extend_from_slice(b",\"expires_in\":");
        body.extend_from_slice(itoa::Buffer::new().format(left).as_bytes());
    }
    body.extend_from_slice(words.after_age.as_bytes());
}

fn words(grant: &Grant, access_token: &AccessToken, access: &AccessFacts) -> Words {
    let json = |text: &str| serde_json::to_string(text).expect("a string is JSON");
    let key = &grant.key;
    let mut after_age = String::new();
    let mut member = |name: &str, value: String| {
        after_age.push_str(&format!(",\"{name}\":{value}"));
    };
    if let Some(at) = access.expires_at {
        member("expires_at", json(&at.rfc3339()));
    }
    if let Some(scope) = &grant.scope {
        member("scope", json(scope));
    }
    member("generation", grant.generation.to_string());
    member("user", json(&key.user));
    member("provider", json(&key.provider));
    if !key.account.is_empty() {
        member("account", json(&key.account));
    }
    after_age.push('}');
    let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    Words {
        token_is_plain: access_token.expose().bytes().all(is_plain),
        before_age: format!(",\"token_type\":{}", json(&access.token_type)),
        after_age,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::types::TokenAnswer;
    use super::*;
    use crate::refresh::grant::GrantKey;
    use crate::refresh::reading::Readable;
    use crate::refresh::token::TokenSet;

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
            let tokens = TokenSet {
                access_token: Some(AccessToken::new(*text)),
                token_type: "Bearer".into(),
                expires_at,
                obtained_at: now,
                refresh_token: None,
                refresh_token_end: None,
                scope: known.then(|| (*text).into()),
            };
            let grant = Grant {
                generation: 7,
                ..Grant::imported(key.clone(), &tokens, now)
            };
            let readable = Arc::new(Readable::new(grant, tokens.access_token));
            let token = Token::of(readable, now).unwrap();
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
            for _ in ["first", "again"] {
                assert_eq!(TokenBody::new(&token).into_bytes(), expected);
            }
            for is_last in [false, true] {
                let answer = TokenBody::new(&token).into_answer(is_last);
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
