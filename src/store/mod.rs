//! The store: sealed grants in SQLite, behind domain verbs. No SQL outside this folder.

use std::path::PathBuf;
use std::time::Duration;

use crate::refresh::grant::{Grant, GrantId, GrantKey, NeedsReason, Standing};
use crate::refresh::time::UnixTime;
use crate::refresh::token::{AccessToken, RefreshToken, TokenSet};

/// The open store. Cheap to clone; the last clone closes the database when dropped.
#[derive(Clone)]
pub struct Store {}

/// The 32-byte key-encryption key; zeroized on drop, redacted in `Debug`.
pub struct Kek(zeroize::Zeroizing<[u8; 32]>);

/// Why the store could not be opened. Not one byte of it has changed then (I9).
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Exit 78.
    #[error("key")]
    Key,
}

/// Why a verb failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full, read-only or failing: nothing was changed; try again later. (507)
    #[error("the store could not be written")]
    Unavailable,
    /// Something is wrong with the database itself.
    #[error("the store is damaged")]
    Damaged,
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

/// A grant with its opened access token.
pub struct Readable {
    /// The grant.
    pub grant: Grant,
    /// The access token, if there is one and it opens.
    pub access_token: Option<AccessToken>,
}

/// A grant with what an attempt needs.
pub struct Attemptable {
    /// The grant, its mark included.
    pub grant: Grant,
    /// The refresh token, if there is one and it opens.
    pub refresh_token: Option<RefreshToken>,
}

/// One row of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueRow {
    /// The grant.
    pub id: GrantId,
    /// When it is due.
    pub due_at: UnixTime,
    /// When its access token ends.
    pub expires_at: Option<UnixTime>,
    /// The row's version.
    pub version: u64,
}

/// What is to be imported.
pub struct Import {
    /// Whose grant.
    pub key: GrantKey,
    /// What the app has.
    pub tokens: TokenSet,
    /// When it is due.
    pub due_at: Option<UnixTime>,
    /// Its standing: active, or paused as held.
    pub standing: Standing,
    /// Whether a grant that is there is replaced.
    pub replace: bool,
    /// Now.
    pub at: UnixTime,
}

/// What became of an import.
pub enum Imported {
    /// A new grant.
    Created(Grant),
    /// Replaced; its generation went up by one. The replaced refresh token went to the revocation queue
    /// unless it is the same one.
    Replaced(Grant),
    /// The refresh token is already in this grant's history (or is its present one): nothing was changed.
    Unchanged(Grant),
    /// There is one already, and `replace` was not said.
    Exists(Grant),
}

/// What became of a compare-and-set.
pub enum Cas {
    /// It was applied; this is the grant now.
    Applied(Grant),
    /// The grant has another generation now, or is gone.
    Lost,
}

/// What an ended attempt writes when no token set came.
pub struct Failure {
    /// A short code, ours.
    pub code: String,
    /// When the next attempt is due.
    pub due_at: Option<UnixTime>,
    /// Failures in a row, this one included.
    pub failures: u32,
    /// Whether the request's fate stays unknown: then the mark stays.
    pub fate_unknown: bool,
    /// A change of standing, if this failure is a verdict.
    pub needs_authorization: Option<NeedsReason>,
    /// Now.
    pub at: UnixTime,
}

/// What is kept about a provider across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProviderState {
    /// Why no request leaves (`invalid_client`), if so.
    pub stopped: Option<String>,
    /// A keyed fingerprint of the client credentials that were refused.
    pub stopped_credentials: Option<Vec<u8>>,
    /// Since when it is stopped.
    pub stopped_at: Option<UnixTime>,
    /// No request leaves before this.
    pub cool_down_until: Option<UnixTime>,
    /// Whether an admin paused the provider.
    pub paused: bool,
    /// The margin, in milliseconds, that the due times in the table were computed with.
    pub margin_ms: Option<i64>,
}

/// Which grants to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only this user.
    pub user: Option<String>,
    /// Only this state: `active`, `paused`, `needs-authorization`.
    pub state: Option<String>,
    /// Only this provider.
    pub provider: Option<String>,
    /// Only grants whose scope lacks this one.
    pub missing_scope: Option<String>,
}

/// How many grants there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The provider.
    pub provider: String,
    /// The standing.
    pub standing: Standing,
    /// How many.
    pub grants: u64,
}

/// Where and with which key.
pub struct Options {
    /// The state directory.
    pub dir: PathBuf,
    /// The key-encryption key.
    pub kek: Kek,
    /// How long a writer waits for a lock another process holds.
    pub busy_timeout: Duration,
}
