//! Provider profiles: what freshd ships about well-known authorization servers.
//!
//! A profile is a `[provider.NAME]` section without a client registration, kept
//! in `config/providers/*.toml` and compiled in. It is read by the same code as
//! the section in the configuration file, which overrides it key by key.

use std::time::Duration;

use url::Url;

use crate::refresh::pacing::Pace;
use crate::refresh::policy::Policy;
use crate::refresh::token::ClientSecret;

/// How the client authenticates at the token endpoint (RFC 6749 §2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// HTTP Basic, both halves form-encoded first (RFC 6749 §2.3.1).
    Basic,
    /// `client_id` and `client_secret` in the request body.
    Body,
    /// A public client: `client_id` in the body, no secret.
    None,
}

/// Everything the HTTP client needs to know about one authorization server and our registration there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The provider's configured name.
    pub provider: String,
    /// Where refresh requests go.
    pub token_endpoint: Url,
    /// Where RFC 7009 revocations go, if the provider has such an endpoint.
    pub revocation_endpoint: Option<Url>,
    /// How we authenticate.
    pub client_auth: ClientAuth,
    /// The client identifier.
    pub client_id: String,
    /// The client secret; `None` only with [`ClientAuth::None`].
    pub client_secret: Option<ClientSecret>,
    /// Error codes (members `error`, `status` or `code` of an answer) that mean what `invalid_grant` means.
    pub dead_grant_codes: Vec<String>,
    /// How long a connection may take; shorter than `deadline`.
    pub connect_timeout: Duration,
    /// How long a whole request may take.
    pub deadline: Duration,
}

/// One provider, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Provider {
    /// The profile it names, if any.
    pub profile: Option<String>,
    /// What the HTTP client needs.
    pub registration: Registration,
    /// What the core needs.
    pub policy: Policy,
    /// How fast it may be asked.
    pub pace: Pace,
    /// The scopes the app asks for; shown in lists, used at login.
    pub scopes: Vec<String>,
}
