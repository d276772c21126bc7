//! Failures that the disk did not take.
//!
//! Where nothing rotates no mark is written, so requests leave although the disk refuses writes. Their failures rule
//! from memory until they are on disk: floor, backoff and verdicts hold, no slot is kept waiting, and every
//! further attempt writes them first.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::shared::{Shared, lock};
use super::steps;
use crate::refresh::grant::{Grant, GrantId, Standing};
use crate::refresh::time::UnixTime;
use crate::store::{Cas, Failure, StoreError};

/// The newest failure of each grant that could not be recorded, with the generation that was presented.
#[derive(Default)]
pub(super) struct Owed(Mutex<BTreeMap<GrantId, (u64, Failure)>>);

impl Owed {
    /// Returns whether a failure of this grant is still to be written.
    pub(super) fn is_owed(&self, id: GrantId) -> bool {
        lock(&self.0).contains_key(&id)
    }

    /// Forgets what is owed of a grant that is gone.
    pub(super) fn forget(&self, id: GrantId) {
        lock(&self.0).remove(&id);
    }
}

/// Records a failure; one that the disk refuses is owed.
///
/// # Errors
///
/// The disk's, when it rules from memory already.
pub(super) async fn record(
    shared: &Shared,
    grant: &Grant,
    failure: Failure,
) -> Result<Cas, StoreError> {
    let (id, generation) = (grant.id, grant.generation);
    let recorded = shared.store.record_failure(id, generation, failure.clone());
    match recorded.await {
        Ok(recorded) => {
            // An older one that is still owed must not be written over it.
            shared.owed.forget(id);
            Ok(steps::restamped(shared, recorded).await)
        }
        Err(error) => {
            lock(&shared.owed.0).insert(id, (generation, failure));
            Err(error)
        }
    }
}

/// Writes what is owed of a grant, whose slot the caller holds, and returns the grant with it, written or not.
///
/// # Errors
///
/// The disk's, where its refresh token rotates: a second mark would make a fate look unknown that is known.
pub(super) async fn paid(
    shared: &Shared,
    grant: Grant,
    rotates: bool,
) -> Result<Grant, StoreError> {
    let now = shared.clock.now();
    let owed = lock(&shared.owed.0)
        .get_mut(&grant.id)
        .map(|(generation, failure)| {
            set_back(failure, now);
            (*generation, failure.clone())
        });
    let Some((generation, failure)) = owed else {
        return Ok(grant);
    };
    let recorded = shared
        .store
        .record_failure(grant.id, generation, failure.clone());
    match recorded.await {
        Ok(recorded) => {
            shared.owed.forget(grant.id);
            Ok(match recorded {
                Cas::Applied(recorded) => recorded,
                Cas::Lost => grant, // imported anew since
            })
        }
        Err(error) if rotates => Err(error),
        Err(_) if grant.generation != generation => Ok(grant),
        Err(_) => Ok(failed(grant, &failure)),
    }
}

/// Takes a failure from the future as of now, once: the clock was set back since.
fn set_back(failure: &mut Failure, now: UnixTime) {
    if failure.at > now {
        let pause = failure.due_at.map(|due_at| due_at.since(failure.at));
        failure.due_at = pause.map(|pause| now + pause);
        failure.refused_since = failure.refused_since.map(|since| since.min(now));
        failure.at = now;
    }
}

/// A grant as it is once `failure` is recorded.
fn failed(grant: Grant, failure: &Failure) -> Grant {
    Grant {
        standing: failure
            .needs_authorization
            .map_or(grant.standing, Standing::NeedsAuthorization),
        due_at: failure.due_at,
        attempted_at: Some(failure.at),
        failures: failure.failures,
        refused_since: failure.refused_since,
        ..grant
    }
}
