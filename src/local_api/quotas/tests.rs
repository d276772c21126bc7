//! What is counted, on whose account, and how it is told.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::local_api::rules::Rule;

/// A clock that a test lets run.
#[derive(Clone, Default)]
pub(in crate::local_api) struct TestClock(Arc<AtomicU64>);

impl TestClock {
    pub(in crate::local_api) fn pass(&self, length: Duration) {
        let nanos = u64::try_from(length.as_nanos()).unwrap();
        self.0.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(in crate::local_api) fn running(&self) -> Running {
        let clock = self.clone();
        Arc::new(move || Duration::from_nanos(clock.0.load(Ordering::Relaxed)))
    }
}

fn rule(app: &str, peer: RulePeer, quota: Quota) -> Rule {
    Rule {
        app: app.into(),
        peer,
        namespace: "default".into(),
        providers: None,
        read: true,
        import: false,
        revoke: false,
        authorize: false,
        counts_as_activity: true,
        quota,
    }
}

fn peer(uid: u32) -> Peer {
    Peer {
        uid,
        gid: 50,
        groups: vec![],
        pid: None,
    }
}

fn count(quotas: &Quotas, app: &str, kind: Kind) -> u64 {
    let counts = quotas.counts();
    let found = counts
        .iter()
        .find(|(name, of, _)| name == app && *of == kind);
    found.expect("it has an account").2
}

fn quota(connections: usize, per_second: u32) -> Quota {
    Quota {
        connections,
        requests_per_second: NonZeroU32::new(per_second).unwrap(),
        ..Quota::UNLIMITED
    }
}

#[test]
fn one_uid_of_a_group_gets_half_of_the_connections_and_a_closed_one_is_free_again() {
    let quotas = Quotas::new(TestClock::default().running());
    let rule = rule("staff", RulePeer::Gid(50), quota(4, 1000));
    let party = |uid| quotas.party(Some(&peer(uid)), Some(&rule), 0);
    let mut first: Vec<_> = (0..2).map(|_| party(1).connect().unwrap()).collect();
    let problem = party(1).connect().map(|_| ()).unwrap_err();
    assert_eq!((problem.status, problem.retry_after), (503, Some(1)));
    assert!(
        problem.detail.contains("uid 1") && problem.detail.contains("app.staff.max-connections"),
        "{}",
        problem.detail
    );
    let _second: Vec<_> = (0..2).map(|_| party(2).connect().unwrap()).collect();
    assert!(party(3).connect().is_err(), "all four are taken");
    first.pop();
    let _third = party(3).connect().unwrap();
    assert_eq!(count(&quotas, "staff", Kind::Connection), 2);
}

#[test]
fn an_app_of_one_uid_gets_all_of_its_own_and_takes_nothing_of_another_s() {
    let quotas = Quotas::new(TestClock::default().running());
    let crm = rule("crm", RulePeer::Uid(1), quota(2, 3));
    let wiki = rule("wiki", RulePeer::Uid(2), quota(2, 3));
    let _open: Vec<_> = (0..2)
        .map(|_| {
            quotas
                .party(Some(&peer(1)), Some(&crm), 0)
                .connect()
                .unwrap()
        })
        .collect();
    assert!(
        quotas
            .party(Some(&peer(1)), Some(&crm), 0)
            .connect()
            .is_err()
    );
    let flood = quotas.party(Some(&peer(1)), Some(&crm), 0);
    let refused = (0..100).filter(|_| flood.request().is_err()).count();
    assert_eq!(refused, 94, "three come at once, three wait");
    let problem = flood.request().unwrap_err();
    assert_eq!((problem.status, problem.retry_after), (429, Some(1)));
    assert!(
        problem
            .detail
            .contains("3 requests a second (app.crm.max-requests-per-second)"),
        "{}",
        problem.detail
    );
    let other = quotas.party(Some(&peer(2)), Some(&wiki), 0);
    assert!(other.connect().is_ok());
    assert_eq!(other.request().unwrap(), Turn::Now);
    assert_eq!(count(&quotas, "crm", Kind::Request), 95);
    assert_eq!(count(&quotas, "crm", Kind::Slowed), 3);
    assert_eq!(count(&quotas, "wiki", Kind::Request), 0);
}

#[test]
fn who_opens_and_closes_without_end_is_turned_away() {
    let clock = TestClock::default();
    let quotas = Quotas::new(clock.running());
    let rule = rule("crm", RulePeer::Uid(1), quota(100, 10));
    let party = quotas.party(Some(&peer(1)), Some(&rule), 0);
    let taken = (0..1000).filter(|_| party.connect().is_ok()).count();
    assert_eq!((taken, party.open()), (20, 0));
    assert_eq!(party.connect().map(|_| ()).unwrap_err().status, 429);
}

#[test]
fn peers_without_a_rule_share_an_account_that_no_app_pays_for() {
    let quotas = Quotas::new(TestClock::default().running());
    let stranger = quotas.party(Some(&peer(9)), None, 4);
    let _open: Vec<_> = (0..2).map(|_| stranger.connect().unwrap()).collect();
    let problem = stranger.connect().map(|_| ()).unwrap_err();
    assert!(
        problem.detail.contains("no [app] rule"),
        "{}",
        problem.detail
    );
    assert!(quotas.party(Some(&peer(8)), None, 4).connect().is_ok());
    assert_eq!(count(&quotas, "(no rule)", Kind::Connection), 1);
}

#[test]
fn a_reload_changes_quotas_and_forgets_nothing_that_was_counted() {
    let quotas = Quotas::new(TestClock::default().running());
    let before = Quota {
        users: Some(2),
        ..quota(2, 1000)
    };
    let party = |quota| {
        let rule = rule("crm", RulePeer::Uid(1), quota);
        quotas.party(Some(&peer(1)), Some(&rule), 0)
    };
    let _open: Vec<_> = (0..2).map(|_| party(before).connect().unwrap()).collect();
    for user in ["anna", "ben"] {
        party(before).read("default", user).unwrap().0.keep();
    }
    assert!(party(before).read("default", "clara").is_err());
    let after = Quota {
        users: Some(3),
        connections: 3,
        ..before
    };
    let _third = party(after).connect().unwrap();
    assert!(party(after).connect().is_err());
    party(after).read("default", "clara").unwrap().0.keep();
    let problem = party(after)
        .read("default", "dora")
        .map(|_| ())
        .unwrap_err();
    assert_eq!((problem.status, problem.retry_after), (429, Some(3600)));
    assert!(
        problem.detail.contains("app.crm.max-users-per-hour"),
        "{}",
        problem.detail
    );
}

#[test]
fn the_same_is_told_once_in_a_while_with_how_often_it_came_and_each_uid_for_itself() {
    let clock = TestClock::default();
    let account = Account::new("crm", NonZeroU32::MIN, &clock.running());
    assert_eq!(account.note(Kind::Request, Some(1)), Some(0));
    for _ in 0..500 {
        assert_eq!(account.note(Kind::Request, Some(1)), None);
    }
    assert_eq!(account.note(Kind::Connection, Some(1)), Some(0));
    assert_eq!(account.note(Kind::Request, Some(2)), Some(0));
    clock.pass(INTERVAL);
    assert_eq!(account.note(Kind::Request, Some(1)), Some(500));
    let told = (10..10_000).filter(|uid| account.note(Kind::Request, Some(*uid)).is_some());
    assert!(told.count() <= TOLD);
    assert_eq!(
        account.counts[Kind::Request as usize].load(Ordering::Relaxed),
        503 + 9990
    );
}
