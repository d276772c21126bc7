//! The daemon under `strace`, which kills it at a system call of the test's choice, or makes the call fail.
//!
//! `strace -D` lets the daemon stay our own child. The tracer is there before the daemon makes itself
//! undumpable, so it needs no root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{eventually, within};

/// One tampering, and where strace writes what it saw.
pub struct Strace {
    syscall: String,
    tampering: String,
    /// Only calls that concern these; all, if there are none.
    paths: Vec<PathBuf>,
    output: PathBuf,
}

/// The call at which the daemon was killed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    pub syscall: String,
    /// What it was about: `database`, `log`, `socket` …
    pub file: String,
}

impl Strace {
    /// SIGKILL at the entry of a thread's `n`th call (1 is the first), which is not made any more.
    pub fn kill_at(directory: &Path, syscall: &str, n: usize) -> Strace {
        Strace::new(directory, syscall, format!("signal=KILL:when={n}"))
    }

    /// The calls that `when` names fail with `errno` (`strace(1)`: `3` is a thread's third, `3+` that and all after).
    pub fn fail_at(directory: &Path, syscall: &str, errno: &str, when: &str) -> Strace {
        Strace::new(directory, syscall, format!("error={errno}:when={when}"))
    }

    fn new(directory: &Path, syscall: &str, tampering: String) -> Strace {
        Strace {
            syscall: syscall.to_owned(),
            tampering,
            paths: Vec::new(),
            output: directory.join("strace"),
        }
    }

    /// Leaves calls alone, and does not count them, that concern none of these files.
    pub fn on(mut self, paths: &[PathBuf]) -> Strace {
        self.paths = paths.to_vec();
        self
    }

    /// Returns the command that ends with the daemon.
    ///
    /// One runtime thread does all the network's work: calls count by thread.
    pub fn command(&self) -> Vec<String> {
        // A late tracer of the last life may still write into its own.
        let _ = std::fs::remove_file(&self.output);
        let output = self.output.to_str().expect("ASCII");
        let (trace, inject) = (
            format!("trace={}", self.syscall),
            format!("inject={}:{}", self.syscall, self.tampering),
        );
        ["strace", "-D", "-f", "-q", "-yy", "-s", "0"]
            .into_iter()
            .chain(["-E", "TOKIO_WORKER_THREADS=1", "-o", output])
            .chain(["-e", &trace, "-e", &inject])
            .chain(self.paths.iter().flat_map(|path| {
                let path = path.to_str().expect("ASCII");
                ["-P", path]
            }))
            .map(str::to_owned)
            .collect()
    }

    /// Returns how often strace tampered with a call. Not for kills.
    pub fn tampered(&self) -> usize {
        let text = std::fs::read_to_string(&self.output).unwrap_or_default();
        text.matches("(INJECTED)").count()
    }

    /// Waits until the tracer has written all it saw of a killed daemon, and returns the call that it was
    /// killed at: the `n`th of some thread.
    pub async fn hit(&self, n: usize) -> Hit {
        let file = eventually("the tracer's last words", || async {
            let text = std::fs::read_to_string(&self.output).ok()?;
            let calls = calls(&text, &self.syscall);
            let ended = |thread: &str| {
                text.lines().any(|line| {
                    line.strip_prefix(thread)
                        .is_some_and(|rest| rest.trim_start().starts_with("+++ "))
                })
            };
            let found = calls.values().find_map(|calls| calls.get(n - 1))?;
            calls
                .keys()
                .all(|thread| ended(thread))
                .then(|| about(found))
        })
        .await;
        Hit {
            syscall: self.syscall.clone(),
            file,
        }
    }
}

/// Calls of a running daemon that fail from now on.
pub struct Failing(tokio::process::Child);

impl Failing {
    /// Makes every such call of `process` fail with `errno`. `None`, and a word about it, without root:
    /// the daemon lets nobody else trace it.
    pub async fn all(process: Pid, syscalls: &str, errno: &str) -> Option<Failing> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED, NOT TESTED: tracing a running daemon needs root");
            return None;
        }
        let pid = process.as_raw_nonzero().to_string();
        let inject = format!("inject={syscalls}:error={errno}");
        let mut child = tokio::process::Command::new("strace")
            .args([
                "-f",
                "-s",
                "0",
                "-o",
                "/dev/null",
                "-e",
                &inject,
                "-p",
                &pid,
            ])
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("strace is installed (tests/run does it)");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let first = within("strace to attach", lines.next_line()).await;
        let first = first.expect("its stderr is ours").unwrap_or_default();
        assert!(first.contains("attached"), "{first}");
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Some(Failing(child))
    }

    /// Lets them succeed again.
    pub async fn mend(mut self) {
        let id = self.0.id().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(id).expect("a pid")).expect("not 0");
        rustix::process::kill_process(pid, Signal::INT).expect("it is ours");
        within("strace to detach", self.0.wait())
            .await
            .expect("it is ours");
    }
}

/// Returns each thread's calls, in order, by what follows their opening parenthesis.
fn calls<'a>(text: &'a str, syscall: &str) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut calls: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let rest = call.trim_start().strip_prefix(syscall);
        if let Some(arguments) = rest.and_then(|rest| rest.strip_prefix('(')) {
            calls.entry(thread).or_default().push(arguments);
        }
    }
    calls
}

/// Tells from a call's arguments, such as `7</tmp/state/freshd.db-wal>, …`, what it is about.
fn about(arguments: &str) -> String {
    let known = [
        ("freshd.db-wal", "log"),
        ("freshd.db-shm", "index"),
        ("freshd.db", "database"),
        ("/state/keyring.new", "new keyring"),
        ("/state/keyring", "keyring"),
        ("/state>", "state directory"),
        ("<TCP", "network"),
        ("sa_family=AF_INET", "network"),
        ("<UNIX", "socket"),
        (".sock", "socket"),
        ("eventfd", "wake-up"),
        ("<pipe:", "stderr"),
    ];
    let first = arguments.split("], ").next().unwrap_or_default();
    let found = known.iter().find(|(mark, _)| first.contains(mark));
    found.map_or(first, |(_, name)| name).to_owned()
}
