//! `restore`: puts a copy in the store's place. Needs the configuration and no daemon.

use std::path::{Path, PathBuf};

use super::args::Restore as Args;
use super::console::Console;
use super::failure::{Exit, Failure};
use super::keys::read_recovery_key;
use super::local::{NAME_KEY, STOP, chain, exit, no_key, place};
use super::output::{Look, count, escape};
use crate::daemon::clock::Clock;
use crate::store::restore::{self, Restore, RestoreError, Restored};

/// What to do where there is no key: a new one alone opens no copy.
const OPENS_COPY: &str = "put back the key that freshd had when the copy was made; \
    or, with the recovery key, a new one in its place (freshctl key generate), and --recovery-key-file";

/// Restores a copy and says what is to be done next.
pub(super) fn restore(
    args: &Args,
    config: Option<&Path>,
    look: Look,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let place = place(config, console)?;
    let kek = place
        .read_key(args.key_file.as_deref())
        .map_err(|error| no_key(&error, &format!("{OPENS_COPY}\n{NAME_KEY}")))?;
    let recovery = read_recovery_key(args.recovery_key_file.as_deref(), console)?;
    // An unknown provider counts as rotating, as an unknown class does.
    let rotates = |name: &str| {
        let provider = place.described.providers.iter().find(|p| p.name == name);
        provider.is_none_or(|provider| provider.rotation != "none")
    };
    let restored = restore::restore(&Restore {
        file: &args.file,
        dir: place.described.state_dir.as_ref(),
        kek: &kek,
        recovery: recovery.as_ref(),
        replace: args.replace,
        rotates: &rotates,
        at: Clock::system().now(),
    })
    .map_err(|error| {
        let failure = Failure::new(exit(error.exit_code()), chain(&error));
        match error {
            RestoreError::Exists { .. } => failure.hint(
                "--replace moves the store that is there aside, and puts the copy in its place",
            ),
            RestoreError::Open(open) if open.exit_code() == 75 => failure.hint(STOP),
            _ => failure,
        }
    })?;
    say(&restored, look, console)?;
    Ok(Exit::Ok)
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
