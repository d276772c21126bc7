//! `/metrics` on a loopback address, for a Prometheus that can't speak to a Unix socket.
//!
//! Whoever is on the host can read it; nothing on it is a secret or names a user. A web page that a browser on this host
//! shows gets nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue, ORIGIN, REFERER};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::scrape;
use super::shared::Shared;
use crate::metrics;

/// So many connections at once. A further one takes the place of the oldest: a scrape takes milliseconds, and who only
/// sits there must not make monitoring blind.
const CONNECTIONS: usize = 64;
/// So many answers are made at once; further ones wait.
const SCRAPES: usize = 8;
/// A connection lives no longer. Each is for one scrape.
const PATIENCE: Duration = Duration::from_secs(10);
/// A request's head is no larger.
const HEAD_BYTES: usize = 16 << 10;
/// After a failed accept (mostly: no file descriptor left) the next is tried so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds the address.
///
/// # Errors
///
/// Those of the system: in use, not permitted.
pub(super) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "metrics-listening");
    Ok(listener)
}

/// Answers scrapes until the daemon ends.
pub(super) async fn run(shared: Arc<Shared>, listener: TcpListener) {
    let scrapes = Arc::new(Semaphore::new(SCRAPES));
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(socket = "metrics-listen", %error, "accept-failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let (shared, scrapes) = (shared.clone(), scrapes.clone());
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (shared, scrapes) = (shared.clone(), scrapes.clone());
            async move {
                let _turn = scrapes.acquire().await; // it is never closed
                Ok::<_, Infallible>(answer(&shared, &request).await)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            // `PATIENCE` keeps the time.
            .header_read_timeout(None)
            .max_buf_size(HEAD_BYTES)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        let connection = tokio::spawn(async move {
            // A scraper that hangs up or is too slow comes again.
            let _ = tokio::time::timeout(PATIENCE, connection).await;
        });
        open.push_back(connection.abort_handle());
    }
}

async fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let text = |status, text: String, content_type| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        let content_type = HeaderValue::from_static(content_type);
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    };
    let plain = |status, words: &str| text(status, format!("{words}\n"), "text/plain");
    if !is_scraper(request.headers()) {
        return plain(
            StatusCode::FORBIDDEN,
            "web pages get nothing; name this host 127.0.0.1, [::1] or localhost",
        );
    }
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is only /metrics");
    }
    if request.method() != Method::GET {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "GET it");
        let get = HeaderValue::from_static("GET");
        refused.headers_mut().insert(ALLOW, get);
        return refused;
    }
    text(
        StatusCode::OK,
        scrape::page(shared).await,
        metrics::CONTENT_TYPE,
    )
}

/// A page of another site sends its origin; one whose name was made to point here (DNS rebinding) sends that name.
fn is_scraper(headers: &HeaderMap) -> bool {
    let from_page = [ORIGIN, REFERER].iter().any(|h| headers.contains_key(h));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    !from_page && host.is_some_and(is_our_name)
}

fn is_our_name(host: &str) -> bool {
    let name = match host.parse::<SocketAddr>() {
        Ok(address) => return address.ip().is_loopback(),
        Err(_) => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        || host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_of_this_host_is_answered() {
        for ours in [
            "127.0.0.1:9464",
            "127.0.0.1",
            "localhost:1",
            "LOCALHOST",
            "[::1]:9464",
            "[::1]",
        ] {
            assert!(is_our_name(ours), "{ours}");
        }
        for other in [
            "rebound.example:9464",
            "192.0.2.1:9464",
            "127.0.0.1.example",
            "",
            "localhost.example",
        ] {
            assert!(!is_our_name(other), "{other}");
        }
    }

    #[test]
    fn a_web_page_is_told_from_a_scraper() {
        let mut headers = HeaderMap::new();
        assert!(!is_scraper(&headers), "without Host nobody knows");
        headers.insert(HOST, HeaderValue::from_static("127.0.0.1:9464"));
        assert!(is_scraper(&headers));
        headers.insert(ORIGIN, HeaderValue::from_static("https://evil.example"));
        assert!(!is_scraper(&headers));
    }
}
