//! Which socket to talk to.

use std::ffi::OsString;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use super::failure::{Exit, Failure};
use crate::config::{Defaults, SYSTEM_FILE};

const SYSTEM_SOCKET: &str = "/run/freshd/admin/freshd.sock";
const WHICH: &str =
    "mend it (freshctl check-config names the line), or name the daemon's socket: --socket PATH";

/// Which socket it is.
#[derive(Debug)]
pub struct Found {
    /// The socket.
    pub path: PathBuf,
    /// Why this is a guess: nobody named a configuration, and the default one can't be understood. Only who looks may go on.
    pub doubt: Option<Failure>,
}

impl Found {
    fn sure(path: impl Into<PathBuf>) -> Found {
        Found {
            path: path.into(),
            doubt: None,
        }
    }
}

/// Returns the socket's path: `named` by `--socket` or `FRESHD_SOCKET`, else the configured `daemon.admin-socket`,
/// else the default one. Without root the user's own files come before the system's.
///
/// # Errors
/// A configuration that was named by `--config` can't be read (66) or understood (78): its daemon is another one
/// than the default.
pub fn find(
    named: Option<&Path>,
    config: Option<&Path>,
    env: &dyn Fn(&str) -> Option<OsString>,
    root: bool,
) -> Result<Found, Failure> {
    if let Some(path) = named {
        return Ok(Found::sure(path));
    }
    if let Some(path) = env("FRESHD_SOCKET").filter(|path| !path.is_empty()) {
        return Ok(Found::sure(path));
    }
    if let Some(file) = config {
        let path = configured(file, true)?;
        return Ok(Found::sure(path.unwrap_or_else(|| SYSTEM_SOCKET.into())));
    }
    if !root {
        // The same directories that a daemon without root takes.
        let text = |name: &str| env(name)?.into_string().ok();
        let own = Defaults::user(&text);
        let (found, default) = (configured(&own.file, false), own.daemon.admin_socket);
        if default.exists() || !matches!(found, Ok(None)) {
            return Ok(or_default(found, default));
        }
    }
    let found = configured(Path::new(SYSTEM_FILE), false);
    Ok(or_default(found, SYSTEM_SOCKET.into()))
}

fn or_default(found: Result<Option<PathBuf>, Failure>, default: PathBuf) -> Found {
    match found {
        Ok(path) => Found::sure(path.unwrap_or(default)),
        Err(doubt) => Found {
            path: default,
            doubt: Some(doubt),
        },
    }
}

/// Reads `daemon.admin-socket` from a configuration file and the `conf.d/*.toml` beside it; the last one wins.
///
/// Only this key is looked at: an admin who may use the socket need not be able to read
/// every secret that a whole configuration names. What is not there, or closed to us, says nothing where
/// nobody named it.
fn configured(file: &Path, named: bool) -> Result<Option<PathBuf>, Failure> {
    let mut found = admin_socket(file, named)?;
    let beside = file.with_file_name("conf.d");
    let listed = std::fs::read_dir(&beside)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut more: Vec<PathBuf> = match listed {
        Ok(paths) => paths,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) if absent(&error, named) => Vec::new(),
        Err(error) => return Err(unreadable(&beside, &error)),
    };
    more.retain(|path| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        name.ends_with(b".toml") && !name.starts_with(b".")
    });
    more.sort();
    for file in more {
        found = admin_socket(&file, named)?.or(found);
    }
    Ok(found)
}

fn absent(error: &Error, named: bool) -> bool {
    use ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    !named && matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

/// Reads the key from one file.
fn admin_socket(file: &Path, named: bool) -> Result<Option<PathBuf>, Failure> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if absent(&error, named) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            return Err(wrong(file, "is not UTF-8 text"));
        }
        Err(error) => return Err(unreadable(file, &error)),
    };
    // The library's own message quotes the line, which may hold a secret; its bare words don't.
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        wrong(file, &format!("is not TOML: {}", error.message()))
    })?;
    let Some(value) = table.get("daemon").and_then(|it| it.get("admin-socket")) else {
        return Ok(None);
    };
    match value.as_str().map(Path::new) {
        Some(path) if path.is_absolute() => Ok(Some(path.into())),
        _ => Err(wrong(
            file,
            "has a daemon.admin-socket that is no absolute path",
        )),
    }
}

fn unreadable(file: &Path, error: &Error) -> Failure {
    let text = format!("cannot open {}: {error}", file.display());
    Failure::new(Exit::NoInput, text).hint(
        "name a file that is there and that you may read, or the daemon's socket: --socket PATH",
    )
}

fn wrong(file: &Path, what: &str) -> Failure {
    let text = format!(
        "{} {what}, so it does not say which socket its freshd has",
        file.display()
    );
    Failure::new(Exit::Config, text).hint(WHICH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<OsString> {
        None
    }

    #[test]
    fn the_option_comes_before_the_environment_and_that_before_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("freshd.toml");
        std::fs::write(&config, "[daemon]\nadmin-socket = \"/a\"\n").unwrap();
        let env = |name: &str| (name == "FRESHD_SOCKET").then(|| OsString::from("/e"));
        let named = Path::new("/n");
        assert_eq!(
            find(Some(named), Some(&config), &env, true).unwrap().path,
            named
        );
        assert_eq!(
            find(None, Some(&config), &env, true).unwrap().path,
            Path::new("/e")
        );
        assert_eq!(
            find(None, Some(&config), &none, true).unwrap().path,
            Path::new("/a")
        );
    }

    #[test]
    fn a_drop_in_wins_over_the_file_even_where_other_keys_are_nonsense() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("freshd.toml");
        std::fs::write(&config, "nonsense = 1\n[daemon]\nadmin-socket = \"/a\"\n").unwrap();
        std::fs::create_dir(dir.path().join("conf.d")).unwrap();
        std::fs::write(
            dir.path().join("conf.d/1.toml"),
            "[daemon]\nadmin-socket = \"/b\"",
        )
        .unwrap();
        std::fs::write(dir.path().join("conf.d/2.toml"), "[provider.x]\n").unwrap();
        assert_eq!(
            find(None, Some(&config), &none, true).unwrap().path,
            Path::new("/b")
        );
    }

    #[test]
    fn without_root_the_users_own_files_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let (home, runtime) = (dir.path().join("config"), dir.path().join("run"));
        std::fs::create_dir_all(home.join("freshd")).unwrap();
        std::fs::create_dir_all(runtime.join("freshd/admin")).unwrap();
        let env = |name: &str| match name {
            "XDG_CONFIG_HOME" => Some(home.clone().into_os_string()),
            "XDG_RUNTIME_DIR" => Some(runtime.clone().into_os_string()),
            _ => None,
        };
        let socket = runtime.join("freshd/admin/freshd.sock");
        assert_ne!(
            find(None, None, &env, false).unwrap().path,
            socket,
            "it is not there yet"
        );
        std::fs::write(&socket, "").unwrap();
        assert_eq!(find(None, None, &env, false).unwrap().path, socket);
        std::fs::write(
            home.join("freshd/freshd.toml"),
            "[daemon]\nadmin-socket = \"/mine\"\n",
        )
        .unwrap();
        assert_eq!(
            find(None, None, &env, false).unwrap().path,
            Path::new("/mine")
        );
    }

    #[test]
    fn without_a_runtime_directory_the_socket_is_found_where_the_daemon_puts_it() {
        let home = tempfile::tempdir().unwrap();
        let env = |name: &str| (name == "HOME").then(|| home.path().into());
        let socket = home
            .path()
            .join(".local/state/freshd/run/admin/freshd.sock");
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        std::fs::write(&socket, "").unwrap();
        assert_eq!(find(None, None, &env, false).unwrap().path, socket);
    }

    #[test]
    fn a_named_configuration_has_to_be_there() {
        let failure = find(None, Some(Path::new("/nowhere/freshd.toml")), &none, true).unwrap_err();
        assert_eq!(exit_of(&failure), Exit::NoInput);
    }

    #[test]
    fn a_named_configuration_that_is_wrong_never_means_the_default_socket() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("freshd.toml");
        let refused = |text: &[u8]| {
            std::fs::write(&config, text).unwrap();
            find(None, Some(&config), &none, true).unwrap_err()
        };
        let sound = b"[daemon]\nadmin-socket = \"/a\"\n";
        for text in [
            b"[daemon\nclient-secret = \"hunter2".as_slice(),
            b"[daemon]\nadmin-socket = \"a\"",
            b"[daemon]\nadmin-socket = 1",
            b"\xff",
        ] {
            let failure = refused(text);
            assert_eq!(exit_of(&failure), Exit::Config, "{failure:?}");
            assert!(failure.next().contains("--socket"), "{failure:?}");
            assert!(!failure.message().contains("hunter2"), "{failure:?}");
        }
        std::fs::create_dir(dir.path().join("conf.d")).unwrap();
        std::fs::write(dir.path().join("conf.d/1.toml"), "[daemon").unwrap();
        assert_eq!(exit_of(&refused(sound)), Exit::Config, "a drop-in");
        std::fs::remove_file(dir.path().join("conf.d/1.toml")).unwrap();
        std::fs::create_dir(dir.path().join("conf.d/2.toml")).unwrap();
        assert_eq!(exit_of(&refused(sound)), Exit::NoInput, "a directory");
    }

    #[test]
    fn a_default_configuration_that_is_wrong_leaves_the_default_socket_in_doubt() {
        let dir = tempfile::tempdir().unwrap();
        let env = |name: &str| match name {
            "XDG_CONFIG_HOME" => Some(dir.path().into()),
            "XDG_RUNTIME_DIR" => Some(dir.path().join("run").into_os_string()),
            _ => None,
        };
        std::fs::create_dir(dir.path().join("freshd")).unwrap();
        std::fs::write(dir.path().join("freshd/freshd.toml"), "[daemon").unwrap();
        let found = find(None, None, &env, false).unwrap();
        assert_eq!(found.path, dir.path().join("run/freshd/admin/freshd.sock"));
        assert_eq!(exit_of(&found.doubt.unwrap()), Exit::Config);
    }

    fn exit_of(failure: &Failure) -> Exit {
        match failure {
            Failure::Told { exit, .. } => *exit,
            Failure::BrokenPipe => panic!("quiet"),
        }
    }
}
