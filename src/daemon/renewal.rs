//! `refresh --all`: every token set of a provider is replaced, paced by the schedule as any other refresh.

use super::changes::{detached, store_problem};
use super::driver::Event;
use super::keeper::Daemon;
use super::view;
use crate::local_api::types::{Problem, RenewalView};
use crate::refresh::time::UnixTime;

/// Rows that are made due in one transaction.
const BATCH: usize = 500;

impl Daemon {
    /// Makes every grant of a provider due whose tokens came before now, and says how many these are. When it
    /// answers, all of it is on disk; asked again, what has been replaced meanwhile is due once more.
    pub(super) async fn begin_renewal(&self, provider: String) -> Result<RenewalView, Problem> {
        self.configured(&provider)?;
        let daemon = self.clone();
        // Detached: a caller who hangs up leaves no half of it.
        detached(async move {
            let shared = &daemon.0;
            let _open = shared.moving.change().await?;
            let before = shared.clock.now();
            // Before any row is due, or the first ones would be looked at as if nobody had asked.
            let noted = shared.providers.renew(&provider, before).await;
            noted.map_err(store_problem)?;
            let mut after = None;
            loop {
                let store = &shared.store;
                let page = store
                    .make_renewals_due(&provider, before, after, BATCH)
                    .await;
                after = page.map_err(store_problem)?;
                if after.is_none() {
                    break;
                }
            }
            let _ = shared.driver.send(Event::Rescheduled {
                provider: provider.clone(),
            });
            let view = daemon.renewal_of(provider, before).await?;
            tracing::info!(
                provider = %view.provider, grants = view.left, resting = view.resting, "renewal-begun"
            );
            Ok(view)
        })
        .await
    }

    /// Says how far a provider's renewal is; with `dry_run`, what one that was asked for now would concern.
    pub(super) async fn look_at_renewal(
        &self,
        provider: String,
        dry_run: bool,
    ) -> Result<RenewalView, Problem> {
        self.configured(&provider)?;
        if dry_run {
            let now = self.0.clock.now();
            let view = self.renewal_of(provider, now).await?;
            return Ok(RenewalView {
                since: None,
                ..view
            });
        }
        match self.0.providers.renew_before(&provider) {
            Some(since) => self.renewal_of(provider, since).await,
            None => {
                // Nothing is older than that, so nothing is left.
                let view = self.renewal_of(provider, UnixTime::EPOCH).await?;
                Ok(RenewalView {
                    since: None,
                    ..view
                })
            }
        }
    }

    async fn renewal_of(&self, provider: String, since: UnixTime) -> Result<RenewalView, Problem> {
        let renewal = view::renewal(&self.0, &provider, since).await;
        renewal.map_err(store_problem)
    }
}
