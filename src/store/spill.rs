//! The spill file: token sets that the database refuses, kept where writing needs no new space (I2).
//!
//! It lies beside the database, preallocated, and holds sealed records one after the other, each with its
//! length; a length of zero ends them. It is read first at the next start. A record that was torn
//! by a crash does not open, like any other edited one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::attempts::TokenCommit;
use super::keyring::Keyring;
use super::seal::{Bound, Purpose};
use super::{Store, StoreError};
use crate::refresh::grant::{GrantId, Standing};
use crate::refresh::time::UnixTime;
use crate::refresh::token::{AccessToken, RefreshToken, RefreshTokenEnd, TokenSet};

/// Room for the sets of 256 attempts, which is the usual cap, with 16 KiB of tokens each.
const SPILL_BYTES: u64 = 4 << 20;
/// Length, key id, row id and generation precede a sealed record.
const HEAD_LEN: usize = 4 + 4 + 8 + 8;

/// The open spill file.
pub(super) struct Spill {
    path: PathBuf,
    file: File,
    /// Where the next record goes.
    end: Mutex<u64>,
}

/// What a record holds once it is open.
#[derive(Serialize, Deserialize)]
struct Record {
    provider: String,
    access_token: Option<String>,
    token_type: String,
    expires_at: Option<i64>,
    obtained_at: i64,
    refresh_token: Option<String>,
    refresh_token_expires_at: Option<i64>,
    refresh_token_warn_at: Option<i64>,
    scope: Option<String>,
    due_at: Option<i64>,
    standing: String,
    reason: String,
    unused_refreshes: u32,
    at: i64,
}

impl Drop for Record {
    fn drop(&mut self) {
        use zeroize::Zeroize;
        self.access_token.zeroize();
        self.refresh_token.zeroize();
    }
}

impl Spill {
    /// Opens the file, or makes it with its space allocated.
    pub(super) fn open(path: &Path) -> io::Result<Spill> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        if file.metadata()?.len() < SPILL_BYTES {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SPILL_BYTES) {
                Ok(()) => {}
                // A file system that can't allocate gets zeros, which take the same space.
                Err(rustix::io::Errno::OPNOTSUPP) => {
                    file.write_all_at(&vec![0; SPILL_BYTES as usize], 0)?;
                }
                Err(error) => return Err(error.into()),
            }
            file.sync_all()?;
        }
        Ok(Spill {
            path: path.into(),
            file,
            end: Mutex::new(0),
        })
    }

    /// Reads what an earlier process left, and goes on behind it.
    fn read(&self, keyring: &Keyring) -> io::Result<Vec<TokenCommit>> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let mut commits = Vec::new();
        let mut at = 0;
        while let Some((next, head, sealed)) = self.record_at(at)? {
            match opened(keyring, &head, &sealed) {
                Some(commit) => commits.push(commit),
                None => tracing::error!(grant = head.row, broken = "spill", "quarantined"),
            }
            at = next;
        }
        *end = at;
        Ok(commits)
    }

    fn record_at(&self, at: u64) -> io::Result<Option<(u64, Head, Vec<u8>)>> {
        if at + HEAD_LEN as u64 > SPILL_BYTES {
            return Ok(None);
        }
        let mut head = [0; HEAD_LEN];
        self.file.read_exact_at(&mut head, at)?;
        let head = Head::read(&head);
        let next = at + (HEAD_LEN as u64) + u64::from(head.length);
        if head.length == 0 || next > SPILL_BYTES {
            return Ok(None);
        }
        let mut sealed = vec![0; head.length as usize];
        self.file.read_exact_at(&mut sealed, at + HEAD_LEN as u64)?;
        Ok(Some((next, head, sealed)))
    }

    fn append(&self, keyring: &Keyring, commit: &TokenCommit) -> io::Result<()> {
        // What is written to a deleted file no start will find.
        let (ours, there) = (self.file.metadata()?, self.path.symlink_metadata()?);
        if (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let record = Zeroizing::new(serde_json::to_string(&record(commit))?);
        let bound = bound(commit.id.0, commit.presented_generation);
        let (key_id, sealed) = keyring.seal(&bound, &record);
        let head = Head {
            length: u32::try_from(sealed.len()).map_err(io::Error::other)?,
            key_id,
            row: commit.id.0,
            generation: commit.presented_generation,
        };
        let mut bytes = head.bytes().to_vec();
        bytes.extend_from_slice(&sealed);
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let next = *end + bytes.len() as u64;
        // The length that ends the records has to fit as well.
        if next + 4 > SPILL_BYTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        bytes.extend_from_slice(&[0; 4]);
        self.file.write_all_at(&bytes, *end)?;
        self.file.sync_data()?;
        *end = next;
        Ok(())
    }

    /// Returns how many records open, and open with an old data key only.
    pub(super) fn sealed_with_old_keys(&self, keyring: &Keyring) -> io::Result<u64> {
        let end = *self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut old, mut at) = (0, 0);
        while at < end
            && let Some((next, head, sealed)) = self.record_at(at)?
        {
            let is_old = head.key_id != keyring.current();
            old += u64::from(is_old && opened(keyring, &head, &sealed).is_some());
            at = next;
        }
        Ok(old)
    }

    /// Overwrites all records.
    fn clear(&self) -> io::Result<()> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if *end > 0 {
            let used = (*end + 4).min(SPILL_BYTES) as usize;
            self.file.write_all_at(&vec![0; used], 0)?;
            self.file.sync_data()?;
            *end = 0;
        }
        Ok(())
    }
}

struct Head {
    length: u32,
    key_id: u32,
    row: i64,
    generation: u64,
}

impl Head {
    fn bytes(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.key_id.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.row.to_le_bytes());
        bytes[16..].copy_from_slice(&self.generation.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8; HEAD_LEN]) -> Head {
        let four = |at: usize| std::array::from_fn(|i| bytes[at + i]);
        let eight = |at: usize| std::array::from_fn(|i| bytes[at + i]);
        Head {
            length: u32::from_le_bytes(four(0)),
            key_id: u32::from_le_bytes(four(4)),
            row: i64::from_le_bytes(eight(8)),
            generation: u64::from_le_bytes(eight(16)),
        }
    }
}

/// A record names nobody in the clear but a row.
fn bound(row: i64, generation: u64) -> Bound<'static> {
    Bound {
        purpose: Purpose::Spill,
        row,
        namespace: "",
        user: "",
        provider: "",
        account: "",
        generation,
        expires_at: None,
        scope: None,
    }
}

fn record(commit: &TokenCommit) -> Record {
    let tokens = &commit.tokens;
    let end = tokens.refresh_token_end;
    Record {
        provider: commit.provider.clone(),
        access_token: tokens.access_token.as_ref().map(|t| t.expose().to_owned()),
        token_type: tokens.token_type.clone(),
        expires_at: tokens.expires_at.map(UnixTime::as_millis),
        obtained_at: tokens.obtained_at.as_millis(),
        refresh_token: tokens.refresh_token.as_ref().map(|t| t.expose().to_owned()),
        refresh_token_expires_at: end.map(|end| end.expires_at.as_millis()),
        refresh_token_warn_at: end.and_then(|end| end.warn_at).map(UnixTime::as_millis),
        scope: tokens.scope.clone(),
        due_at: commit.due_at.map(UnixTime::as_millis),
        standing: commit.standing.name().to_owned(),
        reason: commit.standing.reason().to_owned(),
        unused_refreshes: commit.unused_refreshes,
        at: commit.at.as_millis(),
    }
}

fn opened(keyring: &Keyring, head: &Head, sealed: &[u8]) -> Option<TokenCommit> {
    let text = keyring
        .open(
            &bound(head.row, head.generation),
            head.key_id.into(),
            sealed,
        )
        .ok()?;
    let mut record: Record = serde_json::from_str(&text).ok()?;
    let tokens = TokenSet {
        access_token: record.access_token.take().map(AccessToken::new),
        token_type: std::mem::take(&mut record.token_type),
        expires_at: record.expires_at.map(UnixTime::from_millis),
        obtained_at: UnixTime::from_millis(record.obtained_at),
        refresh_token: record.refresh_token.take().map(RefreshToken::new),
        refresh_token_end: record.refresh_token_expires_at.map(|at| RefreshTokenEnd {
            expires_at: UnixTime::from_millis(at),
            warn_at: record.refresh_token_warn_at.map(UnixTime::from_millis),
        }),
        scope: record.scope.take(),
    };
    Some(TokenCommit {
        id: GrantId(head.row),
        provider: std::mem::take(&mut record.provider),
        presented_generation: head.generation,
        tokens: Arc::new(tokens),
        due_at: record.due_at.map(UnixTime::from_millis),
        standing: Standing::from_names(&record.standing, &record.reason)?,
        unused_refreshes: record.unused_refreshes,
        at: UnixTime::from_millis(record.at),
    })
}

impl Store {
    /// Keeps a token set that [`Store::commit_tokens`] could not store where the next start finds it.
    ///
    /// # Errors
    /// The spill file can't be written either, or is full: then the set is in memory only.
    pub async fn spill(&self, commit: TokenCommit) -> Result<(), StoreError> {
        self.with_spill(move |spill, keyring| spill.append(keyring, &commit))
            .await
    }

    /// Returns the token sets that an earlier process spilled. Commit them before anything else.
    ///
    /// # Errors
    /// The spill file can't be read.
    pub async fn spilled(&self) -> Result<Vec<TokenCommit>, StoreError> {
        self.with_spill(Spill::read).await
    }

    /// Empties the spill file: everything that was in it has been stored.
    ///
    /// # Errors
    /// The disk refused: the records are read again at the next start, and lose their compare-and-set then.
    pub async fn clear_spill(&self) -> Result<(), StoreError> {
        self.with_spill(|spill, _| spill.clear()).await
    }

    async fn with_spill<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Spill, &Keyring) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        let done = tokio::task::spawn_blocking(move || match &inner.spill {
            Some(spill) => work(spill, &inner.keyring.read()),
            None => Err(io::ErrorKind::NotFound.into()),
        });
        match done.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                tracing::warn!(%error, "spill-failed");
                Err(StoreError::Unavailable)
            }
            Err(_) => Err(StoreError::Closed),
        }
    }
}
