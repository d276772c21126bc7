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

mod schedule;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::attempt::Cause;
use super::grant::GrantId;
use super::pacing::{Admission, Pace, Pacer};
use super::time::UnixTime;

pub use schedule::Schedule;

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
/// Ended rows kept in memory; more of them are left in the table until these are worked off.
const ENDED_MOST: usize = 2 * PAGE;

/// A place in the table's order.
type Place = (UnixTime, GrantId);

const START: Place = (UnixTime::from_millis(i64::MIN), GrantId(i64::MIN));

/// Ended rows that were left in the table: after the first place, up to the second.
#[derive(Clone, Copy, Debug)]
struct Backlog {
    after: Place,
    upto: Place,
}

impl Backlog {
    fn holds(&self, place: Place) -> bool {
        self.after < place && place <= self.upto
    }
}

/// A page that is being read. Its bound is published before the read, so that a write which the read may
/// miss joins by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loading {
    /// What comes after [`Horizon::loaded`], up to here.
    Next(UnixTime),
    /// The backlog's rows after the one place, up to the other.
    Backlog(Place, UnixTime),
}

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
    /// Before all others, in order of arrival.
    urgent: VecDeque<GrantId>,
    /// Attempts under way, each with the newest write that was told meanwhile.
    in_flight: BTreeMap<GrantId, Option<Written>>,
    /// Everything due up to here is in memory, but for the backlog.
    loaded: Place,
    backlog: Option<Backlog>,
    loading: Option<Loading>,
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
            urgent: VecDeque::new(),
            in_flight: BTreeMap::new(),
            loaded: START,
            backlog: None,
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
        self.loaded = START;
        self.backlog = None;
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
        let cut_off = rows.last().filter(|_| rows.len() >= limit);
        let cut_off = cut_off.map(|last| (last.due_at, last.id));
        match self.loading {
            Some(Loading::Next(bound)) if bound == until => {
                self.loaded = cut_off.unwrap_or((until, GrantId(i64::MAX)));
            }
            Some(Loading::Backlog(from, bound)) if bound == until => {
                let after = cut_off.unwrap_or((until, GrantId(i64::MAX)));
                // What was left out before `from` meanwhile is still to be read.
                self.backlog = self.backlog.and_then(|backlog| match backlog {
                    Backlog { after, .. } if after < from => Some(backlog),
                    Backlog { upto, .. } => (after < upto).then_some(Backlog { after, upto }),
                });
            }
            _ => return,
        }
        self.loading = None;
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
            Some(row) if version == 0 || self.is_inside((row.due_at, id)) => self.put(row),
            _ if self.rows.get(&id).is_some_and(|old| old.version <= version) => self.take(id),
            _ => {}
        }
    }

    fn is_inside(&self, place: Place) -> bool {
        if self.backlog.is_some_and(|backlog| backlog.holds(place)) {
            return matches!(self.loading, Some(Loading::Backlog(..)));
        }
        let loading = match self.loading {
            Some(Loading::Next(until)) => place.0 <= until,
            _ => false,
        };
        loading || place <= self.loaded
    }

    /// A caller waits for this grant.
    pub fn handle_demand(&mut self, id: GrantId) {
        if !self.in_flight.contains_key(&id) && !self.demanded_at.contains_key(&id) {
            self.demanded.insert(self.demands, id);
            self.demanded_at.insert(id, self.demands);
            self.demands += 1;
        }
    }

    /// This grant's refresh token of unknown fate may be presented again within the server's grace only, which is short:
    /// it goes before all others.
    pub fn handle_urgent(&mut self, id: GrantId) {
        if !self.in_flight.contains_key(&id) && !self.urgent.contains(&id) {
            self.urgent.push_back(id);
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
        self.pacer.end(written.id);
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
                Some(expires_at) if expires_at > now => {
                    self.living.insert((expires_at, id));
                }
                _ => self.end(due_at, id),
            }
        }
        while let Some(&(expires_at, id)) = self.living.first()
            && expires_at <= now
        {
            self.living.pop_first();
            if let Some(due_at) = self.rows.get(&id).map(|row| row.due_at) {
                self.end(due_at, id);
            }
        }
    }

    /// A due row has nothing left to save. Beyond a bound such rows wait in the table, so that they never
    /// fill the memory and hide living ones.
    fn end(&mut self, due_at: UnixTime, id: GrantId) {
        let place = (due_at, id);
        if self.ended.len() < ENDED_MOST {
            self.ended.insert(place);
            return;
        }
        self.rows.remove(&id);
        let before = (due_at, GrantId(id.0.saturating_sub(1)));
        self.backlog = Some(match self.backlog {
            Some(Backlog { after, upto }) => Backlog {
                after: after.min(before),
                upto: upto.max(place),
            },
            None => Backlog {
                after: before,
                upto: place,
            },
        });
    }

    /// Returns the next thing to do at `now`, if there is one.
    pub fn poll_action(&mut self, now: UnixTime) -> Option<Action> {
        self.ripen(now);
        if let Some(load) = self.poll_load(now) {
            return Some(load);
        }
        if !self.has_work(now) || self.pacer.admission(now) != Admission::Now {
            return None;
        }
        let scheduled = self.scheduled(now);
        let demanded = self.demanded.first_key_value().map(|(_, id)| *id);
        let next = match (demanded, scheduled) {
            (Some(_), Some(id)) if self.pacer.schedules_turn() => Some(id),
            (Some(id), _) | (None, Some(id)) => Some(id),
            (None, None) => None,
        };
        let id = self.urgent.pop_front().or(next)?;
        let cause = match self.demanded_at.remove(&id) {
            Some(place) => {
                self.demanded.remove(&place);
                Cause::Demand
            }
            None => Cause::Due,
        };
        self.take(id);
        self.in_flight.insert(id, None);
        self.pacer.begin(id);
        Some(Action::Begin { id, cause })
    }

    /// Which grant the schedule is for next. Nothing that has ended goes before all that is due has been seen:
    /// among the rest may be grants whose tokens can still be saved.
    fn scheduled(&self, now: UnixTime) -> Option<GrantId> {
        let all_seen = self.loaded.0 >= now;
        let ended = self.ended.first().filter(|_| all_seen);
        self.living.first().or(ended).map(|&(_, id)| id)
    }

    fn poll_load(&mut self, now: UnixTime) -> Option<Action> {
        if self.loading.is_some() {
            return None;
        }
        let (after, until) = if self.load_at().is_some_and(|at| at <= now) {
            let until = now + WINDOW;
            self.loading = Some(Loading::Next(until));
            (self.loaded, until)
        } else {
            let backlog = self.backlog.filter(|_| self.wants_backlog())?;
            self.loading = Some(Loading::Backlog(backlog.after, backlog.upto.0));
            (backlog.after, backlog.upto.0)
        };
        Some(Action::Load {
            after: (after > START).then_some(after),
            until,
            limit: PAGE,
        })
    }

    /// When the next page is wanted: half a window before the loaded rows run out, unless there are plenty.
    /// Ended rows don't count, or they would keep living ones out.
    fn load_at(&self) -> Option<UnixTime> {
        if self.loaded == START {
            return Some(UnixTime::EPOCH);
        }
        let plenty = self.ahead.len() + self.living.len() >= PAGE / 2;
        (!plenty).then(|| self.loaded.0 - WINDOW / 2)
    }

    fn wants_backlog(&self) -> bool {
        self.backlog.is_some() && self.ended.len() < PAGE / 2
    }

    fn has_work(&self, now: UnixTime) -> bool {
        !self.urgent.is_empty() || !self.demanded.is_empty() || self.scheduled(now).is_some()
    }

    /// Returns when to ask again, if nothing else happens first.
    pub fn poll_timeout(&mut self, now: UnixTime) -> Option<UnixTime> {
        let load = if self.loading.is_some() {
            None
        } else if self.wants_backlog() {
            Some(now)
        } else {
            self.load_at()
        };
        let work = if self.has_work(now) {
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

#[cfg(test)]
#[path = "horizon_tests.rs"]
mod tests;
