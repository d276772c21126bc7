//! Processes and directories that do not outlive the run, not even one that is interrupted.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::Error;

/// How the directories of a run are called, this one's or one's that is no more.
pub const SITE: &str = "run-";

/// No stop takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a signal has to end.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process that ends with this value.
pub struct Owned(pub Child);

impl Owned {
    pub fn spawn(command: &mut Command) -> Result<Owned, Error> {
        let mut running = running();
        let child = command.spawn()?;
        running.push(Pid::from_child(&child));
        Ok(Owned(child))
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(&mut self) -> Result<ExitStatus, Error> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        self.wait(PATIENCE)
    }

    fn reap(&mut self) -> Result<Option<ExitStatus>, Error> {
        let mut running = running();
        let status = self.0.try_wait()?;
        // Its number may be another's from then on.
        if status.is_some() {
            let pid = Pid::from_child(&self.0);
            running.retain(|running| *running != pid);
        }
        Ok(status)
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus, Error> {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.reap()? {
                return Ok(status);
            }
            if Instant::now() > until {
                return Err("a process did not end in time".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.0);
        running().retain(|running| *running != pid);
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The right to measure in a directory: one run at a time, since two would measure each other.
pub struct Turn(#[expect(dead_code, reason = "the lock goes with it")] File);

/// Takes the directory, and what a killed run has left there away. From now on a signal ends all that was started.
pub fn take(directory: &Path) -> Result<Turn, Error> {
    std::fs::create_dir_all(directory)?;
    let lock = File::create(directory.join("lock"))?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        let text = format!(
            "another run measures in {}: wait for its end",
            directory.display()
        );
        return Err(text.into());
    }
    remove(directory, SITE);
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let directory = directory.to_owned();
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // Held to the end: nothing is started any more.
            let running = running();
            running.iter().for_each(|pid| {
                let _ = kill_process(*pid, Signal::KILL);
            });
            remove(&directory, SITE);
            eprintln!("tests/bench: interrupted");
            std::process::exit(128 + signal);
        }
    });
    Ok(Turn(lock))
}

/// Removes directories whose names begin so, gigabytes each.
pub fn remove(directory: &Path, beginning: &str) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(beginning) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
