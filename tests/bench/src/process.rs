//! What a process costs, from `/proc`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::process::Child;
use std::time::Duration;

/// Processor time and memory of one process so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Processor time of all its threads, those that have ended included.
    pub cpu: Duration,
    /// Resident bytes now.
    pub resident: u64,
}

impl Cost {
    /// Reads what `child` has cost.
    pub fn of(child: &Child) -> Cost {
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        Cost::of_pid(&child.id().to_string(), nix::time::clock_getcpuclockid(pid))
    }

    /// Reads what this process has cost.
    pub fn of_ourselves() -> Cost {
        Cost::of_pid("self", Ok(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID))
    }

    /// Reads what this very thread has cost.
    pub fn of_this_thread() -> Duration {
        on_cpu(Ok(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID))
    }

    fn of_pid(pid: &str, clock: nix::Result<nix::time::ClockId>) -> Cost {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        Cost {
            cpu: on_cpu(clock),
            resident: field(&status, "VmRSS:") * 1024,
        }
    }

    /// Returns what was used since `before`; memory is as now.
    pub fn since(self, before: Cost) -> Cost {
        Cost {
            cpu: self.cpu.saturating_sub(before.cpu),
            resident: self.resident,
        }
    }
}

/// In nanoseconds, where `/proc` has hundredths of a second.
fn on_cpu(clock: nix::Result<nix::time::ClockId>) -> Duration {
    let time = clock.and_then(nix::time::ClockId::now);
    time.map_or(Duration::ZERO, Duration::from)
}

/// How often the threads of a process slept and were woken. A thread that ends takes its count with it, so they are
/// looked at again and again.
#[derive(Debug, Default)]
pub struct Wakeups(HashMap<OsString, u64>);

impl Wakeups {
    /// Returns how many there were up to now, the threads' that ended since the last look excluded.
    pub fn look(&mut self, child: &Child) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id()));
        for task in tasks.into_iter().flatten().flatten() {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let count = field(&status, "voluntary_ctxt_switches:");
            let known = self.0.entry(task.file_name()).or_default();
            *known = count.max(*known);
        }
        self.0.values().sum()
    }
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The load average of the last minute.
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().and_then(|text| text.parse().ok());
    first.unwrap_or(0.0)
}
