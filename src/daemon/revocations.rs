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
/// How often jobs that were put off are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Runs until the daemon ends. `give_up_after` is how long an unanswered revocation is tried.
pub(super) async fn run(shared: Arc<Shared>, give_up_after: Duration) {
    loop {
        if !shared.draining()
            && let Err(error) = work_off(&shared, give_up_after).await
        {
            tracing::debug!(%error, "revocations-not-read");
        }
        tokio::select! {
            () = shared.revocations.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn work_off(shared: &Arc<Shared>, give_up_after: Duration) -> Result<(), StoreError> {
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
            if let Ok(Err(error)) = done {
                return Err(error);
            }
        }
        if !whole {
            return Ok(());
        }
    }
}

async fn revoke(
    shared: Arc<Shared>,
    job: RevocationJob,
    give_up_after: Duration,
) -> Result<(), StoreError> {
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
            shared.store.revocation_done(job.id).await
        }
        Revocation::Refused => {
            tracing::warn!(%provider, tries = job.tries + 1, "revocation-refused");
            shared.store.revocation_done(job.id).await
        }
        Revocation::Later if now.since(job.created_at) >= give_up_after => {
            tracing::warn!(%provider, tries = job.tries + 1, "revocation-given-up");
            shared.store.revocation_done(job.id).await
        }
        Revocation::Later => {
            let next_at = next_try(now, job.tries + 1);
            tracing::debug!(%provider, tries = job.tries + 1, %next_at, "revocation-put-off");
            shared.store.revocation_later(job.id, next_at).await
        }
    }
}

fn next_try(now: UnixTime, tries: u32) -> UnixTime {
    now + policy::backoff(tries, policy::REFUSED_BACKOFF_CAP, rand::random())
}
