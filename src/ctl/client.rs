//! HTTP/1.1 to the daemon over a Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{
    CONTENT_TYPE, DATE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, TE, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::call_error::CallError;
use super::failure::{Exit, Failure};
use crate::local_api::types::Problem;
use crate::refresh::time::UnixTime;

/// A page of 1,000 grants is half a megabyte; nothing the daemon answers comes near this.
pub(super) const BODY_LIMIT: usize = 16 << 20;
/// While the socket's queue is full, as in a storm of others' connections, it is tried so often, every so often.
const QUEUE_TRIES: u32 = 500;
const QUEUE_PAUSE: Duration = Duration::from_millis(10);
/// How long an answer may take, where the request itself doesn't ask the daemon to wait.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Everything but the unreserved characters of RFC 3986 §2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// As [`SEGMENT`], and the colon of `provider:account` stays.
const PROVIDER_SEGMENT: &AsciiSet = &SEGMENT.remove(b':');

/// One request.
#[derive(Clone)]
pub struct Call {
    method: Method,
    path: String,
    namespace: Option<String>,
    body: Bytes,
    last_event: Option<u64>,
    deadline: Duration,
}

impl Call {
    /// Makes a request without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Call {
            method,
            path: path.into(),
            namespace: None,
            body: Bytes::new(),
            last_event: None,
            deadline: DEADLINE,
        }
    }

    /// Makes a `GET`.
    pub fn get(path: impl Into<String>) -> Self {
        Call::new(Method::GET, path)
    }

    /// Makes a `POST`.
    pub fn post(path: impl Into<String>) -> Self {
        Call::new(Method::POST, path)
    }

    /// Gives it a JSON body.
    pub fn json(mut self, body: &impl Serialize) -> Self {
        self.body = serde_json::to_vec(body)
            .expect("our own shapes serialize")
            .into();
        self
    }

    /// Names a namespace; wins over the client's.
    pub fn namespace(mut self, namespace: Option<&str>) -> Self {
        self.namespace = namespace.map(str::to_owned);
        self
    }

    /// Asks for the events after the one numbered `id`.
    pub fn resuming_after(mut self, id: u64) -> Self {
        self.last_event = Some(id);
        self
    }

    /// Gives the daemon `wait` more to answer in.
    pub fn waiting(mut self, wait: Duration) -> Self {
        self.deadline = DEADLINE.saturating_add(wait);
        self
    }

    /// Adds `name=value` to the query.
    pub fn query(mut self, name: &str, value: &str) -> Self {
        let mark = if self.path.contains('?') { '&' } else { '?' };
        self.path = format!(
            "{}{mark}{name}={}",
            self.path,
            utf8_percent_encode(value, SEGMENT)
        );
        self
    }
}

/// Returns `/v1/users/{user}`.
pub fn user_path(user: &str) -> String {
    format!("/v1/users/{}", utf8_percent_encode(user, SEGMENT))
}

/// Returns `/v1/users/{user}/grants/{provider}`; `provider` may be `provider:account`.
pub fn grant_path(user: &str, provider: &str) -> String {
    format!(
        "{}/grants/{}",
        user_path(user),
        utf8_percent_encode(provider, PROVIDER_SEGMENT)
    )
}

/// Returns `/v1/providers/{provider}`.
pub fn provider_path(provider: &str) -> String {
    format!("/v1/providers/{}", utf8_percent_encode(provider, SEGMENT))
}

/// A good answer. May hold a secret, so it has no `Debug`.
pub struct Answer {
    /// The body.
    pub body: Bytes,
    /// The daemon's clock when it answered, from `Date`.
    pub now: Option<UnixTime>,
}

impl Answer {
    /// Reads the body.
    ///
    /// # Errors
    /// Says where it stopped being understood, never what stood there: it may be a secret.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::new(
                Exit::Internal,
                format!(
                    "the daemon's answer is not understood (at byte {})",
                    error.column()
                ),
            )
            .hint("is freshctl of the same version as the daemon? see: freshctl --version")
        })
    }
}

/// Connections to one socket, kept open for the next request.
pub struct Client {
    socket: PathBuf,
    namespace: Option<String>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// Makes a client; nothing is connected yet. `namespace` goes with every request that names no other.
    pub fn new(socket: &Path, namespace: Option<&str>) -> Self {
        Client {
            socket: socket.to_owned(),
            namespace: namespace.map(str::to_owned),
            idle: Mutex::default(),
        }
    }

    /// Sends a request and reads the whole answer, within the request's deadline.
    ///
    /// # Errors
    /// Everything but a 2xx answer.
    pub async fn send(&self, call: &Call) -> Result<Answer, CallError> {
        match tokio::time::timeout(call.deadline, self.exchange(call)).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::TimedOut(call.deadline)),
        }
    }

    /// Sends a request whose answer goes on, and returns its body as it comes.
    ///
    /// # Errors
    /// Everything but a 2xx answer that begins within the request's deadline.
    pub async fn stream(&self, call: &Call) -> Result<Incoming, CallError> {
        let begun = async {
            let mut connection = self.connect().await?;
            let response = connection.send_request(self.request(call)?).await;
            let response = response.map_err(|_| self.lost())?;
            if response.status().is_success() {
                return Ok(response.into_body());
            }
            match self.read(connection, response).await {
                Err(refused) => Err(refused),
                Ok(_) => Err(self.lost()),
            }
        };
        match tokio::time::timeout(call.deadline, begun).await {
            Ok(begun) => begun,
            Err(_) => Err(CallError::TimedOut(call.deadline)),
        }
    }

    /// Returns the namespace that goes with requests which name no other.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Connects once, so that a daemon that is not there is told at once and not after many tries.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn reach(&self) -> Result<(), CallError> {
        let connection = self.connect().await?;
        self.keep(connection);
        Ok(())
    }

    fn keep(&self, connection: SendRequest<Full<Bytes>>) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(connection);
    }

    async fn exchange(&self, call: &Call) -> Result<Answer, CallError> {
        let kept = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        if let Some(mut connection) = kept
            && connection.ready().await.is_ok()
        {
            // A kept connection that the daemon closed meanwhile hands the request back unsent.
            match connection.try_send_request(self.request(call)?).await {
                Ok(response) => return self.read(connection, response).await,
                Err(error) if error.message().is_some() => {}
                Err(_) => return Err(self.lost()),
            }
        }
        let mut connection = self.connect().await?;
        match connection.send_request(self.request(call)?).await {
            Ok(response) => self.read(connection, response).await,
            Err(_) => Err(self.lost()),
        }
    }

    /// Returns that the connection ended.
    pub fn lost(&self) -> CallError {
        CallError::Lost(self.socket.clone())
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, CallError> {
        let stream = queue_up(&self.socket)
            .await
            .map_err(|source| CallError::Connect {
                socket: self.socket.clone(),
                source,
            })?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|_| self.lost())?;
        // Its end shows in the sender.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, CallError> {
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = call.path.parse().expect("every segment is percent-encoded");
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("freshd"));
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("freshctl/", env!("CARGO_PKG_VERSION"))),
        );
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if !call.body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(id) = call.last_event {
            headers.insert("last-event-id", HeaderValue::from(id));
        }
        if let Some(namespace) = call.namespace.as_ref().or(self.namespace.as_ref()) {
            let value =
                HeaderValue::from_bytes(namespace.as_bytes()).map_err(|_| CallError::Namespace)?;
            headers.insert("freshd-namespace", value);
        }
        Ok(request)
    }

    async fn read(
        &self,
        connection: SendRequest<Full<Bytes>>,
        response: Response<Incoming>,
    ) -> Result<Answer, CallError> {
        let (parts, body) = response.into_parts();
        let body = match Limited::new(body, BODY_LIMIT).collect().await {
            Ok(whole) => whole.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return Err(CallError::TooLong);
            }
            Err(_) => return Err(self.lost()),
        };
        self.keep(connection);
        if !parts.status.is_success() {
            let problem = problem(parts.status, &parts.headers, &body);
            let socket = self.socket.clone();
            return Err(CallError::Refused(Box::new(problem), socket));
        }
        Ok(Answer {
            body,
            now: date(&parts.headers),
        })
    }
}

/// Connects as soon as the socket's queue has room.
async fn queue_up(socket: &Path) -> io::Result<UnixStream> {
    for _ in 0..QUEUE_TRIES {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(QUEUE_PAUSE).await;
            }
            connected => return connected,
        }
    }
    UnixStream::connect(socket).await
}

fn text(headers: &HeaderMap, name: hyper::header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn date(headers: &HeaderMap) -> Option<UnixTime> {
    let date = jiff::fmt::rfc2822::parse(text(headers, DATE)?).ok()?;
    Some(UnixTime::from_millis(date.timestamp().as_millisecond()))
}

/// Reads the problem, or makes one where somebody else answered. Such a body is not shown: nobody knows what it holds.
fn problem(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Problem {
    let mut problem = serde_json::from_slice(body).unwrap_or_else(|_| Problem {
        kind: "about:blank".to_owned(),
        title: status.canonical_reason().unwrap_or("error").to_owned(),
        status: status.as_u16(),
        detail: format!("the answer was {status}, and did not say why"),
        reason: None,
        since: None,
        retry_after: None,
    });
    problem.status = status.as_u16();
    let header = text(headers, RETRY_AFTER).and_then(|value| value.trim().parse().ok());
    problem.retry_after = problem.retry_after.or(header);
    problem
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_full_queue_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let address = SocketAddrUnix::new(&path).unwrap();
        let mut others = Vec::new();
        loop {
            let other = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            match connect(&other, &address) {
                Ok(()) => others.push(other),
                Err(error) => break assert_eq!(error, rustix::io::Errno::AGAIN),
            }
        }
        let client = Client::new(&path, None);
        let call = Call::new(Method::GET, "/healthz");
        // The first of the two meets the full queue before the second empties it.
        let (answer, ()) = tokio::join!(client.send(&call), async {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            for _ in &others {
                listener.accept().await.unwrap();
            }
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            stream.write_all(answer).await.unwrap();
        });
        assert_eq!(&answer.unwrap().body[..], b"{}");
    }
}
