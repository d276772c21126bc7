//! `key`: the data key (online), the key-encryption key and the recovery key (with no daemon running).

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use zeroize::Zeroizing;

use super::Session;
use super::args::{ChangeKek, Recovery};
use super::client::Call;
use super::console::Console;
use super::failure::{Exit, Failure};
use super::local::{Place, STOP, chain, exit, new_private_file, no_key, place};
use super::output::{Look, escape};
use crate::local_api::types::KeysView;
use crate::store::Kek;
use crate::store::RecoveryKey;
use crate::store::rekey::{self, Changed, Proof, RekeyError};

/// Longer than a recovery key with whatever spaces somebody put in.
const LONGEST: u64 = 1024;

/// Has the daemon begin a rotation of the data key.
pub(super) async fn rotate(session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let answer = session.client.send(&Call::post("/v1/keys/rotate")).await?;
    if session.look.json {
        session.console.print_body(&answer.body)?;
        return Ok(Exit::Ok);
    }
    let keys: KeysView = answer.read()?;
    session.console.print(&format!(
        "data key {} seals from now on; what older ones sealed is sealed anew, and then they are retired\n",
        keys.current
    ))?;
    session.console.note(
        "freshctl status shows how far it is; it goes on after a restart. What does not open now (quarantined grants) never will, once the old key is gone",
    );
    Ok(Exit::Ok)
}

/// Wraps the keyring by another key-encryption key, and says what to do with that.
pub(super) fn change_kek(
    args: &ChangeKek,
    config: Option<&Path>,
    look: Look,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let place = place(config, console)?;
    let new = Kek::read_file(&args.new_key_file)
        .map_err(|error| no_key(&error, "freshctl key generate FILE makes a new one"))?;
    let recovery = read_recovery_key(args.recovery_key_file.as_deref(), console)?;
    let kek;
    let proof = match &recovery {
        Some(key) => Proof::Recovery(key),
        None => {
            kek = place.find_key(args.key_file.as_deref())?;
            Proof::Kek(&kek)
        }
    };
    let dir = place.described.state_dir.as_ref();
    let changed = rekey::change_kek(dir, proof, &new, args.drop_recovery)
        .map_err(|error| failure(&error, "--recovery-key-file keeps it, --drop-recovery ends it (then make another: freshctl key recovery)"))?;
    if look.json {
        let done = serde_json::json!({ "changed": changed == Changed::Done });
        console.print_json(&done)?;
        return Ok(Exit::Ok);
    }
    let file = escape(&args.new_key_file.to_string_lossy());
    if changed == Changed::Already {
        console.print(&format!(
            "the key in {file} opens the store already; nothing was changed\n"
        ))?;
        return Ok(Exit::Ok);
    }
    console.print(&format!(
        "from now on the key in {file} opens the store, and the old key does not any more\n"
    ))?;
    for line in next(args, &place, &file) {
        console.note(&line);
    }
    Ok(Exit::Ok)
}

/// What has to happen before the daemon is started, and what becomes of the keys of before.
fn next(args: &ChangeKek, place: &Place, file: &str) -> Vec<String> {
    let key_file = escape(&place.described.key_file);
    let put = match Path::new(&place.described.key_file) == args.new_key_file {
        true => format!("freshd reads its key there, at {file}"),
        false => {
            format!("before you start freshd, move {file} to {key_file}, where it reads its key")
        }
    };
    let mut lines = vec![
        format!(
            "{put}; where the unit has LoadCredentialEncrypted=freshd.key, encrypt the new key anew for it"
        ),
        "keep the old key for as long as you keep backups of before: they open with it, not with the new one".to_owned(),
    ];
    if args.recovery_key_file.is_some() {
        lines.push("the recovery key opens the store as before".to_owned());
    }
    if args.drop_recovery {
        lines.push("a recovery key of before opens backups of before and nothing else; freshctl key recovery makes another".to_owned());
    }
    lines.push(
        "was the old key stolen, and the store or its keyring too? Then also, once freshd runs: freshctl key rotate"
            .to_owned(),
    );
    lines
}

/// Makes a recovery key and shows it once, or removes the one that is there.
pub(super) fn recovery(
    args: &Recovery,
    config: Option<&Path>,
    look: Look,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let place = place(config, console)?;
    let kek = place.find_key(args.key_file.as_deref())?;
    let dir = place.described.state_dir.as_ref();
    let key = (!args.remove).then(RecoveryKey::generate);
    // Before it opens anything, so that there is never one that nobody has.
    if let (Some(key), Some(file)) = (&key, &args.output) {
        write_recovery_key(key, file)?;
    }
    rekey::set_recovery(dir, &kek, key.as_ref(), args.replace).map_err(|error| {
        if let Some(file) = &args.output {
            // Ours and useless; the first error is the one to report.
            let _ = std::fs::remove_file(file);
        }
        failure(
            &error,
            "--replace makes another, which ends it; --remove ends it",
        )
    })?;
    match &key {
        Some(key) => show_recovery_key(key, args.output.as_deref(), look, console)?,
        None if look.json => console.print_json(&serde_json::json!({}))?,
        None => console.print(
            "the recovery key opens the keyring no more; backups made with it still open with it\n",
        )?,
    }
    Ok(Exit::Ok)
}

/// Writes it to a new file that no other user may read, down to the disk.
fn write_recovery_key(key: &RecoveryKey, path: &Path) -> Result<(), Failure> {
    let mut file = new_private_file(path)?;
    let text = Zeroizing::new(format!("{}\n", *key.expose()));
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(directory)?.sync_all());
    written.map_err(|error| {
        let _ = std::fs::remove_file(path);
        Failure::new(
            Exit::Io,
            format!("cannot write {}: {error}", path.display()),
        )
    })
}

fn show_recovery_key(
    key: &RecoveryKey,
    output: Option<&Path>,
    look: Look,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    const KEEP: &str = "lock it away, not on this host: with it and a keyring or a backup everything can be opened";
    match (output, look.json) {
        (Some(file), true) => {
            console.print_json(&serde_json::json!({ "output": file.to_string_lossy() }))?;
        }
        (Some(file), false) => {
            let file = escape(&file.to_string_lossy());
            console.print(&format!("wrote the recovery key to {file}\n"))?;
            console.note(&format!("it is nowhere else. Take it from here and {KEEP}"));
            return Ok(());
        }
        (None, true) => {
            console.print_json(&serde_json::json!({ "recovery_key": key.expose().as_str() }))?;
        }
        (None, false) => {
            let text = Zeroizing::new(format!("{}\n", *key.expose()));
            console.print(&text)?;
            console.note(&format!("this is shown once. Write it down and {KEEP}"));
        }
    }
    if output.is_none() && console.terminals.stdout_is_readable {
        console.note(
            "warning: standard output is a file that other users may read: close it to them (chmod 600). --output FILE makes one of mode 0600",
        );
    }
    Ok(())
}

/// Reads a recovery key from a file, or from standard input for `-`; `None` where none is named.
pub(super) fn read_recovery_key(
    file: Option<&Path>,
    console: &mut Console<'_>,
) -> Result<Option<RecoveryKey>, Failure> {
    let Some(file) = file else { return Ok(None) };
    let mut text = Zeroizing::new(String::with_capacity(LONGEST as usize));
    let read = if file == Path::new("-") {
        (&mut console.stdin).take(LONGEST).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(LONGEST).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::new(Exit::NoInput, format!("{}: {error}", file.display())))?;
    RecoveryKey::from_text(&text)
        .map(Some)
        .map_err(|error| Failure::new(Exit::Data, error.to_string()))
}

fn failure(error: &RekeyError, about_recovery: &str) -> Failure {
    let failure = Failure::new(exit(error.exit_code()), chain(error));
    match error {
        RekeyError::HasRecovery { .. } => failure.hint(about_recovery),
        RekeyError::Open(_) if error.exit_code() == 75 => failure.hint(STOP),
        _ => failure,
    }
}
