//! Copies of the store: asked for on the admin socket, and nightly.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::changes::detached;
use super::keeper::Daemon;
use super::moving;
use super::shared::{Shared, lock};
use crate::config;
use crate::local_api::problem;
use crate::local_api::types::{BackupAnswer, BackupRequest, Problem};
use crate::store::{BackedUp, BackupError, make_backup_dir, nightly_name};

/// A set that the disk refuses is written again every second; so many times it may be refused while a copy waits.
const HELD_LOOKS: u32 = 10;
const HELD_LOOK: Duration = Duration::from_secs(1);

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoBackup {
    #[error("another backup is being made")]
    Busy,
    #[error("a key rotation is under way; freshctl status shows how far it is")]
    Rotating,
    #[error("a final backup has been made, or is being made; this store was moved")]
    Moved,
    #[error("requests are in flight that do not end")]
    InFlight,
    #[error(
        "{0} token sets are held in memory because the disk refuses them, and would be missing"
    )]
    Held(usize),
    #[error("{dir} could not be made: {source}", dir = .dir.display())]
    Directory {
        dir: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Store(#[from] BackupError),
}

impl NoBackup {
    fn problem(self) -> Problem {
        let detail = self.to_string();
        match self {
            NoBackup::Store(BackupError::Exists { .. } | BackupError::Reserved { .. }) => {
                problem::cannot_create(&detail, true)
            }
            NoBackup::Store(BackupError::CannotCreate { .. }) => {
                problem::cannot_create(&detail, false)
            }
            NoBackup::Moved => problem::moved(),
            NoBackup::Busy | NoBackup::Rotating | NoBackup::InFlight | NoBackup::Held(_) => {
                problem::backup_failed(&detail).retry(HELD_LOOK)
            }
            NoBackup::Store(_) | NoBackup::Directory { .. } => problem::backup_failed(&detail),
        }
    }
}

impl Daemon {
    /// Makes the copy that an admin asked for. A caller who hangs up leaves no half of it.
    pub(super) async fn back_up(&self, request: BackupRequest) -> Result<BackupAnswer, Problem> {
        let path = PathBuf::from(&request.path);
        if !path.is_absolute() || path.file_name().is_none() {
            return Err(problem::bad_request(format!(
                "path is {:?} but must be the absolute path of a new file",
                request.path
            )));
        }
        let shared = self.0.clone();
        detached(async move {
            let made_at = shared.clock.now().rfc3339();
            let made = if request.last {
                moving::last_copy(&shared, &path).await
            } else {
                copy(&shared, &path, false).await
            };
            let made = made.map_err(NoBackup::problem)?;
            Ok(BackupAnswer {
                path: request.path,
                made_at,
                bytes: made.bytes,
                grants: made.grants,
                quarantined: made.quarantined,
                revocations: made.revocations,
            })
        })
        .await
    }
}

/// Makes one copy and tells how that went.
pub(super) async fn copy(shared: &Shared, path: &Path, last: bool) -> Result<BackedUp, NoBackup> {
    let made = alone(shared, path, last).await;
    match &made {
        Ok(made) => tracing::info!(
            path = %path.display(), bytes = made.bytes, grants = made.grants,
            quarantined = made.quarantined, revocations = made.revocations, "backed-up"
        ),
        Err(error) => tracing::error!(
            path = %path.display(), %error,
            hint = "nothing was overwritten; a service may write only where its unit lets it (ReadWritePaths=)",
            "backup-failed"
        ),
    }
    made
}

async fn alone(shared: &Shared, path: &Path, last: bool) -> Result<BackedUp, NoBackup> {
    let Ok(_alone) = shared.upkeep.try_lock() else {
        let rotating = !shared.store.keys().old.is_empty();
        return Err(if rotating {
            NoBackup::Rotating
        } else {
            NoBackup::Busy
        });
    };
    for _ in 0..HELD_LOOKS {
        if shared.held.len() == 0 {
            break;
        }
        tokio::time::sleep(HELD_LOOK).await;
    }
    match shared.held.len() {
        0 if last => Ok(shared.store.final_backup(path, shared.clock.now()).await?),
        0 => Ok(shared.store.backup(path, shared.clock.now()).await?),
        held => Err(NoBackup::Held(held)),
    }
}

/// Makes the night's copy. Old ones go only after it has been checked and has its name.
pub(super) async fn nightly(shared: &Shared, config: &config::Backup) -> Result<(), NoBackup> {
    let made = make_nightly(shared, config).await;
    *lock(&shared.known.no_copy) = made.as_ref().err().map(ToString::to_string);
    made
}

async fn make_nightly(shared: &Shared, config: &config::Backup) -> Result<(), NoBackup> {
    let dir = config.dir.clone();
    // It may wait for a disk.
    let prepared = tokio::task::spawn_blocking(move || make_backup_dir(&dir)).await;
    if let Ok(Err(source)) = prepared {
        let dir = config.dir.clone();
        tracing::error!(path = %dir.display(), error = %source, "backup-failed");
        return Err(NoBackup::Directory { dir, source });
    }
    let file = config.dir.join(nightly_name(shared.clock.now()));
    copy(shared, &file, false).await?;
    shared
        .store
        .remove_old_backups(&config.dir, config.keep)
        .await?;
    Ok(())
}
