//! Which socket to talk to.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::failure::{Exit, Failure};
use crate::config::Defaults;

const SYSTEM_CONFIG: &str = "/etc/freshd/freshd.toml";
const SYSTEM_SOCKET: &str = "/run/freshd/admin/freshd.sock";

/// Returns the socket's path: `named` by `--socket` or `FRESHD_SOCKET`, else the configured `daemon.admin-socket`,
/// else the default one. Without root the user's own files come before the system's.
///
/// # Errors
/// Only a configuration that was named by `--config` has to be readable.
pub fn find(
    named: Option<&Path>,
    config: Option<&Path>,
    env: &dyn Fn(&str) -> Option<OsString>,
    root: bool,
) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    if let Some(path) = env("FRESHD_SOCKET").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    if let Some(file) = config {
        std::fs::metadata(file).map_err(|error| {
            Failure::new(
                Exit::NoInput,
                format!("cannot open {}: {error}", file.display()),
            )
        })?;
        if let Some(path) = configured(file) {
            return Ok(path);
        }
    } else if !root {
        // The same directories that a daemon without root takes.
        let text = |name: &str| env(name)?.into_string().ok();
        let own = Defaults::user(&text);
        if let Some(path) = configured(&own.file) {
            return Ok(path);
        }
        if own.daemon.admin_socket.exists() {
            return Ok(own.daemon.admin_socket);
        }
    }
    let system = if config.is_none() {
        configured(Path::new(SYSTEM_CONFIG))
    } else {
        None
    };
    Ok(system.unwrap_or_else(|| PathBuf::from(SYSTEM_SOCKET)))
}

/// Reads `daemon.admin-socket` from a configuration file and the `conf.d/*.toml` beside it; the last one wins.
///
/// Only this key is looked at: an admin who may use the socket need not be able to read
/// every secret that a whole configuration names.
fn configured(file: &Path) -> Option<PathBuf> {
    let mut files = vec![file.to_owned()];
    let beside = file.parent().map(|parent| parent.join("conf.d"));
    let mut more: Vec<PathBuf> = beside
        .and_then(|directory| std::fs::read_dir(directory).ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    more.sort();
    files.append(&mut more);
    files.iter().rev().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        let table: toml::Table = text.parse().ok()?;
        let path = table.get("daemon")?.get("admin-socket")?.as_str()?;
        Path::new(path).is_absolute().then(|| PathBuf::from(path))
    })
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
        assert_eq!(find(Some(named), Some(&config), &env, true).unwrap(), named);
        assert_eq!(
            find(None, Some(&config), &env, true).unwrap(),
            Path::new("/e")
        );
        assert_eq!(
            find(None, Some(&config), &none, true).unwrap(),
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
            find(None, Some(&config), &none, true).unwrap(),
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
            find(None, None, &env, false).unwrap(),
            socket,
            "it is not there yet"
        );
        std::fs::write(&socket, "").unwrap();
        assert_eq!(find(None, None, &env, false).unwrap(), socket);
        std::fs::write(
            home.join("freshd/freshd.toml"),
            "[daemon]\nadmin-socket = \"/mine\"\n",
        )
        .unwrap();
        assert_eq!(find(None, None, &env, false).unwrap(), Path::new("/mine"));
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
        assert_eq!(find(None, None, &env, false).unwrap(), socket);
    }

    #[test]
    fn a_named_configuration_has_to_be_there() {
        let failure = find(None, Some(Path::new("/nowhere/freshd.toml")), &none, true).unwrap_err();
        assert!(
            matches!(
                failure,
                Failure::Told {
                    exit: Exit::NoInput,
                    ..
                }
            ),
            "{failure:?}"
        );
    }
}
