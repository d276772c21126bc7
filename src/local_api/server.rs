//! Connections: who is there, whether there is room for them, and how a socket begins and ends.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::caller::Caller;
use super::events::Streams;
use super::keeper::{Audited, Keeper};
use super::limits::{Deadlines, Limits, Progress};
use super::peer::{Peer, PeerError};
use super::problem;
use super::quotas::{Party, Place, Quotas, Turn};
use super::routes::{self, Api};
use super::rules::{Denied, Rule, Rules, SharedRules, SocketKind};
use super::types::Problem;

/// After a failed accept (mostly: no file descriptor left) the next is tried so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// At a shutdown, who has connected and not asked yet gets so long to do it.
const FIRST_REQUEST: Duration = Duration::from_millis(500);

/// Who opens connections too fast is hung up on for so long.
const STORM: Duration = Duration::from_millis(100);

/// The log names so many refused uids once each; further ones are only counted, by metric and audit, for [`FORGOTTEN`].
const NAMED: usize = 64;
const FORGOTTEN: Duration = Duration::from_secs(600);

/// So many uids that open connections too fast are known at once.
const REMEMBERED: usize = 1024;

/// So many file descriptors, or a quarter of all if that is less, are not for apps: the admin socket, the store and
/// requests to providers have them.
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

/// Serves a socket until `shutdown` completes; then accepts nothing more, closes idle connections, and
/// returns when the last request in flight is answered. The caller bounds that.
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
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let server = Arc::new(Server::new(kind, keeper, access, limits));
    let graceful = GracefulShutdown::new();
    let (newcomer, mut newcomers) = mpsc::channel::<Infallible>(1);
    let mut stormers = Stormers::default();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accept(&listener, &mut stormers, &server) => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(socket = %server.kind, %error, "accept-failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let peer = Peer::of(&stream);
        let admission = match server.admit(&stream, &peer) {
            Ok(admission) => admission,
            Err(problem) => {
                turn_away(&stream, &problem);
                if problem.status == 429
                    && let Some(party) = server.party_now(&peer)
                {
                    stormers.add(party, server.access.quotas.running());
                }
                continue;
            }
        };
        let connection = server.connection(stream, peer, &graceful, newcomer.clone());
        tokio::spawn(async move {
            admission.turn.come().await;
            connection.await;
            drop(admission);
        });
    }
    drop(listener);
    server.streams.stop();
    // A request may be on its way on a connection that was just accepted, and would be lost.
    drop(newcomer);
    let _ = tokio::time::timeout(FIRST_REQUEST, newcomers.recv()).await;
    graceful.shutdown().await;
    Ok(())
}

/// Who opened connections too fast a moment ago. Until that is over they are hung up on without a word and without
/// anything being done for them: the others wait behind them in the listener's queue.
#[derive(Default)]
struct Stormers(HashMap<u32, (Duration, Party)>);

impl Stormers {
    fn add(&mut self, party: Party, now: Duration) {
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        if let Some(uid) = party.uid() {
            self.0.insert(uid, (now + STORM, party));
        }
    }

    /// Whether to hang up on this connection.
    fn sent(&mut self, stream: &UnixStream, quotas: &Quotas) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let uid = stream.peer_cred().ok().map(|peer| peer.uid());
        let Some((uid, (until, party))) = uid.and_then(|uid| Some((uid, self.0.get(&uid)?))) else {
            return false;
        };
        if quotas.running() < *until {
            party.hung_up();
            return true;
        }
        self.0.remove(&uid);
        false
    }
}

/// Returns the next connection that is none of a storm's.
async fn accept<K: Keeper>(
    listener: &tokio::net::UnixListener,
    stormers: &mut Stormers,
    server: &Server<K>,
) -> io::Result<UnixStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        if !stormers.sent(&stream, &server.access.quotas) {
            return Ok(stream);
        }
    }
}

/// Tells a client that there is no room, as far as that goes without waiting for it.
fn turn_away(stream: &UnixStream, problem: &Problem) {
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
    let _ = stream.try_write(answer.as_bytes());
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
    /// The first file descriptor that is not for a connection here.
    files: u64,
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
                SocketKind::Admin => u64::MAX,
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

    /// Finds a place for a new connection.
    ///
    /// # Errors
    ///
    /// What its peer is told: the app, or the socket, or the process has as many as it may.
    fn admit(
        &self,
        stream: &UnixStream,
        peer: &Result<Peer, PeerError>,
    ) -> Result<Admission, Problem> {
        let rules = self.access.rules.load();
        let matched = self.rule_of(peer, &rules);
        let mut admission = Admission {
            turn: Turn::Now,
            _place: None,
            _of_all: Arc::clone(&self.places).try_acquire_owned().ok(),
        };
        let mut has_few = false;
        if let Some(party) = self.party(peer, &matched) {
            let (place, turn) = party.connect().inspect_err(|_| {
                if let Err(denied) = &matched {
                    self.note_refusal(&rules, peer.as_ref().ok(), denied);
                }
            })?;
            has_few = party.open() <= self.limits.reserved;
            (admission._place, admission.turn) = (Some(place), turn);
        }
        let limit = self.limits.connections;
        let taken = admission._of_all.is_none() && !has_few;
        if taken && !self.full.swap(true, Ordering::Relaxed) {
            tracing::warn!(socket = %self.kind, limit, "connections-full");
        }
        let descriptor = u64::try_from(stream.as_raw_fd()).unwrap_or(u64::MAX);
        if taken || descriptor >= self.files {
            let problem = problem::too_many_connections("this socket", limit, "fixed");
            return Err(problem);
        }
        if self.places.available_permits() > limit / 10 {
            self.full.store(false, Ordering::Relaxed);
        }
        Ok(admission)
    }

    /// Returns on whose account a peer is by the rules of now.
    fn party_now(&self, peer: &Result<Peer, PeerError>) -> Option<Party> {
        self.party(peer, &self.rule_of(peer, &self.access.rules.load()))
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

    /// Returns the future that serves one connection to its end. It drops `newcomer` with the first request.
    fn connection(
        self: &Arc<Self>,
        stream: UnixStream,
        peer: Result<Peer, PeerError>,
        graceful: &GracefulShutdown,
        newcomer: mpsc::Sender<Infallible>,
    ) -> impl Future<Output = ()> + Send + use<K> {
        let progress = Arc::new(Progress::default());
        let io = Deadlines::new(stream, Arc::clone(&progress), Arc::clone(&self.limits));
        let caller = Arc::new(Caller::new(self, peer, &progress));
        let newcomer = Mutex::new(Some(newcomer));
        let service = hyper::service::service_fn(move |request| {
            drop(
                newcomer
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take(),
            );
            let (caller, busy) = (Arc::clone(&caller), progress.busy());
            async move {
                let answer = caller.answer(request).await;
                drop(busy);
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            // `Deadlines` keeps the time.
            .header_read_timeout(None)
            .max_buf_size(self.limits.head_bytes)
            .serve_connection(TokioIo::new(io), service);
        let watched = graceful.watch(connection);
        async move {
            if let Err(error) = watched.await {
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
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Returns the first file descriptor that is not for apps.
fn files_for_apps() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = limit.current.unwrap_or(u64::MAX);
    limit - RESERVED_FILES.min(limit / 4)
}
