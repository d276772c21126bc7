//! Connections: who is there, what they may do, and their requests one after the other.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN, REFERER};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tower::ServiceExt;

use super::events::{Circumstances, Streams};
use super::keeper::{Audited, Keeper};
use super::limits::{Deadlines, Limits, Progress};
use super::peer::{Peer, PeerError};
use super::problem;
use super::quotas::{Overrun, Party, Place, Quotas, Turn, UserRead};
use super::request::{self, NAMESPACE_HEADER, Names};
use super::routes::{self, Api, Call};
use super::rules::{Denied, Rule, Rules, SharedRules, SocketKind};
use super::types::Problem;

/// After a failed accept (mostly: no file descriptor left) the next is tried so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// At a shutdown, who has connected and not asked yet gets so long to do it.
const FIRST_REQUEST: Duration = Duration::from_millis(500);

/// The log remembers so many refused uids, in order to name each once.
const REMEMBERED: usize = 1024;

/// What is over quota is refused after so long, which is what it is told to wait: who does not, waits here.
const PENALTY: Duration = Duration::from_secs(1);

/// So many file descriptors, or a quarter of all if that is less, are not for apps: the admin socket, the store and
/// requests to providers have them.
const RESERVED_FILES: u64 = 512;

type Answer = Response<Either<Full<Bytes>, Body>>;

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
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
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
                continue;
            }
        };
        let connection = server.connection(stream, peer, &graceful, newcomer.clone());
        tokio::spawn(async move {
            wait_for(admission.turn).await;
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

async fn wait_for(turn: Turn) {
    if let Turn::After(wait) = turn {
        tokio::time::sleep(wait).await;
    }
}

/// What a connection has taken, and when its turn is.
struct Admission {
    turn: Turn,
    _place: Option<Place>,
    _of_all: Option<OwnedSemaphorePermit>,
}

/// What the connections of a socket share.
struct Server<K> {
    kind: SocketKind,
    keeper: Arc<K>,
    access: Access,
    /// All its connections.
    places: Arc<Semaphore>,
    /// Whether the last connection found none.
    full: AtomicBool,
    /// The first file descriptor that is not for a connection here.
    files: u64,
    router: Router,
    limits: Arc<Limits>,
    streams: Arc<Streams>,
    refused: Mutex<Refused>,
}

/// Whom the log has named since the rules last changed.
struct Refused {
    rules: Arc<Rules>,
    uids: HashSet<Option<u32>>,
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

    /// Returns on whose account a peer is. Nobody counts what comes by the admin socket.
    fn party(
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
        let caller = Arc::new(Caller {
            server: Arc::clone(self),
            peer,
            progress: Arc::clone(&progress),
            matched: Mutex::new(None),
        });
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

    fn rule_of(
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
    fn note_refusal(&self, rules: &Arc<Rules>, peer: Option<&Peer>, denied: &Denied) {
        self.keeper.audit(Audited {
            action: Audited::REFUSED,
            by: peer.map_or("unknown".to_owned(), |peer| format!("uid {}", peer.uid)),
            user: None,
            detail: format!("{} socket", self.kind),
        });
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&refused.rules, rules) || refused.uids.len() >= REMEMBERED {
            *refused = Refused {
                rules: Arc::clone(rules),
                uids: HashSet::new(),
            };
        }
        if !refused.uids.insert(peer.map(|peer| peer.uid)) {
            return;
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

/// The peer of one connection, and what the rules said about it when last asked.
struct Caller<K> {
    server: Arc<Server<K>>,
    peer: Result<Peer, PeerError>,
    progress: Arc<Progress>,
    matched: Mutex<Option<Matched>>,
}

struct Matched {
    rules: Arc<Rules>,
    outcome: Result<Arc<Rule>, Denied>,
    party: Option<Party>,
    /// Whether it was told that the rules deny it.
    noted: bool,
}

impl<K: Keeper> Caller<K> {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Answer {
        let limit = self.server.limits.request;
        let mut answer = match self.wait_for_turn().await {
            Err(problem) => refusal(problem),
            Ok(()) => match tokio::time::timeout(limit, self.route(request)).await {
                Ok(answer) => answer.unwrap_or_else(refusal),
                Err(_) => refusal(problem::deadline_exceeded(limit)),
            },
        };
        answer
            .headers_mut()
            .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }

    /// Waits for the request's turn, before anything is done for it.
    async fn wait_for_turn(&self) -> Result<(), Problem> {
        let party = self.matched(|matched| matched.party.clone());
        match party.map(|party| party.request()) {
            None => Ok(()),
            Some(Ok(turn)) => {
                wait_for(turn).await;
                Ok(())
            }
            Some(Err(problem)) => {
                tokio::time::sleep(PENALTY).await;
                Err(problem)
            }
        }
    }

    async fn route(self: &Arc<Self>, mut request: Request<Incoming>) -> Result<Answer, Problem> {
        for header in [ORIGIN, REFERER] {
            if request.headers().contains_key(&header) {
                let detail = format!(
                    "requests with the header {header} come from web pages, which get nothing"
                );
                return Err(problem::forbidden(detail));
            }
        }
        let path = request.uri().path();
        let mut read = None;
        if path != "/healthz" {
            let rule = self.rule()?;
            let namespace = self.namespace(&request, &rule)?;
            let call = Call {
                rule,
                namespace,
                names: Names::of(path)?,
                admin: self.admin(),
            };
            read = self.count_user(&call, path)?;
            if routes::is_token_path(path) {
                let answer = self.token(&call, &request).await?;
                keep_if_given(read, &answer);
                return Ok(answer);
            }
            if path == "/v1/events" {
                let circumstances = self.circumstances();
                request.extensions_mut().insert(circumstances);
            }
            request.extensions_mut().insert(call);
        }
        let request = request.map(Body::new);
        let answer = self.server.router.clone().oneshot(request).await;
        let answer = answer
            .unwrap_or_else(|never: Infallible| match never {})
            .map(Either::Right);
        keep_if_given(read, &answer);
        Ok(answer)
    }

    /// Counts the user whose token is asked for, where the app's users are counted.
    fn count_user(&self, call: &Call, path: &str) -> Result<Option<UserRead>, Problem> {
        let (Some(user), true) = (&call.names.user, routes::gives_token(path)) else {
            return Ok(None);
        };
        let Some(party) = self.matched(|matched| matched.party.clone()) else {
            return Ok(None);
        };
        let app = format!("app {}", call.rule.app);
        let audit = |detail| {
            self.server.keeper.audit(Audited {
                action: Audited::MANY_USERS,
                by: app,
                user: None,
                detail,
            });
        };
        match party.read(call.namespace(), user) {
            Ok((read, None)) => Ok(Some(read)),
            Ok((read, Some(Overrun(alarm)))) => {
                audit(format!("tokens of more than {alarm} users in an hour"));
                Ok(Some(read))
            }
            Err(problem) => {
                audit("refused: it has read as many users' tokens in an hour as it may".into());
                Err(problem)
            }
        }
    }

    /// Returns the peer's uid, on the admin socket.
    fn admin(&self) -> Option<u32> {
        let admin = self.server.kind == SocketKind::Admin;
        self.peer
            .as_ref()
            .ok()
            .filter(|_| admin)
            .map(|peer| peer.uid)
    }

    fn circumstances(self: &Arc<Self>) -> Circumstances {
        let caller = Arc::clone(self);
        Circumstances {
            admission: Arc::new(move || caller.rule()),
            admin: self.server.kind == SocketKind::Admin,
            progress: Arc::clone(&self.progress),
            streams: Arc::clone(&self.server.streams),
        }
    }

    async fn token(&self, call: &Call, request: &Request<Incoming>) -> Result<Answer, Problem> {
        if request.method() != Method::GET {
            let (method, path) = (request.method().as_str(), request.uri().path());
            let problem =
                problem::method_not_allowed(&request::shown(method), &request::shown(path));
            let mut answer = refusal(problem);
            answer
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET"));
            return Ok(answer);
        }
        let body = routes::token(&*self.server.keeper, call, request.uri()).await?;
        let mut answer = Response::new(Either::Left(Full::from(body)));
        let json = HeaderValue::from_static("application/json");
        answer.headers_mut().insert(CONTENT_TYPE, json);
        Ok(answer)
    }

    /// Returns the rule for this peer by the rules of now, which a reload may have changed.
    fn rule(&self) -> Result<Arc<Rule>, Problem> {
        let peer = self.peer.as_ref().ok();
        self.matched(|matched| {
            if let Err(denied) = &matched.outcome
                && !std::mem::replace(&mut matched.noted, true)
            {
                self.server.note_refusal(&matched.rules, peer, denied);
            }
            (matched.outcome.clone()).map_err(|denied| problem::forbidden(denied.detail(peer)))
        })
    }

    /// Looks at what the rules of now say about this peer.
    fn matched<T>(&self, look: impl FnOnce(&mut Matched) -> T) -> T {
        let rules = self.server.access.rules.load();
        let mut matched = self.matched.lock().unwrap_or_else(PoisonError::into_inner);
        let known = matched
            .take()
            .filter(|known| Arc::ptr_eq(&known.rules, &rules));
        look(matched.insert(known.unwrap_or_else(|| {
            let outcome = self.server.rule_of(&self.peer, &rules);
            Matched {
                rules: Arc::clone(&rules),
                party: self.server.party(&self.peer, &outcome),
                outcome,
                noted: false,
            }
        })))
    }

    /// Returns the namespace the request names: any on the admin socket, elsewhere only the rule's own.
    fn namespace(
        &self,
        request: &Request<Incoming>,
        rule: &Rule,
    ) -> Result<Option<String>, Problem> {
        if !request.headers().contains_key(NAMESPACE_HEADER) {
            return Ok(None);
        }
        let named = request::namespace(request.headers())?;
        if self.server.kind != SocketKind::Admin && named.as_ref() != Some(&rule.namespace) {
            let detail = format!(
                "the rule of app {:?} has namespace {:?} and no other; leave out the header Freshd-Namespace",
                rule.app, rule.namespace
            );
            return Err(problem::forbidden(detail));
        }
        Ok(named)
    }
}

/// A read counts if the token was given out.
fn keep_if_given(read: Option<UserRead>, answer: &Answer) {
    if let Some(read) = read.filter(|_| answer.status().is_success()) {
        read.keep();
    }
}

/// Returns the first file descriptor that is not for apps.
fn files_for_apps() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = limit.current.unwrap_or(u64::MAX);
    limit - RESERVED_FILES.min(limit / 4)
}

fn refusal(problem: Problem) -> Answer {
    problem.into_response().map(Either::Right)
}
