//! How many different users' tokens an app has read within an hour.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// What a window is made of: an hour, to the minute.
const MINUTES: u64 = 60;

/// The users of the last hour, by a hash whose key dies with the process: so no list of users stays in memory. Never more of
/// them than the larger of the two limits.
pub(super) struct Users {
    hasher: RandomState,
    /// By the minute in which they were first read, the oldest first.
    minutes: VecDeque<(u64, HashSet<u64>)>,
    count: usize,
    /// When the last alarm was.
    alarmed: Option<u64>,
}

/// How a read of a user's token is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Of a user who was counted already, or whom nobody counts.
    Known,
    /// Of one more, by this hash.
    New(u64),
    /// The same, and one more than the alarm allows; told once an hour.
    Alarm(Option<u64>),
    /// Of one more than is allowed; the first of the others leaves the hour after so long.
    Refused(Duration),
}

impl Users {
    pub(super) fn new() -> Self {
        Users {
            hasher: RandomState::new(),
            minutes: VecDeque::new(),
            count: 0,
            alarmed: None,
        }
    }

    /// Counts a read, if anybody wants it counted: `alarm` and `most` are numbers of users in an hour.
    pub(super) fn read(
        &mut self,
        user: (&str, &str),
        alarm: Option<usize>,
        most: Option<usize>,
        now: Duration,
    ) -> Read {
        let Some(room) = alarm.max(most) else {
            return Read::Known;
        };
        let minute = now.as_secs() / 60;
        self.forget_older(minute);
        let hash = self.hasher.hash_one(user);
        if self.minutes.iter().any(|(_, users)| users.contains(&hash)) {
            return Read::Known;
        }
        if most.is_some_and(|most| self.count >= most) {
            return Read::Refused(self.next_leaves(now));
        }
        let alarms = alarm.is_some_and(|alarm| self.count >= alarm) && self.may_alarm(minute);
        // Beyond an alarm without a cap nobody needs to know how many more.
        let counted = (self.count < room).then(|| {
            self.insert(minute, hash);
            hash
        });
        match (alarms, counted) {
            (true, counted) => Read::Alarm(counted),
            (false, Some(hash)) => Read::New(hash),
            (false, None) => Read::Known,
        }
    }

    /// Takes back a read that brought no token.
    pub(super) fn forget(&mut self, hash: u64) {
        for (_, users) in self.minutes.iter_mut().rev() {
            if users.remove(&hash) {
                self.count -= 1;
                return;
            }
        }
    }

    fn insert(&mut self, minute: u64, hash: u64) {
        match self.minutes.back_mut() {
            Some((last, users)) if *last == minute => {
                users.insert(hash);
            }
            _ => self.minutes.push_back((minute, HashSet::from([hash]))),
        }
        self.count += 1;
    }

    fn forget_older(&mut self, minute: u64) {
        while let Some((first, users)) = self.minutes.front()
            && first + MINUTES <= minute
        {
            self.count -= users.len();
            self.minutes.pop_front();
        }
    }

    fn may_alarm(&mut self, minute: u64) -> bool {
        let lately = self.alarmed.is_some_and(|at| at + MINUTES > minute);
        if !lately {
            self.alarmed = Some(minute);
        }
        !lately
    }

    /// Returns after how long the first of the users leaves the window.
    fn next_leaves(&self, now: Duration) -> Duration {
        let full = self.minutes.iter().find(|(_, users)| !users.is_empty());
        let first = full.map_or(0, |(minute, _)| *minute);
        Duration::from_secs((first + MINUTES) * 60).saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    fn is_new(read: Read) -> bool {
        matches!(read, Read::New(_))
    }

    #[test]
    fn a_cap_serves_its_users_again_and_again_and_no_other() {
        let mut users = Users::new();
        let mut read = |user: &str, now| users.read(("default", user), None, Some(2), now);
        assert!(is_new(read("anna", at(0))));
        assert!(is_new(read("ben", at(30))));
        assert_eq!(read("clara", at(40)), Read::Refused(at(20)));
        for minute in [40, 59] {
            assert_eq!(read("anna", at(minute)), Read::Known);
            assert_eq!(read("ben", at(minute)), Read::Known);
        }
        // Anna's hour is over.
        assert!(is_new(read("clara", at(60))));
        assert_eq!(read("anna", at(60)), Read::Refused(at(30)));
        assert!(is_new(read("anna", at(90))));
    }

    #[test]
    fn the_same_name_in_another_namespace_is_another_user() {
        let mut users = Users::new();
        for namespace in ["a", "b"] {
            let read = users.read((namespace, "anna"), None, Some(2), at(0));
            assert!(is_new(read), "{namespace}");
        }
        let read = users.read(("c", "anna"), None, Some(2), at(0));
        assert_eq!(read, Read::Refused(at(60)));
    }

    #[test]
    fn an_alarm_is_told_once_an_hour_and_refuses_nobody() {
        let mut users = Users::new();
        let mut alarms = Vec::new();
        for minute in 0..150 {
            for nth in 0..10 {
                let user = format!("{minute}/{nth}");
                let read = users.read(("default", &user), Some(50), None, at(minute));
                assert!(!matches!(read, Read::Refused(_)));
                if matches!(read, Read::Alarm(_)) {
                    alarms.push(minute);
                }
            }
        }
        assert_eq!(alarms, [5, 65, 125]);
        assert!(users.count <= 50, "{} in memory", users.count);
    }

    #[test]
    fn a_read_without_a_token_counts_for_nothing() {
        let mut users = Users::new();
        for nth in 0..1000 {
            let user = nth.to_string();
            let Read::New(hash) = users.read(("default", &user), None, Some(1), at(0)) else {
                panic!("there is room");
            };
            users.forget(hash);
        }
        assert_eq!(users.count, 0);
    }

    #[test]
    fn limits_that_change_forget_nobody() {
        let mut users = Users::new();
        for user in ["anna", "ben", "clara"] {
            users.read(("default", user), None, Some(10), at(0));
        }
        let mut read = |user: &str, most| users.read(("default", user), None, most, at(1));
        assert!(matches!(read("dora", Some(3)), Read::Refused(_)));
        assert_eq!(read("clara", Some(1)), Read::Known);
        assert_eq!(read("dora", None), Read::Known, "nobody counts");
        assert!(is_new(read("dora", Some(4))));
    }
}
