//! Which due grant of a provider is next, and of which provider.
//!
//! A [`Horizon`] holds the rows of one provider that are due soon; the rest
//! stay in the table, in its index by due time. [`Schedule`] puts the horizons
//! under one cap and one timer. Both are asked like this:
//!
//! ```text
//! write, page, demand, end of attempt  ->  handle_*
//! poll_action(now)   until None        ->  Load a page, Begin an attempt
//! poll_timeout()                       ->  when to ask again
//! ```
//!
//! Early and spurious calls of any of them do nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::attempt::Cause;
use super::grant::GrantId;
use super::pacing::{Admission, Pace, Pacer};
use super::time::UnixTime;

/// One row of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The grant.
    pub id: GrantId,
    /// When something must happen to it.
    pub due_at: UnixTime,
    /// When its access token ends.
    pub expires_at: Option<UnixTime>,
    /// Counts the writes to its row; a newer one wins.
    pub version: u64,
}

/// What a write made of a grant's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The grant.
    pub id: GrantId,
    /// The row's version after the write; `u64::MAX` for a row that is gone, 0 where it is not known.
    pub version: u64,
    /// The row, if anything is due.
    pub due: Option<Due>,
}

/// How far ahead rows are loaded.
const WINDOW: Duration = Duration::from_secs(10 * 60);
/// Rows in one page: about 3 MB of memory, 100 seconds of a million hourly grants.
const PAGE: usize = 32_768;

/// What a horizon wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the rows due after `after` and up to `until`, at most `limit`, in order of (due_at, id).
    Load {
        /// Where the last page ended.
        after: Option<(UnixTime, GrantId)>,
        /// Up to here.
        until: UnixTime,
        /// At most this many.
        limit: usize,
    },
    /// Begin an attempt; whether it is still wanted is decided on the row itself.
    Begin {
        /// The grant.
        id: GrantId,
        /// Who wants it.
        cause: Cause,
    },
}

/// The rows of one provider that are due soon.
#[derive(Clone, Debug)]
pub struct Horizon {
    pacer: Pacer,
    rows: BTreeMap<GrantId, Due>,
    /// Not yet due, by due time.
    ahead: BTreeSet<(UnixTime, GrantId)>,
    /// Due, token still alive, soonest end first.
    living: BTreeSet<(UnixTime, GrantId)>,
    /// Due, nothing left to save, longest due first.
    ended: BTreeSet<(UnixTime, GrantId)>,
    /// Callers wait for these, in order of arrival.
    demanded: BTreeMap<u64, GrantId>,
    /// The place of each in that order.
    demanded_at: BTreeMap<GrantId, u64>,
    demands: u64,
    /// Attempts under way, each with the newest write that was told meanwhile.
    in_flight: BTreeMap<GrantId, Option<Written>>,
    /// Everything due up to here is in memory.
    loaded: Option<(UnixTime, GrantId)>,
    /// The bound of the page that is being read. Published before the read, so that a write which the
    /// read may miss joins by itself.
    loading: Option<UnixTime>,
}

impl Horizon {
    /// Makes an empty horizon; its first action is to load.
    pub fn new(pace: Pace) -> Self {
        Horizon {
            pacer: Pacer::new(pace),
            rows: BTreeMap::new(),
            ahead: BTreeSet::new(),
            living: BTreeSet::new(),
            ended: BTreeSet::new(),
            demanded: BTreeMap::new(),
            demanded_at: BTreeMap::new(),
            demands: 0,
            in_flight: BTreeMap::new(),
            loaded: None,
            loading: None,
        }
    }

    /// The provider's pace.
    pub fn pacer(&mut self) -> &mut Pacer {
        &mut self.pacer
    }

    /// Forgets all rows and begins to load from the start: for due times that changed in bulk.
    ///
    /// Attempts in flight and callers that wait are kept.
    pub fn reload(&mut self) {
        self.rows.clear();
        self.ahead.clear();
        self.living.clear();
        self.ended.clear();
        self.loaded = None;
        self.loading = None;
    }

    /// Takes the answer to [`Action::Load`]. `rows` is shorter than the limit only if there are no more.
    ///
    /// An answer to a load from before a [`Horizon::reload`] is taken as well: its rows are true, and a page
    /// that was asked for again brings the rest.
    pub fn handle_page(&mut self, rows: &[Due], until: UnixTime, limit: usize) {
        for row in rows {
            if !self.in_flight.contains_key(&row.id) {
                self.put(*row);
            }
        }
        if self.loading != Some(until) {
            return;
        }
        self.loading = None;
        self.loaded = match rows.last() {
            Some(last) if rows.len() >= limit => Some((last.due_at, last.id)),
            _ => Some((until, GrantId(i64::MAX))),
        };
    }

    /// Takes a failed [`Action::Load`]: it is asked for again.
    pub fn handle_load_failure(&mut self) {
        self.loading = None;
    }

    /// Takes what a write made of a row. Writes may be told in any order: the newest version rules.
    pub fn handle_write(&mut self, written: Written) {
        let Written { id, version, due } = written;
        if let Some(newest) = self.in_flight.get_mut(&id) {
            if newest.is_none_or(|newest| newest.version <= version) {
                *newest = Some(written);
            }
            return;
        }
        match due {
            // Of no version: the table's own row may lie where no page will look again.
            Some(row) if version == 0 || self.is_inside(row.due_at, id) => self.put(row),
            _ if self.rows.get(&id).is_some_and(|old| old.version <= version) => self.take(id),
            _ => {}
        }
    }

    fn is_inside(&self, due_at: UnixTime, id: GrantId) -> bool {
        self.loading.is_some_and(|until| due_at <= until)
            || self.loaded.is_some_and(|loaded| (due_at, id) <= loaded)
    }

    /// A caller waits for this grant.
    pub fn handle_demand(&mut self, id: GrantId) {
        if !self.in_flight.contains_key(&id) && !self.demanded_at.contains_key(&id) {
            self.demanded.insert(self.demands, id);
            self.demanded_at.insert(id, self.demands);
            self.demands += 1;
        }
    }

    /// Forgets the demands that no attempt has begun for, and returns them.
    pub fn take_demands(&mut self) -> Vec<GrantId> {
        self.demanded_at.clear();
        std::mem::take(&mut self.demanded).into_values().collect()
    }

    /// An attempt has ended, with what it made of its row. Somebody else's write after it, told before it, rules.
    pub fn handle_end(&mut self, written: Written) {
        let Some(meanwhile) = self.in_flight.remove(&written.id) else {
            return self.handle_write(written);
        };
        self.pacer.end();
        match meanwhile {
            Some(newer) if newer.version >= written.version => self.handle_write(newer),
            _ => self.handle_write(written),
        }
    }

    fn put(&mut self, row: Due) {
        if let Some(old) = self.rows.get(&row.id)
            && old.version > row.version
        {
            return;
        }
        self.take(row.id);
        self.ahead.insert((row.due_at, row.id));
        self.rows.insert(row.id, row);
    }

    fn take(&mut self, id: GrantId) {
        if let Some(row) = self.rows.remove(&id) {
            self.ahead.remove(&(row.due_at, id));
            self.ended.remove(&(row.due_at, id));
            if let Some(expires_at) = row.expires_at {
                self.living.remove(&(expires_at, id));
            }
        }
    }

    /// Sorts what has become due, or has ended, into its queue.
    fn ripen(&mut self, now: UnixTime) {
        while let Some(&(due_at, id)) = self.ahead.first()
            && due_at <= now
        {
            self.ahead.pop_first();
            match self.rows.get(&id).and_then(|row| row.expires_at) {
                Some(expires_at) if expires_at > now => self.living.insert((expires_at, id)),
                _ => self.ended.insert((due_at, id)),
            };
        }
        while let Some(&(expires_at, id)) = self.living.first()
            && expires_at <= now
        {
            self.living.pop_first();
            if let Some(row) = self.rows.get(&id) {
                self.ended.insert((row.due_at, id));
            }
        }
    }

    /// Returns the next thing to do at `now`, if there is one.
    pub fn poll_action(&mut self, now: UnixTime) -> Option<Action> {
        self.ripen(now);
        if let Some(load) = self.poll_load(now) {
            return Some(load);
        }
        if !self.has_work() || self.pacer.admission(now) != Admission::Now {
            return None;
        }
        let scheduled = self
            .living
            .first()
            .or(self.ended.first())
            .map(|&(_, id)| id);
        let demanded = self.demanded.first_key_value().map(|(_, id)| *id);
        let id = match (demanded, scheduled) {
            (Some(_), Some(id)) if self.pacer.schedules_turn() => id,
            (Some(id), _) | (None, Some(id)) => id,
            (None, None) => return None,
        };
        let cause = match self.demanded_at.remove(&id) {
            Some(place) => {
                self.demanded.remove(&place);
                Cause::Demand
            }
            None => Cause::Due,
        };
        self.take(id);
        self.in_flight.insert(id, None);
        self.pacer.begin();
        Some(Action::Begin { id, cause })
    }

    fn poll_load(&mut self, now: UnixTime) -> Option<Action> {
        if self.loading.is_some() || self.load_at().is_none_or(|at| at > now) {
            return None;
        }
        let until = now + WINDOW;
        self.loading = Some(until);
        Some(Action::Load {
            after: self.loaded,
            until,
            limit: PAGE,
        })
    }

    /// When the next page is wanted: half a window before the loaded rows run out, unless there are plenty.
    fn load_at(&self) -> Option<UnixTime> {
        let Some((loaded, _)) = self.loaded else {
            return Some(UnixTime::EPOCH);
        };
        (self.rows.len() < PAGE / 2).then(|| loaded - WINDOW / 2)
    }

    fn has_work(&self) -> bool {
        !(self.demanded.is_empty() && self.living.is_empty() && self.ended.is_empty())
    }

    /// Returns when to ask again, if nothing else happens first.
    pub fn poll_timeout(&mut self, now: UnixTime) -> Option<UnixTime> {
        let load = if self.loading.is_none() {
            self.load_at()
        } else {
            None
        };
        let work = if self.has_work() {
            match self.pacer.admission(now) {
                Admission::Now => Some(now),
                Admission::At(at) => Some(at),
                Admission::Later => None,
            }
        } else {
            None
        };
        let ripe = self.ahead.first().map(|&(due_at, _)| due_at);
        [load, work, ripe].into_iter().flatten().min()
    }

    /// Returns when the next loaded row is due.
    pub fn next_due_at(&self) -> Option<UnixTime> {
        let first = |queue: &BTreeSet<(UnixTime, GrantId)>| {
            let (_, id) = queue.first()?;
            Some(self.rows.get(id)?.due_at)
        };
        [&self.ended, &self.living, &self.ahead]
            .into_iter()
            .filter_map(first)
            .min()
    }
}

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

#[cfg(test)]
#[path = "horizon_tests.rs"]
mod tests;
