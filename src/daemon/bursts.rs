//! What happens to very many grants at once (a mass revocation, an import, a bulk command) is a few lines in the log, with
//! counts, and not a line for each grant.
//!
//! The first of a kind are told in full, each with its user; the others are counted and told together. Each grant's own
//! history and events are complete all the same. Pure: time is an argument, and what is to be told is a result.

use std::collections::BTreeMap;
use std::time::Duration;

/// So many of a kind are told in full before the others are counted.
const IN_FULL: u64 = 20;
/// The first count comes after this, each further one after twice as long.
const FIRST_INTERVAL: Duration = Duration::from_secs(5);
/// No count is further from the one before; and after a pause as long as this the next ones are told in full again.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// When what was counted is told: soon at first, then at growing intervals.
pub(super) struct Intervals {
    next: Duration,
    length: Duration,
}

impl Intervals {
    pub(super) fn begin(now: Duration) -> Self {
        Intervals {
            next: now + FIRST_INTERVAL,
            length: FIRST_INTERVAL,
        }
    }

    /// When the next time to tell is.
    pub(super) fn next(&self) -> Duration {
        self.next
    }

    /// Whether it is time to tell.
    pub(super) fn are_due(&self, now: Duration) -> bool {
        self.next <= now
    }

    /// Begins the next one, twice as long.
    pub(super) fn go_on(&mut self, now: Duration) {
        self.length = (self.length * 2).min(LONGEST_INTERVAL);
        self.next = now + self.length;
    }
}

/// What is told together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    /// The event's name.
    pub(super) event: &'static str,
    /// The provider.
    pub(super) provider: String,
    /// The reason, or empty.
    pub(super) reason: &'static str,
    /// Who asked for it, where somebody did.
    pub(super) by: Option<String>,
}

/// Those of a kind that were not told in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Count {
    /// What happened.
    pub(super) kind: Kind,
    /// How often since the last count.
    pub(super) grants: u64,
    /// Since the first of the burst.
    pub(super) after: Duration,
}

struct Burst {
    began: Duration,
    last: Duration,
    in_full: u64,
    counted: u64,
    intervals: Intervals,
}

impl Burst {
    /// Takes what was counted and is told now.
    fn take_count(&mut self, kind: &Kind, now: Duration) -> Count {
        Count {
            kind: kind.clone(),
            grants: std::mem::take(&mut self.counted),
            after: now.saturating_sub(self.began),
        }
    }
}

/// The bursts that are under way. Times are of a clock that nobody sets.
#[derive(Default)]
pub(super) struct Bursts(BTreeMap<Kind, Burst>);

impl Bursts {
    /// Takes one; returns whether it is told in full.
    pub(super) fn in_full(&mut self, kind: Kind, now: Duration) -> bool {
        let burst = self.0.entry(kind).or_insert_with(|| Burst {
            began: now,
            last: now,
            in_full: 0,
            counted: 0,
            intervals: Intervals::begin(now),
        });
        burst.last = now;
        if burst.in_full < IN_FULL {
            burst.in_full += 1;
            return true;
        }
        burst.counted += 1;
        false
    }

    /// Returns the counts that are to be told, and forgets the bursts that are over.
    pub(super) fn due(&mut self, now: Duration) -> Vec<Count> {
        let mut counts = Vec::new();
        self.0.retain(|kind, burst| {
            if burst.counted > 0 && burst.intervals.are_due(now) {
                burst.intervals.go_on(now);
                counts.push(burst.take_count(kind, now));
            }
            burst.counted > 0 || now.saturating_sub(burst.last) < LONGEST_INTERVAL
        });
        counts
    }

    /// Returns when the next count is due.
    pub(super) fn next(&self) -> Option<Duration> {
        let untold = self.0.values().filter(|burst| burst.counted > 0);
        untold.map(|burst| burst.intervals.next()).min()
    }

    /// Returns all counts that were not told yet, at the end.
    pub(super) fn rest(&mut self, now: Duration) -> Vec<Count> {
        let untold = self.0.iter_mut().filter(|(_, burst)| burst.counted > 0);
        untold
            .map(|(kind, burst)| burst.take_count(kind, now))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn dead(provider: &str) -> Kind {
        Kind {
            event: "needs-authorization",
            provider: provider.to_owned(),
            reason: "refused",
            by: None,
        }
    }

    #[test]
    fn each_who_asks_for_many_is_told_apart_with_what_was_done_for_whom() {
        let mut bursts = Bursts::default();
        let deleted = |by: &str| Kind {
            event: "deleted",
            by: Some(by.to_owned()),
            ..dead("box")
        };
        for _ in 0..IN_FULL + 3 {
            bursts.in_full(deleted("uid 0"), SECOND);
            bursts.in_full(deleted("app crm"), SECOND);
        }
        let told = bursts.due(SECOND * 6).into_iter();
        let told: Vec<_> = told.map(|it| (it.kind.by, it.grants)).collect();
        let expected = ["app crm", "uid 0"].map(|by| (Some(by.to_owned()), 3));
        assert_eq!(told, expected);
    }

    #[test]
    fn the_first_count_is_due_five_seconds_after_the_first_of_a_burst() {
        let mut bursts = Bursts::default();
        assert_eq!(bursts.next(), None);
        for _ in 0..IN_FULL {
            bursts.in_full(dead("box"), SECOND * 3);
        }
        assert_eq!(bursts.next(), None, "nothing is counted");
        bursts.in_full(dead("box"), SECOND * 4);
        assert_eq!(bursts.next(), Some(SECOND * 8));
        assert_eq!(bursts.due(SECOND * 8).len(), 1);
        assert_eq!(bursts.next(), None);
    }

    #[test]
    fn a_hundred_thousand_at_once_are_twenty_lines_and_counts_that_miss_none() {
        let mut bursts = Bursts::default();
        let (mut in_full, mut counted, mut lines) = (0, 0, 0);
        for second in 0..200 {
            let now = SECOND * second;
            for _ in 0..500 {
                in_full += u64::from(bursts.in_full(dead("box"), now));
            }
            for count in bursts.due(now) {
                assert_eq!(count.kind, dead("box"));
                (counted, lines) = (counted + count.grants, lines + 1);
            }
        }
        for count in bursts.due(SECOND * 1000) {
            counted += count.grants;
        }
        assert_eq!((in_full, in_full + counted), (20, 100_000));
        assert!((3..10).contains(&lines), "{lines}");
    }

    #[test]
    fn what_is_not_told_yet_is_told_at_the_end() {
        let mut bursts = Bursts::default();
        for _ in 0..IN_FULL + 40 {
            bursts.in_full(dead("box"), SECOND);
        }
        bursts.in_full(dead("drive"), SECOND);
        let told = bursts.rest(SECOND * 3);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].grants, told[0].after), (40, SECOND * 2));
        assert_eq!(bursts.rest(SECOND * 3), []);
    }

    #[test]
    fn a_few_and_others_are_told_in_full_and_so_is_what_comes_after_a_pause() {
        let mut bursts = Bursts::default();
        for _ in 0..IN_FULL {
            assert!(bursts.in_full(dead("box"), SECOND));
        }
        assert_eq!(bursts.due(SECOND * 30), []);
        assert!(bursts.in_full(dead("drive"), SECOND), "another provider");
        assert!(!bursts.in_full(dead("box"), SECOND * 30));
        let told = bursts.due(SECOND * 30);
        assert_eq!((told[0].grants, told[0].after), (1, SECOND * 29));
        assert_eq!(bursts.due(SECOND * 90), []);
        assert!(
            bursts.in_full(dead("box"), SECOND * 91),
            "a minute of quiet"
        );
    }
}
