//! The demo's authorization server: real HTTP on loopback, no real accounts.
//!
//! The other side of the wire: it shares no code with what refreshes tokens.
//! It has a token endpoint (RFC 6749 §6, `grant_type=refresh_token` only, since
//! logins happen in-process), revocation (RFC 7009) and introspection (RFC 7662).
//! The rules of its tokens are in [`super::families`].

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use super::families::{Families, Issued, Presented, Requests};
use crate::refresh::time::UnixTime;
use crate::refresh::token::ClientSecret;

/// No form that a client sends here is longer.
const MAX_BODY: usize = 16 * 1024;

/// Tells the moment. A function, so that tests turn the hands themselves.
pub type Clock = Arc<dyn Fn() -> UnixTime + Send + Sync>;

/// How the server is set up.
pub struct Settings {
    /// The port on 127.0.0.1; 0 lets the OS choose.
    pub port: u16,
    /// How long access tokens live.
    pub lifetime: Duration,
    /// How long an answer of the token endpoint takes, as one from across a network would.
    pub answer_after: Duration,
    /// The registered clients: identifier and secret.
    pub clients: BTreeMap<String, ClientSecret>,
}

/// Something that happened here, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A refresh token was exchanged for a new token set.
    Refreshed {
        /// Whose grant.
        user: String,
        /// How many milliseconds the previous access token still had; negative if it was over.
        before_expiry_ms: i64,
    },
    /// A refresh token of a revoked family was refused.
    Refused {
        /// Whose grant.
        user: String,
    },
    /// A used refresh token was presented again, and its family is revoked now.
    Replayed {
        /// Whose grant.
        user: String,
    },
    /// A grant or an access token was revoked, by its client or by the server's owner.
    Revoked {
        /// Whose grant.
        user: String,
    },
}

/// A running server. Stops when dropped.
pub struct AuthorizationServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    clients: BTreeMap<String, ClientSecret>,
    answer_after: Duration,
    clock: Clock,
    families: Mutex<Families>,
    events: UnboundedSender<Event>,
}

impl AuthorizationServer {
    /// Listens on loopback and serves; what happens comes out of the receiver.
    ///
    /// # Errors
    ///
    /// When the port is taken or may not be bound.
    pub async fn start(
        settings: Settings,
        clock: Clock,
    ) -> io::Result<(AuthorizationServer, UnboundedReceiver<Event>)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, settings.port)).await?;
        let address = listener.local_addr()?;
        let (events, received) = unbounded_channel();
        let shared = Arc::new(Shared {
            clients: settings.clients,
            answer_after: settings.answer_after,
            clock,
            families: Mutex::new(Families::new(settings.lifetime)),
            events,
        });
        let routes = Router::new()
            .route("/", get(label))
            .route("/token", post(token))
            .route("/revoke", post(revoke))
            .route("/introspect", post(introspect))
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            // axum's accept loop goes on after errors and ends only with this task.
            let _ = axum::serve(listener, routes).await;
        });
        Ok((
            AuthorizationServer {
                address,
                shared,
                task,
            },
            received,
        ))
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives `client_id` a grant of `user`, as a finished login would.
    pub fn grant(&self, user: &str, client_id: &str, scope: &str) -> Issued {
        let now = (self.shared.clock)();
        self.shared.families().grant(user, client_id, scope, now)
    }

    /// Revokes every grant of `user`, access tokens included. Returns how many were alive.
    pub fn revoke_user(&self, user: &str) -> usize {
        let alive = self.shared.families().revoke_user(user);
        if alive > 0 {
            self.shared.tell(Event::Revoked {
                user: user.to_owned(),
            });
        }
        alive
    }

    /// Returns whether all grants that `user` ever had are revoked.
    pub fn is_revoked(&self, user: &str) -> bool {
        self.shared.families().is_revoked(user)
    }

    /// Returns how often the token endpoint was asked about `user`.
    pub fn requests(&self, user: &str) -> Requests {
        self.shared.families().requests(user)
    }

    /// Returns how often the token endpoint was asked about anybody.
    pub fn all_requests(&self) -> Requests {
        self.shared.families().all_requests()
    }
}

impl Drop for AuthorizationServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn families(&self) -> MutexGuard<'_, Families> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        // Nobody has to listen.
        let _ = self.events.send(event);
    }

    /// Finds the client that sent a form, by HTTP Basic or by the body (RFC 6749 §2.3.1).
    fn authenticate(&self, headers: &HeaderMap, form: &Form) -> Result<String, Refusal> {
        let basic = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        let (id, secret) = match (basic, form.get("client_secret")) {
            (Some(_), Some(_)) => {
                return Err(Refusal::request(
                    "more than one way of client authentication",
                ));
            }
            (Some(value), None) => basic_credentials(value).ok_or_else(|| Refusal::client(true))?,
            (None, Some(secret)) => (
                form.get("client_id").unwrap_or_default().to_owned(),
                secret.to_owned(),
            ),
            (None, None) => return Err(Refusal::client(false)),
        };
        let right = self.clients.get(&id).is_some_and(|registered| {
            registered
                .expose()
                .as_bytes()
                .ct_eq(secret.as_bytes())
                .into()
        });
        if right {
            Ok(id)
        } else {
            Err(Refusal::client(basic.is_some()))
        }
    }
}

/// Reads HTTP Basic, both halves form-encoded (RFC 6749 §2.3.1).
fn basic_credentials(header: &[u8]) -> Option<(String, String)> {
    let header = std::str::from_utf8(header).ok()?;
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = pair.split_once(':')?;
    Some((form_decode(id), form_decode(secret)))
}

fn form_decode(half: &str) -> String {
    let spaced = half.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .decode_utf8_lossy()
        .into_owned()
}

/// The parameters of a request, each at most once (RFC 6749 §3.2).
struct Form(BTreeMap<String, String>);

impl Form {
    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Form, Refusal> {
        let kind = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim();
        if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Err(Refusal::request(
                "the body must be application/x-www-form-urlencoded",
            ));
        }
        let mut form = BTreeMap::new();
        for (name, value) in url::form_urlencoded::parse(body) {
            // A parameter without a value counts as left out (RFC 6749 §3.2).
            if value.is_empty() {
                continue;
            }
            if form.insert(name.into_owned(), value.into_owned()).is_some() {
                return Err(Refusal::request("a parameter is there twice"));
            }
        }
        Ok(Form(form))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn need(&self, name: &str) -> Result<&str, Refusal> {
        self.get(name)
            .ok_or_else(|| Refusal::request(format!("the parameter {name} is missing")))
    }
}

/// An error answer (RFC 6749 §5.2).
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    error: &'static str,
    description: String,
    challenge: bool,
}

impl Refusal {
    fn request(description: impl Into<String>) -> Self {
        Refusal {
            status: StatusCode::BAD_REQUEST,
            error: "invalid_request",
            description: description.into(),
            challenge: false,
        }
    }

    fn grant(description: &str) -> Self {
        Refusal {
            error: "invalid_grant",
            ..Refusal::request(description)
        }
    }

    fn client(challenge: bool) -> Self {
        Refusal {
            status: StatusCode::UNAUTHORIZED,
            error: "invalid_client",
            challenge,
            ..Refusal::request("no such client, or not its secret")
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.error, "error_description": self.description });
        let mut response = answer(self.status, &body);
        if self.challenge {
            response.headers_mut().insert(
                WWW_AUTHENTICATE,
                axum::http::HeaderValue::from_static("Basic realm=\"freshd demo\""),
            );
        }
        response
    }
}

fn answer(status: StatusCode, body: &serde_json::Value) -> Response {
    let headers = [
        (CACHE_CONTROL, "no-store"),
        (CONTENT_TYPE, "application/json"),
    ];
    (status, headers, body.to_string()).into_response()
}

async fn label() -> &'static str {
    "This is the authorization server of freshd's demo.\n\
     It holds no real accounts, its tokens open nothing, and it is gone when the demo ends.\n"
}

async fn token(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let form = Form::read(&headers, &body)?;
    let client = shared.authenticate(&headers, &form)?;
    if form.need("grant_type")? != "refresh_token" {
        return Err(Refusal {
            error: "unsupported_grant_type",
            ..Refusal::request("only refresh_token is supported")
        });
    }
    let refresh_token = form.need("refresh_token")?;
    tokio::time::sleep(shared.answer_after).await;
    let presented = shared
        .families()
        .present(refresh_token, &client, (shared.clock)());
    match presented {
        Presented::Rotated {
            user,
            before_expiry_ms,
            issued,
        } => {
            shared.tell(Event::Refreshed {
                user,
                before_expiry_ms,
            });
            Ok(answer(
                StatusCode::OK,
                &json!({
                    "access_token": issued.access_token.expose(),
                    "token_type": "Bearer",
                    "expires_in": issued.expires_in.as_secs(),
                    "refresh_token": issued.refresh_token.expose(),
                    "scope": issued.scope,
                }),
            ))
        }
        Presented::Replayed { user } => {
            shared.tell(Event::Replayed { user });
            Err(Refusal::grant(
                "this refresh token was used before: its family is revoked",
            ))
        }
        Presented::Revoked { user } => {
            shared.tell(Event::Refused { user });
            Err(Refusal::grant("this grant was revoked"))
        }
        Presented::Unknown => Err(Refusal::grant("no such refresh token")),
    }
}

/// RFC 7009 §2.2: 200 for unknown tokens too.
async fn revoke(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let form = Form::read(&headers, &body)?;
    let client = shared.authenticate(&headers, &form)?;
    let revoked = shared.families().revoke(form.need("token")?, &client);
    if let Some(user) = revoked {
        shared.tell(Event::Revoked { user });
    }
    Ok(StatusCode::OK)
}

async fn introspect(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let form = Form::read(&headers, &body)?;
    shared.authenticate(&headers, &form)?;
    let active = shared
        .families()
        .introspect(form.need("token")?, (shared.clock)());
    Ok(answer(
        StatusCode::OK,
        &active.map_or_else(
            || json!({ "active": false }),
            |active| {
                json!({
                    "active": true,
                    "sub": active.user,
                    "client_id": active.client_id,
                    "scope": active.scope,
                    "token_type": "Bearer",
                    "exp": active.expires_at.as_millis() / 1000,
                })
            },
        ),
    ))
}

#[cfg(test)]
mod tests;
