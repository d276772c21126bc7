//! The configuration: the files' shape, and the validated [`Config`] made from it.
//!
//! [`load()`] reads the files, lays profiles under providers, and checks every value and what values
//! must be to each other. It finds as many errors as it can in one go; each names its file, key, value
//! and rule, and none shows a secret.

mod app;
mod client_secret;
mod describe;
mod file;
mod load;
mod provider;
mod quota;
mod shape;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use url::Url;

use crate::profile::Provider;

pub use describe::{Description, describe};
pub use load::{check, load, look};
pub use quota::Quota;
pub use value::{name, next_of_cron, positive_duration};

/// A whole configuration that cannot hold nonsense. Made once by [`load()`]; there is no later check.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The files it was read from, in order.
    pub files: Vec<PathBuf>,
    /// `[daemon]`.
    pub daemon: Daemon,
    /// `refresh.max-in-flight`: requests in flight at once, over all providers.
    pub max_in_flight: usize,
    /// `[maintenance]`.
    pub maintenance: Maintenance,
    /// `[outbound]`.
    pub outbound: Outbound,
    /// `[provider.NAME]`, by name.
    pub providers: BTreeMap<String, Provider>,
    /// `[app.NAME]`, by name.
    pub apps: BTreeMap<String, App>,
}

/// `[daemon]`: where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// Holds the database, the keyring and the lock.
    pub state_dir: PathBuf,
    /// The shared socket.
    pub socket: PathBuf,
    /// The admin socket.
    pub admin_socket: PathBuf,
    /// The directory of the apps' own sockets, `/run/freshd/app` by default.
    pub app_socket_dir: PathBuf,
    /// The key file, used unless the systemd credential `freshd.key` is there.
    pub key_file: PathBuf,
    /// Whether a missing key may be made on the first run: without root, in the demo.
    pub make_key: bool,
    /// Size of the cache of ready answers, in bytes; 0 is off.
    pub cache_bytes: usize,
    /// `log-users`: how user names appear in logs.
    pub log_users: LogUsers,
    /// `log-level`: `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: String,
    /// `log-format`: where logs go, and how they look.
    pub log_format: LogFormat,
    /// `metrics-listen`: a loopback address at which `/metrics` is served too.
    pub metrics_listen: Option<SocketAddr>,
    /// How many days an unanswered revocation is tried.
    pub revocation_days: u32,
    /// `allow-export`: whether every admin may export secrets on the admin socket, and not root alone.
    pub allow_export: bool,
}

/// How user names appear in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogUsers {
    /// As they are.
    Plain,
    /// As a short keyed hash.
    Hash,
}

/// Where logs go, and how they look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// To journald with native fields where it reads our standard error, else as text.
    Auto,
    /// Text on standard error.
    Text,
    /// JSON on standard error, one object per line.
    Json,
}

impl LogFormat {
    /// Every format there is.
    pub const ALL: [LogFormat; 3] = [LogFormat::Auto, LogFormat::Text, LogFormat::Json];

    /// Returns the name the configuration uses.
    pub fn name(self) -> &'static str {
        match self {
            LogFormat::Auto => "auto",
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

/// `[maintenance]`: cron expressions in UTC, six fields (seconds first).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// The nightly backup; `None` is never.
    pub backup: Option<Backup>,
    /// When the query planner's statistics are renewed; `None` is never.
    pub optimize: Option<String>,
    /// When old activity notes, and revocations that waited too long, are purged; `None` is never.
    pub purge: Option<String>,
}

/// The nightly backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// When.
    pub cron: String,
    /// Where; made if it is not there.
    pub dir: PathBuf,
    /// How many copies stay.
    pub keep: usize,
}

/// `[outbound]`: how requests leave the host. Environment proxies are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbound {
    /// An HTTP proxy for every request.
    pub proxy: Option<Url>,
    /// PEM certificates trusted in addition to the system's.
    pub ca_bundle: Option<PathBuf>,
}

/// `[app.NAME]`: who may do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// Who the app is.
    pub peer: AppPeer,
    /// Its one namespace.
    pub namespace: String,
    /// The providers it may use; `None` means all (`["*"]`).
    pub providers: Option<Vec<String>>,
    /// What it may do.
    pub may: Verbs,
    /// Whether its reads keep users awake.
    pub counts_as_activity: bool,
    /// How much of freshd it gets.
    pub quota: Quota,
}

/// How an app is told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppPeer {
    /// By the uid at the other end of the shared socket (`unix-user` is resolved when loading).
    Uid(u32),
    /// By a primary or supplementary group of the peer.
    Gid(u32),
    /// By a socket of its own, at this path.
    Socket(PathBuf),
}

/// What an app may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verbs {
    /// Read tokens and state, refresh by generation, note activity.
    pub read: bool,
    /// Bring in grants.
    pub import: bool,
    /// Delete grants and revoke them at the provider.
    pub revoke: bool,
    /// Start logins.
    pub authorize: bool,
}

/// Where the configuration is looked for, and what is there by default.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// `freshd.toml`; `conf.d/*.toml` beside it is read too.
    pub file: PathBuf,
    /// Where systemd put the credentials that `{ credential = "NAME" }` names (`$CREDENTIALS_DIRECTORY`).
    pub credentials_dir: Option<PathBuf>,
    /// Defaults of `[daemon]`.
    pub daemon: Daemon,
}

/// Enough for the answers of about 8,000 grants with tokens of 1 KiB.
const CACHE_BYTES: usize = 16 << 20;
/// Longer than any outage of a provider that somebody would sit out.
const REVOCATION_DAYS: u32 = 30;

/// The configuration of root and of the system's service.
pub const SYSTEM_FILE: &str = "/etc/freshd/freshd.toml";

impl Defaults {
    /// The system's directories, for root and for systemd system services (`/etc`, `/var/lib`, `/run`).
    pub fn system(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let etc = Path::new(SYSTEM_FILE).parent().unwrap_or("/".as_ref());
        Defaults::at(
            env,
            etc,
            "/var/lib/freshd".into(),
            "/run/freshd".as_ref(),
            false,
        )
    }

    /// The XDG directories, for everybody else.
    ///
    /// `XDG_CONFIG_HOME`, `XDG_STATE_HOME` and `XDG_RUNTIME_DIR`; where one is unset or relative,
    /// `~/.config`, `~/.local/state` and a directory in the state directory. Without `HOME` all
    /// is relative to `/`, where nobody else may write.
    pub fn user(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let dir = |name: &str| {
            env(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let home = dir("HOME").unwrap_or_else(|| "/".into());
        let config = dir("XDG_CONFIG_HOME")
            .unwrap_or_else(|| home.join(".config"))
            .join("freshd");
        let state = dir("XDG_STATE_HOME")
            .unwrap_or_else(|| home.join(".local/state"))
            .join("freshd");
        let run = dir("XDG_RUNTIME_DIR")
            .map_or_else(|| state.join("run"), |runtime| runtime.join("freshd"));
        Defaults::at(env, &config, state, &run, true)
    }

    fn at(
        env: &dyn Fn(&str) -> Option<String>,
        config: &Path,
        state_dir: PathBuf,
        run: &Path,
        make_key: bool,
    ) -> Self {
        Defaults {
            file: config.join("freshd.toml"),
            credentials_dir: env("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            daemon: Daemon {
                state_dir,
                socket: run.join("shared/freshd.sock"),
                admin_socket: run.join("admin/freshd.sock"),
                app_socket_dir: run.join("app"),
                key_file: config.join("key"),
                make_key,
                cache_bytes: CACHE_BYTES,
                log_users: LogUsers::Plain,
                log_level: "info".into(),
                log_format: LogFormat::Auto,
                metrics_listen: None,
                revocation_days: REVOCATION_DAYS,
                allow_export: false,
            },
        }
    }
}

/// One thing wrong with the configuration: which file, which key, which value, which rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}{line}: {key} {message}", file = file.display(), line = line_suffix(*.line))]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1, where one is known.
    pub line: Option<usize>,
    /// The key, dotted: `provider.hubspot.margin`.
    pub key: String,
    /// The value and the rule, after which the sentence ends. Never a secret.
    pub message: String,
    /// Whether the configuration's own file is missing or closed to us, so that nothing is known of what it says.
    pub unopened: bool,
}

fn line_suffix(line: Option<usize>) -> String {
    line.map(|line| format!(":{line}")).unwrap_or_default()
}
