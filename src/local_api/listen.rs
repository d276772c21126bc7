//! Sockets: bound so that none is ever open to all, or taken over from systemd.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The longest path a Unix socket address holds (`sun_path`, `unix(7)`), in bytes.
const LONGEST_PATH: usize = 107;

/// Binds a socket at `path` with exactly `mode`, and `gid` where one is given.
///
/// Missing directories are made, 0755 whatever the umask. The socket is bound in a fresh 0700
/// directory beside `path`, gets its group and mode there, and is renamed into place. A socket that nobody
/// listens on any more is replaced. The listener is non-blocking.
///
/// # Errors
///
/// What the file system says, with the path; a live socket or something that is no socket at `path`; a
/// path too long for a socket address.
pub fn bind(path: &Path, mode: u32, gid: Option<u32>) -> io::Result<UnixListener> {
    bind_beside(path, mode, gid).map_err(|error| {
        io::Error::new(error.kind(), format!("socket {}: {error}", path.display()))
    })
}

fn bind_beside(path: &Path, mode: u32, gid: Option<u32>) -> io::Result<UnixListener> {
    let length = path.as_os_str().len();
    if length > LONGEST_PATH {
        let rule = format!("the path has {length} bytes but must have at most {LONGEST_PATH}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, rule));
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    make_directories(parent)?;
    check_replaceable(path)?;
    let hidden = Hidden::beside(parent)?;
    let inside = hidden.0.join("s");
    let listener = UnixListener::bind(&inside)?;
    if gid.is_some() {
        std::os::unix::fs::chown(&inside, None, gid)?;
    }
    fs::set_permissions(&inside, Permissions::from_mode(mode))?;
    listener.set_nonblocking(true)?;
    fs::rename(&inside, path)?;
    Ok(listener)
}

/// Makes the missing ones of a path's directories, 0755 whatever the umask.
///
/// # Errors
///
/// What the file system says.
pub fn make_directories(directory: &Path) -> io::Result<()> {
    let missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let mut missing: Vec<_> = directory.ancestors().take_while(missing).collect();
    missing.reverse();
    for directory in missing {
        match DirBuilder::new().mode(0o755).create(directory) {
            // The daemon's umask is 077.
            Ok(()) => fs::set_permissions(directory, Permissions::from_mode(0o755))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Only a socket nobody listens on may be renamed over.
fn check_replaceable(path: &Path) -> io::Result<()> {
    let file_type = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !file_type.is_socket() {
        let rule = "there is something that is not a socket; remove it";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, rule));
    }
    // Non-blocking, since a listener that hangs with a full backlog would hang us too.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        Ok(()) | Err(Errno::AGAIN) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there",
        )),
        Err(error) => Err(error.into()),
    }
}

/// A directory only we can enter, removed with whatever is left in it.
struct Hidden(PathBuf);

impl Hidden {
    fn beside(parent: &Path) -> io::Result<Hidden> {
        loop {
            // Short, so that a path that fits a socket address mostly still does in here.
            let directory = parent.join(format!(".{:06x}", rand::random::<u32>() >> 8));
            match DirBuilder::new().mode(0o700).create(&directory) {
                Ok(()) => return Ok(Hidden(directory)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // After success it is empty; if it can't be removed, an empty directory harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Takes over the sockets that systemd passed, each with the path it is bound to.
///
/// The caller matches the paths to its configuration. What is passed but is no Unix stream socket with a path
/// is logged and left alone. Call it once, before threads start: it takes the variables out of the environment.
pub fn from_systemd() -> Vec<(PathBuf, UnixListener)> {
    let mut passed = listenfd::ListenFd::from_env();
    let mut adopted = Vec::new();
    for index in 0..passed.len() {
        match passed.take_unix_listener(index).and_then(with_path) {
            Ok(Some(found)) => adopted.push(found),
            Ok(None) => {
                tracing::warn!(index, reason = "it has no path", "socket-not-adopted");
            }
            Err(error) => tracing::warn!(index, reason = %error, "socket-not-adopted"),
        }
    }
    adopted
}

fn with_path(listener: Option<UnixListener>) -> io::Result<Option<(PathBuf, UnixListener)>> {
    let Some(listener) = listener else {
        return Ok(None);
    };
    listener.set_nonblocking(true)?;
    let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
    Ok(path.map(|path| (path, listener)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_socket_gets_its_mode_group_and_directories_and_leaves_nothing_else_behind() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("app/crm/freshd.sock");
        let gid = rustix::process::getegid().as_raw();
        let _listener = bind(&path, 0o666, Some(gid)).unwrap();
        assert_eq!(mode(&path), 0o666);
        assert_eq!(fs::metadata(&path).unwrap().gid(), gid);
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        assert_eq!(mode(&root.path().join("app")), 0o755);
        let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("freshd.sock");
        let first = bind(&path, 0o600, None).unwrap();
        let error = bind(&path, 0o600, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(
            error
                .to_string()
                .contains("freshd.sock: another process listens there"),
            "{error}"
        );
        // Dropping is not enough: a child that another test forks right now holds a copy until its exec.
        rustix::net::shutdown(&first, rustix::net::Shutdown::Both).unwrap();
        drop(first);
        assert!(path.exists());
        let _second = bind(&path, 0o660, None).unwrap();
        assert_eq!(mode(&path), 0o660);
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_a_socket_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("freshd.sock");
        fs::write(&path, "precious").unwrap();
        assert_eq!(
            bind(&path, 0o600, None).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let link = root.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(
            bind(&link, 0o600, None).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
    }

    #[test]
    fn a_path_too_long_for_an_address_is_refused_by_length_and_rule() {
        let path = PathBuf::from(format!("/tmp/{}/freshd.sock", "x".repeat(100)));
        let error = bind(&path, 0o600, None).unwrap_err().to_string();
        assert!(
            error.contains("has 117 bytes but must have at most 107"),
            "{error}"
        );
        assert!(!path.parent().unwrap().exists());
    }

    #[test]
    fn sockets_passed_by_systemd_are_taken_over_by_their_paths() {
        if let Some(path) = std::env::var_os("FRESHD_TEST_PASSED") {
            // The service's part: 3 is a socket with a path, 4 is none at all.
            let adopted = from_systemd();
            assert_eq!(adopted.len(), 1);
            assert_eq!(adopted[0].0, Path::new(&path));
            let nobody = adopted[0].1.accept().unwrap_err();
            assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("passed.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let service = std::process::Command::new("sh")
            .args([
                "-c",
                "exec 3<&0 4</dev/null 0</dev/null; LISTEN_FDS=2 LISTEN_PID=$$ exec \"$@\"",
                "sh",
            ])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "local_api::listen::tests::sockets_passed_by_systemd_are_taken_over_by_their_paths",
            ])
            .env("FRESHD_TEST_PASSED", &path)
            .stdin(std::os::fd::OwnedFd::from(listener))
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&service.stdout);
        assert!(
            service.status.success() && output.contains("1 passed"),
            "{output}"
        );
    }
}
