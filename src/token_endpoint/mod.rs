//! The HTTP client to authorization servers: token endpoint (RFC 6749 §6) and revocation endpoint (RFC 7009).
//!
//! One request, one connection, one answer. There is no pool, because a request on a connection that the
//! server has just closed leaves its fate unknown; no retry, because a refresh token may be spent by its
//! first use; no redirect, because a token request's body is all secrets (I8). What the answer means is
//! [`token_response`](crate::refresh::token_response)'s to say; here it is told whether there was one.

mod failure;
pub mod probe;
mod request;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::redirect;

use crate::profile::{Registration, check_endpoint};
use crate::refresh::policy;
use crate::refresh::time::UnixTime;
use crate::refresh::token::{RefreshToken, TokenKind};
use crate::refresh::token_response::{Answer, Outcome, Refusal, classify};

/// No token response is longer; a 16 KiB token in a generous envelope is a tenth of it (I8).
const BODY_CAP: usize = 256 << 10;
/// A proxy is never asked for these: plain http would hand it our secrets, and it has another loopback.
const LOOPBACK: &str = "127.0.0.0/8,::1";

/// How requests leave the host.
#[derive(Clone, Debug, Default)]
pub struct Outbound {
    /// An HTTP proxy for every request but those to loopback addresses.
    pub proxy: Option<url::Url>,
    /// PEM certificates trusted in addition to the system's.
    pub ca_bundle: Option<Vec<u8>>,
}

/// A client for one provider. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    registration: Registration,
    http: reqwest::Client,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The registration redacts its secret.
        f.debug_struct("Client")
            .field("registration", &self.registration)
            .finish_non_exhaustive()
    }
}

/// Why no client could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The CA bundle holds no PEM certificate that can be read.
    #[error("outbound.ca-bundle holds no readable PEM certificate")]
    CaBundle,
    /// The TLS library could not be set up: mostly, the host has no CA certificates.
    #[error("cannot set up TLS; install the system's CA certificates, or set outbound.ca-bundle")]
    Tls,
    /// The proxy's URL cannot be used.
    #[error("outbound.proxy cannot be used")]
    Proxy,
}

/// How a revocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// The server said 200: revoked, or unknown to it (RFC 7009 §2.2).
    Done,
    /// No verdict: try again.
    Later,
    /// The server will never do it.
    Refused,
}

/// A whole answer.
struct Whole {
    status: u16,
    retry_after: Option<String>,
    /// `None` if it was longer than [`BODY_CAP`], and so not read to its end.
    body: Option<Vec<u8>>,
}

impl Client {
    /// Makes a client. Reads the system's CA certificates from disk.
    ///
    /// # Errors
    /// [`ClientError`], where TLS, the CA bundle or the proxy cannot be used.
    pub fn new(registration: Registration, outbound: &Outbound) -> Result<Client, ClientError> {
        let http = http_client(
            outbound,
            registration.connect_timeout,
            registration.deadline,
        )?;
        Ok(Client { registration, http })
    }

    /// Returns the registration this client was made for.
    pub fn registration(&self) -> &Registration {
        &self.registration
    }

    /// Presents `refresh_token` once (RFC 6749 §6). `now` is only for reading a `Retry-After` date.
    ///
    /// Takes the deadline of the registration at most. Dropping the future closes the connection, after
    /// which the request's fate is unknown.
    pub async fn refresh(&self, refresh_token: &RefreshToken, now: UnixTime) -> Outcome {
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token.expose()),
        ];
        let answer = match self.post(&self.registration.token_endpoint, &form).await {
            Ok(answer) => answer,
            Err(outcome) => return outcome,
        };
        let Whole {
            status,
            retry_after,
            body,
        } = answer;
        let retry_after = retry_after.as_deref();
        match body {
            Some(body) => {
                let answer = Answer {
                    status,
                    retry_after,
                    body: &body,
                };
                let mut outcome = classify(&answer, &self.registration.dead_grant_codes, now);
                if let Outcome::Tokens(tokens) = &mut outcome {
                    let secret = self.registration.client_secret.as_ref();
                    let secret = secret.map_or("", |secret| secret.expose());
                    tokens.drop_echoes(&[refresh_token.expose(), secret]);
                }
                outcome
            }
            // A token set may have been in there.
            None if (200..300).contains(&status) => Outcome::Unknown("body-too-large"),
            None => Outcome::RefusedForNow {
                refusal: Refusal { status, code: None },
                retry_after: retry_after.and_then(|value| policy::retry_after(value, now)),
            },
        }
    }

    /// Revokes `token` (RFC 7009 §2.1).
    ///
    /// Everything is worth trying again but what the server says of the token itself or of the request's
    /// form: a wrong secret or path can be mended in the configuration.
    pub async fn revoke(&self, token: &str, kind: TokenKind) -> Revocation {
        let Some(endpoint) = &self.registration.revocation_endpoint else {
            return Revocation::Refused;
        };
        let form = [("token", token), ("token_type_hint", kind.name())];
        match self.post(endpoint, &form).await {
            Ok(answer) => revocation(answer.status, answer.body.as_deref().unwrap_or_default()),
            Err(_) => Revocation::Later,
        }
    }

    /// Sends one form and reads the whole answer, or says why there is none:
    /// [`Outcome::NotSent`] or [`Outcome::Unknown`].
    async fn post(&self, endpoint: &url::Url, form: &[(&str, &str)]) -> Result<Whole, Outcome> {
        if check_endpoint(endpoint).is_err() {
            return Err(Outcome::NotSent("insecure-endpoint"));
        }
        let request = request::build(&self.http, &self.registration, endpoint, form);
        let mut response = request
            .send()
            .await
            .map_err(|error| failure::before_answer(&error))?;
        let status = response.status().as_u16();
        let header = response.headers().get(RETRY_AFTER);
        let retry_after = header
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > BODY_CAP => {
                    return Ok(Whole {
                        status,
                        retry_after,
                        body: None,
                    });
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => {
                    return Ok(Whole {
                        status,
                        retry_after,
                        body: Some(body),
                    });
                }
                Err(error) => return Err(failure::in_answer(&error)),
            }
        }
    }
}

/// Makes what sends requests as they must be sent: no redirect, no retry, no pool, no proxy of the environment's.
fn http_client(
    outbound: &Outbound,
    connect_timeout: Duration,
    deadline: Duration,
) -> Result<reqwest::Client, ClientError> {
    built(builder(outbound, connect_timeout, deadline)?, outbound)
}

fn builder(
    outbound: &Outbound,
    connect_timeout: Duration,
    deadline: Duration,
) -> Result<reqwest::ClientBuilder, ClientError> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("freshd/", env!("CARGO_PKG_VERSION")))
        .default_headers(HeaderMap::from_iter([(
            ACCEPT,
            HeaderValue::from_static("application/json"),
        )]))
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(0)
        .http1_only()
        .connect_timeout(connect_timeout)
        .timeout(deadline)
        // The environment's proxies; ours is added below.
        .no_proxy();
    let builder = match &outbound.proxy {
        Some(url) => {
            let proxy = reqwest::Proxy::all(url.clone()).map_err(|_| ClientError::Proxy)?;
            builder.proxy(proxy.no_proxy(reqwest::NoProxy::from_string(LOOPBACK)))
        }
        None => builder,
    };
    match &outbound.ca_bundle {
        Some(pem) => match reqwest::Certificate::from_pem_bundle(pem) {
            Ok(certificates) if !certificates.is_empty() => {
                Ok(builder.tls_certs_merge(certificates))
            }
            _ => Err(ClientError::CaBundle),
        },
        None => Ok(builder),
    }
}

fn built(
    builder: reqwest::ClientBuilder,
    outbound: &Outbound,
) -> Result<reqwest::Client, ClientError> {
    builder.build().map_err(|_| match outbound.ca_bundle {
        // With certificates of our own, a host that has none is no error; one that is not DER is.
        Some(_) => ClientError::CaBundle,
        None => ClientError::Tls,
    })
}

/// Tells what an answer to a revocation means (RFC 7009 §2.2).
fn revocation(status: u16, body: &[u8]) -> Revocation {
    if (200..300).contains(&status) {
        return Revocation::Done;
    }
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let error = json.as_ref().and_then(|json| json.get("error")?.as_str());
    match (status, error) {
        // RFC 7009 §2.2 wants 200 for a token that is gone already; some servers answer so.
        (400, Some("invalid_token" | "invalid_grant")) => Revocation::Done,
        (400, Some("unsupported_token_type" | "invalid_request")) => Revocation::Refused,
        _ => Revocation::Later,
    }
}
