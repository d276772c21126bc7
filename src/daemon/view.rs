//! What admins and apps are shown: grants, providers, status.

use tokio::sync::oneshot;

use super::condition::condition;
use super::driver::{self, Look};
use super::providers::Halt;
use super::rotation;
use super::shared::{Shared, lock};
use crate::local_api::types::{
    CountView, GrantView, History, HistoryEntry, ProviderStanding, ProviderView, RenewalView,
    Status, Unanswered,
};
use crate::refresh::grant::Grant;
use crate::refresh::time::UnixTime;
use crate::store::{Count, Entry, Event, StoreError};

/// A grant's state, without secrets.
pub(super) fn grant(grant: &Grant) -> GrantView {
    GrantView {
        namespace: grant.key.namespace.clone(),
        user: grant.key.user.clone(),
        provider: grant.key.provider.clone(),
        account: grant.key.account.clone(),
        state: grant.standing.name().to_owned(),
        reason: grant.standing.reason().to_owned(),
        since: grant.standing_since.rfc3339(),
        generation: grant.generation,
        expires_at: grant.expires_at().map(UnixTime::rfc3339),
        due_at: grant.due_at.map(UnixTime::rfc3339),
        has_refresh_token: grant.has_refresh_token,
        refresh_token_expires_at: grant.refresh_token_end.map(|end| end.expires_at.rfc3339()),
        scope: grant.scope.clone(),
        imported_at: grant.imported_at.rfc3339(),
        refreshed_at: grant.refreshed_at.map(UnixTime::rfc3339),
        attempted_at: grant.attempted_at.map(UnixTime::rfc3339),
        failures: grant.failures,
        last_failure: grant.last_failure.clone(),
        unused_refreshes: grant.unused_refreshes,
    }
}

/// A grant's story and what bears on it now.
pub(super) fn history(shared: &Shared, of: &Grant, entries: &[Entry]) -> History {
    let provider = &of.key.provider;
    let (state, reason, since) = standing(shared, provider, shared.clock.now());
    let live = shared.providers.find(provider);
    History {
        grant: grant(of),
        provider: ProviderStanding {
            state: state.to_owned(),
            reason,
            since: since.map(UnixTime::rfc3339),
            rotation: live
                .map_or("", |live| live.config.policy.rotation.name())
                .to_owned(),
        },
        unanswered: of.mark.map(|mark| Unanswered {
            since: mark.first_sent_at.rfc3339(),
            requests: mark.presented,
        }),
        held: shared.held.find(&of.key).is_some(),
        store: shared.store.failing().unwrap_or_else(|| "ok".to_owned()),
        moved: shared.moving.begun(),
        entries: entries.iter().map(entry).collect(),
    }
}

fn entry(entry: &Entry) -> HistoryEntry {
    let (code, reason) = match entry.event {
        Event::Failed | Event::Unanswered => (Some(entry.detail.clone()), None),
        _ if entry.detail.is_empty() => (None, None),
        _ => (None, Some(entry.detail.clone())),
    };
    HistoryEntry {
        event: entry.event.name().to_owned(),
        at: entry.first_at.rfc3339(),
        until: (entry.last_at != entry.first_at).then(|| entry.last_at.rfc3339()),
        times: entry.times,
        generation: entry.generation,
        code,
        status: entry.status,
        reason,
        by: entry.by.map(|by| by.name().to_owned()),
        presented: entry.presented.map(|short| short.to_string()),
        received: entry.received.map(|short| short.to_string()),
    }
}

/// Asks the driver how it fares; `None` if it has ended.
pub(super) async fn look(shared: &Shared) -> Option<Look> {
    let (answer, look) = oneshot::channel();
    shared.driver.send(driver::Event::Look(answer)).ok()?;
    look.await.ok()
}

/// All providers: the configured ones, and those that only grants still name.
pub(super) async fn providers(shared: &Shared) -> Result<Vec<ProviderView>, StoreError> {
    let counts = shared.store.counts().await?;
    let look = look(shared).await;
    let now = shared.clock.now();
    let live = shared.providers.all();
    let mut names: std::collections::BTreeSet<&str> = live.keys().map(String::as_str).collect();
    names.extend(counts.iter().map(|count| count.provider.as_str()));
    let views = names.into_iter().map(|name| {
        let config = live.get(name).map(|live| &live.config);
        let (state, reason, since) = standing(shared, name, now);
        ProviderView {
            name: name.to_owned(),
            profile: config.and_then(|config| config.profile.clone()),
            token_endpoint: config.map_or(String::new(), |config| {
                config.registration.token_endpoint.to_string()
            }),
            revocation_endpoint: config
                .and_then(|config| config.registration.revocation_endpoint.as_ref())
                .map(ToString::to_string),
            rotation: config
                .map_or("", |config| config.policy.rotation.name())
                .to_owned(),
            margin: config.map_or(0.0, |config| config.policy.margin.as_secs_f64()),
            state: state.to_owned(),
            reason,
            since: since.map(UnixTime::rfc3339),
            in_flight: look
                .as_ref()
                .and_then(|look| look.in_flight_by_provider.get(name).copied())
                .unwrap_or(0),
            grants: counts
                .iter()
                .filter(|count| count.provider == name)
                .map(count)
                .collect(),
        }
    });
    Ok(views.collect())
}

/// Returns the name of a provider's state.
pub(super) fn provider_state(shared: &Shared, name: &str, now: UnixTime) -> &'static str {
    standing(shared, name, now).0
}

/// Says whether a provider runs: its state, why, and since (or until) when.
pub(super) fn standing(
    shared: &Shared,
    name: &str,
    now: UnixTime,
) -> (&'static str, String, Option<UnixTime>) {
    match shared.halt(name) {
        Some(Halt::NotConfigured) => ("not-configured", String::new(), None),
        Some(Halt::Stopped(code, since)) => ("stopped", code, since),
        Some(Halt::Paused) => ("paused", "admin".to_owned(), None),
        None => {
            let state = shared.providers.state(name).unwrap_or_default();
            if let Some(unreachable) = state.unreachable {
                return ("unreachable", String::new(), Some(unreachable.since));
            }
            match state.cool_down_until.filter(|until| *until > now) {
                Some(until) => ("cooling-down", String::new(), Some(until)),
                None => ("running", String::new(), None),
            }
        }
    }
}

fn count(count: &Count) -> CountView {
    CountView {
        provider: count.provider.clone(),
        state: count.standing.name().to_owned(),
        reason: count.standing.reason().to_owned(),
        grants: count.grants,
    }
}

/// When anything is due next. What is due soon is in memory; the rest is one look at an index.
pub(super) async fn next_due_at(
    shared: &Shared,
    look: Option<&Look>,
) -> Result<Option<UnixTime>, StoreError> {
    match look.and_then(|look| look.next_due_at) {
        Some(at) => Ok(Some(at)),
        None => shared.store.next_due_at().await,
    }
}

/// How the daemon fares.
pub(super) async fn status(shared: &Shared) -> Result<Status, StoreError> {
    let counts = shared.store.counts().await?;
    let look = look(shared).await;
    let next_due_at = match shared.moving.done() {
        true => None,
        false => next_due_at(shared, look.as_ref()).await?,
    };
    let providers = providers(shared).await?;
    let revocations = shared.store.revocations_waiting().await?;
    let condition = condition(shared, look.as_ref()).await?;
    let state = if shared.moving.done() {
        "moved"
    } else if shared.moving.begun() {
        "moving"
    } else if shared.draining() {
        "draining"
    } else {
        "running"
    };
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: shared.started_at.rfc3339(),
        state: state.to_owned(),
        config: lock(&shared.config_files).clone(),
        reload_error: lock(&shared.reload_error).clone(),
        grants: counts.iter().map(count).collect(),
        providers,
        in_flight: look.map_or(0, |look| look.in_flight),
        next_due_at: next_due_at.map(UnixTime::rfc3339),
        held: shared.held.len(),
        revocations,
        keys: rotation::view(shared),
        store: shared.store.failing().unwrap_or_else(|| "ok".to_owned()),
        condition,
    })
}

/// Says how far the renewal of a provider's grants from before `since` is. Reads all rows of the provider.
pub(super) async fn renewal(
    shared: &Shared,
    provider: &str,
    since: UnixTime,
) -> Result<RenewalView, StoreError> {
    let counts = shared.store.renewal_counts(provider, since).await?;
    let (state, reason, _) = standing(shared, provider, shared.clock.now());
    Ok(RenewalView {
        provider: provider.to_owned(),
        state: state.to_owned(),
        reason,
        since: Some(since.rfc3339()),
        left: counts.left,
        resting: counts.resting,
        grants: counts.grants,
    })
}
