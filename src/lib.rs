//! freshd keeps OAuth 2.0 tokens fresh.
//!
//! One daemon on a host holds every user's grants in an encrypted SQLite table, refreshes each access
//! token a margin before it expires, rests while a user is away, makes one refresh where many ask at once, and
//! hands access tokens to local apps over a Unix socket. Apps never see a refresh token or a client secret.
//! This header is the architecture document; `README.md` is for those who run freshd.
//!
//! # The one idea
//!
//! Decisions are pure, effects are thin. [`refresh`] is told the time, random numbers and what the network
//! answered, and says what to do next; [`daemon`] does it and reports back. So everything subtle replays in a test.
//!
//! ```text
//!   apps, admins                                        authorization servers
//!        │ HTTP over Unix sockets                               ▲ HTTPS
//!   ┌────▼─────┐   ┌──────────────── daemon ───────────┐  ┌─────┴──────────┐
//!   │local_api │──▶│ keeper ─ demand ─▶ driver ─▶ attempt ─▶│ token_endpoint │
//!   └──────────┘   │   │                 ▲ │        │   │  └────────────────┘
//!                  └───┼─────────────────┼─┼────────┼───┘
//!                      │         decides │ │        │ mark, commit
//!                      │            ┌────┴─▼──┐  ┌──▼───────────────┐
//!                      └─ reads ─┐  │ refresh │  │ store: SQLite,   │
//!                                └─▶│ (pure)  │  │ sealed, one      │
//!                                   └─────────┘  │ writer thread    │
//!                                                └──────────────────┘
//! ```
//!
//! # Words
//!
//! RFC 6749's, unchanged: access token, refresh token, token endpoint, authorization server, client identifier, scope, grant.
//! Ours: a *provider* is a configured authorization server with our registration at it, a *profile* what freshd ships
//! about a well-known one. A *user* is an app's opaque name for a resource owner, in a *namespace*, with an *account*
//! where one user has several at one provider; these four name a *grant*. Its *generation* counts its committed token sets.
//! The *margin* is how long before expiry a refresh is due. An *attempt* is one refresh of one grant, from its *mark* (a
//! durable note that a refresh token is about to leave) to its outcome. A grant's *slot* is its one place for
//! whatever changes its tokens. Its *standing* is what people and providers decided about it: active, paused, needs authorization.
//!
//! # Invariants
//!
//! Code and tests cite them by name.
//!
//! - **I1** At most one attempt is in flight per grant, whoever asks: [`refresh::slots`], [`refresh::horizon`].
//! - **I2** A new token set is on disk before anyone is answered with it, or, if the disk refuses, held in memory,
//!   served, and written again until it sticks; no further refresh of that grant starts meanwhile.
//! - **I3** A grant's generation never goes back. A token set commits by compare-and-set on the generation whose refresh
//!   token was presented; a set that lost goes to the revocation queue.
//! - **I4** A valid access token is served until its real expiry, whatever became of its refresh, standing or
//!   provider: [`refresh::reading`].
//! - **I5** Only a definite answer about this grant makes it need authorization. `invalid_client` stops the
//!   provider, never the users: [`refresh::token_response`].
//! - **I6** Refresh tokens, client secrets and keys leave the seal only for the provider's own endpoints. No log, error, panic or
//!   debug print holds a secret, and the process leaves no core. One exception, by an admin's express wish: an export, encrypted
//!   to recipients that the admin names, told in the audit, and root's unless the configuration says otherwise: [`store::export`].
//! - **I7** A peer gets what the rule it matches grants, and nothing by default, uid 0 included. Any doubt about who
//!   it is denies. Admin verbs exist on the admin socket only: [`local_api::rules`].
//! - **I8** No redirects on token requests, https only (plain http to a literal loopback address only), bounded time and body.
//! - **I9** With a wrong or missing key the daemon stops with exit code 78 and has not changed one byte of the store.
//!
//! # The table is the schedule
//!
//! Each grant's row carries `due_at`, the next moment at which anything must happen to it. The index (provider, due_at,
//! id) is the only schedule, so a restart loses nothing and start-up costs the same for ten grants and ten
//! million. Each provider has a *horizon* of the rows due soon, in memory, in the order in which they can be saved; one timer
//! serves all. A calendar of one cron job per grant can't do this: of 10,000 jobs of tokio-cron-scheduler 0.15 that are due in
//! one second more than 9,000 never run (row 14 of the benchmarks), and a million of them burn a seventh of a core idle.
//!
//! # An attempt
//!
//! 1. The row is read, its slot taken, and [`refresh::attempt`] asked what it needs: a refresh, a pause because the user is
//!    away, or nothing yet.
//! 2. Where refresh tokens rotate, a mark is committed before the request leaves, if the row is still as it was read. If it
//!    is not, and for anything but such a refresh, the row is read again.
//! 3. The request runs in a task of its own: a caller who hangs up cancels nothing.
//! 4. The outcome is told apart: *token set*, *refused for good* (the grant), *refused for all* (the client), *refused for now*,
//!    *unknown* (sent, no whole answer), *not sent*.
//! 5. A token set is sealed and committed by compare-and-set; then the mark is gone, the cache is new, and every
//!    waiter is answered. An unknown fate is replayed by rotation class: [`refresh::replay`].
//!
//! # Modules
//!
//! Imports point inward: [`refresh`] imports nothing of ours; [`store`], [`token_endpoint`], [`local_api`] and [`config`] import
//! [`refresh`], not each other ([`profile`]'s types aside); [`metrics`] imports nothing of ours; [`ctl`] imports [`config`] and the API's
//! types; only [`daemon`] sees everything. [`manual`] makes the man pages. `tests/module_map.rs` keeps this true.

#![deny(clippy::unwrap_used)]

pub mod config;
pub mod ctl;
pub mod daemon;
pub mod demo;
pub mod local_api;
pub mod manual;
pub mod metrics;
pub mod profile;
pub mod refresh;
pub mod store;
pub mod token_endpoint;
