//! Whatever the disk refuses, and whenever the daemon is stopped meanwhile, no token set is lost that could be
//! kept, and no request is sent whose tokens could not be kept (I2).
//!
//! strace makes the real binary's nth write or sync fail, for n = 1, 2, 3 … until a life passes untouched:
//! once, or from then on. Each life ends by a stop or a kill while the fault lasts.

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use rustix::process::Signal;
use support::daemon::{grant_path, token_path};
use support::strace::{Failing, Strace};
use support::{
    Config, Connection, Freshd, Gate, Issued, Reply, Rotating, ScriptedServer, at_rotating_server,
    eventually,
};

const LANES: usize = 5;
/// What an imported access token has left; a refresh token that may be lost rests until then.
const LEFT: i64 = 5;
/// A life syncs a handful of times, and company in a group moves the one that matters.
const TIMES: usize = 4;
/// For the same reason, not the first life that passes untouched shows that no thread makes so many calls.
const UNTOUCHED: usize = 3;
const STRICT: &str = "rotation = \"strict\"\nmargin = \"30m\"";

/// Calls that fail, by thread.
#[derive(Clone, Copy, Debug)]
struct Fault {
    calls: &'static str,
    errno: &'static str,
    lasting: bool,
    n: usize,
}

impl Fault {
    const fn first(calls: &'static str, errno: &'static str, lasting: bool) -> Fault {
        Fault {
            calls,
            errno,
            lasting,
            n: 1,
        }
    }

    fn strace(&self, lane: &Lane) -> Strace {
        let when = if self.lasting {
            format!("{}+", self.n)
        } else {
            self.n.to_string()
        };
        Strace::fail_at(lane.freshd.config.path(), self.calls, self.errno, &when)
    }
}

/// How a life went, seen from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// It did not start.
    NotStarted,
    /// The import was refused.
    NotImported,
    /// It sent no request.
    NotAsked,
    /// The new tokens were stored at once, or when the fault had passed.
    Stored,
    /// The new tokens went to the spill file.
    Spilled,
    /// No file took the new tokens; they were there again in spite of that.
    Unspilled,
    /// No file took the new tokens: they were served from memory, and ended with it.
    Lost,
}

struct Lane {
    rotating: Rotating,
    server: ScriptedServer,
    freshd: Freshd,
    users: usize,
}

impl Lane {
    async fn new() -> Lane {
        let (mut freshd, rotating, server) = at_rotating_server(STRICT).await;
        freshd.stop().await;
        Lane {
            rotating,
            server,
            freshd,
            users: 0,
        }
    }

    /// `None` if the fault never came.
    async fn live(&mut self, fault: Fault) -> Option<End> {
        let strace = fault.strace(self);
        self.users += 1;
        let user = format!("user-{}", self.users);
        let anna = self.rotating.issue(&user);
        let ready = self.freshd.start_again_under(&strace.command()).await;
        let imported = ready && self.import(&user, &anna).await;
        if imported {
            // I4: whatever the store says, the old token lives, or a new one is there.
            let path = token_path(&user, "acme", "wait=2");
            if let Some(reply) = self.ask(Method::GET, &path, None).await {
                assert!(self.rotating.is_active(reply.token()), "{fault:?}");
            }
        }
        if imported && self.rotating.refreshes(&user) > 0 {
            // A kill between the server's commit and ours is the kill sweep's matter.
            self.new_token_is_served(&user).await;
        }
        self.end(fault).await;
        self.server.settled().await;
        let tampered = strace.tampered();
        let asked = self.rotating.refreshes(&user);
        assert!(asked <= 1, "{fault:?}");
        self.freshd.start_again().await;
        let end = match (ready, imported, asked) {
            (false, ..) => End::NotStarted,
            (_, false, _) => End::NotImported,
            (_, _, 0) => End::NotAsked,
            _ => self.held(&user),
        };
        let end = self.survives(&user, &anna, end, fault).await;
        self.freshd.stop().await;
        (tampered > 0).then_some(end)
    }

    async fn new_token_is_served(&self, user: &str) {
        eventually("the new token", || async {
            let path = token_path(user, "acme", "wait=0");
            match self.ask(Method::GET, &path, None).await {
                Some(reply) => (reply.generation() == 2).then_some(()),
                None => Some(()), // the daemon has ended
            }
        })
        .await;
    }

    /// Tries as an app would: again, for a while.
    async fn import(&self, user: &str, anna: &Issued) -> bool {
        for _ in 0..3 {
            let body = anna.import_aged(60, LEFT).to_string();
            match self
                .ask(Method::PUT, &grant_path(user, "acme"), Some(body.into()))
                .await
            {
                Some(reply) if matches!(reply.status, 200 | 201) => return true,
                Some(reply) => assert!(matches!(reply.status, 503 | 507), "{}", reply.text),
                None => return false,
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        false
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Bytes>) -> Option<Reply> {
        let mut connection = Connection::try_open(&self.freshd.config.socket())
            .await
            .ok()?;
        support::within(path, connection.try_send(method, path, body))
            .await
            .ok()
    }

    /// Stops or kills the daemon while its fault lasts.
    async fn end(&mut self, fault: Fault) {
        if self.freshd.is_running() {
            // A stop waits for the disk as long as it may; enough of them show that.
            let signal = if fault.n.is_multiple_of(4) {
                Signal::TERM
            } else {
                Signal::KILL
            };
            self.freshd.signal(signal);
        }
        let status = self.freshd.wait_exit().await;
        assert_ne!(status.code(), Some(101), "{fault:?}: a panic");
    }

    /// Reads in the log what became of this user's set.
    fn held(&self, user: &str) -> End {
        let log = self.freshd.logs();
        let mut held = log
            .lines()
            .filter(|line| line.contains(" held ") && line.contains(&format!("user={user} ")));
        match held.next() {
            None => End::Stored,
            Some(line) if line.contains("spilled=true") => End::Spilled,
            Some(_) => End::Unspilled,
        }
    }

    /// After a start without the fault.
    async fn survives(&self, user: &str, anna: &Issued, end: End, fault: Fault) -> End {
        if matches!(end, End::NotStarted | End::NotImported) {
            let body = anna.import_aged(60, LEFT);
            self.freshd.import(user, "acme", &body).await;
        }
        let settled = eventually("a new token, or the word that it is lost", || async {
            let grant = self.freshd.grant(user, "acme").await;
            let over = grant["generation"] == 2 || grant["state"] == "needs-authorization";
            over.then_some(grant)
        })
        .await;
        let presented = self.server.presented()[&anna.refresh_token];
        if settled["state"] == "needs-authorization" {
            assert_eq!(end, End::Unspilled, "{fault:?}: {settled}");
            assert_eq!(settled["reason"], "lost-rotation (probable)", "{fault:?}");
            return End::Lost;
        }
        let reply = self.freshd.token(user, "acme").await;
        assert!(self.rotating.is_active(reply.token()), "{fault:?} {end:?}");
        assert_eq!(presented, 1, "{fault:?} {end:?}");
        end
    }
}

/// Lets each of `faults` come at the first call, the second … and counts how the lives ended.
async fn sweep(faults: &[Fault]) -> BTreeMap<End, usize> {
    // Each with how many of its lives have passed untouched.
    let todo: VecDeque<(Fault, usize)> = faults.iter().map(|fault| (*fault, 0)).collect();
    let todo = Arc::new(Mutex::new(todo));
    let lanes: Vec<_> = (0..LANES)
        .map(|_| tokio::spawn(sweep_in_a_lane(todo.clone())))
        .collect();
    let mut counts = BTreeMap::new();
    for lane in lanes {
        for end in lane.await.expect("a lane's panic says what it found") {
            *counts.entry(end).or_insert(0) += 1;
        }
    }
    println!("{:?} {}: {counts:?}", faults[0].calls, faults[0].errno);
    counts
}

async fn sweep_in_a_lane(todo: Arc<Mutex<VecDeque<(Fault, usize)>>>) -> Vec<End> {
    let mut lane = Lane::new().await;
    let mut ends = Vec::new();
    loop {
        let next = todo.lock().expect("no lane panicked").pop_front();
        let Some((fault, untouched)) = next else {
            return ends;
        };
        let next = match lane.live(fault).await {
            Some(end) => {
                ends.push(end);
                (
                    Fault {
                        n: fault.n + 1,
                        ..fault
                    },
                    0,
                )
            }
            None => (fault, untouched + 1),
        };
        if next.1 < UNTOUCHED {
            todo.lock().expect("no lane panicked").push_back(next);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_once_loses_nothing() {
    let ends = sweep(&[Fault::first("fsync", "EIO", false); TIMES]).await;
    assert!(
        ends.contains_key(&End::Spilled),
        "no commit was hit: {ends:?}"
    );
    assert_eq!(
        (ends.get(&End::Unspilled), ends.get(&End::Lost)),
        (None, None)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn syncs_of_the_database_that_fail_from_then_on_lose_nothing_across_a_stop_or_kill() {
    // The spill file syncs by another call.
    let ends = sweep(&[Fault::first("fsync", "EIO", true); TIMES]).await;
    assert!(
        ends.contains_key(&End::NotAsked),
        "no mark was hit: {ends:?}"
    );
    assert!(
        ends.contains_key(&End::Spilled),
        "no commit was hit: {ends:?}"
    );
    assert_eq!(
        (ends.get(&End::Unspilled), ends.get(&End::Lost)),
        (None, None)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_once_loses_nothing() {
    let ends = sweep(&[
        Fault::first("pwrite64", "ENOSPC", false),
        Fault::first("pwrite64", "EIO", false),
    ])
    .await;
    assert!(
        ends.contains_key(&End::Spilled),
        "no commit was hit: {ends:?}"
    );
    assert_eq!(
        (ends.get(&End::Unspilled), ends.get(&End::Lost)),
        (None, None)
    );
}

/// By thread: the one that writes the spill file may not have come to its nth call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_takes_nothing_from_then_on_is_asked_before_each_request() {
    let calls = "pwrite64,fsync,fdatasync,ftruncate,fallocate";
    let ends = sweep(&[Fault::first(calls, "EROFS", true)]).await;
    assert!(
        ends.contains_key(&End::NotAsked),
        "no mark was hit: {ends:?}"
    );
}

/// A daemon whose disk stopped taking anything between a request and its answer.
struct Dead {
    freshd: Freshd,
    failing: Failing,
    server: ScriptedServer,
    rotating: Rotating,
    /// What is served from memory.
    token: String,
}

impl Dead {
    async fn disk(expires_in: i64) -> Option<Dead> {
        let (gate, rotating) = (Gate::shut(), Rotating::new(3600));
        let held = gate.clone();
        let mut rules = rotating.script();
        let server = ScriptedServer::start(move |request| rules(request).held_by(&held)).await;
        let freshd = Freshd::start(Config::new().provider("acme", &server, STRICT)).await;
        let anna = rotating.issue("anna");
        freshd
            .import("anna", "acme", &anna.import_aged(3000, expires_in))
            .await;
        server.nth_refresh(1).await;
        let calls = "pwrite64,fsync,fdatasync,ftruncate,fallocate";
        let failing = Failing::all(freshd.pid(), calls, "EROFS").await?;
        gate.open();
        let log = freshd.wait_for_log(" held user=anna").await;
        assert!(log.contains("spilled=false"), "{log}");
        let token = freshd.token("anna", "acme").await.token().to_owned();
        assert!(rotating.is_active(&token), "served from memory");
        Some(Dead {
            freshd,
            failing,
            server,
            rotating,
            token,
        })
    }
}

#[tokio::test]
async fn a_set_that_no_file_takes_is_stored_when_the_disk_mends() {
    let Some(mut dead) = Dead::disk(600).await else {
        return;
    };
    dead.failing.mend().await;
    eventually("nothing to be held", || async {
        (dead.freshd.status().await["held"] == 0).then_some(())
    })
    .await;
    dead.freshd.kill().await;
    dead.freshd.start_again().await;
    assert_eq!(dead.freshd.token("anna", "acme").await.token(), dead.token);
    assert_eq!(dead.server.refreshes().len(), 1);
}

/// What no file took can't outlive the process; what can be done is to say so.
#[tokio::test]
async fn a_set_that_no_file_takes_is_told_as_lost_after_a_kill() {
    let Some(mut dead) = Dead::disk(LEFT).await else {
        return;
    };
    dead.freshd.kill().await;
    dead.freshd.start_again().await;
    let grant = dead
        .freshd
        .wait_for_state("anna", "acme", "needs-authorization")
        .await;
    assert_eq!(grant["reason"], "lost-rotation (probable)");
    assert_eq!(dead.rotating.superseded_presented_outside_grace(), 1);
}

#[tokio::test]
async fn a_lock_of_another_process_that_lasts_across_a_kill_and_a_start_loses_nothing() {
    let (gate, rotating) = (Gate::shut(), Rotating::new(3600));
    let held = gate.clone();
    let mut rules = rotating.script();
    let server = ScriptedServer::start(move |request| rules(request).held_by(&held)).await;
    let mut freshd = Freshd::start(Config::new().provider("acme", &server, STRICT)).await;
    let anna = rotating.issue("anna");
    freshd
        .import("anna", "acme", &anna.import_aged(3000, 600))
        .await;
    server.nth_refresh(1).await;
    // This process is another one than the daemon.
    let database = freshd.config.state_dir().join("freshd.db");
    let other = rusqlite::Connection::open(database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    gate.open();
    let log = freshd.wait_for_log(" held user=anna").await;
    assert!(log.contains("spilled=true"), "{log}");

    freshd.kill().await;
    freshd.start_again().await;
    let reply = freshd.token("anna", "acme").await;
    assert!(rotating.is_active(reply.token()), "from the spill file");
    assert_ne!(reply.token(), anna.access_token);
    other.execute_batch("ROLLBACK").unwrap();

    freshd.wait_for_generation("anna", "acme", 2).await;
    eventually("nothing to be held", || async {
        (freshd.status().await["held"] == 0).then_some(())
    })
    .await;
    freshd.restart().await;
    assert_eq!(freshd.token("anna", "acme").await.token(), reply.token());
    assert_eq!(server.refreshes().len(), 1);
}
