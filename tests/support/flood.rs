//! Two users of this host, each in a process of its own: one floods a socket, the other reads tokens and takes the time.
//!
//! The program that uses this starts itself again as somebody else ([`start`]) and finds its role in the environment
//! ([`play_role`]), so only root can.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::instant;

/// Uids that nobody on the host has.
pub const FLOODER: u32 = 61_001;
pub const READER: u32 = 61_002;

const ROLE: &str = "FRESHD_TEST_ROLE";

/// What one process does to a socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Role {
    /// Everything at once, as fast as it goes, until its standard input ends.
    Flood {
        socket: PathBuf,
        /// Users `user-0` to before this have grants.
        users: usize,
    },
    /// `reads` tokens of `user-0` and the next ten, one after the other.
    Read {
        socket: PathBuf,
        reads: usize,
        /// From one read's beginning to the next one's; zero for none.
        every: Duration,
        /// A connection for each, or one for all.
        reconnect: bool,
    },
}

/// What a flood got: answers by status, 0 where the connection ended without one.
pub type Answers = BTreeMap<u16, usize>;

/// How long the reads took, in microseconds, the fastest first, and what they got.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reads {
    pub micros: Vec<u64>,
    pub answers: Answers,
}

impl Reads {
    /// Returns the time that this part of a hundred did not exceed.
    pub fn percentile(&self, percent: usize) -> u64 {
        self.micros[(self.micros.len() * percent / 100).min(self.micros.len() - 1)]
    }
}

/// Copies this program to where others can run it: where it was built may be closed to them. `directory` is open to all.
pub fn program(directory: &Path) -> PathBuf {
    let path = directory.join("player");
    let ours = std::env::current_exe().expect("we run");
    std::fs::copy(ours, &path).expect("there is room");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("it is ours");
    path
}

/// A process that plays a role.
pub struct Player(Child);

/// Starts the program as this user, with these arguments, to play a role.
pub fn start(program: &Path, uid: u32, gid: u32, role: &Role, arguments: &[&str]) -> Player {
    let child = Command::new("setpriv")
        .arg(format!("--reuid={uid}"))
        .arg(format!("--regid={gid}"))
        .arg("--clear-groups")
        .arg(program)
        .args(arguments)
        .env(ROLE, serde_json::to_string(role).expect("it is JSON"))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("setpriv runs");
    Player(child)
}

impl Player {
    /// Returns its process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends a flood, or waits for the end of reads, and returns what was got.
    pub fn finish<T: serde::de::DeserializeOwned>(mut self) -> T {
        drop(self.0.stdin.take());
        let mut said = String::new();
        let mut stdout = self.0.stdout.take().expect("it is piped");
        stdout.read_to_string(&mut said).expect("it is text");
        assert!(self.0.wait().expect("our child").success(), "{said}");
        let line = said.lines().find_map(|line| line.split_once(MARK));
        let (_, json) = line.unwrap_or_else(|| panic!("no result in {said:?}"));
        serde_json::from_str(json).unwrap_or_else(|e| panic!("{e} in {json:?}"))
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The result's line begins with this, among what a test harness prints.
const MARK: &str = "RESULT ";

/// Plays the role that the environment names, if any. Returns whether there was one.
pub fn play_role() -> bool {
    let Ok(role) = std::env::var(ROLE) else {
        return false;
    };
    let json = match serde_json::from_str(&role).expect("a role") {
        Role::Flood { socket, users } => serde_json::to_string(&flood(&socket, users)),
        Role::Read {
            socket,
            reads,
            every,
            reconnect,
        } => serde_json::to_string(&read(&socket, reads, every, reconnect)),
    };
    println!("\n{MARK}{}", json.expect("it is JSON"));
    true
}

fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

fn get(method: &str, path: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: freshd\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

fn token(user: usize) -> Vec<u8> {
    get(
        "GET",
        &format!("/v1/users/user-{user}/grants/acme/token?wait=0"),
    )
}

/// Reads one answer; `rest` keeps what came after it.
fn answer(stream: &mut UnixStream, rest: &mut Vec<u8>) -> std::io::Result<u16> {
    let mut buffer = [0; 16 << 10];
    loop {
        if let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&rest[..end]).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .and_then(|length| length.trim().parse().ok())
                .unwrap_or(0);
            if rest.len() >= end + 4 + length {
                let status = head.get(9..12).and_then(|status| status.parse().ok());
                rest.drain(..end + 4 + length);
                return Ok(status.unwrap_or(0));
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => rest.extend_from_slice(&buffer[..count]),
        }
    }
}

fn read(socket: &Path, reads: usize, every: Duration, reconnect: bool) -> Reads {
    let mut kept = None;
    let mut result = Reads {
        micros: Vec::with_capacity(reads),
        answers: Answers::new(),
    };
    for nth in 0..reads {
        let began = instant();
        let open = kept.take().map_or_else(|| connect(socket), Ok);
        let asked = open.and_then(|mut stream| {
            stream.write_all(&token(nth % 10))?;
            let status = answer(&mut stream, &mut Vec::new())?;
            Ok((stream, status))
        });
        let took = began.elapsed();
        result.micros.push(took.as_micros() as u64);
        let status = asked.as_ref().map_or(0, |(_, status)| *status);
        *result.answers.entry(status).or_default() += 1;
        kept = asked.ok().map(|(stream, _)| stream).filter(|_| !reconnect);
        rest_for(every.saturating_sub(took));
    }
    result.micros.sort_unstable();
    result
}

#[expect(
    clippy::disallowed_methods,
    reason = "the reader's own pace, in a process of its own; nothing waits for it"
)]
fn rest_for(length: Duration) {
    std::thread::sleep(length);
}

/// What the flood's threads share.
struct Flood {
    socket: PathBuf,
    users: usize,
    over: AtomicBool,
    answers: Mutex<Answers>,
}

impl Flood {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn note(&self, status: u16) {
        *self.answers.lock().unwrap().entry(status).or_default() += 1;
    }

    /// Asks on one connection after the other, `batch` requests before the first answer is read.
    fn ask(&self, batch: usize, request: &dyn Fn(usize) -> Vec<u8>) {
        let mut nth = 0;
        while self.goes_on() {
            let Ok(mut stream) = connect(&self.socket) else {
                continue;
            };
            let mut rest = Vec::new();
            while self.goes_on() {
                let requests: Vec<u8> = (nth..nth + batch).flat_map(request).collect();
                nth += batch;
                let sent = stream.write_all(&requests);
                let got = (0..batch).try_for_each(|_| {
                    answer(&mut stream, &mut rest).map(|status| self.note(status))
                });
                if sent.and(got).is_err() {
                    self.note(0);
                    break;
                }
            }
        }
    }

    /// Connects and hangs up, or sends a head that is too large first.
    fn storm(&self, head: &[u8]) {
        while self.goes_on() {
            let Ok(mut stream) = connect(&self.socket) else {
                continue;
            };
            if !head.is_empty() {
                let _ = stream.write_all(head);
                self.note(answer(&mut stream, &mut Vec::new()).unwrap_or(0));
            }
        }
    }
}

/// Floods in every way at once: the same token, ever other ones, what fails, many requests at once, heads too large,
/// connections that are opened and closed, and such as never ask.
fn flood(socket: &Path, users: usize) -> Answers {
    let flood = Arc::new(Flood {
        socket: socket.to_owned(),
        users,
        over: AtomicBool::new(false),
        answers: Mutex::default(),
    });
    let mut threads = Vec::new();
    let mut spawn = |count: usize, work: fn(&Flood, usize)| {
        for nth in 0..count {
            let flood = Arc::clone(&flood);
            threads.push(std::thread::spawn(move || work(&flood, nth)));
        }
    };
    spawn(48, |flood, _| flood.ask(1, &|_| token(0)));
    spawn(48, |flood, nth| {
        let users = flood.users.max(1);
        flood.ask(1, &|turn| token((nth * 7919 + turn * 104_729) % users));
    });
    spawn(8, |flood, _| flood.ask(50, &|_| token(0)));
    spawn(16, |flood, _| {
        flood.ask(1, &|turn| match turn % 5 {
            0 => get("GET", "/v1/users/nobody/grants/acme/token"),
            1 => get("GET", "/v1/nothing"),
            2 => get("DELETE", "/v1/users/user-0"),
            3 => get("GET", "/healthz"),
            _ => get("POST", "/v1/users/user-0/activity"),
        });
    });
    spawn(2, |flood, _| {
        let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(20 << 10));
        flood.storm(head.as_bytes());
    });
    spawn(2, |flood, _| flood.storm(b""));
    // Last, or the app's places would be full of these before anything was asked.
    spawn(1, |flood, _| {
        let mut half_open = Vec::new();
        while flood.goes_on() && half_open.len() < 400 {
            if let Ok(mut stream) = connect(&flood.socket) {
                let _ = stream.write_all(b"GET /v1/users/user-0/gra");
                half_open.push(stream);
            }
        }
        while flood.goes_on() {
            rest_for(Duration::from_millis(10));
        }
    });
    // Until who started us closes it.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    flood.over.store(true, Ordering::Relaxed);
    // Blocked ones end with the process.
    rest_for(Duration::from_millis(100));
    let answers = flood.answers.lock().unwrap();
    answers.clone()
}
