//! `[maintenance]`: calendar work, by cron expressions in UTC.
//!
//! Each job has a task of its own, which sleeps until its moment. A job that takes long delays nobody but itself, and never
//! runs twice at once; what it misses meanwhile it leaves out. So it does with what a clock that is set forward, or a
//! suspended machine, makes it miss, but for one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::backup;
use super::clock::LONGEST_SLEEP;
use super::shared::Shared;
use crate::config;
use crate::refresh::time::UnixTime;

/// Activity notes of users without grants, older than this, are purged.
const KEEP_ACTIVITY: Duration = Duration::from_secs(400 * 86_400);
/// A grant's story goes back this far: longer than it takes until somebody asks what happened.
const KEEP_HISTORY: Duration = Duration::from_secs(90 * 86_400);

/// Events go back this far: who was away for longer reads the state anew.
const KEEP_EVENTS: Duration = Duration::from_secs(7 * 86_400);

/// The audit goes back this far.
const KEEP_AUDIT: Duration = Duration::from_secs(365 * 86_400);

#[derive(Clone, Debug)]
enum Work {
    Backup(config::Backup),
    Optimize,
    Purge,
}

impl Work {
    fn name(&self) -> &'static str {
        match self {
            Work::Backup(_) => "backup",
            Work::Optimize => "optimize",
            Work::Purge => "purge",
        }
    }
}

/// The running jobs.
pub(super) struct Maintenance {
    stop: watch::Sender<bool>,
    jobs: JoinSet<()>,
}

impl Maintenance {
    /// Starts the configured jobs. Their expressions were validated with the configuration.
    pub(super) fn start(
        shared: &Arc<Shared>,
        config: &config::Maintenance,
        give_up_after: Duration,
    ) -> Self {
        let backup = config.backup.clone();
        let backup_cron = backup.as_ref().map(|backup| backup.cron.clone());
        let mut maintenance = Maintenance {
            stop: watch::Sender::new(false),
            jobs: JoinSet::new(),
        };
        for (work, cron) in [
            (backup.map(Work::Backup), backup_cron),
            (Some(Work::Optimize), config.optimize.clone()),
            (Some(Work::Purge), config.purge.clone()),
        ] {
            if let (Some(work), Some(cron)) = (work, cron) {
                let (shared, stop) = (shared.clone(), maintenance.stop.subscribe());
                let job = keep(shared, work, cron, give_up_after, stop);
                maintenance.jobs.spawn(job);
            }
        }
        maintenance
    }

    /// Starts nothing more and waits for what runs.
    pub(super) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.jobs.join_next().await.is_some() {}
    }
}

/// Does a job at each of its moments.
async fn keep(
    shared: Arc<Shared>,
    work: Work,
    cron: String,
    give_up_after: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let mut after = shared.clock.now();
    while let Some(sleep) = step(&cron, &mut after, shared.clock.now()) {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(sleep) => {}
        }
        if sleep.is_zero() {
            let done = tokio::spawn(run(shared.clone(), work.clone(), give_up_after));
            if done.await.is_err() {
                tracing::warn!(
                    job = work.name(),
                    error = "it panicked",
                    "maintenance-failed"
                );
            }
            after = shared.clock.now();
        }
    }
}

/// Returns how long to sleep until the first moment after `after`; nothing if it has come, `None` if none will.
fn step(cron: &str, after: &mut UnixTime, now: UnixTime) -> Option<Duration> {
    // A clock that was set back begins anew.
    *after = now.min(*after);
    let at = config::next_of_cron(cron, *after)?;
    Some(at.since(now).min(LONGEST_SLEEP))
}

async fn run(shared: Arc<Shared>, work: Work, give_up_after: Duration) {
    let now = shared.clock.now();
    let job = work.name();
    let done = match &work {
        Work::Backup(config) => match backup::nightly(&shared, config).await {
            Ok(()) => Ok(()),
            Err(error) => return tracing::warn!(job, %error, "maintenance-failed"),
        },
        Work::Optimize => shared.store.optimize().await,
        Work::Purge => {
            let store = &shared.store;
            let (activity, history) = (now - KEEP_ACTIVITY, now - KEEP_HISTORY);
            let purged = store.purge(activity, now - give_up_after, history).await;
            match purged {
                Ok(_) => match store.purge_events(now - KEEP_EVENTS).await {
                    Ok(_) => store.purge_notes(now - KEEP_AUDIT).await.map(drop),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            }
        }
    };
    match done {
        Ok(()) => tracing::info!(job, "maintained"),
        Err(error) => tracing::warn!(job, %error, "maintenance-failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_due_at_its_moment_and_once_for_all_that_it_has_missed() {
        let at = |text: &str| UnixTime::from_rfc3339(text).unwrap();
        let nightly = |after: &str, now: &str| step("0 30 3 * * *", &mut at(after), at(now));
        let (noon, night) = ("2026-11-22T12:00:00Z", "2026-11-23T03:30:00Z");
        assert_eq!(nightly(noon, noon), Some(LONGEST_SLEEP));
        let soon = Some(Duration::from_millis(1500));
        assert_eq!(nightly(noon, "2026-11-23T03:29:58.5Z"), soon);
        assert_eq!(nightly(noon, night), Some(Duration::ZERO));
        assert_eq!(nightly(noon, "2026-11-29T12:00:00Z"), Some(Duration::ZERO));
        // It ran in no time.
        assert_eq!(nightly(night, night), Some(LONGEST_SLEEP));
        // The clock was set back by a day after it ran.
        assert_eq!(nightly(night, "2026-11-22T03:29:58.5Z"), soon);
        assert_eq!(step("0 0 0 30 2 *", &mut at(noon), at(noon)), None);
    }
}
