//! Stamps of a clock that was set back since: rows from the future are taken as of now.

use rusqlite::params;

use super::rows::{self, Opened, millis};
use super::seal::Purpose;
use super::session::{Session, Trouble};
use super::writer::Class;
use super::{Store, StoreError};
use crate::refresh::grant::{Grant, GrantId};
use crate::refresh::policy;
use crate::refresh::time::UnixTime;
use crate::refresh::token::{AccessToken, RefreshToken, TokenSet};

/// Computes what a grant with stamps from the future is to be; see [`Grant::restamped`].
pub type Restamper = Box<dyn Fn(&Grant) -> Option<Grant> + Send>;

impl Store {
    /// Returns up to `limit` grants with a stamp later than `now`, by row number, beginning after `after`.
    ///
    /// Reads the whole table, because this is rarely asked.
    pub async fn stamped_after(
        &self,
        now: UnixTime,
        after: Option<GrantId>,
        limit: usize,
    ) -> Result<Vec<GrantId>, StoreError> {
        let after = after.map_or(i64::MIN, |id| id.0);
        self.read(move |session| {
            let sql = "SELECT g.id FROM grants g LEFT JOIN marks m ON m.grant_id = g.id
                 WHERE g.id > ?1 AND (g.obtained_at > ?2 OR g.attempted_at > ?2
                    OR g.refreshed_at > ?2 OR g.imported_at > ?2 OR g.standing_since > ?2
                    OR g.refused_since > ?2 OR m.first_sent_at > ?2)
                 ORDER BY g.id LIMIT ?3";
            let values = params![after, now.as_millis(), limit as i64];
            session.all(sql, values, |row| Ok(GrantId(row.get(0)?)))
        })
        .await
    }

    /// Writes what `restamp` makes of each of these grants; generations stay. Returns how many changed.
    ///
    /// The end of an access token is part of what its seal binds, so its tokens are sealed anew; a
    /// grant whose tokens do not open stays as it is, and the next read puts it aside.
    /// Other writes wait meanwhile, so keep the list in the hundreds.
    pub async fn restamp(&self, ids: Vec<GrantId>, restamp: Restamper) -> Result<u64, StoreError> {
        self.write(Class::Rest, move |session| {
            let mut changed = 0;
            for id in &ids {
                if let Some(grant) = rows::by_id(session, *id)?
                    && let Some(new) = restamp(&grant)
                {
                    changed += u64::from(put(session, &grant, &new)?);
                }
            }
            Ok(changed)
        })
        .await
    }

    /// Takes activity from the future as of now, and puts no revocation off for longer than its longest pause.
    pub async fn restamp_rest(&self, now: UnixTime) -> Result<(), StoreError> {
        self.write(Class::Rest, move |session| {
            session.write(
                "UPDATE revocations SET created_at = min(created_at, ?1), next_at = min(next_at, ?2)
                 WHERE created_at > ?1 OR next_at > ?2",
                params![
                    now.as_millis(),
                    (now + policy::REFUSED_BACKOFF_CAP).as_millis()
                ],
            )?;
            Ok(())
        })
        .await?;
        let mut after = Some((String::new(), String::new()));
        while let Some(page) = after {
            after = self
                .write(Class::Rest, move |session| {
                    restamp_activity(session, now, &page)
                })
                .await?;
        }
        Ok(())
    }
}

/// So many users are looked at in one transaction.
const ACTIVITY_PAGE: usize = 5_000;

/// Returns where the next page begins.
fn restamp_activity(
    session: &Session<'_>,
    now: UnixTime,
    (namespace, user): &(String, String),
) -> Result<Option<(String, String)>, Trouble> {
    let page = session.all(
        "SELECT namespace, user, last_active_at FROM activity WHERE (namespace, user) > (?1, ?2)
         ORDER BY namespace, user LIMIT ?3",
        params![namespace, user, ACTIVITY_PAGE as i64],
        |row| Ok(((row.get(0)?, row.get(1)?), rows::time(row, 2)?)),
    )?;
    for ((namespace, user), _) in page.iter().filter(|(_, at)| *at > now) {
        session.write(
            "UPDATE activity SET last_active_at = ?3 WHERE namespace = ?1 AND user = ?2",
            params![namespace, user, now.as_millis()],
        )?;
    }
    let whole = page.len() == ACTIVITY_PAGE;
    Ok(page
        .into_iter()
        .next_back()
        .filter(|_| whole)
        .map(|(key, _)| key))
}

fn put(session: &Session<'_>, old: &Grant, new: &Grant) -> Result<bool, Trouble> {
    if old.access != new.access && !reseal(session, old, new)? {
        return Ok(false);
    }
    session.write(
        "UPDATE grants SET version = version + 1, due_at = ?2, attempted_at = ?3,
            refreshed_at = ?4, refused_since = ?5, imported_at = ?6, standing_since = ?7
         WHERE id = ?1",
        params![
            new.id.0,
            millis(new.due_at),
            millis(new.attempted_at),
            millis(new.refreshed_at),
            millis(new.refused_since),
            new.imported_at.as_millis(),
            new.standing_since.as_millis(),
        ],
    )?;
    if let Some(mark) = new.mark {
        session.write(
            "UPDATE marks SET first_sent_at = ?2 WHERE grant_id = ?1",
            params![new.id.0, mark.first_sent_at.as_millis()],
        )?;
    }
    Ok(true)
}

/// Seals both tokens for the new end of the access token. Returns whether they opened.
fn reseal(session: &Session<'_>, old: &Grant, new: &Grant) -> Result<bool, Trouble> {
    let Some(access) = &new.access else {
        return Ok(true);
    };
    let opened = [
        rows::open(session, old, Purpose::Access)?,
        rows::open(session, old, Purpose::Refresh)?,
    ];
    if opened.iter().any(|it| matches!(it, Opened::Broken)) {
        return Ok(false);
    }
    let [access_token, refresh_token] =
        opened.map(|it| it.secret().map(|mut secret| std::mem::take(&mut *secret)));
    let tokens = TokenSet {
        access_token: access_token.map(AccessToken::new),
        token_type: access.token_type.clone(),
        expires_at: access.expires_at,
        obtained_at: access.obtained_at,
        refresh_token: refresh_token.map(RefreshToken::new),
        refresh_token_end: new.refresh_token_end,
        scope: new.scope.clone(),
    };
    let sealed = rows::seal(session, new.id, &new.key, new.generation, &tokens);
    session.write(
        "UPDATE grants SET obtained_at = ?2, expires_at = ?3, key_id = ?4, access_token = ?5,
            refresh_token = ?6
         WHERE id = ?1",
        params![
            new.id.0,
            access.obtained_at.as_millis(),
            sealed.expires_at,
            sealed.key_id,
            sealed.access_token,
            sealed.refresh_token,
        ],
    )?;
    Ok(true)
}
