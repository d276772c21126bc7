//! `import --jsonl`: many grants, several at once, and a report.
//!
//! Running an import again is safe: the daemon knows every refresh token a grant has had, and answers
//! `unchanged`. So a request whose answer was lost is simply sent again.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Session;
use super::args::Import;
use super::client::{Call, CallError, Client};
use super::failure::{Exit, Failure};
use super::import::{self, Entry, Malformed, OBJECT_LIMIT};
use super::output::{count, escape};
use super::report::{Checkpoint, Record, Report};

/// Requests in flight at once, each on a connection of its own.
const IN_FLIGHT: usize = 16;
/// Lines read ahead of what is sent.
const READ_AHEAD: usize = 64;
/// A request is sent so often before the import stops: about a minute, where the daemon names no time.
const TRIES: u32 = 10;
/// No pause between two tries is longer, whatever the daemon asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// So many lines are told of on standard error; the report has them all.
const TOLD: u64 = 20;

/// One line of the input.
struct Line {
    number: u64,
    /// How far into the input it ends, in bytes.
    end: u64,
    /// `None` where it is longer than any token set.
    text: Option<Vec<u8>>,
}

/// How many lines became what.
#[derive(Default, Serialize)]
struct Totals {
    lines: u64,
    created: u64,
    replaced: u64,
    unchanged: u64,
    not_taken: u64,
    /// Of those not taken: the ones that could not be read.
    malformed: u64,
    /// Taken by the run whose report was given.
    skipped: u64,
}

/// Keeps count, and tells what was not taken.
struct Tally {
    totals: Totals,
    report: Option<Report>,
    taken: Checkpoint,
    bar: ProgressBar,
}

/// Imports every line of `file`.
pub(super) async fn import(
    session: &mut Session<'_, '_>,
    args: &Import,
    file: &Path,
) -> Result<Exit, Failure> {
    let (input, size) = open(session, file)?;
    let (report, taken) = match (&args.report, &args.resume_from) {
        (Some(path), _) => (Some(Report::create(path)?), Checkpoint::new()),
        (None, Some(path)) => {
            let (report, taken) = Report::resume(path)?;
            (Some(report), taken)
        }
        (None, None) => (None, Checkpoint::new()),
    };
    let bar = progress(session.console.terminals.stderr, size);
    let mut tally = Tally {
        totals: Totals::default(),
        report,
        taken,
        bar,
    };
    let ended = fly_all(session, args, input, &mut tally).await;
    tally.bar.finish_and_clear();
    let totals = &tally.totals;
    if session.look.json {
        session.console.print_json(totals)?;
    } else {
        session.console.print(&summary(totals))?;
    }
    ended?;
    Ok(if totals.not_taken == 0 {
        Exit::Ok
    } else {
        Exit::Attention
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

/// A bar where the size is known, a counter where not, nothing where nobody watches.
fn progress(terminal: bool, size: Option<u64>) -> ProgressBar {
    if !terminal {
        return ProgressBar::hidden();
    }
    let (bar, shape) = match size {
        Some(size) => (
            ProgressBar::new(size),
            "{bar:30} {percent}% {msg}, {eta} left",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}"),
    };
    bar.with_style(
        ProgressStyle::with_template(shape).expect("the templates above are well-formed"),
    )
}

fn summary(totals: &Totals) -> String {
    let mut text = format!(
        "{}: {} created, {} replaced, {} unchanged, {} not taken",
        count(totals.lines, "line"),
        totals.created,
        totals.replaced,
        totals.unchanged,
        totals.not_taken
    );
    if totals.malformed > 0 {
        text.push_str(&format!(" ({} malformed)", totals.malformed));
    }
    if totals.skipped > 0 {
        text.push_str(&format!(", {} skipped", totals.skipped));
    }
    text.push('\n');
    text
}

/// Reads lines on a thread of its own, so that a slow input holds up no request.
///
/// The thread ends with the input, or at the first line that nobody wants any more.
fn read_lines(input: Box<dyn Read + Send>) -> mpsc::Receiver<io::Result<Line>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let mut input = BufReader::with_capacity(1 << 16, input);
        let (mut number, mut end) = (0, 0);
        loop {
            let line = match read_line(&mut input) {
                Ok(None) => return,
                Ok(Some((length, text))) => {
                    number += 1;
                    end += length;
                    Ok(Line { number, end, text })
                }
                Err(error) => Err(error),
            };
            let last = line.is_err();
            if sender.blocking_send(line).is_err() || last {
                return;
            }
        }
    });
    receiver
}

/// Reads one line and its length; the text is `None` for one that is too long.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<(u64, Option<Vec<u8>>)>> {
    let mut text = Vec::new();
    let length = input
        .take(OBJECT_LIMIT as u64 + 1)
        .read_until(b'\n', &mut text)?;
    if length == 0 {
        return Ok(None);
    }
    if length <= OBJECT_LIMIT || text.ends_with(b"\n") {
        return Ok(Some((length as u64, Some(text))));
    }
    let rest = input.skip_until(b'\n')?;
    Ok(Some(((length + rest) as u64, None)))
}

/// What came back for one line.
struct Landed {
    record: Record,
    /// Names the grant among those in flight.
    place: Place,
    /// Why the whole import stops, if so.
    stop: Option<CallError>,
}

type Place = (Option<String>, String, String);

/// Sends every line; two for one grant never fly together, so that the later one wins.
async fn fly_all(
    session: &mut Session<'_, '_>,
    args: &Import,
    input: Box<dyn Read + Send>,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let mut lines = read_lines(input);
    let mut flights: JoinSet<Landed> = JoinSet::new();
    let mut flying: HashSet<Place> = HashSet::new();
    let mut next: Option<(u64, Entry)> = None;
    let mut ended = false;
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
            flights.spawn(fly(Arc::clone(&session.client), call, number, entry));
            continue;
        }
        if ended && next.is_none() && flights.is_empty() {
            return Ok(());
        }
        tokio::select! {
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
            line = lines.recv(), if next.is_none() && !ended => match line {
                None => ended = true,
                Some(line) => {
                    let line = line.map_err(|error| {
                        Failure::new(Exit::Io, format!("cannot read the input: {error}"))
                    })?;
                    next = tally.look_at(session, line)?;
                }
            },
        }
    }
}

fn place(entry: &Entry) -> Place {
    (
        entry.namespace.clone(),
        entry.user.clone(),
        entry.provider.clone(),
    )
}

/// The failure of an import that could not go on.
fn stopped(error: CallError, line: u64, args: &Import) -> Failure {
    let again = match args.report.as_ref().or(args.resume_from.as_ref()) {
        Some(report) => format!(
            "to go on from here: the same with --resume-from {}",
            report.display()
        ),
        None => "run it again: what was taken is unchanged then".to_owned(),
    };
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
                    .chain([again])
                    .collect::<Vec<_>>()
                    .join("\n"),
            ),
        },
        pipe => pipe,
    }
}

#[derive(Deserialize)]
struct Taken {
    result: String,
}

/// Sends one line's request until it is answered for good, or the tries are used up.
async fn fly(client: Arc<Client>, call: Call, line: u64, entry: Entry) -> Landed {
    let mut tries = 0;
    let answer = loop {
        tries += 1;
        match client.send(&call).await {
            Err(error) if error.may_pass() && tries < TRIES => {
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
        Err(CallError::Refused(problem)) if !matches!(problem.status, 408 | 429 | 503 | 507) => {
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
fn pause(error: &CallError, tries: u32) -> Duration {
    let asked = match error {
        CallError::Refused(problem) => problem.retry_after.map(Duration::from_secs),
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

impl Tally {
    /// Takes one line in: returns what is to be sent, or counts what isn't.
    fn look_at(
        &mut self,
        session: &mut Session<'_, '_>,
        line: Line,
    ) -> Result<Option<(u64, Entry)>, Failure> {
        self.bar.set_position(line.end);
        if line
            .text
            .as_ref()
            .is_some_and(|text| text.trim_ascii().is_empty())
        {
            return Ok(None);
        }
        self.totals.lines += 1;
        let read = match &line.text {
            Some(text) => import::line(text),
            None => Err(Malformed {
                user: None,
                provider: None,
                why: format!("longer than {OBJECT_LIMIT} bytes, so it is no token set"),
            }),
        };
        let number = line.number;
        match read {
            Ok(entry) if self.taken.get(&number) == Some(&place(&entry)) => {
                self.totals.skipped += 1;
                Ok(None)
            }
            Ok(entry) => Ok(Some((number, entry))),
            Err(Malformed {
                user,
                provider,
                why,
            }) => {
                self.totals.malformed += 1;
                let (result, kind) = ("not-taken".to_owned(), Some("malformed".to_owned()));
                let detail = Some(why);
                let record = Record {
                    line: number,
                    namespace: None,
                    user,
                    provider,
                    result,
                    kind,
                    detail,
                };
                self.count(session, record)?;
                Ok(None)
            }
        }
    }

    fn count(&mut self, session: &mut Session<'_, '_>, record: Record) -> Result<(), Failure> {
        match record.result.as_str() {
            "created" => self.totals.created += 1,
            "replaced" => self.totals.replaced += 1,
            "unchanged" => self.totals.unchanged += 1,
            _ => {
                self.totals.not_taken += 1;
                self.tell(session, &record);
            }
        }
        let totals = &self.totals;
        self.bar.set_message(format!(
            "{} lines, {} not taken",
            totals.lines, totals.not_taken
        ));
        match &mut self.report {
            Some(report) => report.add(&record),
            None => Ok(()),
        }
    }

    fn tell(&self, session: &mut Session<'_, '_>, record: &Record) {
        let console = &mut *session.console;
        self.bar.suspend(|| match self.totals.not_taken {
            n if n > TOLD + 1 => {}
            n if n == TOLD + 1 => {
                console.note("more lines were not taken; --report FILE has them all")
            }
            _ => {
                let detail = record.detail.as_deref().unwrap_or_default();
                let kind = record
                    .kind
                    .as_deref()
                    .map(|kind| format!(" ({})", escape(kind)));
                console.note(&format!(
                    "line {}: {detail}{}",
                    record.line,
                    kind.unwrap_or_default()
                ));
            }
        });
    }
}
