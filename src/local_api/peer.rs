//! Who is at the other end of a socket, as the kernel says.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{UnixCredentials, getsockopt};

/// The kernel's default for a uid or gid that has no name in our user namespace (`user_namespaces(7)`).
const OVERFLOW_ID: u32 = 65534;

/// How many groups a message shows before it only counts the others.
const SHOWN_GROUPS: usize = 32;

/// A process, by the credentials it had when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Its process, where the kernel can name it in our PID namespace.
    pub pid: Option<i32>,
}

/// Why nobody can say who a peer is. It is denied (I7).
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Its uid means nothing here: it has none in our user namespace.
    #[error(
        "uid {0} is the overflow uid, which stands for every user unknown in this user namespace"
    )]
    Unmapped(u32),
    /// The kernel did not say.
    #[error("the kernel does not tell the peer's credentials")]
    Unknown(#[source] io::Error),
}

impl Peer {
    /// Asks the kernel who connected (`SO_PEERCRED`, `SO_PEERGROUPS`; `unix(7)`).
    ///
    /// # Errors
    ///
    /// Any failure of the kernel to say, a kernel older than 4.13 included, and the overflow uid.
    pub fn of(stream: &impl AsFd) -> Result<Peer, PeerError> {
        let credentials = credentials(stream).map_err(PeerError::Unknown)?;
        let uid = credentials.uid();
        // (uid_t)-1 is the kernel's "nobody connected".
        if is_overflow_uid(uid) || uid == u32::MAX {
            return Err(PeerError::Unmapped(uid));
        }
        let mut groups = groups::of(stream.as_fd()).map_err(PeerError::Unknown)?;
        groups.sort_unstable();
        groups.dedup();
        Ok(Peer {
            uid,
            gid: credentials.gid(),
            groups,
            // 0 is a process of another PID namespace.
            pid: Some(credentials.pid()).filter(|pid| *pid != 0),
        })
    }

    /// Returns whether its primary or a supplementary group is `gid`. The overflow gid names no group.
    pub fn is_in_group(&self, gid: u32) -> bool {
        !is_overflow_gid(gid) && (self.gid == gid || self.groups.contains(&gid))
    }
}

/// Returns the user who connected, as far as the kernel tells it.
pub(super) fn uid(stream: &impl AsFd) -> io::Result<u32> {
    credentials(stream).map(|credentials| credentials.uid())
}

fn credentials(stream: &impl AsFd) -> io::Result<UnixCredentials> {
    Ok(getsockopt(stream, PeerCredentials)?)
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}, gid {}, groups", self.uid, self.gid)?;
        if self.groups.is_empty() {
            return f.write_str(" none");
        }
        for group in self.groups.iter().take(SHOWN_GROUPS) {
            write!(f, " {group}")?;
        }
        match self.groups.len().checked_sub(SHOWN_GROUPS) {
            Some(more @ 1..) => write!(f, " and {more} more"),
            _ => Ok(()),
        }
    }
}

/// Returns whether `uid` stands for "unknown in this user namespace".
pub fn is_overflow_uid(uid: u32) -> bool {
    static CONFIGURED: OnceLock<Option<u32>> = OnceLock::new();
    uid == OVERFLOW_ID
        || *CONFIGURED.get_or_init(|| overflow_id("/proc/sys/kernel/overflowuid")) == Some(uid)
}

fn is_overflow_gid(gid: u32) -> bool {
    static CONFIGURED: OnceLock<Option<u32>> = OnceLock::new();
    gid == OVERFLOW_ID
        || *CONFIGURED.get_or_init(|| overflow_id("/proc/sys/kernel/overflowgid")) == Some(gid)
}

/// An admin may have chosen another overflow id; without `/proc` the default alone has to do.
fn overflow_id(path: &str) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// `SO_PEERGROUPS`, which no crate that we use offers.
#[expect(
    unsafe_code,
    reason = "getsockopt(SO_PEERGROUPS) has no safe wrapper in the crates we use"
)]
mod groups {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};

    /// Linux lets a process have at most this many supplementary groups (`NGROUPS_MAX`).
    const MOST: usize = 65536;

    /// Returns the supplementary groups the peer had when it connected.
    pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
        let mut groups: Vec<libc::gid_t> = vec![0; 32];
        loop {
            let mut bytes = libc::socklen_t::try_from(size_of_val(groups.as_slice()))
                .map_err(|_| io::ErrorKind::OutOfMemory)?;
            // SAFETY: `groups` has room for `bytes` bytes and lives through the call, which writes
            // at most that many; every bit pattern is a gid_t.
            let result = unsafe {
                libc::getsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_PEERGROUPS,
                    groups.as_mut_ptr().cast(),
                    &raw mut bytes,
                )
            };
            let count = bytes as usize / size_of::<libc::gid_t>();
            if result == 0 {
                groups.truncate(count);
                return Ok(groups);
            }
            let error = io::Error::last_os_error();
            // ERANGE says how much room it takes.
            if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > MOST {
                return Err(error);
            }
            groups.resize(count, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_kernel_names_our_own_uid_gid_groups_and_pid() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        let mut groups: Vec<u32> = rustix::process::getgroups()
            .unwrap()
            .iter()
            .map(|gid| gid.as_raw())
            .collect();
        groups.sort_unstable();
        groups.dedup();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        assert_eq!(peer.groups, groups);
        assert_eq!(peer.pid, Some(i32::try_from(std::process::id()).unwrap()));
    }

    #[tokio::test]
    async fn a_peers_supplementary_groups_are_seen_however_many() {
        if let Some(path) = std::env::var_os("FRESHD_TEST_CONNECT") {
            // The peer's part: connect, and stay until the other end has looked.
            let mut end = [0];
            let mut stream = UnixStream::connect(path).unwrap();
            std::io::Read::read(&mut stream, &mut end).unwrap();
            return;
        }
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can have other groups than it was given");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let groups: Vec<u32> = (4000..5000).collect();
        let list = groups
            .iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(",");
        let mut child = std::process::Command::new("setpriv")
            .args(["--regid", "1234", "--groups", &list])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "local_api::peer::tests::a_peers_supplementary_groups_are_seen_however_many",
            ])
            .env("FRESHD_TEST_CONNECT", &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let connected = tokio::time::timeout(std::time::Duration::from_secs(20), listener.accept());
        let (stream, _) = connected.await.unwrap().unwrap();
        let peer = Peer::of(&stream).unwrap();
        drop(stream);
        assert!(child.wait().unwrap().success());
        assert_eq!((peer.uid, peer.gid), (0, 1234));
        assert_eq!(peer.groups, groups);
        assert!(peer.is_in_group(1234) && peer.is_in_group(4999) && !peer.is_in_group(5000));
    }

    #[test]
    fn the_overflow_ids_name_nobody() {
        assert!(is_overflow_uid(65534));
        assert!(!is_overflow_uid(0));
        let peer = Peer {
            uid: 1000,
            gid: 65534,
            groups: vec![65534],
            pid: None,
        };
        assert!(!peer.is_in_group(65534));
    }

    #[test]
    fn a_peer_of_thousands_of_groups_fits_a_message() {
        let peer = Peer {
            uid: 1,
            gid: 2,
            groups: (0..5000).collect(),
            pid: None,
        };
        let shown = peer.to_string();
        assert!(shown.ends_with(" 31 and 4968 more"), "{shown}");
        let peer = Peer {
            uid: 1,
            gid: 2,
            groups: vec![],
            pid: None,
        };
        assert_eq!(peer.to_string(), "uid 1, gid 2, groups none");
    }
}
