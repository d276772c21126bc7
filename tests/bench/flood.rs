//! How much slower one user's reads are while another floods: `cargo bench --bench flood`, as root.
//!
//! Two real uids, each an app of its own with the usual limits, on the shared socket; at last the reader has a socket of its
//! own. In turn: nothing else runs (quiet);
//! the flooder does all it can to a listener that is not freshd (beside: its share of the processors is gone, and nothing
//! else); it does the same to freshd (flood). Several rounds, so that whatever else the machine does meets all three.
//! freshd, the reader and the flooder are control groups of their own with the same weight, as a service is under
//! systemd: else the flooder's threads would have the processors by their number.

#[path = "../support/mod.rs"]
mod support;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use hyper::Method;
use support::daemon::grant_path;
use support::flood::{self, Answers, Reads, Role};
use support::{Config, Connection, Freshd, Rotating, ScriptedServer};

const USERS: usize = 5000;
const ROUNDS: usize = 5;
const READS: usize = 2000;
const EVERY: Duration = Duration::from_millis(2);
/// The promise: of the quiet figure where the connection is kept or the socket is the reader's own, else of the one beside.
const AT_MOST: f64 = 2.0;

fn main() {
    if flood::play_role() {
        return;
    }
    if !rustix::process::getuid().is_root() {
        eprintln!("SKIPPED, NOT MEASURED: not root, so nobody else can be asked to flood");
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (mut freshd, _server) = runtime.block_on(start());
    let groups = Groups::new();
    groups.put("freshd", freshd.pid().as_raw_nonzero().get().unsigned_abs());
    let players = Players {
        program: flood::program(freshd.config.path()),
        shared: freshd.config.socket(),
        groups,
    };
    let own = freshd.app_socket("own");
    open_to_all(&own, 0o666);
    let decoy = decoy(freshd.config.path());
    let reader = |name, socket: &Path, reconnect| Reader {
        name,
        socket: socket.to_owned(),
        reconnect,
    };
    let shared = players.shared.clone();
    let kept = compare(&players, &decoy, &reader("one connection", &shared, false));
    let each = "a connection for each read";
    let fresh = compare(&players, &decoy, &reader(each, &shared, true));
    let each = "a connection for each read, on a socket of its own";
    let apart = compare(&players, &decoy, &reader(each, &own, true));
    runtime.block_on(async {
        let page = freshd.admin(Method::GET, "/metrics").await.text;
        page.lines()
            .filter(|line| line.contains("over_quota") && line.contains("app=\"flooder\""))
            .for_each(|line| println!("{line}"));
        freshd.stop().await;
    });
    drop(players);
    // A connection is the kernel's work more than freshd's, and the flooder keeps the kernel busy wherever it floods.
    if kept.of_quiet.max(apart.of_quiet).max(fresh.of_beside) > AT_MOST {
        println!("MORE THAN {AT_MOST} TIMES");
        std::process::exit(1);
    }
}

/// The 99th percentile in the flood.
struct Ratios {
    of_quiet: f64,
    of_beside: f64,
}

/// How the reader reads.
struct Reader {
    name: &'static str,
    socket: PathBuf,
    reconnect: bool,
}

/// Measures and prints the three.
fn compare(players: &Players, decoy: &Path, reader: &Reader) -> Ratios {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let quiet = players.read(reader);
        let (beside, _) = players.flooded(decoy, reader);
        let (loud, answers) = players.flooded(&players.shared, reader);
        println!("  the flood got {answers:?}");
        rounds.push([quiet, beside, loud]);
    }
    let of = |which: usize, percent: usize| {
        let all = rounds.iter().map(|it| it[which].percentile(percent));
        let mut all: Vec<u64> = all.collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    println!(
        "{}: median of {ROUNDS} rounds of {READS} reads, in microseconds",
        reader.name
    );
    for (which, name) in ["quiet", "flooder beside", "flood"].iter().enumerate() {
        let (p50, p99) = (of(which, 50), of(which, 99));
        println!("  {name:15} p50 {p50:6}  p99 {p99:6}");
    }
    let ratios = Ratios {
        of_quiet: of(2, 99) as f64 / of(0, 99) as f64,
        of_beside: of(2, 99) as f64 / of(1, 99) as f64,
    };
    println!(
        "  p99 in the flood: {:.2} times quiet, {:.2} times beside",
        ratios.of_quiet, ratios.of_beside
    );
    ratios
}

async fn start() -> (Freshd, ScriptedServer) {
    let rotating = Rotating::new(86_400);
    let server = ScriptedServer::start(rotating.script()).await;
    let rule = |uid| format!("unix-uid = {uid}\nmay = [\"read\"]");
    // A cache smaller than what the flood reads, so that it reads from the store.
    let config = Config::new()
        .provider("acme", &server, "")
        .daemon("cache = \"1MiB\"")
        .app("flooder", &rule(flood::FLOODER))
        .app("reader", &rule(flood::READER));
    let own = config.path().join("own");
    std::fs::create_dir(&own).expect("ours");
    let own = format!("socket = {:?}\nmay = [\"read\"]", own.join("freshd.sock"));
    let config = config.app("own", &own);
    for directory in ["", "shared", "own"] {
        open_to_all(&config.path().join(directory), 0o755);
    }
    let freshd = Freshd::start(config).await;
    let admin = freshd.config.admin_socket();
    futures_util::stream::iter(0..USERS)
        .for_each_concurrent(32, |nth| {
            let (admin, body) = (&admin, rotating.issue(&nth.to_string()).import());
            async move {
                let path = grant_path(&format!("user-{nth}"), "acme");
                let mut connection = Connection::open(admin).await;
                let reply = connection.send(Method::PUT, &path, Some(&body)).await;
                assert_eq!(reply.status, 201, "{}", reply.text);
            }
        })
        .await;
    (freshd, server)
}

/// Lets other uids in.
fn open_to_all(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("ours");
}

/// The two, who can be started any number of times.
struct Players {
    program: PathBuf,
    shared: PathBuf,
    groups: Groups,
}

impl Players {
    fn read(&self, reader: &Reader) -> Reads {
        let role = Role::Read {
            socket: reader.socket.clone(),
            reads: READS,
            every: EVERY,
            reconnect: reader.reconnect,
        };
        let reader = flood::start(&self.program, flood::READER, flood::READER, &role, &[]);
        self.groups.put("reader", reader.pid());
        let reads: Reads = reader.finish();
        assert_eq!(
            reads.answers,
            Answers::from([(200, READS)]),
            "each read is answered"
        );
        reads
    }

    fn flooded(&self, target: &Path, reader: &Reader) -> (Reads, Answers) {
        let role = Role::Flood {
            socket: target.to_owned(),
            users: USERS,
        };
        let flooder = flood::start(&self.program, flood::FLOODER, flood::FLOODER, &role, &[]);
        self.groups.put("flooder", flooder.pid());
        let reads = self.read(reader);
        (reads, flooder.finish())
    }
}

/// Listens, reads and says nothing: what connects to it waits.
fn decoy(directory: &Path) -> PathBuf {
    let path = directory.join("shared/decoy.sock");
    let listener = UnixListener::bind(&path).expect("ours");
    open_to_all(&path, 0o666);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut buffer = [0; 1 << 14];
                while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
            });
        }
    });
    path
}

/// Control groups, each with the same share of the processors.
struct Groups(PathBuf);

impl Groups {
    const NAMES: [&str; 3] = ["freshd", "reader", "flooder"];

    fn new() -> Self {
        // The older way of mounting has a directory for each controller.
        let older = Path::new("/sys/fs/cgroup/cpu");
        let top = if older.is_dir() {
            older
        } else {
            Path::new("/sys/fs/cgroup")
        };
        let ours = top.join(format!("freshd-flood-{}", std::process::id()));
        std::fs::create_dir(&ours).expect("root makes control groups");
        if top != older {
            for directory in [top, &ours] {
                std::fs::write(directory.join("cgroup.subtree_control"), "+cpu")
                    .expect("a controller");
            }
        }
        for name in Groups::NAMES {
            std::fs::create_dir(ours.join(name)).expect("root makes control groups");
        }
        Groups(ours)
    }

    fn put(&self, name: &str, pid: u32) {
        std::fs::write(self.0.join(name).join("cgroup.procs"), pid.to_string()).expect("it runs");
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for name in Groups::NAMES {
            let _ = std::fs::remove_dir(self.0.join(name));
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}
