//! The peer of one connection: its rule, its turns, and its requests one after the other.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse;
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, ORIGIN, REFERER};
use hyper::{HeaderMap, Method, Request};
use tokio::sync::mpsc;
use tower::ServiceExt;

use super::call::Call;
use super::events::Circumstances;
use super::keeper::{Audited, Keeper, Token, TokenRequest};
use super::limits::{Busy, Progress};
use super::lock;
use super::peer::{Peer, PeerError};
use super::problem;
use super::quotas::{Overrun, Party, Turn, UserRead};
use super::request::{self, NAMESPACE_HEADER, Names};
use super::routes;
use super::rules::{Denied, Rule, Rules, SocketKind};
use super::server::Server;
use super::shortcut::{Ask, Begun};
use super::token_body::TokenBody;
use super::types::Problem;
use super::unread::{Lent, Unread};
use crate::refresh::grant::{NAME_RULE, is_name};

/// What is over quota is refused after so long, which is what it is told to wait: who does not, waits here.
const PENALTY: Duration = Duration::from_secs(1);

type Response<B = Either<Full<Bytes>, Body>> = hyper::Response<B>;

/// The peer of one connection, and what the rules said about it when last asked.
pub(super) struct Caller<K> {
    server: Arc<Server<K>>,
    peer: Result<Peer, PeerError>,
    pub(super) progress: Arc<Progress>,
    matched: Mutex<Option<Matched>>,
    /// Dropped with the first request.
    newcomer: Mutex<Option<mpsc::Sender<Infallible>>>,
    /// Why a request was refused before hyper saw it.
    refused: Mutex<Option<Problem>>,
}

struct Matched {
    rules: Arc<Rules>,
    outcome: Result<Arc<Rule>, Denied>,
    party: Option<Party>,
    /// Whether it was told that the rules deny it.
    noted: bool,
}

/// The rule that admits a peer, and on whose account it is.
type Admission = Result<(Arc<Rule>, Option<Party>), Problem>;

impl Matched {
    fn turn(&self) -> Result<Turn, Problem> {
        match &self.party {
            Some(party) => party.request(),
            None => Ok(Turn::Now),
        }
    }
}

impl<K: Keeper> Caller<K> {
    pub(super) fn new(
        server: &Arc<Server<K>>,
        peer: Result<Peer, PeerError>,
        newcomer: mpsc::Sender<Infallible>,
    ) -> Self {
        Caller {
            server: Arc::clone(server),
            peer,
            progress: Arc::default(),
            matched: Mutex::default(),
            newcomer: Mutex::new(Some(newcomer)),
            refused: Mutex::default(),
        }
    }

    /// Begins to answer a request for a token. What is refused, [`Caller::answer`] tells.
    pub(super) fn begin(self: &Arc<Self>, ask: Ask<'_>) -> Begun {
        drop(lock(&self.newcomer).take());
        let caller = Arc::clone(self);
        let admission = self.matched(|matched| match matched.turn() {
            Ok(Turn::Now) => Ok(self.admission(matched)),
            turn => Err(turn),
        });
        match admission.map(|it| self.ask_for_token(it, ask.target)) {
            Ok(Ok(mut asked)) => match asked.in_memory(&*self.server.keeper) {
                Some(body) => Begun::Here(body),
                None => self.later(async move { asked.answer(&*caller.server.keeper).await }),
            },
            Ok(Err(problem)) => {
                *lock(&self.refused) = Some(problem);
                Begun::Refused
            }
            Err(turn) => {
                let target = ask.target.to_owned();
                self.later(async move {
                    come(turn).await?;
                    let asked = caller.ask_for_token(caller.admitted(), &target)?;
                    asked.answer(&*caller.server.keeper).await
                })
            }
        }
    }

    /// Answers as soon as `answer` is there.
    fn later(
        self: &Arc<Self>,
        answer: impl Future<Output = Result<TokenBody, Problem>> + Send + 'static,
    ) -> Begun {
        let caller = Arc::clone(self);
        Begun::Later(Box::pin(async move {
            let answer = caller.in_time(answer).await;
            answer
                .map_err(|problem| *lock(&caller.refused) = Some(problem))
                .ok()
        }))
    }

    /// Gives an answer up that takes too long.
    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let limit = self.server.limits.request;
        let answer = tokio::time::timeout(limit, answer).await;
        answer.unwrap_or_else(|_| Err(problem::deadline_exceeded(limit)))
    }

    /// Reads a request for a token whose turn has come.
    fn ask_for_token(&self, admission: Admission, target: &str) -> Result<Asked, Problem> {
        let (path, query) = request::path_and_query(target);
        self.asked(self.call(admission, path, None)?, query)
    }

    /// Answers one request, which is `busy` until its answer's body ends.
    pub(super) async fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        busy: Busy,
    ) -> Response<Answered> {
        drop(lock(&self.newcomer).take());
        let (request, unread) = Unread::lend(request);
        let refused = lock(&self.refused).take();
        let answer = self.in_time(async {
            if let Some(problem) = refused {
                return Err(problem);
            }
            come(self.turn()).await?;
            self.route(request).await
        });
        let mut answer = answer.await.unwrap_or_else(refusal);
        let kept = (unread.read_out(answer.status(), &self.server.limits)).await;
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if !kept || self.progress.closes() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer.map(|body| Answered { body, _busy: busy })
    }

    /// Returns who calls and about whom.
    fn call(
        &self,
        admission: Admission,
        path: &str,
        headers: Option<&HeaderMap>,
    ) -> Result<Call, Problem> {
        let (rule, party) = admission?;
        let namespace = match headers {
            Some(headers) => self.namespace(headers, &rule)?,
            None => None,
        };
        Ok(Call {
            rule,
            party,
            namespace,
            names: Names::of(path)?,
            admin: self.admin(),
        })
    }

    /// Counts a read of a token, and finds out what is asked for.
    fn asked(&self, mut call: Call, query: &str) -> Result<Asked, Problem> {
        let read = self.count_user(&call)?;
        let request = routes::token_request(&mut call, query)?;
        Ok(Asked {
            call,
            read,
            request,
        })
    }

    /// Takes the request's turn, which is [to come](come) before anything is done for it.
    fn turn(&self) -> Result<Turn, Problem> {
        self.matched(|matched| matched.turn())
    }

    async fn route(self: &Arc<Self>, mut request: Request<Lent>) -> Result<Response, Problem> {
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
            let call = self.call(self.admitted(), path, Some(request.headers()))?;
            if let (&Method::PUT, Some(namespace)) = (request.method(), &call.namespace) {
                self.check_readable(namespace, &call.rule)?;
            }
            if request::token_path(path).is_some() {
                if request.method() != Method::GET {
                    return Ok(not_get(request.method(), path));
                }
                let query = request.uri().query().unwrap_or_default();
                let asked = self.asked(call, query)?;
                return (asked.answer(&*self.server.keeper).await).map(token_response);
            }
            if request::gives_token(path) {
                read = self.count_user(&call)?;
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
        keep(read.as_mut().filter(|_| answer.status().is_success()));
        Ok(answer)
    }

    /// Counts the user whose token is asked for, where the app's users are counted.
    fn count_user(&self, call: &Call) -> Result<Option<UserRead>, Problem> {
        let (Some(user), Some(party)) = (&call.names.user, &call.party) else {
            return Ok(None);
        };
        let audit = |detail| {
            self.server.keeper.audit(Audited {
                action: Audited::MANY_USERS,
                by: format!("app {}", call.rule.app),
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
            streams: Arc::clone(&self.server.streams),
        }
    }

    /// Returns on whose account it is by the rules of now. Nobody counts what comes by the admin socket.
    pub(super) fn party(&self) -> Option<Party> {
        self.matched(|matched| matched.party.clone())
    }

    /// Returns the rule for this peer by the rules of now, which a reload may have changed. Tells a denial once.
    pub(super) fn rule(&self) -> Result<Arc<Rule>, Problem> {
        Ok(self.admitted()?.0)
    }

    fn admitted(&self) -> Admission {
        self.matched(|matched| self.admission(matched))
    }

    fn admission(&self, matched: &mut Matched) -> Admission {
        let peer = self.peer.as_ref().ok();
        if let Err(denied) = &matched.outcome
            && !std::mem::replace(&mut matched.noted, true)
        {
            self.server.note_refusal(&matched.rules, peer, denied);
        }
        match &matched.outcome {
            Ok(rule) => Ok((Arc::clone(rule), matched.party.clone())),
            Err(denied) => Err(problem::forbidden(denied.detail(peer))),
        }
    }

    /// Looks at what the rules of now say about this peer.
    fn matched<T>(&self, look: impl FnOnce(&mut Matched) -> T) -> T {
        let rules = self.server.access.rules.load();
        let mut matched = lock(&self.matched);
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
    fn namespace(&self, headers: &HeaderMap, rule: &Rule) -> Result<Option<String>, Problem> {
        if !headers.contains_key(NAMESPACE_HEADER) {
            return Ok(None);
        }
        let named = request::namespace(headers)?;
        if self.server.kind != SocketKind::Admin && named.as_ref() != Some(&rule.namespace) {
            let detail = format!(
                "the rule of app {:?} has namespace {:?} and no other; leave out the header Freshd-Namespace",
                rule.app, rule.namespace
            );
            return Err(problem::forbidden(detail));
        }
        Ok(named)
    }

    /// Refuses an import into a namespace that no app reads: it is mistyped, or its app is not configured yet. Where no
    /// app is, only admins read.
    fn check_readable(&self, namespace: &str, rule: &Rule) -> Result<(), Problem> {
        let rules = self.server.access.rules.load();
        let known = rules.namespaces();
        if namespace == rule.namespace || known.is_empty() || known.contains(namespace) {
            return Ok(());
        }
        let known: Vec<String> = known.iter().map(|name| format!("{name:?}")).collect();
        let (named, known) = (request::shown(namespace), known.join(", "));
        let or = match is_name(namespace) {
            true => {
                format!("; or add [app.NAME] with namespace = {named:?}, reload, and import again")
            }
            false => format!(": {named:?} can't be any app's, since a namespace {NAME_RULE}"),
        };
        Err(problem::bad_request(format!(
            "namespace {named:?} is no app's, so no app could read this grant: those of the [app] rules are {known}. Name one \
             of them{or}"
        )))
    }
}

/// A request for a token that is allowed, and counted.
struct Asked {
    call: Call,
    read: Option<UserRead>,
    request: TokenRequest,
}

impl Asked {
    /// Answers with what is in memory, if that is all there is to do.
    fn in_memory(&mut self, keeper: &impl Keeper) -> Option<TokenBody> {
        let token = keeper.token_in_memory(&self.request)?;
        Some(self.give(&token, keeper))
    }

    /// Answers, however long that takes.
    async fn answer(mut self, keeper: &impl Keeper) -> Result<TokenBody, Problem> {
        let token = keeper.token(&self.request).await?;
        Ok(self.give(&token, keeper))
    }

    /// Gives a token out, which is when it counts.
    fn give(&mut self, token: &Token, keeper: &impl Keeper) -> TokenBody {
        let key = &self.request.key;
        if let Some(read) = self.call.audited(Audited::READ, Some(key), "") {
            keeper.audit(read);
        }
        keep(self.read.as_mut());
        TokenBody::new(token)
    }
}

/// Waits until a request's turn has come.
async fn come(turn: Result<Turn, Problem>) -> Result<(), Problem> {
    match turn {
        Ok(turn) => {
            turn.come().await;
            Ok(())
        }
        Err(problem) => {
            tokio::time::sleep(PENALTY).await;
            Err(problem)
        }
    }
}

/// An answer's body, while which the peer waits for us.
pub(super) struct Answered {
    body: Either<Full<Bytes>, Body>,
    _busy: Busy,
}

impl hyper::body::Body for Answered {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A read counts if the token was given out.
fn keep(read: Option<&mut UserRead>) {
    if let Some(read) = read {
        read.keep();
    }
}

fn token_response(body: TokenBody) -> Response {
    let mut answer = Response::new(Either::Left(Full::from(body.into_bytes())));
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}

fn not_get(method: &Method, path: &str) -> Response {
    let (method, path) = (request::shown(method.as_str()), request::shown(path));
    let mut answer = refusal(problem::method_not_allowed(&method, &path));
    let get = HeaderValue::from_static("GET");
    answer.headers_mut().insert(ALLOW, get);
    answer
}

fn refusal(problem: Problem) -> Response {
    problem.into_response().map(Either::Right)
}
