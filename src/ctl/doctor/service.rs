//! The service: the unit's sandbox, groups and sockets, and whether the daemon answers.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Group};

use super::super::client::{Call, Client};
use super::super::failure::Failure;
use super::super::local::Place;
use super::super::socket::Found;
use super::Findings;
use crate::local_api::types::Status;

/// What the unit that we ship reaches on systemd 252, rounded up.
const EXPOSURE: f64 = 1.5;
const ADMINS: &str = "freshd-admin";

/// Looks at how exposed the running unit is.
pub(super) fn sandbox(findings: &mut Findings) {
    let asked = Command::new("systemd-analyze")
        .args(["security", "--no-pager", "freshd.service"])
        .output();
    let answer = asked.ok().filter(|output| output.status.success());
    let text = answer.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    match text.as_deref().and_then(exposure) {
        Some(level) if level <= EXPOSURE => {
            findings.ok("sandbox", format!("exposure {level} of 10"));
        }
        Some(level) => findings.wrong(
            "sandbox",
            format!("exposure {level} of 10, and the unit as shipped has at most {EXPOSURE}"),
            "a drop-in or an old unit loosens it: systemctl cat freshd; systemd-analyze security freshd",
        ),
        None => findings.unknown(
            "sandbox",
            "it can't be told here",
            "systemd-analyze knows no freshd.service on this host; on the host of the service: systemd-analyze security freshd",
        ),
    }
}

/// Reads `Overall exposure level for freshd.service: 1.2 OK`.
fn exposure(text: &str) -> Option<f64> {
    let (_, rest) = text.rsplit_once("exposure level for")?;
    let (_, level) = rest.split_once(':')?;
    level.split_whitespace().next()?.parse().ok()
}

/// Looks at the sockets' places and rights, and at the admins' group.
pub(super) fn sockets(findings: &mut Findings, place: &Place) {
    let admin = Path::new(&place.described.admin_socket);
    socket(
        findings,
        "shared socket",
        Path::new(&place.described.socket),
        false,
    );
    socket(findings, "admin socket", admin, true);
    if !admin.starts_with("/run/freshd") {
        return; // a user's own instance, where nobody else is to get in
    }
    match Group::from_name(ADMINS) {
        Ok(Some(group)) if member(group.gid) => {
            findings.ok("group", format!("{ADMINS} is there, and we are in it"));
        }
        Ok(Some(_)) => findings.unknown(
            "group",
            format!("we are not in {ADMINS}, so the admin socket is closed to us"),
            format!("usermod -aG {ADMINS} $USER, then log in anew; or be root"),
        ),
        _ => findings.wrong(
            "group",
            format!("there is no group {ADMINS}"),
            "systemd-sysusers makes it from the package's fragment; or: groupadd --system freshd-admin",
        ),
    }
}

fn member(gid: Gid) -> bool {
    let gid = gid.as_raw();
    let ours = rustix::process::getgroups().unwrap_or_default();
    rustix::process::geteuid().is_root()
        || rustix::process::getegid().as_raw() == gid
        || ours.iter().any(|group| group.as_raw() == gid)
}

fn socket(findings: &mut Findings, check: &str, path: &Path, admin: bool) {
    let about = match fs::symlink_metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let text = format!("{} cannot be looked at by us", path.display());
            return findings.unknown(check, text, "run freshctl doctor as root");
        }
        Err(_) => {
            return findings.wrong(
                check,
                format!("{} is not there", path.display()),
                "systemctl enable --now freshd.socket freshd-admin.socket freshd.service; without systemd: start freshd",
            );
        }
    };
    let mode = about.mode() & 0o777;
    if !about.file_type().is_socket() {
        let text = format!("{} is no socket", path.display());
        findings.wrong(
            check,
            text,
            "remove it and restart freshd.socket, freshd-admin.socket and freshd",
        );
    } else if admin && mode & 0o007 != 0 {
        findings.wrong(
            check,
            format!(
                "{} has mode {mode:04o}: everybody is an admin",
                path.display()
            ),
            "SocketMode=0660 and SocketGroup=freshd-admin in freshd-admin.socket, then restart it",
        );
    } else {
        findings.ok(check, format!("{}, mode {mode:04o}", path.display()));
    }
}

/// Asks the daemon how it fares.
pub(super) async fn daemon(findings: &mut Findings, socket: Result<Found, Failure>) {
    let asked = match socket {
        Ok(found) => {
            if let Some(doubt) = found.doubt {
                findings.wrong("daemon", doubt.message(), doubt.next());
            }
            let client = Client::new(&found.path, None);
            let answer = client.send(&Call::get("/v1/status")).await;
            answer
                .map_err(Failure::from)
                .and_then(|answer| answer.read::<Status>())
        }
        Err(failure) => Err(failure),
    };
    match asked {
        Ok(status) if status.state == "running" && status.store == "ok" => {
            let version = env!("CARGO_PKG_VERSION");
            if status.version == version {
                findings.ok("daemon", format!("{version} answers"));
            } else {
                findings.wrong(
                    "daemon",
                    format!("it is {} and this command {version}", status.version),
                    "systemctl restart freshd: an upgrade has not restarted it",
                );
            }
        }
        Ok(status) => findings.wrong(
            "daemon",
            format!("it is {}, its store {}", status.state, status.store),
            "freshctl status says what to do",
        ),
        Err(failure) => {
            let hint = failure.hint_text();
            findings.wrong("daemon", failure.message(), hint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposure_is_read_from_the_last_line() {
        let text = "✓ PrivateTmp= 0.2\n\n→ Overall exposure level for freshd.service: 1.2 OK 🙂\n";
        assert_eq!(exposure(text), Some(1.2));
        assert_eq!(exposure("Unit freshd.service not found."), None);
    }
}
