//! The commands that need no daemon: `check-config`, `key generate`, and what those share that work on the
//! state directory.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::Serialize;

use super::console::Console;
use super::failure::{Exit, Failure};
use super::output::{Look, escape};
use crate::config::{self, ConfigError, Defaults, Description, SYSTEM_FILE};
use crate::store::Kek;
use crate::store::KeyError;
use crate::store::rekey::{self, PUT_KEY_BACK};

/// Returns where the configuration is looked for, and what holds where it is silent: as the daemon does, by who we
/// are. Who is not root and has no configuration of their own means the system's.
pub(super) fn defaults(named: Option<&Path>, console: &Console<'_>) -> Defaults {
    let env = console.env;
    let env = |name: &str| env(name).and_then(|value| value.into_string().ok());
    let system = Defaults::system(&env);
    if console.root || env("STATE_DIRECTORY").is_some() {
        return system;
    }
    choose(named, Defaults::user(&env), system)
}

fn choose(named: Option<&Path>, own: Defaults, system: Defaults) -> Defaults {
    let systems = match named {
        Some(file) => file == system.file,
        None => !own.file.exists() && system.file.exists(),
    };
    if systems { system } else { own }
}

/// Reads a configuration, and says which secret files are closed to us where that is no error: an admin of the
/// system's freshd need not be able to read its secrets.
fn read(
    file: &Path,
    defaults: &Defaults,
    console: &Console<'_>,
) -> Result<(Description, Vec<String>), Vec<ConfigError>> {
    if !console.root && file == Path::new(SYSTEM_FILE) {
        config::look(file, defaults)
    } else {
        config::check(file, defaults).map(|described| (described, Vec::new()))
    }
}

/// Checks the configuration and says what it means, or everything that is wrong with it.
pub(super) fn check_config(
    named: Option<&Path>,
    look: Look,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let defaults = defaults(named, console);
    let system = Path::new(SYSTEM_FILE);
    if !console.root && named.is_none() {
        let (file, own) = (defaults.file.display(), defaults.file != system);
        match own {
            false => console.note(&format!(
                "this is {file}, the system's, for you have none of your own"
            )),
            true if system.exists() => console.note(&format!(
                "this is {file}, your own; the system's: freshctl check-config {SYSTEM_FILE}"
            )),
            true => {}
        }
    }
    let checked = read(named.unwrap_or(&defaults.file), &defaults, console);
    let checked = checked.map(|(described, closed)| {
        for file in closed {
            console.note(&format!(
                "{file} holds a client secret, is closed to you and was not checked; root can check it"
            ));
        }
        described
    });
    say_checked(checked, look, console)
}

/// Prints a checked configuration.
pub(super) fn say_checked(
    checked: Result<impl std::fmt::Display + Serialize, Vec<ConfigError>>,
    look: Look,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    match checked {
        Ok(described) if look.json => console.print_json(&described)?,
        Ok(described) => {
            let text: Vec<String> = described.to_string().lines().map(escape).collect();
            console.print(&format!("{}\n", text.join("\n")))?;
        }
        Err(errors) => {
            return Err(refused(&errors));
        }
    }
    Ok(Exit::Ok)
}

/// Makes the failure of a configuration: a line for each error. One that can't be opened is no wrong one, and
/// what it would have said may be all that the others miss.
fn refused(errors: &[ConfigError]) -> Failure {
    let exit = match errors.iter().any(|error| error.unopened) {
        true => Exit::NoInput,
        false => Exit::Config,
    };
    let lines = errors
        .iter()
        .map(|error| error.to_string().replace('\n', " "));
    Failure::new(exit, lines.collect::<Vec<_>>().join("\n"))
}

/// What the configuration says to a command that works on the state directory itself.
pub(super) struct Place {
    pub(super) defaults: Defaults,
    pub(super) described: Description,
}

/// Reads the configuration, which says where the state directory and the key are.
pub(super) fn place(config: Option<&Path>, console: &Console<'_>) -> Result<Place, Failure> {
    let defaults = defaults(config, console);
    let (described, _) =
        read(config.unwrap_or(&defaults.file), &defaults, console).map_err(|errors| {
            refused(&errors).hint(
                "the configuration says where the state directory and the key are, and which providers rotate",
            )
        })?;
    Ok(Place {
        defaults,
        described,
    })
}

impl Place {
    /// Returns the key in `file`, or the one that freshd is started with.
    pub(super) fn find_key(&self, file: Option<&Path>) -> Result<Kek, Failure> {
        let found = self.read_key(file);
        found.map_err(|error| no_key(&error, &format!("{PUT_KEY_BACK}\n{NAME_KEY}")))
    }

    /// The same, for who tells mistakes apart.
    pub(super) fn read_key(&self, file: Option<&Path>) -> Result<Kek, KeyError> {
        let credentials = self.defaults.credentials_dir.as_deref();
        let found = match (file, credentials) {
            (Some(file), _) => Kek::read_file(file).map(Some),
            (None, Some(dir)) => Kek::from_systemd_credential(dir),
            (None, None) => Ok(None),
        };
        match found? {
            None => Kek::read_file_of(self.described.key_file.as_ref(), self.owner()),
            Some(kek) => Ok(kek),
        }
    }

    /// Returns the uid that freshd runs as: ours, but for root the owner of the store, who may be anybody.
    fn owner(&self) -> u32 {
        let ours = rustix::process::geteuid();
        match Owners::of(self.described.state_dir.as_ref()) {
            Some(owners) if ours.is_root() => owners.agreed().unwrap_or(owners.directory),
            _ => ours.as_raw(),
        }
    }
}

/// Whose a state directory is, and the database in it: the uid that freshd runs as, unless somebody has changed one.
#[derive(Clone, Copy)]
pub(super) struct Owners {
    pub(super) directory: u32,
    pub(super) database: Option<u32>,
}

impl Owners {
    /// Looks; `None` where there is no directory.
    pub(super) fn of(dir: &Path) -> Option<Owners> {
        Some(Owners {
            directory: std::fs::metadata(dir).ok()?.uid(),
            database: rekey::owner(dir),
        })
    }

    /// Returns who it must be. Root's is what root made or copied in a service's place; between two others
    /// nothing tells which one is wrong.
    pub(super) fn agreed(self) -> Option<u32> {
        match (self.directory, self.database) {
            (directory, None | Some(0)) => Some(directory),
            (0, Some(database)) => Some(database),
            (directory, Some(database)) => (directory == database).then_some(directory),
        }
    }
}

/// Makes the failure of a key that can't be used; `missing` says what to do where it is not there.
pub(super) fn no_key(error: &KeyError, missing: &str) -> Failure {
    let failure = Failure::new(Exit::Config, chain(error));
    match error {
        KeyError::Missing { .. } => failure.hint(missing),
        _ => failure,
    }
}

/// What to do where the key lies elsewhere.
pub(super) const NAME_KEY: &str = "a key that lies elsewhere is named with --key-file FILE";

/// What to do before a store is worked on that a daemon has; an app's socket would start freshd again.
pub(super) const STOP: &str =
    "stop freshd first: systemctl stop 'freshd-app@*' freshd.socket freshd-admin.socket freshd";

/// Returns what runs a command's waiting.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot start: {error}")))
}

/// An error with its causes, outermost first.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !message.ends_with(&more) {
            message.push_str(&format!(": {more}"));
        }
        cause = error.source();
    }
    message
}

/// Returns the exit code that the store gives an error.
pub(super) fn exit(code: u8) -> Exit {
    match code {
        64 => Exit::Usage,
        65 => Exit::Data,
        66 => Exit::NoInput,
        73 => Exit::CannotCreate,
        74 => Exit::Io,
        75 => Exit::TryLater,
        _ => Exit::Config,
    }
}

/// Opens a new file of mode 0600 for writing.
pub(super) fn new_private_file(path: &Path) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(|error| {
        Failure::new(
            Exit::CannotCreate,
            format!("cannot create {}: {error}", path.display()),
        )
    })
}

/// Writes a new key to a new file of mode 0600.
pub(super) fn generate_key(
    file: &Path,
    look: Look,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    Kek::generate().write_new(file).map_err(|error| {
        Failure::new(Exit::CannotCreate, chain(&error))
            .hint("a key that is there may be the only one that opens a store: name another file")
    })?;
    if look.json {
        console.print_json(&serde_json::json!({ "key_file": file.to_string_lossy() }))?;
    } else {
        let path = escape(&file.to_string_lossy());
        console.print(&format!(
            "wrote a new key to {path}; without it the store cannot be opened\n"
        ))?;
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_configuration_of_their_own_an_admin_means_the_systems() {
        let dir = tempfile::tempdir().unwrap();
        let none = |_: &str| None;
        let at = |name: &str, defaults: Defaults| Defaults {
            file: dir.path().join(name),
            ..defaults
        };
        let (own, system) = (
            at("own", Defaults::user(&none)),
            at("system", Defaults::system(&none)),
        );
        let chosen = |named: Option<&Path>| {
            let chosen = choose(named, own.clone(), system.clone());
            (chosen.file, chosen.daemon.state_dir)
        };
        let is = |it: &Defaults| (it.file.clone(), it.daemon.state_dir.clone());
        assert_eq!(chosen(None), is(&own), "with none of the two");
        std::fs::write(&system.file, "").unwrap();
        assert_eq!(chosen(None), is(&system));
        assert_eq!(chosen(Some("/elsewhere".as_ref())), is(&own));
        std::fs::write(&own.file, "").unwrap();
        assert_eq!(chosen(None), is(&own), "their own comes first");
        assert_eq!(chosen(Some(&system.file)), is(&system), "where it is named");
    }
}
