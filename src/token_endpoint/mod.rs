//! The HTTP client to authorization servers: token endpoint (RFC 6749 §6) and revocation endpoint (RFC 7009).

use crate::profile::Registration;
use crate::refresh::time::UnixTime;
use crate::refresh::token::RefreshToken;
use crate::refresh::token_response::Outcome;

/// How requests leave the host.
#[derive(Clone, Debug, Default)]
pub struct Outbound {
    /// An HTTP proxy for every request.
    pub proxy: Option<url::Url>,
    /// PEM certificates trusted in addition to the system's.
    pub ca_bundle: Option<Vec<u8>>,
}

/// A client for one provider.
pub struct Client {
    registration: Registration,
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The CA bundle holds no PEM certificate that can be read.
    #[error("outbound.ca-bundle holds no readable PEM certificate")]
    CaBundle,
    /// The TLS library could not be set up.
    #[error("cannot set up TLS")]
    Tls,
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

/// Which kind of token is to be revoked (RFC 7009 §2.1, `token_type_hint`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// `access_token`
    Access,
    /// `refresh_token`
    Refresh,
}

impl Client {
    /// Makes a client.
    pub fn new(registration: Registration, outbound: &Outbound) -> Result<Client, ClientError> {
        let _ = outbound;
        Ok(Client { registration })
    }
    /// Presents `refresh_token` once. `now` is only for reading a `Retry-After` date.
    pub async fn refresh(&self, refresh_token: &RefreshToken, now: UnixTime) -> Outcome {
        let _ = (refresh_token, now, &self.registration);
        todo!()
    }
    /// Revokes `token`.
    pub async fn revoke(&self, token: &str, kind: TokenKind) -> Revocation {
        let _ = (token, kind);
        todo!()
    }
}
