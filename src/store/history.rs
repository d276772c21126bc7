//! The story of a grant: what happened to it, in a few short rows.
//!
//! Each entry is written in the transaction of the verb it tells of, so it costs no fsync of its own. What
//! repeats is told once: the next refresh that goes well, or fails in the same way, only moves the end of the entry
//! before it. So a grant that is well has two entries, however long it lives.

use rusqlite::{Row, params};

use super::fingerprints::{self, Short};
use super::rows::{self, count, time};
use super::session::{Session, Trouble};
use super::{Store, StoreError};
use crate::refresh::grant::{Grant, GrantId, GrantKey, Mark, Standing};
use crate::refresh::time::UnixTime;

/// A grant keeps this many entries; the oldest go.
pub(super) const ENTRIES: i64 = 64;

/// What happened. The numbers are what the table holds; the two commonest are free there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A refresh brought a token set.
    Refreshed = 0,
    /// An attempt brought none.
    Failed = 1,
    /// A request was sent and no whole answer came: its refresh token may be spent.
    Unanswered = 2,
    /// A request had left, or was about to, when freshd ended: found by its mark before the next one.
    Interrupted = 3,
    /// A token set came for a generation that had passed; it was queued for revocation.
    Superseded = 4,
    /// An import made the grant.
    Imported = 5,
    /// An import replaced its tokens.
    Replaced = 6,
    /// It became active again.
    Resumed = 7,
    /// It was paused.
    Paused = 8,
    /// It was found to need authorization.
    NeedsAuthorization = 9,
    /// It was restored from a copy, and is not refreshed until it is released.
    Restored = 10,
}

impl Event {
    const ALL: [Event; 11] = [
        Event::Refreshed,
        Event::Failed,
        Event::Unanswered,
        Event::Interrupted,
        Event::Superseded,
        Event::Imported,
        Event::Replaced,
        Event::Resumed,
        Event::Paused,
        Event::NeedsAuthorization,
        Event::Restored,
    ];

    /// Returns its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Event::Refreshed => "refreshed",
            Event::Failed => "failed",
            Event::Unanswered => "unanswered",
            Event::Interrupted => "interrupted",
            Event::Superseded => "superseded",
            Event::Imported => "imported",
            Event::Replaced => "replaced",
            Event::Resumed => "resumed",
            Event::Paused => "paused",
            Event::NeedsAuthorization => "needs-authorization",
            Event::Restored => "restored",
        }
    }

    /// Returns whether it is told once, however often it repeats.
    fn repeats(self) -> bool {
        matches!(self, Event::Refreshed | Event::Failed | Event::Unanswered)
    }
}

/// Who changed a grant's standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The schedule: a due time came, or an attempt's verdict.
    Schedule = 0,
    /// An admin.
    Admin = 1,
    /// A user who is back: a read that counts, or an activity note.
    Reader = 2,
    /// The store, because a sealed value does not open.
    Store = 3,
}

impl By {
    const ALL: [By; 4] = [By::Schedule, By::Admin, By::Reader, By::Store];

    /// Returns its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            By::Schedule => "schedule",
            By::Admin => "admin",
            By::Reader => "reader",
            By::Store => "store",
        }
    }
}

/// One entry of a grant's story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub event: Event,
    /// When; of one that repeats, when first. Of [`Event::Interrupted`], when it was sent, if that is known. Of
    /// [`Event::Restored`], when the copy was made.
    pub first_at: UnixTime,
    /// When last. For [`Event::Interrupted`], when it was found.
    pub last_at: UnixTime,
    /// How often.
    pub times: u64,
    /// The generation afterwards.
    pub generation: u64,
    /// An outcome's code, or a standing's reason; empty where there is none.
    pub detail: String,
    /// The HTTP status of a refusal.
    pub status: Option<u16>,
    /// Who changed the standing.
    pub by: Option<By>,
    /// The beginning of the keyed fingerprint of the refresh token that was presented, the last time.
    pub presented: Option<Short>,
    /// The same of the one that came back; the old one's where none came.
    pub received: Option<Short>,
}

impl Entry {
    pub(super) fn new(event: Event, at: UnixTime, generation: u64) -> Entry {
        Entry {
            event,
            first_at: at,
            last_at: at,
            times: 1,
            generation,
            detail: String::new(),
            status: None,
            by: None,
            presented: None,
            received: None,
        }
    }

    /// Tells of a change of standing.
    pub(super) fn standing(standing: Standing, at: UnixTime, generation: u64, by: By) -> Entry {
        let event = match standing {
            Standing::Active => Event::Resumed,
            Standing::Paused(_) => Event::Paused,
            Standing::NeedsAuthorization(_) => Event::NeedsAuthorization,
        };
        Entry {
            detail: standing.reason().to_owned(),
            by: Some(by),
            ..Entry::new(event, at, generation)
        }
    }

    /// Whether `next` only says that this happened once more.
    fn takes_in(&self, next: &Entry) -> bool {
        self.event == next.event
            && next.event.repeats()
            && self.detail == next.detail
            && self.status == next.status
            && (self.event == Event::Refreshed || self.generation == next.generation)
    }
}

/// Selects entries for [`entry`] to read.
macro_rules! select_entry {
    ($rest:literal) => {
        concat!(
            "SELECT number, event, first_at, last_at, times, generation, detail, status, \
             changed_by, presented, received FROM history WHERE grant_id = ?1 ",
            $rest
        )
    };
}

impl Store {
    /// Returns a grant and its story, the oldest entry first, as they were at one moment.
    pub async fn history(&self, key: &GrantKey) -> Result<Option<(Grant, Vec<Entry>)>, StoreError> {
        let key = key.clone();
        self.read_for_caller(move |session| {
            let Some(grant) = rows::by_key(session, &key)? else {
                return Ok(None);
            };
            let entries = session.all(select_entry!("ORDER BY number"), [grant.id.0], entry)?;
            // An entry that nobody wrote is left out: the others still tell their part.
            Ok(Some((grant, entries.into_iter().flatten().collect())))
        })
        .await
    }
}

/// Adds an entry to a grant's story, or counts one more of the last.
pub(super) fn tell(session: &Session<'_>, id: GrantId, next: &Entry) -> Result<(), Trouble> {
    let last = session.first(
        select_entry!("ORDER BY number DESC LIMIT 1"),
        [id.0],
        |row| Ok((row.get::<_, i64>(0)?, entry(row)?)),
    )?;
    if let Some((number, Some(last))) = &last
        && last.takes_in(next)
    {
        session.write(
            "UPDATE history SET last_at = ?3, times = times + 1, generation = ?4, presented = ?5,
                received = ?6
             WHERE grant_id = ?1 AND number = ?2",
            params![
                id.0,
                number,
                next.last_at.as_millis(),
                next.generation as i64,
                next.presented.map(|short| short.0),
                next.received.map(|short| short.0),
            ],
        )?;
        return Ok(());
    }
    let number = last.map_or(1, |(number, _)| number.saturating_add(1));
    put(session, id, number, next)?;
    if number > ENTRIES {
        session.write(
            "DELETE FROM history WHERE grant_id = ?1 AND number <= ?2",
            params![id.0, number - ENTRIES],
        )?;
    }
    Ok(())
}

/// Writes the first entry of a new grant's story.
pub(super) fn begin(session: &Session<'_>, id: GrantId, first: &Entry) -> Result<(), Trouble> {
    put(session, id, 1, first)
}

fn put(session: &Session<'_>, id: GrantId, number: i64, next: &Entry) -> Result<(), Trouble> {
    session.write(
        "INSERT INTO history (grant_id, number, event, first_at, last_at, times, generation, detail,
            status, changed_by, presented, received)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, nullif(?8, ''), ?9, ?10, ?11, ?12)",
        params![
            id.0,
            number,
            next.event as i64,
            next.first_at.as_millis(),
            next.last_at.as_millis(),
            next.times as i64,
            next.generation as i64,
            next.detail,
            next.status,
            next.by.map(|by| by as i64),
            next.presented.map(|short| short.0),
            next.received.map(|short| short.0),
        ],
    )?;
    Ok(())
}

/// Tells of requests that `mark` counts and no entry explains: freshd ended before their answer came.
pub(super) fn tell_of_interrupted(
    session: &Session<'_>,
    grant: &Grant,
    mark: Mark,
    found_at: UnixTime,
) -> Result<(), Trouble> {
    let explained = session.first(
        "SELECT coalesce(sum(times), 0) FROM history
         WHERE grant_id = ?1 AND generation = ?2 AND event IN (?3, ?4, ?5)",
        params![
            grant.id.0,
            grant.generation as i64,
            Event::Unanswered as i64,
            Event::Interrupted as i64,
            // The mark that a restore makes stands for requests of after the copy.
            Event::Restored as i64,
        ],
        |row| count(row, 0),
    )?;
    let explained = explained.unwrap_or(0);
    let times = u64::from(mark.presented).saturating_sub(explained);
    if times == 0 {
        return Ok(());
    }
    // The mark knows when the first was sent; of a later one, only that it was found.
    let sent_at = if explained == 0 {
        mark.first_sent_at
    } else {
        found_at
    };
    let interrupted = Entry {
        last_at: found_at,
        times,
        presented: fingerprints::newest(session, grant.id)?,
        ..Entry::new(Event::Interrupted, sent_at, grant.generation)
    };
    tell(session, grant.id, &interrupted)
}

/// Forgets a grant's story.
pub(super) fn forget(session: &Session<'_>, id: GrantId) -> Result<(), Trouble> {
    session.write("DELETE FROM history WHERE grant_id = ?1", [id.0])?;
    Ok(())
}

/// Removes entries from before `before` of the grants numbered `from` up to, not including, `until`.
///
/// What led to a standing that needs a person stays as long as the standing does.
pub(super) fn purge(
    session: &Session<'_>,
    from: i64,
    until: i64,
    before: UnixTime,
) -> Result<usize, Trouble> {
    session.write(
        "DELETE FROM history WHERE grant_id >= ?1 AND grant_id < ?2 AND last_at < ?3
            AND NOT EXISTS (SELECT 1 FROM grants g WHERE g.id = grant_id
                AND g.standing <> 'active' AND g.standing_since <= last_at)",
        params![from, until, before.as_millis()],
    )
}

/// Reads an entry. Nothing in it is trusted: `None` for an event nobody wrote.
fn entry(row: &Row<'_>) -> rusqlite::Result<Option<Entry>> {
    let event: i64 = row.get(1)?;
    let by: Option<i64> = row.get(8)?;
    let Some(event) = Event::ALL.into_iter().find(|known| *known as i64 == event) else {
        return Ok(None);
    };
    let entry = Entry {
        event,
        first_at: time(row, 2)?,
        last_at: time(row, 3)?,
        times: count(row, 4)?,
        generation: count(row, 5)?,
        detail: row.get::<_, Option<String>>(6)?.unwrap_or_default(),
        status: row
            .get::<_, Option<i64>>(7)?
            .and_then(|status| u16::try_from(status).ok()),
        by: By::ALL.into_iter().find(|known| Some(*known as i64) == by),
        presented: short(row, 9)?,
        received: short(row, 10)?,
    };
    Ok(Some(entry))
}

fn short(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Short>> {
    let bytes: Option<Vec<u8>> = row.get(column)?;
    Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map(Short))
}
