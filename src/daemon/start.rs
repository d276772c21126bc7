//! What a life of the daemon begins with, in an order that matters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use super::clock::WATCH_EVERY;
use super::driver::{self, Event};
use super::held;
use super::providers::Live;
use super::revocations;
use super::shared::Shared;
use super::steps;
use crate::refresh::policy::Rotation;
use crate::store::StoreError;

/// Activity notes that the store refused are written again after this.
const FLUSH_RETRY: Duration = Duration::from_secs(60);

/// Replays that the store did not let resume are looked at again after this.
const REPLAYS_RETRY: Duration = Duration::from_secs(1);

/// Takes up what an earlier life left, before anything else may touch a grant.
///
/// # Errors
///
/// The store can't be read.
pub(super) async fn take_up(
    shared: &Arc<Shared>,
    live: &BTreeMap<String, Arc<Live>>,
) -> Result<(), StoreError> {
    held::take_up(shared).await?;
    steps::look_at_start(shared);
    resume_replays(shared, live).await;
    Ok(())
}

/// Brings forward the requests without outcome at servers with a grace, which is short. Elsewhere they
/// have time until their grants fall due, or have to wait even longer.
async fn resume_replays(shared: &Arc<Shared>, live: &BTreeMap<String, Arc<Live>>) {
    for (name, live) in live {
        let Rotation::Grace(grace) = live.config.policy.rotation else {
            continue;
        };
        if let Err(error) = resume_replays_at(shared, name).await {
            tracing::warn!(provider = %name, %error, "replays-not-resumed");
            tokio::spawn(resume_replays_later(shared.clone(), name.clone(), grace));
        }
    }
}

/// A store that takes no writes can begin no attempt either; but it may take them again while a grace lasts.
async fn resume_replays_later(shared: Arc<Shared>, provider: String, grace: Duration) {
    let until = shared.clock.now() + grace;
    while shared.clock.now() < until {
        tokio::time::sleep(REPLAYS_RETRY).await;
        if resume_replays_at(&shared, &provider).await.is_ok() {
            return;
        }
    }
}

async fn resume_replays_at(shared: &Shared, provider: &str) -> Result<(), StoreError> {
    let ids = shared.store.make_marked_due(provider).await?;
    if !ids.is_empty() {
        tracing::info!(provider, grants = ids.len(), "replays-resumed");
    }
    for id in ids {
        let provider = provider.to_owned();
        let _ = shared.driver.send(Event::Urgent { provider, id });
    }
    Ok(())
}

/// Begins what runs until the daemon ends: the schedule, revocations, and writing who was active.
pub(super) fn background(
    shared: &Arc<Shared>,
    inbox: UnboundedReceiver<Event>,
    max_in_flight: usize,
    give_up_revocations_after: Duration,
) -> JoinSet<()> {
    let mut loops = JoinSet::new();
    loops.spawn(driver::run(shared.clone(), inbox, max_in_flight));
    loops.spawn(revocations::run(shared.clone(), give_up_revocations_after));
    loops.spawn(flush_activity(shared.clone()));
    loops.spawn(watch_store(shared.clone()));
    loops
}

async fn flush_activity(shared: Arc<Shared>) {
    let mut at_most = Duration::MAX;
    loop {
        shared.activity.flush_is_due(at_most).await;
        at_most = Duration::MAX;
        if let Err(error) = shared.activity.flush(shared.clock.now()).await {
            tracing::debug!(%error, "activity-not-written");
            at_most = FLUSH_RETRY;
        }
    }
}

/// Notices files that were deleted or replaced also while nobody writes.
async fn watch_store(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        shared.store.watch();
        // Its next write may be an hour away, and status would tell of trouble until then.
        if shared.store.failing().is_some() {
            // What fails still is told as before.
            let _ = shared.store.alive().await;
        }
    }
}
