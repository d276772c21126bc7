//! The configured providers at run time, and what was learnt about them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::profile::{Provider, Registration};
use crate::refresh::attempt::ProviderEffect;
use crate::refresh::time::UnixTime;
use crate::store::{ProviderState, Store, StoreError};
use crate::token_endpoint::Client;

/// One provider: its configuration and the client made from it.
pub(super) struct Live {
    pub(super) config: Provider,
    pub(super) client: Client,
}

/// All providers. The configuration is swapped whole; the states are kept across swaps and restarts.
pub(super) struct Providers {
    store: Store,
    live: ArcSwap<BTreeMap<String, Arc<Live>>>,
    states: Mutex<BTreeMap<String, ProviderState>>,
}

/// Why no attempt may be made at a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// It is not in the configuration.
    NotConfigured,
    /// An admin paused it.
    Paused,
    /// It refused our client, with this code, since then.
    Stopped(String, Option<UnixTime>),
}

impl Providers {
    pub(super) fn new(store: Store, states: BTreeMap<String, ProviderState>) -> Self {
        Providers {
            store,
            live: ArcSwap::default(),
            states: Mutex::new(states),
        }
    }

    /// Returns one provider.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Live>> {
        self.live.load().get(name).cloned()
    }

    /// Returns how long before expiry a provider's grants are due. One that is not configured may come back, and
    /// its grants have to be on the schedule then: the margin they were last scheduled with.
    pub(super) fn margin(&self, name: &str) -> Duration {
        if let Some(live) = self.find(name) {
            return live.config.policy.margin;
        }
        let known = self.state(name).and_then(|state| state.margin_ms);
        Duration::from_millis(known.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0))
    }

    /// Returns all of them.
    pub(super) fn all(&self) -> Arc<BTreeMap<String, Arc<Live>>> {
        self.live.load_full()
    }

    /// Swaps in a new configuration. A provider that was stopped for its credentials goes on if these have
    /// changed; its name is returned then.
    pub(super) async fn configure(&self, live: BTreeMap<String, Arc<Live>>) -> Vec<String> {
        let mut resumed = Vec::new();
        for (name, provider) in &live {
            let fingerprint = self.credentials(&provider.config.registration);
            let changed = self.state(name).is_some_and(|state| {
                state.stopped.is_some() && state.stopped_credentials.as_ref() != Some(&fingerprint)
            });
            if changed {
                // In memory it rules at once; unwritten, the next start compares again.
                if let Err(error) = self.update(name, clear_stop).await {
                    tracing::debug!(provider = %name, %error, "provider-state-not-written");
                }
                resumed.push(name.clone());
            }
        }
        self.live.store(Arc::new(live));
        resumed
    }

    /// Returns what is known about a provider, if anything is.
    pub(super) fn state(&self, name: &str) -> Option<ProviderState> {
        self.lock().get(name).cloned()
    }

    /// Returns why no attempt may be made at a provider, if so.
    pub(super) fn halt(&self, name: &str) -> Option<Halt> {
        if !self.live.load().contains_key(name) {
            return Some(Halt::NotConfigured);
        }
        let states = self.lock();
        let state = states.get(name)?;
        match &state.stopped {
            Some(code) => Some(Halt::Stopped(code.clone(), state.stopped_at)),
            None => state.paused.then_some(Halt::Paused),
        }
    }

    /// Records what an outcome means for the whole provider. Returns whether that is news.
    pub(super) async fn apply(
        &self,
        live: &Live,
        effect: ProviderEffect,
        code: &str,
        now: UnixTime,
    ) -> Result<bool, StoreError> {
        let name = &live.config.registration.provider;
        let before = self.state(name).unwrap_or_default();
        match effect {
            ProviderEffect::None => Ok(false),
            ProviderEffect::CoolDown(until) => {
                let news = before.cool_down_until.is_none_or(|before| before <= now);
                self.update(name, |state| {
                    state.cool_down_until = state.cool_down_until.max(Some(until));
                })
                .await?;
                Ok(news)
            }
            ProviderEffect::Stop => {
                let credentials = self.credentials(&live.config.registration);
                self.update(name, |state| {
                    state.stopped = Some(code.to_owned());
                    state.stopped_credentials = Some(credentials);
                    state.stopped_at = Some(now);
                })
                .await?;
                Ok(before.stopped.is_none())
            }
        }
    }

    /// Pauses a provider by an admin's will.
    pub(super) async fn pause(&self, name: &str) -> Result<(), StoreError> {
        self.update(name, |state| state.paused = true).await
    }

    /// Lifts an admin's pause, a stop and a cool-down.
    pub(super) async fn resume(&self, name: &str) -> Result<(), StoreError> {
        self.update(name, |state| {
            clear_stop(state);
            state.paused = false;
            state.cool_down_until = None;
        })
        .await
    }

    /// Records with which margin the due times in the table were computed.
    pub(super) async fn set_margin(&self, name: &str, margin_ms: i64) -> Result<(), StoreError> {
        self.update(name, |state| state.margin_ms = Some(margin_ms))
            .await
    }

    /// Changes a state in memory, where it rules at once, and writes it.
    async fn update(
        &self,
        name: &str,
        change: impl FnOnce(&mut ProviderState),
    ) -> Result<(), StoreError> {
        let state = {
            let mut states = self.lock();
            let state = states.entry(name.to_owned()).or_default();
            change(state);
            state.clone()
        };
        self.store.set_provider_state(name, state).await
    }

    /// A keyed fingerprint of what we identify ourselves with: tells a mended secret from the refused one.
    fn credentials(&self, registration: &Registration) -> Vec<u8> {
        let secret = registration
            .client_secret
            .as_ref()
            .map_or("", |s| s.expose());
        let text = zeroize::Zeroizing::new(format!(
            "{:?}\n{}\n{}\n{secret}",
            registration.client_auth, registration.token_endpoint, registration.client_id
        ));
        self.store
            .fingerprint("credentials", text.as_bytes())
            .to_vec()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, ProviderState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn clear_stop(state: &mut ProviderState) {
    state.stopped = None;
    state.stopped_credentials = None;
    state.stopped_at = None;
}
