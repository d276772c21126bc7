//! A new data key while the daemon goes on: every grant is sealed anew, the old key is gone in the end, and no kill and
//! no failing write at any step of it loses anything.

mod support;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::daemon::grant_path;
use support::store::copied;
use support::strace::{Hit, Strace};
use support::{Config, Connection, Freshd, Rotating, ScriptedServer, eventually};

const USERS: [&str; 4] = ["anna", "bert", "carl", "dora"];

struct Scene {
    rotating: Rotating,
    server: ScriptedServer,
    freshd: Freshd,
}

impl Scene {
    /// Four grants at a server that takes a used refresh token for another 30 s.
    async fn new() -> Scene {
        let rotating = Rotating::new(3600).with_grace(Duration::from_secs(30));
        let server = ScriptedServer::start(rotating.script()).await;
        let class = "rotation = \"grace\"\ngrace = \"30s\"";
        let config = Config::new().provider("acme", &server, class);
        let freshd = Freshd::start(config).await;
        for user in USERS {
            let tokens = rotating.issue(user).import();
            freshd.import(user, "acme", &tokens).await;
        }
        Scene {
            rotating,
            server,
            freshd,
        }
    }

    fn keyring(&self) -> Value {
        let file = self.freshd.config.state_dir().join("keyring");
        let text = std::fs::read(file).expect("it is there");
        serde_json::from_slice(&text).expect("it is whole")
    }

    /// The ids of the data keys in the keyring file.
    fn data_keys(&self) -> Vec<u64> {
        let keyring = self.keyring();
        let keys = keyring["keys"].as_array().expect("a list");
        keys.iter().filter_map(|key| key["id"].as_u64()).collect()
    }

    /// Waits until no rotation is under way.
    async fn rotated(&self) {
        eventually("the rotation to end", || async {
            let status = self.freshd.status().await;
            status["keys"]["rotation"].is_null().then_some(())
        })
        .await;
    }

    async fn refresh(&self, user: &str) -> u64 {
        let path = format!("{}/refresh", grant_path(user, "acme"));
        let reply = self.freshd.post(&path, &json!({})).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert!(self.rotating.is_active(reply.token()), "{user}");
        reply.generation()
    }

    fn kill_at(&self, (syscall, files): Call, n: usize) -> Strace {
        let state = self.freshd.config.state_dir();
        let files: Vec<_> = match files {
            [] => vec![state],
            files => files.iter().map(|file| state.join(file)).collect(),
        };
        Strace::kill_at(self.freshd.config.path(), syscall, n).on(&files)
    }

    /// Takes the database, so that no row is sealed anew.
    fn take_database(&self) -> rusqlite::Connection {
        let database = self.freshd.config.state_dir().join("freshd.db");
        let database = rusqlite::Connection::open(database).expect("it is there");
        database
            .execute_batch("BEGIN IMMEDIATE")
            .expect("nothing else writes");
        database
    }

    /// Kills a life whose keyring has just got its new key.
    async fn leave_half_done(&mut self) {
        self.freshd.start_again().await;
        let taken = self.take_database();
        let said = self.freshd.freshctl(&["key", "rotate"], "").await;
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        self.freshd.kill().await;
        drop(taken);
        assert_eq!(self.data_keys().len(), 2);
    }

    /// How many values each data key has sealed, in the database of a daemon that has ended.
    fn sealed_with(&self) -> BTreeMap<i64, usize> {
        let (_copy, database) = copied(&self.freshd.config);
        let mut rows = database
            .prepare("SELECT key_id FROM grants UNION ALL SELECT key_id FROM revocations")
            .expect("the schema is known");
        let ids = rows
            .query_map([], |row| row.get::<_, i64>(0))
            .expect("it is read");
        let mut counts = BTreeMap::new();
        for id in ids {
            *counts.entry(id.expect("it is read")).or_default() += 1;
        }
        counts
    }
}

#[tokio::test]
async fn a_rotation_seals_every_grant_anew_and_the_old_key_goes() {
    let mut scene = Scene::new().await;
    assert_eq!(scene.refresh("anna").await, 2);
    assert_eq!(scene.data_keys(), [1]);

    let said = scene.freshd.freshctl(&["key", "rotate"], "").await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stdout.starts_with("data key 2 seals"),
        "{}",
        said.stdout
    );
    scene.rotated().await;
    scene.freshd.wait_for_log("key-rotated").await;
    assert_eq!(scene.data_keys(), [2]);
    let status = scene.freshd.status().await;
    assert_eq!(status["keys"], json!({ "current": 2 }));

    // A refresh token of before is still known, and what is spent does not come back.
    let pushed = json!({ "refresh_token": "refresh-0-0" });
    let path = format!("{}?replace=true", grant_path("anna", "acme"));
    assert_eq!(
        scene.freshd.put(&path, &pushed).await.json["result"],
        "unchanged"
    );
    for user in USERS {
        scene.refresh(user).await;
    }
    scene.freshd.stop().await;
    assert_eq!(scene.sealed_with(), BTreeMap::from([(2, USERS.len())]));

    // What says that the old key sealed it opens no more, and that is told.
    support::store::change(
        &scene.freshd.config,
        "UPDATE grants SET key_id = 1 WHERE user = 'anna'",
    );
    scene.freshd.start_again().await;
    let reply = scene.freshd.token("anna", "acme").await;
    reply.is_problem(409, "paused");
    assert_eq!(scene.server.refreshes().len(), 5);
}

#[tokio::test]
async fn a_backup_and_a_rotation_exclude_each_other_and_a_second_rotation_is_told_so() {
    let scene = Scene::new().await;
    let database = scene.take_database();
    let said = scene.freshd.freshctl(&["key", "rotate"], "").await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);

    let copy = scene.freshd.config.path().join("copy");
    let copy = copy.to_str().expect("ASCII");
    let refused: [&[&str]; 3] = [
        &["key", "rotate"],
        &["backup", copy],
        &["backup", copy, "--final"],
    ];
    for command in refused {
        let said = scene.freshd.freshctl(command, "").await;
        assert_eq!(said.code, Some(75), "{}", said.stderr);
        let under_way = "a key rotation is under way";
        assert!(said.stderr.contains(under_way), "{}", said.stderr);
    }
    let said = scene.freshd.freshctl(&["status"], "").await;
    assert!(
        said.stdout.contains("from data key 1 to 2"),
        "{}",
        said.stdout
    );
    database.execute_batch("ROLLBACK").expect("it is ours");
    scene.rotated().await;
    let said = scene.freshd.freshctl(&["backup", copy], "").await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(scene.refresh("anna").await, 2);
}

#[tokio::test]
async fn whichever_step_of_writing_the_keyring_fails_nothing_is_lost_and_it_says_what_to_do() {
    let mut scene = Scene::new().await;
    scene.freshd.stop().await;
    let steps = [
        ("openat", "ENOSPC"),
        ("write", "ENOSPC"),
        ("fsync", "EIO"),
        ("rename", "EIO"),
    ];
    let fails = |scene: &Scene, syscall: &str, errno: &str| {
        let file = scene.freshd.config.state_dir().join("keyring.new");
        Strace::fail_at(scene.freshd.config.path(), syscall, errno, "1").on(&[file])
    };
    for (syscall, errno) in steps {
        // At the beginning: it is refused, and the next try goes well.
        let strace = fails(&scene, syscall, errno);
        assert!(scene.freshd.start_again_under(&strace.command()).await);
        let said = scene.freshd.freshctl(&["key", "rotate"], "").await;
        assert_eq!(said.code, Some(75), "{syscall}: {}", said.stderr);
        for words in [
            "keyring could not be written",
            "The old key goes on",
            "ask again",
        ] {
            assert!(said.stderr.contains(words), "{}", said.stderr);
        }
        assert_eq!(scene.data_keys().len(), 1, "{syscall}");
        scene.refresh("anna").await;
        // strace counts by thread: each thread of the pool that comes to do it fails once.
        let mut said = scene.freshd.freshctl(&["key", "rotate"], "").await;
        for _ in 0..20 {
            if said.code == Some(0) {
                break;
            }
            assert_eq!(scene.data_keys().len(), 1, "{syscall}");
            said = scene.freshd.freshctl(&["key", "rotate"], "").await;
        }
        assert_eq!(said.code, Some(0), "{syscall}: {}", said.stderr);
        scene.rotated().await;
        scene.freshd.stop().await;

        // At the end: both keys stay, and it waits.
        scene.leave_half_done().await;
        let strace = fails(&scene, syscall, errno);
        assert!(scene.freshd.start_again_under(&strace.command()).await);
        let waits = |status: &Value| status["keys"]["rotation"]["waits_for"].clone();
        let reason = eventually("the rotation to wait", || async {
            let reason = waits(&scene.freshd.status().await);
            reason.is_string().then_some(reason)
        })
        .await;
        assert!(reason.to_string().contains("keyring"), "{reason}");
        assert_eq!(scene.data_keys().len(), 2, "{syscall}");
        scene.refresh("bert").await;
        scene.freshd.stop().await;
        all_is_well(&mut scene).await;
    }
    assert!(scene.freshd.logs().contains("key-rotation-waits"));
}

/// What a life does that may be cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Manner {
    /// It begins a rotation, and refreshes meanwhile.
    Begun,
    /// It goes on with one.
    Resumed,
}

/// One life under a tampering strace. Returns whether the rotation has ended and the daemon still runs.
async fn live(scene: &mut Scene, manner: Manner, strace: &Strace) -> bool {
    if !scene.freshd.start_again_under(&strace.command()).await {
        return false;
    }
    let admin = scene.freshd.config.admin_socket();
    let shared = scene.freshd.config.socket();
    if manner == Manner::Begun {
        let ask = async |socket: &Path, path: &str| {
            let mut connection = Connection::try_open(socket).await.ok()?;
            let nothing = Bytes::from_static(b"{}");
            let request = connection.try_send(Method::POST, path, Some(nothing));
            support::within(path, request).await.ok()
        };
        let refresh = |user| format!("{}/refresh", grant_path(user, "acme"));
        let (anna, bert) = (refresh("anna"), refresh("bert"));
        let asked = tokio::join!(
            ask(&admin, "/v1/keys/rotate"),
            ask(&shared, &anna),
            ask(&shared, &bert)
        );
        if asked.0.is_none() {
            return false;
        }
    }
    // Until it has ended, or nobody answers any more.
    loop {
        let Ok(mut connection) = Connection::try_open(&admin).await else {
            return false;
        };
        let status = connection.try_send(Method::GET, "/v1/status", None);
        let Ok(reply) = status.await else {
            return false;
        };
        if reply.json["keys"]["rotation"].is_null() {
            return true;
        }
        tokio::task::yield_now().await;
    }
}

/// After a start without tampering: the rotation ends by itself, and everything opens.
async fn all_is_well(scene: &mut Scene) {
    scene.freshd.start_again().await;
    scene.rotated().await;
    assert_eq!(scene.data_keys().len(), 1, "the old key is gone");
    for user in USERS {
        assert_eq!(scene.freshd.token(user, "acme").await.status, 200, "{user}");
        let grant = scene.freshd.grant(user, "acme").await;
        assert_eq!(grant["state"], "active", "{user}: {grant}");
    }
    assert!(!scene.freshd.logs().contains("quarantined"));
    scene.freshd.stop().await;
    let key = scene.data_keys()[0] as i64;
    assert_eq!(scene.sealed_with(), BTreeMap::from([(key, USERS.len())]));
}

/// RELIABILITY: key rotation bricks tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_step_of_a_rotation_it_finishes_after_the_next_start_and_every_grant_opens()
{
    let sweep = Arc::new(Mutex::new(Sweep::default()));
    let lanes = (0..3).map(|_| tokio::spawn(lane(sweep.clone())));
    for lane in futures_util::future::join_all(lanes.collect::<Vec<_>>()).await {
        lane.expect("a lane's panic says what it found");
    }
    let kills = &sweep.lock().expect("no lane panicked").kills;
    for ((manner, hit), times) in kills {
        println!("{times:5}  {manner:?}: {} {}", hit.syscall, hit.file);
    }
    println!("{:5}  kills", kills.values().sum::<usize>());
    for manner in [Manner::Begun, Manner::Resumed] {
        for (step, file) in [
            ("write", "keyring"),
            ("fsync", "keyring"),
            ("rename", "keyring"),
            ("pwrite64", "log"),
            ("fsync", "log"),
        ] {
            let hit = |(how, hit): &(Manner, Hit)| {
                *how == manner && hit.syscall == step && hit.file.ends_with(file)
            };
            assert!(kills.keys().any(hit), "{manner:?} {step} {file}");
        }
    }
}

/// A call, and the files in the state directory that it concerns; none stands for the directory itself.
type Call = (&'static str, &'static [&'static str]);
const KEYRING: &[&str] = &["keyring.new", "keyring"];
const LOG: &[&str] = &["freshd.db-wal"];
/// Every call by which a rotation changes a file. Calls count by thread, so that each file is looked at by itself: or
/// the many of a start would hide the few that come later.
const CALLS: [Call; 7] = [
    ("openat", KEYRING),
    ("write", KEYRING),
    ("fsync", KEYRING),
    ("rename", KEYRING),
    ("fsync", &[]),
    ("pwrite64", LOG),
    ("fsync", LOG),
];
/// By then each thread has been through a rotation; see the counts that are printed.
const MOST: usize = 24;

/// A call of a thread, from 1, in a life.
type Point = (Manner, Call, usize);

#[derive(Default)]
struct Sweep {
    /// How many points of each call have been tried, and whether a life passed unharmed.
    tried: BTreeMap<(Manner, Call), (usize, bool)>,
    kills: BTreeMap<(Manner, Hit), usize>,
}

impl Sweep {
    fn next(&mut self) -> Option<Point> {
        let manners = [Manner::Begun, Manner::Resumed].into_iter();
        let mut all = manners.flat_map(|manner| CALLS.map(|call| (manner, call)));
        all.find_map(|(manner, call)| {
            let (tried, done) = self.tried.entry((manner, call)).or_default();
            (!*done && *tried < MOST).then(|| {
                *tried += 1;
                (manner, call, *tried)
            })
        })
    }
}

async fn lane(sweep: Arc<Mutex<Sweep>>) {
    let mut scene = Scene::new().await;
    scene.freshd.stop().await;
    loop {
        let point = sweep.lock().expect("no lane panicked").next();
        let Some((manner, call, n)) = point else {
            return;
        };
        if manner == Manner::Resumed {
            scene.leave_half_done().await;
        }
        let strace = scene.kill_at(call, n);
        let unharmed = live(&mut scene, manner, &strace).await;
        if unharmed {
            // The stop may still be what is killed.
            scene.freshd.signal(Signal::TERM);
        }
        let status = scene.freshd.wait_exit().await;
        if unharmed {
            let mut sweep = sweep.lock().expect("no lane panicked");
            sweep.tried.entry((manner, call)).or_default().1 = true;
        } else {
            let kill = Some(Signal::KILL.as_raw());
            assert_eq!(status.signal(), kill, "{manner:?} {call:?} {n}");
            let hit = strace.hit(n).await;
            let mut sweep = sweep.lock().expect("no lane panicked");
            *sweep.kills.entry((manner, hit)).or_default() += 1;
        }
        all_is_well(&mut scene).await;
    }
}
