//! `import --jsonl`: many grants, several at once, and a report.
//!
//! Running an import again is safe: the daemon knows every refresh token a grant has had, and answers
//! `unchanged`. So a request whose answer was lost is simply sent again.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::JoinSet;

use super::Session;
use super::args::Import;
use super::call_error::CallError;
use super::client::{Call, Client};
use super::failure::{Exit, Failure};
use super::import::{self, Entry};
use super::lines::{Line, read_lines};
use super::report::Record;
use super::tally::{Place, Tally, place};

/// Requests in flight at once, each on a connection of its own: while the daemon writes a group of them, the next one comes.
const IN_FLIGHT: usize = 512;
/// A request is sent so often before the import stops: about a minute, where the daemon names no time.
pub(super) const TRIES: u32 = 10;
/// That it waits is told at this try, about a second after the first.
const TOLD_AT: u32 = 3;
/// No pause between two tries is longer, whatever the daemon asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Imports every line of `file`.
pub(super) async fn import(
    session: &mut Session<'_, '_>,
    args: &Import,
    file: &Path,
) -> Result<Exit, Failure> {
    let (input, size) = open(session, file)?;
    session.client.reach().await?;
    let mut tally = Tally::new(args, session.console.terminals.stderr, size)?;
    let ended = {
        let told = told_to_stop()?;
        fly_all(session, args, input, &mut tally, told).await
    };
    tally.summary(session)?;
    ended?;
    if tally.unended {
        return Err(Failure::new(
            Exit::Data,
            "the input is an export that was cut short: its end is missing, and grants with it",
        )
        .hint("export again, and import that: what was taken is unchanged then"));
    }
    Ok(if tally.totals.not_taken == 0 {
        Exit::Ok
    } else {
        Exit::Attention
    })
}

/// Ends when somebody wants this process to end: SIGTERM, or Ctrl-C.
fn told_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    let watch = |kind| {
        signal(kind).map_err(|error| {
            Failure::new(Exit::Internal, format!("cannot watch for signals: {error}"))
        })
    };
    let mut terminate = watch(SignalKind::terminate())?;
    let mut interrupt = watch(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn open(
    session: &mut Session<'_, '_>,
    file: &Path,
) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    if file.as_os_str() == "-" {
        let stdin = std::mem::replace(&mut session.console.stdin, Box::new(io::empty()));
        return Ok((stdin, None));
    }
    let opened = File::open(file).and_then(|opened| {
        let about = opened.metadata()?;
        if about.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok((opened, about.is_file().then_some(about.len())))
    });
    let (opened, size) = opened.map_err(|error| {
        Failure::new(
            Exit::NoInput,
            format!("cannot open {}: {error}", file.display()),
        )
    })?;
    Ok((Box::new(opened), size))
}

/// What came back for one line.
struct Landed {
    record: Record,
    /// Names the grant among those in flight.
    place: Place,
    /// Why the whole import stops, if so.
    stop: Option<CallError>,
}

/// Sends every line; two for one grant never fly together, so that the later one wins.
async fn fly_all(
    session: &mut Session<'_, '_>,
    args: &Import,
    input: Box<dyn Read + Send>,
    tally: &mut Tally,
    told_to_stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let mut told_to_stop = std::pin::pin!(told_to_stop);
    let (waits, mut waiting) = mpsc::unbounded_channel();
    let mut input = read_lines(input);
    let mut lines: VecDeque<io::Result<Line>> = VecDeque::new();
    let mut flights: JoinSet<Landed> = JoinSet::new();
    let mut flying: HashSet<Place> = HashSet::new();
    let mut next: Option<(u64, Entry)> = None;
    let mut ended = false;
    let mut told_that_it_waits = false;
    loop {
        let free = flights.len() < IN_FLIGHT;
        if let Some((number, entry)) =
            next.take_if(|(_, entry)| free && !flying.contains(&place(entry)))
        {
            flying.insert(place(&entry));
            let call = import::call(&entry.user, &entry.provider, &entry.tokens, args);
            let call = match &entry.namespace {
                Some(namespace) => call.namespace(Some(namespace)),
                None => call,
            };
            let client = Arc::clone(&session.client);
            flights.spawn(fly(client, call, number, entry, waits.clone()));
            continue;
        }
        if next.is_none()
            && let Some(line) = lines.pop_front()
        {
            let line = line.map_err(|error| {
                Failure::new(Exit::Io, format!("cannot read the input: {error}"))
            })?;
            next = tally.look_at(session, line)?;
            continue;
        }
        if ended && next.is_none() && flights.is_empty() {
            return Ok(());
        }
        tokio::select! {
            () = &mut told_to_stop => {
                return Err(Failure::new(Exit::TryLater, "stopped by a signal").hint(again(args)));
            }
            Some(why) = waiting.recv() => {
                if !std::mem::replace(&mut told_that_it_waits, true) {
                    tally.say(session, &format!("{why}; trying again for about a minute"));
                }
            }
            Some(flight) = flights.join_next(), if !flights.is_empty() => {
                let landed = flight.map_err(|_| {
                    Failure::new(Exit::Internal, "a request ended unexpectedly")
                })?;
                flying.remove(&landed.place);
                if let Some(error) = landed.stop {
                    return Err(stopped(error, landed.record.line, args));
                }
                tally.count(session, landed.record)?;
            }
            batch = input.recv(), if next.is_none() && !ended => match batch {
                None => ended = true,
                Some(batch) => lines.extend(batch),
            },
        }
    }
}

/// The failure of an import that could not go on.
fn stopped(error: CallError, line: u64, args: &Import) -> Failure {
    match Failure::from(error) {
        Failure::Told {
            exit,
            message,
            hint,
        } => Failure::Told {
            exit,
            message: format!("stopped at line {line}: {message}"),
            hint: Some(
                hint.into_iter()
                    .chain([again(args)])
                    .collect::<Vec<_>>()
                    .join("\n"),
            ),
        },
        pipe => pipe,
    }
}

/// How to go on with an import that has stopped.
fn again(args: &Import) -> String {
    match args.report.as_ref().or(args.resume_from.as_ref()) {
        Some(report) => format!(
            "to go on from here: the same with --resume-from {}",
            report.display()
        ),
        None => "run it again: what was taken is unchanged then".to_owned(),
    }
}

#[derive(Deserialize)]
struct Taken {
    result: String,
}

/// Sends one line's request until it is answered for good, or the tries are used up.
///
/// Says in `waits` why it is to be tried again.
async fn fly(
    client: Arc<Client>,
    call: Call,
    line: u64,
    entry: Entry,
    waits: UnboundedSender<String>,
) -> Landed {
    let mut tries = 0;
    let answer = loop {
        tries += 1;
        match client.send(&call).await {
            Err(error) if error.may_pass() && tries < TRIES => {
                if tries == TOLD_AT {
                    let _ = waits.send(error.to_string());
                }
                tokio::time::sleep(pause(&error, tries)).await;
            }
            answer => break answer,
        }
    };
    let place = place(&entry);
    let mut record = Record {
        line,
        namespace: entry.namespace.clone(),
        user: Some(entry.user.clone()),
        provider: Some(entry.provider.clone()),
        result: "not-taken".to_owned(),
        kind: None,
        detail: None,
    };
    let mut stop = None;
    match answer {
        Ok(answer) => match serde_json::from_slice::<Taken>(&answer.body) {
            Ok(taken) if matches!(taken.result.as_str(), "created" | "replaced" | "unchanged") => {
                record.result = taken.result;
            }
            _ => record.detail = Some("the daemon's answer is not understood".to_owned()),
        },
        Err(CallError::Refused(problem, _)) if !matches!(problem.status, 408 | 429 | 503 | 507) => {
            record.kind = Some(problem.kind);
            record.detail = Some(without_secrets(problem.detail, &entry));
        }
        Err(error) => stop = Some(error),
    }
    Landed {
        record,
        place,
        stop,
    }
}

/// How long to wait before the next try: as long as the daemon says, else doubling. A lost connection is
/// tried again at once, the first time.
pub(super) fn pause(error: &CallError, tries: u32) -> Duration {
    let asked = match error {
        CallError::Refused(problem, _) => problem.retry_after.map(Duration::from_secs),
        CallError::Lost(_) if tries == 1 => Some(Duration::ZERO),
        _ => None,
    };
    asked
        .unwrap_or(Duration::from_millis(100) * 2u32.saturating_pow(tries))
        .min(LONGEST_PAUSE)
}

/// Returns a detail for the report. The daemon quotes no token; if another server should, the report still won't.
fn without_secrets(detail: String, entry: &Entry) -> String {
    let secrets = [&entry.tokens.access_token, &entry.tokens.refresh_token];
    secrets
        .into_iter()
        .flatten()
        .filter(|secret| !secret.is_empty())
        .fold(detail, |detail, secret| {
            detail.replace(secret.as_str(), "[redacted]")
        })
}
