//! Which refresh tokens a grant has had, as keyed fingerprints: equal ones are told without being kept.
//!
//! They stand in the grant's own row, which every new token set writes anyhow.

use std::fmt;

use super::session::{Session, Trouble};
use crate::refresh::grant::GrantId;
use crate::refresh::token::RefreshToken;

/// A grant remembers this many refresh tokens. More would let them outgrow
/// the grant; an app pushes back a token that is one or two old.
pub(super) const REMEMBERED: usize = 32;

/// Enough that no two of a grant's tokens are ever taken for one another, and nobody can make one that is.
const LEN: usize = 8;

/// The beginning of a keyed fingerprint (HMAC-SHA256): enough to tell a grant's refresh tokens apart by eye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short(pub [u8; 4]);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A grant's remembered refresh tokens, the newest last; as the row holds them.
#[derive(Default)]
pub(super) struct Remembered(Vec<u8>);

impl Remembered {
    /// Reads those of a grant. Where there is no such row, there are none.
    pub(super) fn of(session: &Session<'_>, id: GrantId) -> Result<Remembered, Trouble> {
        let sql = "SELECT refresh_tokens FROM grants WHERE id = ?1";
        let found = session.first(sql, [id.0], |row| row.get::<_, Option<Vec<u8>>>(0))?;
        Ok(Remembered(found.flatten().unwrap_or_default()))
    }

    /// Adds one as the newest, and forgets the oldest.
    pub(super) fn add(&mut self, session: &Session<'_>, token: &RefreshToken) {
        let new = fingerprint(session, token);
        let mut all: Vec<&[u8]> = self.0.chunks_exact(LEN).filter(|old| *old != new).collect();
        all.push(&new);
        let newest = all.len().saturating_sub(REMEMBERED);
        self.0 = all[newest..].concat();
    }

    /// Returns how the newest is shown.
    pub(super) fn newest(&self) -> Option<Short> {
        self.0.chunks_exact(LEN).last().map(short)
    }

    /// Returns what the row is to hold.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        (!self.0.is_empty()).then_some(&self.0)
    }
}

/// Returns how the refresh token that a grant has is shown.
pub(super) fn newest(session: &Session<'_>, id: GrantId) -> Result<Option<Short>, Trouble> {
    Ok(Remembered::of(session, id)?.newest())
}

/// Returns how a refresh token is shown.
pub(super) fn shown(session: &Session<'_>, token: &RefreshToken) -> Short {
    short(&fingerprint(session, token))
}

/// Returns whether the grant has, or had, this refresh token.
pub(super) fn knows(
    session: &Session<'_>,
    id: GrantId,
    token: &RefreshToken,
) -> Result<bool, Trouble> {
    let wanted = fingerprint(session, token);
    let remembered = Remembered::of(session, id)?;
    Ok(remembered.0.chunks_exact(LEN).any(|one| one == wanted))
}

fn fingerprint(session: &Session<'_>, token: &RefreshToken) -> [u8; LEN] {
    let whole = session
        .keyring
        .fingerprint("refresh-token", token.expose().as_bytes());
    let mut fingerprint = [0; LEN];
    fingerprint.copy_from_slice(&whole[..LEN]);
    fingerprint
}

fn short(fingerprint: &[u8]) -> Short {
    let mut short = [0; 4];
    short.copy_from_slice(&fingerprint[..4]);
    Short(short)
}
