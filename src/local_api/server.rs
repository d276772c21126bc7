//! Connections: who is there, whether there is room for them, and how a socket begins and ends.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::Future;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::accept::Acceptor;
use super::caller::Caller;
use super::events::Streams;
use super::keeper::{Audited, Keeper};
use super::limits::{Deadlines, Limits};
use super::lock;
use super::peer::{Peer, PeerError};
use super::problem;
use super::quotas::{Party, Place, Quotas, Turn};
use super::routes::{self, Api};
use super::rules::{Denied, Rule, Rules, SharedRules, SocketKind};
use super::shortcut::{Ask, Shortcut};
use super::types::Problem;

/// At a shutdown, who has connected and not asked yet gets so long to do it.
const FIRST_REQUEST: Duration = Duration::from_millis(500);

/// The log names so many refused uids once each; further ones are only counted, by metric and audit, for [`FORGOTTEN`].
const NAMED: usize = 64;
const FORGOTTEN: Duration = Duration::from_secs(600);

/// So many file descriptors, or a quarter of all if that is less, are not for apps, but for half of them if the app has
/// few: the admin socket, the store and requests to providers have them.
const RESERVED_FILES: u64 = 512;

/// Serves a socket until `shutdown` completes, with the usual [`Limits`]. See [`serve_with`].
///
/// # Errors
///
/// Those of handing `listener` to the runtime.
pub async fn serve<K: Keeper>(
    listener: UnixListener,
    kind: SocketKind,
    keeper: Arc<K>,
    access: Access,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_with(listener, kind, keeper, access, shutdown, Limits::default()).await
}

/// Who gets in, and how much of freshd they get: the same for all sockets.
#[derive(Clone)]
pub struct Access {
    /// The rules in force.
    pub rules: SharedRules,
    /// What was counted of each app. The admin socket does not ask: nobody's flood is felt there.
    pub quotas: Arc<Quotas>,
}

/// Serves a socket until `shutdown` completes; then accepts nothing more, and returns when all requests are answered that
/// were sent by then. Who sends one later gets an error, and knows that it was not taken. The caller bounds the time.
///
/// A client that hangs up, and the request's deadline, drop the keeper's future: whatever must not be
/// cut short runs in a task of its own.
///
/// # Errors
///
/// Those of handing `listener` to the runtime.
pub async fn serve_with<K: Keeper>(
    listener: UnixListener,
    kind: SocketKind,
    keeper: Arc<K>,
    access: Access,
    shutdown: impl Future<Output = ()>,
    limits: Limits,
) -> io::Result<()> {
    let server = Arc::new(Server::new(kind, keeper, access, limits));
    let stop = watch::Sender::new(false);
    let (newcomer, mut newcomers) = mpsc::channel::<Infallible>(1);
    let acceptor = Acceptor::start(
        listener,
        server.kind.clone(),
        server.access.quotas.clock(),
        {
            let (server, stop) = (Arc::clone(&server), stop.clone());
            move |stream| server.welcome(stream, stop.subscribe(), newcomer.clone())
        },
    )?;
    acceptor.until(shutdown).await;
    server.streams.stop();
    // A request may be on its way on a connection that was just accepted, and would be lost.
    let _ = tokio::time::timeout(FIRST_REQUEST, newcomers.recv()).await;
    stop.send_replace(true);
    stop.closed().await;
    Ok(())
}

/// Tells a client that there is no room, as far as that goes without waiting for it.
fn turn_away(mut stream: UnixStream, problem: &Problem) {
    let body = serde_json::to_string(problem).expect("a struct of strings and numbers is JSON");
    let status = match problem.status {
        429 => "429 Too Many Requests",
        _ => "503 Service Unavailable",
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncache-control: no-store\r\nretry-after: 1\r\n\
         content-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    // The client that never asked may be gone, and its buffer may be full: both are its loss.
    let _ = stream.write(answer.as_bytes());
}

/// What a connection has taken, and when its turn is.
struct Admission {
    turn: Turn,
    _place: Option<Place>,
    _of_all: Option<OwnedSemaphorePermit>,
}

/// What the connections of a socket share.
pub(super) struct Server<K> {
    pub(super) kind: SocketKind,
    pub(super) keeper: Arc<K>,
    pub(super) access: Access,
    /// All its connections.
    places: Arc<Semaphore>,
    /// Whether the last connection found none.
    full: AtomicBool,
    /// The first file descriptor that is not for a connection here; the first that is not even for an app with few.
    files: [u64; 2],
    pub(super) router: Router,
    pub(super) limits: Arc<Limits>,
    pub(super) streams: Arc<Streams>,
    refused: Mutex<Refused>,
}

/// Whom the log has named since the rules last changed.
struct Refused {
    rules: Arc<Rules>,
    uids: HashSet<Option<u32>>,
    /// When they became [`NAMED`], on the clock that quotas are counted by.
    since: Duration,
}

impl<K: Keeper> Server<K> {
    fn new(kind: SocketKind, keeper: Arc<K>, access: Access, limits: Limits) -> Self {
        let limits = Arc::new(limits);
        let api = Api {
            keeper: Arc::clone(&keeper),
            limits: Arc::clone(&limits),
        };
        let router = routes::router(&kind, api);
        let refused = Mutex::new(Refused {
            rules: access.rules.load_full(),
            uids: HashSet::new(),
            since: Duration::ZERO,
        });
        Server {
            files: match kind {
                SocketKind::Admin => [u64::MAX; 2],
                SocketKind::Shared | SocketKind::App(_) => files_for_apps(),
            },
            kind,
            keeper,
            access,
            places: Arc::new(Semaphore::new(limits.connections)),
            full: AtomicBool::new(false),
            router,
            streams: Arc::new(Streams::new(Arc::clone(&limits))),
            limits,
            refused,
        }
    }

    /// Serves a new connection if there is a place for it. Returns who makes connections too fast.
    fn welcome(
        self: &Arc<Self>,
        stream: UnixStream,
        stop: watch::Receiver<bool>,
        newcomer: mpsc::Sender<Infallible>,
    ) -> Option<Party> {
        let caller = Caller::new(self, Peer::of(&stream), newcomer);
        let admission = match self.admit(&stream, &caller) {
            Ok(admission) => admission,
            Err(problem) => {
                turn_away(stream, &problem);
                return caller.party().filter(|_| problem.status == 429);
            }
        };
        match tokio::net::UnixStream::from_std(stream) {
            Ok(stream) => {
                let connection = self.connection(stream, caller, stop);
                tokio::spawn(async move {
                    admission.turn.come().await;
                    connection.await;
                    drop(admission);
                });
            }
            Err(error) => tracing::warn!(socket = %self.kind, %error, "accept-failed"),
        }
        None
    }

    /// Finds a place for a new connection.
    ///
    /// # Errors
    ///
    /// What its peer is told: the app, or the socket, or the process has as many as it may.
    fn admit(&self, stream: &UnixStream, caller: &Caller<K>) -> Result<Admission, Problem> {
        let mut admission = Admission {
            turn: Turn::Now,
            _place: None,
            _of_all: Arc::clone(&self.places).try_acquire_owned().ok(),
        };
        let mut has_few = false;
        if let Some(party) = caller.party() {
            // Who is turned away asks nothing, so a denial would never be told.
            let (place, turn) = party.connect().inspect_err(|_| drop(caller.rule()))?;
            has_few = party.open() <= self.limits.reserved;
            (admission._place, admission.turn) = (Some(place), turn);
        }
        let limit = self.limits.connections;
        let files = self.files[usize::from(has_few)];
        let descriptor = u64::try_from(stream.as_raw_fd()).unwrap_or(u64::MAX);
        let taken = admission._of_all.is_none() && !has_few;
        if taken || descriptor >= files {
            if !self.full.swap(true, Ordering::Relaxed) {
                let files = (!taken).then_some(files);
                tracing::warn!(socket = %self.kind, limit, files, "connections-full");
            }
            return Err(match taken {
                true => problem::too_many_connections("this socket", limit, "fixed"),
                false => problem::too_many_files(files),
            });
        }
        if self.places.available_permits() > limit / 10 && descriptor < self.files[0] {
            self.full.store(false, Ordering::Relaxed);
        }
        Ok(admission)
    }

    /// Returns on whose account a peer is. Nobody counts what comes by the admin socket.
    pub(super) fn party(
        &self,
        peer: &Result<Peer, PeerError>,
        matched: &Result<Arc<Rule>, Denied>,
    ) -> Option<Party> {
        let (peer, rule) = (peer.as_ref().ok(), matched.as_deref().ok());
        let quotas = &self.access.quotas;
        (self.kind != SocketKind::Admin).then(|| quotas.party(peer, rule, self.limits.strangers))
    }

    /// Returns the future that serves one connection to its end.
    fn connection(
        self: &Arc<Self>,
        stream: tokio::net::UnixStream,
        caller: Caller<K>,
        mut stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + use<K> {
        let caller = Arc::new(caller);
        let progress = Arc::clone(&caller.progress);
        let io = Deadlines::new(stream, Arc::clone(&progress), Arc::clone(&self.limits));
        let io = Shortcut::new(io, Arc::clone(&progress), {
            let caller = Arc::clone(&caller);
            move |ask: Ask<'_>| caller.begin(ask)
        });
        let service = hyper::service::service_fn(move |request| {
            let (caller, busy) = (Arc::clone(&caller), caller.progress.busy());
            async move { Ok::<_, Infallible>(caller.answer(request, busy).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            // `Deadlines` tells those who are gone from those who have said all.
            .half_close(true)
            // `Deadlines` keeps the time.
            .header_read_timeout(None)
            .max_buf_size(self.limits.head_bytes)
            .serve_connection(TokioIo::new(io), service);
        async move {
            let mut connection = pin!(connection);
            let stopped = async { drop(stop.wait_for(|stop| *stop).await) };
            let ended = tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = stopped => {
                    progress.close();
                    connection.await
                }
            };
            // Its end is told when this is dropped.
            drop(stop);
            if let Err(error) = ended {
                tracing::debug!(%error, "connection-ended");
            }
        }
    }

    pub(super) fn rule_of(
        &self,
        peer: &Result<Peer, PeerError>,
        rules: &Arc<Rules>,
    ) -> Result<Arc<Rule>, Denied> {
        match peer {
            Ok(peer) => rules.match_peer(peer, &self.kind).cloned(),
            Err(error) => Err(Denied::from(error)),
        }
    }

    /// Logs a refusal once for each uid and set of rules: who polls does not flood the log. The audit counts them all.
    pub(super) fn note_refusal(&self, rules: &Arc<Rules>, peer: Option<&Peer>, denied: &Denied) {
        self.keeper.audit(Audited {
            action: Audited::REFUSED,
            by: peer.map_or("unknown".to_owned(), |peer| format!("uid {}", peer.uid)),
            user: None,
            detail: format!("{} socket", self.kind),
        });
        let now = self.access.quotas.running();
        let mut refused = lock(&self.refused);
        if refused.uids.len() >= NAMED && now >= refused.since + FORGOTTEN {
            refused.uids.clear();
        }
        if !Arc::ptr_eq(&refused.rules, rules) {
            // Whom the new rules refuse as well is news, but no more of them than there were.
            refused.rules = Arc::clone(rules);
            if refused.uids.len() < NAMED {
                refused.uids.clear();
            }
        }
        if refused.uids.len() >= NAMED || !refused.uids.insert(peer.map(|peer| peer.uid)) {
            return;
        }
        if refused.uids.len() == NAMED {
            refused.since = now;
        }
        tracing::warn!(
            socket = %self.kind,
            peer = peer.map(tracing::field::display),
            pid = peer.and_then(|peer| peer.pid),
            reason = %denied,
            rule = peer.and_then(|peer| denied.remedy(peer)),
            "peer-refused"
        );
    }
}

/// Returns the first file descriptor that is not for apps, and the first that is not even for one with few connections.
fn files_for_apps() -> [u64; 2] {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = limit.current.unwrap_or(u64::MAX);
    let reserved = RESERVED_FILES.min(limit / 4);
    [limit - reserved, limit - reserved / 2]
}
