//! The configured providers at run time, and what was learnt about them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::mpsc::UnboundedSender;

use super::driver::Event;
use crate::profile::{Provider, Registration};
use crate::refresh::attempt::ProviderEffect;
use crate::refresh::grant::Grant;
use crate::refresh::pacing::{PROBE_CAP, Unreachable};
use crate::refresh::policy::RETRY_AFTER_CAP;
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
    driver: UnboundedSender<Event>,
    live: ArcSwap<BTreeMap<String, Arc<Live>>>,
    states: Mutex<BTreeMap<String, ProviderState>>,
    /// Up to when the store knows that a provider serves.
    served_written: Mutex<BTreeMap<String, UnixTime>>,
    /// One write at a time, of what is newest: the last one on disk is the last one made.
    writing: tokio::sync::Mutex<()>,
}

/// That a provider serves is written when the last such word is this old.
const SERVED_WRITTEN_EVERY: Duration = Duration::from_secs(60);

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
    pub(super) fn new(
        store: Store,
        driver: UnboundedSender<Event>,
        states: BTreeMap<String, ProviderState>,
    ) -> Self {
        Providers {
            store,
            driver,
            live: ArcSwap::default(),
            states: Mutex::new(states),
            served_written: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
        }
    }

    /// Returns one provider.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Live>> {
        self.live.load().get(name).cloned()
    }

    /// Returns when a grant is due next. One whose provider is not configured is due when its token ends, until
    /// the provider comes back: see [`Providers::forget_schedule`].
    pub(super) fn scheduled_at(&self, grant: &Grant) -> Option<UnixTime> {
        match self.find(&grant.key.provider) {
            Some(live) => {
                let before = self.renew_before(&grant.key.provider);
                grant.due_with_renewal(before, grant.scheduled_at(&live.config.policy))
            }
            None => {
                let now = grant.has_refresh_token.then_some(grant.imported_at);
                grant.expires_at().or(now)
            }
        }
    }

    /// Has a provider's due times computed anew when it is configured next: some were set without its policy.
    pub(super) async fn forget_schedule(&self, name: &str) -> Result<(), StoreError> {
        self.update(name, |state| state.schedule = None).await
    }

    /// Returns the moment before which no token set is to be kept, if an admin has asked for that.
    pub(super) fn renew_before(&self, name: &str) -> Option<UnixTime> {
        self.lock().get(name)?.renew_before
    }

    /// Has every token set from before `before` replaced.
    pub(super) async fn renew(&self, name: &str, before: UnixTime) -> Result<(), StoreError> {
        self.update(name, |state| state.renew_before = Some(before))
            .await
    }

    /// Returns all of them.
    pub(super) fn all(&self) -> Arc<BTreeMap<String, Arc<Live>>> {
        self.live.load_full()
    }

    /// Swaps in a new configuration. A provider that was stopped for its credentials goes on if these have
    /// changed; its name is returned then.
    pub(super) async fn configure(&self, live: BTreeMap<String, Arc<Live>>) -> Vec<String> {
        let mended = |(name, provider): &(&String, &Arc<Live>)| {
            let credentials = self.credentials(&provider.config.registration);
            self.state(name).is_some_and(|state| {
                state.stopped.is_some() && state.stopped_credentials.as_ref() != Some(&credentials)
            })
        };
        let mended = live.iter().filter(mended);
        let resumed: Vec<String> = mended.map(|(name, _)| name.clone()).collect();
        // First, or an attempt with the credentials that were refused would begin.
        self.live.store(Arc::new(live));
        for name in &resumed {
            // In memory it rules at once; unwritten, the next start compares again.
            if let Err(error) = self.update(name, clear_stop).await {
                tracing::debug!(provider = %name, %error, "provider-state-not-written");
            }
        }
        resumed
    }

    /// Returns what is known about a provider, if anything is.
    pub(super) fn state(&self, name: &str) -> Option<ProviderState> {
        self.lock().get(name).cloned()
    }

    /// Returns why no attempt may be made at a provider, if so.
    pub(super) fn halt(&self, name: &str) -> Option<Halt> {
        match self.live.load().contains_key(name) {
            true => self.halted(name),
            false => Some(Halt::NotConfigured),
        }
    }

    /// The same of a provider that is configured.
    pub(super) fn halted(&self, name: &str) -> Option<Halt> {
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
                // A reload has mended them while the request was out.
                let mended = self
                    .find(name)
                    .is_some_and(|now| self.credentials(&now.config.registration) != credentials);
                if mended {
                    return Ok(false);
                }
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

    /// Notes that a provider has served a token set.
    pub(super) async fn served(&self, name: &str, now: UnixTime) -> Result<(), StoreError> {
        self.lock().entry(name.to_owned()).or_default().served_at = Some(now);
        let stale = {
            let written = self.served_written.lock();
            let mut written = written.unwrap_or_else(PoisonError::into_inner);
            let before = written.get(name).copied();
            let stale = before.is_none_or(|at| at > now || now.since(at) >= SERVED_WRITTEN_EVERY);
            if stale {
                written.insert(name.to_owned(), now);
            }
            stale
        };
        if stale {
            self.write(name).await?;
        }
        Ok(())
    }

    /// Notes in memory whether a provider is unreachable; [`Providers::write`] writes it.
    pub(super) fn set_unreachable(&self, name: &str, unreachable: Option<Unreachable>) {
        self.lock().entry(name.to_owned()).or_default().unreachable = unreachable;
    }

    /// Returns before when it is known that no attempt can begin: a cool-down, or the pause before a probe.
    pub(super) fn not_before(&self, name: &str) -> Option<UnixTime> {
        let state = self.state(name)?;
        let probe_at = state.unreachable.map(|unreachable| unreachable.probe_at);
        state.cool_down_until.max(probe_at)
    }

    /// Takes the moments of a clock that was set back by `by` to `now` as moments of the new one.
    pub(super) fn set_back(&self, now: UnixTime, by: Duration) {
        let back = |at: UnixTime| if at > now { (at - by).min(now) } else { at };
        let ahead = |at: UnixTime, longest: Duration| {
            if at > now {
                (at - by).min(now + longest)
            } else {
                at
            }
        };
        for state in self.lock().values_mut() {
            state.cool_down_until = state.cool_down_until.map(|at| ahead(at, RETRY_AFTER_CAP));
            state.stopped_at = state.stopped_at.map(back);
            state.renew_before = state.renew_before.map(back);
            state.unreachable = state.unreachable.map(|it| Unreachable {
                since: back(it.since),
                probe_at: ahead(it.probe_at, PROBE_CAP),
            });
        }
    }

    /// Forgets when providers served, by a clock that was set back: it is evidence against grants (I5), and by the new
    /// clock it would be newer than it is.
    pub(super) fn forget_served(&self) {
        for state in self.lock().values_mut() {
            state.served_at = None;
        }
    }

    /// Returns the newest moment at which a provider is known to have served.
    pub(super) fn newest_served_at(&self) -> Option<UnixTime> {
        self.lock()
            .values()
            .filter_map(|state| state.served_at)
            .max()
    }

    /// Pauses a provider by an admin's will.
    pub(super) async fn pause(&self, name: &str) -> Result<(), StoreError> {
        self.update(name, |state| state.paused = true).await
    }

    /// Lifts an admin's pause, a stop, a cool-down and an open breaker.
    pub(super) async fn resume(&self, name: &str) -> Result<(), StoreError> {
        self.update(name, |state| {
            clear_stop(state);
            state.paused = false;
            state.cool_down_until = None;
            state.unreachable = None;
        })
        .await
    }

    /// Records with what the due times in the table were computed.
    pub(super) async fn set_schedule(
        &self,
        name: &str,
        schedule: String,
    ) -> Result<(), StoreError> {
        self.update(name, |state| state.schedule = Some(schedule))
            .await
    }

    /// Changes a state in memory, where it rules at once, and writes it. The schedule hears of it before that: the disk
    /// may be slow, and grants of a provider that is halted would begin and end in turns meanwhile.
    async fn update(
        &self,
        name: &str,
        change: impl FnOnce(&mut ProviderState),
    ) -> Result<(), StoreError> {
        change(self.lock().entry(name.to_owned()).or_default());
        let _ = self.driver.send(Event::ProvidersChanged {
            max_in_flight: None,
        });
        self.write(name).await
    }

    /// Writes what is known of a provider now.
    pub(super) async fn write(&self, name: &str) -> Result<(), StoreError> {
        let _one_at_a_time = self.writing.lock().await;
        let state = self.state(name).unwrap_or_default();
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
