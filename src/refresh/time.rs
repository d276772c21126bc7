//! Points in time.

use std::fmt;
use std::time::Duration;

/// A wall-clock point in time, in whole milliseconds since the Unix epoch.
///
/// Wall-clock, because expiry has to survive restarts and suspends. All
/// arithmetic saturates, so no answer of a server can overflow it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixTime(i64);

impl UnixTime {
    /// The epoch itself, 1970-01-01T00:00:00Z.
    pub const EPOCH: UnixTime = UnixTime(0);
    /// Later than any moment that can come.
    pub const MAX: UnixTime = UnixTime(i64::MAX);

    /// Makes a point in time from milliseconds since the epoch.
    pub const fn from_millis(millis: i64) -> Self {
        UnixTime(millis)
    }

    /// Makes a point in time from seconds since the epoch.
    pub const fn from_secs(secs: i64) -> Self {
        UnixTime(secs.saturating_mul(1000))
    }

    /// Returns milliseconds since the epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Returns the length from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: UnixTime) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Returns this moment in RFC 3339, in UTC, with millisecond digits only where there are any.
    ///
    /// A moment outside the years RFC 3339 can name is clamped to the nearest it can.
    pub fn rfc3339(self) -> String {
        let timestamp = jiff::Timestamp::from_millisecond(self.0).unwrap_or(if self.0 < 0 {
            jiff::Timestamp::MIN
        } else {
            jiff::Timestamp::MAX
        });
        timestamp.to_string()
    }

    /// Reads an RFC 3339 moment with any offset.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let timestamp: jiff::Timestamp = text.parse().ok()?;
        Some(UnixTime(timestamp.as_millisecond()))
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl std::ops::Add<Duration> for UnixTime {
    type Output = UnixTime;
    fn add(self, length: Duration) -> UnixTime {
        UnixTime(self.0.saturating_add(millis(length)))
    }
}

impl std::ops::Sub<Duration> for UnixTime {
    type Output = UnixTime;
    fn sub(self, length: Duration) -> UnixTime {
        UnixTime(self.0.saturating_sub(millis(length)))
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

impl fmt::Debug for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_instead_of_overflowing() {
        assert_eq!(UnixTime::MAX + Duration::MAX, UnixTime::MAX);
        assert_eq!(UnixTime::EPOCH.since(UnixTime::MAX), Duration::ZERO);
        assert_eq!(UnixTime::from_secs(i64::MAX), UnixTime::MAX);
    }

    #[test]
    fn rfc3339_round_trips() {
        let at = UnixTime::from_millis(1_790_000_000_250);
        assert_eq!(UnixTime::from_rfc3339(&at.rfc3339()), Some(at));
        assert_eq!(
            UnixTime::from_rfc3339("2026-11-22T01:00:00+01:00"),
            UnixTime::from_rfc3339("2026-11-22T00:00:00Z")
        );
        assert_eq!(UnixTime::from_rfc3339("yesterday"), None);
    }
}
