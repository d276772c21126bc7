//! The host: key, state directory, room, clock.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use super::super::local::{Owners, Place, chain};
use super::super::output::length;
use super::{AS_ROOT, Findings};
use crate::daemon::clock::Clock;
use crate::refresh::time::UnixTime;
use crate::store::KeyError;
use crate::store::rekey;

/// freshd writes no more long before a disk is full to the last byte; this is a day of most hosts' growth.
const ROOM: u64 = 64 << 20;
/// No clock is right that says less: this freshd is newer.
const OLDEST: UnixTime = UnixTime::from_secs(1_760_000_000);
/// Two clocks that differ by less are the same; a file's stamp may be a tick ahead.
const AHEAD: Duration = Duration::from_secs(60);

const AS_FRESHD: &str =
    "USER is whom freshd runs as: systemctl show -P User freshd, or ps -o user= -C freshd";

/// Looks at the key file's rules, and whether it opens this store's keyring.
pub(super) fn key(findings: &mut Findings, place: &Place) {
    let file = &place.described.key_file;
    let kek = match place.read_key(None) {
        Ok(kek) => kek,
        Err(_) if unreadable(Path::new(file)) => {
            findings.unknown("key", format!("{file} cannot be read by us"), AS_ROOT);
            return;
        }
        Err(error) => return mend_key(findings, place, &error),
    };
    let dir = Path::new(&place.described.state_dir);
    match rekey::proves(dir, &kek) {
        Ok(true) => findings.ok("key", format!("{file} opens the keyring")),
        Ok(false) if rekey::has_store(dir) => findings.wrong(
            "key",
            format!("the store in {} has lost its keyring, without which no key opens it", dir.display()),
            "put the keyring back from a copy of the directory, or restore a backup: freshctl restore",
        ),
        Ok(false) => findings.ok("key", format!("{file} is sound; there is no store yet")),
        Err(_) if unreadable(dir) => {
            findings.unknown("key", "the keyring cannot be read by us", AS_ROOT);
        }
        Err(error) => findings.wrong(
            "key",
            chain(&error),
            "put the right key back; a backup of it, or the recovery key (freshctl key change-kek --recovery-key-file), opens the store",
        ),
    }
}

/// Says what to do about a key that can't be used.
fn mend_key(findings: &mut Findings, place: &Place, error: &KeyError) {
    let dir = Path::new(&place.described.state_dir);
    let path = &place.described.key_file;
    let todo = match error {
        KeyError::Missing { .. } if unreadable(dir) || rekey::has_store(dir) => {
            return findings.wrong(
                "key",
                format!("key file {path} does not exist, and without it the store in {} can't be opened", dir.display()),
                rekey::PUT_KEY_BACK,
            );
        }
        KeyError::Missing { .. } => format!("there is no store yet: freshctl key generate {path}"),
        KeyError::Mode { .. } => format!("chmod 0600 {path} (0400 or 0600); if others could read it: freshctl key change-kek"),
        KeyError::Owner { .. } => match Owners::of(dir).and_then(Owners::agreed) {
            Some(uid) => format!("chown {uid} {path}"),
            None => format!("chown USER {path}; {AS_FRESHD}"),
        },
        _ => "put the right key back, from its backup; if it is lost: freshctl key change-kek --recovery-key-file".to_owned(),
    };
    findings.wrong("key", chain(error), todo);
}

fn unreadable(path: &Path) -> bool {
    let denied = |error: std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    match fs::metadata(path) {
        Ok(about) if about.is_dir() => fs::read_dir(path).err().is_some_and(denied),
        Ok(_) => fs::File::open(path).err().is_some_and(denied),
        Err(error) => denied(error),
    }
}

/// Returns what there is to know of the state directory, or tells why it can't be looked at.
fn directory(findings: &mut Findings, dir: &Path) -> Option<Metadata> {
    let shown = dir.display();
    match fs::metadata(dir) {
        Ok(about) if about.is_dir() => return Some(about),
        Ok(_) => findings.wrong(
            "state",
            format!("{shown} is no directory"),
            "name another one: daemon.state-dir",
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => findings.wrong(
            "state",
            format!("{shown} is not there"),
            format!("install -d -m 0700 -o freshd -g freshd {shown}, or start the unit once: it makes the directory"),
        ),
        Err(error) => findings.unknown("state", format!("{shown}: {error}"), AS_ROOT),
    }
    None
}

/// Looks at who may read and change the state directory and what is in it.
pub(super) fn state(findings: &mut Findings, place: &Place) {
    let dir = Path::new(&place.described.state_dir);
    let Some(about) = directory(findings, dir) else {
        return;
    };
    let owners = Owners::of(dir);
    let agreed = owners.and_then(Owners::agreed);
    let mut sound = agreed.is_some();
    if let (
        None,
        Some(Owners {
            directory,
            database: Some(database),
        }),
    ) = (agreed, owners)
    {
        let text = format!(
            "{} belongs to uid {directory} and the store in it to uid {database}",
            dir.display()
        );
        let todo = format!("chown -R USER {}; {AS_FRESHD}", dir.display());
        findings.wrong("state", text, todo);
    }
    let mut look = |path: &Path, about: &Metadata| {
        let name = path.display();
        let mode = about.mode() & 0o7777;
        if mode & 0o077 != 0 {
            sound = false;
            let todo = match about.is_dir() {
                true => format!("chmod 0700 {name}"),
                false => format!(
                    "chmod go= {name}; if others could read the key too, rotate: freshctl key rotate"
                ),
            };
            let text = format!("{name} has mode {mode:04o}: others may read or change it");
            findings.wrong("state", text, todo);
        }
        if let Some(owner) = agreed
            && about.uid() != owner
        {
            sound = false;
            let text = format!(
                "{name} belongs to uid {} and the store to uid {owner}",
                about.uid()
            );
            findings.wrong("state", text, format!("chown {owner} {name}"));
        }
    };
    look(dir, &about);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if let Ok(file) = entry.metadata()
            && file.is_file()
        {
            look(&entry.path(), &file);
        }
    }
    if unreadable(dir) {
        findings.unknown("state", "its files cannot be looked at by us", AS_ROOT);
    } else if sound {
        findings.ok("state", format!("{} is freshd's alone", dir.display()));
    }
}

/// Looks whether there is room to go on, and for a copy of the store.
pub(super) fn room(findings: &mut Findings, place: &Place) {
    let dir = Path::new(&place.described.state_dir);
    let Ok(about) = rustix::fs::statvfs(dir) else {
        return; // told as `state`
    };
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = files.filter_map(|entry| entry.metadata().ok());
    let used: u64 = sizes.filter(Metadata::is_file).map(|file| file.len()).sum();
    let text = format!(
        "{} MiB free, the store takes {} MiB",
        free >> 20,
        used >> 20
    );
    let todo = format!(
        "make room under {}; nothing is refreshed where a new token could not be written",
        dir.display()
    );
    if free < ROOM || (about.f_files > 0 && about.f_favail < 16) {
        findings.wrong("disk", text, todo);
    } else if free < used {
        let todo = "a backup on this disk would not fit: make room, or name another disk in maintenance.backup";
        findings.wrong("disk", text, todo);
    } else {
        findings.ok("disk", text);
    }
}

/// Looks whether the clock can be right: not behind what the store was last written at, and kept by somebody.
pub(super) fn clock(findings: &mut Findings, place: &Place) {
    let now = Clock::system().now();
    let files = fs::read_dir(&place.described.state_dir)
        .into_iter()
        .flatten()
        .flatten();
    let written = files
        .filter_map(|entry| entry.metadata().ok()?.modified().ok())
        .filter_map(|at| at.duration_since(UNIX_EPOCH).ok())
        .map(|at| UnixTime::from_secs(at.as_secs() as i64))
        .max();
    let ahead = written.map_or(Duration::ZERO, |at| at.since(now));
    let todo = "set the clock and keep it set: timedatectl set-ntp true";
    if now < OLDEST {
        return findings.wrong("clock", format!("it says {}", now.rfc3339()), todo);
    }
    if ahead > AHEAD {
        let text = format!(
            "the store was last written {} after now: the clock was set back",
            length(ahead.as_secs())
        );
        return findings.wrong("clock", text, todo);
    }
    let asked = Command::new("timedatectl")
        .args(["show", "-p", "NTPSynchronized", "--value"])
        .output();
    let answer = asked.ok().filter(|output| output.status.success());
    match answer.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()) {
        Some(yes) if yes == "yes" => findings.ok("clock", format!("{}, synchronized", now.rfc3339())),
        Some(no) if no == "no" => findings.wrong("clock", "nobody keeps it synchronized", todo),
        _ => findings.unknown(
            "clock",
            format!("it says {}; whether it is synchronized can't be told", now.rfc3339()),
            "timedatectl does not answer here: look at your time service (chronyc tracking, ntpq -p); in a container, at the host's",
        ),
    }
}
