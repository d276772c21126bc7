//! Grants: reading, importing, pausing and deleting them; and what happens to a value that does not open.

use std::sync::Arc;

use rusqlite::params;

use super::erasures;
use super::events;
use super::fingerprints::{self, Remembered};
use super::history::{self, By, Entry, Event};
use super::reader::For;
use super::revocations::{self, Revocable};
use super::rows::{self, Opened, SealedTokens, millis, select_grant};
use super::seal::Purpose;
use super::session::{Session, Trouble};
use super::writer::Class;
use super::{Cas, Store, StoreError};
use crate::refresh::grant::{Grant, GrantId, GrantKey, PauseReason, Standing};
use crate::refresh::reading::Readable;
use crate::refresh::time::UnixTime;
use crate::refresh::token::{AccessToken, RefreshToken, TokenSet};

/// A grant with what an attempt needs.
#[derive(Clone, Debug)]
pub struct Attemptable {
    /// The grant, its mark included.
    pub grant: Grant,
    /// When its user was last active, as far as that was written.
    pub last_active_at: Option<UnixTime>,
    /// The refresh token, if there is one and it opens.
    pub refresh_token: Option<RefreshToken>,
}

/// What is to be imported.
///
/// The refresh token of a grant that is replaced is not revoked: at many providers it belongs to the same
/// authorization as the new one, and its revocation would end both (RFC 7009 §2.1).
#[derive(Clone, Debug)]
pub struct Import {
    /// Whose grant.
    pub key: GrantKey,
    /// What the app has.
    pub tokens: TokenSet,
    /// When it is due.
    pub due_at: Option<UnixTime>,
    /// Its standing: active, or paused as held.
    pub standing: Standing,
    /// Whether a grant that is there is replaced.
    pub replace: bool,
    /// Now.
    pub at: UnixTime,
}

/// What became of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Imported {
    /// A new grant.
    Created(Grant),
    /// Replaced; its generation went up by one.
    Replaced(Grant),
    /// The refresh token is already in this grant's history (or is its present one): nothing was changed.
    Unchanged(Grant),
    /// There is one already, and `replace` was not said.
    Exists(Grant),
}

impl Store {
    /// Returns one grant.
    pub async fn grant(&self, key: &GrantKey) -> Result<Option<Grant>, StoreError> {
        let key = key.clone();
        self.read_for_caller(move |session| rows::by_key(session, &key))
            .await
    }

    /// Returns one grant by its row number.
    pub async fn grant_by_id(&self, id: GrantId) -> Result<Option<Grant>, StoreError> {
        self.read(move |session| rows::by_id(session, id)).await
    }

    /// Returns one grant and its access token. A value that does not open is quarantined, and absent.
    pub async fn readable(
        &self,
        key: &GrantKey,
        at: UnixTime,
    ) -> Result<Option<Readable>, StoreError> {
        let key = key.clone();
        let found = self
            .opened(For::Caller, Purpose::Access, at, move |session| {
                Ok(rows::by_key(session, &key)?.map(|grant| (grant, ())))
            })
            .await?;
        Ok(found.map(|(grant, (), token)| Readable::new(grant, token.map(AccessToken::new))))
    }

    /// Returns one grant, its mark, its user's last activity and its refresh token. A value that does not open is
    /// quarantined, and absent.
    pub async fn attemptable(
        &self,
        id: GrantId,
        at: UnixTime,
    ) -> Result<Option<Attemptable>, StoreError> {
        let found = self
            .opened(For::Daemon, Purpose::Refresh, at, move |session| {
                let Some(grant) = rows::by_id(session, id)? else {
                    return Ok(None);
                };
                let last_active_at =
                    rows::last_activity(session, &grant.key.namespace, &grant.key.user)?;
                Ok(Some((grant, last_active_at)))
            })
            .await?;
        Ok(found.map(|(grant, last_active_at, token)| Attemptable {
            grant,
            last_active_at,
            refresh_token: token.map(RefreshToken::new),
        }))
    }

    /// Reads a grant, and what `find` finds with it, and opens one of its tokens.
    async fn opened<F, T>(
        &self,
        whom: For,
        purpose: Purpose,
        at: UnixTime,
        find: F,
    ) -> Result<Option<(Grant, T, Option<String>)>, StoreError>
    where
        F: Fn(&Session<'_>) -> Result<Option<(Grant, T)>, Trouble> + Send + 'static,
        T: Send + 'static,
    {
        let open = move |session: &Session<'_>| match find(session)? {
            Some((grant, more)) => {
                let opened = rows::open(session, &grant, purpose)?;
                Ok(Some((grant, more, opened)))
            }
            None => Ok(None),
        };
        let read = match whom {
            For::Caller => self.read_for_caller(open).await?,
            For::Daemon => self.read(open).await?,
        };
        let Some((grant, more, opened)) = read else {
            return Ok(None);
        };
        let grant = self.quarantine_if_broken(grant, &opened, at).await;
        // The string moves into the token unwiped: both newtypes wipe what they hold.
        let token = opened.secret().map(|mut token| std::mem::take(&mut *token));
        Ok(Some((grant, more, token)))
    }

    /// Returns all grants of one user, by provider and account.
    pub async fn grants_of_user(
        &self,
        namespace: &str,
        user: &str,
    ) -> Result<Vec<Grant>, StoreError> {
        let (namespace, user) = (namespace.to_owned(), user.to_owned());
        self.read_for_caller(move |session| {
            session.all(
                select_grant!(
                    "WHERE g.namespace = ?1 AND g.user = ?2 ORDER BY g.provider, g.account"
                ),
                [namespace, user],
                rows::grant,
            )
        })
        .await
    }

    /// Imports what an app already has.
    ///
    /// A refresh token in this grant's history changes nothing, so an app that pushes what it
    /// had can't bring back a spent one; only a quarantined grant takes it, to be healed.
    /// A replaced grant goes on with the next generation (I3), without mark and failures.
    pub async fn import(&self, import: Import) -> Result<Imported, StoreError> {
        self.write(Class::Rest, move |session| take_in(session, &import))
            .await
    }

    /// Sets a grant's standing and due time, and tells in its story by whom. `None` if the grant is gone.
    pub async fn set_standing(
        &self,
        id: GrantId,
        standing: Standing,
        due_at: Option<UnixTime>,
        by: By,
        at: UnixTime,
    ) -> Result<Option<Grant>, StoreError> {
        self.write(Class::Rest, move |session| {
            put_standing(session, id, standing, due_at, by, at)
        })
        .await
    }

    /// Tells that a refresh token ends soon, once, if the grant still has this generation.
    pub async fn warn_of_end(
        &self,
        id: GrantId,
        generation: u64,
        at: UnixTime,
    ) -> Result<Cas, StoreError> {
        self.write(Class::Rest, move |session| {
            let changed = session.write(
                "UPDATE grants SET version = version + 1, refresh_token_warn_at = NULL
                 WHERE id = ?1 AND generation = ?2",
                params![id.0, generation as i64],
            )?;
            if changed == 0 {
                return Ok(Cas::Lost);
            }
            let grant = load(session, id)?;
            events::tell_of_end(session, &grant, at)?;
            Ok(Cas::Applied(grant))
        })
        .await
    }

    /// Deletes a grant, its mark and its story; with the user's last grant goes the user's activity.
    ///
    /// With `revoke`, what its provider's revocation needs lives on as a sealed, nameless
    /// job: the refresh token, or the access token where there is none. Returns the grant as it was.
    pub async fn delete(
        &self,
        key: &GrantKey,
        at: UnixTime,
        revoke: bool,
    ) -> Result<Option<Grant>, StoreError> {
        let key = key.clone();
        // In the erasure journal first; see there. A grant that is not there leaves no trace in it.
        let _gate = self.inner.erasures.gate.read().await;
        if let Some(grant) = self.grant(&key).await? {
            self.journal_erasure(&key, at).await?;
            self.inner.gone.note(grant.id, &key);
        }
        self.write(Class::Rest, move |session| {
            remove(session, &key, at, revoke)
        })
        .await
    }

    async fn journal_erasure(&self, key: &GrantKey, at: UnixTime) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.inner);
        let erased = erasures::name(&inner.keyring.read(), key);
        let written = tokio::task::spawn_blocking(move || inner.erasures.append(&erased, at)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(%error, "erasure-not-journaled");
                Err(StoreError::Unavailable)
            }
            Err(_) => Err(StoreError::Closed),
        }
    }

    /// Pauses a grant one of whose values does not open, and says so once.
    ///
    /// Returns the grant as it is afterwards; as it was if it can't be written now, and
    /// the next read tries again.
    async fn quarantine_if_broken(&self, grant: Grant, opened: &Opened, at: UnixTime) -> Grant {
        let quarantined = Standing::Paused(PauseReason::Quarantined);
        if !matches!(opened, Opened::Broken) || grant.standing == quarantined {
            return grant;
        }
        let id = grant.id;
        match self
            .write(Class::Rest, move |session| quarantine(session, id, at))
            .await
        {
            Ok(Some(now)) => now,
            Ok(None) | Err(_) => grant,
        }
    }
}

/// Returns a grant that this transaction has just written.
pub(super) fn load(session: &Session<'_>, id: GrantId) -> Result<Grant, Trouble> {
    rows::by_id(session, id)?.ok_or(Trouble::Sqlite(rusqlite::Error::QueryReturnedNoRows))
}

pub(super) fn quarantine(
    session: &Session<'_>,
    id: GrantId,
    at: UnixTime,
) -> Result<Option<Grant>, Trouble> {
    let Some(grant) = rows::by_id(session, id)? else {
        return Ok(None);
    };
    let mut broken = Vec::new();
    for purpose in [Purpose::Access, Purpose::Refresh] {
        if matches!(rows::open(session, &grant, purpose)?, Opened::Broken) {
            broken.push(purpose.name());
        }
    }
    let quarantined = Standing::Paused(PauseReason::Quarantined);
    // An import or another reader may have been faster.
    if broken.is_empty() || grant.standing == quarantined {
        return Ok(Some(grant));
    }
    tracing::error!(
        grant = id.0,
        provider = grant.key.provider,
        broken = broken.join(","),
        "quarantined"
    );
    put_standing(session, id, quarantined, None, By::Store, at)
}

fn put_standing(
    session: &Session<'_>,
    id: GrantId,
    standing: Standing,
    due_at: Option<UnixTime>,
    by: By,
    at: UnixTime,
) -> Result<Option<Grant>, Trouble> {
    let Some(grant) = rows::by_id(session, id)? else {
        return Ok(None);
    };
    let since = if standing == grant.standing {
        grant.standing_since
    } else {
        at
    };
    session.write(
        "UPDATE OR FAIL grants SET version = version + 1, standing = ?2, reason = ?3,
            standing_since = ?4, due_at = ?5
         WHERE id = ?1",
        params![
            id.0,
            standing.name(),
            standing.reason(),
            since.as_millis(),
            millis(due_at)
        ],
    )?;
    if standing != grant.standing {
        let changed = Entry::standing(standing, at, grant.generation, by);
        history::tell(session, id, &changed)?;
    }
    let now = load(session, id)?;
    events::tell_of_change(session, grant.standing, &now, at)?;
    Ok(Some(now))
}

fn take_in(session: &Session<'_>, import: &Import) -> Result<Imported, Trouble> {
    let Some(grant) = rows::by_key(session, &import.key)? else {
        return create(session, import).map(Imported::Created);
    };
    let heals = import.replace && grant.standing == Standing::Paused(PauseReason::Quarantined);
    if let Some(token) = &import.tokens.refresh_token
        && !heals
        && fingerprints::knows(session, grant.id, token)?
    {
        return Ok(Imported::Unchanged(grant));
    }
    if !import.replace {
        return Ok(Imported::Exists(grant));
    }
    replace(session, &grant, import).map(Imported::Replaced)
}

fn create(session: &Session<'_>, import: &Import) -> Result<Grant, Trouble> {
    // The row's number is part of what the tokens are bound to.
    let id = rows::next_id(session)?;
    let now = put_import(session, id, 1, import, Remembered::default())?;
    events::tell_of_import(session, None, &now)?;
    Ok(now)
}

fn replace(session: &Session<'_>, grant: &Grant, import: &Import) -> Result<Grant, Trouble> {
    session.write("DELETE FROM marks WHERE grant_id = ?1", [grant.id.0])?;
    let (generation, remembered) = (grant.generation + 1, Remembered::of(session, grant.id)?);
    let now = put_import(session, grant.id, generation, import, remembered)?;
    events::tell_of_import(session, Some(grant.standing), &now)?;
    Ok(now)
}

/// Writes the row of a new grant, whose number SQLite gives: one that is given to it may be none, and then it would copy all
/// pages first that the row changes.
const INSERT: &str = "INSERT OR FAIL INTO grants (namespace, user, provider, account, version,
        generation, standing, reason, standing_since, token_type, obtained_at, expires_at, scope,
        due_at, imported_at, failures, unused_refreshes, key_id, access_token, refresh_token,
        refresh_tokens, refresh_token_expires_at, refresh_token_warn_at)
     VALUES (?2, ?3, ?4, ?5, 1, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?9, 0, 0, ?15, ?16,
        ?17, ?18, ?19, ?20)";

/// Writes over the row of a grant; its values are those of [`INSERT`].
const REPLACE: &str = "UPDATE OR FAIL grants SET version = version + 1, generation = ?6,
        standing_since = iif(standing = ?7 AND reason = ?8, standing_since, ?9), standing = ?7,
        reason = ?8, token_type = ?10, obtained_at = ?11, expires_at = ?12, scope = ?13,
        due_at = ?14, imported_at = ?9, refreshed_at = NULL, attempted_at = NULL, failures = 0,
        last_failure = NULL, unused_refreshes = 0, key_id = ?15, access_token = ?16,
        refresh_token = ?17, refresh_tokens = ?18, refused_since = NULL,
        refresh_token_expires_at = ?19, refresh_token_warn_at = ?20
     WHERE id = ?1";

/// Writes the row of an import, or writes over it.
fn put_import(
    session: &Session<'_>,
    id: GrantId,
    generation: u64,
    import: &Import,
    mut remembered: Remembered,
) -> Result<Grant, Trouble> {
    let (key, tokens) = (&import.key, &import.tokens);
    if let Some(token) = &tokens.refresh_token {
        remembered.add(session, token);
    }
    let SealedTokens {
        key_id,
        access_token,
        refresh_token,
        expires_at,
    } = rows::seal(session, id, key, generation, tokens);
    let is_new = generation == 1;
    session.write(
        if is_new { INSERT } else { REPLACE },
        params![
            id.0,
            key.namespace,
            key.user,
            key.provider,
            key.account,
            generation as i64,
            import.standing.name(),
            import.standing.reason(),
            import.at.as_millis(),
            tokens.token_type,
            tokens.obtained_at.as_millis(),
            expires_at,
            tokens.scope,
            millis(import.due_at),
            key_id,
            access_token,
            refresh_token,
            remembered.bytes(),
            millis(tokens.refresh_token_end.map(|end| end.expires_at)),
            millis(tokens.refresh_token_end.and_then(|end| end.warn_at)),
        ],
    )?;
    if is_new && session.conn.last_insert_rowid() != id.0 {
        return Err(rows::misnumbered());
    }
    let event = if is_new {
        Event::Imported
    } else {
        Event::Replaced
    };
    let imported = Entry {
        detail: import.standing.reason().to_owned(),
        received: tokens.refresh_token.as_ref().and(remembered.newest()),
        ..Entry::new(event, import.at, generation)
    };
    if is_new {
        history::begin(session, id, &imported)?;
    } else {
        history::tell(session, id, &imported)?;
    }
    load(session, id)
}

pub(super) fn remove(
    session: &Session<'_>,
    key: &GrantKey,
    at: UnixTime,
    revoke: bool,
) -> Result<Option<Grant>, Trouble> {
    let Some(grant) = rows::by_key(session, key)? else {
        return Ok(None);
    };
    if revoke {
        queue_for_revocation(session, &grant, at)?;
    }
    session.write("DELETE FROM marks WHERE grant_id = ?1", [grant.id.0])?;
    history::forget(session, grant.id)?;
    events::tell_of_deletion(session, &grant, at)?;
    session.write("DELETE FROM grants WHERE id = ?1", [grant.id.0])?;
    session.write(
        "DELETE FROM activity WHERE namespace = ?1 AND user = ?2
            AND NOT EXISTS (SELECT 1 FROM grants WHERE namespace = ?1 AND user = ?2)",
        params![key.namespace, key.user],
    )?;
    Ok(Some(grant))
}

fn queue_for_revocation(session: &Session<'_>, grant: &Grant, at: UnixTime) -> Result<(), Trouble> {
    let provider = &grant.key.provider;
    if let Some(mut token) = rows::open(session, grant, Purpose::Refresh)?.secret() {
        let token = RefreshToken::new(std::mem::take(&mut *token));
        return revocations::queue(session, provider, Revocable::Refresh(&token), at);
    }
    if let Some(mut token) = rows::open(session, grant, Purpose::Access)?.secret() {
        let token = AccessToken::new(std::mem::take(&mut *token));
        return revocations::queue(session, provider, Revocable::Access(&token), at);
    }
    Ok(())
}
