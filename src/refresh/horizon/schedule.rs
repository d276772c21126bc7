//! All providers' horizons together.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{Action, Horizon, Written};
use crate::refresh::grant::GrantId;
use crate::refresh::pacing::Pace;
use crate::refresh::time::UnixTime;

/// All providers under one cap and one timer.
#[derive(Clone, Debug)]
pub struct Schedule {
    horizons: BTreeMap<String, Horizon>,
    max_in_flight: usize,
    in_flight: usize,
    /// The provider served last; the next one goes first, so that none waits for another's backlog.
    served: String,
}

impl Schedule {
    /// Makes a schedule without providers.
    pub fn new(max_in_flight: usize) -> Self {
        Schedule {
            horizons: BTreeMap::new(),
            max_in_flight,
            in_flight: 0,
            served: String::new(),
        }
    }

    /// Takes a new global cap.
    pub fn set_max_in_flight(&mut self, max_in_flight: usize) {
        self.max_in_flight = max_in_flight;
    }

    /// Adds a provider, or gives one a new pace.
    pub fn set_provider(&mut self, provider: &str, pace: Pace) {
        match self.horizons.get_mut(provider) {
            Some(horizon) => horizon.pacer().set_pace(pace),
            None => {
                self.horizons
                    .insert(provider.to_owned(), Horizon::new(pace));
            }
        }
    }

    /// Stops scheduling providers that are not in `configured`, and returns what was demanded of them. What
    /// they have in flight ends as it ends.
    pub fn retain_providers(&mut self, configured: impl Fn(&str) -> bool) -> Vec<GrantId> {
        let mut demanded = Vec::new();
        self.horizons.retain(|name, horizon| {
            let keep = configured(name);
            if !keep {
                self.in_flight = self.in_flight.saturating_sub(horizon.in_flight.len());
                demanded.append(&mut horizon.take_demands());
            }
            keep
        });
        demanded
    }

    /// Returns a provider's horizon.
    pub fn provider(&mut self, provider: &str) -> Option<&mut Horizon> {
        self.horizons.get_mut(provider)
    }

    /// An attempt has ended, with what it made of its row.
    pub fn handle_end(&mut self, provider: &str, written: Written) {
        if let Some(horizon) = self.horizons.get_mut(provider) {
            if horizon.in_flight.contains_key(&written.id) {
                self.in_flight = self.in_flight.saturating_sub(1);
            }
            horizon.handle_end(written);
        }
    }

    /// Returns how many attempts are in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Returns the next thing to do at `now`, and for which provider. Providers take turns.
    pub fn poll_action(&mut self, now: UnixTime) -> Option<(String, Action)> {
        let full = self.in_flight >= self.max_in_flight;
        let served = self.served.clone();
        let turns = [
            (Bound::Excluded(served.as_str()), Bound::Unbounded),
            (Bound::Unbounded, Bound::Included(served.as_str())),
        ];
        for turn in turns {
            for (name, horizon) in self.horizons.range_mut::<str, _>(turn) {
                let action = if full {
                    horizon.ripen(now);
                    horizon.poll_load(now)
                } else {
                    horizon.poll_action(now)
                };
                if let Some(action) = action {
                    if matches!(action, Action::Begin { .. }) {
                        self.in_flight += 1;
                        self.served.clone_from(name);
                    }
                    return Some((name.clone(), action));
                }
            }
        }
        None
    }

    /// Returns when to ask again, if nothing else happens first. At the cap, only an end can free a place.
    pub fn poll_timeout(&mut self, now: UnixTime) -> Option<UnixTime> {
        let full = self.in_flight >= self.max_in_flight;
        self.horizons
            .values_mut()
            .filter_map(|horizon| horizon.poll_timeout(now))
            .filter(|at| !full || *at > now)
            .min()
    }

    /// Returns when the next loaded row of any provider is due.
    pub fn next_due_at(&self) -> Option<UnixTime> {
        self.horizons
            .values()
            .filter_map(Horizon::next_due_at)
            .min()
    }
}
