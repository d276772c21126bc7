//! What status tells beyond states and counts: disk, schedule, copies, and work that is under way.

use serde::{Deserialize, Serialize};

use super::types::RenewalView;

/// Part of [`Status`](super::types::Status). Every member may be missing: an older daemon does not tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Token sets in the spill file, which survive a stop; absent while one is being written there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spilled: Option<usize>,
    /// Free bytes on the file system of the state directory, where it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Providers whose refreshes leave later than they are due.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub late: Vec<LateView>,
    /// Active grants whose refreshes fail, by provider and code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<FailingView>,
    /// Renewals that are not done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub renewals: Vec<RenewalView>,
    /// Refresh tokens whose end is near.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ending: Vec<EndingView>,
    /// The nightly copies; absent where none are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<CopiesView>,
}

/// A provider whose schedule is behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateView {
    /// The provider.
    pub provider: String,
    /// Since when its first refresh that has not begun is due (RFC 3339).
    pub due_at: String,
}

/// Active grants of a provider whose last refresh failed with one code, and that have no access token that lives or
/// failed three times or more in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingView {
    /// The provider.
    pub provider: String,
    /// The code of their last failure, ours: `http-503`, `dns`.
    pub code: String,
    /// How many.
    pub grants: u64,
    /// How many of these have no access token that lives: it ended, or none was ever obtained.
    pub without_token: u64,
    /// When the first of their access tokens ended or ends; where none was ever obtained, when it was imported
    /// (RFC 3339). Absent where none has a known end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soonest_at: Option<String>,
    /// Since when the first of them was not refreshed (RFC 3339).
    pub since: String,
}

/// How many grants of a provider have a refresh token that is about to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndingView {
    /// The provider.
    pub provider: String,
    /// How many: those of which `refresh-token-expiring` was told.
    pub grants: u64,
    /// When the first of them ends (RFC 3339).
    pub soonest_at: String,
}

/// The nightly copies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiesView {
    /// Where they are.
    pub dir: String,
    /// Of when the newest copy there is, the night's or one that an admin made (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_at: Option<String>,
    /// Why the last try made none; absent where it did, or where none was made since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the one that is missing should have been made (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed_at: Option<String>,
}
