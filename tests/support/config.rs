//! What `freshd.toml` says in a test, and the directory it is in.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::ScriptedServer;

/// What `freshd.toml` will say. Every value is the inside of its TOML section.
pub struct Config {
    dir: tempfile::TempDir,
    /// `[daemon]`, added to the paths.
    pub daemon: String,
    /// `[refresh]`.
    pub refresh: String,
    /// `[outbound]`.
    pub outbound: String,
    /// `[provider.NAME]`.
    pub providers: BTreeMap<String, String>,
    /// `[app.NAME]`.
    pub apps: BTreeMap<String, String>,
    /// What the daemon's environment holds beside the usual.
    pub environment: BTreeMap<String, String>,
}

impl Config {
    /// One app with our uid that may read, import and revoke everywhere; no provider yet.
    pub fn new() -> Config {
        let dir = tempfile::Builder::new()
            .prefix("freshd-")
            .tempdir()
            .expect("a directory");
        for name in ["state", "secrets", "shared", "admin"] {
            private_dir(&dir.path().join(name));
        }
        let config = Config {
            dir,
            daemon: String::new(),
            refresh: String::new(),
            outbound: String::new(),
            providers: BTreeMap::new(),
            apps: BTreeMap::new(),
            environment: BTreeMap::new(),
        };
        config.app(
            "test",
            &format!("{}\nmay = [\"read\", \"import\", \"revoke\"]", our_uid()),
        )
    }

    /// Adds to `[daemon]`.
    pub fn daemon(mut self, toml: &str) -> Config {
        self.daemon = format!("{}\n{toml}", self.daemon);
        self
    }

    /// Sets a variable of the daemon's environment.
    pub fn environment(mut self, name: &str, value: &str) -> Config {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets `[refresh]`.
    pub fn refresh(mut self, toml: &str) -> Config {
        self.refresh = toml.to_owned();
        self
    }

    /// Adds a provider whose endpoints are `server`'s and whose client is `client-NAME`.
    pub fn provider(self, name: &str, server: &ScriptedServer, toml: &str) -> Config {
        let (token, revocation) = (server.token_endpoint(), server.revocation_endpoint());
        let client = format!("client-{name}");
        self.provider_at(
            name,
            &token,
            &revocation,
            &client,
            &format!("secret of {name}"),
            toml,
        )
    }

    /// Adds a provider anywhere. The secret goes into a file of its own.
    pub fn provider_at(
        mut self,
        name: &str,
        token_endpoint: &str,
        revocation_endpoint: &str,
        client_id: &str,
        client_secret: &str,
        toml: &str,
    ) -> Config {
        self.write_secret(name, client_secret);
        let file = self.secret_file(name);
        let section = format!(
            "client-id = {client_id:?}\n\
             client-secret = {{ file = {file:?} }}\n\
             token-endpoint = {token_endpoint:?}\n\
             revocation-endpoint = {revocation_endpoint:?}\n\
             {toml}"
        );
        self.providers.insert(name.to_owned(), section);
        self
    }

    /// Adds an app's rule.
    pub fn app(mut self, name: &str, toml: &str) -> Config {
        // Not every key has a default that suits a test; what the rule says itself wins.
        let mut section = toml.to_owned();
        if !toml.contains("providers") {
            section.push_str("\nproviders = [\"*\"]");
        }
        self.apps.insert(name.to_owned(), section);
        self
    }

    /// Adds an app with a socket of its own, which [`Freshd::app_socket`] names.
    pub fn app_with_socket(self, name: &str, toml: &str) -> Config {
        let directory = self.path().join(name);
        private_dir(&directory);
        let socket = directory.join("freshd.sock");
        self.app(name, &format!("socket = {socket:?}\n{toml}"))
    }

    /// Returns the directory that holds all of it.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns where the client secret of a provider is.
    pub fn secret_file(&self, provider: &str) -> PathBuf {
        self.path().join("secrets").join(provider)
    }

    /// Writes a client secret, readable by us alone.
    pub fn write_secret(&self, provider: &str, secret: &str) {
        write_private(&self.secret_file(provider), secret.as_bytes());
    }

    /// Returns where the configuration is.
    pub fn file(&self) -> PathBuf {
        self.path().join("freshd.toml")
    }

    /// Returns where the key is.
    pub fn key_file(&self) -> PathBuf {
        self.path().join("key")
    }

    /// Returns the state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.path().join("state")
    }

    /// Returns the shared socket.
    pub fn socket(&self) -> PathBuf {
        self.path().join("shared/freshd.sock")
    }

    /// Returns the admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.path().join("admin/freshd.sock")
    }

    /// Returns the file's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let paths = [
            ("state-dir", self.state_dir()),
            ("socket", self.socket()),
            ("admin-socket", self.admin_socket()),
            ("key-file", self.key_file()),
        ];
        text.push_str("[daemon]\n");
        for (key, path) in paths {
            let _ = writeln!(text, "{key} = {path:?}");
        }
        let _ = writeln!(
            text,
            "{}\n[refresh]\n{}\n[outbound]\n{}",
            self.daemon, self.refresh, self.outbound
        );
        for (name, section) in &self.providers {
            let _ = writeln!(text, "\n[provider.{name}]\n{section}");
        }
        for (name, section) in &self.apps {
            let _ = writeln!(text, "\n[app.{name}]\n{section}");
        }
        text
    }

    /// Writes the file.
    pub fn write(&self) {
        std::fs::write(self.file(), self.text()).expect("the directory is ours");
    }
}

/// Returns the line of an app's rule that matches this process.
pub fn our_uid() -> String {
    format!("unix-uid = {}", rustix::process::getuid().as_raw())
}

fn private_dir(path: &Path) {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .expect("the directory is ours");
}

/// Writes a file of mode 0600.
pub fn write_private(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).expect("the directory is ours");
    file.write_all(bytes).expect("there is room");
}
