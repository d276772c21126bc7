//! A small HTTP/1.1 client: one connection for each request, as `curl` makes it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Longer than the daemon lets any reader wait.
const DEADLINE: Duration = Duration::from_secs(30);
/// Many times the longest answer that the demo can get.
const MAX_BODY: usize = 1024 * 1024;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket, as the daemon's.
    Unix(PathBuf),
    /// Plain HTTP on loopback, as the demo's authorization server.
    Loopback(SocketAddr),
}

/// A whole answer.
#[derive(Clone)]
pub struct Response {
    /// The status code.
    pub status: StatusCode,
    /// The header fields.
    pub headers: hyper::HeaderMap,
    /// The body. May hold a secret.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or the connection broke.
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    /// The connection ended before a whole answer came, or what came is not HTTP.
    #[error("no whole HTTP answer came")]
    Http(#[source] hyper::Error),
    /// The body was longer than a megabyte, or broke off.
    #[error("the body could not be read")]
    Body,
    /// Nothing whole came within 30 seconds.
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Deadline,
}

/// Sends `request` to `address` and returns the whole answer.
///
/// # Errors
///
/// When no whole answer came; an answer that refuses is an answer.
pub async fn send(
    address: &Address,
    request: Request<Full<Bytes>>,
) -> Result<Response, ClientError> {
    let exchange = async {
        match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)
                    .await
                    .map_err(ClientError::Connect)?;
                over(stream, request).await
            }
            Address::Loopback(address) => {
                let stream = TcpStream::connect(address)
                    .await
                    .map_err(ClientError::Connect)?;
                over(stream, request).await
            }
        }
    };
    timeout(DEADLINE, exchange)
        .await
        .map_err(|_| ClientError::Deadline)?
}

async fn over<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(ClientError::Http)?;
    let driver = tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .map_err(ClientError::Http)?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY)
        .collect()
        .await
        .map_err(|_| ClientError::Body)?;
    driver.abort();
    Ok(Response {
        status: parts.status,
        headers: parts.headers,
        body: body.to_bytes(),
    })
}
