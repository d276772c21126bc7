//! The schedule against a reference: random operations on a table of grants, with pages and attempts
//! that come back late, and a ten-line model of what must hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use freshd::refresh::attempt::Cause;
use freshd::refresh::grant::GrantId;
use freshd::refresh::horizon::{Action, Due, Horizon, Schedule, Written};
use freshd::refresh::pacing::Pace;
use freshd::refresh::time::UnixTime;
use freshd::refresh::token_response::Contact;
use proptest::prelude::*;

const START: UnixTime = UnixTime::from_secs(1_790_000_000);
const PROVIDERS: [&str; 2] = ["box", "google"];
const MAX_IN_FLIGHT: usize = 5;
const MAX_PER_PROVIDER: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    /// A grant is written: imported, resumed, rescheduled.
    Write { id: i64, due_in: i64, left: i64 },
    /// A grant is paused or deleted.
    Remove { id: i64 },
    /// A caller waits for a grant.
    Demand { id: i64 },
    /// Time passes; the clock may also step back.
    Pass { secs: i64 },
    /// The oldest page that is being read arrives.
    Page,
    /// An attempt in flight writes its outcome; its end is not told yet, and others may write after it.
    Commit { which: usize, due_in: i64 },
    /// An attempt in flight ends, and the grant is due again after so long.
    End { which: usize, due_in: i64 },
    /// The request of an attempt in flight tells how its server fares.
    Contact { which: usize, answered: bool },
    /// A provider is halted, or goes on.
    Halt { provider: usize, halted: bool },
    /// Due times were changed in bulk.
    Reload { provider: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let id = 0..12i64;
    prop_oneof![
        4 => (id.clone(), -300..2000i64, -100..4000i64)
            .prop_map(|(id, due_in, left)| Op::Write { id, due_in, left }),
        1 => id.clone().prop_map(|id| Op::Remove { id }),
        2 => id.prop_map(|id| Op::Demand { id }),
        3 => (-100..900i64).prop_map(|secs| Op::Pass { secs }),
        3 => Just(Op::Page),
        2 => (0..8usize, -5..2000i64).prop_map(|(which, due_in)| Op::Commit { which, due_in }),
        4 => (0..8usize, 1..2000i64).prop_map(|(which, due_in)| Op::End { which, due_in }),
        4 => (0..8usize, prop::bool::weighted(0.2))
            .prop_map(|(which, answered)| Op::Contact { which, answered }),
        1 => (0..2usize, any::<bool>()).prop_map(|(provider, halted)| Op::Halt { provider, halted }),
        1 => (0..2usize).prop_map(|provider| Op::Reload { provider }),
    ]
}

struct Flight {
    provider: String,
    id: GrantId,
    /// What it has written, once it has.
    outcome: Option<Written>,
}

struct Page {
    provider: String,
    rows: Vec<Due>,
    until: UnixTime,
    limit: usize,
}

struct World {
    now: UnixTime,
    schedule: Schedule,
    /// The table: the reference for what is due.
    table: BTreeMap<GrantId, Due>,
    version: u64,
    in_flight: Vec<Flight>,
    demanded: BTreeSet<GrantId>,
    halted: BTreeSet<&'static str>,
    breakers: BTreeMap<&'static str, Breaker>,
    pages: VecDeque<Page>,
}

/// The reference for a breaker.
#[derive(Default)]
struct Breaker {
    /// Grants that failed since the last answer, while it is closed.
    failed: BTreeSet<GrantId>,
    open: bool,
    /// The attempt that began while it was open.
    probe: Option<GrantId>,
    /// When a probe last failed, or the breaker opened; `None` after the clock went back.
    failed_at: Option<UnixTime>,
}

fn provider_of(id: GrantId) -> &'static str {
    PROVIDERS[(id.0 % 2) as usize]
}

impl World {
    fn new() -> Self {
        let mut schedule = Schedule::new(MAX_IN_FLIGHT);
        for provider in PROVIDERS {
            let pace = Pace {
                max_in_flight: MAX_PER_PROVIDER,
                rate: None,
            };
            schedule.set_provider(provider, pace);
        }
        World {
            now: START,
            schedule,
            table: BTreeMap::new(),
            version: 0,
            in_flight: Vec::new(),
            demanded: BTreeSet::new(),
            halted: BTreeSet::new(),
            breakers: PROVIDERS.map(|name| (name, Breaker::default())).into(),
            pages: VecDeque::new(),
        }
    }

    fn after(&self, secs: i64) -> UnixTime {
        UnixTime::from_millis(self.now.as_millis() + secs * 1000)
    }

    fn row(&mut self, id: GrantId, due_in: i64, left: i64) -> Written {
        self.version += 1;
        let (due_at, expires_at) = (self.after(due_in), Some(self.after(left)));
        let version = self.version;
        let due = Due {
            id,
            due_at,
            expires_at,
            version,
        };
        self.table.insert(id, due);
        Written {
            id,
            version,
            due: Some(due),
        }
    }

    /// What an attempt makes of its grant: due again after so long, if it is still there.
    fn outcome(&mut self, id: GrantId, due_in: i64) -> Written {
        if self.table.contains_key(&id) {
            self.row(id, due_in, due_in + 60)
        } else {
            self.removed(id)
        }
    }

    fn removed(&mut self, id: GrantId) -> Written {
        self.version += 1;
        self.table.remove(&id);
        Written {
            id,
            version: self.version,
            due: None,
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Write { id, due_in, left } => {
                let written = self.row(GrantId(id), due_in, left);
                self.horizon(written.id).handle_write(written);
            }
            Op::Remove { id } => {
                let written = self.removed(GrantId(id));
                self.horizon(written.id).handle_write(written);
            }
            Op::Demand { id } => {
                let id = GrantId(id);
                self.demanded.insert(id);
                self.horizon(id).handle_demand(id);
            }
            Op::Pass { secs } => {
                self.now = self.after(secs);
                if secs < 0 {
                    self.breakers
                        .values_mut()
                        .for_each(|it| it.failed_at = None);
                }
            }
            Op::Page => self.deliver_page(),
            Op::Commit { which, due_in } => {
                if !self.in_flight.is_empty() {
                    let at = which % self.in_flight.len();
                    if self.in_flight[at].outcome.is_none() {
                        let written = self.outcome(self.in_flight[at].id, due_in);
                        self.in_flight[at].outcome = Some(written);
                    }
                }
            }
            Op::End { which, due_in } => {
                if !self.in_flight.is_empty() {
                    let flight = self.in_flight.remove(which % self.in_flight.len());
                    self.end(flight, due_in);
                }
            }
            Op::Contact { which, answered } => {
                if !self.in_flight.is_empty() {
                    let id = self.in_flight[which % self.in_flight.len()].id;
                    self.contact(id, answered);
                }
            }
            Op::Halt { provider, halted } => {
                let name = PROVIDERS[provider];
                self.provider(name).pacer().halt(halted);
                if halted {
                    self.halted.insert(name);
                } else {
                    self.halted.remove(name);
                }
            }
            Op::Reload { provider } => self.provider(PROVIDERS[provider]).reload(),
        }
    }

    fn contact(&mut self, id: GrantId, answered: bool) {
        let now = self.now;
        let name = provider_of(id);
        let pacer = self.provider(name).pacer();
        let contact = if answered {
            Contact::Reached
        } else {
            Contact::Failed
        };
        pacer.handle_contact(id, contact, now, 0);
        let open = pacer.unreachable().is_some();
        let breaker = self.breakers.get_mut(name).expect("each has one");
        if answered {
            breaker.failed.clear();
            breaker.open = false;
        } else if breaker.open {
            if breaker.probe == Some(id) {
                breaker.failed_at = Some(now);
            }
        } else {
            breaker.failed.insert(id);
            if breaker.failed.len() == 5 {
                breaker.failed.clear();
                breaker.open = true;
                breaker.failed_at = Some(now);
            }
        }
        assert_eq!(open, breaker.open, "{name}");
    }

    fn provider(&mut self, name: &str) -> &mut Horizon {
        self.schedule.provider(name).expect("both are set up")
    }

    fn horizon(&mut self, id: GrantId) -> &mut Horizon {
        self.provider(provider_of(id))
    }

    fn end(&mut self, flight: Flight, due_in: i64) {
        let breaker = self.breakers.get_mut(provider_of(flight.id));
        let breaker = breaker.expect("each has one");
        if breaker.probe == Some(flight.id) {
            breaker.probe = None;
        }
        let written = match flight.outcome {
            Some(written) => written,
            None => self.outcome(flight.id, due_in),
        };
        self.schedule.handle_end(&flight.provider, written);
        self.demanded.remove(&flight.id);
    }

    fn deliver_page(&mut self) {
        if let Some(page) = self.pages.pop_front() {
            let horizon = self.provider(&page.provider);
            horizon.handle_page(&page.rows, page.until, page.limit);
        }
    }

    /// Does what the schedule wants and checks each beginning.
    fn act(&mut self) {
        while let Some((provider, action)) = self.schedule.poll_action(self.now) {
            match action {
                Action::Load {
                    after,
                    until,
                    limit,
                } => {
                    // The table is read now; the answer may come much later.
                    let mut rows: Vec<Due> = self.table.values().copied().collect();
                    rows.retain(|row| {
                        provider_of(row.id) == provider
                            && row.due_at <= until
                            && after.is_none_or(|after| (row.due_at, row.id) > after)
                    });
                    rows.sort_by_key(|row| (row.due_at, row.id));
                    rows.truncate(limit);
                    self.pages.push_back(Page {
                        provider,
                        rows,
                        until,
                        limit,
                    });
                }
                Action::Begin { id, cause } => self.begin(provider, id, cause),
            }
        }
    }

    fn begin(&mut self, provider: String, id: GrantId, cause: Cause) {
        assert_eq!(provider, provider_of(id));
        assert!(
            !self.in_flight.iter().any(|flight| flight.id == id),
            "I1: {id:?} has an attempt in flight already"
        );
        assert!(
            !self.halted.contains(provider_of(id)),
            "{provider} is halted"
        );
        let breaker = self.breakers.get_mut(provider_of(id));
        let breaker = breaker.expect("each has one");
        if breaker.open {
            assert_eq!(breaker.probe, None, "{provider} has a probe under way");
            let waited = breaker.failed_at.is_none_or(|at| self.now > at);
            assert!(waited, "{provider} is probed without a pause");
            breaker.probe = Some(id);
        }
        match cause {
            Cause::Demand => assert!(self.demanded.contains(&id), "nobody asked for {id:?}"),
            Cause::Due => {}
            Cause::Renewal => panic!("the horizon knows of no renewals"),
        }
        self.in_flight.push(Flight {
            provider: provider.clone(),
            id,
            outcome: None,
        });
        assert!(self.in_flight.len() <= MAX_IN_FLIGHT);
        let at_provider = self
            .in_flight
            .iter()
            .filter(|flight| flight.provider == provider)
            .count();
        assert!(at_provider <= MAX_PER_PROVIDER);
    }

    /// Lets everything settle and checks that nothing due was forgotten.
    fn settle(&mut self) {
        for provider in PROVIDERS {
            self.provider(provider).pacer().halt(false);
        }
        self.halted.clear();
        loop {
            self.act();
            // The next attempt is answered, whether it is a probe or not.
            if let Some(id) = self.in_flight.first().map(|flight| flight.id) {
                self.contact(id, true);
            }
            if self.pages.is_empty() && self.in_flight.is_empty() {
                if self.breakers.values().any(|breaker| breaker.open) {
                    self.now = self.after(61);
                    self.act();
                    if self.in_flight.is_empty() && self.pages.is_empty() {
                        break;
                    }
                    continue;
                }
                break;
            }
            while !self.pages.is_empty() {
                self.deliver_page();
            }
            while let Some(flight) = self.in_flight.pop() {
                self.end(flight, 100_000);
            }
        }
        let forgotten: Vec<&Due> = self
            .table
            .values()
            .filter(|row| row.due_at <= self.now)
            .collect();
        assert!(forgotten.is_empty(), "due and never begun: {forgotten:?}");
        assert!(
            self.demanded.is_empty(),
            "demanded and never begun: {:?}",
            self.demanded
        );
        let next = self.table.values().map(|row| row.due_at).min();
        let timer = self.schedule.poll_timeout(self.now);
        assert!(
            next.is_none_or(|next| timer.is_some_and(|timer| timer <= next)),
            "the timer {timer:?} would oversleep {next:?}"
        );
        assert!(
            timer.is_none_or(|timer| timer > self.now),
            "the timer would spin: {timer:?} at {:?}",
            self.now
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_due_grant_is_forgotten_and_none_is_tried_twice_at_once(
        ops in prop::collection::vec(op(), 1..120)
    ) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
            world.act();
        }
        world.settle();
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_rate_is_never_passed(
        rate in 1.0..200.0f64,
        steps in prop::collection::vec(1..400u64, 1..80)
    ) {
        let mut schedule = Schedule::new(10_000);
        schedule.set_provider("box", Pace { max_in_flight: 10_000, rate: Some(rate) });
        let rows: Vec<Due> = (0..10_000)
            .map(|id| Due { id: GrantId(id), due_at: START, expires_at: None, version: 1 })
            .collect();
        let (mut now, mut begun) = (START, 0u32);
        for step in &steps {
            now = now + Duration::from_millis(*step);
            while let Some((_, action)) = schedule.poll_action(now) {
                match action {
                    Action::Load { until, limit, .. } => {
                        schedule.provider("box").unwrap().handle_page(&rows, until, limit);
                    }
                    Action::Begin { .. } => begun += 1,
                }
            }
        }
        let passed = now.since(START).as_secs_f64();
        prop_assert!(f64::from(begun) <= passed * rate + 1.0 + rate * 0.02, "{begun} in {passed} s at {rate}/s");
    }
}
