//! Renewals: making what came before a moment due, and counting what is left of it.

use rusqlite::params;

use super::rows::{self, count, select_grant};
use super::session::{Session, Trouble};
use super::writer::Class;
use super::{Store, StoreError};
use crate::refresh::grant::GrantId;
use crate::refresh::time::UnixTime;

/// How many grants of a provider have token sets from before a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenewalCounts {
    /// Those that are to be renewed.
    pub left: u64,
    /// Those that are not, because people or the provider have put them to rest, or they have no refresh token.
    pub resting: u64,
    /// All grants of the provider, of whatever age.
    pub grants: u64,
}

impl Store {
    /// Makes one page of a provider's grants due whose token sets are to be renewed, but for those in a backoff.
    ///
    /// Returns where the next page begins, `None` after the last. Other writes wait for a page, so keep
    /// `limit` in the hundreds.
    pub async fn make_renewals_due(
        &self,
        provider: &str,
        before: UnixTime,
        after: Option<GrantId>,
        limit: usize,
    ) -> Result<Option<GrantId>, StoreError> {
        let provider = provider.to_owned();
        self.write(Class::Rest, move |session| {
            make_due(session, &provider, before, after, limit)
        })
        .await
    }

    /// Counts what a renewal of everything from before `before` concerns. Reads all rows of the provider.
    pub async fn renewal_counts(
        &self,
        provider: &str,
        before: UnixTime,
    ) -> Result<RenewalCounts, StoreError> {
        let provider = provider.to_owned();
        self.read(move |session| {
            // The core's `awaits_renewal`, for a million rows.
            let sql = "SELECT count(*) FILTER (WHERE old AND renewable),
                    count(*) FILTER (WHERE old AND NOT renewable), count(*)
                 FROM (SELECT
                    max(imported_at, coalesce(refreshed_at, imported_at)) < ?2 AS old,
                    refresh_token IS NOT NULL AND (standing = 'active'
                        OR (standing = 'paused' AND reason IN ('inactive', 'unused'))) AS renewable
                    FROM grants WHERE provider = ?1)";
            let counted = session.first(sql, params![provider, before.as_millis()], |row| {
                Ok(RenewalCounts {
                    left: count(row, 0)?,
                    resting: count(row, 1)?,
                    grants: count(row, 2)?,
                })
            })?;
            Ok(counted.unwrap_or_default())
        })
        .await
    }
}

fn make_due(
    session: &Session<'_>,
    provider: &str,
    before: UnixTime,
    after: Option<GrantId>,
    limit: usize,
) -> Result<Option<GrantId>, Trouble> {
    let after = after.map_or(i64::MIN, |id| id.0);
    let page = session.all(
        select_grant!("WHERE g.provider = ?1 AND g.id > ?2 ORDER BY g.id LIMIT ?3"),
        params![provider, after, limit as i64],
        rows::grant,
    )?;
    for grant in &page {
        let due_at = grant.due_with_renewal(Some(before), grant.due_at);
        let backs_off = grant.failures > 0 && grant.due_at.is_some();
        if grant.awaits_renewal(before) && due_at != grant.due_at && !backs_off {
            session.write(
                "UPDATE grants SET version = version + 1, due_at = ?2 WHERE id = ?1",
                params![grant.id.0, rows::millis(due_at)],
            )?;
        }
    }
    Ok(page
        .last()
        .filter(|_| page.len() == limit)
        .map(|grant| grant.id))
}
