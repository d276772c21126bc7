//! One provider's pace: rate, requests in flight, cool-down, stop.
//!
//! Here and not in a rate-limit crate, because it has to replay with the rest of the core.

use std::time::Duration;

use super::time::UnixTime;

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

/// A provider's pace, kept.
#[derive(Clone, Debug)]
pub struct Pacer {
    pace: Pace,
    in_flight: usize,
    /// Requests that may leave at once; refilled at the rate, up to a tenth of a second's worth.
    credit: f64,
    refilled_at: UnixTime,
    cool_down_until: UnixTime,
    halted: bool,
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
    /// cut to the longest a server may ask for, so it can't outlast a clock that was wrong.
    pub fn admission(&mut self, now: UnixTime) -> Admission {
        if self.halted || self.in_flight >= self.pace.max_in_flight {
            return Admission::Later;
        }
        self.cool_down_until = self
            .cool_down_until
            .min(now + super::policy::RETRY_AFTER_CAP);
        if self.cool_down_until > now {
            return Admission::At(self.cool_down_until);
        }
        let Some(rate) = self.pace.rate else {
            return Admission::Now;
        };
        let passed = now.since(self.refilled_at).as_secs_f64();
        self.refilled_at = now;
        self.credit = (self.credit + passed * rate).min(burst(rate));
        if self.credit >= 1.0 {
            Admission::Now
        } else {
            let wait = Duration::from_secs_f64((1.0 - self.credit) / rate);
            // Time is in whole milliseconds: round up, or the timer spins.
            Admission::At(now + wait + Duration::from_millis(1))
        }
    }

    /// Says whether it is the schedule's turn although a caller waits.
    pub fn schedules_turn(&self) -> bool {
        self.turn == TURNS - 1
    }

    /// Counts an attempt that begins. The caller asked for [`Pacer::admission`] first.
    pub fn begin(&mut self) {
        self.in_flight += 1;
        self.turn = (self.turn + 1) % TURNS;
        if self.pace.rate.is_some() {
            self.credit -= 1.0;
        }
    }

    /// Counts an attempt that has ended.
    pub fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }
}

fn burst(rate: f64) -> f64 {
    (rate / 10.0).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixTime = UnixTime::from_secs(1_790_000_000);

    fn begun_within(pacer: &mut Pacer, length: Duration) -> usize {
        let mut now = START;
        let mut begun = 0;
        while now < START + length {
            match pacer.admission(now) {
                Admission::Now => {
                    pacer.begin();
                    pacer.end();
                    begun += 1;
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
        for rate in [0.5, 7.0, 50.0, 500.0] {
            let mut pacer = Pacer::new(Pace {
                max_in_flight: 9,
                rate: Some(rate),
            });
            let begun = begun_within(&mut pacer, Duration::from_secs(60)) as f64;
            assert!(
                begun <= rate * 60.0 + burst(rate) + 1.0,
                "{begun} at {rate}/s"
            );
            assert!(begun >= rate * 60.0 * 0.94, "{begun} at {rate}/s");
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
            pacer.begin();
        }
        assert_eq!(pacer.admission(START), Admission::Later);
        pacer.end();
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
            Admission::At(at) if at <= a_year_back + super::super::policy::RETRY_AFTER_CAP
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
}
