//! Who did what with freshd itself: reads by admins, refused peers, changes of rules, copies, keys.
//!
//! Bounded by number and, by the nightly purge, by age. A user is named by a keyed hash alone: a deletion leaves
//! nothing here that says whom it was about.

use rusqlite::params;

use super::rows::{count, time};
use super::session::{Session, Trouble};
use super::writer::Class;
use super::{Store, StoreError};
use crate::refresh::time::UnixTime;

/// So many notes are kept; the oldest go first.
const MOST: i64 = 100_000;
/// So many notes are purged in one transaction.
const PURGE_PAGE: i64 = 500;

/// What was done, once or several times by the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditNote {
    /// What: `read`, `refused` …
    pub action: String,
    /// Who: `uid 1000`.
    pub by: String,
    /// Whose tokens it was about: [`Store::audit_name`]; empty where it was about nobody's.
    pub user: String,
    /// The rest, in words.
    pub detail: String,
    /// When first.
    pub first_at: UnixTime,
    /// When last.
    pub last_at: UnixTime,
    /// How often.
    pub times: u64,
}

/// Which notes are wanted; an empty filter wants all.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Only this action.
    pub action: Option<String>,
    /// Only about this user, as [`Store::audit_name`] names it.
    pub user: Option<String>,
    /// Only notes before the one with this number.
    pub before: Option<u64>,
}

impl Store {
    /// Returns how notes name a user: a keyed hash, the same as long as the store lives.
    pub fn audit_name(&self, namespace: &str, user: &str) -> String {
        let digest = self.fingerprint("audit", format!("{namespace}\n{user}").as_bytes());
        let hex = digest.iter().take(8).map(|byte| format!("{byte:02x}"));
        format!("u-{}", hex.collect::<String>())
    }

    /// Keeps a note.
    pub async fn note(&self, note: AuditNote) -> Result<(), StoreError> {
        self.write(Class::Rest, move |session| keep(session, &note))
            .await
    }

    /// Returns up to `limit` notes with their numbers, the newest first.
    pub async fn notes(
        &self,
        filter: AuditFilter,
        limit: usize,
    ) -> Result<Vec<(u64, AuditNote)>, StoreError> {
        self.read(move |session| {
            let before = filter.before.map_or(i64::MAX, |id| id as i64);
            session.all(
                "SELECT id, action, made_by, user, detail, first_at, last_at, times FROM audit
                 WHERE id < ?1 AND (?2 IS NULL OR action = ?2) AND (?3 IS NULL OR user = ?3)
                 ORDER BY id DESC LIMIT ?4",
                params![before, filter.action, filter.user, limit as i64],
                |row| {
                    let note = AuditNote {
                        action: row.get(1)?,
                        by: row.get(2)?,
                        user: row.get(3)?,
                        detail: row.get(4)?,
                        first_at: time(row, 5)?,
                        last_at: time(row, 6)?,
                        times: count(row, 7)?,
                    };
                    Ok((count(row, 0)?, note))
                },
            )
        })
        .await
    }

    /// Removes the notes of what ended before `before`; returns how many.
    pub async fn purge_notes(&self, before: UnixTime) -> Result<u64, StoreError> {
        let mut purged = 0;
        loop {
            let page = self.write(Class::Rest, move |session| {
                session.write(
                    "DELETE FROM audit WHERE id IN
                        (SELECT id FROM audit WHERE last_at < ?1 ORDER BY id LIMIT ?2)",
                    params![before.as_millis(), PURGE_PAGE],
                )
            });
            match page.await? {
                0 => return Ok(purged),
                page => purged += page as u64,
            }
        }
    }
}

/// Keeps a note, and lets the oldest beyond [`MOST`] go.
pub(super) fn keep(session: &Session<'_>, note: &AuditNote) -> Result<(), Trouble> {
    session.write(
        "INSERT INTO audit (action, made_by, user, detail, first_at, last_at, times)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            note.action,
            note.by,
            note.user,
            note.detail,
            note.first_at.as_millis(),
            note.last_at.as_millis(),
            note.times as i64,
        ],
    )?;
    let oldest = session.conn.last_insert_rowid() - MOST;
    session.write("DELETE FROM audit WHERE id <= ?1", [oldest])?;
    Ok(())
}
