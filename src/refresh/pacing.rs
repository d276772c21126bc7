//! One provider's pace: rate, requests in flight, cool-down, breaker, stop.
//!
//! Here and not in a rate-limit crate, because it has to replay with the rest of the core.

use std::collections::BTreeSet;
use std::time::Duration;

use super::grant::GrantId;
use super::policy::RETRY_AFTER_CAP;
use super::time::UnixTime;
use super::token_response::Contact;

/// How fast one provider may be asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Requests in flight at once.
    pub max_in_flight: usize,
    /// Requests per second; `None` means no limit of ours.
    pub rate: Option<f64>,
}

/// Whether one more attempt may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Now.
    Now,
    /// Not before this moment.
    At(UnixTime),
    /// When an attempt has ended, or somebody lifts the stop.
    Later,
}

/// Of five attempts, four may be for waiting callers while the schedule has work too.
const TURNS: u32 = 5;

/// So many grants in a row whose requests failed make a provider unreachable. Of different ones, because
/// a server may have trouble with a single grant.
const BREAKS_AT: usize = 5;
/// The first probe of an unreachable provider comes after this.
const FIRST_PROBE: Duration = Duration::from_secs(2);
/// No two probes are further apart.
pub const PROBE_CAP: Duration = Duration::from_secs(60);

/// A provider that can't be reached: one probe at a time, with growing pauses, until one is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Since when.
    pub since: UnixTime,
    /// No probe before this.
    pub probe_at: UnixTime,
}

impl Unreachable {
    fn new(since: UnixTime, now: UnixTime, random: u64) -> Self {
        // Waiting as long again as it has been unreachable doubles the pause each time.
        let pause = now.since(since).clamp(FIRST_PROBE, PROBE_CAP);
        let fraction = (random >> 11) as f64 / (1u64 << 53) as f64;
        Unreachable {
            since: since.min(now),
            probe_at: now + pause / 2 + (pause / 2).mul_f64(fraction),
        }
    }
}

/// A provider's pace, kept.
#[derive(Clone, Debug)]
pub struct Pacer {
    pace: Pace,
    in_flight: usize,
    /// Requests that may leave at once; see [`burst`].
    credit: f64,
    refilled_at: UnixTime,
    cool_down_until: UnixTime,
    halted: bool,
    /// Grants whose last request failed, since the server last answered.
    failed: BTreeSet<GrantId>,
    unreachable: Option<Unreachable>,
    /// The attempt that probes an unreachable provider.
    probe: Option<GrantId>,
    turn: u32,
}

impl Pacer {
    /// Makes a pacer with full credit.
    pub fn new(pace: Pace) -> Self {
        Pacer {
            pace,
            in_flight: 0,
            credit: burst(pace.rate.unwrap_or(1.0)),
            refilled_at: UnixTime::EPOCH,
            cool_down_until: UnixTime::EPOCH,
            halted: false,
            failed: BTreeSet::new(),
            unreachable: None,
            probe: None,
            turn: 0,
        }
    }

    /// Takes a new pace; what is in flight goes on.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// Lets no attempt begin before `until`. A shorter cool-down never cuts a longer one.
    pub fn cool_down(&mut self, until: UnixTime) {
        self.cool_down_until = self.cool_down_until.max(until);
    }

    /// Ends a cool-down.
    pub fn end_cool_down(&mut self) {
        self.cool_down_until = UnixTime::EPOCH;
    }

    /// Returns until when the provider cools down, if it does at `now`.
    pub fn cooling_down(&self, now: UnixTime) -> Option<UnixTime> {
        (self.cool_down_until > now).then_some(self.cool_down_until)
    }

    /// Returns whether the provider is unreachable.
    pub fn unreachable(&self) -> Option<Unreachable> {
        self.unreachable
    }

    /// Takes what was known of it before a restart, or what an admin made of it.
    pub fn set_unreachable(&mut self, unreachable: Option<Unreachable>) {
        if unreachable.is_none() && self.unreachable.is_some() {
            self.failed.clear();
        }
        self.unreachable = unreachable;
    }

    /// Takes what a request of this grant's attempt said about the server's health.
    ///
    /// The fifth grant in a row that fails opens the breaker, any answer closes it; a probe
    /// that fails puts the next one off. Failures of what was under way when it opened change nothing.
    pub fn handle_contact(&mut self, id: GrantId, contact: Contact, now: UnixTime, random: u64) {
        if contact != Contact::Failed {
            self.failed.clear();
            self.unreachable = None;
            return;
        }
        match self.unreachable {
            Some(open) if self.probe == Some(id) => {
                self.unreachable = Some(Unreachable::new(open.since, now, random));
            }
            Some(_) => {}
            None => {
                self.failed.insert(id);
                if self.failed.len() >= BREAKS_AT {
                    self.failed.clear();
                    self.unreachable = Some(Unreachable::new(now, now, random));
                }
            }
        }
    }

    /// Lets no attempt begin at all, or lets them begin again.
    pub fn halt(&mut self, halted: bool) {
        self.halted = halted;
    }

    /// Returns how many attempts are in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Says whether one more attempt may begin.
    ///
    /// When the clock has been set back the credit stays and refills from the new time; a cool-down then is
    /// cut to the longest a server may ask for, and a probe's pause to the longest there is, so neither can outlast
    /// a clock that was wrong.
    pub fn admission(&mut self, now: UnixTime) -> Admission {
        if self.halted || self.in_flight >= self.pace.max_in_flight {
            return Admission::Later;
        }
        self.cool_down_until = self.cool_down_until.min(now + RETRY_AFTER_CAP);
        if self.cool_down_until > now {
            return Admission::At(self.cool_down_until);
        }
        if let Some(open) = &mut self.unreachable {
            if self.probe.is_some() {
                return Admission::Later;
            }
            open.probe_at = open.probe_at.min(now + PROBE_CAP);
            if open.probe_at > now {
                return Admission::At(open.probe_at);
            }
        }
        let Some(rate) = self.pace.rate else {
            return Admission::Now;
        };
        let passed = now.since(self.refilled_at).as_secs_f64();
        self.refilled_at = now;
        self.credit = (self.credit + passed * refill(rate)).min(burst(rate));
        if self.credit >= 1.0 {
            Admission::Now
        } else {
            let wait = Duration::from_secs_f64((1.0 - self.credit) / refill(rate));
            // Time is in whole milliseconds: round up, or the timer spins.
            Admission::At(now + wait + Duration::from_millis(1))
        }
    }

    /// Says whether it is the schedule's turn although a caller waits.
    pub fn schedules_turn(&self) -> bool {
        self.turn == TURNS - 1
    }

    /// Counts an attempt that begins. The caller asked for [`Pacer::admission`] first.
    pub fn begin(&mut self, id: GrantId) {
        self.in_flight += 1;
        if self.unreachable.is_some() {
            self.probe = Some(id);
        }
        self.turn = (self.turn + 1) % TURNS;
        if self.pace.rate.is_some() {
            self.credit -= 1.0;
        }
    }

    /// Counts an attempt that has ended.
    pub fn end(&mut self, id: GrantId) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.probe == Some(id) {
            self.probe = None;
        }
    }
}

/// The part of a rate that is saved up for a moment, in seconds: as late as a timer or a busy processor may be without
/// a request being lost to it.
const SAVED: f64 = 0.02;

/// Requests that may leave at once after a quiet time. With [`refill`], no second has more requests than the rate says,
/// and no longer time either: a provider that counts by windows refuses none of them.
fn burst(rate: f64) -> f64 {
    1.0 + rate * SAVED
}

/// Requests a second, once what was saved up is used.
fn refill(rate: f64) -> f64 {
    rate * (1.0 - SAVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixTime = UnixTime::from_secs(1_790_000_000);

    /// When attempts begin that come whenever they may.
    fn begun_within(pacer: &mut Pacer, length: Duration) -> Vec<UnixTime> {
        let mut now = START;
        let mut begun = Vec::new();
        while now < START + length {
            match pacer.admission(now) {
                Admission::Now => {
                    pacer.begin(GrantId(1));
                    pacer.end(GrantId(1));
                    begun.push(now);
                }
                Admission::At(at) => {
                    assert!(at > now, "a timer in the past spins");
                    now = at;
                }
                Admission::Later => unreachable!(),
            }
        }
        begun
    }

    #[test]
    fn the_rate_is_used_and_never_passed() {
        for rate in [0.5, 7.0, 50.0, 90.0, 500.0] {
            let mut pacer = Pacer::new(Pace {
                max_in_flight: 9,
                rate: Some(rate),
            });
            let begun = begun_within(&mut pacer, Duration::from_secs(60));
            for window in [1, 2, 10, 60].map(Duration::from_secs) {
                let most = (rate * window.as_secs_f64()).max(1.0) as usize;
                let too_soon = begun
                    .windows(most + 1)
                    .find(|some| some[most] - window < some[0]);
                assert_eq!(too_soon, None, "more than {most} in {window:?}");
            }
            let used = begun.len() as f64 / 60.0 / rate;
            assert!(used >= 0.96, "{used} of {rate}/s");
        }
    }

    #[test]
    fn in_flight_is_capped() {
        let mut pacer = Pacer::new(Pace {
            max_in_flight: 2,
            rate: None,
        });
        for _ in 0..2 {
            assert_eq!(pacer.admission(START), Admission::Now);
            pacer.begin(GrantId(1));
        }
        assert_eq!(pacer.admission(START), Admission::Later);
        pacer.end(GrantId(1));
        assert_eq!(pacer.admission(START), Admission::Now);
    }

    #[test]
    fn a_cool_down_is_kept_and_survives_no_clock_that_was_wrong() {
        let mut pacer = Pacer::new(Pace {
            max_in_flight: 2,
            rate: None,
        });
        let until = START + Duration::from_secs(60);
        pacer.cool_down(until);
        pacer.cool_down(START + Duration::from_secs(5));
        assert_eq!(pacer.admission(START), Admission::At(until));
        assert_eq!(pacer.admission(until), Admission::Now);
        let a_year_back = START - Duration::from_secs(365 * 86_400);
        assert!(matches!(
            pacer.admission(a_year_back),
            Admission::At(at) if at <= a_year_back + RETRY_AFTER_CAP
        ));
    }

    #[test]
    fn a_halted_provider_begins_nothing() {
        let mut pacer = Pacer::new(Pace {
            max_in_flight: 2,
            rate: None,
        });
        pacer.halt(true);
        assert_eq!(pacer.admission(START), Admission::Later);
        pacer.halt(false);
        assert_eq!(pacer.admission(START), Admission::Now);
    }

    fn free() -> Pacer {
        Pacer::new(Pace {
            max_in_flight: 32,
            rate: None,
        })
    }

    /// Begins an attempt, which fails at once.
    fn fail(pacer: &mut Pacer, id: i64, now: UnixTime) {
        pacer.begin(GrantId(id));
        pacer.handle_contact(GrantId(id), Contact::Failed, now, u64::MAX);
        pacer.end(GrantId(id));
    }

    #[test]
    fn the_fifth_different_grant_that_fails_in_a_row_opens_the_breaker() {
        let mut pacer = free();
        for _ in 0..20 {
            fail(&mut pacer, 1, START);
        }
        assert_eq!(
            pacer.unreachable(),
            None,
            "one grant's trouble is not the server's"
        );
        for id in 2..5 {
            fail(&mut pacer, id, START);
        }
        assert_eq!(pacer.unreachable(), None);
        pacer.handle_contact(GrantId(9), Contact::Reached, START, 0);
        for id in 1..5 {
            fail(&mut pacer, id, START);
        }
        assert_eq!(pacer.unreachable(), None, "an answer in between");
        fail(&mut pacer, 5, START);
        assert_eq!(pacer.unreachable().map(|open| open.since), Some(START));
    }

    fn broken() -> Pacer {
        let mut pacer = free();
        for id in 1..=5 {
            fail(&mut pacer, id, START);
        }
        pacer
    }

    #[test]
    fn an_unreachable_provider_gets_one_probe_at_a_time_with_growing_pauses_up_to_a_minute() {
        let mut pacer = broken();
        let (mut now, mut pauses) = (START, Vec::new());
        for _ in 0..9 {
            let Admission::At(at) = pacer.admission(now) else {
                panic!("{:?}", pacer.admission(now));
            };
            pauses.push(at.since(now).as_secs_f64().round() as u64);
            now = at;
            assert_eq!(pacer.admission(now), Admission::Now);
            pacer.begin(GrantId(7));
            assert_eq!(pacer.admission(now), Admission::Later, "one at a time");
            pacer.handle_contact(GrantId(7), Contact::Failed, now, u64::MAX);
            pacer.end(GrantId(7));
        }
        assert_eq!(pauses, [2, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn any_answer_closes_the_breaker() {
        for contact in [Contact::Served, Contact::Reached] {
            let mut pacer = broken();
            pacer.handle_contact(GrantId(7), contact, START, 0);
            assert_eq!(pacer.unreachable(), None);
            assert_eq!(pacer.admission(START), Admission::Now);
            for id in 1..5 {
                fail(&mut pacer, id, START);
            }
            assert_eq!(pacer.unreachable(), None, "it counts from the start again");
        }
    }

    #[test]
    fn what_was_under_way_when_the_breaker_opened_puts_no_probe_off() {
        let mut pacer = broken();
        let before = pacer.unreachable();
        pacer.handle_contact(
            GrantId(99),
            Contact::Failed,
            START + Duration::from_secs(1),
            0,
        );
        assert_eq!(pacer.unreachable(), before);
    }

    #[test]
    fn a_probe_that_sent_nothing_leaves_room_for_the_next() {
        let mut pacer = broken();
        let later = START + Duration::from_secs(5);
        pacer.begin(GrantId(7));
        pacer.end(GrantId(7));
        assert_eq!(pacer.admission(later), Admission::Now);
    }

    #[test]
    fn an_open_breaker_survives_a_restart_and_a_clock_that_was_set_back() {
        let mut pacer = free();
        pacer.set_unreachable(broken().unreachable());
        assert!(matches!(pacer.admission(START), Admission::At(_)));
        let day_before = START - Duration::from_secs(86_400);
        assert_eq!(
            pacer.admission(day_before),
            Admission::At(day_before + PROBE_CAP)
        );
        pacer.set_unreachable(None);
        assert_eq!(pacer.admission(START), Admission::Now);
    }
}
