//! Grants whose refresh token is about to end.

use rusqlite::params;

use super::rows::{count, time};
use super::{Store, StoreError};
use crate::refresh::time::UnixTime;

/// What a list of grants is narrowed by; the index `grants_ending` has these rows.
pub(super) const ANNOUNCED: &str = " AND g.refresh_token_warn_at IS NULL
    AND g.standing <> 'needs-authorization' AND g.refresh_token_expires_at > ?";

pub(super) const COUNTED: &str =
    "SELECT provider, count(*), min(refresh_token_expires_at) FROM grants
    WHERE refresh_token_warn_at IS NULL AND refresh_token_expires_at > ?1
        AND standing <> 'needs-authorization' GROUP BY provider ORDER BY provider";

/// How many grants of a provider have a refresh token that is about to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The provider.
    pub provider: String,
    /// How many.
    pub grants: u64,
    /// When the first of them ends.
    pub soonest_at: UnixTime,
}

impl Store {
    /// Counts, by provider, the grants of which [`refresh-token-expiring`](super::EventKind) was told and whose refresh
    /// token has not ended. Those that need authorization anyway are left out. Reads these rows only.
    pub async fn ending_refresh_tokens(&self, now: UnixTime) -> Result<Vec<Ending>, StoreError> {
        self.read(move |session| {
            session.all(COUNTED, params![now.as_millis()], |row| {
                Ok(Ending {
                    provider: row.get(0)?,
                    grants: count(row, 1)?,
                    soonest_at: time(row, 2)?,
                })
            })
        })
        .await
    }
}
