//! Taking connections from a socket's queue, on a thread of its own.
//!
//! A storm of connections keeps the kernel's queue of the socket full, and whoever else connects waits behind it: for the
//! queue's length over the speed at which it is emptied. So while there is a heavy one the queue is short, and what belongs
//! to any is hung up on before anything is made for it. The runtime's threads, which have answers to give, feel none of it.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::peer;
use super::quotas::{Party, Running};
use super::rules::SocketKind;

/// After a failed accept (mostly: no file descriptor left) the next is tried so much later.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// And that it failed is told once in so long.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Who opens connections too fast is hung up on for so long.
const STORM: Duration = Duration::from_millis(100);

/// After a storm the queue is short for so much longer: storms come again.
const CALM: Duration = Duration::from_secs(1);

/// So many uids that open connections too fast are known at once.
const REMEMBERED: usize = 1024;

/// So many connections are taken before the thread looks whether it is to stop.
const BATCH: usize = 256;

/// As many as the kernel allows may wait (`net.core.somaxconn`): while freshd is restarted, all do.
const LONG: i32 = i32::MAX;

/// A storm is heavy that has so many connections hung up on in so long. Lighter ones don't fill the queue.
const HEAVY: u32 = 50;
const HEAVY_WITHIN: Duration = Duration::from_millis(5);

/// In a storm every place is taken anyway, and who waits for one waits for all that have one.
const SHORT: i32 = 2;

/// In a storm so many at most are taken in so long. Taken as fast as they come, they and their senders would use up the
/// processors, which others feel more than this.
const STORM_BATCH: usize = 8;
const STORM_ROUND: Duration = Duration::from_micros(250);

/// The thread, as long as this is kept.
pub(super) struct Acceptor {
    stop: PipeWriter,
    ended: oneshot::Receiver<()>,
    thread: JoinHandle<()>,
}

impl Acceptor {
    /// Begins to take connections. `welcome` gets each one on the thread, in the runtime of the caller, and returns who
    /// made it if that is somebody who makes them too fast.
    ///
    /// # Errors
    ///
    /// No file descriptor or no thread is to be had.
    pub(super) fn start(
        listener: UnixListener,
        kind: SocketKind,
        running: Running,
        welcome: impl FnMut(UnixStream) -> Option<Party> + Send + 'static,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (stopped, stop) = io::pipe()?;
        let (end, ended) = oneshot::channel();
        let runtime = Handle::current();
        let queue = Queue {
            listener,
            kind,
            stopped,
            running,
            storm: Storm::default(),
            short: false,
            round: Round::default(),
            told_at: None,
        };
        let thread = std::thread::Builder::new()
            .name("accept".into())
            .spawn(move || {
                let _runtime = runtime.enter();
                queue.serve(welcome);
                drop(end);
            })?;
        Ok(Acceptor {
            stop,
            ended,
            thread,
        })
    }

    /// Takes connections until `shutdown`, and returns when nothing of them is on the thread any more.
    pub(super) async fn until(mut self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {
                drop(self.stop);
                let _ = self.ended.await;
            }
            _ = &mut self.ended => {}
        }
        if let Err(panicked) = self.thread.join() {
            panic::resume_unwind(panicked);
        }
    }
}

/// What the thread works on.
struct Queue {
    listener: UnixListener,
    kind: SocketKind,
    /// Hangs up when it is over.
    stopped: PipeReader,
    running: Running,
    storm: Storm,
    /// Whether it was made short.
    short: bool,
    round: Round,
    /// When a failure was told.
    told_at: Option<Duration>,
}

/// What was taken lately, in a storm.
#[derive(Default)]
struct Round {
    began_at: Duration,
    taken: usize,
}

impl Queue {
    fn serve(mut self, mut welcome: impl FnMut(UnixStream) -> Option<Party>) {
        self.set_length(LONG);
        while self.wait() {
            match self.take(&mut welcome) {
                Ok(()) => self.suit_length(),
                Err(error) => {
                    self.tell(&error);
                    self.pause(ERROR_PAUSE);
                }
            }
            if self.short {
                self.go_round();
            }
        }
    }

    /// Waits for the round's end if all that it allows was taken.
    fn go_round(&mut self) {
        let passed = (self.running)().saturating_sub(self.round.began_at);
        let left = STORM_ROUND.saturating_sub(passed);
        if self.round.taken >= STORM_BATCH {
            self.pause(left);
        } else if !left.is_zero() {
            return;
        }
        self.round = Round {
            began_at: (self.running)(),
            taken: 0,
        };
    }

    /// Waits for a connection, or for a storm to be over. Returns whether it goes on.
    fn wait(&self) -> bool {
        let mut events = [
            PollFd::new(&self.stopped, PollFlags::empty()),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        let timeout = self.short.then(|| timespec(CALM));
        // Interrupted, there is nothing to take, which does no harm.
        let _ = poll(&mut events, timeout.as_ref());
        events[0].revents().is_empty()
    }

    /// Waits for the time to pass, or for the stop.
    fn pause(&self, length: Duration) {
        let mut stopped = [PollFd::new(&self.stopped, PollFlags::empty())];
        let _ = poll(&mut stopped, Some(&timespec(length)));
    }

    /// Takes what there is, up to a batch.
    fn take(&mut self, welcome: &mut impl FnMut(UnixStream) -> Option<Party>) -> io::Result<()> {
        let batch = match self.short {
            true => STORM_BATCH.saturating_sub(self.round.taken),
            false => BATCH,
        };
        for _ in 0..batch {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(&self.listener, flags) {
                Ok(stream) => {
                    self.round.taken += 1;
                    self.meet(stream, welcome);
                }
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Tells of a failure, once in a while.
    fn tell(&mut self, error: &io::Error) {
        let now = (self.running)();
        if self.told_at.is_none_or(|at| now >= at + TOLD_EVERY) {
            self.told_at = Some(now);
            tracing::warn!(socket = %self.kind, %error, "accept-failed");
        }
    }

    fn meet(&mut self, stream: OwnedFd, welcome: &mut impl FnMut(UnixStream) -> Option<Party>) {
        if self.storm.has_sent(&stream, &self.running) {
            return;
        }
        if let Some(party) = welcome(stream.into()) {
            self.storm.add(party, (self.running)());
        }
    }

    /// Makes the queue short in a heavy storm, and long when that is over.
    fn suit_length(&mut self) {
        let stormy = self.storm.is_heavy((self.running)());
        if stormy != self.short {
            self.short = stormy;
            self.set_length(if stormy { SHORT } else { LONG });
        }
    }

    fn set_length(&self, length: i32) {
        // A socket that listens takes it as its new length.
        if let Err(error) = rustix::net::listen(&self.listener, length) {
            tracing::debug!(socket = %self.kind, %error, "listen-failed");
        }
    }
}

/// Who opened connections too fast a moment ago. Until that is over they are hung up on without a word and without
/// anything being done for them.
#[derive(Default)]
struct Storm {
    senders: HashMap<u32, (Duration, Party)>,
    /// When the last one will have been over for long enough.
    calm_at: Duration,
    /// When counting began, and how many were hung up on since.
    counted: (Duration, u32),
    heavy: bool,
}

impl Storm {
    fn add(&mut self, party: Party, now: Duration) {
        if self.senders.len() >= REMEMBERED {
            self.senders.clear();
        }
        self.calm_at = now + STORM + CALM;
        if let Some(uid) = party.uid() {
            self.senders.insert(uid, (now + STORM, party));
        }
    }

    /// Whether one is heavy, or was a moment ago.
    fn is_heavy(&mut self, now: Duration) -> bool {
        self.heavy &= now < self.calm_at;
        self.heavy
    }

    fn count(&mut self, now: Duration) {
        if now >= self.counted.0 + HEAVY_WITHIN {
            self.counted = (now, 0);
        }
        self.counted.1 += 1;
        self.heavy |= self.counted.1 >= HEAVY;
    }

    /// Whether to hang up on this connection.
    fn has_sent(&mut self, stream: &OwnedFd, running: &Running) -> bool {
        if self.senders.is_empty() {
            return false;
        }
        let Ok(uid) = peer::uid(stream) else {
            return false;
        };
        let Some((until, party)) = self.senders.get(&uid) else {
            return false;
        };
        let now = running();
        if now < *until {
            party.hung_up();
            self.count(now);
            return true;
        }
        self.senders.remove(&uid);
        false
    }
}

fn timespec(length: Duration) -> Timespec {
    Timespec::try_from(length).expect("a second at most")
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket_with};
    use tokio::sync::mpsc;

    use super::super::peer::Peer;
    use super::super::quotas::Quotas;
    use super::*;

    fn listener() -> (tempfile::TempDir, PathBuf, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        (directory, path, listener)
    }

    /// More than a short queue has room for.
    const MANY: usize = 50;

    fn still() -> Running {
        Arc::new(|| Duration::ZERO)
    }

    /// Connects as often as the queue has room, up to `most`.
    fn fill(path: &Path, most: usize) -> Vec<OwnedFd> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let one = || {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            match connect(&socket, &SocketAddrUnix::new(path).unwrap()) {
                Ok(()) => Some(socket),
                Err(error) => {
                    assert_eq!(error, Errno::AGAIN);
                    None
                }
            }
        };
        std::iter::repeat_with(one)
            .map_while(|it| it)
            .take(most)
            .collect()
    }

    #[tokio::test]
    async fn who_connects_is_welcomed_until_the_stop_and_nobody_after_it() {
        let (_directory, path, listener) = listener();
        let (welcomed, mut seen) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let welcome = move |stream| {
            welcomed.send(stream).unwrap();
            None
        };
        let acceptor = Acceptor::start(listener, SocketKind::Shared, still(), welcome).unwrap();
        let until = tokio::spawn(acceptor.until(async { drop(stopped.await) }));
        let _client = UnixStream::connect(&path).unwrap();
        seen.recv().await.unwrap();
        drop(stop);
        until.await.unwrap();
        assert!(
            seen.recv().await.is_none(),
            "the thread is gone with what it had"
        );
        let error = UnixStream::connect(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_panic_on_the_thread_is_one_of_who_waits_for_it() {
        let (_directory, path, listener) = listener();
        let welcome = |_| panic!("out of order");
        let acceptor = Acceptor::start(listener, SocketKind::Shared, still(), welcome).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let until = tokio::spawn(acceptor.until(std::future::pending()));
        let panicked = until.await.unwrap_err().into_panic();
        assert_eq!(panicked.downcast_ref(), Some(&"out of order"));
    }

    /// An acceptor whose thread waits in each welcome until it may go on.
    struct Held {
        path: PathBuf,
        meets: mpsc::UnboundedReceiver<()>,
        go_on: std::sync::mpsc::Sender<bool>,
    }

    impl Held {
        /// Connects until the queue behind a connection that is held has room for so many.
        async fn until_the_queue_is(&mut self, length: usize) {
            // Its length is suited when it is empty, or a batch was taken.
            for _ in 0..=BATCH {
                let _client = UnixStream::connect(&self.path).unwrap();
                self.meets.recv().await.unwrap();
                let room = fill(&self.path, MANY);
                self.go_on.send(false).unwrap();
                for _ in &room {
                    self.meets.recv().await.unwrap();
                    self.go_on.send(false).unwrap();
                }
                if room.len() == length {
                    return;
                }
            }
            panic!("the queue does not become {length} long");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_queue_is_short_in_a_heavy_storm_and_long_again_after_it() {
        let (_directory, path, listener) = listener();
        let millis = Arc::new(AtomicU64::new(0));
        let running: Running = {
            let millis = Arc::clone(&millis);
            Arc::new(move || Duration::from_millis(millis.load(Ordering::Relaxed)))
        };
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let us = Peer::of(&ours).unwrap();
        let party = Quotas::new(still()).party(Some(&us), None, 1);
        // Each connection is held on the thread until the test has looked at the queue behind it.
        let (met, meets) = mpsc::unbounded_channel();
        let (go_on, goes_on) = std::sync::mpsc::channel::<bool>();
        let welcome = move |_| {
            met.send(()).unwrap();
            goes_on.recv().unwrap_or(false).then(|| party.clone())
        };
        let acceptor = Acceptor::start(listener, SocketKind::Shared, running, welcome).unwrap();
        let mut held = Held { path, meets, go_on };
        held.until_the_queue_is(MANY).await;
        held.go_on.send(true).unwrap();
        for _ in 0..=HEAVY {
            let mut sent = UnixStream::connect(&held.path).unwrap();
            assert_eq!(sent.read(&mut [0]).unwrap(), 0, "it was hung up on");
        }
        held.meets.recv().await.unwrap();
        millis.fetch_add(200, Ordering::Relaxed);
        // The kernel takes one more than it is told.
        held.until_the_queue_is(3).await;
        millis.fetch_add(2000, Ordering::Relaxed);
        held.until_the_queue_is(MANY).await;
        drop(held);
        acceptor.until(async {}).await;
    }
}
