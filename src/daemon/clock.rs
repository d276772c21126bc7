//! The clock: the only place that reads one.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::refresh::time::UnixTime;

/// A wall clock, with a monotonic one beside it. Clones share their offset.
#[derive(Clone, Debug)]
pub struct Clock {
    made_at: Instant,
    /// Milliseconds added to the system's time; zero outside tests.
    offset: Arc<AtomicI64>,
    /// Milliseconds added to the time it runs; zero outside tests.
    ran: Arc<AtomicI64>,
}

impl Clock {
    /// The system's clock.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn system() -> Self {
        Clock {
            made_at: Instant::now(),
            offset: Arc::default(),
            ran: Arc::default(),
        }
    }

    /// Returns how long this clock runs, by a clock that no one sets and that stands still in suspend.
    pub(super) fn running(&self) -> Duration {
        let ran = u64::try_from(self.ran.load(Ordering::Relaxed)).unwrap_or(0);
        self.made_at.elapsed() + Duration::from_millis(ran)
    }

    /// Returns the time now.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn now(&self) -> UnixTime {
        let since_epoch = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let millis = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        UnixTime::from_millis(millis.saturating_add(self.offset.load(Ordering::Relaxed)))
    }

    /// Lets time pass on this clock and its clones.
    #[cfg(test)]
    pub fn pass(&self, length: Duration) {
        let millis = i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
        self.ran.fetch_add(millis, Ordering::Relaxed);
        self.step(millis);
    }

    /// Steps this clock and its clones by `millis`, backwards if negative.
    #[cfg(test)]
    pub fn step(&self, millis: i64) {
        self.offset.fetch_add(millis, Ordering::Relaxed);
    }
}

/// How the wall clock was set, or how long the machine slept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is later than the time that has passed can explain.
    Forward {
        /// What the clock showed before.
        before: UnixTime,
        /// By how much.
        by: Duration,
    },
    /// It is earlier.
    Back {
        /// By how much.
        by: Duration,
    },
}

/// Smaller steps are what time daemons do all day, and change nothing.
pub(super) const SMALLEST_STEP: Duration = Duration::from_secs(2);

/// Notices that the wall clock was set, by comparing it with the monotonic one.
#[derive(Debug)]
pub(super) struct Watch {
    clock: Clock,
    seen: (UnixTime, Duration),
}

impl Watch {
    /// Begins to watch.
    pub(super) fn new(clock: Clock) -> Self {
        let seen = (clock.now(), clock.running());
        Watch { clock, seen }
    }

    /// Returns the step since the last look, if there was one. Many small ones add up to none.
    pub(super) fn look(&mut self) -> Option<Step> {
        let seen = (self.clock.now(), self.clock.running());
        let (before, ran) = std::mem::replace(&mut self.seen, seen);
        let expected = before + (seen.1 - ran);
        if seen.0.since(expected) >= SMALLEST_STEP {
            let by = seen.0.since(expected);
            return Some(Step::Forward { before, by });
        }
        let by = expected.since(seen.0);
        (by >= SMALLEST_STEP).then_some(Step::Back { by })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_either_way_is_noticed_once_and_told_with_its_size() {
        let clock = Clock::system();
        let mut watch = Watch::new(clock.clone());
        assert_eq!(watch.look(), None);
        clock.step(8 * 3_600_000);
        let Some(Step::Forward { by, .. }) = watch.look() else {
            panic!("not noticed");
        };
        assert_eq!(by.as_secs_f64().round(), 8.0 * 3600.0);
        assert_eq!(watch.look(), None);
        clock.step(-60_000);
        let Some(Step::Back { by }) = watch.look() else {
            panic!("not noticed");
        };
        assert_eq!(by.as_secs_f64().round(), 60.0);
        assert_eq!(watch.look(), None);
    }

    #[test]
    fn what_a_time_daemon_does_all_day_is_no_step() {
        let clock = Clock::system();
        let mut watch = Watch::new(clock.clone());
        for millis in [900, -900, 500] {
            clock.step(millis);
            assert_eq!(watch.look(), None, "{millis} ms");
        }
    }
}
