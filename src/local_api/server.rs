//! Connections: who is there, what they may do, and their requests one after the other.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::unix::net::UnixListener;
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
use tokio::sync::{Semaphore, mpsc};
use tower::ServiceExt;

use super::events::{Circumstances, Streams};
use super::keeper::{Audited, Keeper};
use super::limits::{Deadlines, Limits, Progress};
use super::peer::{Peer, PeerError};
use super::problem;
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
    rules: SharedRules,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_with(listener, kind, keeper, rules, shutdown, Limits::default()).await
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
    rules: SharedRules,
    shutdown: impl Future<Output = ()>,
    limits: Limits,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(limits.connections));
    let strangers = Arc::new(Semaphore::new(limits.strangers));
    let server = Arc::new(Server::new(kind, keeper, rules, limits));
    let graceful = GracefulShutdown::new();
    let (newcomer, mut newcomers) = mpsc::channel::<Infallible>(1);
    let mut was_full = false;
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
        let mut strangers_place = None;
        if let Err(denied) = server.rule_of(&peer, &server.rules.load_full()) {
            strangers_place = Arc::clone(&strangers).try_acquire_owned().ok();
            if strangers_place.is_none() {
                server.note_refusal(&server.rules.load_full(), peer.as_ref().ok(), &denied);
                turn_away(&stream, server.limits.strangers);
                continue;
            }
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            if !was_full {
                let limit = server.limits.connections;
                tracing::warn!(socket = %server.kind, limit, "connections-full");
            }
            was_full = true;
            turn_away(&stream, server.limits.connections);
            continue;
        };
        was_full = false;
        let connection = server.connection(stream, peer, &graceful, newcomer.clone());
        tokio::spawn(async move {
            connection.await;
            drop((place, strangers_place));
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
fn turn_away(stream: &UnixStream, limit: usize) {
    let problem = problem::too_many_connections(limit);
    let body = serde_json::to_string(&problem).expect("a struct of strings and numbers is JSON");
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncache-control: no-store\r\nretry-after: 1\r\n\
         content-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    // The client that never asked may be gone, and its buffer may be full: both are its loss.
    let _ = stream.try_write(answer.as_bytes());
}

/// What the connections of a socket share.
struct Server<K> {
    kind: SocketKind,
    keeper: Arc<K>,
    rules: SharedRules,
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
    fn new(kind: SocketKind, keeper: Arc<K>, rules: SharedRules, limits: Limits) -> Self {
        let limits = Arc::new(limits);
        let api = Api {
            keeper: Arc::clone(&keeper),
            limits: Arc::clone(&limits),
        };
        let router = routes::router(&kind, api);
        let refused = Mutex::new(Refused {
            rules: rules.load_full(),
            uids: HashSet::new(),
        });
        Server {
            kind,
            keeper,
            rules,
            router,
            streams: Arc::new(Streams::new(Arc::clone(&limits))),
            limits,
            refused,
        }
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
}

impl<K: Keeper> Caller<K> {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Answer {
        let limit = self.server.limits.request;
        let mut answer = match tokio::time::timeout(limit, self.route(request)).await {
            Ok(answer) => answer.unwrap_or_else(refusal),
            Err(_) => refusal(problem::deadline_exceeded(limit)),
        };
        answer
            .headers_mut()
            .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
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
        if path != "/healthz" {
            let rule = self.rule()?;
            let namespace = self.namespace(&request, &rule)?;
            let call = Call {
                rule,
                namespace,
                names: Names::of(path)?,
                admin: self.admin(),
            };
            if routes::is_token_path(path) {
                return self.token(&call, &request).await;
            }
            if path == "/v1/events" {
                let circumstances = self.circumstances();
                request.extensions_mut().insert(circumstances);
            }
            request.extensions_mut().insert(call);
        }
        let request = request.map(Body::new);
        let answer = self.server.router.clone().oneshot(request).await;
        Ok(answer
            .unwrap_or_else(|never: Infallible| match never {})
            .map(Either::Right))
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
        let rules = self.server.rules.load();
        let mut matched = self.matched.lock().unwrap_or_else(PoisonError::into_inner);
        let known = matched
            .take()
            .filter(|known| Arc::ptr_eq(&known.rules, &rules));
        let known = matched.insert(known.unwrap_or_else(|| self.match_rules(&rules)));
        known
            .outcome
            .clone()
            .map_err(|denied| problem::forbidden(denied.detail(self.peer.as_ref().ok())))
    }

    fn match_rules(&self, rules: &Arc<Rules>) -> Matched {
        let outcome = self.server.rule_of(&self.peer, rules);
        if let Err(denied) = &outcome {
            self.server
                .note_refusal(rules, self.peer.as_ref().ok(), denied);
        }
        Matched {
            rules: Arc::clone(rules),
            outcome,
        }
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

fn refusal(problem: Problem) -> Answer {
    problem.into_response().map(Either::Right)
}
