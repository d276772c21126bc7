//! An authorization server's rules: single-use refresh tokens, families, and a family's end when one is replayed.
//!
//! Used as a script: `ScriptedServer::start(rotating.script())`, or from within one, to change its answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::scripted_server::{Answer, RecordedRequest};
use super::{instant, unix_now};

/// Cheap to clone; all clones are the same server.
#[derive(Clone)]
pub struct Rotating(Arc<Mutex<Rules>>);

struct Rules {
    expires_in: u64,
    grace: Duration,
    /// Put before every token, so that a test can look for them.
    prefix: String,
    client: Option<(String, String)>,
    /// What a token response names, where it names one.
    scope: Option<String>,
    families: Vec<Family>,
    superseded_outside_grace: usize,
    replayed_within_grace: usize,
}

struct Family {
    user: String,
    revoked: bool,
    refreshes: usize,
    /// Every set ever issued; the last one is current.
    sets: Vec<Set>,
}

struct Set {
    access_token: String,
    refresh_token: String,
    expires_at: Instant,
    superseded_at: Option<Instant>,
}

/// A first token set, as a login would have brought it.
#[derive(Clone, Debug)]
pub struct Issued {
    pub access_token: String,
    pub refresh_token: String,
    pub expires_in: u64,
}

impl Issued {
    /// The body of an import, just obtained.
    pub fn import(&self) -> Value {
        json!({
            "access_token": self.access_token,
            "refresh_token": self.refresh_token,
            "token_type": "Bearer",
            "expires_in": self.expires_in,
        })
    }

    /// The body of an import whose access token was obtained `age` seconds ago and has `left` seconds to live.
    pub fn import_aged(&self, age: i64, left: i64) -> Value {
        let mut body = self.import();
        body["obtained_at"] = json!(unix_now() - age);
        body["expires_at"] = json!(unix_now() + left);
        body
    }

    /// The body of an import whose access token ended a minute ago.
    pub fn import_expired(&self) -> Value {
        self.import_aged(3660, -60)
    }
}

impl Rotating {
    /// Access tokens live for `expires_in` seconds; a used refresh token is dead at once.
    pub fn new(expires_in: u64) -> Rotating {
        Rotating(Arc::new(Mutex::new(Rules {
            expires_in,
            grace: Duration::ZERO,
            prefix: String::new(),
            client: None,
            scope: None,
            families: Vec::new(),
            superseded_outside_grace: 0,
            replayed_within_grace: 0,
        })))
    }

    /// A used refresh token brings the identical new set for this long.
    pub fn with_grace(self, grace: Duration) -> Rotating {
        self.rules().grace = grace;
        self
    }

    /// Every token begins with this.
    pub fn with_prefix(self, prefix: &str) -> Rotating {
        self.rules().prefix = prefix.to_owned();
        self
    }

    /// From now on, token responses name this scope.
    pub fn name_scope(&self, scope: &str) {
        self.rules().scope = Some(scope.to_owned());
    }

    /// From now on, only this client identifier and secret in a Basic header are accepted.
    pub fn accept_only(&self, client_id: &str, client_secret: &str) {
        self.rules().client = Some((client_id.to_owned(), client_secret.to_owned()));
    }

    /// Returns the script that follows these rules.
    pub fn script(&self) -> impl FnMut(&RecordedRequest) -> Answer + Send + use<> {
        let rotating = self.clone();
        move |request| rotating.answer(request)
    }

    /// Logs `user` in, and begins a family.
    pub fn issue(&self, user: &str) -> Issued {
        let mut rules = self.rules();
        let family = rules.families.len();
        let set = rules.new_set(family, 0);
        let issued = Issued {
            access_token: set.access_token.clone(),
            refresh_token: set.refresh_token.clone(),
            expires_in: rules.expires_in,
        };
        let user = user.to_owned();
        rules.families.push(Family {
            user,
            revoked: false,
            refreshes: 0,
            sets: vec![set],
        });
        issued
    }

    /// The user withdraws the grant at the server.
    pub fn revoke(&self, user: &str) {
        for family in self
            .rules()
            .families
            .iter_mut()
            .filter(|family| family.user == user)
        {
            family.revoked = true;
        }
    }

    /// Returns what a resource server would learn about an access token.
    pub fn is_active(&self, access_token: &str) -> bool {
        let now = instant();
        self.rules()
            .families
            .iter()
            .filter(|family| !family.revoked)
            .any(|family| {
                family
                    .sets
                    .iter()
                    .any(|set| set.access_token == access_token && set.expires_at > now)
            })
    }

    /// Returns how many token sets `user` got by refreshing.
    pub fn refreshes(&self, user: &str) -> usize {
        self.rules()
            .families
            .iter()
            .filter(|f| f.user == user)
            .map(|f| f.refreshes)
            .sum()
    }

    /// Returns how many token sets each user got by refreshing.
    pub fn refreshes_by_user(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for family in &self.rules().families {
            *counts.entry(family.user.clone()).or_insert(0) += family.refreshes;
        }
        counts
    }

    /// Returns how often a used refresh token was presented when it was dead; each time a family ended.
    pub fn superseded_presented_outside_grace(&self) -> usize {
        self.rules().superseded_outside_grace
    }

    /// Returns how often a used refresh token brought the identical set again.
    pub fn replayed_within_grace(&self) -> usize {
        self.rules().replayed_within_grace
    }

    /// Answers a token or revocation request.
    pub fn answer(&self, request: &RecordedRequest) -> Answer {
        let mut rules = self.rules();
        if rules.client.is_some() && request.basic() != rules.client {
            return Answer::error(401, "invalid_client").header("www-authenticate", "Basic");
        }
        if request.is_refresh() {
            rules.refresh(request.refresh_token())
        } else {
            rules.revoke_token(request.form.get("token").map_or("", String::as_str))
        }
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.0.lock().expect("no test panicked in here")
    }
}

impl Rules {
    fn new_set(&self, family: usize, number: usize) -> Set {
        let prefix = &self.prefix;
        Set {
            access_token: format!("{prefix}access-{family}-{number}"),
            refresh_token: format!("{prefix}refresh-{family}-{number}"),
            expires_at: instant() + Duration::from_secs(self.expires_in),
            superseded_at: None,
        }
    }

    fn refresh(&mut self, refresh_token: &str) -> Answer {
        let place = self.families.iter().enumerate().find_map(|(family, f)| {
            let set = f
                .sets
                .iter()
                .position(|set| set.refresh_token == refresh_token)?;
            Some((family, set))
        });
        let Some((family, presented)) = place else {
            return Answer::error(400, "invalid_grant");
        };
        if self.families[family].revoked {
            return Answer::error(400, "invalid_grant");
        }
        let current = self.families[family].sets.len() - 1;
        if presented < current {
            let used_at = self.families[family].sets[presented].superseded_at;
            let in_grace = used_at.is_some_and(|at| instant().duration_since(at) < self.grace);
            if presented + 1 < current || !in_grace {
                self.families[family].revoked = true;
                self.superseded_outside_grace += 1;
                return Answer::error(400, "invalid_grant");
            }
            self.replayed_within_grace += 1;
            return self.current(family);
        }
        let set = self.new_set(family, current + 1);
        self.families[family].sets[current].superseded_at = Some(instant());
        self.families[family].sets.push(set);
        self.families[family].refreshes += 1;
        self.current(family)
    }

    fn current(&self, family: usize) -> Answer {
        let set = self.families[family]
            .sets
            .last()
            .expect("a family has a set");
        let left = set
            .expires_at
            .duration_since(instant())
            .as_secs_f64()
            .ceil() as u64;
        match &self.scope {
            None => Answer::tokens(&set.access_token, &set.refresh_token, left),
            Some(scope) => {
                let tokens = json!({
                    "access_token": set.access_token,
                    "refresh_token": set.refresh_token,
                    "token_type": "Bearer",
                    "expires_in": left,
                    "scope": scope,
                });
                Answer::json(200, &tokens)
            }
        }
    }

    /// RFC 7009 §2.2: 200, also for a token nobody knows.
    fn revoke_token(&mut self, token: &str) -> Answer {
        for family in &mut self.families {
            let known = |set: &Set| set.refresh_token == token || set.access_token == token;
            if family.sets.iter().any(known) {
                family.revoked = true;
            }
        }
        Answer::raw(200, "text/plain", "")
    }
}
