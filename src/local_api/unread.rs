//! What of a request's body nobody has read when its answer is there.
//!
//! Most clients write the whole request before they read. One that is still writing when its connection is closed is told
//! that the pipe is broken, and never reads why it was refused. So a body that was left is read out and thrown away before
//! the answer leaves: as long as a body may take, and for longer bodies than are taken, or these would lose their 413.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::EXPECT;
use hyper::{Request, StatusCode};
use tokio::sync::oneshot;

use super::limits::Limits;

/// So many times as much as a body may hold is thrown away.
const LONGER: usize = 16;

/// A request's body, which goes back if it is dropped before its end.
pub(super) struct Lent {
    /// Gone only while it goes back.
    body: Option<Incoming>,
    /// None where there was nothing to read.
    back: Option<oneshot::Sender<Incoming>>,
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map(Incoming::size_hint)
            .unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(back), Some(body)) = (self.back.take(), self.body.take()) {
            // Nobody waits for it where the whole request was dropped.
            let _ = back.send(body);
        }
    }
}

/// Where the body of one request comes back to.
pub(super) struct Unread {
    back: Option<oneshot::Receiver<Incoming>>,
    /// The client sends its body when it is told to continue (RFC 9110 §10.1.1), and reads before that.
    waits: bool,
}

impl Unread {
    /// Lends a request's body to whoever answers it.
    pub(super) fn lend(request: Request<Incoming>) -> (Request<Lent>, Unread) {
        let (sender, back) = match request.body().is_end_stream() {
            true => (None, None),
            false => {
                let (sender, back) = oneshot::channel();
                (Some(sender), Some(back))
            }
        };
        let waits = back.is_some() && request.headers().contains_key(EXPECT);
        let request = request.map(|body| Lent {
            body: Some(body),
            back: sender,
        });
        (request, Unread { back, waits })
    }

    /// Reads out what is left when the answer, of this status, is there. Returns whether the connection can be kept:
    /// otherwise the answer has to say that it is closed.
    pub(super) async fn read_out(self, status: StatusCode, limits: &Limits) -> bool {
        let back = self.back.and_then(|mut back| back.try_recv().ok());
        let Some(mut body) = back.filter(|body| !body.is_end_stream()) else {
            return true;
        };
        // Who waits reads; who was too slow had its time.
        if self.waits || status == StatusCode::REQUEST_TIMEOUT {
            return false;
        }
        let most = limits.body_bytes.saturating_mul(LONGER);
        if body.size_hint().lower() > most as u64 {
            return false;
        }
        let read_out = async {
            let mut read = 0;
            while let Some(frame) = body.frame().await {
                read += frame.ok()?.data_ref().map_or(0, Bytes::len);
                if read > most {
                    return None;
                }
            }
            Some(())
        };
        matches!(
            tokio::time::timeout(limits.body_read, read_out).await,
            Ok(Some(()))
        )
    }
}
