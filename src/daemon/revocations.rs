//! Works off the revocation queue (RFC 7009): what was deleted, replaced or superseded.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::shared::Shared;
use crate::refresh::policy;
use crate::refresh::time::UnixTime;
use crate::store::{RevocationJob, StoreError};
use crate::token_endpoint::Revocation;

/// A provider's jobs that are worked on at once.
const BATCH: usize = 16;
/// How often jobs are looked for that this process has not put off itself.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A provider whose jobs were worked off, and when the first of those that were put off is due again.
type WorkedOff = (String, Option<UnixTime>);

/// Runs until the daemon ends. `give_up_after` is how long an unanswered revocation is tried.
///
/// Each provider's jobs are worked off apart: one that hangs holds up its own.
pub(super) async fn run(shared: Arc<Shared>, give_up_after: Duration) {
    let mut running: JoinSet<WorkedOff> = JoinSet::new();
    let mut busy = BTreeSet::new();
    let mut again_at = None;
    loop {
        let now = shared.clock.now();
        if again_at.is_some_and(|at| at <= now) {
            again_at = None;
        }
        for provider in due_at(&shared, now).await {
            if busy.insert(provider.clone()) {
                running.spawn(work_off_alone(shared.clone(), provider, give_up_after));
            }
        }
        let sleep = again_at.map_or(LOOK_EVERY, |at: UnixTime| at.since(now).min(LOOK_EVERY));
        tokio::select! {
            biased;
            () = shared.revocations.notified() => {}
            () = tokio::time::sleep(sleep) => {}
            Some(Ok((provider, again))) = running.join_next() => {
                busy.remove(&provider);
                again_at = again_at.into_iter().chain(again).min();
            }
        }
    }
}

async fn due_at(shared: &Shared, now: UnixTime) -> Vec<String> {
    if shared.draining() {
        return Vec::new();
    }
    let due = shared.store.revocations_due_at(now).await;
    due.unwrap_or_else(|error| {
        tracing::debug!(%error, "revocations-not-read");
        Vec::new()
    })
}

/// Works off one provider's jobs. What fails, by a panic too, is looked at again later, not at once.
async fn work_off_alone(
    shared: Arc<Shared>,
    provider: String,
    give_up_after: Duration,
) -> WorkedOff {
    let work = tokio::spawn(work_off(shared, provider.clone(), give_up_after));
    match work.await {
        Ok(Ok(again)) => return (provider, again),
        Ok(Err(error)) => tracing::debug!(%error, "revocations-not-read"),
        Err(_) => {}
    }
    tokio::time::sleep(LOOK_EVERY).await;
    (provider, None)
}

/// Returns when the first of those that were put off is due again.
async fn work_off(
    shared: Arc<Shared>,
    provider: String,
    give_up_after: Duration,
) -> Result<Option<UnixTime>, StoreError> {
    let mut first_again: Option<UnixTime> = None;
    loop {
        let now = shared.clock.now();
        let jobs = shared.store.revocations_due(&provider, now, BATCH).await?;
        if jobs.is_empty() || shared.draining() {
            return Ok(first_again);
        }
        let mut running = JoinSet::new();
        for job in jobs {
            running.spawn(revoke(shared.clone(), job, give_up_after));
        }
        while let Some(done) = running.join_next().await {
            match done {
                Ok(again) => first_again = first_again.into_iter().chain(again?).min(),
                // It would be due again at once.
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
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
