//! Provider profiles: what freshd ships about well-known authorization servers.
//!
//! A profile is a `[provider.NAME]` section without a client registration, kept
//! in `config/providers/*.toml` and compiled in. It is read by the same code as
//! the section in the configuration file, which overrides it key by key.

use std::time::Duration;

use url::{Host, Url};

use crate::refresh::pacing::Pace;
use crate::refresh::policy::Policy;
use crate::refresh::token::ClientSecret;

/// The profiles' sources, by name.
pub const PROFILES: [(&str, &str); 3] = [
    ("box", include_str!("../config/providers/box.toml")),
    ("google", include_str!("../config/providers/google.toml")),
    ("hubspot", include_str!("../config/providers/hubspot.toml")),
];

/// Checks that secrets may be sent to `url` (I8): https, or plain http to a literal loopback address.
///
/// Asked when the configuration is read, and again before each request.
///
/// # Errors
/// The rule that `url` breaks, as the end of a sentence.
pub fn check_endpoint(url: &Url) -> Result<(), &'static str> {
    let loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain("localhost")) if url.scheme() == "http" => {
            return Err(
                "plain http to the name localhost is refused, because a resolver may send it \
                 elsewhere; write 127.0.0.1 or [::1]",
            );
        }
        Some(Host::Domain(_)) => false,
        None => return Err("must be an https URL with a host"),
    };
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        _ => {
            return Err(
                "must be https; plain http is for literal loopback addresses only, \
                 such as 127.0.0.1 or [::1]",
            );
        }
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or password");
    }
    if url.fragment().is_some() {
        return Err("must not hold a fragment (RFC 6749 §3.2)");
    }
    Ok(())
}

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

impl ClientAuth {
    /// Returns the name the configuration uses.
    pub fn name(self) -> &'static str {
        match self {
            ClientAuth::Basic => "basic",
            ClientAuth::Body => "body",
            ClientAuth::None => "none",
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_to_https_or_a_literal_loopback_address_only() {
        for url in [
            "https://a.example/token",
            "https://a.example:8443/token?tenant=1",
            "https://10.0.0.1/token",
            "https://localhost/token",
            "http://127.0.0.1:1/token",
            "http://127.8.9.1/token",
            "http://[::1]:1/token",
        ] {
            assert_eq!(check_endpoint(&Url::parse(url).unwrap()), Ok(()), "{url}");
        }
        for (url, rule) in [
            ("http://a.example/token", "must be https"),
            ("http://10.0.0.1/token", "must be https"),
            ("http://0.0.0.0/token", "must be https"),
            ("http://[::]/token", "must be https"),
            ("http://[::ffff:127.0.0.1]/token", "must be https"),
            ("http://127.0.0.1.example/token", "must be https"),
            ("http://localhost./token", "must be https"),
            ("http://localhost/token", "localhost"),
            ("http://LOCALHOST/token", "localhost"),
            ("ftp://127.0.0.1/token", "must be https"),
            ("file:///etc/passwd", "with a host"),
            ("https://me@a.example/token", "user name"),
            ("https://:pw@a.example/token", "user name"),
            ("https://a.example/token#x", "fragment"),
        ] {
            let broken = check_endpoint(&Url::parse(url).unwrap()).unwrap_err();
            assert!(broken.contains(rule), "{url}: {broken}");
        }
    }
}
