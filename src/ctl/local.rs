//! The commands that need no daemon: `check-config` and `key generate`.

use std::error::Error;
use std::path::Path;

use serde::Serialize;

use super::console::Console;
use super::failure::{Exit, Failure};
use super::output::{Look, escape};
use crate::config::{self, ConfigError, Defaults};
use crate::store::Kek;

/// Checks the configuration and says what it means, or everything that is wrong with it.
pub(super) fn check_config(
    file: Option<&Path>,
    look: Look,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let env = console.env;
    let env = |name: &str| env(name).and_then(|value| value.into_string().ok());
    let defaults = if console.root {
        Defaults::system(&env)
    } else {
        Defaults::user(&env)
    };
    let checked = config::check(file.unwrap_or(&defaults.file), &defaults);
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
            let lines: Vec<String> = errors
                .iter()
                .map(|error| error.to_string().replace('\n', " "))
                .collect();
            return Err(Failure::new(Exit::Config, lines.join("\n")));
        }
    }
    Ok(Exit::Ok)
}

/// Writes a new key to a new file of mode 0600.
pub(super) fn generate_key(
    file: &Path,
    look: Look,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    Kek::generate().write_new(file).map_err(|error| {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Failure::new(Exit::CannotCreate, message)
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
