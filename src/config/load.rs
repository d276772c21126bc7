//! From sections to a validated [`Config`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use url::Url;

use super::file::{Files, show};
use super::shape::{DaemonShape, MaintenanceShape, OutboundShape, RefreshShape};
use super::value::{self, Rule};
use super::{AppPeer, Config, ConfigError, Daemon, Defaults, LogUsers, Maintenance, Outbound};
use super::{app, provider};

/// Requests at once over all providers: well under the 1024 open files that are a common limit.
const MAX_IN_FLIGHT: usize = 256;
/// At night in Europe; five fields would be minutes.
const OPTIMIZE: &str = "0 30 3 * * *";
/// After `OPTIMIZE`, so that the two don't compete for the writer.
const PURGE: &str = "0 0 4 * * *";
const LOG_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Reads and validates the configuration: `file`, and `conf.d/*.toml` beside it.
///
/// # Errors
/// All that is wrong, as far as it can be found in one go, ordered by file and line. Nothing is used then.
pub fn load(file: &Path, defaults: &Defaults) -> Result<Config, Vec<ConfigError>> {
    let mut files = Files::read(file);
    let daemon = daemon(&mut files, &defaults.daemon);
    let refresh: RefreshShape = files.section("refresh");
    let max_in_flight = count(
        &mut files,
        "refresh.max-in-flight",
        refresh.max_in_flight,
        1,
        MAX_IN_FLIGHT,
    );
    let base = provider::Base::new(&mut files, refresh);
    let maintenance = maintenance(&mut files);
    let outbound = outbound(&mut files);

    let mut providers = BTreeMap::new();
    let provider_names = files.names("provider");
    for name in &provider_names {
        let credentials = defaults.credentials_dir.as_deref();
        if let Some(provider) = provider::provider(&mut files, name, &base, credentials) {
            providers.insert(name.clone(), provider);
        }
    }
    let mut apps = BTreeMap::new();
    for name in files.names("app") {
        if let Some(app) = app::app(&mut files, &name, &daemon.app_socket_dir, &provider_names) {
            apps.insert(name, app);
        }
    }
    check_peers(&mut files, &daemon, &apps);

    let files = files.finish()?;
    Ok(Config {
        files,
        daemon,
        max_in_flight,
        maintenance,
        outbound,
        providers,
        apps,
    })
}

fn daemon(files: &mut Files, defaults: &Daemon) -> Daemon {
    let shape: DaemonShape = files.section("daemon");
    let mut path = |key: &str, text: Option<String>, default: &Path| {
        path(files, &format!("daemon.{key}"), text).unwrap_or_else(|| default.to_owned())
    };
    let state_dir = path("state-dir", shape.state_dir, &defaults.state_dir);
    let socket = path("socket", shape.socket, &defaults.socket);
    let admin_socket = path("admin-socket", shape.admin_socket, &defaults.admin_socket);
    let app_socket_dir = path(
        "app-socket-dir",
        shape.app_socket_dir,
        &defaults.app_socket_dir,
    );
    let key_file = path("key-file", shape.key_file, &defaults.key_file);
    let cache = shape
        .cache
        .and_then(|text| files.parse("daemon.cache", &text, value::size));
    let log_users = shape.log_users.and_then(|text| {
        files.parse("daemon.log-users", &text, |text| match text {
            "plain" => Ok(LogUsers::Plain),
            "hash" => Ok(LogUsers::Hash),
            _ => Err("must be \"plain\" or \"hash\"".into()),
        })
    });
    let log_level = shape.log_level.and_then(|text| {
        files.parse("daemon.log-level", &text, |text| {
            if LOG_LEVELS.contains(&text) {
                Ok(text.to_owned())
            } else {
                Err(format!("must be one of {}", LOG_LEVELS.join(", ")))
            }
        })
    });
    let days = shape.revocation_days;
    let default_days = defaults.revocation_days as usize;
    Daemon {
        state_dir,
        socket,
        admin_socket,
        app_socket_dir,
        key_file,
        make_key: defaults.make_key,
        cache_bytes: cache.unwrap_or(defaults.cache_bytes),
        log_users: log_users.unwrap_or(defaults.log_users),
        log_level: log_level.unwrap_or_else(|| defaults.log_level.clone()),
        revocation_days: count(files, "daemon.revocation-days", days, 1, default_days) as u32,
    }
}

fn maintenance(files: &mut Files) -> Maintenance {
    let shape: MaintenanceShape = files.section("maintenance");
    let mut cron = |key: &str, text: Option<String>, default: &str| {
        let text = text.unwrap_or_else(|| default.into());
        if text == "off" {
            return None;
        }
        files
            .parse(&format!("maintenance.{key}"), &text, value::cron)
            .map(|()| text)
    };
    Maintenance {
        optimize: cron("optimize", shape.optimize, OPTIMIZE),
        purge: cron("purge", shape.purge, PURGE),
    }
}

fn outbound(files: &mut Files) -> Outbound {
    let shape: OutboundShape = files.section("outbound");
    let proxy = shape.proxy.and_then(|text| match proxy(&text) {
        Ok(url) => Some(url),
        // The value may hold a password, so it is not shown.
        Err(rule) => {
            files.fail("outbound.proxy", rule);
            None
        }
    });
    Outbound {
        proxy,
        ca_bundle: path(files, "outbound.ca-bundle", shape.ca_bundle),
    }
}

fn proxy(text: &str) -> Result<Url, Rule> {
    const RULE: &str = "must be an http or https URL of a host and a port, \
        without user name, password, path or query";
    let url = Url::parse(text).map_err(|_| RULE)?;
    let plain = url.username().is_empty()
        && url.password().is_none()
        && matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none();
    if plain && matches!(url.scheme(), "http" | "https") && url.has_host() {
        Ok(url)
    } else {
        Err(RULE.into())
    }
}

/// Reads an absolute path.
pub(super) fn path(files: &mut Files, key: &str, text: Option<String>) -> Option<PathBuf> {
    files.parse(key, &text?, |text| {
        if Path::new(text).is_absolute() && !text.contains('\0') {
            Ok(PathBuf::from(text))
        } else {
            Err("must be an absolute path".into())
        }
    })
}

/// Reads a number from `least` to a million.
pub(super) fn count(
    files: &mut Files,
    key: &str,
    number: Option<i64>,
    least: usize,
    default: usize,
) -> usize {
    const MOST: usize = 1_000_000;
    let Some(number) = number else { return default };
    match usize::try_from(number) {
        Ok(number) if (least..=MOST).contains(&number) => number,
        _ => {
            files.fail(
                key,
                format!("is {number} but must be from {least} to {MOST}"),
            );
            default
        }
    }
}

/// Checks that no two apps are the same peer and no two sockets the same path: who is who must not be in doubt (I7).
fn check_peers(files: &mut Files, daemon: &Daemon, apps: &BTreeMap<String, super::App>) {
    let mut peers: BTreeMap<(&str, u32), &str> = BTreeMap::new();
    let mut sockets: BTreeMap<PathBuf, String> =
        BTreeMap::from([(daemon.socket.clone(), "daemon.socket".to_owned())]);
    let admin = "daemon.admin-socket".to_owned();
    let at_paths = std::iter::once((admin, &daemon.admin_socket)).chain(apps.iter().filter_map(
        |(name, app)| match &app.peer {
            AppPeer::Socket(path) => Some((format!("app.{name}.socket"), path)),
            _ => None,
        },
    ));
    for (key, path) in at_paths {
        if let Some(other) = sockets.insert(path.clone(), key.clone()) {
            let path = show(&path.to_string_lossy());
            files.fail(
                &key,
                format!("is {path} but {other} is there; each socket needs its own path"),
            );
        }
    }
    for (name, app) in apps {
        let peer = match app.peer {
            AppPeer::Uid(uid) => ("uid", uid),
            AppPeer::Gid(gid) => ("gid", gid),
            AppPeer::Socket(_) => continue,
        };
        if let Some(other) = peers.insert(peer, name) {
            let (kind, id) = peer;
            files.fail(
                &format!("app.{name}"),
                format!(
                    "has {kind} {id} but app.{other} has it too; give one of them socket = true"
                ),
            );
        }
    }
}
