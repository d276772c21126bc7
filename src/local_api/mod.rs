//! The local API: HTTP/1.1 and JSON over Unix sockets.
//!
//! | module | does |
//! |---|---|
//! | [`types`] | the shapes on the wire, shared with `freshctl` |
//! | [`keeper`] | what the routes ask of the daemon |
//! | [`problem`] | every error answer, with its stable type |
//! | [`peer`] | who is at the other end, as the kernel says |
//! | [`rules`] | what that peer may do (I7) |
//! | [`listen`] | sockets bound without a moment open to all, or taken over from systemd |
//! | `accept` | connections, as they come |
//! | [`server`] | connections, and whether there is room for them |
//! | `shortcut` | reads of a token that are answered before hyper sees them |
//! | `caller` | one connection's requests |
//! | `call` | one request's circumstances, and what its rule allows |
//! | `request` | paths, queries and bodies, read strictly |
//! | `routes` | all other routes |
//! | `unread` | what is left of a request's body when it is answered |
//! | `token_body` | the token route's answer, written fast |
//! | `events` | the stream of events |
//! | [`limits`] | how much of what a peer may send or keep us waiting for |
//! | [`quotas`] | how much of freshd an app gets |

use std::sync::{Mutex, MutexGuard, PoisonError};

mod accept;
mod call;
mod caller;
pub mod condition;
mod events;
pub mod export;
pub mod keeper;
pub mod limits;
pub mod listen;
pub mod peer;
pub mod problem;
pub mod quotas;
mod request;
mod routes;
pub mod rules;
pub mod server;
mod shortcut;
#[cfg(test)]
mod tests;
mod token_body;
pub mod types;
mod unread;

#[doc(hidden)]
pub use request::read_token_request;

/// Locks what stays whole whatever panicked while holding it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
