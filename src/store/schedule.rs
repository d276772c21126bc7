//! The due index, which is the schedule; and lists of grants.

use rusqlite::params;

use super::grants::load;
use super::rows::{self, count, maybe_time, millis, select_grant, time};
use super::session::{Session, Trouble};
use super::writer::Class;
use super::{Cas, Store, StoreError};
use crate::refresh::grant::{Grant, GrantId, PauseReason, Standing};
use crate::refresh::horizon::Due;
use crate::refresh::time::UnixTime;

/// Computes a grant's new due time for [`Store::reschedule`].
pub type Rescheduler = Box<dyn Fn(&Grant) -> Option<UnixTime> + Send>;

/// Which grants to list; an empty filter lists all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only this user.
    pub user: Option<String>,
    /// Only this state: `active`, `paused`, `needs-authorization`.
    pub state: Option<String>,
    /// Only this reason of a state.
    pub reason: Option<String>,
    /// Only this provider.
    pub provider: Option<String>,
    /// Only grants whose scope, split at spaces and commas, lacks this one.
    pub missing_scope: Option<String>,
    /// Only grants whose refresh token's end was announced and comes after this.
    pub ending_after: Option<UnixTime>,
    /// Only grants that [`Store::failing_grants`] counts at this moment.
    pub failing_at: Option<UnixTime>,
}

pub(super) const DUE_WITHIN: &str = "SELECT id, due_at, expires_at, version FROM grants
     WHERE provider = ?1 AND due_at IS NOT NULL AND due_at <= ?2 AND (due_at, id) > (?3, ?4)
     ORDER BY due_at, id LIMIT ?5";

/// So many rows of the due index are looked at for the soonest expiry.
const LOOK_AHEAD: i64 = 1000;

/// A token whose next turn comes after its end is one that retries, or that rests: nobody lets it end by being late.
pub(super) const SOONEST_EXPIRY: &str = "SELECT min(expires_at) FROM (
        SELECT due_at, expires_at FROM grants
        WHERE provider = ?1 AND due_at IS NOT NULL ORDER BY due_at, id LIMIT ?2)
     WHERE expires_at >= due_at";

pub(super) const RESCHEDULE: &str =
    select_grant!("WHERE g.provider = ?1 AND g.id > ?2 ORDER BY g.id LIMIT ?3");

impl Store {
    /// Returns up to `limit` rows of a provider that are due at or before `until`, by (due_at, id),
    /// beginning after `after`.
    pub async fn due_within(
        &self,
        provider: &str,
        after: Option<(UnixTime, GrantId)>,
        until: UnixTime,
        limit: usize,
    ) -> Result<Vec<Due>, StoreError> {
        let provider = provider.to_owned();
        let (due_at, id) = after.map_or((i64::MIN, i64::MIN), |(at, id)| (at.as_millis(), id.0));
        self.read(move |session| {
            session.all(
                DUE_WITHIN,
                params![provider, until.as_millis(), due_at, id, limit as i64],
                |row| {
                    Ok(Due {
                        id: GrantId(row.get(0)?),
                        due_at: time(row, 1)?,
                        expires_at: maybe_time(row, 2)?,
                        version: count(row, 3)?,
                    })
                },
            )
        })
        .await
    }

    /// Returns the next moment at which anything is due.
    pub async fn next_due_at(&self) -> Result<Option<UnixTime>, StoreError> {
        self.read(|session| {
            // One step into the index per provider.
            let sql = "SELECT min((SELECT g.due_at FROM grants g
                     WHERE g.provider = c.provider AND g.due_at IS NOT NULL
                     ORDER BY g.due_at LIMIT 1))
                 FROM (SELECT DISTINCT provider FROM counters) c";
            Ok(session.first(sql, [], |row| maybe_time(row, 0))?.flatten())
        })
        .await
    }

    /// Returns when the first access token of a provider ends that is to be refreshed before its end, of the
    /// 1,000 grants that are due first. Costs the same however many there are.
    pub async fn soonest_expiry(&self, provider: &str) -> Result<Option<UnixTime>, StoreError> {
        let provider = provider.to_owned();
        self.read(move |session| {
            let row = session.first(SOONEST_EXPIRY, params![provider, LOOK_AHEAD], |row| {
                maybe_time(row, 0)
            })?;
            Ok(row.flatten())
        })
        .await
    }

    /// Returns up to `limit` grants by row number, beginning after `after`.
    ///
    /// A state that does not exist matches none.
    pub async fn list(
        &self,
        filter: Filter,
        after: Option<GrantId>,
        limit: usize,
    ) -> Result<Vec<Grant>, StoreError> {
        self.read(move |session| list(session, &filter, after, limit))
            .await
    }

    /// Sets a grant's due time if it still has this generation.
    pub async fn set_due(
        &self,
        id: GrantId,
        generation: u64,
        due_at: Option<UnixTime>,
    ) -> Result<Cas, StoreError> {
        self.write(Class::Rest, move |session| {
            let changed = session.write(
                "UPDATE grants SET version = version + 1, due_at = ?3
                 WHERE id = ?1 AND generation = ?2",
                params![id.0, generation as i64, millis(due_at)],
            )?;
            if changed == 0 {
                Ok(Cas::Lost)
            } else {
                Ok(Cas::Applied(load(session, id)?))
            }
        })
        .await
    }

    /// Makes a provider's grants due whose marks an earlier process left: its requests have no outcome, and
    /// what they brought may be had for a short time only. Returns which.
    pub async fn make_marked_due(&self, provider: &str) -> Result<Vec<GrantId>, StoreError> {
        let provider = provider.to_owned();
        self.write(Class::Rest, move |session| {
            session.disk.step()?;
            session.all(
                "UPDATE grants SET version = version + 1,
                    due_at = (SELECT first_sent_at FROM marks WHERE grant_id = id)
                 WHERE id IN (SELECT grant_id FROM marks) AND provider = ?1
                    AND (standing = 'active' OR (standing = 'paused' AND reason IN (?2, ?3)))
                 RETURNING id",
                params![
                    provider,
                    Standing::Paused(PauseReason::Inactive).reason(),
                    Standing::Paused(PauseReason::Unused).reason(),
                ],
                |row| Ok(GrantId(row.get(0)?)),
            )
        })
        .await
    }

    /// Computes new due times for one page of a provider's grants: those that are active, not failing
    /// and without a mark.
    ///
    /// Returns where the next page begins, `None` after the last, and how many were changed.
    /// Other writes wait for a page, so keep `limit` in the hundreds.
    pub async fn reschedule(
        &self,
        provider: &str,
        after: Option<GrantId>,
        limit: usize,
        due_at: Rescheduler,
    ) -> Result<(Option<GrantId>, u64), StoreError> {
        let provider = provider.to_owned();
        self.write(Class::Rest, move |session| {
            reschedule(session, &provider, after, limit, &due_at)
        })
        .await
    }
}

pub(super) fn list(
    session: &Session<'_>,
    filter: &Filter,
    after: Option<GrantId>,
    limit: usize,
) -> Result<Vec<Grant>, Trouble> {
    let mut sql = select_grant!("WHERE g.id > ?1").to_owned();
    let (after, limit) = (after.map_or(i64::MIN, |id| id.0), limit as i64);
    let mut values: Vec<&dyn rusqlite::ToSql> = vec![&after];
    let conditions = [
        (" AND g.namespace = ?", &filter.namespace),
        (" AND g.user = ?", &filter.user),
        (" AND g.provider = ?", &filter.provider),
        (" AND g.standing = ?", &filter.state),
        (" AND g.reason = ?", &filter.reason),
        (
            " AND instr(' ' || replace(coalesce(g.scope, ''), ',', ' ') || ' ', ' ' || ? || ' ') = 0",
            &filter.missing_scope,
        ),
    ];
    for (condition, value) in &conditions {
        if let Some(value) = value {
            sql.push_str(condition);
            values.push(value);
        }
    }
    let ending_after = filter.ending_after.map(UnixTime::as_millis);
    if ending_after.is_some() {
        sql.push_str(super::ending::ANNOUNCED);
        values.push(&ending_after);
    }
    let failing_at = filter.failing_at.map(UnixTime::as_millis);
    if failing_at.is_some() {
        sql.push_str(super::failing::AMONG);
        values.push(&failing_at);
    }
    if filter
        .state
        .as_deref()
        .is_some_and(|state| state != Standing::Active.name())
    {
        // Says that the index of what is not active will do.
        sql.push_str(" AND g.standing <> 'active'");
    }
    sql.push_str(" ORDER BY g.id LIMIT ?");
    values.push(&limit);
    session.all(&sql, values.as_slice(), rows::grant)
}

fn reschedule(
    session: &Session<'_>,
    provider: &str,
    after: Option<GrantId>,
    limit: usize,
    due_at: &Rescheduler,
) -> Result<(Option<GrantId>, u64), Trouble> {
    let after = after.map_or(i64::MIN, |id| id.0);
    let page = session.all(
        RESCHEDULE,
        params![provider, after, limit as i64],
        rows::grant,
    )?;
    let mut changed = 0;
    for grant in &page {
        if grant.standing != Standing::Active || grant.failures > 0 || grant.mark.is_some() {
            continue;
        }
        let new = due_at(grant);
        if new != grant.due_at {
            session.write(
                "UPDATE grants SET version = version + 1, due_at = ?2 WHERE id = ?1",
                params![grant.id.0, millis(new)],
            )?;
            changed += 1;
        }
    }
    let next = page
        .last()
        .filter(|_| page.len() == limit)
        .map(|grant| grant.id);
    Ok((next, changed))
}
