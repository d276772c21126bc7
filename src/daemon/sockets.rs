//! The daemon's sockets: bound or taken over from systemd, served, and changed by a reload.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Passed;
use super::keeper::Daemon;
use crate::config::{AppPeer, Config};
use crate::local_api::listen;
use crate::local_api::rules::SocketKind;
use crate::local_api::server::{self, Access};

/// The group that may use the admin socket, where it exists.
const ADMIN_GROUP: &str = "freshd-admin";

/// Why a socket can't be served.
#[derive(Debug, thiserror::Error)]
#[error("socket {path} cannot be used", path = path.display())]
pub struct SocketError {
    /// The socket.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// The sockets that are being served, by path.
pub(super) struct Sockets {
    keeper: Arc<Daemon>,
    access: Access,
    serving: BTreeMap<PathBuf, Serving>,
    /// Passed by systemd and not yet used.
    passed: BTreeMap<PathBuf, UnixListener>,
}

struct Serving {
    kind: SocketKind,
    stop: watch::Sender<bool>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Sockets {
    pub(super) fn new(keeper: Arc<Daemon>, access: Access, passed: Passed) -> Self {
        Sockets {
            keeper,
            access,
            serving: BTreeMap::new(),
            passed: passed.into_iter().collect(),
        }
    }

    /// Serves the shared socket, the admin socket and the apps' own; stops serving those of apps that are gone.
    ///
    /// # Errors
    ///
    /// A new socket can't be bound. Then everything is served as before.
    pub(super) fn serve(&mut self, config: &Config) -> Result<(), SocketError> {
        let mut wanted = BTreeMap::from([
            (config.daemon.socket.clone(), SocketKind::Shared),
            (config.daemon.admin_socket.clone(), SocketKind::Admin),
        ]);
        for (name, app) in &config.apps {
            if let AppPeer::Socket(path) = &app.peer {
                wanted.insert(path.clone(), SocketKind::App(name.clone()));
            }
        }
        let mut started = BTreeMap::new();
        for (path, kind) in &wanted {
            if self.serving.contains_key(path) {
                continue;
            }
            match self.start(path, kind.clone()) {
                Ok(serving) => started.insert(path.clone(), serving),
                Err(source) => {
                    started
                        .into_iter()
                        .for_each(|(path, serving)| end(&path, &serving));
                    let path = path.clone();
                    return Err(SocketError { path, source });
                }
            };
        }
        self.serving.append(&mut started);
        self.serving.retain(|path, serving| {
            let keep = wanted.contains_key(path);
            if !keep {
                end(path, serving);
            }
            keep
        });
        // A path that went from one app to another is freed before it is bound anew.
        for (path, kind) in wanted {
            if self
                .serving
                .get(&path)
                .is_some_and(|serving| serving.kind != kind)
                && let Some(old) = self.serving.remove(&path)
            {
                end(&path, &old);
                match self.start(&path, kind) {
                    Ok(serving) => self.serving.insert(path, serving),
                    Err(source) => return Err(SocketError { path, source }),
                };
            }
        }
        Ok(())
    }

    fn start(&mut self, path: &Path, kind: SocketKind) -> std::io::Result<Serving> {
        let listener = match self.passed.remove(path) {
            Some(listener) => listener,
            None => bind(path, &kind)?,
        };
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(server::serve(
            listener,
            kind.clone(),
            self.keeper.clone(),
            self.access.clone(),
            async move {
                // An error means that the sender is gone, and with it the daemon.
                let _ = stopped.wait_for(|stop| *stop).await;
            },
        ));
        Ok(Serving { kind, stop, task })
    }

    /// Accepts nothing more and lets requests in flight finish, for at most `patience` in all.
    pub(super) async fn stop(self, patience: Duration) {
        for serving in self.serving.values() {
            let _ = serving.stop.send(true);
        }
        let _ = tokio::time::timeout(patience, async {
            for serving in self.serving.into_values() {
                let _ = serving.task.await;
            }
        })
        .await;
    }
}

/// Accepts nothing more on a socket. Nobody listens on it any more, so a client should be refused, not wait.
fn end(path: &Path, serving: &Serving) {
    let _ = serving.stop.send(true);
    let _ = std::fs::remove_file(path);
}

/// The shared socket is open to all: rules say what they get. Who can reach an app's own socket is that app,
/// so the directory it is in, where we make it, lets nobody in until an admin says whom. The admin socket is for its group.
fn bind(path: &Path, kind: &SocketKind) -> std::io::Result<UnixListener> {
    match kind {
        SocketKind::Shared => listen::bind(path, 0o666, None),
        SocketKind::App(_) => {
            if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
                if let Some(above) = directory.parent() {
                    listen::make_directories(above)?;
                }
                std::fs::create_dir(directory)?;
                // Our umask is tighter than what an admin's group needs.
                std::fs::set_permissions(directory, Permissions::from_mode(0o750))?;
            }
            listen::bind(path, 0o666, None)
        }
        SocketKind::Admin => {
            // Only root can give a file to a group it is not in.
            let group = match rustix::process::geteuid().is_root() {
                true => nix::unistd::Group::from_name(ADMIN_GROUP).unwrap_or(None),
                false => None,
            };
            let mode = if group.is_some() { 0o660 } else { 0o600 };
            listen::bind(path, mode, group.map(|group| group.gid.as_raw()))
        }
    }
}
