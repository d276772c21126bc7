//! From sections to a validated [`Config`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use url::Url;

use super::client_secret::Credentials;
use super::file::{Files, show, show_url};
use super::shape::{DaemonShape, MaintenanceShape, OutboundShape, QuotaShape, RefreshShape};
use super::value;
use super::{
    App, AppPeer, Backup, Config, ConfigError, Daemon, Defaults, Description, LogFormat, LogUsers,
    Maintenance, Outbound, describe,
};
use super::{Quota, app, provider, quota};

/// Requests at once over all providers: well under the 1024 open files that are a common limit.
const MAX_IN_FLIGHT: usize = 256;
/// Before the other jobs, which change what is copied.
const BACKUP: &str = "0 0 3 * * *";
/// A week: a mistake is noticed after a weekend.
const KEEP: usize = 7;
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
    let credentials = match &defaults.credentials_dir {
        Some(dir) => Credentials::In(dir.clone()),
        None => Credentials::Nowhere,
    };
    read(file, defaults, &mut { credentials })
}

/// Does what [`load`] does, but for an admin's shell, where systemd has put no credentials: these are taken to
/// be there, and listed. Says what was understood.
///
/// # Errors
/// As [`load`].
pub fn check(file: &Path, defaults: &Defaults) -> Result<Description, Vec<ConfigError>> {
    described(file, defaults, None).map(|(described, _)| described)
}

/// Does what [`check`] does, for somebody who may not read every secret: says also which secret files are closed to
/// us, and takes these to be sound.
///
/// # Errors
/// As [`load`].
pub fn look(
    file: &Path,
    defaults: &Defaults,
) -> Result<(Description, Vec<String>), Vec<ConfigError>> {
    described(file, defaults, Some(Vec::new()))
}

fn described(
    file: &Path,
    defaults: &Defaults,
    closed: Option<Vec<String>>,
) -> Result<(Description, Vec<String>), Vec<ConfigError>> {
    let names = Vec::new();
    let mut credentials = match &defaults.credentials_dir {
        Some(dir) => Credentials::In(dir.clone()),
        None => Credentials::Elsewhere { names, closed },
    };
    let config = read(file, defaults, &mut credentials)?;
    let (unread_credentials, closed) = match credentials {
        Credentials::Elsewhere { names, closed } => (names, closed.unwrap_or_default()),
        _ => Default::default(),
    };
    let described = Description {
        unread_credentials,
        ..describe(&config)
    };
    Ok((described, closed))
}

fn read(
    file: &Path,
    defaults: &Defaults,
    credentials: &mut Credentials,
) -> Result<Config, Vec<ConfigError>> {
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

    let limits: QuotaShape = files.section("limits");
    let limits = quota::quota(&mut files, "limits", &limits, Quota::USUAL);

    let mut providers = BTreeMap::new();
    let provider_names = files.names("provider");
    for name in &provider_names {
        if let Some(provider) = provider::provider(&mut files, name, &base, credentials) {
            providers.insert(name.clone(), provider);
        }
    }
    let mut apps = BTreeMap::new();
    for name in files.names("app") {
        if let Some(app) = app::app(
            &mut files,
            &name,
            limits,
            &daemon.app_socket_dir,
            &provider_names,
        ) {
            apps.insert(name, app);
        }
    }
    check_sockets(&mut files, &daemon, &apps);
    check_ids(&mut files, &apps);

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
    let log_format = shape.log_format.and_then(|text| {
        files.parse("daemon.log-format", &text, |text| {
            let mut all = LogFormat::ALL.into_iter();
            let found = all.find(|format| format.name() == text);
            found.ok_or_else(|| "must be \"auto\", \"text\" or \"json\"".into())
        })
    });
    let metrics_listen = shape
        .metrics_listen
        .and_then(|text| files.parse("daemon.metrics-listen", &text, value::loopback));
    let allow_export = shape.allow_export.unwrap_or(defaults.allow_export);
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
        log_format: log_format.unwrap_or(defaults.log_format),
        metrics_listen: metrics_listen.or(defaults.metrics_listen),
        revocation_days: count(files, "daemon.revocation-days", days, 1, default_days) as u32,
        allow_export,
    }
}

fn maintenance(files: &mut Files) -> Maintenance {
    let shape: MaintenanceShape = files.section("maintenance");
    Maintenance {
        backup: backup(files, &shape),
        optimize: cron(files, "optimize", shape.optimize, OPTIMIZE),
        purge: cron(files, "purge", shape.purge, PURGE),
    }
}

/// Reads a cron expression; `None` for `off`.
fn cron(files: &mut Files, key: &str, text: Option<String>, default: &str) -> Option<String> {
    let text = text.unwrap_or_else(|| default.into());
    if text == "off" {
        return None;
    }
    files
        .parse(&format!("maintenance.{key}"), &text, value::cron)
        .map(|()| text)
}

/// There is a nightly backup where it has a directory.
fn backup(files: &mut Files, shape: &MaintenanceShape) -> Option<Backup> {
    let cron = cron(files, "backup", shape.backup.clone(), BACKUP);
    let keep = count(files, "maintenance.keep", shape.keep, 1, KEEP);
    let dir = path(files, "maintenance.backup-dir", shape.backup_dir.clone());
    let rule = "needs maintenance.backup-dir, where the copies go";
    if shape.backup_dir.is_none() && cron.is_some() && shape.backup.is_some() {
        files.fail("maintenance.backup", rule.into());
    } else if shape.backup_dir.is_none() && shape.keep.is_some() {
        files.fail("maintenance.keep", rule.into());
    }
    Some(Backup {
        cron: cron?,
        dir: dir?,
        keep,
    })
}

fn outbound(files: &mut Files) -> Outbound {
    let shape: OutboundShape = files.section("outbound");
    let proxy = shape.proxy.and_then(|text| match proxy(&text) {
        Ok(url) => Some(url),
        Err(wrong) => {
            files.fail("outbound.proxy", wrong);
            None
        }
    });
    Outbound {
        proxy,
        ca_bundle: path(files, "outbound.ca-bundle", shape.ca_bundle),
    }
}

fn proxy(text: &str) -> Result<Url, String> {
    const RULE: &str = "must be an http or https URL of a host and a port, \
        without user name, password, path or query, such as \"http://proxy.example:3128\"";
    // Not shown: what cannot be taken apart cannot be searched for a password either.
    let url = Url::parse(text).map_err(|_| format!("is not a URL, and {RULE}"))?;
    let plain = url.username().is_empty()
        && url.password().is_none()
        && matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none();
    if plain && matches!(url.scheme(), "http" | "https") && url.has_host() {
        Ok(url)
    } else {
        Err(format!("is {} but {RULE}", show_url(&url)))
    }
}

/// Reads an absolute path.
pub(super) fn path(files: &mut Files, key: &str, text: Option<String>) -> Option<PathBuf> {
    files.parse(key, &text?, |text| {
        let path = Path::new(text);
        let up = path
            .components()
            .any(|part| part == std::path::Component::ParentDir);
        if path.is_absolute() && !up && !text.contains('\0') {
            Ok(path.to_owned())
        } else {
            Err("must be an absolute path without \"..\"".into())
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

/// Checks that each socket is alone in its directory, because a container mounts the directory: whoever gets one
/// socket must not get another with it (I7).
fn check_sockets(files: &mut Files, daemon: &Daemon, apps: &BTreeMap<String, App>) {
    // The longest path that fits a sockaddr_un with the byte that ends it (unix(7)).
    const LONGEST: usize = 107;
    let own = apps.iter().filter_map(|(name, app)| match &app.peer {
        AppPeer::Socket(path) => Some((format!("app.{name}.socket"), path)),
        _ => None,
    });
    let daemons = [
        ("daemon.socket".to_owned(), &daemon.socket),
        ("daemon.admin-socket".to_owned(), &daemon.admin_socket),
    ];
    let mut directories: BTreeMap<&Path, String> = BTreeMap::new();
    for (key, path) in daemons.into_iter().chain(own) {
        let shown = show(&path.to_string_lossy());
        if path.as_os_str().len() > LONGEST {
            files.fail(
                &key,
                format!("is {shown} but must be at most {LONGEST} bytes long (unix(7))"),
            );
        }
        let directory = path.parent().unwrap_or(path);
        if let Some(other) = directories.insert(directory, key.clone()) {
            let rule = "must be in a directory of its own, because containers mount directories";
            files.fail(&key, format!("is {shown} but {rule}; {other} is there"));
        }
    }
}

/// Checks that no two apps are the same peer: who is who must not be in doubt (I7).
fn check_ids(files: &mut Files, apps: &BTreeMap<String, App>) {
    let mut peers: BTreeMap<(&str, u32), &str> = BTreeMap::new();
    for (name, app) in apps {
        let (kind, id) = match app.peer {
            AppPeer::Uid(uid) => ("uid", uid),
            AppPeer::Gid(gid) => ("gid", gid),
            AppPeer::Socket(_) => continue,
        };
        if let Some(other) = peers.insert((kind, id), name) {
            let rule = format!("app.{other} has it too; give one of them socket = true");
            files.fail(
                &format!("app.{name}"),
                format!("has {kind} {id} but {rule}"),
            );
        }
    }
}
