//! The clock: the only place that reads one.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::refresh::time::UnixTime;

/// A wall clock. Clones share their offset.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Milliseconds added to the system's time; zero outside tests.
    offset: Arc<AtomicI64>,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Clock::default()
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

    /// Steps this clock and its clones by `millis`, backwards if negative.
    #[cfg(test)]
    pub fn step(&self, millis: i64) {
        self.offset.fetch_add(millis, Ordering::Relaxed);
    }
}
