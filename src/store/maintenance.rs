//! Counters, and the calendar work: purging what is old, renewing the planner's statistics.

use rusqlite::params;

use super::history;
use super::rows::count;
use super::session::{Session, Trouble};
use super::writer::Class;
use super::{Store, StoreError};
use crate::refresh::grant::{PauseReason, Standing};
use crate::refresh::time::UnixTime;

/// So many rows are purged in one transaction; other writes go in between.
const PURGE_PAGE: usize = 500;
/// The stories of so many grants are looked through in one transaction: at most 16,000 short rows.
const HISTORY_PAGE: i64 = 250;

/// How many grants of a provider have a standing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The provider.
    pub provider: String,
    /// The standing.
    pub standing: Standing,
    /// How many; never zero.
    pub grants: u64,
}

/// How much a purge removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Activity notes of users who have no grant.
    pub activity: u64,
    /// Revocations that no provider answered.
    pub revocations: u64,
    /// Entries of grants' stories.
    pub history: u64,
}

impl Store {
    /// Returns how many grants there are by provider and standing. Costs the same however many there are.
    pub async fn counts(&self) -> Result<Vec<Count>, StoreError> {
        self.read(|session| {
            let sql = "SELECT provider, standing, reason, grants FROM counters
                 WHERE grants > 0 ORDER BY provider, standing, reason";
            session.all(sql, [], |row| {
                let (standing, reason): (String, String) = (row.get(1)?, row.get(2)?);
                Ok(Count {
                    provider: row.get(0)?,
                    standing: Standing::from_names(&standing, &reason)
                        .unwrap_or(Standing::Paused(PauseReason::Quarantined)),
                    grants: count(row, 3)?,
                })
            })
        })
        .await
    }

    /// Removes activity notes from before `before` of users without a grant, and revocations queued
    /// before `revocations_before`: they have waited long enough. Of grants' stories, what ended before
    /// `history_before`, but for what led to a standing that still needs a person.
    pub async fn purge(
        &self,
        before: UnixTime,
        revocations_before: UnixTime,
        history_before: UnixTime,
    ) -> Result<Purged, StoreError> {
        let mut purged = Purged::default();
        loop {
            let page = self
                .write(Class::Rest, move |session| {
                    purge(session, before, revocations_before)
                })
                .await?;
            if page == Purged::default() {
                break;
            }
            purged.activity += page.activity;
            purged.revocations += page.revocations;
        }
        purged.history = self.purge_history(history_before).await?;
        Ok(purged)
    }

    async fn purge_history(&self, before: UnixTime) -> Result<u64, StoreError> {
        let (mut from, mut purged) = (0, 0);
        loop {
            let sql = "SELECT grant_id FROM history WHERE grant_id >= ?1 ORDER BY grant_id LIMIT 1";
            let next = self.read(move |session| session.first(sql, [from], |row| row.get(0)));
            let Some(first) = next.await? else {
                return Ok(purged);
            };
            let until = i64::saturating_add(first, HISTORY_PAGE);
            let page = self.write(Class::Rest, move |session| {
                history::purge(session, first, until, before)
            });
            purged += page.await? as u64;
            from = until;
        }
    }

    /// Renews the query planner's statistics where they are stale.
    pub async fn optimize(&self) -> Result<(), StoreError> {
        self.write(Class::Rest, |session| {
            // The limit keeps an analysis of a million rows to milliseconds.
            session
                .conn
                .execute_batch("PRAGMA analysis_limit = 400; PRAGMA optimize")?;
            Ok(())
        })
        .await
    }
}

fn purge(
    session: &Session<'_>,
    before: UnixTime,
    revocations_before: UnixTime,
) -> Result<Purged, Trouble> {
    let activity = session.write(
        "DELETE FROM activity WHERE (namespace, user) IN (
            SELECT namespace, user FROM activity a WHERE last_active_at < ?1
                AND NOT EXISTS (SELECT 1 FROM grants g
                    WHERE g.namespace = a.namespace AND g.user = a.user)
            LIMIT ?2)",
        params![before.as_millis(), PURGE_PAGE as i64],
    )?;
    let revocations = session.write(
        "DELETE FROM revocations WHERE id IN (
            SELECT id FROM revocations WHERE created_at < ?1 LIMIT ?2)",
        params![revocations_before.as_millis(), PURGE_PAGE as i64],
    )?;
    Ok(Purged {
        activity: activity as u64,
        revocations: revocations as u64,
        history: 0,
    })
}
