//! A scripted daemon: answers each request as the test says, and remembers it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::oneshot;

/// The daemon's clock in every answer.
pub const NOW: &str = "Sun, 22 Nov 2026 00:00:00 GMT";

/// A request as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// `GET /v1/status?x=y`
    pub line: String,
    pub namespace: Option<String>,
    pub body: Value,
}

/// What is answered.
pub enum Reply {
    Json(u16, Value),
    Text(u16, &'static str),
    /// The connection ends without an answer.
    Hangup,
}

/// Answers 200.
pub fn ok(body: Value) -> Reply {
    Reply::Json(200, body)
}

/// Answers with a problem.
pub fn problem(status: u16, kind: &str, detail: &str) -> Reply {
    Reply::Json(
        status,
        json!({"type": kind, "title": "a problem", "status": status, "detail": detail}),
    )
}

/// Runs until it is dropped.
pub struct Server {
    pub socket: PathBuf,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Server {
    /// Starts a daemon that answers with `script`.
    pub fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("freshd.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let (script, remembered) = (Arc::new(script), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = UnixListener::from_std(listener).unwrap();
                tokio::select! {
                    () = accept(&listener, script, remembered) => {}
                    _ = stopped => {}
                }
            });
        });
        Server {
            socket,
            seen,
            stop: Some(stop),
            thread: Some(thread),
            _dir: dir,
        }
    }

    /// Returns the requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns their request lines.
    pub fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

async fn accept(
    listener: &UnixListener,
    script: Arc<impl Fn(&Seen) -> Reply + Send + Sync + 'static>,
    remembered: Arc<Mutex<Vec<Seen>>>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (script, remembered) = (Arc::clone(&script), Arc::clone(&remembered));
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let (script, remembered) = (Arc::clone(&script), Arc::clone(&remembered));
                async move {
                    let seen = see(request).await;
                    remembered.lock().unwrap().push(seen.clone());
                    answer(script(&seen)).ok_or("hang up")
                }
            });
            let server = hyper::server::conn::http1::Builder::new();
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn see(request: Request<Incoming>) -> Seen {
    let line = format!("{} {}", request.method(), request.uri());
    assert_eq!(request.headers()["host"], "freshd");
    let namespace = request
        .headers()
        .get("freshd-namespace")
        .map(|value| value.to_str().unwrap().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).unwrap()
    };
    Seen {
        line,
        namespace,
        body,
    }
}

fn answer(reply: Reply) -> Option<Response<Full<Bytes>>> {
    let (status, body) = match reply {
        Reply::Json(status, body) => (status, body.to_string()),
        Reply::Text(status, body) => (status, body.to_owned()),
        Reply::Hangup => return None,
    };
    let response = Response::builder().status(status).header("date", NOW);
    let response: Result<_, Infallible> = Ok(response.body(Full::new(body.into())).unwrap());
    response.ok()
}

/// A grant as the daemon shows it.
pub fn grant(user: &str, state: &str, reason: &str) -> Value {
    json!({
        "namespace": "default", "user": user, "provider": "hubspot", "state": state, "reason": reason,
        "since": "2026-11-21T21:00:00Z", "generation": 3, "expires_at": "2026-11-22T00:04:12Z",
        "due_at": "2026-11-22T00:03:12Z", "has_refresh_token": true, "scope": "contacts oauth",
        "imported_at": "2026-11-19T00:00:00Z", "refreshed_at": "2026-11-21T23:34:12Z",
        "attempted_at": "2026-11-21T23:34:12Z", "failures": 0, "unused_refreshes": 1,
    })
}

/// What the token route answers.
pub fn token() -> Value {
    json!({
        "access_token": "canary-token", "token_type": "bearer", "expires_in": 252,
        "expires_at": "2026-11-22T00:04:12Z", "generation": 3, "user": "alice", "provider": "hubspot",
    })
}
