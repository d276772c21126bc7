//! Secrets, and the token set that a successful answer carries.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::time::UnixTime;

/// Declares a secret string: one copy that all clones share, zeroized with the last of them; redacted in `Debug`,
/// without `Display` or `Serialize`, readable by one loud accessor.
macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name(Arc<Zeroizing<String>>);

        impl $name {
            /// Takes ownership of a secret.
            pub fn new(secret: impl Into<String>) -> Self {
                $name(Arc::new(Zeroizing::new(secret.into())))
            }

            /// Returns the secret itself. Every call site is a place to audit (I6).
            pub fn expose(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

secret! {
    /// An access token (RFC 6749 §1.4). Never empty in a [`TokenSet`].
    AccessToken
}
secret! {
    /// A refresh token (RFC 6749 §1.5).
    RefreshToken
}
secret! {
    /// A client secret (RFC 6749 §2.3.1).
    ClientSecret
}

/// Which kind of token something is (RFC 7009 §2.1, `token_type_hint`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// `access_token`
    Access,
    /// `refresh_token`
    Refresh,
}

impl TokenKind {
    /// Returns the name that RFC 7009 gives it.
    pub fn name(self) -> &'static str {
        match self {
            TokenKind::Access => "access_token",
            TokenKind::Refresh => "refresh_token",
        }
    }
}

/// What one grant holds after a successful token response or an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSet {
    /// The access token; absent only where an import brought a refresh token alone.
    pub access_token: Option<AccessToken>,
    /// The token type as the server wrote it, `Bearer` where it wrote none.
    pub token_type: String,
    /// When the access token expires; `None` where nobody knows.
    pub expires_at: Option<UnixTime>,
    /// When the access token was obtained.
    pub obtained_at: UnixTime,
    /// The refresh token that the next attempt presents.
    pub refresh_token: Option<RefreshToken>,
    /// The refresh token's own end, where the server tells it.
    pub refresh_token_end: Option<RefreshTokenEnd>,
    /// The granted scope, space-separated or as the provider writes it.
    pub scope: Option<String>,
}

/// The end of a refresh token that use does not put off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshTokenEnd {
    /// When it ends.
    pub expires_at: UnixTime,
    /// When to warn of it; `None` once that is done.
    pub warn_at: Option<UnixTime>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_a_secret() {
        let set = TokenSet {
            access_token: Some(AccessToken::new("canary-access")),
            token_type: "Bearer".into(),
            expires_at: None,
            obtained_at: UnixTime::EPOCH,
            refresh_token: Some(RefreshToken::new("canary-refresh")),
            refresh_token_end: None,
            scope: None,
        };
        let shown = format!(
            "{set:?} {:#?} {:?}",
            set,
            ClientSecret::new("canary-secret")
        );
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains("redacted"));
    }
}
