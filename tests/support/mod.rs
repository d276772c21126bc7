//! What the tests of promises share: a scripted server, the real binaries, a real server.

#![allow(dead_code, unused_imports, reason = "no test file uses all of it")]

pub mod canary;
pub mod config;
pub mod cutting_proxy;
pub mod daemon;
pub mod django_server;
pub mod fake_clock;
pub mod faulty_server;
pub mod flood;
pub mod http;
pub mod listener;
pub mod node_server;
pub mod peers;
pub mod rotating;
pub mod scripted_server;
pub mod store;
pub mod strace;

use std::future::Future;
use std::time::{Duration, Instant};

pub use config::Config;
pub use daemon::Freshd;
pub use http::{Connection, Reply};
pub use listener::{Heard, Listener};
pub use rotating::{Issued, Rotating};
pub use scripted_server::{Answer, Gate, RecordedRequest, ScriptedServer};

/// No single wait in a test takes longer than this, however slow the machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How often a state without an event of its own is looked at.
pub const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Waits for `future`, and panics with `what` when [`DEADLINE`] passes first.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} in vain for {what}"),
    }
}

/// Asks `look` again and again until it says something.
pub async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    within(what, async {
        loop {
            if let Some(value) = look().await {
                return value;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })
    .await
}

/// Reads the monotonic clock, to tell which of two things came first and by how much.
#[expect(
    clippy::disallowed_methods,
    reason = "a test may look at the clock; the code it tests may not"
)]
pub fn instant() -> Instant {
    Instant::now()
}

/// Returns whole seconds since the epoch, as `expires_at` and `obtained_at` of an import take them.
pub fn unix_now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Reads an RFC 3339 moment of an answer, in seconds since the epoch.
pub fn seconds(moment: &serde_json::Value) -> f64 {
    let text = moment
        .as_str()
        .unwrap_or_else(|| panic!("not a moment: {moment}"));
    let at: jiff::Timestamp = text
        .parse()
        .unwrap_or_else(|e| panic!("not RFC 3339: {text}: {e}"));
    at.as_millisecond() as f64 / 1000.0
}

/// A daemon with the provider `acme`, which `section` says more about, and its server, which rotates.
pub async fn at_rotating_server(section: &str) -> (Freshd, Rotating, ScriptedServer) {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let freshd = Freshd::start(Config::new().provider("acme", &server, section)).await;
    (freshd, rotating, server)
}
