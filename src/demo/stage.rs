//! What the cast stands on: the server's handle, the daemon's sockets, the screen and the tally.
//!
//! The daemon is in this process but is spoken to only through its sockets, as apps do.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::http::request::Builder;
use hyper::{Request, StatusCode};
use serde::de::DeserializeOwned;

use super::authorization_server::{AuthorizationServer, Clock};
use super::client::{self, Address, Response};
use super::directory::{CLIENT_ID, PROVIDER};
use super::families::Issued;
use super::screen::{Mood, Screen};
use super::tally::Seen;
use crate::local_api::types::{GrantList, GrantView, ImportRequest, Problem, TokenAnswer};
use crate::refresh::time::UnixTime;
use crate::refresh::token::ClientSecret;

/// The client identifier with which the demo's API checks tokens at the server.
pub const API_CLIENT_ID: &str = "demo-api";

/// What every member of the cast shares.
pub struct Stage {
    /// The authorization server.
    pub server: AuthorizationServer,
    /// The screen.
    pub screen: Screen,
    api_secret: ClientSecret,
    shared: Address,
    admin: Address,
    clock: Clock,
    started_at: UnixTime,
    seen: Mutex<Seen>,
}

/// Where the daemon listens.
pub struct Sockets {
    /// The shared socket.
    pub shared: PathBuf,
    /// The admin socket.
    pub admin: PathBuf,
}

/// What a read gave.
pub enum Read {
    /// A token. Whether the server called it active is tallied.
    Token(TokenAnswer),
    /// The daemon said why not.
    Refused(Problem),
    /// No answer that can be understood, in words.
    Failed(String),
}

impl Stage {
    /// Sets the stage; the story's time starts now.
    pub fn new(
        server: AuthorizationServer,
        api_secret: ClientSecret,
        sockets: Sockets,
        screen: Screen,
        clock: Clock,
    ) -> Stage {
        let started_at = clock();
        Stage {
            server,
            screen,
            api_secret,
            shared: Address::Unix(sockets.shared),
            admin: Address::Unix(sockets.admin),
            clock,
            started_at,
            seen: Mutex::default(),
        }
    }

    /// Returns how long the story has been going.
    pub fn elapsed(&self) -> Duration {
        (self.clock)().since(self.started_at)
    }

    /// Waits until the story is `at` old; not at all if it is older.
    pub async fn until(&self, at: Duration) {
        tokio::time::sleep(at.saturating_sub(self.elapsed())).await;
    }

    /// Shows what happened to `user`.
    pub fn say(&self, user: &str, mood: Mood, text: &str) {
        self.screen.event(self.elapsed(), user, mood, text);
    }

    /// Opens the tally. Not to be held across an await.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows and tallies something that should not have happened.
    pub fn surprise(&self, user: &str, text: &str) {
        self.say(user, Mood::Bad, text);
        self.seen().surprises.push(format!("{user}: {text}"));
    }

    /// Returns the tally with the server's own counters in it.
    pub fn closing_tally(&self) -> Seen {
        let mut seen = self.seen().clone();
        seen.elapsed = self.elapsed();
        seen.requests = self.server.all_requests();
        seen.ann = self.server.requests("ann");
        seen.cleo = self.server.requests("cleo");
        seen
    }

    /// Imports a grant that the server has issued, as an app that moves to freshd does.
    ///
    /// # Errors
    ///
    /// In words, when the daemon did not take it.
    pub async fn import(&self, user: &str, issued: &Issued) -> Result<(), String> {
        let body = ImportRequest {
            access_token: Some(issued.access_token.expose().to_owned()),
            refresh_token: Some(issued.refresh_token.expose().to_owned()),
            token_type: Some("Bearer".into()),
            expires_in: Some(issued.expires_in.as_secs().into()),
            scope: Some(issued.scope.clone().into()),
            ..ImportRequest::default()
        };
        let body = serde_json::to_vec(&body).map_err(|error| error.to_string())?;
        let request = Request::put(format!("/v1/users/{user}/grants/{PROVIDER}"))
            .header("content-type", "application/json");
        let response = ask(&self.shared, request, body).await?;
        if response.status.is_success() {
            Ok(())
        } else {
            Err(refusal(&response))
        }
    }

    /// Reads a token as the demo's app, and lets the server say whether it is active.
    pub async fn read(&self, user: &str, min_ttl: Duration) -> Read {
        let min_ttl = min_ttl.as_secs();
        let path = format!("/v1/users/{user}/grants/{PROVIDER}/token?min_ttl={min_ttl}&wait=10");
        let response = match ask(&self.shared, Request::get(path), Vec::new()).await {
            Ok(response) => response,
            Err(why) => return Read::Failed(why),
        };
        if response.status != StatusCode::OK {
            return match serde_json::from_slice(&response.body) {
                Ok(problem) => Read::Refused(problem),
                Err(_) => Read::Failed(refusal(&response)),
            };
        }
        let answer: TokenAnswer = match parse(&response) {
            Ok(answer) => answer,
            Err(why) => return Read::Failed(why),
        };
        let active = self.is_active(&answer.access_token).await;
        // Asked after the introspection, so that a revocation between the two explains it.
        let revoked = self.server.is_revoked(user);
        // Read and check are counted together: the story may end at any await.
        self.seen().reads += 1;
        match active {
            Ok(true) => self.seen().checked_active += 1,
            Ok(false) if revoked => self.seen().served_after_revocation += 1,
            Ok(false) => {
                self.seen().checked_inactive += 1;
                self.say(
                    user,
                    Mood::Bad,
                    "got a token that the server calls not active",
                );
            }
            Err(why) => self.surprise(user, &format!("the server could not check a token: {why}")),
        }
        Read::Token(answer)
    }

    /// Lists the grants as the admin sees them.
    ///
    /// # Errors
    ///
    /// In words.
    pub async fn grants(&self) -> Result<Vec<GrantView>, String> {
        let request = Request::get(format!("/v1/grants?provider={PROVIDER}"));
        let response = ask(&self.admin, request, Vec::new()).await?;
        if response.status != StatusCode::OK {
            return Err(refusal(&response));
        }
        parse::<GrantList>(&response).map(|list| list.grants)
    }

    /// Asks the server whether a token works, as an API would (RFC 7662).
    async fn is_active(&self, token: &str) -> Result<bool, String> {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token)
            .finish();
        let pair = STANDARD.encode(format!("{API_CLIENT_ID}:{}", self.api_secret.expose()));
        let request = Request::post("/introspect")
            .header("authorization", format!("Basic {pair}"))
            .header("content-type", "application/x-www-form-urlencoded");
        let to = Address::Loopback(self.server.address());
        let response = ask(&to, request, body.into_bytes()).await?;
        let answer: serde_json::Value = parse(&response)?;
        answer["active"]
            .as_bool()
            .ok_or_else(|| format!("HTTP {}", response.status.as_u16()))
    }

    /// Gives `user` a grant at the server, for the daemon's client.
    pub fn log_in(&self, user: &str) -> Issued {
        self.server.grant(user, CLIENT_ID, "read")
    }
}

async fn ask(to: &Address, request: Builder, body: Vec<u8>) -> Result<Response, String> {
    let request = request
        .header("host", "localhost")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    client::send(to, request).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        format!("{error}{}", cause.unwrap_or_default())
    })
}

/// Reads JSON; what does not parse is never shown, since it may hold a token.
fn parse<T: DeserializeOwned>(response: &Response) -> Result<T, String> {
    serde_json::from_slice(&response.body).map_err(|_| {
        format!(
            "HTTP {} with a body of another shape",
            response.status.as_u16()
        )
    })
}

fn refusal(response: &Response) -> String {
    match serde_json::from_slice::<Problem>(&response.body) {
        Ok(problem) => format!(
            "HTTP {}: {}: {}",
            problem.status, problem.kind, problem.detail
        ),
        Err(_) => format!("HTTP {}", response.status.as_u16()),
    }
}
