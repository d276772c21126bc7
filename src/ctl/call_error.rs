//! Why the daemon gave no good answer, and what that means for exit code and hint.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::client::BODY_LIMIT;
use super::failure::{Exit, Failure};
use super::output::length;
use crate::local_api::types::Problem;

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection: nothing was sent.
    #[error("cannot reach freshd at {socket}: {error}", socket = .socket.display(), error = reason(.source))]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection ended before the whole answer was here. Whether the request was done is unknown.
    #[error("freshd at {socket} ended the connection before it had answered", socket = .0.display())]
    Lost(PathBuf),
    /// No answer within the deadline. Whether the request was done is unknown.
    #[error("freshd has not answered within {}", length(.0.as_secs()))]
    TimedOut(Duration),
    /// The answer is longer than anything freshd says.
    #[error("the answer is longer than {} MiB: is this freshd's socket?", BODY_LIMIT >> 20)]
    TooLong,
    /// The namespace can't be sent.
    #[error("the namespace cannot be sent: a name has no control characters")]
    Namespace,
    /// The daemon refused, at this socket.
    #[error("{}", told(.0))]
    Refused(Box<Problem>, PathBuf),
}

/// The operating system's words, without its error number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket".to_owned(),
        io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// The problem's own words, with its type.
fn told(problem: &Problem) -> String {
    let text = if problem.detail.is_empty() {
        &problem.title
    } else {
        &problem.detail
    };
    format!("{text} ({})", problem.kind)
}

/// Another host has what was here: to try again does not help.
const MOVED: &str = "urn:freshd:moved";

/// The daemon can't make a file where it was to.
const CANNOT_CREATE: &str = "urn:freshd:cannot-create";

/// Which socket was asked, and how the usual one is.
fn this_was(socket: &Path) -> String {
    format!(
        "this was the socket {}: without FRESHD_SOCKET and --socket freshctl asks the configured admin socket",
        socket.display()
    )
}

/// Returns whether the socket does not have the verb: only the admin one has all.
fn admin_only(problem: &Problem) -> bool {
    problem.kind == "urn:freshd:no-such-route"
}

impl CallError {
    /// Returns whether the same request may go well a little later.
    pub fn may_pass(&self) -> bool {
        match self {
            CallError::Connect { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            CallError::Lost(_) | CallError::TimedOut(_) => true,
            CallError::TooLong | CallError::Namespace => false,
            CallError::Refused(problem, _) => {
                matches!(problem.status, 408 | 429 | 503 | 507) && problem.kind != MOVED
            }
        }
    }

    fn exit(&self) -> Exit {
        match self {
            CallError::Connect { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Exit::Permission,
                io::ErrorKind::WouldBlock => Exit::TryLater,
                _ => Exit::Unavailable,
            },
            CallError::Lost(_) | CallError::TimedOut(_) => Exit::TryLater,
            CallError::TooLong => Exit::Internal,
            CallError::Namespace => Exit::Usage,
            CallError::Refused(problem, _) if admin_only(problem) => Exit::Permission,
            CallError::Refused(problem, _) if problem.kind == CANNOT_CREATE => Exit::CannotCreate,
            CallError::Refused(problem, _) => match problem.status {
                401 | 403 => Exit::Permission,
                404 => Exit::NoSuchGrant,
                409 => Exit::NotServed,
                408 | 429 | 503 | 507 => Exit::TryLater,
                400..=499 => Exit::Data,
                _ => Exit::Internal,
            },
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            CallError::Connect { source, socket } => Some(match source.kind() {
                io::ErrorKind::PermissionDenied => format!(
                    "the admin socket is for the group freshd-admin: usermod -aG freshd-admin $USER, then log in anew\n\
                     an app uses a socket of its own: freshctl --socket PATH (this was {})",
                    socket.display()
                ),
                _ => "is it running? systemctl status freshd; start it with: systemctl start freshd\n\
                      another socket is named with --socket PATH or FRESHD_SOCKET"
                    .to_owned(),
            }),
            CallError::Lost(_) | CallError::TimedOut(_) => {
                Some("look at what it logs: journalctl -u freshd".to_owned())
            }
            CallError::Refused(problem, _) if problem.kind == MOVED => Some(
                "run it on the other host; while the final backup is being made it may still fail, and then all goes on here: freshctl status"
                    .to_owned(),
            ),
            CallError::Refused(problem, _) if problem.kind == "urn:freshd:provider-unknown" => {
                Some("a typing error? else: freshctl check-config, then systemctl reload freshd".to_owned())
            }
            CallError::Refused(problem, _) if problem.kind == CANNOT_CREATE && problem.reason.as_deref() == Some("taken") => {
                Some("name another file: none is ever overwritten".to_owned())
            }
            CallError::Refused(problem, _) if problem.kind == CANNOT_CREATE => Some(
                "freshd writes it, as its own user and only where its unit lets it (ReadWritePaths=): name a new file in a directory that is there and that it may write"
                    .to_owned(),
            ),
            CallError::Refused(problem, _) if problem.kind == "about:blank" => {
                Some("is this freshd's socket? --socket names another".to_owned())
            }
            CallError::Refused(problem, socket) => match (problem.retry_after, problem.status) {
                (Some(seconds), _) => Some(format!("try again in {}", length(seconds))),
                (None, 403) => Some(format!(
                    "{}\nfor an app's request there, the daemon's log shows the rule that would admit you",
                    this_was(socket)
                )),
                (None, 404) if admin_only(problem) => Some(format!(
                    "an app's socket has no admin verbs\n{}",
                    this_was(socket)
                )),
                _ => None,
            },
            CallError::TooLong | CallError::Namespace => None,
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let failure = Failure::new(error.exit(), error.to_string());
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(error: CallError) -> (Exit, String) {
        let Failure::Told { exit, hint, .. } = error.into() else {
            panic!("quiet")
        };
        (exit, hint.unwrap_or_default())
    }

    fn connect(kind: io::ErrorKind) -> CallError {
        CallError::Connect {
            socket: "/run/freshd.sock".into(),
            source: kind.into(),
        }
    }

    #[test]
    fn a_socket_that_denies_us_names_the_group_to_join() {
        let error = connect(io::ErrorKind::PermissionDenied);
        assert!(!error.may_pass());
        let (exit, hint) = told(error);
        assert_eq!(exit, Exit::Permission);
        assert!(hint.contains("usermod -aG freshd-admin"), "{hint}");
        assert_eq!(told(connect(io::ErrorKind::WouldBlock)).0, Exit::TryLater);
    }

    #[test]
    fn what_a_moved_store_refuses_is_to_be_done_on_the_other_host() {
        let problem = crate::local_api::types::Problem {
            kind: MOVED.to_owned(),
            title: String::new(),
            status: 503,
            detail: "moved".to_owned(),
            reason: None,
            since: None,
            retry_after: Some(60),
        };
        let error = CallError::Refused(Box::new(problem), "/s".into());
        assert!(!error.may_pass());
        let (exit, hint) = told(error);
        assert_eq!(exit, Exit::TryLater);
        assert!(
            hint.contains("other host") && !hint.contains("try again"),
            "{hint}"
        );
    }

    #[test]
    fn a_verb_that_the_socket_does_not_have_is_a_matter_of_permission() {
        let problem = Problem {
            kind: "urn:freshd:no-such-route".to_owned(),
            title: String::new(),
            status: 404,
            detail: String::new(),
            reason: None,
            since: None,
            retry_after: None,
        };
        let forbidden = Problem {
            kind: "urn:freshd:forbidden".to_owned(),
            status: 403,
            ..problem.clone()
        };
        for problem in [problem, forbidden] {
            let (exit, hint) = told(CallError::Refused(Box::new(problem), "/app/s".into()));
            assert_eq!(exit, Exit::Permission);
            assert!(
                hint.contains("the socket /app/s") && hint.contains("FRESHD_SOCKET and --socket"),
                "{hint}"
            );
        }
    }
}
