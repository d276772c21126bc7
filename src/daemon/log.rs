//! Logs: one line per thing an admin cares about; the message is the event's name, the rest are fields.

use std::fmt;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogUsers;
use crate::refresh::grant::GrantKey;
use crate::store::Store;

/// Sends logs to journald with native fields where systemd says that our stderr is its journal, else to
/// stderr. `level` is one of the configuration's. Does nothing if logs go somewhere already.
pub fn init(level: &str) {
    let registry = tracing_subscriber::registry().with(filter(level));
    // A second call, or a program that embeds us and logs already, is no error.
    let _ = match journald() {
        Some(journald) => registry.with(journald).try_init(),
        None => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(false)
                    .with_target(false),
            )
            .try_init(),
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
        .with_target(false);
    let _ = tracing_subscriber::registry()
        .with(filter(level))
        .with(layer)
        .try_init();
    Ok(())
}

/// Ours at the configured level. Of the libraries only warnings: at debug and trace they may print what they send.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::new(format!("warn,freshd={level}"))
}

/// The journal's layer, if `JOURNAL_STREAM` names the file that stderr is (`sd_journal_stream_fd(3)`).
fn journald() -> Option<tracing_journald::Layer> {
    let stream = std::env::var("JOURNAL_STREAM").ok()?;
    let (device, inode) = stream.split_once(':')?;
    let stderr = rustix::fs::fstat(std::io::stderr()).ok()?;
    let ours = stderr.st_dev == device.parse::<u64>().ok()?
        && stderr.st_ino == inode.parse::<u64>().ok()?;
    if !ours {
        return None;
    }
    Some(
        tracing_journald::layer()
            .ok()?
            .with_field_prefix(Some("FRESHD".to_owned())),
    )
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
        match self.how {
            LogUsers::Plain => Shown(key.user.clone()),
            LogUsers::Hash => {
                let name = format!("{}\n{}", key.namespace, key.user);
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
