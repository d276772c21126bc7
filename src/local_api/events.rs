//! `GET /v1/events`: server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! A stream reads from the store at its reader's pace, so a slow one holds up nobody and keeps nothing in memory; one
//! that takes no byte at all is dropped by [`super::limits`]. The rule is asked again before anything is sent (I7).

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use hyper::HeaderMap;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use tokio::sync::watch;

use super::call::Call;
use super::keeper::{EventStream, Events, Keeper};
use super::limits::Limits;
use super::lock;
use super::problem;
use super::request::{self, Query};
use super::routes::Api;
use super::rules::{Rule, Verb};
use super::types::{EventView, Problem};

const LAST_EVENT_ID: &str = "last-event-id";
/// A reader whose stream has ended comes back after so many milliseconds: a restart takes about as long.
const RETRY: &str = "retry: 2000\n";
/// What a reader is told who has missed something for good.
const RESET: &str = "event: reset\n\
    data: {\"event\":\"reset\",\"detail\":\"events before the next one are missing: read the state anew\"}\n\n";

/// Returns the peer's rule by the rules of now.
pub(super) type Admission = Arc<dyn Fn() -> Result<Arc<Rule>, Problem> + Send + Sync>;

/// What a stream needs of its connection and its socket.
#[derive(Clone)]
pub(super) struct Circumstances {
    pub(super) admission: Admission,
    /// Whether it may see all namespaces.
    pub(super) admin: bool,
    pub(super) streams: Arc<Streams>,
}

/// The streams of one socket.
pub(super) struct Streams {
    open: Mutex<HashMap<String, usize>>,
    stop: watch::Sender<bool>,
    limits: Arc<Limits>,
}

impl Streams {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Streams {
            open: Mutex::default(),
            stop: watch::Sender::new(false),
            limits,
        }
    }

    /// Ends all of them, and whatever comes after.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Takes a place for an app's stream.
    fn enter(self: &Arc<Self>, app: &str) -> Result<Place, Problem> {
        let mut open = lock(&self.open);
        if open.values().sum::<usize>() >= self.limits.streams {
            return Err(problem::too_many_streams(
                "this socket",
                self.limits.streams,
            ));
        }
        let of_app = open.entry(app.to_owned()).or_default();
        if *of_app >= self.limits.streams_per_app {
            let who = format!("app {app:?}");
            return Err(problem::too_many_streams(&who, self.limits.streams_per_app));
        }
        *of_app += 1;
        Ok(Place {
            streams: Arc::clone(self),
            app: app.to_owned(),
        })
    }
}

/// One stream's place; given back when it is dropped.
struct Place {
    streams: Arc<Streams>,
    app: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.streams.open);
        if let Some(of_app) = open.get_mut(&self.app) {
            *of_app -= 1;
        }
        open.retain(|_, count| *count > 0);
    }
}

/// The route.
pub(super) async fn events<K: Keeper>(
    State(api): State<Api<K>>,
    Extension(call): Extension<Call>,
    Extension(circumstances): Extension<Circumstances>,
    request: Request,
) -> Result<Response, Problem> {
    call.may(Verb::Read)?;
    let query = Query::of(request.uri(), &["follow"])?;
    let follow = query.flag("follow")?.unwrap_or(true);
    let after = last_event_id(request.headers())?;
    let place = circumstances.streams.enter(&call.rule.app)?;
    let stream = Stream {
        events: api.keeper.events(after).await?,
        stop: circumstances.streams.stop.subscribe(),
        heartbeat: api.limits.heartbeat,
        circumstances,
        namespace: call.namespace,
        follow,
        position: None,
        ended: false,
        _place: place,
    };
    let body = Body::from_stream(stream::unfold(stream, Stream::next));
    Ok(([(CONTENT_TYPE, "text/event-stream")], body).into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<i64>() {
        Ok(id) if digits => Ok(u64::try_from(id).ok()),
        _ => Err(problem::bad_request(format!(
            "header Last-Event-ID {:?} must be the id of an event, a whole number; without it the stream begins now, with 0 at the first event that is kept",
            request::shown(&text)
        ))),
    }
}

/// One open stream.
struct Stream {
    events: EventStream,
    stop: watch::Receiver<bool>,
    heartbeat: Duration,
    circumstances: Circumstances,
    /// The namespace that was named.
    namespace: Option<String>,
    /// Whether it goes on when all that is kept was sent.
    follow: bool,
    /// The last kept event that was looked at; `None` before the first look.
    position: Option<u64>,
    ended: bool,
    _place: Place,
}

impl Stream {
    /// Returns what is to be sent next, and itself.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        let mut heartbeat = pin!(tokio::time::sleep(self.heartbeat));
        while !self.ended {
            let events = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => return None,
                () = &mut heartbeat => None,
                events = self.events.next() => Some(events?),
            };
            let rule = (self.circumstances.admission)().ok();
            let rule = rule.filter(|rule| rule.may(Verb::Read))?;
            let text = match events {
                Some(events) => self.tell(&rule, events),
                // With the position, so that who sees few of the events comes back not too far behind.
                None => format!(":\nid: {}\n\n", self.position.unwrap_or(0)),
            };
            if !text.is_empty() {
                return Some((Ok(text.into()), self));
            }
        }
        None
    }

    /// Returns these events as they are sent, as far as the rule lets the reader see them.
    fn tell(&mut self, rule: &Rule, events: Events) -> String {
        let mut text = String::new();
        if self.position.is_none() {
            text += RETRY;
            if !events.missing {
                // A block without data is no event, but says where the stream is.
                let _ = writeln!(text, "id: {}", events.from);
            }
            text += "\n";
        }
        if events.missing {
            text += RESET;
        }
        for event in &events.events {
            if self.shows(rule, event) {
                let data = serde_json::to_string(event).expect("strings and numbers are JSON");
                if let Some(id) = event.id {
                    let _ = writeln!(text, "id: {id}");
                }
                let _ = write!(text, "event: {}\ndata: {data}\n\n", event.event);
            }
        }
        self.position = Some(events.position);
        self.ended = !self.follow && events.caught_up;
        text
    }

    fn shows(&self, rule: &Rule, event: &EventView) -> bool {
        (self.circumstances.admin || event.namespace == rule.namespace)
            && (self.namespace.as_ref()).is_none_or(|named| *named == event.namespace)
            && rule.allows_provider(&event.provider)
    }
}
