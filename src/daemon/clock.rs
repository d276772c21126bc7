//! The clock: the only place that reads one.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::refresh::time::UnixTime;

/// No sleep is longer: a monotonic timer stops in suspend and does not see the wall clock step.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(15);

/// How often the store's files are looked at.
pub(super) const WATCH_EVERY: Duration = Duration::from_secs(10);

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::watch::{Step, Watch};

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
