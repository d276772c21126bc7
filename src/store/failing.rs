//! Active grants whose refreshes fail, so that their tokens cannot be served, or soon can't.

use rusqlite::params;

use super::rows::{count, maybe_time, time};
use super::{Store, StoreError};
use crate::refresh::time::UnixTime;

/// Which grants fail, at the moment that is bound to this parameter.
macro_rules! fail {
    ($now:literal) => {
        concat!(
            "standing = 'active' AND failures > 0
             AND (failures >= 3 OR access_token IS NULL OR expires_at <= ",
            $now,
            ")"
        )
    };
}

/// What a list of grants is narrowed by; the index `grants_failing` has these rows, and a few more.
pub(super) const AMONG: &str = concat!(
    " AND g.id IN (SELECT id FROM grants INDEXED BY grants_failing WHERE ",
    fail!("?"),
    ")"
);

pub(super) const COUNTED: &str = concat!(
    "SELECT provider, coalesce(last_failure, ''), count(*),
        coalesce(sum(access_token IS NULL OR expires_at <= ?1), 0),
        min(CASE WHEN access_token IS NULL THEN imported_at ELSE expires_at END),
        min(coalesce(refreshed_at, imported_at))
    FROM grants INDEXED BY grants_failing WHERE ",
    fail!("?1"),
    " GROUP BY provider, last_failure ORDER BY provider, last_failure"
);

/// How many grants of a provider fail with one code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// The provider.
    pub provider: String,
    /// The code of their last failure, ours: `http-503`, `dns`.
    pub code: String,
    /// How many.
    pub grants: u64,
    /// How many of these have no access token that lives.
    pub without_token: u64,
    /// When the first of their access tokens ended or ends, or was to be obtained; `None` where none has a known end.
    pub soonest_at: Option<UnixTime>,
    /// Since when the first of them was not refreshed.
    pub since: UnixTime,
}

impl Store {
    /// Counts, by provider and code, the active grants whose last refresh failed while they have no access token that
    /// lives, or whose last three failed or more. Reads the rows of those that fail only.
    pub async fn failing_grants(&self, now: UnixTime) -> Result<Vec<Failing>, StoreError> {
        self.read(move |session| {
            session.all(COUNTED, params![now.as_millis()], |row| {
                Ok(Failing {
                    provider: row.get(0)?,
                    code: row.get(1)?,
                    grants: count(row, 2)?,
                    without_token: count(row, 3)?,
                    soonest_at: maybe_time(row, 4)?,
                    since: time(row, 5)?,
                })
            })
        })
        .await
    }
}
