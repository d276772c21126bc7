//! A token and revocation endpoint whose every answer the test decides.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use base64::Engine;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{instant, within};

/// Where [`ScriptedServer::settled`] asks; no script hears of it.
const SENTINEL: &str = "/settled";

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    /// When its body had been read.
    pub at: Instant,
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    /// The body as it came.
    pub body: String,
    /// The body, form-decoded.
    pub form: BTreeMap<String, String>,
}

impl RecordedRequest {
    /// Returns the refresh token presented, empty where there is none.
    pub fn refresh_token(&self) -> &str {
        self.form.get("refresh_token").map_or("", String::as_str)
    }

    /// Returns whether it asks for tokens.
    pub fn is_refresh(&self) -> bool {
        self.path == "/token"
    }

    /// Returns the client identifier and secret of the Basic header, form-decoded (RFC 6749 §2.3.1).
    pub fn basic(&self) -> Option<(String, String)> {
        let header = self.headers.get("authorization")?.to_str().ok()?;
        let encoded = header.strip_prefix("Basic ")?;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (id, secret) = text.split_once(':')?;
        Some((form_decoded(id), form_decoded(secret)))
    }

    /// Returns everything a careless server might echo: each header and the body.
    pub fn echo(&self) -> String {
        let headers: Vec<String> = self
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value:?}"))
            .collect();
        format!("{}\n{}", headers.join("\n"), self.body)
    }
}

fn form_decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(&text.replace('+', " "))
        .decode_utf8_lossy()
        .into_owned()
}

/// Holds answers back until the test opens it.
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    /// Makes a gate that is shut.
    pub fn shut() -> Gate {
        Gate(Arc::new(watch::Sender::new(false)))
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn pass(&self) {
        let mut opened = self.0.subscribe();
        // Never closed: this gate holds the sender.
        let _ = opened.wait_for(|open| *open).await;
    }
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Whole,
    ThenClosed,
    CutAfter(usize),
    NeverBegun,
}

/// One scripted answer.
#[derive(Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
    gate: Option<Gate>,
    ending: Ending,
}

impl Answer {
    /// Answers `body` as it is.
    pub fn raw(status: u16, content_type: &str, body: impl Into<Bytes>) -> Answer {
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        Answer {
            status,
            headers,
            body: body.into(),
            gate: None,
            ending: Ending::Whole,
        }
    }

    /// Answers JSON.
    pub fn json(status: u16, body: &Value) -> Answer {
        Answer::raw(status, "application/json", body.to_string())
    }

    /// A token response (RFC 6749 §5.1).
    pub fn tokens(access_token: &str, refresh_token: &str, expires_in: u64) -> Answer {
        let body = json!({
            "access_token": access_token,
            "refresh_token": refresh_token,
            "token_type": "Bearer",
            "expires_in": expires_in,
        });
        Answer::json(200, &body).header("cache-control", "no-store")
    }

    /// An error response (RFC 6749 §5.2).
    pub fn error(status: u16, code: &str) -> Answer {
        Answer::json(status, &json!({ "error": code }))
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends nothing before `gate` opens. The request is recorded at once.
    pub fn held_by(mut self, gate: &Gate) -> Answer {
        self.gate = Some(gate.clone());
        self
    }

    /// Closes the connection without one byte of an answer.
    pub fn never_sent(mut self) -> Answer {
        self.ending = Ending::NeverBegun;
        self
    }

    /// Closes the connection after the whole answer.
    pub fn then_closed(mut self) -> Answer {
        self.ending = Ending::ThenClosed;
        self
    }

    /// Promises the whole body, sends `bytes` of it, and closes the connection.
    pub fn cut_after(mut self, bytes: usize) -> Answer {
        self.ending = Ending::CutAfter(bytes);
        self
    }
}

type Script = dyn FnMut(&RecordedRequest) -> Answer + Send;
type Body = BoxBody<Bytes, std::io::Error>;

struct State {
    script: Mutex<Box<Script>>,
    requests: watch::Sender<Vec<RecordedRequest>>,
    /// Connections that have been accepted and not ended.
    open: watch::Sender<usize>,
}

/// The server. Listens until it is dropped.
pub struct ScriptedServer {
    port: u16,
    state: Arc<State>,
    accepting: AbortHandle,
}

impl ScriptedServer {
    /// Answers each request with what `script` says about it.
    pub async fn start(
        script: impl FnMut(&RecordedRequest) -> Answer + Send + 'static,
    ) -> ScriptedServer {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a loopback port");
        let port = listener.local_addr().expect("it is bound").port();
        let script: Box<Script> = Box::new(script);
        let requests = watch::Sender::new(Vec::new());
        let state = Arc::new(State {
            script: Mutex::new(script),
            requests,
            open: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, state.clone())).abort_handle();
        ScriptedServer {
            port,
            state,
            accepting,
        }
    }

    /// Answers these in turn; what comes after them gets a 500 that says so.
    pub async fn in_turn(answers: impl IntoIterator<Item = Answer>) -> ScriptedServer {
        let mut answers = answers
            .into_iter()
            .collect::<std::collections::VecDeque<_>>();
        ScriptedServer::start(move |_| {
            answers
                .pop_front()
                .unwrap_or_else(|| Answer::error(500, "the_script_has_ended"))
        })
        .await
    }

    /// From now on, answers with what `script` says.
    pub fn answer_with(&self, script: impl FnMut(&RecordedRequest) -> Answer + Send + 'static) {
        *self.state.script.lock().expect("no script panicked") = Box::new(script);
    }

    /// Returns the token endpoint's URL.
    pub fn token_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.port)
    }

    /// Returns the revocation endpoint's URL.
    pub fn revocation_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/revoke", self.port)
    }

    /// Returns every request at the token endpoint so far, in order of arrival.
    pub fn refreshes(&self) -> Vec<RecordedRequest> {
        self.state
            .requests
            .borrow()
            .iter()
            .filter(|r| r.is_refresh())
            .cloned()
            .collect()
    }

    /// Returns every request at the revocation endpoint so far, in order of arrival.
    pub fn revocations(&self) -> Vec<RecordedRequest> {
        self.state
            .requests
            .borrow()
            .iter()
            .filter(|r| !r.is_refresh())
            .cloned()
            .collect()
    }

    /// Waits until whatever clients that have died had sent was read and decided.
    pub async fn settled(&self) {
        // Connections are accepted in the order in which they came: after ours, all of theirs have been.
        let sentinel = TcpStream::connect(("127.0.0.1", self.port));
        let mut sentinel = within("the scripted server", sentinel)
            .await
            .expect("it listens");
        let request = format!("GET {SENTINEL} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answered = async {
            sentinel.write_all(request.as_bytes()).await?;
            sentinel.read_to_end(&mut Vec::new()).await
        };
        within("the scripted server's answer", answered)
            .await
            .expect("it answers");
        let mut open = self.state.open.subscribe();
        within("all connections to end", open.wait_for(|open| *open == 0))
            .await
            .expect("the server holds the sender");
    }

    /// Returns how often each refresh token was presented.
    pub fn presented(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for request in self.refreshes() {
            *counts
                .entry(request.refresh_token().to_owned())
                .or_insert(0) += 1;
        }
        counts
    }

    /// Waits for the `n`th request at the token endpoint (1 is the first) and returns it.
    pub async fn nth_refresh(&self, n: usize) -> RecordedRequest {
        self.nth(n, RecordedRequest::is_refresh, "refresh").await
    }

    /// Waits for the `n`th request at the revocation endpoint (1 is the first) and returns it.
    pub async fn nth_revocation(&self, n: usize) -> RecordedRequest {
        self.nth(n, |request| !request.is_refresh(), "revocation")
            .await
    }

    async fn nth(
        &self,
        n: usize,
        wanted: fn(&RecordedRequest) -> bool,
        name: &str,
    ) -> RecordedRequest {
        assert!(n > 0, "requests count from 1");
        let mut requests = self.state.requests.subscribe();
        let enough = requests.wait_for(|all| all.iter().filter(|r| wanted(r)).count() >= n);
        let what = format!("{name} {n} at the scripted server");
        let all = within(&what, enough)
            .await
            .expect("the server holds the sender");
        all.iter()
            .filter(|r| wanted(r))
            .nth(n - 1)
            .expect("there are n")
            .clone()
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        state.open.send_modify(|open| *open += 1);
        tokio::spawn(serve(stream, state.clone()));
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let answering = state.clone();
    let service = service_fn(move |request| answer(request, answering.clone()));
    // An error here is a scripted ending, or a client that left.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    state.open.send_modify(|open| *open -= 1);
}

/// Why a connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the script ends this connection")]
struct Scripted;

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Body>, Scripted> {
    let (parts, body) = request.into_parts();
    if parts.uri.path() == SENTINEL {
        return respond(Answer::raw(204, "text/plain", ""));
    }
    let bytes = body.collect().await.map_err(|_| Scripted)?.to_bytes();
    let recorded = RecordedRequest {
        at: instant(),
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&bytes).into_owned(),
        form: url::form_urlencoded::parse(&bytes).into_owned().collect(),
    };
    // Decided and recorded in one step, so that who waits for a request sees what its answer changed.
    let answer = {
        let mut script = state.script.lock().expect("no script panicked");
        let answer = script(&recorded);
        state.requests.send_modify(|all| all.push(recorded));
        answer
    };
    if let Some(gate) = &answer.gate {
        gate.pass().await;
    }
    respond(answer)
}

fn respond(answer: Answer) -> Result<Response<Body>, Scripted> {
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    let whole = answer.body.len();
    let body = match answer.ending {
        Ending::NeverBegun => return Err(Scripted),
        Ending::CutAfter(bytes) => {
            response = response.header("content-length", whole);
            let part = Frame::data(answer.body.slice(..bytes.min(whole)));
            let end = std::io::Error::other(Scripted);
            BodyExt::boxed(StreamBody::new(futures_util::stream::iter([
                Ok(part),
                Err(end),
            ])))
        }
        Ending::ThenClosed => {
            response = response.header("connection", "close");
            full(answer.body)
        }
        Ending::Whole => full(answer.body),
    };
    Ok(response.body(body).expect("the test's headers are valid"))
}

fn full(body: Bytes) -> Body {
    Full::new(body)
        .map_err(|never: Infallible| match never {})
        .boxed()
}
