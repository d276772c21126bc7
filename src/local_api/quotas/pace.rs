//! Turns: so many a second, a second's worth at once, and who asks for more waits.
//!
//! A turn beyond the rate is not refused but comes later, in the order in which they were asked for, up to a second later.
//! So a job that works as fast as it can is slowed and never fails, and who floods waits in place of burning our time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::{StateInformationMiddleware, StateSnapshot};
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// Returns how long a clock runs that nobody sets.
pub type Running = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The daemon's clock, as the limiters read it.
#[derive(Clone)]
struct Ticks(Running);

impl Clock for Ticks {
    type Instant = Duration;

    fn now(&self) -> Duration {
        (self.0)()
    }
}

type Limiter<K, S> = RateLimiter<K, S, Ticks, StateInformationMiddleware>;

/// When somebody's turn is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::local_api) enum Turn {
    /// At once.
    Now,
    /// So much later, a second at most.
    After(Duration),
    /// A second's worth waits already.
    Never,
}

impl Turn {
    /// Waits for it.
    pub(in crate::local_api) async fn come(self) {
        if let Turn::After(wait) = self {
            tokio::time::sleep(wait).await;
        }
    }

    fn later(self, other: Turn) -> Turn {
        match (self, other) {
            (Turn::Never, _) | (_, Turn::Never) => Turn::Never,
            (Turn::After(one), Turn::After(two)) => Turn::After(one.max(two)),
            (Turn::After(wait), Turn::Now) | (Turn::Now, Turn::After(wait)) => Turn::After(wait),
            (Turn::Now, Turn::Now) => Turn::Now,
        }
    }
}

/// Uids that are remembered before those with nothing to their account are forgotten.
const UIDS: usize = 1024;

/// The turns of an app, and of each uid where it has several: these get half of the app's each, so that one can't
/// keep out the others.
pub(super) struct Pace {
    per_second: NonZeroU32,
    running: Running,
    all: Limiter<NotKeyed, InMemoryState>,
    shares: Limiter<u32, HashMapStateStore<u32>>,
    forget_at: usize,
}

impl Pace {
    pub(super) fn new(per_second: NonZeroU32, running: &Running) -> Self {
        let ticks = Ticks(Arc::clone(running));
        let share = quota(share_of(per_second));
        Pace {
            per_second,
            running: Arc::clone(running),
            all: RateLimiter::direct_with_clock(quota(per_second), ticks.clone()).with_middleware(),
            shares: RateLimiter::hashmap_with_clock(share, ticks).with_middleware(),
            forget_at: UIDS,
        }
    }

    /// Gives `per_second` turns from now on. What was taken lately stays taken.
    pub(super) fn set(&mut self, per_second: NonZeroU32) {
        if per_second == self.per_second {
            return;
        }
        let left = (self.all.check()).map_or(0, |state| state.remaining_burst_capacity());
        let taken = both(self.per_second).get().saturating_sub(left + 1);
        *self = Pace::new(per_second, &self.running);
        if let Some(taken) = NonZeroU32::new(taken.min(both(per_second).get())) {
            // It is no more than a fresh limiter has.
            let _ = self.all.check_n(taken);
        }
    }

    /// Takes a turn; `uid` where the app has several.
    pub(super) fn turn(&mut self, uid: Option<u32>) -> Turn {
        let own = match uid {
            None => Turn::Now,
            Some(uid) => {
                let state = self.shares.check_key(&uid).ok();
                self.forget();
                turn(state, share_of(self.per_second))
            }
        };
        // Who has used up their own share takes nothing of the app's.
        match own {
            Turn::Never => Turn::Never,
            own => own.later(turn(self.all.check().ok(), self.per_second)),
        }
    }

    /// Keeps memory bounded by who came within the last seconds.
    fn forget(&mut self) {
        if self.shares.len() > self.forget_at {
            self.shares.retain_recent();
            self.forget_at = UIDS.max(2 * self.shares.len());
        }
    }
}

/// What one uid of several gets of `per_second`.
pub(super) fn share_of(per_second: NonZeroU32) -> NonZeroU32 {
    per_second.div_ceil(const { NonZeroU32::new(2).expect("2 is not 0") })
}

/// A second's worth at once, and another that has to wait.
fn both(per_second: NonZeroU32) -> NonZeroU32 {
    per_second.saturating_add(per_second.get())
}

fn quota(per_second: NonZeroU32) -> Quota {
    Quota::per_second(per_second).allow_burst(both(per_second))
}

fn turn(state: Option<StateSnapshot>, per_second: NonZeroU32) -> Turn {
    let Some(state) = state else {
        return Turn::Never;
    };
    let waiting = per_second
        .get()
        .saturating_sub(state.remaining_burst_capacity());
    match waiting {
        0 => Turn::Now,
        waiting => Turn::After(Duration::from_secs(u64::from(waiting)) / per_second.get()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::TestClock;
    use super::*;

    fn per_second(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    fn millis(number: u64) -> Turn {
        Turn::After(Duration::from_millis(number))
    }

    #[test]
    fn a_second_s_worth_comes_at_once_another_waits_in_order_and_more_is_refused() {
        let clock = TestClock::default();
        let mut pace = Pace::new(per_second(10), &clock.running());
        let turns: Vec<Turn> = (0..25).map(|_| pace.turn(None)).collect();
        assert_eq!(turns[..10], [Turn::Now; 10]);
        let waits: Vec<Turn> = (1..=10).map(|nth| millis(nth * 100)).collect();
        assert_eq!(turns[10..20], waits);
        assert_eq!(turns[20..], [Turn::Never; 5]);
        clock.pass(Duration::from_millis(200));
        let turns = [pace.turn(None), pace.turn(None), pace.turn(None)];
        assert_eq!(turns, [millis(900), millis(1000), Turn::Never]);
        clock.pass(Duration::from_secs(2));
        assert_eq!(pace.turn(None), Turn::Now);
    }

    #[test]
    fn a_steady_flood_gets_its_rate_and_no_more() {
        let clock = TestClock::default();
        let mut pace = Pace::new(per_second(100), &clock.running());
        let mut taken = 0;
        for _ in 0..10_000 {
            taken += usize::from(pace.turn(None) != Turn::Never);
            clock.pass(Duration::from_millis(1));
        }
        assert!((1000..=1200).contains(&taken), "{taken} in 10 s");
    }

    #[test]
    fn one_uid_of_several_gets_half_and_leaves_the_other_half() {
        let clock = TestClock::default();
        let mut pace = Pace::new(per_second(10), &clock.running());
        let flood: Vec<Turn> = (0..1000).map(|_| pace.turn(Some(1))).collect();
        let now = flood.iter().filter(|turn| **turn == Turn::Now).count();
        assert_eq!((now, flood[10]), (5, Turn::Never));
        clock.pass(Duration::from_secs(1));
        for _ in 0..1000 {
            pace.turn(Some(1));
        }
        for nth in 0..5 {
            assert_eq!(pace.turn(Some(2)), Turn::Now, "turn {nth}");
        }
    }

    #[test]
    fn a_changed_rate_counts_at_once_and_forgets_nothing() {
        let clock = TestClock::default();
        let mut pace = Pace::new(per_second(10), &clock.running());
        for _ in 0..20 {
            pace.turn(None);
        }
        pace.set(per_second(10));
        assert_eq!(pace.turn(None), Turn::Never);
        pace.set(per_second(5));
        assert_eq!(pace.turn(None), Turn::Never, "no new second's worth");
        clock.pass(Duration::from_millis(200));
        assert_eq!(pace.turn(None), millis(1000));
        pace.set(per_second(1000));
        let turns: Vec<Turn> = (0..900).map(|_| pace.turn(None)).collect();
        assert_eq!(turns, [Turn::Now; 900]);
    }

    #[test]
    fn ever_new_uids_are_forgotten_when_they_are_quiet() {
        let clock = TestClock::default();
        let mut pace = Pace::new(per_second(10), &clock.running());
        for uid in 0..100_000 {
            pace.turn(Some(uid));
            clock.pass(Duration::from_millis(10));
        }
        assert!(pace.shares.len() <= 2 * UIDS, "{}", pace.shares.len());
    }
}
