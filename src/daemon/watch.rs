//! Notices that the wall clock was set, or that the machine slept.

use std::time::Duration;

use super::clock::Clock;
use crate::refresh::time::UnixTime;

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
