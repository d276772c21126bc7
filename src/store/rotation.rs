//! Another data key: all sealed values are sealed anew while the daemon goes on, and then the old key is retired.
//!
//! The keyring is the record of how far it has come: while it has more than the current key, a rotation is
//! under way. So it goes on after any stop, and each of its steps can be done twice:
//!
//! 1. A new key is in the keyring file, with the old one, before anything is sealed with it.
//! 2. Rows are sealed anew, a few in one transaction. What does not open stays as it is.
//! 3. When nothing that opens is left under the old key, in a table or in the spill file, it goes from the keyring.
//!    That shreds all old bytes: in free pages, in the log, in stolen copies of the database without its old keyring.
//!
//! Nothing is sealed with an old key after step 1, because a [`SharedKeyring`](super::keyring::SharedKeyring) is
//! replaced between transactions only. What is committed is looked at for step 3: an uncommitted deletion could
//! still be undone. Token sets that are held in memory are not sealed, and fingerprints have a key of their own.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::grants;
use super::keyring::{self, Keyring};
use super::revocations;
use super::rows::{self, Opened, Resealed, count};
use super::seal::Purpose;
use super::session::{Session, Trouble};
use super::writer::Class;
use super::{Inner, Store, StoreError};
use crate::refresh::grant::GrantId;
use crate::refresh::time::UnixTime;

/// So many rows are sealed anew in one transaction. Outcomes and marks wait for one such group at most: some
/// milliseconds, as for one more fsync.
const GROUP: i64 = 32;

/// The data keys of an open store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The id of the one that seals.
    pub current: u32,
    /// The ids of those that only open: a rotation is to retire them.
    pub old: Vec<u32>,
}

/// Where a pass over the sealed rows is. The default is its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    table: Table,
    after: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Table {
    #[default]
    Grants,
    Revocations,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Table::Grants => "grants",
            Table::Revocations => "revocations",
        }
    }
}

/// What one step of a pass has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where the next step begins; `None` at the end.
    pub next: Option<Place>,
    /// How many rows were looked at.
    pub rows: u64,
}

/// What became of retiring the old keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// They are gone from the keyring.
    Done {
        /// Rows that did not open under them, and never will.
        unopenable: u64,
    },
    /// Something that opens is still sealed with one of them.
    InUse {
        /// Rows.
        rows: u64,
        /// Token sets in the spill file.
        spilled: u64,
    },
}

/// Why a step of a rotation did not work. Whatever was sealed still opens.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// A rotation is under way.
    #[error("a key rotation is under way")]
    UnderWay,
    /// The keyring file could not be written; the old one may stand, or the new one.
    #[error("{path} could not be written: {source}", path = path.display())]
    Keyring {
        /// The keyring.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The spill file could not be read.
    #[error("the spill file could not be read: {0}")]
    Spill(io::Error),
    /// The database could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Returns the ids of the data keys.
    pub fn keys(&self) -> Keys {
        let keyring = self.inner.keyring.read();
        Keys {
            current: keyring.current(),
            old: keyring.old_keys(),
        }
    }

    /// Begins a rotation: everything is sealed with a new data key from now on. Returns its id.
    ///
    /// # Errors
    /// One is under way, or the keyring could not be written: then the old key goes on. Where the write
    /// may have reached the disk all the same, the next start finds a rotation to go on with.
    pub async fn begin_rotation(&self) -> Result<u32, RotationError> {
        self.blocking(|inner| {
            let new = {
                let keyring = inner.keyring.read();
                if !keyring.old_keys().is_empty() {
                    return Err(RotationError::UnderWay);
                }
                keyring.with_new_key()
            };
            let id = new.current();
            replace(inner, new)?;
            Ok(id)
        })
        .await
    }

    /// Returns how many rows are not sealed with the current key. Reads the whole store.
    pub async fn rows_to_reseal(&self) -> Result<u64, StoreError> {
        self.read(|session| {
            let current = session.keyring.current();
            let mut rows = 0;
            for table in [Table::Grants, Table::Revocations] {
                let sql = format!("SELECT count(*) FROM {} WHERE key_id <> ?1", table.name());
                rows += session
                    .first(&sql, [current], |row| count(row, 0))?
                    .unwrap_or(0);
            }
            Ok(rows)
        })
        .await
    }

    /// Seals the next few rows with the current key. A grant one of whose tokens does not open is quarantined.
    ///
    /// # Errors
    /// The database could not be read or written; the same place may be asked for again.
    pub async fn reseal(&self, place: Place, at: UnixTime) -> Result<Page, StoreError> {
        let ids = self
            .read(move |session| not_current(session, place))
            .await?;
        let Some(last) = ids.last().copied() else {
            let next = (place.table == Table::Grants).then_some(Place {
                table: Table::Revocations,
                after: 0,
            });
            return Ok(Page { next, rows: 0 });
        };
        let rows = ids.len() as u64;
        self.write(Class::Rest, move |session| {
            ids.iter()
                .try_for_each(|id| reseal_row(session, place.table, *id, at))
        })
        .await?;
        let next = Some(Place {
            after: last,
            ..place
        });
        Ok(Page { next, rows })
    }

    /// Retires the old keys, if nothing that opens is sealed with them any more.
    ///
    /// # Errors
    /// They stay, and may be retired later.
    pub async fn retire_keys(&self) -> Result<Retired, RotationError> {
        let (rows, unopenable) = self.read(left_over).await?;
        self.blocking(move |inner| {
            let keyring = inner.keyring.read();
            let spilled = match &inner.spill {
                Some(spill) => spill.sealed_with_old_keys(&keyring),
                None => Ok(0),
            };
            let spilled = spilled.map_err(RotationError::Spill)?;
            if rows > 0 || spilled > 0 {
                return Ok(Retired::InUse { rows, spilled });
            }
            let new = keyring.without_old_keys();
            drop(keyring);
            replace(inner, new)?;
            Ok(Retired::Done { unopenable })
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, RotationError> + Send + 'static,
    ) -> Result<T, RotationError> {
        let inner = Arc::clone(&self.inner);
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.unwrap_or(Err(RotationError::Store(StoreError::Closed)))
    }
}

/// On disk first, then in use.
fn replace(inner: &Inner, new: Keyring) -> Result<(), RotationError> {
    let path = &inner.layout.keyring;
    keyring::write_file(path, &new.text()).map_err(|source| RotationError::Keyring {
        path: path.clone(),
        source,
    })?;
    inner.keyring.replace(new);
    Ok(())
}

fn not_current(session: &Session<'_>, place: Place) -> Result<Vec<i64>, Trouble> {
    let sql = format!(
        "SELECT id FROM {} WHERE id > ?1 AND key_id <> ?2 ORDER BY id LIMIT ?3",
        place.table.name()
    );
    let current = i64::from(session.keyring.current());
    session.all(&sql, [place.after, current, GROUP], |row| row.get(0))
}

fn reseal_row(session: &Session<'_>, table: Table, id: i64, at: UnixTime) -> Result<(), Trouble> {
    match table {
        Table::Grants => {
            let Some(grant) = rows::by_id(session, GrantId(id))? else {
                return Ok(());
            };
            if rows::reseal(session, &grant)? == Resealed::Broken {
                grants::quarantine(session, grant.id, at)?;
            }
        }
        Table::Revocations => {
            if !revocations::reseal(session, id)? {
                revocations::set_aside_if_broken(session, id)?;
            }
        }
    }
    Ok(())
}

/// Returns how many rows under another than the current key have something that opens, and how many have not.
fn left_over(session: &Session<'_>) -> Result<(u64, u64), Trouble> {
    let (mut openable, mut unopenable) = (0, 0);
    for table in [Table::Grants, Table::Revocations] {
        let mut place = Place { table, after: 0 };
        loop {
            let ids = not_current(session, place)?;
            let Some(last) = ids.last() else { break };
            place.after = *last;
            for id in ids {
                match opens(session, table, id)? {
                    true => openable += 1,
                    false => unopenable += 1,
                }
            }
        }
    }
    Ok((openable, unopenable))
}

fn opens(session: &Session<'_>, table: Table, id: i64) -> Result<bool, Trouble> {
    if table == Table::Revocations {
        return revocations::opens_by_id(session, id);
    }
    let Some(grant) = rows::by_id(session, GrantId(id))? else {
        return Ok(false);
    };
    for purpose in [Purpose::Access, Purpose::Refresh] {
        if matches!(rows::open(session, &grant, purpose)?, Opened::Secret(_)) {
            return Ok(true);
        }
    }
    Ok(false)
}
