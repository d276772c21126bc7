//! The peer of one connection: its rule, its turns, and its requests one after the other.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse;
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN, REFERER};
use hyper::{Method, Request, Response};
use tower::ServiceExt;

use super::call::{self, Call};
use super::events::Circumstances;
use super::keeper::{Audited, Keeper};
use super::limits::Progress;
use super::peer::{Peer, PeerError};
use super::problem;
use super::quotas::{Overrun, Party, UserRead};
use super::request::{self, NAMESPACE_HEADER, Names};
use super::routes;
use super::rules::{Denied, Rule, Rules, SocketKind};
use super::server::Server;
use super::types::Problem;

/// What is over quota is refused after so long, which is what it is told to wait: who does not, waits here.
const PENALTY: Duration = Duration::from_secs(1);

type Answer = Response<Either<Full<Bytes>, Body>>;

/// The peer of one connection, and what the rules said about it when last asked.
pub(super) struct Caller<K> {
    server: Arc<Server<K>>,
    peer: Result<Peer, PeerError>,
    pub(super) progress: Arc<Progress>,
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
    pub(super) fn new(server: &Arc<Server<K>>, peer: Result<Peer, PeerError>) -> Self {
        Caller {
            server: Arc::clone(server),
            peer,
            progress: Arc::default(),
            matched: Mutex::new(None),
        }
    }

    /// Answers one request, when its turn has come.
    pub(super) async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Answer {
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
        match self.party().map(|party| party.request()) {
            None => Ok(()),
            Some(Ok(turn)) => {
                turn.come().await;
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
            if call::is_token_path(path) {
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
        let (Some(user), true) = (&call.names.user, call::gives_token(path)) else {
            return Ok(None);
        };
        let Some(party) = self.party() else {
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

    /// Returns on whose account it is by the rules of now. Nobody counts what comes by the admin socket.
    pub(super) fn party(&self) -> Option<Party> {
        self.matched(|matched| matched.party.clone())
    }

    /// Returns the rule for this peer by the rules of now, which a reload may have changed. Tells a denial once.
    pub(super) fn rule(&self) -> Result<Arc<Rule>, Problem> {
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

fn refusal(problem: Problem) -> Answer {
    problem.into_response().map(Either::Right)
}
