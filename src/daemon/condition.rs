//! What status tells beyond states and counts: disk, schedule, copies, and work that is under way.

use std::time::Duration;

use super::driver::Look;
use super::shared::{Shared, lock};
use super::view;
use crate::config;
use crate::local_api::condition::{Condition, CopiesView, EndingView, FailingView, LateView};
use crate::local_api::types::RenewalView;
use crate::refresh::time::UnixTime;
use crate::store::{Newest, StoreError};

/// A refresh that has not begun so long after it was due is late. A catch-up after a restart is over before.
const LATE: Duration = Duration::from_secs(120);
/// A copy of a large store takes minutes.
const COPYING: Duration = Duration::from_secs(3600);

/// Looks at all of it.
pub(super) async fn condition(
    shared: &Shared,
    look: Option<&Look>,
) -> Result<Condition, StoreError> {
    let now = shared.clock.now();
    let renewals = renewals(shared).await?;
    let ending = shared.store.ending_refresh_tokens(now).await?;
    Ok(Condition {
        spilled: shared.held.spilled(),
        free_bytes: shared.store.free_bytes(),
        late: late(shared, look, &renewals, now),
        failing: failing(shared, now).await?,
        renewals,
        ending: ending
            .into_iter()
            .map(|ending| EndingView {
                provider: ending.provider,
                grants: ending.grants,
                soonest_at: ending.soonest_at.rfc3339(),
            })
            .collect(),
        copies: copies(shared, now).await,
    })
}

/// Providers whose schedule is behind, although nothing holds it up that is told elsewhere: a stop, a cool-down, the
/// disk, or a renewal, which makes everything due at once.
fn late(
    shared: &Shared,
    look: Option<&Look>,
    renewals: &[RenewalView],
    now: UnixTime,
) -> Vec<LateView> {
    let Some(look) = look.filter(|_| !shared.draining() && shared.store.failing().is_none()) else {
        return Vec::new();
    };
    let due = look.next_due_by_provider.iter();
    due.filter(|(name, due_at)| {
        now.since(**due_at) > LATE
            && view::provider_state(shared, name, now) == "running"
            && !renewals.iter().any(|renewal| renewal.provider == **name)
    })
    .map(|(name, due_at)| LateView {
        provider: name.clone(),
        due_at: due_at.rfc3339(),
    })
    .collect()
}

async fn failing(shared: &Shared, now: UnixTime) -> Result<Vec<FailingView>, StoreError> {
    let all = shared.store.failing_grants(now).await?;
    let views = all.into_iter().map(|failing| FailingView {
        provider: failing.provider,
        code: failing.code,
        grants: failing.grants,
        without_token: failing.without_token,
        soonest_at: failing.soonest_at.map(UnixTime::rfc3339),
        since: failing.since.rfc3339(),
    });
    Ok(views.collect())
}

/// Counting reads all rows of a provider, so one that is known to be done is not counted again.
async fn renewals(shared: &Shared) -> Result<Vec<RenewalView>, StoreError> {
    let mut renewals = Vec::new();
    for name in shared.providers.all().keys() {
        let Some(since) = shared.providers.renew_before(name) else {
            continue;
        };
        if lock(&shared.known.renewed).get(name) == Some(&since) {
            continue;
        }
        let renewal = view::renewal(shared, name, since).await?;
        if renewal.left > 0 {
            renewals.push(renewal);
        } else {
            lock(&shared.known.renewed).insert(name.clone(), since);
        }
    }
    Ok(renewals)
}

async fn copies(shared: &Shared, now: UnixTime) -> Option<CopiesView> {
    let (dir, cron) = shared.known.nightly.as_ref()?;
    let mut error = lock(&shared.known.no_copy).clone();
    let newest = shared.store.newest_copies(dir).await;
    let newest = newest.unwrap_or_else(|unreadable| {
        error.get_or_insert_with(|| unreadable.to_string());
        Newest::default()
    });
    // What was to be made before this daemon ran is not missed by it, where there is no nightly copy at all.
    let after = newest.nightly.unwrap_or(shared.started_at);
    let missed_at = config::next_of_cron(cron, after);
    let missed_at = missed_at.filter(|due| *due + COPYING < now);
    Some(CopiesView {
        dir: dir.to_string_lossy().into_owned(),
        newest_at: newest.any.map(UnixTime::rfc3339),
        error,
        missed_at: missed_at.map(UnixTime::rfc3339),
    })
}
