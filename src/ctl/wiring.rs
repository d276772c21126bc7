//! What `check-config` and `key generate` ask of other modules.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::config::Config;

/// A configuration in words.
#[derive(Serialize)]
pub(super) struct Described {
    files: Vec<String>,
    providers: Vec<String>,
    apps: Vec<String>,
}

/// Says what a configuration means.
pub(super) fn describe(config: &Config) -> Described {
    Described {
        files: config
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect(),
        providers: config.providers.keys().cloned().collect(),
        apps: config.apps.keys().cloned().collect(),
    }
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "files: {}", self.files.join(" "))?;
        writeln!(f, "providers: {}", self.providers.join(" "))?;
        write!(f, "apps: {}", self.apps.join(" "))
    }
}

/// Writes a new key, one line of base64, to a new file of mode 0600.
pub(super) fn write_new_key(path: &Path) -> Result<(), io::Error> {
    let key = Zeroizing::new(rand::random::<[u8; 32]>());
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let text = Zeroizing::new(format!("{}\n", STANDARD.encode(*key)));
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
