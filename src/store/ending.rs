//! Grants whose refresh token is about to end.

use rusqlite::params;

use super::rows::{count, time};
use super::{Store, StoreError};
use crate::refresh::time::UnixTime;

/// Whose end was announced and comes after the moment that is bound to this parameter.
macro_rules! announced {
    ($now:literal) => {
        concat!(
            "g.refresh_token_warn_at IS NULL AND g.standing <> 'needs-authorization'
             AND g.refresh_token_expires_at > ",
            $now
        )
    };
}

/// What a list of grants is narrowed by; the index `grants_ending` has these rows.
pub(super) const ANNOUNCED: &str = concat!(" AND ", announced!("?"));

pub(super) const COUNTED: &str = concat!(
    "SELECT g.provider, count(*), min(g.refresh_token_expires_at) FROM grants g WHERE ",
    announced!("?1"),
    " GROUP BY g.provider ORDER BY g.provider"
);

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
