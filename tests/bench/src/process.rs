//! What a process costs, from `/proc`.

use std::process::Child;
use std::time::Duration;

/// Processor time, wake-ups and memory of one process so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Processor time of all its threads, those that have ended excluded.
    pub cpu: Duration,
    /// How often a thread of it slept and was woken.
    pub wakeups: u64,
    /// Resident bytes now.
    pub resident: u64,
}

impl Cost {
    /// Reads what `child` has cost.
    pub fn of(child: &Child) -> Cost {
        Cost::of_pid(&child.id().to_string())
    }

    /// Reads what this process has cost.
    pub fn of_ourselves() -> Cost {
        Cost::of_pid("self")
    }

    /// Reads what this very thread has cost.
    pub fn of_this_thread() -> Duration {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        on_cpu(&stat)
    }

    fn of_pid(pid: &str) -> Cost {
        let mut cost = Cost::default();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file));
            cost.cpu += on_cpu(&read("schedstat").unwrap_or_default());
            let status = read("status").unwrap_or_default();
            cost.wakeups += field(&status, "voluntary_ctxt_switches:");
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        cost.resident = field(&status, "VmRSS:") * 1024;
        cost
    }

    /// Returns what was used since `before`; memory is as now.
    pub fn since(self, before: Cost) -> Cost {
        Cost {
            cpu: self.cpu.saturating_sub(before.cpu),
            wakeups: self.wakeups.saturating_sub(before.wakeups),
            resident: self.resident,
        }
    }
}

/// The first number of `schedstat`: nanoseconds on a processor, which `stat` counts in hundredths of a second only.
fn on_cpu(schedstat: &str) -> Duration {
    let nanos = schedstat
        .split(' ')
        .next()
        .and_then(|text| text.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
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
