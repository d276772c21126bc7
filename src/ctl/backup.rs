//! `backup`: a copy of the store, made by the daemon.

use std::path::Path;
use std::time::Duration;

use super::Session;
use super::client::Call;
use super::failure::{Exit, Failure};
use super::output::{count, escape};
use crate::local_api::types::{BackupAnswer, BackupRequest};

/// A million grants take some twenty seconds, and a final copy waits for requests in flight; the daemon itself gives up a request after 90.
const PATIENCE: Duration = Duration::from_secs(100);

/// Asks for a copy and says what is in it.
pub(super) async fn backup(
    session: &mut Session<'_, '_>,
    file: &Path,
    last: bool,
) -> Result<Exit, Failure> {
    let absolute = std::path::absolute(file)
        .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", file.display())))?;
    let Some(path) = absolute.to_str().map(str::to_owned) else {
        return Err(Failure::new(Exit::Usage, "the file's name is not UTF-8"));
    };
    let call = Call::post("/v1/backup")
        .json(&BackupRequest { path, last })
        .waiting(PATIENCE);
    let answer = session.client.send(&call).await?;
    if session.look.json {
        session.console.print_body(&answer.body)?;
        return Ok(Exit::Ok);
    }
    let made: BackupAnswer = answer.read()?;
    let quarantined = match made.quarantined {
        0 => String::new(),
        n => format!(", {n} of them quarantined"),
    };
    session.console.print(&format!(
        "backed up {}{quarantined} to {}\n",
        count(made.grants, "grant"),
        escape(&made.path)
    ))?;
    if last {
        session.console.print(
            "this store is not refreshed any more; stop freshd here, and freshctl restore the copy on the other host\n",
        )?;
    }
    session.console.note(
        "the copy is sealed; keep the key somewhere else, without it nothing in it can be opened",
    );
    Ok(Exit::Ok)
}
