//! What the routes ask of the daemon.
//!
//! The routes know HTTP, peers and rules; the daemon knows grants. This trait is
//! the line between them, on this side of it because imports point inward.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;

use super::export::{ExportRequest, ExportStream};
use super::types::{
    AuditList, BackupAnswer, BackupRequest, Changed, EventView, GrantList, GrantView, History,
    ImportAnswer, ImportRequest, KeysView, Problem, ProviderList, RenewalView, Status, UserView,
};
use crate::refresh::grant::{AccessFacts, Grant, GrantKey};
use crate::refresh::reading::{Readable, Words};
use crate::refresh::time::UnixTime;
use crate::refresh::token::AccessToken;

/// A request for an access token.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// Whose, and where.
    pub key: GrantKey,
    /// A token with less than this left is refreshed first.
    pub min_ttl: Duration,
    /// How long the caller waits for that.
    pub wait: Duration,
    /// Whether this read keeps the user awake.
    pub counts_as_activity: bool,
}

/// An access token to answer with, shared with whatever else has it in memory.
#[derive(Clone, Debug)]
pub struct Token {
    readable: Arc<Readable>,
    /// The moment it was read at, from which `expires_in` counts.
    pub now: UnixTime,
}

impl Token {
    /// Takes what was read of a grant at `now`, if there is an access token in it.
    pub fn of(readable: Arc<Readable>, now: UnixTime) -> Option<Token> {
        let is_whole = readable.access_token.is_some() && readable.grant.access.is_some();
        is_whole.then_some(Token { readable, now })
    }

    /// Returns the grant that it is of.
    pub fn grant(&self) -> &Grant {
        &self.readable.grant
    }

    /// Returns what all answers with it have in common; `write` writes that once.
    pub fn words(&self, write: impl FnOnce() -> Words) -> &Words {
        self.readable.words.get_or_init(write)
    }

    /// Returns the token itself, and what is known of it.
    pub fn access(&self) -> (&AccessToken, &AccessFacts) {
        let token = self.readable.access_token.as_ref();
        let pair = token.zip(self.readable.grant.access.as_ref());
        pair.expect("it was there when this was made")
    }
}

/// What is to be paused or resumed.
#[derive(Clone, Debug)]
pub enum Target {
    /// One grant.
    Grant(GrantKey),
    /// Every grant of a user.
    User {
        /// The namespace.
        namespace: String,
        /// The user.
        user: String,
    },
    /// A provider, for all its grants at once.
    Provider(String),
}

/// Something that an audit has to tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Audited {
    /// What: one of the constants here.
    pub action: &'static str,
    /// Who: `uid 1000`.
    pub by: String,
    /// Whose tokens it was about: namespace and user.
    pub user: Option<(String, String)>,
    /// The rest, in words. No name of a user.
    pub detail: String,
}

impl Audited {
    /// An admin read an access token.
    pub const READ: &'static str = "read";
    /// A peer was refused, because no rule admits it.
    pub const REFUSED: &'static str = "refused";
    /// An app has read the tokens of more users in an hour than is usual, or allowed.
    pub const MANY_USERS: &'static str = "many-users";
    /// A reload or a start changed rules or providers.
    pub const RULES_CHANGED: &'static str = "rules-changed";
    /// An admin made a copy of the store.
    pub const BACKED_UP: &'static str = "backed-up";
    /// An admin began a rotation of the data key.
    pub const KEY_ROTATION: &'static str = "key-rotation";
    /// An admin listed all grants, or exported them with their secrets.
    pub const EXPORTED: &'static str = "exported";
    /// An admin asked that every token set of a provider be replaced.
    pub const RENEWED: &'static str = "renewed";
}

/// Which audit notes to list.
#[derive(Clone, Debug, Default)]
pub struct AuditRequest {
    /// Only this action.
    pub action: Option<String>,
    /// Only about this user of `namespace`.
    pub user: Option<String>,
    /// The namespace of `user`.
    pub namespace: String,
    /// Where the last page ended.
    pub cursor: Option<String>,
    /// At most this many.
    pub limit: usize,
}

/// Which grants to list.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only this user.
    pub user: Option<String>,
    /// Only `active`, `paused` or `needs-authorization`.
    pub state: Option<String>,
    /// Only this reason of a state.
    pub reason: Option<String>,
    /// Only grants whose refresh token is about to end.
    pub ending: bool,
    /// Only grants that are active and whose refreshes fail; see [`FailingView`](super::condition::FailingView).
    pub failing: bool,
    /// Only this provider.
    pub provider: Option<String>,
    /// Only grants whose scope lacks this one.
    pub missing_scope: Option<String>,
    /// Where the last page ended.
    pub cursor: Option<String>,
    /// At most this many; the route clamps it to 1..=1000.
    pub limit: usize,
}

/// What a stream of events brings at once.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// Whether events before these are missing for good.
    pub missing: bool,
    /// The position before them.
    pub from: u64,
    /// In the order in which they happened.
    pub events: Vec<EventView>,
    /// The position after them: the number of the last kept event that was looked at.
    pub position: u64,
    /// Whether these are all that is kept.
    pub caught_up: bool,
}

/// Events as they come. The first item comes at once; the stream ends where the store can't be read any more.
pub type EventStream = Pin<Box<dyn Stream<Item = Events> + Send>>;

/// The daemon, as the routes see it. Every error is a ready [`Problem`].
///
/// The callers were authorized by the routes; nothing here checks a peer again.
pub trait Keeper: Send + Sync + 'static {
    /// Answers with a token that is in memory, if that is all there is to do; else [`Keeper::token`] is to be asked.
    fn token_in_memory(&self, request: &TokenRequest) -> Option<Token>;
    /// Reads a token, refreshing first where [`crate::refresh::reading`] says so.
    fn token(&self, request: &TokenRequest) -> impl Future<Output = Result<Token, Problem>> + Send;
    /// "The API refused `generation`": refreshes if it is the current one, else answers the current token.
    /// `generation: None` means whatever is current. `request.min_ttl` is ignored.
    fn refresh(
        &self,
        request: &TokenRequest,
        generation: Option<u64>,
    ) -> impl Future<Output = Result<Token, Problem>> + Send;
    /// Imports what an app already has.
    fn import(
        &self,
        key: GrantKey,
        tokens: ImportRequest,
        replace: bool,
        hold: bool,
    ) -> impl Future<Output = Result<ImportAnswer, Problem>> + Send;
    /// One grant's state.
    fn grant(&self, key: GrantKey) -> impl Future<Output = Result<GrantView, Problem>> + Send;
    /// What happened to one grant.
    fn history(&self, key: GrantKey) -> impl Future<Output = Result<History, Problem>> + Send;
    /// A user's state. A user without grants is 404.
    fn user(
        &self,
        namespace: String,
        user: String,
    ) -> impl Future<Output = Result<UserView, Problem>> + Send;
    /// Deletes a grant and revokes it at its provider. `by`, here and below, is who asked, for the log.
    fn delete(
        &self,
        key: GrantKey,
        by: String,
    ) -> impl Future<Output = Result<Changed, Problem>> + Send;
    /// Deletes all grants of a user at the `providers` given (`None`: all).
    fn delete_user(
        &self,
        namespace: String,
        user: String,
        providers: Option<Vec<String>>,
        by: String,
    ) -> impl Future<Output = Result<Changed, Problem>> + Send;
    /// The user is back: resumes, and refreshes what is stale.
    fn activity(
        &self,
        namespace: String,
        user: String,
    ) -> impl Future<Output = Result<UserView, Problem>> + Send;
    /// Pauses by an admin's will.
    fn pause(
        &self,
        target: Target,
        by: String,
    ) -> impl Future<Output = Result<Changed, Problem>> + Send;
    /// Resumes what is paused, held imports and stopped providers included. With `release` also a grant that came back
    /// with a restored copy, which has to be released by name.
    fn resume(
        &self,
        target: Target,
        release: bool,
        by: String,
    ) -> impl Future<Output = Result<Changed, Problem>> + Send;
    /// Lists grants.
    fn list(&self, request: ListRequest)
    -> impl Future<Output = Result<GrantList, Problem>> + Send;
    /// How the daemon fares.
    fn status(&self) -> impl Future<Output = Result<Status, Problem>> + Send;
    /// The providers.
    fn providers(&self) -> impl Future<Output = Result<ProviderList, Problem>> + Send;
    /// Follows what happens to all grants, from after the event numbered `after`, or from now on.
    fn events(
        &self,
        after: Option<u64>,
    ) -> impl Future<Output = Result<EventStream, Problem>> + Send;
    /// Copies the store to a new file; a final copy ends this store's refreshing for good.
    fn backup(
        &self,
        request: BackupRequest,
    ) -> impl Future<Output = Result<BackupAnswer, Problem>> + Send;
    /// Begins an export with secrets for the peer with this uid, and tells the audit how it ends.
    fn export(
        &self,
        request: ExportRequest,
        namespace: Option<String>,
        uid: Option<u32>,
    ) -> impl Future<Output = Result<ExportStream, Problem>> + Send;
    /// Begins a rotation of the data key.
    fn rotate_key(&self) -> impl Future<Output = Result<KeysView, Problem>> + Send;
    /// Tells the audit. Does not wait for it to be kept.
    fn audit(&self, what: Audited);
    /// Lists audit notes, the newest first.
    fn audited(
        &self,
        request: AuditRequest,
    ) -> impl Future<Output = Result<AuditList, Problem>> + Send;
    /// Every metric, as Prometheus reads it ([`crate::metrics`]).
    fn metrics(&self) -> impl Future<Output = String> + Send;
    /// Makes every grant of a provider due whose tokens came before now.
    fn renew(&self, provider: String) -> impl Future<Output = Result<RenewalView, Problem>> + Send;
    /// How far that is; with `dry_run`, what asking for it now would concern.
    fn renewal(
        &self,
        provider: String,
        dry_run: bool,
    ) -> impl Future<Output = Result<RenewalView, Problem>> + Send;
    /// Whether the daemon is alive: scheduler and writer both make progress.
    fn healthy(&self) -> impl Future<Output = Result<(), Problem>> + Send;
}
