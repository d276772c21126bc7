//! Events: what apps are told when something about a grant changes.
//!
//! Each is written in the transaction of the change it tells of, so none is told of a change that did not
//! happen, and a crash loses none. A row names its grant by number only: who it was is read from the grant's own row, and
//! forgotten with it. So a deletion that was told late, or in an earlier life of the process, has no user.

use std::collections::VecDeque;
use std::sync::Mutex;

use rusqlite::{Row, params};
use tokio::sync::watch;

use super::rows::{count, maybe_time, time};
use super::session::{Session, Trouble};
use super::writer::{Class, lock};
use super::{Store, StoreError};
use crate::refresh::grant::{Grant, GrantId, GrantKey, PauseReason, Standing};
use crate::refresh::time::UnixTime;

/// The names of so many deleted grants stay in memory, for streams that are a little behind.
const GONE: usize = 1000;
/// So many rows are purged in one transaction; other writes go in between.
const PURGE_PAGE: usize = 500;

/// What happened to a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was imported, or its tokens were replaced by an import.
    Connected,
    /// Only its user can mend it.
    NeedsAuthorization,
    /// An import mended what needed authorization or was quarantined.
    Recovered,
    /// It is not refreshed until something resumes it.
    Paused,
    /// It is refreshed again.
    Resumed,
    /// It was deleted.
    Revoked,
    /// Its refresh token ends soon.
    RefreshTokenExpiring,
}

impl EventKind {
    const ALL: [EventKind; 7] = [
        EventKind::Connected,
        EventKind::NeedsAuthorization,
        EventKind::Recovered,
        EventKind::Paused,
        EventKind::Resumed,
        EventKind::Revoked,
        EventKind::RefreshTokenExpiring,
    ];

    /// Returns its name on the wire and in the store.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Connected => "connected",
            EventKind::NeedsAuthorization => "needs-authorization",
            EventKind::Recovered => "recovered",
            EventKind::Paused => "paused",
            EventKind::Resumed => "resumed",
            EventKind::Revoked => "revoked",
            EventKind::RefreshTokenExpiring => "refresh-token-expiring",
        }
    }
}

/// An event as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptEvent {
    /// Its number; later events have higher ones, and none is used twice.
    pub id: u64,
    /// What happened.
    pub kind: EventKind,
    /// When.
    pub at: UnixTime,
    /// The grant's namespace.
    pub namespace: String,
    /// Its provider.
    pub provider: String,
    /// Its user and account; `None` for a deleted grant whose name is forgotten.
    pub who: Option<(String, String)>,
    /// The standing's reason; empty where there is none.
    pub reason: String,
    /// When the refresh token ends, of [`EventKind::RefreshTokenExpiring`].
    pub expires_at: Option<UnixTime>,
    /// The generation afterwards.
    pub generation: u64,
}

/// Events that follow a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// Whether none is missing between the position and the first of these.
    pub complete: bool,
    /// In the order of their numbers.
    pub events: Vec<KeptEvent>,
    /// The position after them.
    pub end: u64,
    /// Whether there may be more.
    pub more: bool,
}

impl Store {
    /// Returns up to `limit` events after the one numbered `after`.
    ///
    /// Where that one is older than what is kept, or is not known here because the store was restored
    /// from a copy, the page begins with what is kept and says that it is not complete.
    pub async fn events_after(&self, after: u64, limit: usize) -> Result<EventPage, StoreError> {
        let mut page = self
            .read_for_caller(move |session| page(session, after, limit))
            .await?;
        let gone = &self.inner.gone;
        for (grant, event) in &mut page.rows {
            if event.who.is_none() {
                event.who = gone.name(*grant);
            }
        }
        Ok(EventPage {
            complete: page.complete,
            events: page.rows.into_iter().map(|(_, event)| event).collect(),
            end: page.end,
            more: page.more,
        })
    }

    /// Returns the number of the last event, 0 before the first.
    pub async fn last_event(&self) -> Result<u64, StoreError> {
        self.read(last).await
    }

    /// Returns what changes whenever events have been committed.
    pub fn events_committed(&self) -> watch::Receiver<()> {
        self.inner.writer.events_committed()
    }

    /// Removes events from before `before`. Returns how many.
    pub async fn purge_events(&self, before: UnixTime) -> Result<u64, StoreError> {
        let mut purged = 0;
        loop {
            let page = self.write(Class::Rest, move |session| purge(session, before));
            let page = page.await?;
            purged += page as u64;
            if page < PURGE_PAGE {
                return Ok(purged);
            }
        }
    }
}

/// Tells of a grant that an import made or replaced; `before` is what it was.
pub(super) fn tell_of_import(
    session: &Session<'_>,
    before: Option<Standing>,
    now: &Grant,
) -> Result<(), Trouble> {
    let mended = match before {
        Some(Standing::NeedsAuthorization(_) | Standing::Paused(PauseReason::Quarantined)) => {
            now.standing == Standing::Active
        }
        _ => false,
    };
    let kind = if mended {
        EventKind::Recovered
    } else {
        EventKind::Connected
    };
    tell(session, kind, now, None, now.imported_at)
}

/// Tells of a change of standing, if it is one; `before` is what the grant was.
pub(super) fn tell_of_change(
    session: &Session<'_>,
    before: Standing,
    now: &Grant,
    at: UnixTime,
) -> Result<(), Trouble> {
    if before == now.standing {
        return Ok(());
    }
    let kind = match (before, now.standing) {
        (_, Standing::NeedsAuthorization(_)) => EventKind::NeedsAuthorization,
        (_, Standing::Paused(_)) => EventKind::Paused,
        (Standing::NeedsAuthorization(_), Standing::Active) => EventKind::Recovered,
        (_, Standing::Active) => EventKind::Resumed,
    };
    tell(session, kind, now, None, at)
}

/// Tells that a grant's refresh token ends soon.
pub(super) fn tell_of_end(
    session: &Session<'_>,
    grant: &Grant,
    at: UnixTime,
) -> Result<(), Trouble> {
    let end = grant.refresh_token_end.map(|end| end.expires_at);
    tell(session, EventKind::RefreshTokenExpiring, grant, end, at)
}

/// Tells that a grant is gone, and forgets all else that was told of it.
pub(super) fn tell_of_deletion(
    session: &Session<'_>,
    grant: &Grant,
    at: UnixTime,
) -> Result<(), Trouble> {
    session.write("DELETE FROM events WHERE grant_id = ?1", [grant.id.0])?;
    tell(session, EventKind::Revoked, grant, None, at)
}

fn tell(
    session: &Session<'_>,
    kind: EventKind,
    grant: &Grant,
    expires_at: Option<UnixTime>,
    at: UnixTime,
) -> Result<(), Trouble> {
    let reason = match kind {
        EventKind::Revoked | EventKind::RefreshTokenExpiring => "",
        _ => grant.standing.reason(),
    };
    session.write(
        "INSERT INTO events (grant_id, namespace, provider, kind, at, reason, expires_at, generation)
         VALUES (?1, ?2, ?3, ?4, ?5, nullif(?6, ''), ?7, ?8)",
        params![
            grant.id.0,
            grant.key.namespace,
            grant.key.provider,
            kind.name(),
            at.as_millis(),
            reason,
            expires_at.map(UnixTime::as_millis),
            grant.generation as i64,
        ],
    )?;
    Ok(())
}

/// Forgets all events of a store that was made from a copy: what followed in the original is not known here.
///
/// Their numbers go on beyond any that the original, or another store from the same copy, has given: at microseconds
/// since the epoch, which no store's events keep up with.
pub(super) fn forget_all(session: &Session<'_>, at: UnixTime) -> Result<(), Trouble> {
    session.write("DELETE FROM events", [])?;
    let begin = at
        .as_millis()
        .saturating_mul(1000)
        .max(last(session)? as i64);
    session.write("DELETE FROM sqlite_sequence WHERE name = 'events'", [])?;
    session.write("INSERT INTO sqlite_sequence VALUES ('events', ?1)", [begin])?;
    session.write("UPDATE store SET events_after = ?1", [begin])?;
    Ok(())
}

fn purge(session: &Session<'_>, before: UnixTime) -> Result<usize, Trouble> {
    let params = params![before.as_millis(), PURGE_PAGE as i64];
    let old = "SELECT id FROM events WHERE at < ?1 ORDER BY id LIMIT ?2";
    let ids: Vec<i64> = session.all(old, params, |row| row.get(0))?;
    let Some(last) = ids.last() else {
        return Ok(0);
    };
    for id in &ids {
        session.write("DELETE FROM events WHERE id = ?1", [id])?;
    }
    session.write(
        "UPDATE store SET events_after = max(events_after, ?1)",
        [last],
    )?;
    Ok(ids.len())
}

struct Rows {
    complete: bool,
    rows: Vec<(GrantId, KeptEvent)>,
    end: u64,
    more: bool,
}

fn page(session: &Session<'_>, after: u64, limit: usize) -> Result<Rows, Trouble> {
    let kept = "SELECT events_after FROM store";
    let kept_after = session.first(kept, [], |row| count(row, 0))?.unwrap_or(0);
    let complete = (kept_after..=last(session)?).contains(&after);
    let from = if complete { after } else { kept_after };
    let sql = "SELECT e.id, e.grant_id, e.namespace, e.provider, e.kind, e.at, e.reason,
            e.expires_at, e.generation, g.user, g.account
         FROM events e LEFT JOIN grants g ON g.id = e.grant_id
         WHERE e.id > ?1 ORDER BY e.id LIMIT ?2";
    let rows = session.all(sql, params![from as i64, limit as i64], |row| {
        Ok((count(row, 0)?, event(row)?))
    })?;
    Ok(Rows {
        complete,
        more: rows.len() == limit,
        end: rows.last().map_or(from, |(id, _)| *id),
        // A kind that nobody wrote is left out.
        rows: rows.into_iter().filter_map(|(_, event)| event).collect(),
    })
}

fn event(row: &Row<'_>) -> rusqlite::Result<Option<(GrantId, KeptEvent)>> {
    let kind: String = row.get(4)?;
    let Some(kind) = EventKind::ALL
        .into_iter()
        .find(|known| known.name() == kind)
    else {
        return Ok(None);
    };
    let who = match row.get::<_, Option<String>>(9)? {
        Some(user) => Some((user, row.get(10)?)),
        None => None,
    };
    let event = KeptEvent {
        id: count(row, 0)?,
        kind,
        at: time(row, 5)?,
        namespace: row.get(2)?,
        provider: row.get(3)?,
        who,
        reason: row.get::<_, Option<String>>(6)?.unwrap_or_default(),
        expires_at: maybe_time(row, 7)?,
        generation: count(row, 8)?,
    };
    Ok(Some((GrantId(row.get(1)?), event)))
}

fn last(session: &Session<'_>) -> Result<u64, Trouble> {
    let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'events'";
    Ok(session.first(sql, [], |row| count(row, 0))?.unwrap_or(0))
}

/// Whose the grants were that were deleted last. In memory only: no file knows a deleted user.
#[derive(Default)]
pub(super) struct Gone(Mutex<VecDeque<(GrantId, String, String)>>);

impl Gone {
    /// Notes a grant that is about to be deleted.
    pub(super) fn note(&self, id: GrantId, key: &GrantKey) {
        let mut gone = lock(&self.0);
        if gone.len() >= GONE {
            gone.pop_front();
        }
        gone.push_back((id, key.user.clone(), key.account.clone()));
    }

    fn name(&self, id: GrantId) -> Option<(String, String)> {
        let gone = lock(&self.0);
        let found = gone.iter().rev().find(|(grant, _, _)| *grant == id)?;
        Some((found.1.clone(), found.2.clone()))
    }
}
