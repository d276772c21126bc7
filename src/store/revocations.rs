//! Tokens that wait to be revoked at their provider (RFC 7009): sealed, and nobody's any more.

use std::fmt;

use rusqlite::{Row, params};
use zeroize::Zeroizing;

use super::rows::{self, count, time};
use super::seal::{Bound, Purpose};
use super::session::{Session, Trouble};
use super::writer::Class;
use super::{Store, StoreError};
use crate::refresh::time::UnixTime;
use crate::refresh::token::{AccessToken, RefreshToken, TokenKind};

/// A waiting revocation's row number; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevocationId(pub i64);

fn purpose(kind: TokenKind) -> Purpose {
    match kind {
        TokenKind::Access => Purpose::RevokeAccess,
        TokenKind::Refresh => Purpose::RevokeRefresh,
    }
}

/// One token that waits to be revoked. Holds a secret; `Debug` leaves it out.
pub struct RevocationJob {
    /// The row's number.
    pub id: RevocationId,
    /// Where it is to be revoked.
    pub provider: String,
    /// What it is.
    pub kind: TokenKind,
    /// The token. Secret.
    pub token: Zeroizing<String>,
    /// How often it was tried.
    pub tries: u32,
    /// Since when it waits.
    pub created_at: UnixTime,
}

impl fmt::Debug for RevocationJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevocationJob")
            .field("id", &self.id)
            .field("provider", &self.provider)
            .field("kind", &self.kind)
            .field("tries", &self.tries)
            .field("created_at", &self.created_at)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Returns the providers at which a revocation's time has come.
    pub async fn revocations_due_at(&self, now: UnixTime) -> Result<Vec<String>, StoreError> {
        self.read(move |session| {
            let sql = "SELECT DISTINCT provider FROM revocations WHERE next_at <= ?1";
            session.all(sql, [now.as_millis()], |row| row.get(0))
        })
        .await
    }

    /// Returns up to `limit` of a provider's revocations whose time has come, the longest waiting first.
    ///
    /// One that does not open is set aside and reported; the others go on.
    pub async fn revocations_due(
        &self,
        provider: &str,
        now: UnixTime,
        limit: usize,
    ) -> Result<Vec<RevocationJob>, StoreError> {
        let provider = provider.to_owned();
        let due = self.read(move |session| due(session, &provider, now, limit));
        let (jobs, broken) = due.await?;
        if !broken.is_empty() {
            self.write(Class::Rest, move |session| set_aside(session, &broken))
                .await?;
        }
        Ok(jobs)
    }

    /// Forgets a revocation: the provider has answered, or never will.
    pub async fn revocation_done(&self, id: RevocationId) -> Result<(), StoreError> {
        self.write(Class::Rest, move |session| {
            session
                .write("DELETE FROM revocations WHERE id = ?1", [id.0])
                .map(drop)
        })
        .await
    }

    /// Notes a try without an answer, and when to try again.
    pub async fn revocation_later(
        &self,
        id: RevocationId,
        next_at: UnixTime,
    ) -> Result<(), StoreError> {
        self.write(Class::Rest, move |session| {
            let sql = "UPDATE revocations SET tries = tries + 1, next_at = ?2 WHERE id = ?1";
            session
                .write(sql, params![id.0, next_at.as_millis()])
                .map(drop)
        })
        .await
    }

    /// Returns how many revocations wait for their provider.
    pub async fn revocations_waiting(&self) -> Result<u64, StoreError> {
        self.read(|session| {
            let sql = "SELECT count(*) FROM revocations WHERE next_at IS NOT NULL";
            Ok(session.first(sql, [], |row| count(row, 0))?.unwrap_or(0))
        })
        .await
    }
}

/// A token to be queued.
pub(super) enum Revocable<'a> {
    Access(&'a AccessToken),
    Refresh(&'a RefreshToken),
}

/// Queues a token, due at once.
pub(super) fn queue(
    session: &Session<'_>,
    provider: &str,
    token: Revocable<'_>,
    at: UnixTime,
) -> Result<(), Trouble> {
    let (kind, token) = match token {
        Revocable::Access(token) => (TokenKind::Access, token.expose()),
        Revocable::Refresh(token) => (TokenKind::Refresh, token.expose()),
    };
    // The row's number is part of what the token is bound to, so the row comes first.
    session.write(
        "INSERT INTO revocations (provider, kind, key_id, token, created_at, next_at, tries)
         VALUES (?1, ?2, 0, x'', ?3, ?3, 0)",
        params![provider, kind.name(), at.as_millis()],
    )?;
    let id = session.conn.last_insert_rowid();
    let (key_id, sealed) = session.keyring.seal(&bound(id, provider, kind), token);
    session.write(
        "UPDATE revocations SET key_id = ?2, token = ?3 WHERE id = ?1",
        params![id, key_id, sealed],
    )?;
    Ok(())
}

fn bound(id: i64, provider: &str, kind: TokenKind) -> Bound<'_> {
    Bound {
        purpose: purpose(kind),
        row: id,
        namespace: "",
        user: "",
        provider,
        account: "",
        generation: 0,
        expires_at: None,
        scope: None,
    }
}

struct Waiting {
    id: i64,
    provider: String,
    /// `None` for a kind that nobody wrote.
    kind: Option<TokenKind>,
    key_id: i64,
    sealed: Vec<u8>,
    created_at: UnixTime,
    tries: u32,
}

fn due(
    session: &Session<'_>,
    provider: &str,
    now: UnixTime,
    limit: usize,
) -> Result<(Vec<RevocationJob>, Vec<i64>), Trouble> {
    let waiting = session.all(
        "SELECT id, provider, kind, key_id, token, created_at, tries FROM revocations
         WHERE next_at <= ?1 AND provider = ?2 ORDER BY next_at, id LIMIT ?3",
        params![now.as_millis(), provider, limit as i64],
        waiting,
    )?;
    let (mut jobs, mut broken) = (Vec::new(), Vec::new());
    for row in waiting {
        let opened = row.kind.and_then(|kind| {
            let bound = bound(row.id, &row.provider, kind);
            let token = session.keyring.open(&bound, row.key_id, &row.sealed);
            Some((kind, token.ok()?))
        });
        match opened {
            Some((kind, token)) => jobs.push(RevocationJob {
                id: RevocationId(row.id),
                token,
                kind,
                tries: row.tries,
                created_at: row.created_at,
                provider: row.provider,
            }),
            None => broken.push(row.id),
        }
    }
    Ok((jobs, broken))
}

fn waiting(row: &Row<'_>) -> rusqlite::Result<Waiting> {
    let name: String = row.get(2)?;
    let kind = [TokenKind::Access, TokenKind::Refresh]
        .into_iter()
        .find(|kind| kind.name() == name);
    Ok(Waiting {
        id: row.get(0)?,
        provider: row.get(1)?,
        kind,
        key_id: row.get(3)?,
        sealed: row.get(4)?,
        created_at: time(row, 5)?,
        tries: count(row, 6)?.try_into().unwrap_or(u32::MAX),
    })
}

fn by_id(session: &Session<'_>, id: i64) -> Result<Option<Waiting>, Trouble> {
    session.first(
        "SELECT id, provider, kind, key_id, token, created_at, tries FROM revocations
         WHERE id = ?1",
        [id],
        waiting,
    )
}

/// Seals a waiting token with the current data key. Returns false if it does not open; then it stays as it is.
pub(super) fn reseal(session: &Session<'_>, id: i64) -> Result<bool, Trouble> {
    let Some(row) = by_id(session, id)? else {
        return Ok(true);
    };
    let Some(kind) = row.kind else {
        return Ok(false);
    };
    let bound = bound(row.id, &row.provider, kind);
    let Some(anew) = rows::reseal_one(session, &bound, row.key_id, &row.sealed) else {
        return Ok(false);
    };
    session.write(
        "UPDATE revocations SET key_id = ?2, token = ?3 WHERE id = ?1",
        params![id, session.keyring.current(), anew],
    )?;
    Ok(true)
}

/// Returns whether a queued token opens.
pub(super) fn opens_by_id(session: &Session<'_>, id: i64) -> Result<bool, Trouble> {
    Ok(by_id(session, id)?.is_some_and(|row| opens(session, &row)))
}

/// So many are opened between two queries.
const PAGE: i64 = 1_000;

/// Opens every waiting token. Returns how many wait, and which don't open.
pub(super) fn open_all(session: &Session<'_>) -> Result<(u64, Vec<i64>), Trouble> {
    let (mut all, mut broken, mut after) = (0, Vec::new(), 0);
    loop {
        let page = session.all(
            "SELECT id, provider, kind, key_id, token, created_at, tries FROM revocations
             WHERE next_at IS NOT NULL AND id > ?1 ORDER BY id LIMIT ?2",
            [after, PAGE],
            waiting,
        )?;
        let Some(last) = page.last() else {
            return Ok((all, broken));
        };
        after = last.id;
        all += page.len() as u64;
        broken.extend(
            page.iter()
                .filter(|row| !opens(session, row))
                .map(|row| row.id),
        );
    }
}

fn opens(session: &Session<'_>, row: &Waiting) -> bool {
    row.kind.is_some_and(|kind| {
        let bound = bound(row.id, &row.provider, kind);
        session
            .keyring
            .open(&bound, row.key_id, &row.sealed)
            .is_ok()
    })
}

/// Sets a revocation aside if it does not open. Returns false if it does.
pub(super) fn set_aside_if_broken(session: &Session<'_>, id: i64) -> Result<bool, Trouble> {
    let row = session.first(
        "SELECT id, provider, kind, key_id, token, created_at, tries FROM revocations
         WHERE next_at IS NOT NULL AND id = ?1",
        [id],
        waiting,
    )?;
    match row {
        Some(row) if opens(session, &row) => Ok(false),
        Some(row) => set_aside(session, &[row.id]).map(|()| true),
        None => Ok(true),
    }
}

fn set_aside(session: &Session<'_>, broken: &[i64]) -> Result<(), Trouble> {
    for id in broken {
        tracing::error!(revocation = id, "quarantined");
        session.write("UPDATE revocations SET next_at = NULL WHERE id = ?1", [id])?;
    }
    Ok(())
}
