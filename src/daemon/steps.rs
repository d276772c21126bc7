//! What is done when the wall clock was set, or the machine slept.
//!
//! Set forward, or awake again: the schedule catches up by itself, soonest end first, under each
//! provider's rate and caps; nobody counts as away for the time that was left out. Set back: stamps from
//! the future are taken back by as much, so that no token is served, and no refresh waits, for longer than it should.

use std::sync::Arc;
use std::time::Duration;

use super::clock::Clock;
use super::driver::Event;
use super::shared::Shared;
use super::watch::{SMALLEST_STEP, Step};
use crate::refresh::grant::GrantId;
use crate::refresh::time::UnixTime;
use crate::store::{Cas, Restamper, StoreError};

/// Rows that are restamped in one transaction.
const BATCH: usize = 500;
/// A restamp that the store refused is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// Does what a step of the clock needs, but for the schedule, which the driver asks again anyway.
pub(super) fn stepped(shared: &Arc<Shared>, step: Step) {
    let now = shared.clock.now();
    match step {
        Step::Forward { before, by } => {
            let by_seconds = by.as_secs();
            tracing::info!(by_seconds, %now, "clock-stepped");
            shared.activity.set_forward(before, by);
        }
        Step::Back { by } => {
            let by_seconds = -(by.as_secs() as i64);
            tracing::warn!(by_seconds, %now, "clock-stepped");
            set_back(shared, now, by);
        }
    }
}

/// Tells of a clock that was set back while no freshd ran: the last that an earlier process did is still to come. By how
/// much is not known, so that what was obtained last counts as obtained now.
pub(super) fn look_at_start(shared: &Arc<Shared>) {
    let now = shared.clock.now();
    let last_at = shared
        .store
        .written_at()
        .max(shared.providers.newest_served_at());
    let ahead = last_at.map_or(Duration::ZERO, |at| at.since(now));
    // A server may have asked for no more than an hour, whatever the clock was.
    shared.providers.set_back(now, Duration::ZERO);
    if ahead >= SMALLEST_STEP {
        let by_seconds = -(ahead.as_secs() as i64);
        tracing::warn!(by_seconds, %now, "clock-stepped");
        set_back(shared, now, Duration::ZERO);
    }
}

fn set_back(shared: &Arc<Shared>, now: UnixTime, by: Duration) {
    shared.activity.set_back(now);
    shared.providers.set_back(now, by);
    shared.providers.forget_served();
    shared.cache.clear();
    let shared = shared.clone();
    tokio::spawn(async move {
        while let Err(error) = restamp(&shared, by).await {
            tracing::debug!(%error, "restamp-failed");
            tokio::time::sleep(RETRY).await;
        }
        shared.cache.clear();
        for provider in shared.providers.all().keys() {
            // The next write brings the rest.
            let _ = shared.providers.write(provider).await;
            let provider = provider.clone();
            let _ = shared.driver.send(Event::Rescheduled { provider });
        }
    });
}

/// What became of a commit, restamped if the clock was set back while it was on its way to the disk: it may have come there
/// when all other rows were restamped.
pub(super) async fn restamped(shared: &Shared, committed: Cas) -> Cas {
    let Cas::Applied(grant) = committed else {
        return committed;
    };
    let restamper = restamper(&shared.clock, Duration::ZERO);
    if restamper(&grant).is_none() {
        return Cas::Applied(grant);
    }
    // Whatever fails here, every reader restamps what is from the future for itself.
    let _ = shared.store.restamp(vec![grant.id], restamper).await;
    match shared.store.grant_by_id(grant.id).await {
        Ok(Some(restamped)) => Cas::Applied(restamped),
        Ok(None) | Err(_) => Cas::Applied(grant),
    }
}

/// Takes the future of a row as what is later than the clock when the row is written. By an earlier look at the clock, what it
/// has stamped since would be set back as well.
pub(super) fn restamper(clock: &Clock, by: Duration) -> Restamper {
    let clock = clock.clone();
    Box::new(move |grant| grant.restamped(clock.now(), by))
}

/// Restamps all grants with stamps from the future. What is written meanwhile is stamped by the new clock.
async fn restamp(shared: &Shared, by: Duration) -> Result<(), StoreError> {
    let (mut after, mut grants): (Option<GrantId>, u64) = (None, 0);
    loop {
        let now = shared.clock.now();
        let ids = shared.store.stamped_after(now, after, BATCH).await?;
        let Some(last) = ids.last().copied() else {
            break;
        };
        let restamper = restamper(&shared.clock, by);
        grants += shared.store.restamp(ids, restamper).await?;
        after = Some(last);
    }
    if grants > 0 {
        tracing::info!(grants, "restamped");
    }
    shared.store.restamp_rest(shared.clock.now()).await
}
