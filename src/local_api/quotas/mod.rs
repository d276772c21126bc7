//! What each app gets of freshd, so that all get theirs.
//!
//! An app's connections, requests and users are counted on one account, whatever socket and uid they come by; where its
//! rule admits several uids, one of them gets half. Peers without a rule share an account. The admin socket has none: what
//! the others can take never includes its part ([`super::server`]).

mod pace;
mod users;

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::pace::{Pace, share_of};
use self::users::{Read, Users};
use super::lock;
use super::peer::Peer;
use super::problem;
use super::rules::{Rule, RulePeer};
use super::types::Problem;

pub use self::pace::Running;
pub(super) use self::pace::Turn;

/// The same is told once in so long.
const INTERVAL: Duration = Duration::from_secs(600);
/// So many uids of an account are told apart in that time.
const TOLD: usize = 64;
/// What peers without a rule are called. No app can be called so.
const STRANGERS: &str = "(no rule)";
/// Requests a second of all peers without a rule together. Each is a refusal.
const STRANGERS_PER_SECOND: NonZeroU32 = NonZeroU32::new(100).expect("it is not 0");

/// What an app may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Connections at once.
    pub connections: usize,
    /// Requests a second; so many more wait up to a second.
    pub requests_per_second: NonZeroU32,
    /// Reading the tokens of more users than this in an hour is told.
    pub alarm_users: Option<usize>,
    /// The tokens of more users than this are not given out in an hour.
    pub users: Option<usize>,
}

impl Quota {
    /// For whom nobody counts.
    pub const UNLIMITED: Quota = Quota {
        connections: usize::MAX,
        requests_per_second: NonZeroU32::MAX,
        alarm_users: None,
        users: None,
    };
}

/// What can be over quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A connection was turned away.
    Connection,
    /// A request, or a new connection, had to wait.
    Slowed,
    /// A request was refused.
    Request,
    /// More users than the alarm allows.
    Alarm,
    /// A token of one user more was refused.
    User,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [
        Kind::Connection,
        Kind::Slowed,
        Kind::Request,
        Kind::Alarm,
        Kind::User,
    ];

    /// Returns the quota, and what became of who was over it, as the metric labels them.
    pub fn labels(self) -> [&'static str; 2] {
        match self {
            Kind::Connection => ["connections", "refused"],
            Kind::Slowed => ["requests", "slowed"],
            Kind::Request => ["requests", "refused"],
            Kind::Alarm => ["users", "told"],
            Kind::User => ["users", "refused"],
        }
    }

    /// Returns the key that an admin raises.
    fn key(self) -> &'static str {
        match self {
            Kind::Connection => "max-connections",
            Kind::Slowed | Kind::Request => "max-requests-per-second",
            Kind::Alarm => "alarm-users-per-hour",
            Kind::User => "max-users-per-hour",
        }
    }
}

/// The accounts of all apps.
pub struct Quotas {
    running: Running,
    accounts: Mutex<BTreeMap<String, Arc<Account>>>,
    strangers: Arc<Account>,
}

impl Quotas {
    /// Makes it without an app; `running` says how long a clock runs that nobody sets.
    pub fn new(running: Running) -> Self {
        Quotas {
            strangers: Arc::new(Account::new(STRANGERS, STRANGERS_PER_SECOND, &running)),
            accounts: Mutex::default(),
            running,
        }
    }

    /// Opens the accounts of apps that have none. What was counted is kept, also of an app that is gone.
    pub fn configure<'a>(&self, apps: impl Iterator<Item = &'a Rule>) {
        apps.for_each(|rule| drop(self.account(rule)));
    }

    /// Returns the party that a peer acts for: its app, or those without a rule, of whom so many connections are taken.
    pub(super) fn party(
        &self,
        peer: Option<&Peer>,
        rule: Option<&Rule>,
        strangers: usize,
    ) -> Party {
        let uid = peer.map(|peer| peer.uid);
        match rule {
            Some(rule) => Party {
                account: self.account(rule),
                quota: rule.quota,
                uid,
                shared: matches!(rule.peer, RulePeer::Gid(_)),
            },
            None => Party {
                account: Arc::clone(&self.strangers),
                quota: Quota {
                    connections: strangers,
                    requests_per_second: STRANGERS_PER_SECOND,
                    alarm_users: None,
                    users: None,
                },
                uid,
                shared: true,
            },
        }
    }

    fn account(&self, rule: &Rule) -> Arc<Account> {
        let mut accounts = lock(&self.accounts);
        if let Some(account) = accounts.get(&rule.app) {
            return Arc::clone(account);
        }
        let per_second = rule.quota.requests_per_second;
        let account = Arc::new(Account::new(&rule.app, per_second, &self.running));
        accounts.insert(rule.app.clone(), Arc::clone(&account));
        account
    }

    /// Returns how long the clock runs that all of this is counted by.
    pub(super) fn running(&self) -> Duration {
        (self.running)()
    }

    /// Returns that clock.
    pub(super) fn clock(&self) -> Running {
        Arc::clone(&self.running)
    }

    /// Returns how often each app was over each quota since the start.
    pub fn counts(&self) -> Vec<(String, Kind, u64)> {
        let accounts = lock(&self.accounts);
        let all = accounts.values().chain([&self.strangers]);
        all.flat_map(|account| {
            Kind::ALL.map(|kind| {
                let count = account.counts[kind as usize].load(Ordering::Relaxed);
                (account.app.clone(), kind, count)
            })
        })
        .collect()
    }
}

/// What is counted of an app.
struct Account {
    app: String,
    running: Running,
    counts: [AtomicU64; Kind::ALL.len()],
    state: Mutex<State>,
}

struct State {
    open: usize,
    /// By uid, where the app has several.
    open_by_uid: HashMap<u32, usize>,
    arrivals: Pace,
    requests: Pace,
    users: Users,
    told: HashMap<(Kind, Option<u32>), Told>,
}

/// What was told about somebody.
struct Told {
    at: Duration,
    /// How often it has come again since.
    again: u64,
}

impl Account {
    fn new(app: &str, per_second: NonZeroU32, running: &Running) -> Self {
        Account {
            app: app.to_owned(),
            running: Arc::clone(running),
            counts: Default::default(),
            state: Mutex::new(State {
                open: 0,
                open_by_uid: HashMap::new(),
                arrivals: Pace::new(per_second, running),
                requests: Pace::new(per_second, running),
                users: Users::new(),
                told: HashMap::new(),
            }),
        }
    }

    /// Counts that somebody was over quota. Returns how often before, if it is to be told now.
    fn note(&self, kind: Kind, uid: Option<u32>) -> Option<u64> {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
        let now = (self.running)();
        let told = &mut lock(&self.state).told;
        if let Some(told) = told.get_mut(&(kind, uid)) {
            if now < told.at + INTERVAL {
                told.again += 1;
                return None;
            }
            told.at = now;
            return Some(std::mem::take(&mut told.again));
        }
        if told.len() >= TOLD {
            told.retain(|_, told| now < told.at + INTERVAL);
        }
        if told.len() >= TOLD {
            return None; // the metric has counted it
        }
        told.insert((kind, uid), Told { at: now, again: 0 });
        Some(0)
    }
}

/// Somebody who acts for an app.
#[derive(Clone)]
pub(super) struct Party {
    account: Arc<Account>,
    quota: Quota,
    uid: Option<u32>,
    /// Whether the account is of several uids, of which one gets half.
    shared: bool,
}

impl Party {
    fn share(&self) -> Option<u32> {
        self.uid.filter(|_| self.shared)
    }

    fn connections(&self) -> usize {
        match self.shared {
            true => self.quota.connections.div_ceil(2),
            false => self.quota.connections,
        }
    }

    /// Returns when a new connection's turn is.
    ///
    /// # Errors
    ///
    /// The app, or this uid of it, has all the connections that it gets, or makes them too fast.
    pub(super) fn connect(&self) -> Result<(Place, Turn), Problem> {
        let (most, of_one) = (self.quota.connections, self.connections());
        let (turn, full) = {
            let mut state = lock(&self.account.state);
            state.arrivals.set(self.quota.requests_per_second);
            let turn = state.arrivals.turn(self.share());
            let own = self.share().map(|uid| state.open_by_uid.get(&uid));
            let own = own.flatten().copied().unwrap_or(0);
            let full = state.open >= most || own >= of_one;
            if turn != Turn::Never && !full {
                state.open += 1;
                if let Some(uid) = self.share() {
                    *state.open_by_uid.entry(uid).or_default() += 1;
                }
            }
            (turn, full)
        };
        if turn == Turn::Never {
            return Err(self.too_many_requests());
        }
        if full {
            return Err(self.too_many_connections());
        }
        self.slowed(turn);
        Ok((Place(self.clone()), turn))
    }

    /// Returns who it is, where the kernel says it.
    pub(super) fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// Counts a connection that was closed without a word.
    pub(super) fn hung_up(&self) {
        self.tell(Kind::Request, self.per_second());
    }

    /// Returns how many connections the app has.
    pub(super) fn open(&self) -> usize {
        lock(&self.account.state).open
    }

    /// Returns when a request's turn is.
    ///
    /// # Errors
    ///
    /// The app, or this uid of it, asks for more than it gets and than can wait.
    pub(super) fn request(&self) -> Result<Turn, Problem> {
        let turn = {
            let mut state = lock(&self.account.state);
            state.requests.set(self.quota.requests_per_second);
            state.requests.turn(self.share())
        };
        match turn {
            Turn::Never => Err(self.too_many_requests()),
            turn => {
                self.slowed(turn);
                Ok(turn)
            }
        }
    }

    /// Counts a read of a user's token. It counts for nothing unless it is [kept](UserRead::keep). The second says
    /// that an alarm is to be raised.
    ///
    /// # Errors
    ///
    /// The app has read the tokens of as many users as it may in an hour, and this is another.
    pub(super) fn read(
        &self,
        namespace: &str,
        user: &str,
    ) -> Result<(UserRead, Option<Overrun>), Problem> {
        let (alarm, most) = (self.quota.alarm_users, self.quota.users);
        let now = (self.account.running)();
        let read = {
            let mut state = lock(&self.account.state);
            state.users.read((namespace, user), alarm, most, now)
        };
        let counted = |hash| UserRead {
            account: Arc::clone(&self.account),
            hash,
        };
        match read {
            Read::Known => Ok((counted(None), None)),
            Read::New(hash) => Ok((counted(Some(hash)), None)),
            Read::Alarm(hash) => {
                let alarm = alarm.unwrap_or_default();
                self.tell(Kind::Alarm, alarm);
                Ok((counted(hash), Some(Overrun(alarm))))
            }
            Read::Refused(retry) => Err(self.too_many_users(most.unwrap_or_default(), retry)),
        }
    }

    fn slowed(&self, turn: Turn) {
        if matches!(turn, Turn::After(_)) {
            self.tell(Kind::Slowed, self.per_second());
        }
    }

    /// What this party gets, which is half where there are others.
    fn per_second(&self) -> usize {
        let all = self.quota.requests_per_second;
        let own = if self.shared { share_of(all) } else { all };
        own.get() as usize
    }

    /// Returns the key that an admin would raise; none is for peers without a rule.
    fn key(&self, kind: Kind) -> Option<String> {
        let app = &self.account.app;
        (app != STRANGERS).then(|| format!("app.{app}.{}", kind.key()))
    }

    /// Says who is meant, and what an admin would raise.
    fn who(&self, kind: Kind) -> (String, String) {
        let app = &self.account.app;
        let Some(key) = self.key(kind) else {
            let who = "all peers together that no [app] rule admits".to_owned();
            return (who, "fixed; a rule admits them".to_owned());
        };
        match self.share() {
            Some(uid) => (
                format!("app {app:?}, or uid {uid} of it,"),
                format!("{key}, of which one uid gets half"),
            ),
            None => (format!("app {app:?}"), key),
        }
    }

    fn too_many_connections(&self) -> Problem {
        self.tell(Kind::Connection, self.connections());
        let (who, key) = self.who(Kind::Connection);
        problem::too_many_connections(&who, self.quota.connections, &key)
    }

    fn too_many_requests(&self) -> Problem {
        self.tell(Kind::Request, self.per_second());
        let (who, key) = self.who(Kind::Request);
        let limit = self.quota.requests_per_second;
        let detail =
            format!("{who} gets {limit} requests a second ({key}), and as many wait already");
        problem::over_quota(detail).retry(Duration::from_secs(1))
    }

    fn too_many_users(&self, limit: usize, retry: Duration) -> Problem {
        self.tell(Kind::User, limit);
        let (who, key) = self.who(Kind::User);
        let detail = format!(
            "{who} may read the tokens of {limit} users in an hour ({key}) and has; theirs it may read on"
        );
        problem::over_quota(detail).retry(retry)
    }

    /// Tells the log who was over which quota, once in a while, and the metrics each time.
    fn tell(&self, kind: Kind, limit: usize) {
        let of_uid = self
            .uid
            .filter(|_| kind != Kind::Alarm && kind != Kind::User);
        let Some(before) = self.account.note(kind, of_uid) else {
            return;
        };
        let [quota, outcome] = kind.labels();
        let key = self.key(kind);
        tracing::warn!(
            app = self.account.app,
            uid = self.uid,
            quota,
            outcome,
            limit,
            before,
            key,
            "over-quota"
        );
    }
}

/// How many users an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overrun(pub(super) usize);

/// A connection's place; given back when it is dropped.
pub(super) struct Place(Party);

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.0.account.state);
        state.open -= 1;
        if let Some(uid) = self.0.share()
            && let Some(open) = state.open_by_uid.get_mut(&uid)
        {
            *open -= 1;
            if *open == 0 {
                state.open_by_uid.remove(&uid);
            }
        }
    }
}

/// A user whose token is being read.
pub(super) struct UserRead {
    account: Arc<Account>,
    hash: Option<u64>,
}

impl UserRead {
    /// The token was given out.
    pub(super) fn keep(&mut self) {
        self.hash = None;
    }
}

impl Drop for UserRead {
    fn drop(&mut self) {
        if let Some(hash) = self.hash {
            lock(&self.account.state).users.forget(hash);
        }
    }
}

#[cfg(test)]
pub(in crate::local_api) mod tests;
