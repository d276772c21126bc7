//! An outage of a provider with many grants is a few lines in the log, with counts, and not a line for each grant.
//!
//! The first failures of an outage are told in full. The others are counted and told together: soon at first, then at
//! growing intervals; so are the recoveries that follow, and the end. Pure: time is an argument, and what is to be told is
//! a result. Verdicts (`needs-authorization`) don't come by here.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bursts::Intervals;

/// So many failures, and so many recoveries, are told in full; the others of an outage are counted.
const IN_FULL: u64 = 5;
/// An outage of which nothing was heard for so long is over. Longer than the pause between two probes of an unreachable
/// provider.
const QUIET: Duration = Duration::from_secs(150);

/// What failed and recovered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Requests without a token set or a verdict.
    pub(super) failures: u64,
    /// Grants whose first failure in a row is among them.
    pub(super) grants: u64,
    /// Grants that were refreshed after failures.
    pub(super) recovered: u64,
    codes: BTreeMap<String, u64>,
}

impl Tally {
    /// Returns the failures by their code, the most frequent first: `http-503 ×12, connect ×3`.
    pub(super) fn codes(&self) -> String {
        let mut codes: Vec<(&String, &u64)> = self.codes.iter().collect();
        codes.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let codes = codes.iter().map(|(code, times)| format!("{code} ×{times}"));
        codes.collect::<Vec<_>>().join(", ")
    }

    fn take_in(&mut self, other: Tally) {
        self.failures += other.failures;
        self.grants += other.grants;
        self.recovered += other.recovered;
        for (code, times) in other.codes {
            *self.codes.entry(code).or_default() += times;
        }
    }
}

/// A line to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It goes on: what happened since the last such line.
    GoesOn(Tally),
    /// It is over: all that happened.
    Over(Tally),
}

/// A line and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The provider.
    pub(super) provider: String,
    /// What to tell.
    pub(super) told: Told,
    /// Since the first failure.
    pub(super) after: Duration,
}

struct Outage {
    began: Duration,
    last_failure: Duration,
    intervals: Intervals,
    since_count: Tally,
    before: Tally,
    full_failures: u64,
    full_recoveries: u64,
    /// Whether anything was counted in place of being told.
    swallowed: bool,
}

impl Outage {
    fn new(now: Duration) -> Self {
        Outage {
            began: now,
            last_failure: now,
            intervals: Intervals::begin(now),
            since_count: Tally::default(),
            before: Tally::default(),
            full_failures: 0,
            full_recoveries: 0,
            swallowed: false,
        }
    }

    /// Returns what is to be told at `now`, and whether the outage is over.
    fn count(&mut self, now: Duration) -> (Option<Told>, bool) {
        let since = std::mem::take(&mut self.since_count);
        let heals = since.failures == 0 && (since.recovered > 0 || self.before.recovered > 0);
        self.before.take_in(since.clone());
        if heals || now.saturating_sub(self.last_failure) >= QUIET {
            let all = std::mem::take(&mut self.before);
            return (self.swallowed.then_some(Told::Over(all)), true);
        }
        self.intervals.go_on(now);
        (self.news(since), false)
    }

    fn line(&self, provider: &str, told: Option<Told>, now: Duration) -> Option<Line> {
        Some(Line {
            provider: provider.to_owned(),
            told: told?,
            after: now.saturating_sub(self.began),
        })
    }

    fn news(&self, since: Tally) -> Option<Told> {
        let news = self.swallowed && since != Tally::default();
        news.then_some(Told::GoesOn(since))
    }
}

/// The outages that are under way, by provider. Times are of a clock that nobody sets.
#[derive(Default)]
pub(super) struct Outages(BTreeMap<String, Outage>);

impl Outages {
    /// Takes a failed request; `first` in a row of its grant. Returns whether it is told in full.
    pub(super) fn failed(
        &mut self,
        provider: &str,
        code: &str,
        first: bool,
        now: Duration,
    ) -> bool {
        let outage = self
            .0
            .entry(provider.to_owned())
            .or_insert_with(|| Outage::new(now));
        outage.last_failure = now;
        let tally = &mut outage.since_count;
        tally.failures += 1;
        *tally.codes.entry(code.to_owned()).or_default() += 1;
        // That a grant fails again is no news, whatever the others do.
        if !first {
            return false;
        }
        tally.grants += 1;
        outage.full_failures += 1;
        let in_full = outage.full_failures <= IN_FULL;
        outage.swallowed |= !in_full;
        in_full
    }

    /// Takes a grant that was refreshed after failures. Returns whether it is told in full.
    pub(super) fn recovered(&mut self, provider: &str) -> bool {
        let Some(outage) = self.0.get_mut(provider) else {
            return true;
        };
        outage.since_count.recovered += 1;
        outage.full_recoveries += 1;
        let in_full = outage.full_recoveries <= IN_FULL;
        outage.swallowed |= !in_full;
        in_full
    }

    /// Returns the lines that are due at `now`.
    pub(super) fn due(&mut self, now: Duration) -> Vec<Line> {
        let mut lines = Vec::new();
        self.0.retain(|provider, outage| {
            if !outage.intervals.are_due(now) {
                return true;
            }
            let (told, over) = outage.count(now);
            lines.extend(outage.line(provider, told, now));
            !over
        });
        lines
    }

    /// Returns when the next look at what is due is worth it.
    pub(super) fn next(&self) -> Option<Duration> {
        self.0.values().map(|outage| outage.intervals.next()).min()
    }

    /// Returns the lines of what was counted and not told yet, at the end.
    pub(super) fn rest(&mut self, now: Duration) -> Vec<Line> {
        let rest = self.0.iter_mut().filter_map(|(provider, outage)| {
            let since = std::mem::take(&mut outage.since_count);
            outage.line(provider, outage.news(since), now)
        });
        rest.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Lets `grants` grants fail for the first time; returns how many were told in full.
    fn fail(outages: &mut Outages, grants: usize, code: &str, now: Duration) -> usize {
        let told = (0..grants).filter(|_| outages.failed("acme", code, true, now));
        told.count()
    }

    /// All lines of a day in which nothing more happens.
    fn rest_of_the_day(outages: &mut Outages, from: u64) -> Vec<Line> {
        let seconds = from..from + 86_400;
        seconds.flat_map(|second| outages.due(at(second))).collect()
    }

    #[test]
    fn a_hundred_thousand_failures_are_a_few_lines_with_their_counts() {
        let mut outages = Outages::default();
        let mut full = 0;
        let mut lines = Vec::new();
        for second in 0..1000 {
            full += fail(&mut outages, 100, "http-503", at(second));
            lines.extend(outages.due(at(second)));
        }
        assert_eq!(full as u64, IN_FULL);
        assert!(lines.len() <= 20, "{} lines", lines.len());
        lines.extend(rest_of_the_day(&mut outages, 1000));
        let Some(Line {
            told: Told::Over(all),
            ..
        }) = lines.pop()
        else {
            panic!("the end is told last");
        };
        assert_eq!((all.failures, all.grants), (100_000, 100_000));
        assert_eq!(all.codes(), "http-503 ×100000");
        let counted: u64 = lines
            .iter()
            .map(|line| match &line.told {
                Told::GoesOn(tally) => tally.grants,
                Told::Over(_) => panic!("two ends"),
            })
            .sum();
        assert_eq!(counted, 100_000, "each is counted in one line");
    }

    #[test]
    fn a_handful_is_told_in_full_and_nothing_more_is_said() {
        let mut outages = Outages::default();
        assert_eq!(
            fail(&mut outages, IN_FULL as usize, "connect", at(0)),
            IN_FULL as usize
        );
        assert!(!outages.failed("acme", "connect", false, at(1)));
        assert!(outages.recovered("acme"));
        assert_eq!(rest_of_the_day(&mut outages, 2), []);
        assert!(outages.0.is_empty());
        assert_eq!(
            fail(&mut outages, 1, "connect", at(90_000)),
            1,
            "the next one is new"
        );
    }

    #[test]
    fn the_end_comes_with_the_first_interval_in_which_grants_recover_and_none_fails() {
        let mut outages = Outages::default();
        fail(&mut outages, 300, "http-500", at(0));
        let lines = outages.due(at(5));
        assert!(matches!(&lines[..], [Line { told: Told::GoesOn(t), .. }] if t.grants == 300));
        let full = (0..300).filter(|_| outages.recovered("acme")).count();
        assert_eq!(full as u64, IN_FULL);
        assert_eq!(outages.due(at(14)), []);
        let lines = outages.due(at(15));
        assert!(
            matches!(&lines[..], [Line { told: Told::Over(t), after, .. }]
                if t.recovered == 300 && t.failures == 300 && *after == at(15)),
            "{lines:?}"
        );
        assert!(outages.recovered("acme"), "a straggler is told as ever");
    }

    #[test]
    fn probes_a_minute_apart_do_not_end_an_outage_and_silence_does() {
        let mut outages = Outages::default();
        fail(&mut outages, 300, "connect", at(0));
        let mut ends = 0;
        for second in 0..3600 {
            if second % 60 == 59 {
                outages.failed("acme", "connect", false, at(second));
            }
            let lines = outages.due(at(second));
            ends += lines
                .iter()
                .filter(|l| matches!(l.told, Told::Over(_)))
                .count();
        }
        assert_eq!(ends, 0);
        let lines = rest_of_the_day(&mut outages, 3600);
        let over = |line: &&Line| matches!(line.told, Told::Over(_));
        assert_eq!(lines.iter().filter(over).count(), 1, "{lines:?}");
        assert!(lines.last().as_ref().is_some_and(over), "{lines:?}");
    }

    #[test]
    fn what_is_not_told_yet_is_told_at_the_end() {
        let mut outages = Outages::default();
        fail(&mut outages, 300, "http-503", at(0));
        assert_eq!(outages.next(), Some(at(5)));
        assert_eq!(outages.due(at(5)).len(), 1);
        fail(&mut outages, 40, "http-503", at(6));
        fail(&mut outages, 40, "connect", at(6));
        outages.failed("other", "dns", true, at(6));
        let lines = outages.rest(at(7));
        let [line] = &lines[..] else {
            panic!("what was told in full has no rest: {lines:?}")
        };
        let Told::GoesOn(tally) = &line.told else {
            panic!("nobody knows whether it is over")
        };
        assert_eq!((tally.grants, tally.failures), (80, 80));
        assert_eq!((line.provider.as_str(), line.after), ("acme", at(7)));
        assert_eq!(outages.rest(at(7)), []);
    }

    #[test]
    fn providers_are_counted_apart() {
        let mut outages = Outages::default();
        fail(&mut outages, 300, "http-503", at(0));
        assert!(outages.failed("other", "dns", true, at(0)));
        let lines = outages.due(at(5));
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].provider, "acme");
    }

    #[test]
    fn codes_come_with_the_most_frequent_first() {
        let mut outages = Outages::default();
        fail(&mut outages, 2, "connect", at(0));
        fail(&mut outages, 9, "http-503", at(1));
        let Told::GoesOn(tally) = outages.due(at(5)).remove(0).told else {
            panic!("it goes on");
        };
        assert_eq!(tally.codes(), "http-503 ×9, connect ×2");
    }
}
