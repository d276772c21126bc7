//! What a scrape is answered: the counted, and what store and driver know at that moment.

use super::providers::Halt;
use super::shared::Shared;
use super::view;
use crate::metrics::{self, Page};
use crate::refresh::grant::Standing;
use crate::refresh::time::UnixTime;

/// The states that [`metrics::PROVIDER_STATE`] tells apart.
const PROVIDER_STATES: [&str; 5] = [
    "running",
    "cooling-down",
    "unreachable",
    "paused",
    "stopped",
];

/// Returns every reason for which a grant can need authorization.
pub(super) fn reasons() -> Vec<&'static str> {
    let all = Standing::ALL.into_iter();
    all.filter(|standing| matches!(standing, Standing::NeedsAuthorization(_)))
        .map(Standing::reason)
        .collect()
}

/// Writes the page. What the store can't say just now is left out: the rest is wanted most when something is wrong.
pub(super) async fn page(shared: &Shared) -> String {
    let mut page = Page::default();
    shared.metrics.write(&mut page);
    page.add(&metrics::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
    page.add(&metrics::START_TIME, &[], seconds(shared.started_at));
    let streams = shared.live.listeners();
    page.add(&metrics::EVENT_STREAMS, &[], streams as f64);
    for (app, kind, times) in shared.quotas.counts() {
        let [quota, outcome] = kind.labels();
        page.add(&metrics::OVER_QUOTA, &[&app, quota, outcome], times as f64);
    }
    disk(shared, &mut page);
    schedule(shared, &mut page).await;
    grants(shared, &mut page).await;
    page.finish()
}

fn disk(shared: &Shared, page: &mut Page) {
    let store = &shared.store;
    let failing = u8::from(store.failing().is_some());
    page.add(&metrics::STORE_FAILING, &[], f64::from(failing));
    page.add(&metrics::HELD_SETS, &[], shared.held.len() as f64);
    if let Some(spilled) = shared.held.spilled() {
        page.add(&metrics::SPILLED_SETS, &[], spilled as f64);
    }
    if let Some(free) = store.free_bytes() {
        page.add(&metrics::DISK_FREE, &[], free as f64);
    }
    page.add(&metrics::WRITER_QUEUE, &[], store.queued() as f64);
}

async fn schedule(shared: &Shared, page: &mut Page) {
    let look = view::look(shared).await;
    let now = shared.clock.now();
    for name in shared.providers.all().keys() {
        let in_flight = look
            .as_ref()
            .and_then(|look| look.in_flight_by_provider.get(name).copied());
        page.add(&metrics::IN_FLIGHT, &[name], in_flight.unwrap_or(0) as f64);
        let state = view::provider_state(shared, name, now);
        for known in PROVIDER_STATES {
            let here = f64::from(u8::from(known == state));
            page.add(&metrics::PROVIDER_STATE, &[name, known], here);
        }
        // At a provider that is stopped or paused nothing is to be refreshed.
        let halted = matches!(
            shared.halt(name),
            Some(Halt::Stopped(..) | Halt::Paused | Halt::NotConfigured)
        );
        if !halted && let Ok(Some(at)) = shared.store.soonest_expiry(name).await {
            page.add(&metrics::SOONEST_EXPIRY, &[name], seconds(at));
        }
    }
    let next_due_at = match look.and_then(|look| look.next_due_at) {
        Some(at) => Some(at),
        None => shared.store.next_due_at().await.ok().flatten(),
    };
    if let Some(at) = next_due_at {
        page.add(&metrics::NEXT_DUE, &[], seconds(at));
    }
}

async fn grants(shared: &Shared, page: &mut Page) {
    if let Ok(waiting) = shared.store.revocations_waiting().await {
        page.add(&metrics::REVOCATIONS_WAITING, &[], waiting as f64);
    }
    if let Ok(failing) = shared.store.failing_grants(shared.clock.now()).await {
        for name in shared.providers.all().keys() {
            let of = failing.iter().filter(|it| it.provider == *name);
            let (all, ended) = of.fold((0, 0), |(all, ended), it| {
                (all + it.grants, ended + it.without_token)
            });
            for (token, grants) in [("none", ended), ("lives", all - ended)] {
                page.add(&metrics::GRANTS_FAILING, &[name, token], grants as f64);
            }
        }
    }
    let Ok(counts) = shared.store.counts().await else {
        return;
    };
    let providers = shared.providers.all();
    let configured = providers.keys().map(|name| Some(name.as_str()));
    for provider in configured.chain([None]) {
        for standing in Standing::ALL {
            let of = counts.iter().filter(|count| {
                let named = providers.contains_key(&count.provider);
                count.standing == standing
                    && match provider {
                        Some(name) => count.provider == name,
                        None => !named,
                    }
            });
            let grants: u64 = of.map(|count| count.grants).sum();
            let provider = provider.unwrap_or(metrics::NOT_CONFIGURED);
            let labels = [provider, standing.name(), standing.reason()];
            page.add(&metrics::GRANTS, &labels, grants as f64);
        }
    }
}

fn seconds(at: UnixTime) -> f64 {
    at.as_millis() as f64 / 1000.0
}
