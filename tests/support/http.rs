//! An HTTP/1.1 client over a Unix socket, as an app would use one.

use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

use super::within;

/// One open connection; requests on it follow each other.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    /// The body as it came.
    pub text: String,
    /// The body as JSON; `Null` where it is none.
    pub json: Value,
}

impl Reply {
    /// Returns the access token of a 200, and panics on anything else.
    pub fn token(&self) -> &str {
        assert_eq!(self.status, 200, "no token: {}", self.text);
        self.json["access_token"]
            .as_str()
            .unwrap_or_else(|| panic!("no token: {}", self.text))
    }

    /// Returns the generation of a token or a grant.
    pub fn generation(&self) -> u64 {
        self.json["generation"]
            .as_u64()
            .unwrap_or_else(|| panic!("no generation: {}", self.text))
    }

    /// Returns a header's text, empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("headers are ASCII"))
    }

    /// Asserts that this is the problem `urn:freshd:NAME` (RFC 9457), with this status code.
    pub fn is_problem(&self, status: u16, name: &str) -> &Reply {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{}",
            self.text
        );
        assert_eq!(
            self.json["type"],
            format!("urn:freshd:{name}"),
            "{}",
            self.text
        );
        self
    }
}

impl Connection {
    /// Connects, and panics when nobody listens.
    pub async fn open(socket: &Path) -> Connection {
        Connection::try_open(socket)
            .await
            .unwrap_or_else(|e| panic!("cannot connect to {}: {e}", socket.display()))
    }

    /// Connects, if somebody listens.
    pub async fn try_open(socket: &Path) -> std::io::Result<Connection> {
        let stream = within("a connection", UnixStream::connect(socket)).await?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        let driver = tokio::spawn(async move {
            // A broken connection shows in the request that was on it.
            let _ = connection.await;
        });
        Ok(Connection {
            sender,
            driver: driver.abort_handle(),
        })
    }

    /// Sends a request and reads the whole answer. `Err` says how the connection ended without one.
    pub async fn try_send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Reply, hyper::Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "freshd");
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(body.unwrap_or_default()))
            .expect("the test's path is a URI");
        // The answer before this one may have been read a moment before its connection noticed.
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text,
            json,
        })
    }

    /// Sends a request with JSON and reads the whole answer.
    pub async fn send(&mut self, method: Method, path: &str, body: Option<&Value>) -> Reply {
        let body = body.map(|json| Bytes::from(json.to_string()));
        within(path, self.try_send(method, path, body))
            .await
            .unwrap_or_else(|e| panic!("{path}: the connection ended without an answer: {e}"))
    }
}

impl Drop for Connection {
    /// Hangs up, at once.
    fn drop(&mut self) {
        self.driver.abort();
    }
}
