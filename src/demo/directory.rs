//! The demo's temporary directory: everything it and its daemon write is in there, and goes with it.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::refresh::token::ClientSecret;

/// The client identifier that the daemon has at the demo's server.
pub const CLIENT_ID: &str = "freshd";
/// The provider's name in the demo's configuration.
pub const PROVIDER: &str = "demo";

/// Enough of a log to see what went wrong at the end.
const LOG_TAIL: usize = 20;

/// A directory of mode 0700 that is removed when this is dropped.
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes one under `parent`, with a name nobody can guess, and the directories for the sockets in it.
    ///
    /// # Errors
    ///
    /// When `parent` is not there or may not be written.
    pub fn make(parent: &Path) -> io::Result<Directory> {
        let name = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 9]>());
        let path = parent.join(format!("freshd-demo-{name}"));
        let private = |path: &Path| DirBuilder::new().mode(0o700).create(path);
        private(&path)?;
        let directory = Directory { path };
        for inner in ["state", "shared", "admin", "app"] {
            private(&directory.path.join(inner))?;
        }
        Ok(directory)
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the configuration file's path.
    pub fn config_file(&self) -> PathBuf {
        self.path.join("freshd.toml")
    }

    /// Returns the path of the shared socket, which apps use.
    pub fn socket(&self) -> PathBuf {
        self.path.join("shared/freshd.sock")
    }

    /// Returns the admin socket's path.
    pub fn admin_socket(&self) -> PathBuf {
        self.path.join("admin/freshd.sock")
    }

    /// Returns the path of the daemon's log.
    pub fn log_file(&self) -> PathBuf {
        self.path.join("freshd.log")
    }

    /// Returns the end of the daemon's log, which is about to go with the directory.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(self.log_file()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }

    /// Writes the daemon's configuration and the client secret that it names.
    ///
    /// `server` is the authorization server; the app's rule admits `uid`.
    ///
    /// # Errors
    ///
    /// When a file can't be written, or the directory's name is not UTF-8, which TOML needs.
    pub fn write_config(
        &self,
        server: SocketAddr,
        secret: &ClientSecret,
        uid: u32,
    ) -> io::Result<()> {
        let secret_file = self.path.join("client-secret");
        write_private(&secret_file, secret.expose())?;
        let config = format!(
            "# Written by `freshd demo`, and gone when it ends.\n\
             \n\
             [daemon]\n\
             state-dir = {state}\n\
             socket = {socket}\n\
             admin-socket = {admin}\n\
             key-file = {key}\n\
             \n\
             [refresh]\n\
             inactive-after = \"15s\"\n\
             \n\
             [provider.{PROVIDER}]\n\
             token-endpoint = \"http://{server}/token\"\n\
             revocation-endpoint = \"http://{server}/revoke\"\n\
             client-id = \"{CLIENT_ID}\"\n\
             client-secret = {{ file = {secret} }}\n\
             client-auth = \"basic\"\n\
             rotation = \"strict\"\n\
             scopes = [\"read\"]\n\
             margin = \"5s\"\n\
             \n\
             [app.demo]\n\
             unix-uid = {uid}\n\
             providers = [\"{PROVIDER}\"]\n\
             may = [\"read\", \"import\", \"revoke\"]\n",
            state = quoted(&self.path.join("state"))?,
            socket = quoted(&self.socket())?,
            admin = quoted(&self.admin_socket())?,
            key = quoted(&self.path.join("key"))?,
            secret = quoted(&secret_file)?,
        );
        write_private(&self.config_file(), &config)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            let path = self.path.display();
            // Not eprintln!, which panics where stderr is gone.
            let _ = writeln!(io::stderr(), "freshd: demo: cannot remove {path}: {error}");
        }
    }
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// Returns a path as a TOML string.
fn quoted(path: &Path) -> io::Result<String> {
    let text = path.to_str().ok_or_else(|| {
        let message = format!(
            "{} is not UTF-8: set TMPDIR to a directory that is",
            path.display()
        );
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })?;
    Ok(toml::Value::from(text).to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn written(parent: &Path) -> Directory {
        let directory = Directory::make(parent).unwrap();
        let server = SocketAddr::from(([127, 0, 0, 1], 4711));
        directory
            .write_config(server, &ClientSecret::new("canary"), 1000)
            .unwrap();
        directory
    }

    #[test]
    fn nobody_else_can_look_inside_and_it_is_gone_when_dropped() {
        let parent = tempfile::tempdir().unwrap();
        let directory = written(parent.path());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(directory.path()), 0o700);
        assert_eq!(mode(&directory.path().join("client-secret")), 0o600);
        drop(directory);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_configuration_is_toml_whatever_the_directory_is_called_and_holds_no_secret() {
        let parent = tempfile::tempdir().unwrap();
        let odd = parent.path().join("it's \"odd\" \\ really");
        std::fs::create_dir(&odd).unwrap();
        let directory = written(&odd);
        let text = std::fs::read_to_string(directory.config_file()).unwrap();
        assert!(!text.contains("canary"));
        let config: toml::Table = text.parse().unwrap();
        assert_eq!(
            config["daemon"]["socket"].as_str().unwrap(),
            directory.socket().to_str().unwrap()
        );
        let provider = &config["provider"]["demo"];
        assert_eq!(
            provider["token-endpoint"].as_str(),
            Some("http://127.0.0.1:4711/token")
        );
        let secret_file = provider["client-secret"]["file"].as_str().unwrap();
        assert_eq!(std::fs::read_to_string(secret_file).unwrap(), "canary");
    }
}
