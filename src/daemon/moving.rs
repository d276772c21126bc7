//! A move to another host: after a final copy nothing is refreshed or changed here, so that no grant is refreshed in
//! two places. Tokens that live are served to their end.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{RwLock, RwLockReadGuard, oneshot};

use super::backup::{self, NoBackup};
use super::driver::Event;
use super::shared::Shared;
use crate::local_api::problem;
use crate::local_api::types::Problem;
use crate::store::BackedUp;

/// Requests in flight get this long to end before a final copy; the usual deadline is half of it.
const DRAIN: Duration = Duration::from_secs(60);

/// Whether a final copy has been, or is being, made.
#[derive(Default)]
pub(super) struct Moving {
    begun: AtomicBool,
    /// Whether it has its name: from then on the store is moved.
    done: AtomicBool,
    /// Read-locked while an admin or an app changes something.
    changes: RwLock<()>,
}

impl Moving {
    pub(super) fn begun(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    pub(super) fn done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    /// Keeps a final copy from being made while something changes, and refuses changes after it: they would be lost.
    pub(super) async fn change(&self) -> Result<RwLockReadGuard<'_, ()>, Problem> {
        let guard = self.changes.read().await;
        if self.begun() {
            return Err(problem::moved());
        }
        Ok(guard)
    }
}

/// Drains, then makes the copy after which nothing is refreshed or changed here any more. Where that fails, all goes on.
pub(super) async fn last_copy(shared: &Shared, path: &Path) -> Result<BackedUp, NoBackup> {
    if shared.moving.begun.swap(true, Ordering::SeqCst) {
        return Err(NoBackup::Moved);
    }
    let made = drained_copy(shared, path).await;
    match &made {
        Ok(_) => {
            shared.moving.done.store(true, Ordering::SeqCst);
            tracing::warn!(
                path = %path.display(),
                hint = "stop freshd here, and restore the copy on the other host; living tokens are served until then",
                "moved"
            );
        }
        Err(_) => {
            shared.moving.begun.store(false, Ordering::SeqCst);
            // Wakes the driver.
            let _ = shared.driver.send(Event::ProvidersChanged {
                max_in_flight: None,
            });
        }
    }
    made
}

async fn drained_copy(shared: &Shared, path: &Path) -> Result<BackedUp, NoBackup> {
    if !shared.store.keys().old.is_empty() {
        return Err(NoBackup::Rotating);
    }
    // What was being changed is in the copy.
    drop(shared.moving.changes.write().await);
    let (answer, drained) = oneshot::channel();
    let _ = shared.driver.send(Event::Drain(answer));
    match tokio::time::timeout(DRAIN, drained).await {
        Ok(Ok(())) => {}
        _ => return Err(NoBackup::InFlight),
    }
    // The other host shall know who was here lately; what can't be written now is known here only.
    let _ = shared.activity.flush(shared.clock.now()).await;
    backup::copy(shared, path, true).await
}
