//! What a token endpoint's answer means (RFC 6749 §5.1 and §5.2).

use std::time::Duration;

use super::time::UnixTime;
use super::token::{AccessToken, RefreshToken};

/// A successful answer, read leniently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenResponse {
    /// Never empty.
    pub access_token: AccessToken,
    /// As the server wrote it; `Bearer` where it wrote none that can be shown.
    pub token_type: String,
    /// The lifetime, where the server sent a positive one, as a number or a string.
    pub expires_in: Option<Duration>,
    /// The `exp` claim of an access token that is a JWT, unverified: only a hint for the schedule.
    pub jwt_expires_at: Option<UnixTime>,
    /// A new refresh token, where the server sent a non-empty one.
    pub refresh_token: Option<RefreshToken>,
    /// The granted scope; an array is joined by spaces.
    pub scope: Option<String>,
}

/// How an attempt ended, as far as the network can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A token set with a non-empty access token.
    Tokens(TokenResponse),
    /// The server refused this grant for good (`invalid_grant` and the profile's equivalents).
    RefusedForGood(Refusal),
    /// The server refused our client, so every grant (`invalid_client` and friends).
    RefusedForAll(Refusal),
    /// The server answered, but it is no verdict: 408, 429, 5xx, HTML, a redirect, an unexplained 4xx.
    RefusedForNow {
        /// What it said.
        refusal: Refusal,
        /// The clamped `Retry-After`, if there was one.
        retry_after: Option<Duration>,
    },
    /// The request was sent, and no whole answer came.
    Unknown(&'static str),
    /// The request never left: `dns`, `connect`, `tls`, `proxy`.
    NotSent(&'static str),
}

/// What a refusing server said, in words that are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status code.
    pub status: u16,
    /// The error code, only if it is one we know: a server's own text may hold a secret.
    pub code: Option<&'static str>,
}
