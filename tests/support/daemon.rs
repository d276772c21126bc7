//! The real binaries in a directory of their own.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use hyper::Method;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;

pub use super::config::{Config, our_uid, write_private};
use super::{Connection, Reply, eventually, within};

/// What `freshctl` said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A running daemon. Dropping it kills it and removes its directory; a failing test sees the log's end.
pub struct Freshd {
    pub config: Config,
    running: Running,
    log: watch::Sender<Vec<String>>,
    starts: usize,
}

/// One process.
struct Running {
    child: Child,
    /// Each time it says that it is ready: after a start, and after each reload (`sd_notify(3)`).
    ready: Mutex<mpsc::UnboundedReceiver<()>>,
    /// Ends when its stderr does.
    following: JoinHandle<()>,
}

impl Running {
    /// Waits until it has ended and all it wrote is in the log.
    async fn wait_exit(&mut self) -> ExitStatus {
        let status = within("freshd to end", self.child.wait())
            .await
            .expect("our child");
        // Whoever waits twice finds the log read already.
        if !self.following.is_finished() {
            let read = within("the end of freshd's log", &mut self.following).await;
            read.expect("following a log does not panic");
        }
        status
    }

    async fn wait_until_ready(&mut self) {
        tokio::select! {
            () = within("freshd to be ready", told_ready(&self.ready)) => return,
            _ = self.child.wait() => {}
        }
        let status = self.wait_exit().await;
        panic!("freshd ended before it was ready: {status}");
    }
}

impl Freshd {
    /// Makes a key, starts the daemon and waits until it says that it is ready.
    pub async fn start(config: Config) -> Freshd {
        let key = config.key_file();
        if !key.exists() {
            let made = freshctl(&["key", "generate", key.to_str().expect("ASCII")], "").await;
            assert_eq!(made.code, Some(0), "no key: {}", made.stderr);
        }
        config.write();
        let log = watch::Sender::new(Vec::new());
        let running = spawn(&config, &log, 0, &[]);
        let mut freshd = Freshd {
            config,
            running,
            log,
            starts: 1,
        };
        freshd.running.wait_until_ready().await;
        freshd
    }

    /// Starts the daemon again on the same directory, after it has ended.
    pub async fn start_again(&mut self) {
        self.spawn_again(&[]);
        self.running.wait_until_ready().await;
    }

    /// Starts the daemon again as the last words of another command, which must become the daemon by
    /// `exec(2)`. Returns whether it was ready before it ended.
    pub async fn start_again_under(&mut self, command: &[String]) -> bool {
        self.spawn_again(command);
        let running = &mut self.running;
        tokio::select! {
            () = within("freshd to be ready or to end", told_ready(&running.ready)) => true,
            _ = running.child.wait() => false,
        }
    }

    fn spawn_again(&mut self, command: &[String]) {
        self.config.write();
        self.running = spawn(&self.config, &self.log, self.starts, command);
        self.starts += 1;
    }

    /// SIGTERM, a clean end, and a new start on the same directory.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start_again().await;
    }

    /// SIGTERM, and waits for a clean end.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait_exit().await;
        assert!(status.success(), "freshd ended with {status}");
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait_exit().await;
    }

    /// Returns the process id.
    pub fn pid(&self) -> Pid {
        let id = self.running.child.id().expect("freshd runs");
        Pid::from_raw(i32::try_from(id).expect("a pid")).expect("not 0")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.pid();
        rustix::process::kill_process(pid, signal).expect("freshd is our child");
    }

    /// Whether the daemon has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.running.child.try_wait(), Ok(None))
    }

    /// Waits until the daemon has ended.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        self.running.wait_exit().await
    }

    /// Waits for SIGTERM to be noticed.
    pub async fn wait_until_draining(&self) {
        eventually("freshd to drain", || async {
            (self.status().await["state"] == "draining").then_some(())
        })
        .await;
    }

    /// Starts one more daemon with the same configuration, for the case that it must refuse to run.
    pub async fn run_another(&self) -> (Option<i32>, String) {
        let log = watch::Sender::new(Vec::new());
        let status = spawn(&self.config, &log, usize::MAX, &[]).wait_exit().await;
        (status.code(), log.borrow().join("\n"))
    }

    /// Writes the configuration, sends SIGHUP, and waits for the verdict: `Err` says why it was refused.
    pub async fn reload(&self) -> Result<(), String> {
        self.config.write();
        self.signal(Signal::HUP);
        within("the reload", told_ready(&self.running.ready)).await;
        match &self.status().await["reload_error"] {
            Value::Null => Ok(()),
            error => Err(error.as_str().expect("it is text").to_owned()),
        }
    }

    /// Returns what the daemon and its predecessors wrote to stderr.
    pub fn logs(&self) -> String {
        self.log.borrow().join("\n")
    }

    /// Waits for a line that contains `text`, and returns it.
    pub async fn wait_for_log(&self, text: &str) -> String {
        let find = |lines: &Vec<String>| lines.iter().find(|line| line.contains(text)).cloned();
        let mut log = self.log.subscribe();
        let there = log.wait_for(|lines| find(lines).is_some());
        let what = format!("{text:?} in the log");
        let lines = within(&what, there)
            .await
            .expect("freshd's log is held here");
        find(&lines).expect("it was there just now")
    }

    /// Sends one request to the shared socket.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Reply {
        Connection::open(&self.config.socket())
            .await
            .send(method, path, body)
            .await
    }

    /// `GET` at the shared socket.
    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None).await
    }

    /// `PUT` at the shared socket.
    pub async fn put(&self, path: &str, body: &Value) -> Reply {
        self.send(Method::PUT, path, Some(body)).await
    }

    /// `POST` at the shared socket.
    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(Method::POST, path, Some(body)).await
    }

    /// `DELETE` at the shared socket.
    pub async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, None).await
    }

    /// Sends one request to the admin socket.
    pub async fn admin(&self, method: Method, path: &str) -> Reply {
        Connection::open(&self.config.admin_socket())
            .await
            .send(method, path, None)
            .await
    }

    /// Returns the socket of an app that has its own.
    pub fn app_socket(&self, name: &str) -> PathBuf {
        self.config.path().join(name).join("freshd.sock")
    }

    /// Reads a token as an app does.
    pub async fn token(&self, user: &str, provider: &str) -> Reply {
        self.get(&token_path(user, provider, "")).await
    }

    /// Reads a token with a query, such as `wait=1&activity=false`.
    pub async fn token_with(&self, user: &str, provider: &str, query: &str) -> Reply {
        self.get(&token_path(user, provider, query)).await
    }

    /// Imports what an app already has, and panics unless it is taken.
    pub async fn import(&self, user: &str, provider: &str, body: &Value) -> Reply {
        let reply = self.put(&grant_path(user, provider), body).await;
        assert!(
            matches!(reply.status, 200 | 201),
            "not imported: {} {}",
            reply.status,
            reply.text
        );
        reply
    }

    /// Returns a grant's state, as the admin sees it. Keeps nobody awake.
    pub async fn grant(&self, user: &str, provider: &str) -> Value {
        let reply = self.admin(Method::GET, &grant_path(user, provider)).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json
    }

    /// Waits until a grant has this state, and returns it.
    pub async fn wait_for_state(&self, user: &str, provider: &str, state: &str) -> Value {
        eventually(&format!("{user} at {provider} to be {state}"), || async {
            let grant = self.grant(user, provider).await;
            (grant["state"] == state).then_some(grant)
        })
        .await
    }

    /// Waits until a grant has at least this generation, and returns it.
    pub async fn wait_for_generation(&self, user: &str, provider: &str, generation: u64) -> Value {
        eventually(
            &format!("generation {generation} of {user} at {provider}"),
            || async {
                let grant = self.grant(user, provider).await;
                (grant["generation"].as_u64() >= Some(generation)).then_some(grant)
            },
        )
        .await
    }

    /// Returns `/v1/status`.
    pub async fn status(&self) -> Value {
        let reply = self.admin(Method::GET, "/v1/status").await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json
    }

    /// Waits until a provider has this state, and returns its part of the status.
    pub async fn wait_for_provider(&self, name: &str, state: &str) -> Value {
        eventually(&format!("provider {name} to be {state}"), || async {
            let status = self.status().await;
            let providers = status["providers"]
                .as_array()
                .expect("status lists providers");
            let provider = providers
                .iter()
                .find(|p| p["name"] == name)
                .expect("it is there");
            (provider["state"] == state).then(|| provider.clone())
        })
        .await
    }

    /// Runs `freshctl` against this daemon.
    pub async fn freshctl(&self, args: &[&str], stdin: &str) -> Said {
        let file = self.config.file();
        let mut all = vec!["--config", file.to_str().expect("ASCII")];
        all.extend(args);
        freshctl(&all, stdin).await
    }
}

impl Drop for Freshd {
    fn drop(&mut self) {
        // The child is killed by its own handle (`kill_on_drop`), the directory goes with `config`.
        if std::thread::panicking() {
            let log = self.log.borrow();
            let tail = &log[log.len().saturating_sub(60)..];
            eprintln!("--- the end of freshd's log ---\n{}\n---", tail.join("\n"));
        }
    }
}

/// Returns `/v1/users/USER/grants/PROVIDER`.
pub fn grant_path(user: &str, provider: &str) -> String {
    format!("/v1/users/{user}/grants/{provider}")
}

/// Returns the token route of a grant, with a query unless it is empty.
pub fn token_path(user: &str, provider: &str, query: &str) -> String {
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{}/token{mark}{query}", grant_path(user, provider))
}

/// Runs `freshctl` to its end.
pub async fn freshctl(args: &[&str], stdin: &str) -> Said {
    let mut child = clean_command(env!("CARGO_BIN_EXE_freshctl"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("freshctl was built");
    let mut input = child.stdin.take().expect("it is piped");
    // A command that does not read its input closes it, which is its right.
    let _ = input.write_all(stdin.as_bytes()).await;
    drop(input);
    let output = within("freshctl to end", child.wait_with_output())
        .await
        .expect("our child");
    Said {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `freshctl` until what this returns is dropped, which reads its standard output.
pub fn freshctl_lines(args: &[&str]) -> FreshctlLines {
    let mut child = clean_command(env!("CARGO_BIN_EXE_freshctl"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("freshctl was built");
    let stdout = child.stdout.take().expect("it is piped");
    FreshctlLines {
        lines: BufReader::new(stdout).lines(),
        _child: child,
    }
}

/// A running `freshctl`.
pub struct FreshctlLines {
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    _child: Child,
}

impl FreshctlLines {
    /// Returns the next line, `None` at the end. A wait that is given up loses none.
    pub async fn next_line(&mut self) -> std::io::Result<Option<String>> {
        self.lines.next_line().await
    }
}

/// Nothing of the tester's environment reaches the binaries, proxies and systemd's variables least of all.
fn clean_command(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.kill_on_drop(true);
    command
}

/// Waits for the word that comes after a start and after each reload.
async fn told_ready(ready: &Mutex<mpsc::UnboundedReceiver<()>>) {
    ready
        .lock()
        .await
        .recv()
        .await
        .expect("who listens outlives the daemon");
}

/// Reads all that a daemon tells systemd: one that nobody listens to would wait for room in the socket.
async fn listen(notify: UnixDatagram, ready: mpsc::UnboundedSender<()>) {
    let mut datagram = [0; 4096];
    loop {
        let length = notify
            .recv(&mut datagram)
            .await
            .expect("the socket is ours");
        let text = String::from_utf8_lossy(&datagram[..length]);
        if text.lines().any(|line| line == "READY=1") && ready.send(()).is_err() {
            return;
        }
    }
}

fn spawn(
    config: &Config,
    log: &watch::Sender<Vec<String>>,
    start: usize,
    under: &[String],
) -> Running {
    // A socket for each start: a late word of the last daemon can't be taken for this one's.
    let notify = config.path().join(format!("notify-{start}"));
    let _ = std::fs::remove_file(&notify);
    let socket = UnixDatagram::bind(&notify).expect("the directory is ours");
    // Under another command it may be another user.
    let all = Permissions::from_mode(0o666);
    std::fs::set_permissions(&notify, all).expect("the socket is ours");
    let freshd = env!("CARGO_BIN_EXE_freshd");
    let program = under.first().map_or(freshd, String::as_str);
    let mut command = clean_command(program);
    if let Some((_, arguments)) = under.split_first() {
        command.args(arguments).arg(freshd);
    }
    let mut child = command
        .arg("--config")
        .arg(config.file())
        .env("NOTIFY_SOCKET", &notify)
        .env("RUST_BACKTRACE", "1")
        .envs(&config.environment)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("freshd was built");
    let stderr = child.stderr.take().expect("it is piped");
    let following = tokio::spawn(follow(stderr, log.clone()));
    let (sender, ready) = mpsc::unbounded_channel();
    tokio::spawn(listen(socket, sender));
    Running {
        child,
        ready: Mutex::new(ready),
        following,
    }
}

async fn follow(stderr: tokio::process::ChildStderr, log: watch::Sender<Vec<String>>) {
    let mut lines = BufReader::new(stderr).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).into_owned();
        log.send_modify(|lines| lines.push(line));
    }
}
