//! Works off the revocation queue (RFC 7009): what was deleted, replaced or superseded.

use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::refresh::policy;
use crate::refresh::time::UnixTime;
use crate::store::{RevocationJob, StoreError};
use crate::token_endpoint::Revocation;

/// Jobs that are worked on at once.
const BATCH: usize = 16;
/// How often jobs are looked for that this process has not put off itself.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Runs until the daemon ends. `give_up_after` is how long an unanswered revocation is tried.
pub(super) async fn run(shared: Arc<Shared>, give_up_after: Duration) {
    loop {
        let mut sleep = LOOK_EVERY;
        if !shared.draining() {
            match work_off(&shared, give_up_after).await {
                Ok(Some(at)) => sleep = at.since(shared.clock.now()).min(LOOK_EVERY),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "revocations-not-read"),
            }
        }
        tokio::select! {
            () = shared.revocations.notified() => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// Returns when the first of those that were put off is due again.
async fn work_off(
    shared: &Arc<Shared>,
    give_up_after: Duration,
) -> Result<Option<UnixTime>, StoreError> {
    let mut first_again: Option<UnixTime> = None;
    loop {
        let now = shared.clock.now();
        let jobs = shared.store.revocations_due(now, BATCH).await?;
        let whole = jobs.len() == BATCH;
        let mut running = tokio::task::JoinSet::new();
        for job in jobs {
            running.spawn(revoke(shared.clone(), job, give_up_after));
        }
        while let Some(done) = running.join_next().await {
            // A job that could not be put off would be due again at once: stop until the next look.
            match done {
                Ok(Ok(again)) => first_again = first_again.into_iter().chain(again).min(),
                Ok(Err(error)) => return Err(error),
                Err(_) => {}
            }
        }
        if !whole {
            return Ok(first_again);
        }
    }
}

/// Tries one job; returns when it is due again, if it was put off.
async fn revoke(
    shared: Arc<Shared>,
    job: RevocationJob,
    give_up_after: Duration,
) -> Result<Option<UnixTime>, StoreError> {
    let provider = &job.provider;
    let now = shared.clock.now();
    let live = shared.providers.find(provider);
    let outcome = match &live {
        Some(live) if live.config.registration.revocation_endpoint.is_some() => {
            live.client.revoke(&job.token, job.kind).await
        }
        // Its provider may come back into the configuration.
        None => Revocation::Later,
        Some(_) => Revocation::Refused,
    };
    match outcome {
        Revocation::Done => {
            tracing::info!(%provider, tries = job.tries + 1, "revoked");
        }
        Revocation::Refused => {
            tracing::warn!(%provider, tries = job.tries + 1, "revocation-refused");
        }
        Revocation::Later if now.since(job.created_at) >= give_up_after => {
            tracing::warn!(%provider, tries = job.tries + 1, "revocation-given-up");
        }
        Revocation::Later => {
            let next_at = next_try(now, job.tries + 1);
            tracing::debug!(%provider, tries = job.tries + 1, %next_at, "revocation-put-off");
            shared.store.revocation_later(job.id, next_at).await?;
            return Ok(Some(next_at));
        }
    }
    shared.store.revocation_done(job.id).await?;
    Ok(None)
}

fn next_try(now: UnixTime, tries: u32) -> UnixTime {
    now + policy::backoff(tries, policy::REFUSED_BACKOFF_CAP, rand::random())
}
