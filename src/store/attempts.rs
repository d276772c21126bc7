//! An attempt's writes: its mark, and how it ended.

use std::sync::Arc;

use rusqlite::params;

use super::events;
use super::fingerprints::{self, Remembered};
use super::grants::load;
use super::history::{self, By, Entry, Event};
use super::revocations::{self, Revocable};
use super::rows::{self, millis};
use super::session::{Session, Trouble};
use super::writer::Class;
use super::{Store, StoreError};
use crate::refresh::grant::{Grant, GrantId, Mark, NeedsReason, PauseReason, Standing};
use crate::refresh::time::UnixTime;
use crate::refresh::token::TokenSet;

/// What became of a compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "short-lived, and nearly always applied"
)]
pub enum Cas {
    /// It was applied; this is the grant now.
    Applied(Grant),
    /// The grant has another generation now, or is gone.
    Lost,
}

/// A token set that an attempt brought.
#[derive(Clone, Debug)]
pub struct TokenCommit {
    /// The grant.
    pub id: GrantId,
    /// Its provider: a set that loses is revoked there, even if the grant is gone.
    pub provider: String,
    /// The generation whose refresh token was presented.
    pub presented_generation: u64,
    /// The whole set, the kept refresh token and scope included (RFC 6749 §6). Shared, because
    /// the caller holds it until it is stored (I2).
    pub tokens: Arc<TokenSet>,
    /// When the grant is due next.
    pub due_at: Option<UnixTime>,
    /// Its standing from now on.
    pub standing: Standing,
    /// Refreshes in a row that nobody read, this one included.
    pub unused_refreshes: u32,
    /// Now.
    pub at: UnixTime,
}

/// What an ended attempt writes when no token set came.
#[derive(Clone, Debug)]
pub struct Failure {
    /// A short code, ours.
    pub code: String,
    /// The HTTP status of the answer, if a whole one came.
    pub status: Option<u16>,
    /// When the next attempt is due.
    pub due_at: Option<UnixTime>,
    /// Failures in a row, this one included.
    pub failures: u32,
    /// Whether the request's fate stays unknown: then the mark stays.
    pub fate_unknown: bool,
    /// Since when the server refuses the grant without saying why.
    pub refused_since: Option<UnixTime>,
    /// A change of standing, if this failure is a verdict.
    pub needs_authorization: Option<NeedsReason>,
    /// Now.
    pub at: UnixTime,
}

impl Store {
    /// Writes the mark of an attempt, before its request leaves; a mark that is there counts one more. Where it matters
    /// that the row is still as it was read, `unchanged` has the version and the mark that it had then.
    ///
    /// The row's `version` stays: a mark is not in the row.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] where a new token set might not fit: then no request may leave.
    pub async fn begin_attempt(
        &self,
        id: GrantId,
        generation: u64,
        unchanged: Option<(u64, Option<Mark>)>,
        at: UnixTime,
    ) -> Result<Cas, StoreError> {
        self.write(Class::Mark, move |session| {
            begin(session, id, generation, unchanged, at)
        })
        .await
    }

    /// Stores a token set if the grant still has the generation whose refresh token was presented (I3).
    ///
    /// The generation goes up by one, the mark goes, failures end. A pause that an admin
    /// (or a held import) put on the grant meanwhile stays, without a due time. A set that lost goes to the
    /// revocation queue in the same transaction, unless its refresh token is this grant's anyhow.
    ///
    /// # Errors
    /// On any error nothing was changed: keep the set and call again (I2).
    pub async fn commit_tokens(&self, commit: TokenCommit) -> Result<Cas, StoreError> {
        self.write(Class::Outcome, move |session| {
            commit_tokens(session, &commit)
        })
        .await
    }

    /// Records an attempt that brought no token set.
    ///
    /// The mark counts one less unless the request's fate stays unknown, and goes at none.
    pub async fn record_failure(
        &self,
        id: GrantId,
        generation: u64,
        failure: Failure,
    ) -> Result<Cas, StoreError> {
        self.write(Class::Outcome, move |session| {
            fail(session, id, generation, &failure)
        })
        .await
    }
}

fn at_generation(
    session: &Session<'_>,
    id: GrantId,
    generation: u64,
) -> Result<Option<Grant>, Trouble> {
    Ok(rows::by_id(session, id)?.filter(|grant| grant.generation == generation))
}

fn begin(
    session: &Session<'_>,
    id: GrantId,
    generation: u64,
    unchanged: Option<(u64, Option<Mark>)>,
    at: UnixTime,
) -> Result<Cas, Trouble> {
    session.disk.check_room()?;
    let found = at_generation(session, id, generation)?
        .filter(|grant| unchanged.is_none_or(|it| it == (grant.version, grant.mark)));
    let Some(grant) = found else {
        return Ok(Cas::Lost);
    };
    if let Some(mark) = grant.mark {
        history::tell_of_interrupted(session, &grant, mark, at)?;
    }
    session.write(
        "INSERT INTO marks (grant_id, first_sent_at, presented) VALUES (?1, ?2, 1)
         ON CONFLICT DO UPDATE SET presented = presented + 1",
        params![id.0, at.as_millis()],
    )?;
    let mark = match grant.mark {
        None => Mark {
            first_sent_at: at,
            presented: 1,
        },
        Some(mark) => Mark {
            presented: mark.presented.saturating_add(1),
            ..mark
        },
    };
    Ok(Cas::Applied(Grant {
        mark: Some(mark),
        ..grant
    }))
}

fn take_back_mark(session: &Session<'_>, id: GrantId) -> Result<(), Trouble> {
    session.write(
        "UPDATE marks SET presented = presented - 1 WHERE grant_id = ?1",
        [id.0],
    )?;
    session.write(
        "DELETE FROM marks WHERE grant_id = ?1 AND presented <= 0",
        [id.0],
    )?;
    Ok(())
}

fn commit_tokens(session: &Session<'_>, commit: &TokenCommit) -> Result<Cas, Trouble> {
    let Some(grant) = at_generation(session, commit.id, commit.presented_generation)? else {
        queue_lost_set(session, commit)?;
        return Ok(Cas::Lost);
    };
    let generation = grant.generation + 1;
    let (standing, due_at) =
        match grant.standing {
            put @ Standing::Paused(
                PauseReason::Admin | PauseReason::Held | PauseReason::Restored,
            ) if put != commit.standing => (put, None),
            _ => (commit.standing, commit.due_at),
        };
    let since = if standing == grant.standing {
        grant.standing_since
    } else {
        commit.at
    };
    let tokens = &commit.tokens;
    let sealed = rows::seal(session, grant.id, &grant.key, generation, tokens);
    let mut remembered = Remembered::of(session, grant.id)?;
    let presented = remembered.newest();
    if let Some(token) = &tokens.refresh_token {
        remembered.add(session, token);
    }
    session.write(
        "UPDATE OR FAIL grants SET version = version + 1, generation = ?2, standing = ?3, reason = ?4,
            standing_since = ?5, token_type = ?6, obtained_at = ?7, expires_at = ?8, scope = ?9,
            due_at = ?10, refreshed_at = ?11, attempted_at = ?11, failures = 0,
            last_failure = NULL, unused_refreshes = ?12, key_id = ?13, access_token = ?14,
            refresh_token = ?15, refresh_tokens = ?16, refused_since = NULL,
            refresh_token_expires_at = ?17, refresh_token_warn_at = ?18
         WHERE id = ?1",
        params![
            grant.id.0,
            generation as i64,
            standing.name(),
            standing.reason(),
            since.as_millis(),
            tokens.token_type,
            tokens.obtained_at.as_millis(),
            sealed.expires_at,
            tokens.scope,
            millis(due_at),
            commit.at.as_millis(),
            commit.unused_refreshes,
            sealed.key_id,
            sealed.access_token,
            sealed.refresh_token,
            remembered.bytes(),
            millis(tokens.refresh_token_end.map(|end| end.expires_at)),
            millis(tokens.refresh_token_end.and_then(|end| end.warn_at)),
        ],
    )?;
    session.write("DELETE FROM marks WHERE grant_id = ?1", [grant.id.0])?;
    let refreshed = Entry {
        presented,
        received: remembered.newest(),
        ..Entry::new(Event::Refreshed, commit.at, generation)
    };
    history::tell(session, grant.id, &refreshed)?;
    let now = load(session, grant.id)?;
    events::tell_of_change(session, grant.standing, &now, commit.at)?;
    Ok(Cas::Applied(now))
}

/// A lost set must not live on unseen; but one whose refresh token the grant has, or had, is no stranger:
/// revoking it would end the grant where refresh tokens stay the same.
fn queue_lost_set(session: &Session<'_>, commit: &TokenCommit) -> Result<(), Trouble> {
    let tokens = &commit.tokens;
    let lost = match (&tokens.refresh_token, &tokens.access_token) {
        (Some(token), _) if fingerprints::knows(session, commit.id, token)? => return Ok(()),
        (Some(token), _) => Revocable::Refresh(token),
        (None, Some(token)) => Revocable::Access(token),
        (None, None) => return Ok(()),
    };
    revocations::queue(session, &commit.provider, lost, commit.at)?;
    if let Some(grant) = rows::by_id(session, commit.id)? {
        let superseded = Entry {
            received: tokens
                .refresh_token
                .as_ref()
                .map(|token| fingerprints::shown(session, token)),
            ..Entry::new(Event::Superseded, commit.at, grant.generation)
        };
        history::tell(session, grant.id, &superseded)?;
    }
    Ok(())
}

fn fail(
    session: &Session<'_>,
    id: GrantId,
    generation: u64,
    failure: &Failure,
) -> Result<Cas, Trouble> {
    let Some(grant) = at_generation(session, id, generation)? else {
        return Ok(Cas::Lost);
    };
    let standing = match failure.needs_authorization {
        Some(reason) => Standing::NeedsAuthorization(reason),
        None => grant.standing,
    };
    let since = if standing == grant.standing {
        grant.standing_since
    } else {
        failure.at
    };
    // A pause that came while the request was out has taken the due time away for good.
    let due_at = match grant.standing {
        Standing::Paused(PauseReason::Admin | PauseReason::Held | PauseReason::Restored)
            if grant.due_at.is_none() =>
        {
            None
        }
        _ => failure.due_at,
    };
    session.write(
        "UPDATE OR FAIL grants SET version = version + 1, standing = ?2, reason = ?3,
            standing_since = ?4, due_at = ?5, attempted_at = ?6, failures = ?7, last_failure = ?8,
            refused_since = ?9
         WHERE id = ?1",
        params![
            id.0,
            standing.name(),
            standing.reason(),
            since.as_millis(),
            millis(due_at),
            failure.at.as_millis(),
            failure.failures,
            failure.code,
            millis(failure.refused_since),
        ],
    )?;
    if !failure.fate_unknown {
        take_back_mark(session, id)?;
    }
    tell_failure(session, &grant, failure)?;
    let now = load(session, id)?;
    events::tell_of_change(session, grant.standing, &now, failure.at)?;
    Ok(Cas::Applied(now))
}

fn tell_failure(session: &Session<'_>, grant: &Grant, failure: &Failure) -> Result<(), Trouble> {
    let event = if failure.fate_unknown {
        Event::Unanswered
    } else {
        Event::Failed
    };
    let failed = Entry {
        detail: failure.code.clone(),
        status: failure.status,
        presented: fingerprints::newest(session, grant.id)?,
        ..Entry::new(event, failure.at, grant.generation)
    };
    history::tell(session, grant.id, &failed)?;
    let Some(reason) = failure.needs_authorization else {
        return Ok(());
    };
    let standing = Standing::NeedsAuthorization(reason);
    let verdict = Entry::standing(standing, failure.at, grant.generation, By::Schedule);
    history::tell(session, grant.id, &verdict)
}
