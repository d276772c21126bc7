//! Killed at any system call of a refresh, the daemon loses nothing that can be kept, and tells what was lost.
//!
//! strace kills the real binary at the entry of the nth call, for n = 1, 2, 3 … until a life passes unharmed,
//! for each call that changes something outside the process. A life is a start, an import that is due at once,
//! its refresh, two more of these, and a clean stop; or many imports and refreshes at once, which are
//! committed in groups. After each kill the store is looked at and the daemon started again.

mod support;

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::Method;
use hyper::body::Bytes;
use rustix::process::Signal;
use support::daemon::{grant_path, token_path};
use support::store::copied;
use support::strace::{Hit, Strace};
use support::{Config, Connection, Freshd, Issued, Reply, Rotating, ScriptedServer, instant};

/// As the promise says.
const KILL_POINTS: usize = 300;
/// What an imported access token has left: longer than a kill and a start take on a slow machine.
const LEFT: i64 = 6;
const GRACE: Duration = Duration::from_secs(30);
/// Every call by which the daemon changes a file or says something to somebody.
const SYSCALLS: [&str; 12] = [
    "pwrite64",
    "fdatasync",
    "fsync",
    "write",
    "writev",
    "sendto",
    "sendmsg",
    "rename",
    "renameat2",
    "ftruncate",
    "unlink",
    "connect",
];

#[derive(Clone, Copy, Debug)]
struct Point {
    manner: Manner,
    syscall: &'static str,
    /// The call of a thread, from 1.
    n: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Several cycles, one after the other.
    InTurn,
    /// The same, of grants that are not due: their APIs refuse the tokens.
    Refused,
    /// Many at once.
    Together,
}

/// How far the refresh had come that a kill ended, by the store and the server's own record. Of several
/// refreshes the last of these tells most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// The daemon was not ready yet.
    Starting,
    /// The new tokens are stored.
    Stored,
    /// The import is not stored.
    Importing,
    /// The import is stored, the mark is not.
    BeforeTheMark,
    /// The mark is stored; the request never reached the server.
    BeforeTheServer,
    /// The server has rotated, the new tokens are not stored.
    ServerAhead,
}

/// What is swept, and against which server.
#[derive(Clone, Copy)]
struct Plan {
    strict: bool,
    manners: &'static [Manner],
    /// Refreshes in one life.
    cycles: usize,
    /// Daemons at a time. Most of a life is waiting, for a start or for the end of an access token.
    lanes: usize,
}

/// What is left to do, shared by the lanes, and what was found.
#[derive(Default)]
struct Sweep {
    todo: Vec<Point>,
    kills: BTreeMap<(Phase, Hit), usize>,
}

impl Sweep {
    fn new(manners: &[Manner]) -> Sweep {
        let first = |manner| {
            SYSCALLS.map(|syscall| Point {
                manner,
                syscall,
                n: 1,
            })
        };
        Sweep {
            todo: manners.iter().copied().flat_map(first).collect(),
            ..Sweep::default()
        }
    }

    /// Takes a point that is left, and puts the one after it in its place.
    fn next(&mut self) -> Option<Point> {
        let point = self.todo.pop()?;
        self.todo.insert(
            0,
            Point {
                n: point.n + 1,
                ..point
            },
        );
        Some(point)
    }

    /// A life has passed unharmed: no thread makes so many calls.
    fn exhausted(&mut self, at: Point) {
        self.todo
            .retain(|point| (point.manner, point.syscall) != (at.manner, at.syscall));
    }

    fn count(&self, phases: impl Fn(Phase) -> bool) -> usize {
        self.kills
            .iter()
            .filter(|((phase, _), _)| phases(*phase))
            .map(|(_, count)| count)
            .sum()
    }
}

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((phase, hit), count) in &self.kills {
            writeln!(f, "{count:5}  {phase:?}  {}({})", hit.syscall, hit.file)?;
        }
        write!(f, "{:5}  kill points", self.count(|_| true))
    }
}

/// One user's grant.
struct Subject {
    user: String,
    issued: Issued,
    /// The end of the imported access token.
    ends: Instant,
}

/// What the store said of a grant when the daemon was dead.
#[derive(Clone, Copy, Debug)]
struct Stored {
    generation: usize,
    marked: bool,
}

/// A daemon, its server, and the users that it has had.
struct Lane {
    plan: Plan,
    rotating: Rotating,
    server: ScriptedServer,
    freshd: Freshd,
    users: usize,
    /// The newest generation that was ever found stored.
    generations: BTreeMap<String, usize>,
    spent: usize,
}

impl Lane {
    async fn new(plan: Plan) -> Lane {
        let rotating = Rotating::new(3600);
        let (rotating, rotation) = if plan.strict {
            (rotating, "rotation = \"strict\"")
        } else {
            (
                rotating.with_grace(GRACE),
                "rotation = \"grace\"\ngrace = \"30s\"",
            )
        };
        let server = ScriptedServer::start(rotating.script()).await;
        let config =
            Config::new().provider("acme", &server, &format!("{rotation}\nmargin = \"30m\""));
        let mut freshd = Freshd::start(config).await;
        freshd.stop().await;
        Lane {
            plan,
            rotating,
            server,
            freshd,
            users: 0,
            generations: BTreeMap::new(),
            spent: 0,
        }
    }

    fn subject(&mut self) -> Subject {
        self.users += 1;
        let user = format!("user-{}", self.users);
        let issued = self.rotating.issue(&user);
        Subject {
            user,
            issued,
            ends: instant(),
        }
    }

    /// Runs one life. Returns what it was killed at, or `None` if it was not.
    async fn live(&mut self, point: Point) -> Option<(Phase, Hit)> {
        let strace = Strace::kill_at(self.freshd.config.path(), point.syscall, point.n);
        let ready = self.freshd.start_again_under(&strace.command()).await;
        let subjects = if ready {
            self.refresh_some(point.manner).await
        } else {
            Vec::new()
        };
        if ready && self.freshd.is_running() {
            self.freshd.signal(Signal::TERM);
        }
        let status = self.freshd.wait_exit().await;
        if status.success() {
            return None;
        }
        assert_eq!(status.signal(), Some(9), "{point:?}: {status}");
        let hit = strace.hit(point.n).await;
        self.server.settled().await;
        let stored = self.look();
        let phases: Vec<Phase> = subjects
            .iter()
            .map(|subject| self.phase(&subject.user, stored.get(&subject.user)))
            .collect();
        self.freshd.start_again().await;
        let each = subjects.iter().zip(&phases);
        let survive = each.map(|(subject, phase)| self.survives(subject, *phase, point.manner));
        futures_util::future::join_all(survive).await;
        self.freshd.stop().await;
        self.spent += phases
            .iter()
            .filter(|phase| **phase == Phase::ServerAhead)
            .count();
        Some((phases.into_iter().max().unwrap_or(Phase::Starting), hit))
    }

    /// Imports grants that are due at once, and waits for their refreshes, as long as the daemon lives.
    async fn refresh_some(&mut self, manner: Manner) -> Vec<Subject> {
        let mut subjects = Vec::new();
        match manner {
            Manner::InTurn | Manner::Refused => {
                for _ in 0..self.plan.cycles {
                    let mut subject = self.subject();
                    let refreshed = self.refresh(&mut subject, manner).await;
                    subjects.push(subject);
                    if refreshed.is_none() {
                        break;
                    }
                }
            }
            Manner::Together => {
                subjects.extend((0..self.plan.cycles).map(|_| self.subject()));
                let lane = &*self;
                let refreshes = subjects
                    .iter_mut()
                    .map(|subject| lane.refresh(subject, manner));
                futures_util::future::join_all(refreshes).await;
            }
        }
        subjects
    }

    /// Imports a grant and waits for its refresh. `None` if the daemon died over it.
    async fn refresh(&self, subject: &mut Subject, manner: Manner) -> Option<()> {
        let left = if manner == Manner::Refused {
            3600
        } else {
            LEFT
        };
        let body = subject.issued.import_aged(60, left);
        let ends = body["expires_at"].as_i64().expect("it is whole seconds") * 1000;
        let left = ends - jiff::Timestamp::now().as_millisecond();
        subject.ends = instant() + Duration::from_millis(left.unsigned_abs());
        let path = grant_path(&subject.user, "acme");
        let imported = self
            .ask(Method::PUT, &path, Some(Bytes::from(body.to_string())))
            .await?;
        assert_eq!(imported.status, 201, "{}", imported.text);
        let reply = match manner {
            Manner::Refused => {
                let refused = Bytes::from_static(b"{\"generation\":1}");
                let path = format!("{path}/refresh");
                self.ask(Method::POST, &path, Some(refused)).await?
            }
            _ => {
                let path = token_path(&subject.user, "acme", "");
                self.ask(Method::GET, &path, None).await?
            }
        };
        assert_eq!(reply.generation(), 2, "{}", reply.text);
        Some(())
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Bytes>) -> Option<Reply> {
        let mut connection = Connection::try_open(&self.freshd.config.socket())
            .await
            .ok()?;
        support::within(path, connection.try_send(method, path, body))
            .await
            .ok()
    }

    /// Reads a copy of the dead daemon's store, so that its own start finds it as it was left.
    fn look(&mut self) -> BTreeMap<String, Stored> {
        let (_copy, database) = copied(&self.freshd.config);
        let mut rows = database
            .prepare("SELECT user, generation, EXISTS (SELECT 1 FROM marks WHERE grant_id = id) FROM grants")
            .expect("the schema is known");
        let stored: BTreeMap<String, Stored> = rows
            .query_map([], |row| {
                Ok((
                    row.get(0)?,
                    Stored {
                        generation: row.get::<_, i64>(1)? as usize,
                        marked: row.get(2)?,
                    },
                ))
            })
            .expect("it can be read")
            .map(|row| row.expect("it can be read"))
            .collect();
        for (user, generation) in &self.generations {
            let now = stored.get(user).map_or(0, |stored| stored.generation);
            assert!(
                now >= *generation,
                "{user} went back from generation {generation} to {now}"
            );
        }
        self.generations = stored
            .iter()
            .map(|(user, stored)| (user.clone(), stored.generation))
            .collect();
        stored
    }

    fn phase(&self, user: &str, stored: Option<&Stored>) -> Phase {
        let rotated = self.rotating.refreshes(user);
        match stored.map(|stored| (stored.generation, stored.marked, rotated)) {
            None if rotated == 0 => Phase::Importing,
            Some((1, false, 0)) => Phase::BeforeTheMark,
            Some((1, true, 0)) => Phase::BeforeTheServer,
            Some((1, true, 1)) => Phase::ServerAhead,
            Some((2, false, 1)) => Phase::Stored,
            _ => panic!("{user}: the server has rotated {rotated} times, stored is {stored:?}"),
        }
    }

    /// After the new start: what can be had is had, and what is lost is told.
    async fn survives(&self, subject: &Subject, phase: Phase, manner: Manner) {
        let user = &subject.user;
        if phase == Phase::Importing {
            let gone = self.freshd.token(user, "acme").await;
            assert_eq!(gone.status, 404, "an import that nobody was told of");
            return;
        }
        if self.plan.strict && matches!(phase, Phase::BeforeTheServer | Phase::ServerAhead) {
            self.is_served_to_its_end(subject).await;
        }
        if self.plan.strict && phase == Phase::ServerAhead {
            let grant = self
                .freshd
                .wait_for_state(user, "acme", "needs-authorization")
                .await;
            assert_eq!(grant["reason"], "lost-rotation (probable)");
            self.freshd
                .token(user, "acme")
                .await
                .is_problem(409, "needs-authorization");
            return;
        }
        if manner == Manner::Refused && phase == Phase::BeforeTheMark {
            // Nothing remembers the refusal, and nothing is due: the API will refuse it again.
            let refused = serde_json::json!({ "generation": 1 });
            let path = format!("{}/refresh", grant_path(user, "acme"));
            assert_eq!(self.freshd.post(&path, &refused).await.generation(), 2);
        }
        let grant = self.freshd.wait_for_generation(user, "acme", 2).await;
        assert_eq!(
            (&grant["state"], &grant["generation"]),
            (&"active".into(), &2.into()),
            "{user} after {phase:?}"
        );
        let reply = self.freshd.token(user, "acme").await;
        assert!(
            self.rotating.is_active(reply.token()),
            "{user} after {phase:?}"
        );
        assert_eq!(self.rotating.refreshes(user), 1, "{user} after {phase:?}");
    }

    async fn is_served_to_its_end(&self, subject: &Subject) {
        loop {
            let left = subject.ends.saturating_duration_since(instant());
            // An answer takes its time, too.
            if left < Duration::from_millis(500) {
                return;
            }
            let reply = self
                .freshd
                .token_with(&subject.user, "acme", "wait=0")
                .await;
            assert_eq!(reply.token(), subject.issued.access_token, "I4");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn sweep(plan: Plan) {
    let sweep = Arc::new(Mutex::new(Sweep::new(plan.manners)));
    let lanes = (0..plan.lanes).map(|_| {
        let sweep = sweep.clone();
        tokio::spawn(async move {
            let mut lane = Lane::new(plan).await;
            loop {
                let point = sweep.lock().expect("no lane panicked").next();
                let Some(point) = point else {
                    break;
                };
                let killed = lane.live(point).await;
                let mut sweep = sweep.lock().expect("no lane panicked");
                match killed {
                    Some(killed) => *sweep.kills.entry(killed).or_insert(0) += 1,
                    None => sweep.exhausted(point),
                }
            }
            lane
        })
    });
    let began = instant();
    let (mut spent, mut replayed, mut superseded) = (0, 0, 0);
    for lane in futures_util::future::join_all(lanes.collect::<Vec<_>>()).await {
        let lane = lane.expect("a lane's panic says what it found");
        spent += lane.spent;
        replayed += lane.rotating.replayed_within_grace();
        superseded += lane.rotating.superseded_presented_outside_grace();
    }
    let sweep = sweep.lock().expect("no lane panicked");
    println!("{sweep}");
    println!(
        "{spent:5}  grants whose server was ahead, in {:?}",
        began.elapsed()
    );
    let each = if plan.strict { (spent, 0) } else { (0, spent) };
    assert_eq!(
        (superseded, replayed),
        each,
        "superseded tokens presented outside and within the grace"
    );
    let in_cycles = sweep.count(|phase| phase != Phase::Starting);
    assert!(in_cycles >= KILL_POINTS, "{in_cycles} kills hit a refresh");
    for phase in [
        Phase::BeforeTheMark,
        Phase::BeforeTheServer,
        Phase::ServerAhead,
        Phase::Stored,
    ] {
        let hit = sweep.count(|found| found == phase);
        assert!(hit >= 10, "only {hit} kills hit {phase:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn within_a_servers_grace_no_kill_loses_a_grant() {
    sweep(Plan {
        strict: false,
        manners: &[Manner::InTurn, Manner::Together, Manner::Refused],
        cycles: 4,
        lanes: 6,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_grace_a_kill_between_the_two_commits_is_told_as_a_probable_loss_and_no_other_loses()
 {
    sweep(Plan {
        strict: true,
        // A refused token would have to be waited for an hour.
        manners: &[Manner::InTurn, Manner::Together],
        cycles: 7,
        lanes: 10,
    })
    .await;
}
