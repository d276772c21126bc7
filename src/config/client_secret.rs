//! A client secret, in a file or a systemd credential, never in the configuration itself.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::file::{Files, io_words, show};
use super::load::path;
use super::shape::SecretShape;
use super::value::Rule;
use crate::profile::ClientAuth;
use crate::refresh::token::ClientSecret;

/// No client secret is longer; a bigger file is a mistake.
const SECRET_BYTES: u64 = 64 << 10;

/// Where systemd's credentials are.
#[derive(Debug)]
pub enum Credentials {
    /// In `$CREDENTIALS_DIRECTORY`.
    In(PathBuf),
    /// There are none: whoever needs one is in error.
    Nowhere,
    /// The service has them, we only check its configuration: the names that were asked for are noted. The
    /// secrets are left empty, so what is read so must not be run.
    Elsewhere {
        /// The names that were asked for.
        names: Vec<String>,
        /// Secret files that are closed to us, where these are left empty too and are not errors.
        closed: Option<Vec<String>>,
    },
}

/// Reads a provider's client secret. Returns `Some(None)` where there is no secret and should be none.
pub fn client_secret(
    files: &mut Files,
    key: &str,
    shape: Option<SecretShape>,
    auth: ClientAuth,
    credentials: &mut Credentials,
) -> Option<Option<ClientSecret>> {
    let shape = match (shape, auth) {
        (None, ClientAuth::None) => return Some(None),
        (Some(_), ClientAuth::None) => {
            files.fail(key, "must be left out where client-auth is \"none\"".into());
            return None;
        }
        (None, _) => {
            let auth = auth.name();
            let rule = format!(
                "is missing but client-auth is {auth:?}; a public client has client-auth = \"none\""
            );
            files.fail_missing(key, &rule);
            return None;
        }
        (Some(shape), _) => shape,
    };
    let path = match shape {
        SecretShape::Credential(name) => match credential(files, key, name, credentials)? {
            Some(path) => path,
            None => return Some(Some(ClientSecret::new(""))),
        },
        // A relative path is most likely the secret itself, pasted: it is not shown.
        SecretShape::File(file) if !file.starts_with('/') => {
            let rule =
                "must be an absolute path, never the secret itself; its value is not shown here";
            files.fail(&format!("{key}.file"), rule.into());
            return None;
        }
        SecretShape::File(file) => path(files, &format!("{key}.file"), Some(file))?,
    };
    match read_secret(&path) {
        Ok(secret) => Some(Some(secret)),
        Err(_) if note_closed(&path, credentials) => Some(Some(ClientSecret::new(""))),
        Err(rule) => {
            let path = show(&path.to_string_lossy());
            files.fail(key, format!("is in {path} but {rule}"));
            None
        }
    }
}

/// Notes a file that is closed to us where that is no error.
fn note_closed(path: &Path, credentials: &mut Credentials) -> bool {
    let denied = |error: std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    match credentials {
        Credentials::Elsewhere {
            closed: Some(closed),
            ..
        } if std::fs::File::open(path).is_err_and(denied) => {
            closed.push(path.display().to_string());
            true
        }
        _ => false,
    }
}

/// Returns the credential's path, or `Some(None)` where it is taken to be there unread.
fn credential(
    files: &mut Files,
    key: &str,
    name: String,
    credentials: &mut Credentials,
) -> Option<Option<PathBuf>> {
    // systemd's own rule, so that a name stays within the directory.
    if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
        let rule = "must be the name of a systemd credential, without /";
        files.fail(
            &format!("{key}.credential"),
            format!("is {} but {rule}", show(&name)),
        );
        return None;
    }
    match credentials {
        Credentials::In(dir) => Some(Some(dir.join(name))),
        Credentials::Elsewhere { names, .. } => {
            names.push(name);
            Some(None)
        }
        Credentials::Nowhere => {
            let rule = "$CREDENTIALS_DIRECTORY is not set; run under systemd with LoadCredential=, \
                or use { file = \"/PATH\" }";
            files.fail(key, format!("is the credential {} but {rule}", show(&name)));
            None
        }
    }
}

/// Reads a secret file: UTF-8, one newline at the end cut off, closed to other users.
fn read_secret(path: &Path) -> Result<ClientSecret, Rule> {
    let cannot = |error: std::io::Error| format!("cannot be read: {}", io_words(&error));
    let file = std::fs::File::open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if !metadata.is_file() {
        return Err("it is not a file".into());
    }
    if metadata.mode() & 0o007 != 0 {
        return Err(
            "other users may read or write it; chmod 0600, or 0640 with a group of its own".into(),
        );
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        metadata.len().min(SECRET_BYTES) as usize + 1,
    ));
    file.take(SECRET_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > SECRET_BYTES {
        return Err("it is larger than 64 KiB".into());
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| "it is not UTF-8 text")?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        Err("it is empty".into())
    } else {
        Ok(ClientSecret::new(text))
    }
}
