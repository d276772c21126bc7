//! `[app.NAME]`: who may do what (I7).

use std::path::Path;

use super::file::{Files, show};
use super::load;
use super::quota::quota;
use super::shape::{AppShape, QuotaShape};
use super::value;
use super::{App, AppPeer, Quota, Verbs};

/// Peers whose uid could not be mapped arrive with this one (`/proc/sys/kernel/overflowuid`); anyone may be behind it.
const OVERFLOW_ID: u32 = 65534;

/// Reads one app; `None` if anything about it is wrong.
pub fn app(
    files: &mut Files,
    name: &str,
    base: Quota,
    socket_dir: &Path,
    providers: &[String],
) -> Option<App> {
    let section = format!("app.{name}");
    let shape: AppShape = files.section(&section);
    let named = files.parse(&section, name, value::name);
    let peer = peer(files, name, &shape, socket_dir);
    let quotas = QuotaShape {
        max_connections: shape.max_connections,
        max_requests_per_second: shape.max_requests_per_second,
        alarm_users_per_hour: shape.alarm_users_per_hour,
        max_users_per_hour: shape.max_users_per_hour,
    };
    let quota = quota(files, &section, &quotas, base);
    let namespace = shape.namespace.unwrap_or_else(|| "default".into());
    let key = format!("{section}.namespace");
    let namespaced = files.parse(&key, &namespace, value::name);
    let may = verbs(files, &section, shape.may);
    let providers = allowed(files, &section, shape.providers, providers);
    named.and(namespaced)?;
    Some(App {
        peer: peer?,
        namespace,
        providers: providers?,
        may: may?,
        counts_as_activity: shape.counts_as_activity.unwrap_or(true),
        quota,
    })
}

fn peer(files: &mut Files, name: &str, shape: &AppShape, socket_dir: &Path) -> Option<AppPeer> {
    let section = format!("app.{name}");
    let given = [
        ("unix-user", shape.unix_user.is_some()),
        ("unix-uid", shape.unix_uid.is_some()),
        ("unix-group", shape.unix_group.is_some()),
        ("socket", shape.socket.is_some()),
    ];
    let given: Vec<&str> = given
        .iter()
        .filter(|(_, is)| *is)
        .map(|(key, _)| *key)
        .collect();
    let keys = ["unix-user", "unix-uid", "unix-group", "socket"];
    if given.is_empty()
        && keys
            .iter()
            .any(|key| files.failed(&format!("{section}.{key}")))
    {
        return None;
    }
    if given.len() != 1 {
        let has = if given.is_empty() {
            "none of them".into()
        } else {
            given.join(" and ")
        };
        files.fail(
            &section,
            format!("has {has} but must have one of unix-user, unix-uid, unix-group and socket"),
        );
        return None;
    }
    let key = format!("{section}.{}", given[0]);
    if let Some(socket) = &shape.socket {
        return own_socket(files, &key, socket, &socket_dir.join(name));
    }
    let peer = if let Some(user) = &shape.unix_user {
        AppPeer::Uid(files.parse(&key, user, uid_of)?)
    } else if let Some(group) = &shape.unix_group {
        AppPeer::Gid(files.parse(&key, group, gid_of)?)
    } else {
        let uid = shape.unix_uid?;
        match u32::try_from(uid) {
            // -1 is "no uid" to the kernel.
            Ok(uid) if uid != u32::MAX => AppPeer::Uid(uid),
            _ => {
                files.fail(
                    &key,
                    format!("is {uid} but must be a uid, from 0 to 4294967294"),
                );
                return None;
            }
        }
    };
    if let AppPeer::Uid(OVERFLOW_ID) | AppPeer::Gid(OVERFLOW_ID) = peer {
        files.fail(
            &key,
            "is 65534, which is what the kernel says of anybody it cannot name; \
             run the app as a user of its own, or give it socket = true"
                .into(),
        );
        return None;
    }
    Some(peer)
}

fn own_socket(files: &mut Files, key: &str, value: &toml::Value, dir: &Path) -> Option<AppPeer> {
    match value {
        toml::Value::Boolean(true) => Some(AppPeer::Socket(dir.join("freshd.sock"))),
        toml::Value::String(text) => {
            load::path(files, key, Some(text.clone())).map(AppPeer::Socket)
        }
        other => {
            files.fail(
                key,
                format!("is {other} but must be true or an absolute path"),
            );
            None
        }
    }
}

fn uid_of(name: &str) -> Result<u32, String> {
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(
            "there is no such user on this host; create it, or give its number as unix-uid".into(),
        ),
        Err(_) => Err("the user database could not be read".into()),
    }
}

fn gid_of(name: &str) -> Result<u32, String> {
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err("there is no such group on this host; create it".into()),
        Err(_) => Err("the group database could not be read".into()),
    }
}

fn verbs(files: &mut Files, section: &str, may: Option<Vec<String>>) -> Option<Verbs> {
    const RULE: &str = "must be a list of read, import, revoke and authorize";
    let key = format!("{section}.may");
    let Some(may) = may.filter(|may| !may.is_empty()) else {
        files.fail_missing(&key, &format!("is missing or empty but {RULE}"));
        return None;
    };
    let mut verbs = Verbs::default();
    for verb in &may {
        match verb.as_str() {
            "read" => verbs.read = true,
            "import" => verbs.import = true,
            "revoke" => verbs.revoke = true,
            "authorize" => verbs.authorize = true,
            other => {
                files.fail(&key, format!("has {} but {RULE}", show(other)));
                return None;
            }
        }
    }
    Some(verbs)
}

/// Returns `Some(None)` for `["*"]`.
fn allowed(
    files: &mut Files,
    section: &str,
    list: Option<Vec<String>>,
    configured: &[String],
) -> Option<Option<Vec<String>>> {
    let key = format!("{section}.providers");
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        files.fail_missing(
            &key,
            "is missing or empty but must be a list of providers, or [\"*\"]",
        );
        return None;
    };
    if list == ["*"] {
        return Some(None);
    }
    let mut known = true;
    for name in list.iter().filter(|name| !configured.contains(name)) {
        known = false;
        let rule = match value::nearest(name, configured.iter().map(String::as_str)) {
            _ if name == "*" => "\"*\" must stand alone".into(),
            Some(near) => format!("there is no [provider.{name}]; did you mean {near}?"),
            None => "each must be configured as [provider.NAME]".into(),
        };
        files.fail(&key, format!("has {} but {rule}", show(name)));
    }
    known.then_some(Some(list))
}
