//! `key`: the data key (online), the key-encryption key and the recovery key (with no daemon running).

use std::io::Read;
use std::path::Path;

use zeroize::Zeroizing;

use super::Session;
use super::args::{ChangeKek, Recovery};
use super::client::Call;
use super::console::Console;
use super::failure::{Exit, Failure};
use super::local::{Place, STOP, chain, exit, no_key, place};
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
    console.print(&match changed {
        Changed::Done => format!("the keyring is wrapped by the key in {file} now; the old key does not open it any more\n"),
        Changed::Already => format!("the key in {file} opens the keyring already; nothing was changed\n"),
    })?;
    console.note(&next(&place, &file));
    Ok(Exit::Ok)
}

/// What has to happen before the daemon is started.
fn next(place: &Place, file: &str) -> String {
    let key_file = escape(&place.described.key_file);
    format!(
        "before freshd is started: put {file} where it reads its key: {key_file}, or what the unit's LoadCredential= names. \
         Keep the old key as long as you keep backups made with it. To make stolen copies of the old keyring worthless: freshctl key rotate"
    )
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
    rekey::set_recovery(dir, &kek, key.as_ref(), args.replace).map_err(|error| {
        failure(
            &error,
            "--replace makes another, which ends it; --remove ends it",
        )
    })?;
    match (&key, look.json) {
        (Some(key), true) => {
            console.print_json(&serde_json::json!({ "recovery_key": key.expose().as_str() }))?;
        }
        (None, true) => console.print_json(&serde_json::json!({}))?,
        (Some(key), false) => {
            let text = Zeroizing::new(format!("{}\n", *key.expose()));
            console.print(&text)?;
            console.note(
                "this is shown once. Write it down and lock it away, not on this host: with it and a keyring or a backup everything can be opened",
            );
        }
        (None, false) => console.print(
            "the recovery key opens the keyring no more; backups made with it still open with it\n",
        )?,
    }
    Ok(Exit::Ok)
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
