//! The short way for reads of a token: answered before hyper sees them.
//!
//! Most requests by far ask for a token that is in memory. Such a request is read and answered here, for a third of
//! what HTTP in general costs. Only what is beyond doubt is taken: what came is one whole request for a token, without a
//! body, and nothing of an earlier one is under way. All else is hyper's. So is a request that is refused, at once or in the
//! end: hyper gets its bytes, and its service finds out why.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::header;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::limits::{Busy, Progress};
use super::request::{self, NAMESPACE_HEADER};
use super::token_body::TokenBody;

/// A request with more headers than this is hyper's.
const HEADERS: usize = 32;

/// With one of these a request may have a body, or more than one answer.
const FRAMING: [header::HeaderName; 4] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::EXPECT,
    header::UPGRADE,
];

/// What has come from the peer at once.
#[derive(Debug, PartialEq, Eq)]
enum Came<'a> {
    /// One whole request for a token.
    Ask(Ask<'a>),
    /// One whole request without a body, for hyper.
    Other,
    /// A part of a request, several, or something else.
    Unclear,
}

/// A request for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask<'a> {
    /// Path and query.
    pub(super) target: &'a str,
    /// Whether the connection ends with the answer.
    pub(super) is_last: bool,
}

/// What becomes of a request for a token.
pub(super) enum Begun {
    Here(TokenBody),
    /// `None` if it is refused.
    Later(Later),
    Refused,
}

type Later = Pin<Box<dyn Future<Output = Option<TokenBody>> + Send>>;

/// A request for a token that has to wait.
struct Waiting {
    request: Vec<u8>,
    is_last: bool,
    answer: Later,
    _busy: Busy,
}

/// An answer, from its head on.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    /// Where what is to be written begins.
    pub(super) from: usize,
}

/// A stream to a peer, of which hyper sees only what is not answered here. `begin` begins to answer.
pub(super) struct Shortcut<S, B> {
    stream: S,
    progress: Arc<Progress>,
    begin: B,
    /// Whether everything so far came as whole requests, one at a time: else hyper may hold a part of one.
    orderly: bool,
    /// Whether hyper has written all it had.
    flushed: bool,
    waiting: Option<Waiting>,
    answer: Answer,
    was_last: bool,
}

impl<S, B> Shortcut<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: FnMut(Ask<'_>) -> Begun + Unpin,
{
    pub(super) fn new(stream: S, progress: Arc<Progress>, begin: B) -> Self {
        Shortcut {
            stream,
            progress,
            begin,
            orderly: true,
            flushed: true,
            waiting: None,
            answer: Answer::default(),
            was_last: false,
        }
    }

    /// Writes what is left of an answer.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let left @ [_, ..] = &self.answer.bytes[self.answer.from..] {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.answer.from += written,
            }
        }
        self.answer.give_back();
        Poll::Ready(Ok(()))
    }

    /// Begins to answer what came, if that goes here.
    fn begin(&mut self, came: &[u8]) -> bool {
        let ask = match read(came) {
            Came::Ask(ask) => ask,
            Came::Other => return false,
            Came::Unclear => {
                self.orderly = false;
                return false;
            }
        };
        let busy = self.progress.busy();
        match (self.begin)(ask) {
            Begun::Here(body) => self.give(body, ask.is_last),
            Begun::Later(answer) => {
                self.waiting = Some(Waiting {
                    request: came.to_vec(),
                    is_last: ask.is_last,
                    answer,
                    _busy: busy,
                });
            }
            Begun::Refused => return false,
        }
        true
    }

    fn give(&mut self, body: TokenBody, is_last: bool) {
        self.was_last = is_last || self.progress.closes();
        self.answer = body.into_answer(self.was_last);
    }

    /// Waits for an answer that has to be waited for. Returns the request if it is refused. hyper flushes after it has tried
    /// to read, and the stream below notices then who is gone.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        let Some(waiting) = &mut self.waiting else {
            return Poll::Ready(None);
        };
        let body = ready!(waiting.answer.as_mut().poll(cx));
        let waiting = self.waiting.take().expect("it was polled");
        let Some(body) = body else {
            return Poll::Ready(Some(waiting.request));
        };
        self.give(body, waiting.is_last);
        Poll::Ready(None)
    }
}

impl<S, B> AsyncRead for Shortcut<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: FnMut(Ask<'_>) -> Begun + Unpin,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(refused) = ready!(this.poll_waiting(cx)) {
                // It was in this buffer once already.
                buffer.put_slice(&refused);
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_answer(cx))?;
            if this.was_last {
                return Poll::Ready(Ok(()));
            }
            let before = buffer.filled().len();
            let resting = this.flushed && this.progress.rests();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
            let came = &buffer.filled()[before..];
            if came.is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.orderly &= resting;
            if !(this.orderly && this.begin(came)) {
                return Poll::Ready(Ok(()));
            }
            buffer.set_filled(before);
        }
    }
}

impl<S, B> AsyncWrite for Shortcut<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: FnMut(Ask<'_>) -> Begun + Unpin,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.flushed = false;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.flushed = false;
        Pin::new(&mut this.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_answer(cx))?;
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        this.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_answer(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

/// Reads what came (RFC 9112 §2).
fn read(came: &[u8]) -> Came<'_> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(came) {
        Ok(httparse::Status::Complete(length)) if length == came.len() => {}
        _ => return Came::Unclear,
    }
    let mut mine = request.method == Some("GET") && request.version == Some(1);
    let mut is_last = false;
    for header in &*request.headers {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if FRAMING.iter().any(|name| is(name.as_str())) {
            return Came::Unclear;
        }
        if is("connection") {
            is_last |= header.value.eq_ignore_ascii_case(b"close");
            mine &= is_last || header.value.eq_ignore_ascii_case(b"keep-alive");
        }
        mine &= !(is(NAMESPACE_HEADER) || is("origin") || is("referer"));
    }
    let target = request.path.unwrap_or_default();
    let (path, _) = request::path_and_query(target);
    let is_plain = target.bytes().all(|byte| PLAIN[usize::from(byte)]);
    if mine && is_plain && request::token_path(path).is_some() {
        Came::Ask(Ask { target, is_last })
    } else {
        Came::Other
    }
}

/// Whether a byte of a target means the same to everybody who reads URIs.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let others = b"-._~%/?:@&=+,!$'()*;";
    let mut byte = 0;
    while byte < others.len() {
        plain[others[byte] as usize] = true;
        byte += 1;
    }
    let mut byte = 0u8;
    while byte < 128 {
        plain[byte as usize] |= byte.is_ascii_alphanumeric();
        byte += 1;
    }
    plain
};

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const TOKEN: &str = "GET /v1/users/42/grants/google:work/token?wait=3 HTTP/1.1\r\nHost: x\r\n";

    fn came(text: &str) -> &'static str {
        match read(text.as_bytes()) {
            Came::Ask(Ask { is_last: true, .. }) => "last",
            Came::Ask(_) => "ask",
            Came::Other => "other",
            Came::Unclear => "unclear",
        }
    }

    #[test]
    fn only_what_is_beyond_doubt_goes_the_short_way() {
        let with = |headers: &str| came(&format!("{TOKEN}{headers}\r\n"));
        assert_eq!(with(""), "ask");
        assert_eq!(with("Accept: */*\r\nUser-Agent: curl\r\n"), "ask");
        assert_eq!(with("Connection: Keep-Alive\r\n"), "ask");
        assert_eq!(with("connection: CLOSE\r\n"), "last");
        assert_eq!(with("connection: close, te\r\n"), "other");
        assert_eq!(with("ORIGIN: null\r\n"), "other");
        assert_eq!(with("Referer: \r\n"), "other");
        assert_eq!(with("Freshd-Namespace: default\r\n"), "other");
        for framing in [
            "Content-Length: 0",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue",
            "Upgrade: h2c",
        ] {
            assert_eq!(with(&format!("{framing}\r\n")), "unclear", "{framing}");
        }
        assert_eq!(with(&"a: b\r\n".repeat(HEADERS)), "unclear");
        assert_eq!(with("\r\nG"), "unclear", "the next one has begun");
        assert_eq!(came(TOKEN), "unclear", "a part of one");
        let other = |line: &str| came(&format!("{line}\r\nhost: x\r\n\r\n"));
        assert_eq!(other("GET /v1/users/1/grants/g/token HTTP/1.0"), "other");
        assert_eq!(other("HEAD /v1/users/1/grants/g/token HTTP/1.1"), "other");
        assert_eq!(other("GET /v1/users/1/grants/g HTTP/1.1"), "other");
        assert_eq!(other("GET /v1/status?x=/token HTTP/1.1"), "other");
        assert_eq!(
            other("GET http://x/v1/users/1/grants/g/token HTTP/1.1"),
            "other"
        );
        assert_eq!(other("GET /v1/users/1#2/grants/g/token HTTP/1.1"), "other");
        assert_eq!(other("GET /v1/users/ü/grants/g/token HTTP/1.1"), "other");
    }

    type Begin = fn(Ask<'_>) -> Begun;

    #[tokio::test]
    async fn an_answer_is_written_to_its_end_before_anything_else_whatever_the_peer_takes_at_once()
    {
        for how in ["read", "flush", "shutdown"] {
            // The peer takes 16 bytes at a time.
            let (ours, mut peer) = tokio::io::duplex(16);
            let begin: Begin = |_| Begun::Refused;
            let mut shortcut = Shortcut::new(ours, Arc::default(), begin);
            let bytes = [vec![b'-'; 8], vec![b'x'; 100]].concat();
            shortcut.answer = Answer { bytes, from: 8 };
            let all = tokio::spawn(async move {
                match how {
                    "read" => assert_eq!(shortcut.read(&mut [0; 9]).await.unwrap(), 4),
                    "flush" => shortcut.flush().await.unwrap(),
                    _ => shortcut.shutdown().await.unwrap(),
                }
                shortcut
            });
            let mut answer = [0; 100];
            peer.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, [b'x'; 100]);
            peer.write_all(b"next").await.unwrap();
            all.await.unwrap();
        }
    }
}
