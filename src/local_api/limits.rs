//! How much a peer may send, and how long it may keep us waiting.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep};

/// The limits of one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; further ones are closed with a 503. Each app has its own quota as well.
    pub connections: usize,
    /// An app with fewer connections than this gets one also when all are taken.
    pub reserved: usize,
    /// Connections of peers that no rule admits: who gets nothing must not keep others out.
    pub strangers: usize,
    /// Event streams at once.
    pub streams: usize,
    /// How many of them may be one app's.
    pub streams_per_app: usize,
    /// Bytes of a request's head, 8 KiB at least.
    pub head_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// From a head's first byte to its last.
    pub head_read: Duration,
    /// For the whole body.
    pub body_read: Duration,
    /// Between two requests of a connection, and before its first.
    pub idle: Duration,
    /// A client that takes no byte of its answer for this long is dropped.
    pub write_stall: Duration,
    /// From a request's head to its answer: the longest `wait`, the body, and as much again for the store.
    pub request: Duration,
    /// After this long without an event a stream shows that it lives.
    pub heartbeat: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            // Four apps at their usual quota.
            connections: 4096,
            reserved: 16,
            strangers: 32,
            // A small part of the connections: the others are for those who ask.
            streams: 256,
            streams_per_app: 16,
            head_bytes: 16 * 1024,
            body_bytes: 256 * 1024,
            head_read: Duration::from_secs(10),
            body_read: Duration::from_secs(10),
            // Longer than what HTTP clients keep idle connections for (Go 90 s, Node's undici 4 s,
            // reqwest 90 s), so it is the client that closes them and no request meets a closed one.
            idle: Duration::from_secs(120),
            write_stall: Duration::from_secs(30),
            request: Duration::from_secs(90),
            heartbeat: Duration::from_secs(15),
        }
    }
}

/// Where a connection is in its request.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Counts up, so each phase of each request has a number of its own.
    phase: AtomicU64,
    /// Whether nothing more is taken than what has been sent already.
    closing: AtomicBool,
}

const IDLE: u64 = 0;
const HEAD: u64 = 1;
const BUSY: u64 = 2;
const PHASES: u64 = 3;

impl Progress {
    fn current(&self) -> u64 {
        // One task reads and writes this; nothing else depends on the order.
        self.phase.load(Ordering::Relaxed)
    }

    fn advance_to(&self, phase: u64) {
        let now = self.current();
        let ahead = (phase + PHASES - now % PHASES) % PHASES;
        self.phase.store(now + ahead, Ordering::Relaxed);
    }

    fn bytes_came(&self) {
        if self.current() % PHASES == IDLE {
            self.advance_to(HEAD);
        }
    }

    /// Has the connection end after the answers to what has been sent by now. It takes effect when it is polled.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Whether it ends so.
    pub(super) fn closes(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Whether the peer is not waiting for us, nor we for the rest of what it says.
    pub(super) fn rests(&self) -> bool {
        self.current() % PHASES == IDLE
    }

    /// A head is complete; its request is ours to answer until the result is dropped.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.advance_to(BUSY);
        Busy(Arc::clone(self))
    }
}

/// While it lives, the peer waits for us.
pub(super) struct Busy(Arc<Progress>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.advance_to(IDLE);
    }
}

/// What a stream's socket knows and does beside reading and writing.
pub(super) trait Socket {
    /// Takes nothing that is not here yet: who sends something now gets an error, and knows that it was not taken.
    fn close_reading(&self);

    /// Completes when the peer is gone, and has not only ended what it says.
    fn poll_deserted(&self, cx: &mut Context<'_>) -> Poll<()>;
}

impl Socket for UnixStream {
    fn close_reading(&self) {
        // It fails where the peer is gone, who sends nothing more anyway.
        let _ = rustix::net::shutdown(self, rustix::net::Shutdown::Read);
    }

    fn poll_deserted(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Costs nothing while nothing has come.
        let _ = ready!(self.poll_read_ready(cx));
        let at_once = Timespec::default();
        let mut look = [PollFd::new(self, PollFlags::empty())];
        match poll(&mut look, Some(&at_once)) {
            Ok(_) if look[0].revents().contains(PollFlags::HUP) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}

/// A stream that fails with `TimedOut` when the peer keeps us waiting, and with `ConnectionReset` when it is gone before its
/// answer. A peer that only ends what it says is answered all the same.
///
/// hyper's own header timeout makes no difference between a head that trickles in and a connection that
/// rests between two requests; here they have limits of their own.
pub(super) struct Deadlines<S> {
    stream: S,
    progress: Arc<Progress>,
    limits: Arc<Limits>,
    /// When what the peer is waited for now has to be there.
    deadline: Instant,
    armed_for: u64,
    /// Rings then, or earlier.
    read_timer: Pin<Box<Sleep>>,
    write_timer: Option<Pin<Box<Sleep>>>,
    closed: bool,
}

impl<S> Deadlines<S> {
    /// Watches over a stream whose requests report to `progress`.
    pub(super) fn new(stream: S, progress: Arc<Progress>, limits: Arc<Limits>) -> Self {
        let read_timer = Box::pin(tokio::time::sleep(limits.idle));
        let armed_for = progress.current();
        Deadlines {
            stream,
            progress,
            limits,
            deadline: read_timer.deadline(),
            armed_for,
            read_timer,
            write_timer: None,
            closed: false,
        }
    }

    fn poll_read_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = self.progress.current();
        let limit = match now % PHASES {
            IDLE => self.limits.idle,
            HEAD => self.limits.head_read,
            // The body has a deadline where it is read; otherwise it is for us to hurry.
            _ => return Poll::Pending,
        };
        if self.armed_for != now {
            self.armed_for = now;
            #[expect(
                clippy::disallowed_methods,
                reason = "only the runtime's timers are measured by it"
            )]
            let began = Instant::now();
            self.deadline = began + limit;
            if self.deadline < self.read_timer.deadline() {
                self.read_timer.as_mut().reset(self.deadline);
            }
        }
        // One that rings too early is set anew when it does: to set it for each request costs a tenth of the request.
        loop {
            ready!(self.read_timer.as_mut().poll(cx));
            if self.read_timer.deadline() >= self.deadline {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.read_timer.as_mut().reset(self.deadline);
        }
    }

    fn poll_write_deadline<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_timer = None;
            return written;
        }
        let limit = self.limits.write_stall;
        let timer = self
            .write_timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Socket + Unpin> AsyncRead for Deadlines<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed && this.progress.closes() {
            this.closed = true;
            this.stream.close_reading();
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(result) => {
                if buffer.filled().len() > before {
                    this.progress.bytes_came();
                }
                Poll::Ready(result)
            }
            Poll::Pending => this.poll_read_deadline(cx),
        }
    }
}

impl<S: AsyncWrite + Socket + Unpin> AsyncWrite for Deadlines<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.poll_write_deadline(written, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.poll_write_deadline(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper reads nothing while it answers, and would not notice.
        if !this.progress.rests() && this.stream.poll_deserted(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        // hyper does not read again after an answer if the last read had to wait, so nothing but this
        // would wake it at the idle limit. It then reads, and meets the deadline there.
        let _ = this.poll_read_deadline(cx);
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn every_phase_of_every_request_has_a_number_of_its_own() {
        let progress = Arc::new(Progress::default());
        let mut seen = vec![progress.current()];
        for _ in 0..2 {
            progress.bytes_came();
            seen.push(progress.current());
            let busy = progress.busy();
            progress.bytes_came();
            seen.push(progress.current());
            drop(busy);
            seen.push(progress.current());
        }
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        drop(progress.busy());
        assert_eq!(
            progress.current(),
            9,
            "a request that came with the last one's bytes has no head phase"
        );
    }

    impl Socket for tokio::io::DuplexStream {
        fn close_reading(&self) {}

        fn poll_deserted(&self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }
    }

    fn deadlines(
        stream: tokio::io::DuplexStream,
    ) -> (Deadlines<tokio::io::DuplexStream>, Arc<Progress>) {
        let progress = Arc::new(Progress::default());
        let limits = Arc::new(Limits::default());
        (
            Deadlines::new(stream, Arc::clone(&progress), limits),
            progress,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_at_the_idle_limit_and_a_trickling_head_at_its_own() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (mut ours, _progress) = deadlines(ours);
        let mut buffer = [0; 64];
        let idle = tokio::time::timeout(Duration::from_secs(119), ours.read(&mut buffer));
        assert!(idle.await.is_err());
        theirs.write_all(b"G").await.unwrap();
        assert_eq!(ours.read(&mut buffer).await.unwrap(), 1);
        let head = tokio::time::timeout(Duration::from_secs(9), ours.read(&mut buffer));
        assert!(head.await.is_err());
        theirs.write_all(b"E").await.unwrap();
        assert_eq!(ours.read(&mut buffer).await.unwrap(), 1);
        let head = tokio::time::timeout(Duration::from_secs(2), ours.read(&mut buffer));
        assert_eq!(
            head.await.unwrap().unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_hurried_while_we_are_the_ones_who_work() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let (mut ours, progress) = deadlines(ours);
        let busy = progress.busy();
        let mut buffer = [0; 64];
        let read = tokio::time::timeout(Duration::from_secs(3600), ours.read(&mut buffer));
        assert!(read.await.is_err());
        drop(busy);
        let read = tokio::time::timeout(Duration::from_secs(119), ours.read(&mut buffer));
        assert!(
            read.await.is_err(),
            "the idle time counts from the end of the request"
        );
        let error = ours.read(&mut buffer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_no_byte_of_its_answer_is_dropped() {
        let (ours, mut theirs) = tokio::io::duplex(4);
        let (mut ours, _progress) = deadlines(ours);
        ours.write_all(b"1234").await.unwrap();
        let stuck = tokio::time::timeout(Duration::from_secs(29), ours.write_all(b"5"));
        assert!(stuck.await.is_err());
        let mut buffer = [0; 4];
        theirs.read_exact(&mut buffer).await.unwrap();
        ours.write_all(b"5678").await.unwrap();
        let error = ours.write_all(b"9").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
