//! Which refresh tokens a grant has had, as keyed fingerprints: equal ones are told without being kept.

use rusqlite::params;

use super::session::{Session, Trouble};
use crate::refresh::grant::GrantId;
use crate::refresh::token::{RefreshToken, TokenSet};

/// A grant remembers the refresh tokens of this many generations. More would let
/// the table outgrow the grants; an app pushes back a token that is one or two old.
pub(super) const REMEMBERED: u64 = 32;

/// Notes that the grant got `tokens` at `generation`, and forgets the oldest.
pub(super) fn note(
    session: &Session<'_>,
    id: GrantId,
    generation: u64,
    tokens: &TokenSet,
) -> Result<(), Trouble> {
    if let Some(token) = &tokens.refresh_token {
        session.write(
            "INSERT INTO fingerprints (grant_id, fingerprint, generation) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET generation = excluded.generation",
            params![id.0, fingerprint(session, token), generation as i64],
        )?;
    }
    session.write(
        "DELETE FROM fingerprints WHERE grant_id = ?1 AND generation <= ?2",
        params![id.0, generation.saturating_sub(REMEMBERED) as i64],
    )?;
    Ok(())
}

/// Returns whether the grant has, or had, this refresh token.
pub(super) fn knows(
    session: &Session<'_>,
    id: GrantId,
    token: &RefreshToken,
) -> Result<bool, Trouble> {
    let known = session.first(
        "SELECT 1 FROM fingerprints WHERE grant_id = ?1 AND fingerprint = ?2",
        params![id.0, fingerprint(session, token)],
        |_| Ok(()),
    )?;
    Ok(known.is_some())
}

/// Forgets a grant's history.
pub(super) fn forget(session: &Session<'_>, id: GrantId) -> Result<(), Trouble> {
    session.write("DELETE FROM fingerprints WHERE grant_id = ?1", [id.0])?;
    Ok(())
}

fn fingerprint(session: &Session<'_>, token: &RefreshToken) -> [u8; 32] {
    session
        .keyring
        .fingerprint("refresh-token", token.expose().as_bytes())
}
