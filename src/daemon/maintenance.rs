//! `[maintenance]`: calendar work, by cron expressions in UTC.
//!
//! tokio-cron-scheduler runs these jobs, and only these. It is not the refresh
//! schedule, because of what was measured on two cores with version 0.15: one job per grant takes 757 bytes and
//! 3.3 µs to add; a million of them burn 14% of a core while idle, since it polls every 500 ms; and of
//! 1,000 one-shot jobs due in the same instant on a current-thread runtime 744 never ran, because its broadcast
//! channel lags. For a handful of nightly jobs none of that matters, and its cron expressions do.
//!
//! It lets a slow job overlap itself and does not wait for jobs at shutdown: each
//! job takes a lock of its own, and [`Maintenance::stop`] waits for these locks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use super::backup;
use super::shared::Shared;
use crate::config;

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
    scheduler: JobScheduler,
    locks: Vec<Arc<Mutex<()>>>,
}

impl Maintenance {
    /// Starts the configured jobs. Their expressions were validated with the configuration.
    pub(super) async fn start(
        shared: &Arc<Shared>,
        config: &config::Maintenance,
        give_up_after: Duration,
    ) -> Result<Self, JobSchedulerError> {
        let scheduler = JobScheduler::new().await?;
        let mut locks = Vec::new();
        let backup = config.backup.clone();
        let backup_cron = backup.as_ref().map(|backup| backup.cron.clone());
        let jobs = [
            (backup.map(Work::Backup), &backup_cron),
            (Some(Work::Optimize), &config.optimize),
            (Some(Work::Purge), &config.purge),
        ];
        for (work, cron) in jobs {
            let (Some(work), Some(cron)) = (work, cron) else {
                continue;
            };
            let lock = Arc::new(Mutex::new(()));
            locks.push(lock.clone());
            let shared = shared.clone();
            let job = Job::new_async(cron.as_str(), move |_, _| {
                let (shared, lock, work) = (shared.clone(), lock.clone(), work.clone());
                Box::pin(async move {
                    // Still running since last time: not again beside itself.
                    if let Ok(_alone) = lock.try_lock() {
                        run(&shared, &work, give_up_after).await;
                    }
                })
            })?;
            scheduler.add(job).await?;
        }
        scheduler.start().await?;
        Ok(Maintenance { scheduler, locks })
    }

    /// Starts nothing more and waits for what runs.
    pub(super) async fn stop(mut self) {
        if self.scheduler.shutdown().await.is_err() {
            tracing::debug!("maintenance-not-stopped");
        }
        for lock in &self.locks {
            drop(lock.lock().await);
        }
    }
}

async fn run(shared: &Shared, work: &Work, give_up_after: Duration) {
    let now = shared.clock.now();
    let job = work.name();
    let done = match work {
        Work::Backup(config) => match backup::nightly(shared, config).await {
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
