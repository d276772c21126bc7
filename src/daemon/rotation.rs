//! Rotations of the data key: begun by an admin, gone on with after any stop, told when they end or wait.

use std::sync::Arc;
use std::time::Duration;

use super::changes::{detached, store_problem};
use super::keeper::Daemon;
use super::shared::{Shared, lock};
use crate::local_api::problem;
use crate::local_api::types::{KeyRotation, KeysView, Problem};
use crate::store::{Place, Retired, RotationError, StoreError};

/// Between two groups of rows, so that other writes have the disk for most of the time.
const PAUSE: Duration = Duration::from_millis(5);
/// What could not be done, or waits for something, is looked at again after this.
const RETRY: Duration = Duration::from_secs(10);

/// How far a rotation is.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    resealed: u64,
    rows: u64,
    waits_for: Option<String>,
}

impl Daemon {
    /// Begins a rotation, which goes on behind the answer's back.
    pub(super) async fn begin_rotation(&self) -> Result<KeysView, Problem> {
        let shared = self.0.clone();
        detached(async move {
            let _open = shared.moving.change().await?;
            let Ok(_alone) = shared.upkeep.try_lock() else {
                return Err(busy(&shared));
            };
            let key = shared.store.begin_rotation().await;
            let key = key.map_err(|error| match error {
                RotationError::UnderWay => busy(&shared),
                RotationError::Store(error) => store_problem(error),
                error => problem::store_unavailable(&format!(
                    "{error}. The old key goes on, and nothing is lost; make room or mend the disk and ask again. If the next start finds the new key all the same, it goes on with the rotation"
                )),
            })?;
            let from = shared.store.keys().old;
            tracing::info!(?from, to = key, "key-rotation-begun");
            start(&shared);
            Ok(view(&shared))
        })
        .await
    }
}

/// A rotation or a backup is under way.
fn busy(shared: &Shared) -> Problem {
    if shared.store.keys().old.is_empty() {
        let why = "a backup is being made; ask again when it is done";
        return problem::busy(why).retry(RETRY);
    }
    problem::busy("a key rotation is under way; freshctl status shows how far it is").retry(RETRY)
}

/// What admins are shown of the keys.
pub(super) fn view(shared: &Shared) -> KeysView {
    let keys = shared.store.keys();
    let rotation = (!keys.old.is_empty()).then(|| {
        let progress = lock(&shared.rotation).clone();
        KeyRotation {
            from: keys.old.clone(),
            resealed: progress.resealed,
            rows: progress.rows,
            waits_for: progress.waits_for,
        }
    });
    KeysView {
        current: keys.current,
        rotation,
    }
}

/// Goes on with a rotation that an earlier process left.
pub(super) fn resume(shared: &Arc<Shared>) {
    let keys = shared.store.keys();
    if !keys.old.is_empty() {
        tracing::info!(from = ?keys.old, to = keys.current, "key-rotation-resumed");
        start(shared);
    }
}

fn start(shared: &Arc<Shared>) {
    *lock(&shared.rotation) = Progress::default();
    tokio::spawn(run(shared.clone()));
}

async fn run(shared: Arc<Shared>) {
    while !shared.ending() {
        let waits_for = {
            let _alone = shared.upkeep.lock().await;
            match pass(&shared).await {
                Ok(None) => return,
                Ok(Some(waits_for)) => waits_for,
                Err(error) => error.to_string(),
            }
        };
        let before = lock(&shared.rotation).waits_for.replace(waits_for.clone());
        if before.as_ref() != Some(&waits_for) && !shared.ending() {
            tracing::warn!(
                waits_for,
                hint = "it goes on by itself; until then both keys are in the keyring, and nothing is lost",
                "key-rotation-waits"
            );
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Seals everything anew and retires the old keys. `None` when all is done, or the daemon ends; else what is waited for.
async fn pass(shared: &Shared) -> Result<Option<String>, RotationError> {
    let store = &shared.store;
    {
        let rows = store.rows_to_reseal().await?;
        let mut progress = lock(&shared.rotation);
        (progress.rows, progress.resealed) = (rows, 0);
    }
    reseal_all(shared).await?;
    if shared.ending() {
        return Ok(None);
    }
    let from = store.keys().old;
    match store.retire_keys().await? {
        Retired::Done { unopenable } => {
            let resealed = lock(&shared.rotation).resealed;
            let (retired, current) = (from, store.keys().current);
            tracing::info!(?retired, current, resealed, unopenable, "key-rotated");
            Ok(None)
        }
        Retired::InUse { rows, spilled } => Ok(Some(format!(
            "{rows} rows and {spilled} spilled token sets are still sealed with the old key"
        ))),
    }
}

async fn reseal_all(shared: &Shared) -> Result<(), StoreError> {
    let mut place = Some(Place::default());
    while let Some(here) = place
        && !shared.ending()
    {
        let page = shared.store.reseal(here, shared.clock.now()).await?;
        lock(&shared.rotation).resealed += page.rows;
        place = page.next;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
