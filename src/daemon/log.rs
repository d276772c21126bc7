//! Logs: one line per thing an admin cares about; the message is the event's name, the rest are fields.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::audit;
use super::bursts::{Count, Kind};
use super::journal::{self, Journal};
use super::line::Text;
use super::outages::{self, Told};
use super::shared::{Shared, lock};
use crate::config::{LogFormat, LogUsers};
use crate::refresh::grant::GrantKey;
use crate::store::Store;

/// The target of audit lines, which are told at every level.
pub(super) const AUDIT: &str = "audit";

/// Sends logs where `format` says: to journald with native fields where systemd says that our stderr is its journal, or
/// to stderr. `level` is one of the configuration's. Does nothing if logs go somewhere already.
pub fn init(level: &str, format: LogFormat) {
    let registry = tracing_subscriber::registry().with(filter(level));
    let text = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let journal = match format {
        LogFormat::Auto => journal(),
        LogFormat::Text | LogFormat::Json => None,
    };
    // A second call, or a program that embeds us and logs already, is no error.
    let _ = match (format, journal) {
        (LogFormat::Json, _) => {
            let json = text.json().flatten_event(true);
            let json = json.with_current_span(false).with_span_list(false);
            registry.with(json).try_init()
        }
        (_, Some(journal)) => registry.with(journal).try_init(),
        (_, None) => registry.with(text.event_format(Text)).try_init(),
    };
}

/// Sends logs to a new file.
///
/// # Errors
///
/// Those of making the file.
pub fn to_file(path: &Path, level: &str) -> std::io::Result<()> {
    let file = std::fs::File::create(path)?;
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(Mutex::new(file))
        .with_ansi(false)
        .event_format(Text);
    let _ = tracing_subscriber::registry()
        .with(filter(level))
        .with(layer)
        .try_init();
    Ok(())
}

/// Ours at the configured level. Of the libraries only warnings: at debug and trace they may print what they send.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::new(format!("warn,freshd={level},{AUDIT}=info"))
}

/// The journal's layer, if stderr is its stream and journald is there.
fn journal() -> Option<Journal> {
    let stream = std::env::var("JOURNAL_STREAM").ok()?;
    let stderr = rustix::fs::fstat(std::io::stderr()).ok()?;
    if !is_stream(&stream, stderr.st_dev, stderr.st_ino) {
        return None;
    }
    Journal::at(Path::new(journal::SOCKET)).ok()
}

/// Whether `JOURNAL_STREAM` names this file (`sd_journal_stream_fd(3)`): the variable alone may be inherited.
fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream
        .split_once(':')
        .is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

/// So often at least it is looked whether counts are to be told: no burst and no outage has one sooner after it began.
const COUNTS_EVERY: Duration = Duration::from_secs(5);

/// Tells of outages, and of what the audit counts, until the daemon ends: what was not told in full.
pub(super) async fn tell_counts(shared: Arc<Shared>) {
    loop {
        let now = shared.clock.running();
        let next = [lock(&shared.bursts).next(), lock(&shared.outages).next()];
        let next = next.into_iter().flatten().min();
        let pause = next.map_or(COUNTS_EVERY, |at| at.saturating_sub(now));
        tokio::time::sleep(pause.min(COUNTS_EVERY)).await;
        audit::tell_repeats(&shared, false).await;
        let now = shared.clock.running();
        let counts = lock(&shared.bursts).due(now);
        counts.into_iter().for_each(tell_count);
        let lines = lock(&shared.outages).due(now);
        lines.into_iter().for_each(tell_outage);
    }
}

/// Tells the counts that wait for their time, at the end.
pub(super) fn tell_the_rest(shared: &Shared) {
    let now = shared.clock.running();
    let counts = lock(&shared.bursts).rest(now);
    counts.into_iter().for_each(tell_count);
    let lines = lock(&shared.outages).rest(now);
    lines.into_iter().for_each(tell_outage);
}

/// Whole seconds, as people write them.
fn rounded(after: Duration) -> String {
    format!("{:?}", Duration::from_secs(after.as_secs()))
}

fn tell_outage(line: outages::Line) {
    let (provider, after) = (line.provider, rounded(line.after));
    match line.told {
        Told::GoesOn(tally) => tracing::warn!(
            %provider, failures = tally.failures, grants = tally.grants,
            recovered = tally.recovered, codes = tally.codes(), after,
            hint = "tokens are served while they live; log-level = \"debug\" tells of each grant",
            "refresh-failing"
        ),
        Told::Over(tally) => tracing::info!(
            %provider, failures = tally.failures, grants = tally.grants,
            recovered = tally.recovered, codes = tally.codes(), after, "refresh-failing-over"
        ),
    }
}

fn tell_count(count: Count) {
    let Kind {
        event,
        provider,
        reason,
        by,
    } = count.kind;
    let (grants, after) = (count.grants, rounded(count.after));
    match event {
        "needs-authorization" => {
            let hint =
                "`freshctl grants --state needs-authorization` names them, and so do the events";
            tracing::warn!(provider, reason, grants, after, hint, "{event}");
        }
        "refresh-token-expiring" => {
            let hint = "the events name them, each with its time";
            tracing::warn!(provider, grants, after, hint, "{event}");
        }
        _ => tracing::info!(provider, reason, grants, after, by, "{event}"),
    }
}

/// How users are named in logs.
pub(super) struct Names {
    how: LogUsers,
    store: Store,
}

impl Names {
    pub(super) fn new(how: LogUsers, store: Store) -> Self {
        Names { how, store }
    }

    /// Returns the name for a grant's user: itself, or a short keyed hash that stays the same while the keyring does.
    pub(super) fn user(&self, key: &GrantKey) -> Shown {
        self.of(&key.namespace, &key.user)
    }

    /// Returns the name for a user of a namespace.
    pub(super) fn of(&self, namespace: &str, user: &str) -> Shown {
        match self.how {
            LogUsers::Plain => Shown(user.to_owned()),
            LogUsers::Hash => {
                let name = format!("{namespace}\n{user}");
                let digest = self.store.fingerprint("user", name.as_bytes());
                let hex = digest.iter().take(6).map(|byte| format!("{byte:02x}"));
                Shown(format!("u-{}", hex.collect::<String>()))
            }
        }
    }
}

/// A user's name as it may be logged.
#[derive(Debug)]
pub(super) struct Shown(String);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_file_that_systemd_names_is_its_journal() {
        assert!(is_stream("8:123456", 8, 123_456));
        for other in [
            "8:123457",
            "9:123456",
            "8",
            "",
            ":",
            "8:123456:1",
            "-8:123456",
        ] {
            assert!(!is_stream(other, 8, 123_456), "{other}");
        }
    }
}
