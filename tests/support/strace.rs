//! The daemon under `strace`, which kills it at a system call of the test's choice, or makes the call fail.
//!
//! `strace -D` lets the daemon stay our own child. The tracer is there before the daemon makes itself
//! undumpable, so it needs no root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::eventually;

/// One tampering, and where strace writes what it saw.
pub struct Strace {
    syscall: String,
    tampering: String,
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
            output: directory.join("strace"),
        }
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
