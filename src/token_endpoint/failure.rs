//! Why there is no whole answer: whether the request can have left, and a short code.
//!
//! The errors of reqwest print URLs and addresses, so none of them goes further than this module (I6).

use std::error::Error;
use std::io;

use crate::refresh::token_response::Outcome;

/// Tells what an error before the answer's head means.
///
/// *Not sent* is claimed only for errors of the connector, which runs name lookup, TCP, the proxy's CONNECT
/// and the TLS handshake to their ends before the first byte of a request; the connect timeout covers just
/// these. Anything else may have come after bytes left.
pub fn before_answer(error: &reqwest::Error) -> Outcome {
    if error.is_connect() {
        return Outcome::NotSent(connect_code(error));
    }
    if error.is_timeout() {
        return Outcome::Unknown("deadline");
    }
    match find::<hyper::Error>(error) {
        Some(error) if error.is_parse() => Outcome::Unknown("malformed"),
        _ => Outcome::Unknown("connection-lost"),
    }
}

/// Tells what an error within the answer's body means.
pub fn in_answer(error: &reqwest::Error) -> Outcome {
    Outcome::Unknown(if error.is_timeout() {
        "deadline"
    } else {
        "truncated"
    })
}

fn connect_code(error: &reqwest::Error) -> &'static str {
    let io_kind = chain(error).filter_map(|error| error.downcast_ref::<io::Error>());
    let broken_tls = |kind| {
        // What rustls makes of a bad certificate or record, and of a connection closed in the handshake.
        // Neither comes of a TCP connect.
        matches!(
            kind,
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
        )
    };
    // Hyper's tunnel error is not public, but its text is fixed.
    if chain(error).any(|error| error.to_string().starts_with("tunnel error")) {
        "proxy"
    } else if error.is_dns() {
        "dns"
    } else if error.is_timeout() {
        "connect-timeout"
    } else if io_kind.map(io::Error::kind).any(broken_tls) {
        "tls"
    } else {
        "connect"
    }
}

fn find<E: Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// Walks the causes. An `io::Error` that wraps another error skips it in `source()`, so that one is opened.
fn chain<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let cause = |error: &&'a (dyn Error + 'static)| -> Option<&'a (dyn Error + 'static)> {
        let error: &'a (dyn Error + 'static) = *error;
        match error.downcast_ref::<io::Error>() {
            Some(error) => error.get_ref().map(|inner| inner as _),
            None => error.source(),
        }
    };
    std::iter::successors(error.source(), cause)
}
