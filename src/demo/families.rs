//! The rules of the demo's authorization server: token families, rotation and replay.
//!
//! Pure: the moment is an argument and nothing here knows HTTP. A *family* is
//! everything that descends from one grant. Its newest refresh token is the only
//! one that works; presenting an older one revokes the whole family, access
//! tokens too, as Auth0, Okta and Atlassian do (RFC 9700 §4.14.2).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::refresh::time::UnixTime;
use crate::refresh::token::{AccessToken, RefreshToken};

/// What the server hands out: one access token and the refresh token that replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The access token.
    pub access_token: AccessToken,
    /// The only refresh token of its family that works now.
    pub refresh_token: RefreshToken,
    /// How long the access token lives.
    pub expires_in: Duration,
    /// The granted scope.
    pub scope: String,
}

/// What became of a presented refresh token.
#[derive(Debug, PartialEq, Eq)]
pub enum Presented {
    /// A new token set. `before_expiry_ms` is how long the family's previous access token still had; negative if it was over.
    Rotated {
        /// Whose grant.
        user: String,
        /// Milliseconds.
        before_expiry_ms: i64,
        /// The new token set.
        issued: Issued,
    },
    /// An older refresh token of the family: the family is revoked now, if it was not yet.
    Replayed {
        /// Whose grant.
        user: String,
    },
    /// The family was revoked before.
    Revoked {
        /// Whose grant.
        user: String,
    },
    /// No refresh token of ours, or another client's.
    Unknown,
}

/// An access token that works (RFC 7662 §2.2).
#[derive(Debug, PartialEq, Eq)]
pub struct Active {
    /// Whose grant.
    pub user: String,
    /// The client it was issued to.
    pub client_id: String,
    /// The granted scope.
    pub scope: String,
    /// When it ends.
    pub expires_at: UnixTime,
}

/// How often the token endpoint was asked about one user's grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Requests that presented a refresh token of this user, refused ones included.
    pub all: u64,
    /// Requests that were answered with a token set.
    pub refreshes: u64,
    /// Requests that presented a refresh token which had been used before.
    pub replays: u64,
}

struct Family {
    user: String,
    client_id: String,
    scope: String,
    revoked: bool,
    newest_refresh_token: String,
    expires_at: UnixTime,
}

struct Access {
    family: usize,
    expires_at: UnixTime,
    revoked: bool,
}

/// Every grant this server has ever given, for as long as it runs.
pub struct Families {
    lifetime: Duration,
    families: Vec<Family>,
    /// Old refresh tokens stay here, so that a replay is known for what it is.
    refresh_tokens: HashMap<String, usize>,
    access_tokens: HashMap<String, Access>,
    requests: BTreeMap<String, Requests>,
}

impl Families {
    /// Makes a server without grants whose access tokens live for `lifetime`.
    pub fn new(lifetime: Duration) -> Self {
        Families {
            lifetime,
            families: Vec::new(),
            refresh_tokens: HashMap::new(),
            access_tokens: HashMap::new(),
            requests: BTreeMap::new(),
        }
    }

    /// Starts a family: what a finished login gives.
    pub fn grant(&mut self, user: &str, client_id: &str, scope: &str, now: UnixTime) -> Issued {
        let family = self.families.len();
        self.families.push(Family {
            user: user.to_owned(),
            client_id: client_id.to_owned(),
            scope: scope.to_owned(),
            revoked: false,
            newest_refresh_token: String::new(),
            expires_at: now,
        });
        self.issue(family, now)
    }

    /// Takes a refresh token that `client_id` presents (RFC 6749 §6).
    pub fn present(&mut self, refresh_token: &str, client_id: &str, now: UnixTime) -> Presented {
        let Some(&index) = self.refresh_tokens.get(refresh_token) else {
            return Presented::Unknown;
        };
        let family = &self.families[index];
        if family.client_id != client_id {
            return Presented::Unknown;
        }
        let user = family.user.clone();
        let before_expiry_ms = family.expires_at.as_millis() - now.as_millis();
        let newest = family.newest_refresh_token == refresh_token;
        let revoked = family.revoked;
        let requests = self.requests.entry(user.clone()).or_default();
        requests.all += 1;
        if !newest {
            requests.replays += 1;
            self.families[index].revoked = true;
            return Presented::Replayed { user };
        }
        if revoked {
            return Presented::Revoked { user };
        }
        requests.refreshes += 1;
        let issued = self.issue(index, now);
        Presented::Rotated {
            user,
            before_expiry_ms,
            issued,
        }
    }

    /// Revokes what `token` stands for, if `client_id` may (RFC 7009 §2.1): the family of a
    /// refresh token, or one access token. Returns whose, if anything changed.
    pub fn revoke(&mut self, token: &str, client_id: &str) -> Option<String> {
        if let Some(&index) = self.refresh_tokens.get(token) {
            let family = &self.families[index];
            if family.client_id != client_id || family.revoked {
                return None;
            }
            self.families[index].revoked = true;
            return Some(self.families[index].user.clone());
        }
        let access = self.access_tokens.get_mut(token)?;
        let family = &self.families[access.family];
        if family.client_id != client_id || access.revoked {
            return None;
        }
        access.revoked = true;
        Some(family.user.clone())
    }

    /// Revokes every family of `user`, as the server's owner would. Returns how many were alive.
    pub fn revoke_user(&mut self, user: &str) -> usize {
        let mut alive = 0;
        for family in self
            .families
            .iter_mut()
            .filter(|f| f.user == user && !f.revoked)
        {
            family.revoked = true;
            alive += 1;
        }
        alive
    }

    /// Returns what an access token is worth at `now`; `None` is "not active" (RFC 7662 §2.2).
    pub fn introspect(&self, token: &str, now: UnixTime) -> Option<Active> {
        let access = self.access_tokens.get(token)?;
        let family = &self.families[access.family];
        if access.revoked || family.revoked || access.expires_at <= now {
            return None;
        }
        Some(Active {
            user: family.user.clone(),
            client_id: family.client_id.clone(),
            scope: family.scope.clone(),
            expires_at: access.expires_at,
        })
    }

    /// Returns whether `user` has, or had, grants and all of them are revoked.
    pub fn is_revoked(&self, user: &str) -> bool {
        let mut theirs = self.families.iter().filter(|f| f.user == user).peekable();
        theirs.peek().is_some() && theirs.all(|f| f.revoked)
    }

    /// Returns how often the token endpoint was asked about `user`.
    pub fn requests(&self, user: &str) -> Requests {
        self.requests.get(user).copied().unwrap_or_default()
    }

    /// Returns how often the token endpoint was asked about anybody.
    pub fn all_requests(&self) -> Requests {
        let mut sum = Requests::default();
        for requests in self.requests.values() {
            sum.all += requests.all;
            sum.refreshes += requests.refreshes;
            sum.replays += requests.replays;
        }
        sum
    }

    fn issue(&mut self, index: usize, now: UnixTime) -> Issued {
        let access_token = random_token("at");
        let refresh_token = random_token("rt");
        let expires_at = now + self.lifetime;
        self.access_tokens
            .retain(|_, access| access.expires_at > now);
        self.access_tokens.insert(
            access_token.clone(),
            Access {
                family: index,
                expires_at,
                revoked: false,
            },
        );
        self.refresh_tokens.insert(refresh_token.clone(), index);
        let family = &mut self.families[index];
        family.newest_refresh_token.clone_from(&refresh_token);
        family.expires_at = expires_at;
        Issued {
            access_token: AccessToken::new(access_token),
            refresh_token: RefreshToken::new(refresh_token),
            expires_in: self.lifetime,
            scope: family.scope.clone(),
        }
    }
}

/// Returns 256 random bits behind a prefix that says what kind of token it is (RFC 6749 §10.10).
pub fn random_token(prefix: &str) -> String {
    format!(
        "demo-{prefix}-{}",
        URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
    )
}
