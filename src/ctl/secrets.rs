//! `export --with-secrets`: encrypted bytes from the daemon, or from a store that no daemon uses, to where an admin wants
//! them. No plain text comes here but within the offline export, in memory.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use http_body_util::BodyExt;
use hyper::HeaderMap;

use super::Session;
use super::args::{Export, State};
use super::call_error::CallError;
use super::client::Call;
use super::console::Console;
use super::failure::{Exit, Failure};
use super::local::{self, STOP, chain, exit, new_private_file, place};
use super::output::{Look, count, escape};
use crate::daemon::clock::Clock;
use crate::local_api::types::{EXPORTED_GRANTS, ExportRequest};
use crate::store::export::{ExportError, Exported, Filter, Recipients, export_offline};

/// Where the encrypted bytes go. A file that was not finished goes.
struct Output {
    file: Option<(PathBuf, File)>,
    whole: bool,
}

impl Output {
    fn open(args: &Export, console: &Console<'_>) -> Result<Output, Failure> {
        let Some(path) = &args.output else {
            if console.terminals.stdout {
                return Err(Failure::new(Exit::Usage, "standard output is a terminal, and this is no text")
                    .hint("--output FILE writes to a new file of mode 0600; or pipe it to where it is to go"));
            }
            return Ok(Output {
                file: None,
                whole: false,
            });
        };
        let file = new_private_file(path)?;
        Ok(Output {
            file: Some((path.clone(), file)),
            whole: false,
        })
    }

    fn write(&mut self, bytes: &[u8], stdout: &mut dyn Write) -> io::Result<()> {
        match &mut self.file {
            Some((_, file)) => file.write_all(bytes),
            None => stdout.write_all(bytes),
        }
    }

    fn finish(&mut self, stdout: &mut dyn Write) -> Result<(), Failure> {
        let written = match &self.file {
            Some((_, file)) => file.sync_all(),
            None => stdout.flush(),
        };
        written.map_err(Failure::output)?;
        self.whole = true;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some((path, _)) = self.file.as_ref().filter(|_| !self.whole) {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn recipients(args: &Export) -> Result<Recipients, Failure> {
    Recipients::read(&args.recipient).map_err(|why| {
        Failure::new(Exit::Usage, why).hint(
            "age-keygen -o key.txt makes a pair; whoever has key.txt can read what is exported",
        )
    })
}

fn state(state: Option<State>) -> Option<String> {
    let value = state?.to_possible_value()?;
    Some(value.get_name().to_owned())
}

/// Has the daemon encrypt, and writes what comes.
pub(super) async fn online(session: &mut Session<'_, '_>, args: &Export) -> Result<Exit, Failure> {
    recipients(args)?;
    let mut output = Output::open(args, session.console)?;
    let request = ExportRequest {
        recipients: args.recipient.clone(),
        state: state(args.state),
        provider: args.provider.clone(),
        missing_scope: args.missing_scope.clone(),
    };
    let call = Call::post("/v1/export").json(&request);
    let begun = session.client.stream(&call).await;
    let mut body = begun.map_err(|error| match &error {
        CallError::Refused(problem, _) if problem.status == 403 => Failure::from(error).hint(
            "run it as root; or set daemon.allow-export = true, which allows it to every admin, and restart freshd",
        ),
        _ => error.into(),
    })?;
    let (mut bytes, mut grants) = (0, None);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Failure::new(Exit::TryLater, "the export was cut short; what has come of it is no whole and does not decrypt to its end")
                .hint("look why: freshctl audit --action exported, and journalctl -u freshd")
        })?;
        match frame.into_data() {
            Ok(data) => {
                bytes += data.len() as u64;
                output
                    .write(&data, session.console.stdout)
                    .map_err(Failure::output)?;
            }
            Err(frame) => grants = frame.trailers_ref().and_then(count_of),
        }
    }
    output.finish(session.console.stdout)?;
    say(args, grants, bytes, session.look, session.console)
}

fn count_of(trailers: &HeaderMap) -> Option<u64> {
    trailers.get(EXPORTED_GRANTS)?.to_str().ok()?.parse().ok()
}

/// Exports a store that no daemon uses.
pub(super) fn offline(
    args: &Export,
    namespace: Option<&str>,
    config: Option<&Path>,
    look: Look,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let to = recipients(args)?;
    let place = place(config, console)?;
    let kek = place.find_key(args.key_file.as_deref())?;
    let mut output = Output::open(args, console)?;
    let filter = Filter {
        namespace: namespace.map(str::to_owned),
        state: state(args.state),
        provider: args.provider.clone(),
        missing_scope: args.missing_scope.clone(),
        ..Filter::default()
    };
    let by = format!("uid {}", rustix::process::getuid().as_raw());
    let mut out = Counted {
        output: &mut output,
        stdout: console.stdout,
        bytes: 0,
    };
    let runtime = local::runtime()?;
    let exported = runtime.block_on(export_offline(
        place.described.state_dir.as_ref(),
        &kek,
        filter,
        &to,
        &by,
        Clock::system().now(),
        &mut out,
    ));
    let bytes = out.bytes;
    let exported = exported.map_err(|error| failure(&error))?;
    if let Some(name) = &args.provider
        && exported == Exported::default()
        && place.described.providers.iter().all(|it| it.name != *name)
    {
        let text = format!("provider {name:?} is not configured, and no grant is of it");
        return Err(Failure::new(Exit::NoSuchGrant, text)
            .hint("freshctl check-config lists those that are configured"));
    }
    output.finish(console.stdout)?;
    if exported.left_out > 0 {
        console.note(&format!(
            "{} left out: none of their tokens opens (freshctl grants --reason quarantined)",
            count(exported.left_out, "grant")
        ));
    }
    say(args, Some(exported.grants), bytes, look, console)
}

/// Counts what is written.
struct Counted<'a> {
    output: &'a mut Output,
    stdout: &'a mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes, self.stdout)?;
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failure(error: &ExportError) -> Failure {
    let failure = Failure::new(exit(error.exit_code()), chain(error));
    match error {
        ExportError::Open(open) if open.exit_code() == 75 => {
            failure.hint(format!("{STOP}; or leave --offline out"))
        }
        ExportError::Held(_) => {
            failure.hint("mend the disk, and start freshd: it stores them. Then stop it and export")
        }
        ExportError::NoStore(_) => {
            failure.hint("--config names the configuration that says where it is")
        }
        _ => failure,
    }
}

/// Says where it is; on standard output only if the export itself is not there.
fn say(
    args: &Export,
    grants: Option<u64>,
    bytes: u64,
    look: Look,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let number = grants.map_or_else(String::new, |grants| {
        format!("{}, ", count(grants, "grant"))
    });
    let to = count(args.recipient.len() as u64, "recipient");
    let told = format!("exported {number}{bytes} bytes, encrypted to {to}");
    match &args.output {
        Some(path) if look.json => {
            let path = path.to_string_lossy();
            console.print_json(
                &serde_json::json!({ "output": path, "grants": grants, "bytes": bytes }),
            )?;
        }
        Some(path) => {
            console.print(&format!("{told}, to {}\n", escape(&path.to_string_lossy())))?
        }
        None => console.note(&told),
    }
    if !args.offline {
        console.note("what freshd refreshes from now on makes an exported refresh token that rotates worthless");
    }
    Ok(Exit::Ok)
}
