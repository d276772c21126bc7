//! What one app does, the others don't feel; and what it may read in an hour is told, or stopped.
//!
//! The floods are by real users of their own, which needs root and `setpriv`, and says so where they are missing. How much
//! slower the others get is for `tests/bench/flood.rs` to measure.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use support::flood::{self, Answers, FLOODER, READER, Reads, Role};
use support::{Config, Connection, Freshd, Rotating, ScriptedServer, eventually, instant};

const READ: &str = "may = [\"read\"]";
const USERS: usize = 20;
/// What is read in a flood on one connection.
const READS: usize = 300;
/// What is read on a connection each, which waits in the listener's queue among the flood's.
const CONNECTIONS: usize = 20;

/// The processes that the tests below start begin here.
#[test]
fn plays_its_role() {
    flood::play_role();
}

fn cannot_run() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let setpriv = std::env::split_paths(&path).any(|dir| dir.join("setpriv").exists());
    let why = match (rustix::process::getuid().is_root(), setpriv) {
        (true, true) => return false,
        (false, _) => "not root, so nobody else can be asked to flood",
        (true, false) => "setpriv (util-linux) is missing",
    };
    eprintln!("SKIPPED, NOT TESTED: floods by real users: {why}");
    true
}

struct Host {
    freshd: Freshd,
    program: PathBuf,
    _server: ScriptedServer,
}

impl Host {
    /// A daemon that everybody can reach, with grants of the users `user-0` and so on.
    async fn start(apps: impl FnOnce(Config) -> Config) -> Host {
        let rotating = Rotating::new(86_400);
        let server = ScriptedServer::start(rotating.script()).await;
        let config = apps(Config::new().provider("acme", &server, ""));
        for directory in ["", "shared"] {
            let directory = config.path().join(directory);
            std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).expect("ours");
        }
        let freshd = Freshd::start(config).await;
        for nth in 0..USERS {
            let user = format!("user-{nth}");
            let body = rotating.issue(&user).import();
            freshd.import(&user, "acme", &body).await;
        }
        let program = flood::program(freshd.config.path());
        Host {
            freshd,
            program,
            _server: server,
        }
    }

    fn play(&self, uid: u32, gid: u32, role: &Role) -> flood::Player {
        let harness = ["--exact", "plays_its_role", "--nocapture"];
        flood::start(&self.program, uid, gid, role, &harness)
    }

    /// Reads as somebody while somebody else floods, on one connection and on ever new ones. Returns how many of each were
    /// answered with a token, what the flood got, and how long it lasted at most.
    async fn reads_in_a_flood(&self, gid: Option<u32>) -> ([usize; 2], Answers, Duration) {
        let socket = self.freshd.config.socket();
        let began = instant();
        let flood = Role::Flood {
            socket: socket.clone(),
            users: USERS,
        };
        let flooder = self.play(FLOODER, gid.unwrap_or(FLOODER), &flood);
        // Into the flood when all of it is there, and not before.
        self.freshd.wait_for_log("max-connections").await;
        let readers = [(READS, false), (CONNECTIONS, true)].map(|(reads, reconnect)| {
            let role = Role::Read {
                socket: socket.clone(),
                reads,
                every: Duration::ZERO,
                reconnect,
            };
            self.play(READER, gid.unwrap_or(READER), &role)
        });
        let reads = tokio::task::spawn_blocking(|| {
            let reads = readers.map(flood::Player::finish::<Reads>);
            reads.map(|reads| reads.answers[&200])
        });
        for path in ["/healthz", "/v1/status", "/metrics", "/v1/grants"] {
            let reply = self.freshd.admin(Method::GET, path).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.text);
        }
        let reads = reads.await.expect("it reads");
        let flooded = tokio::task::spawn_blocking(|| flooder.finish());
        (reads, flooded.await.expect("it floods"), began.elapsed())
    }
}

/// Of a flood's answers, those that needed the daemon's work.
fn worked_for(answers: &Answers) -> usize {
    let of = |status: &u16| !matches!(status, 0 | 429 | 431 | 503);
    let counts = answers.iter().filter(|(status, _)| of(status));
    counts.map(|(_, count)| count).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_users_flood_is_held_to_its_rate_and_the_others_reads_are_all_answered() {
    if cannot_run() {
        return;
    }
    const PER_SECOND: usize = 50;
    let host = Host::start(|config| {
        let limits = format!("max-requests-per-second = {PER_SECOND}\nmax-connections = 100");
        config
            .app(
                "flooder",
                &format!("unix-uid = {FLOODER}\n{READ}\n{limits}"),
            )
            .app("reader", &format!("unix-uid = {READER}\n{READ}"))
    })
    .await;
    let (reads, flooded, lasted) = host.reads_in_a_flood(None).await;
    assert_eq!(reads, [READS, CONNECTIONS]);
    // What comes at once, what waits, and what time brings.
    let most = PER_SECOND * (2 + lasted.as_secs() as usize + 1);
    let worked = worked_for(&flooded);
    assert!(
        worked > 0 && worked <= most,
        "{worked} of {most}: {flooded:?}"
    );
    assert!(flooded.contains_key(&429), "{flooded:?}");

    let page = host.freshd.admin(Method::GET, "/metrics").await.text;
    let count = |series: &str| -> f64 {
        let line = page.lines().find(|line| line.starts_with(series));
        let (_, value) = line.expect(series).rsplit_once(' ').expect("a sample");
        value.parse().expect("a number")
    };
    let of = |app, quota, outcome| {
        count(&format!(
            "freshd_over_quota_total{{app=\"{app}\",quota=\"{quota}\",outcome=\"{outcome}\"}}"
        ))
    };
    assert!(of("flooder", "requests", "refused") > 0.0);
    assert!(of("flooder", "requests", "slowed") > 0.0);
    assert!(of("flooder", "connections", "refused") > 0.0);
    assert_eq!(of("reader", "requests", "refused"), 0.0);
    assert_eq!(of("reader", "connections", "refused"), 0.0);
    let lines = host.freshd.logs().matches("over-quota").count();
    assert!((1..=3).contains(&lines), "{lines} lines for one uid");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_of_a_group_cannot_keep_the_others_out() {
    if cannot_run() {
        return;
    }
    let host = Host::start(|config| {
        let limits = "max-requests-per-second = 200\nmax-connections = 100";
        config.app(
            "staff",
            &format!("unix-group = \"daemon\"\n{READ}\n{limits}"),
        )
    })
    .await;
    let (reads, flooded, _) = host.reads_in_a_flood(Some(1)).await;
    assert_eq!(reads, [READS, CONNECTIONS]);
    assert!(flooded.contains_key(&503), "{flooded:?}");
}

#[tokio::test]
async fn connections_beyond_an_apps_own_are_refused_with_the_key_that_raises_it_and_a_reload_does()
{
    let mut host = Host::start(|config| config).await;
    let rule = host.freshd.config.apps["test"].clone();
    let limited = |most: usize| format!("{rule}\nmax-connections = {most}");
    host.freshd.config.apps.insert("test".into(), limited(2));
    host.freshd.reload().await.unwrap();
    let socket = host.freshd.config.socket();
    let mut open = Vec::new();
    // Those of the imports may not have been noticed to be gone.
    while open.len() < 2 {
        let mut connection = Connection::open(&socket).await;
        // Who is turned away may not get to ask.
        let reply = connection.try_send(Method::GET, "/healthz", None).await;
        if reply.is_ok_and(|reply| reply.status == 200) {
            open.push(connection);
        }
    }
    let refused = eventually("a refusal that comes after the request", || async {
        let mut connection = Connection::open(&socket).await;
        let reply = connection.try_send(Method::GET, "/healthz", None).await;
        reply.ok()
    })
    .await;
    refused.is_problem(503, "too-many-connections");
    assert!(
        refused.text.contains("(app.test.max-connections)"),
        "{}",
        refused.text
    );
    host.freshd.wait_for_log("app.test.max-connections").await;
    host.freshd.config.apps.insert("test".into(), limited(3));
    host.freshd.reload().await.unwrap();
    assert_eq!(host.freshd.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn one_app_cannot_take_the_last_open_file_from_those_with_few_connections() {
    let mut host = Host::start(|config| config.app_with_socket("own", READ)).await;
    host.freshd.stop().await;
    let limited = ["prlimit", "--nofile=256"].map(str::to_owned);
    assert!(host.freshd.start_again_under(&limited).await);
    let socket = host.freshd.config.socket();
    let mut open = Vec::new();
    let refused = loop {
        let mut connection = Connection::open(&socket).await;
        match connection.try_send(Method::GET, "/healthz", None).await {
            Ok(reply) if reply.status == 200 => open.push(connection),
            Ok(reply) => break reply,
            // Who is turned away may not get to ask.
            Err(_) => {}
        }
        assert!(open.len() < 256, "so many it can't have");
    };
    refused.is_problem(503, "too-many-connections");
    assert!(refused.text.contains("LimitNOFILE="), "{}", refused.text);
    host.freshd.wait_for_log("connections-full").await;
    let mut few = Connection::open(&host.freshd.app_socket("own")).await;
    assert_eq!(few.send(Method::GET, "/healthz", None).await.status, 200);
}

#[tokio::test]
async fn a_cap_on_users_is_an_hours_and_a_reload_raises_it_without_forgetting_anybody() {
    let mut host = Host::start(|config| config).await;
    let rule = host.freshd.config.apps["test"].clone();
    let limits =
        |most: usize| format!("{rule}\nalarm-users-per-hour = 2\nmax-users-per-hour = {most}");
    host.freshd.config.apps.insert("test".into(), limits(3));
    host.freshd.reload().await.unwrap();
    for user in ["user-0", "user-1", "user-2", "user-0"] {
        host.freshd.token(user, "acme").await.token();
    }
    let refused = host.freshd.token("user-3", "acme").await;
    refused.is_problem(429, "over-quota");
    assert!(
        refused.text.contains("tokens of 3 users in an hour"),
        "{}",
        refused.text
    );
    let retry: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((3500..=3600).contains(&retry), "{retry} s");
    host.freshd.config.apps.insert("test".into(), limits(4));
    host.freshd.reload().await.unwrap();
    host.freshd.token("user-3", "acme").await.token();
    let refused = host.freshd.token("user-4", "acme").await;
    refused.is_problem(429, "over-quota");
    host.freshd.token("user-1", "acme").await.token();

    let audit = eventually("the audit to tell it", || async {
        let reply = host
            .freshd
            .admin(Method::GET, "/v1/audit?action=many-users")
            .await;
        (reply.json["entries"].as_array()?.len() >= 2).then_some(reply.text)
    })
    .await;
    assert!(audit.contains("more than 2 users in an hour"), "{audit}");
    assert!(audit.contains("\"by\":\"app test\""), "{audit}");
}
