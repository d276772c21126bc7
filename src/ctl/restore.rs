//! `restore`: puts a copy in the store's place. Needs the configuration and no daemon.

use std::error::Error;
use std::path::{Path, PathBuf};

use super::args::Restore as Args;
use super::console::Console;
use super::failure::{Exit, Failure};
use super::output::{Look, count, escape};
use crate::config::{self, Defaults};
use crate::daemon::clock::Clock;
use crate::store::Kek;
use crate::store::KeyError;
use crate::store::restore::{self, Restore, RestoreError, Restored};

/// Restores a copy and says what is to be done next.
pub(super) fn restore(
    args: &Args,
    config: Option<&Path>,
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
    let described =
        config::check(config.unwrap_or(&defaults.file), &defaults).map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Failure::new(Exit::Config, lines.join("\n")).hint(
                "the configuration says which providers rotate, and where the state directory is",
            )
        })?;
    let kek = find_key(args, &defaults, described.key_file.as_ref())
        .map_err(|error| Failure::new(Exit::Config, chain(&error)))?;
    // An unknown provider counts as rotating, as an unknown class does.
    let rotates = |name: &str| {
        let provider = described.providers.iter().find(|p| p.name == name);
        provider.is_none_or(|provider| provider.rotation != "none")
    };
    let restored = restore::restore(&Restore {
        file: &args.file,
        dir: described.state_dir.as_ref(),
        kek: &kek,
        recovery: None,
        replace: args.replace,
        rotates: &rotates,
        at: Clock::system().now(),
    })
    .map_err(failure)?;
    say(&restored, look, console)?;
    Ok(Exit::Ok)
}

fn find_key(args: &Args, defaults: &Defaults, configured: &Path) -> Result<Kek, KeyError> {
    if let Some(file) = &args.key_file {
        return Kek::read_file(file);
    }
    if let Some(dir) = &defaults.credentials_dir
        && let Some(kek) = Kek::from_systemd_credential(dir)?
    {
        return Ok(kek);
    }
    Kek::read_file(configured)
}

fn failure(error: RestoreError) -> Failure {
    let exit = match error.exit_code() {
        65 => Exit::Data,
        73 => Exit::CannotCreate,
        74 => Exit::Io,
        75 => Exit::TryLater,
        _ => Exit::Config,
    };
    Failure::new(exit, chain(&error))
}

fn chain(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(&format!(": {error}"));
        cause = error.source();
    }
    message
}

fn say(restored: &Restored, look: Look, console: &mut Console<'_>) -> Result<(), Failure> {
    let moved_to: Option<&PathBuf> = restored.moved_to.as_ref();
    if look.json {
        return console.print_json(&serde_json::json!({
            "made_at": restored.made_at.rfc3339(),
            "grants": restored.grants,
            "suspended": restored.suspended,
            "erased": restored.erased,
            "moved_to": moved_to.map(|path| path.to_string_lossy()),
        }));
    }
    console.print(&format!(
        "restored {} as of {}\n",
        count(restored.grants, "grant"),
        restored.made_at.rfc3339()
    ))?;
    if let Some(path) = moved_to {
        let path = escape(&path.to_string_lossy());
        console.print(&format!("the store that was there is now in {path}\n"))?;
    }
    match restored.erased {
        Some(0) => {}
        Some(erased) => console.print(&format!(
            "{} deleted since then, and again now\n",
            count(erased, "grant")
        ))?,
        None => console.note(
            "the erasure journal of this store is not here, so grants that were deleted since then are back; delete them again",
        ),
    }
    if restored.suspended > 0 {
        console.print(&format!(
            "{} not refreshed until released: freshctl release USER PROVIDER, or --provider P --all\n",
            count(restored.suspended, "grant")
        ))?;
    }
    Ok(())
}
