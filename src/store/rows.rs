//! Reading and opening rows of `grants`.

use rusqlite::{Row, params};
use zeroize::Zeroizing;

use super::seal::{Bound, Purpose};
use super::session::{Session, Trouble};
use crate::refresh::grant::{AccessFacts, Grant, GrantId, GrantKey, Mark, PauseReason, Standing};
use crate::refresh::time::UnixTime;
use crate::refresh::token::{RefreshTokenEnd, TokenSet};

/// Selects whole grants, marks included, for [`grant`] to read.
macro_rules! select_grant {
    ($rest:literal) => {
        concat!(
            "SELECT g.id, g.namespace, g.user, g.provider, g.account, g.version, g.generation, \
             g.standing, g.reason, g.standing_since, g.access_token IS NOT NULL, g.token_type, \
             g.obtained_at, g.expires_at, g.refresh_token IS NOT NULL, g.scope, g.due_at, \
             g.imported_at, g.refreshed_at, g.attempted_at, g.failures, g.last_failure, \
             g.unused_refreshes, m.first_sent_at, m.presented, g.refused_since, \
             g.refresh_token_expires_at, g.refresh_token_warn_at \
             FROM grants g LEFT JOIN marks m ON m.grant_id = g.id ",
            $rest
        )
    };
}
pub(super) use select_grant;

/// Reads a row of [`select_grant`].
///
/// Nothing in it is trusted: a standing nobody wrote counts as quarantined, a
/// negative count as none, so that one edited row never stops the others.
pub(super) fn grant(row: &Row<'_>) -> rusqlite::Result<Grant> {
    let (standing, reason): (String, String) = (row.get(7)?, row.get(8)?);
    let access = AccessFacts {
        token_type: row.get(11)?,
        obtained_at: time(row, 12)?,
        expires_at: maybe_time(row, 13)?,
    };
    let mark = match maybe_time(row, 23)? {
        Some(first_sent_at) => Some(Mark {
            first_sent_at,
            presented: count(row, 24)?.try_into().unwrap_or(u32::MAX),
        }),
        None => None,
    };
    let refresh_token_end = match maybe_time(row, 26)? {
        Some(expires_at) => Some(RefreshTokenEnd {
            expires_at,
            warn_at: maybe_time(row, 27)?,
        }),
        None => None,
    };
    Ok(Grant {
        id: GrantId(row.get(0)?),
        key: GrantKey {
            namespace: row.get(1)?,
            user: row.get(2)?,
            provider: row.get(3)?,
            account: row.get(4)?,
        },
        version: count(row, 5)?,
        generation: count(row, 6)?,
        standing: Standing::from_names(&standing, &reason)
            .unwrap_or(Standing::Paused(PauseReason::Quarantined)),
        standing_since: time(row, 9)?,
        access: row.get::<_, bool>(10)?.then_some(access),
        has_refresh_token: row.get(14)?,
        refresh_token_end,
        scope: row.get(15)?,
        due_at: maybe_time(row, 16)?,
        imported_at: time(row, 17)?,
        refreshed_at: maybe_time(row, 18)?,
        attempted_at: maybe_time(row, 19)?,
        failures: count(row, 20)?.try_into().unwrap_or(u32::MAX),
        last_failure: row.get(21)?,
        refused_since: maybe_time(row, 25)?,
        unused_refreshes: count(row, 22)?.try_into().unwrap_or(u32::MAX),
        mark,
    })
}

pub(super) fn by_id(session: &Session<'_>, id: GrantId) -> Result<Option<Grant>, Trouble> {
    session.first(select_grant!("WHERE g.id = ?1"), [id.0], grant)
}

/// Returns the number that SQLite gives to the next grant: never that of another one, whatever somebody wrote into its counter.
pub(super) fn next_id(session: &Session<'_>) -> Result<GrantId, Trouble> {
    let sql = "SELECT 1 + max(
        coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'grants'), 0),
        coalesce((SELECT max(id) FROM grants), 0))";
    // A sum that is too large is no integer any more.
    let next = session.first(sql, [], |row| Ok(row.get(0).ok()))?;
    next.flatten().map(GrantId).ok_or_else(misnumbered)
}

/// What is wrong where SQLite's own counter gives another number than [`next_id`]: a token bound to that would never open.
pub(super) fn misnumbered() -> Trouble {
    Trouble::Sqlite(rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
        Some("sqlite_sequence does not count the rows of grants".into()),
    ))
}

pub(super) fn last_activity(
    session: &Session<'_>,
    namespace: &str,
    user: &str,
) -> Result<Option<UnixTime>, Trouble> {
    let sql = "SELECT last_active_at FROM activity WHERE namespace = ?1 AND user = ?2";
    session.first(sql, [namespace, user], |row| time(row, 0))
}

pub(super) fn by_key(session: &Session<'_>, key: &GrantKey) -> Result<Option<Grant>, Trouble> {
    session.first(
        select_grant!(
            "WHERE g.namespace = ?1 AND g.user = ?2 AND g.provider = ?3 AND g.account = ?4"
        ),
        params![key.namespace, key.user, key.provider, key.account],
        grant,
    )
}

/// What became of opening a sealed value.
#[derive(Debug)]
pub(super) enum Opened {
    /// There is none.
    Absent,
    /// The secret.
    Secret(Zeroizing<String>),
    /// It does not open.
    Broken,
}

impl Opened {
    pub(super) fn secret(self) -> Option<Zeroizing<String>> {
        match self {
            Opened::Secret(secret) => Some(secret),
            Opened::Absent | Opened::Broken => None,
        }
    }
}

/// Opens the access token or the refresh token of `grant`.
pub(super) fn open(
    session: &Session<'_>,
    grant: &Grant,
    purpose: Purpose,
) -> Result<Opened, Trouble> {
    let sql = match purpose {
        Purpose::Access => "SELECT key_id, access_token FROM grants WHERE id = ?1",
        _ => "SELECT key_id, refresh_token FROM grants WHERE id = ?1",
    };
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let Some((key_id, Some(sealed))) =
        session.first::<(i64, Option<Vec<u8>>)>(sql, [grant.id.0], read)?
    else {
        return Ok(Opened::Absent);
    };
    Ok(
        match session
            .keyring
            .open(&bound_of(grant, purpose), key_id, &sealed)
        {
            Ok(secret) => Opened::Secret(secret),
            Err(_) => Opened::Broken,
        },
    )
}

/// A token set as a row holds it.
pub(super) struct SealedTokens {
    pub(super) key_id: u32,
    pub(super) access_token: Option<Vec<u8>>,
    pub(super) refresh_token: Option<Vec<u8>>,
    pub(super) expires_at: Option<i64>,
}

/// Seals both tokens of a set for the row `id` at `generation`.
pub(super) fn seal(
    session: &Session<'_>,
    id: GrantId,
    key: &GrantKey,
    generation: u64,
    tokens: &TokenSet,
) -> SealedTokens {
    let expires_at = tokens.access_token.as_ref().and(tokens.expires_at);
    let seal = |purpose, secret: &str| {
        let scope = tokens.scope.as_deref();
        let bound = bound(purpose, id, key, generation, expires_at, scope);
        session.keyring.seal(&bound, secret).1
    };
    SealedTokens {
        key_id: session.keyring.current(),
        access_token: tokens
            .access_token
            .as_ref()
            .map(|t| seal(Purpose::Access, t.expose())),
        refresh_token: tokens
            .refresh_token
            .as_ref()
            .map(|t| seal(Purpose::Refresh, t.expose())),
        expires_at: expires_at.map(UnixTime::as_millis),
    }
}

/// What became of sealing a grant's tokens with the current data key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resealed {
    /// All of them opened, if there are any.
    Whole,
    /// One did not open; the other one, if it did, is sealed anew.
    Broken,
}

/// Seals a grant's tokens with the current data key. What does not open stays as it is, byte for byte.
///
/// Reading, opening and writing are one transaction of the one writer, so nothing can come in between: neither a slot
/// nor a compare-and-set is needed. No outcome of an attempt is lost either, for the generation stays, and with it
/// all that a compare-and-set of an attempt looks at; the version stays, for nothing that is scheduled changes.
pub(super) fn reseal(session: &Session<'_>, grant: &Grant) -> Result<Resealed, Trouble> {
    let sql = "SELECT key_id, access_token, refresh_token FROM grants WHERE id = ?1";
    let read = |row: &Row<'_>| Ok((row.get(0)?, [row.get(1)?, row.get(2)?]));
    let found = session.first::<(i64, [Option<Vec<u8>>; 2])>(sql, [grant.id.0], read)?;
    let Some((key_id, mut tokens)) = found else {
        return Ok(Resealed::Whole);
    };
    let current = session.keyring.current();
    if key_id == i64::from(current) {
        return Ok(Resealed::Whole);
    }
    let (mut opened, mut broken) = (false, false);
    for (token, purpose) in tokens.iter_mut().zip([Purpose::Access, Purpose::Refresh]) {
        let Some(sealed) = token else { continue };
        match reseal_one(session, &bound_of(grant, purpose), key_id, sealed) {
            Some(anew) => (*sealed, opened) = (anew, true),
            None => broken = true,
        }
    }
    if opened || !broken {
        let [access_token, refresh_token] = tokens;
        session.write(
            "UPDATE grants SET key_id = ?2, access_token = ?3, refresh_token = ?4 WHERE id = ?1",
            params![grant.id.0, current, access_token, refresh_token],
        )?;
    }
    Ok(if broken {
        Resealed::Broken
    } else {
        Resealed::Whole
    })
}

/// Returns a sealed value sealed with the current data key, proved by opening it; `None` if it does not open.
pub(super) fn reseal_one(
    session: &Session<'_>,
    bound: &Bound<'_>,
    key_id: i64,
    sealed: &[u8],
) -> Option<Vec<u8>> {
    let secret = session.keyring.open(bound, key_id, sealed).ok()?;
    let (current, anew) = session.keyring.seal(bound, &secret);
    let proved = session.keyring.open(bound, current.into(), &anew).ok()?;
    (proved == secret).then_some(anew)
}

fn bound_of(grant: &Grant, purpose: Purpose) -> Bound<'_> {
    let expires_at = grant.access.as_ref().and_then(|access| access.expires_at);
    bound(
        purpose,
        grant.id,
        &grant.key,
        grant.generation,
        expires_at,
        grant.scope.as_deref(),
    )
}

fn bound<'a>(
    purpose: Purpose,
    id: GrantId,
    key: &'a GrantKey,
    generation: u64,
    expires_at: Option<UnixTime>,
    scope: Option<&'a str>,
) -> Bound<'a> {
    Bound {
        purpose,
        row: id.0,
        namespace: &key.namespace,
        user: &key.user,
        provider: &key.provider,
        account: &key.account,
        generation,
        expires_at,
        scope,
    }
}

pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<UnixTime> {
    Ok(UnixTime::from_millis(row.get(column)?))
}

pub(super) fn maybe_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<UnixTime>> {
    Ok(row
        .get::<_, Option<i64>>(column)?
        .map(UnixTime::from_millis))
}

pub(super) fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

/// Returns a moment as a column holds it.
pub(super) fn millis(at: Option<UnixTime>) -> Option<i64> {
    at.map(UnixTime::as_millis)
}
