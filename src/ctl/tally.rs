//! Keeps count of an import: totals, report, progress.

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Session;
use super::args::Import;
use super::failure::Failure;
use super::import::{self, Entry, Malformed, Mark, OBJECT_LIMIT};
use super::lines::Line;
use super::output::{count, escape};
use super::report::{Checkpoint, Record, Report};

/// So many lines are told of on standard error; the report has them all.
const TOLD: u64 = 20;

/// Names a grant: namespace, user, provider.
pub(super) type Place = (Option<String>, String, String);

pub(super) fn place(entry: &Entry) -> Place {
    (
        entry.namespace.clone(),
        entry.user.clone(),
        entry.provider.clone(),
    )
}

/// How many lines became what.
#[derive(Default, Serialize)]
pub(super) struct Totals {
    lines: u64,
    created: u64,
    replaced: u64,
    unchanged: u64,
    pub not_taken: u64,
    /// Of those not taken: the ones that could not be read.
    malformed: u64,
    /// Taken by the run whose report was given.
    skipped: u64,
}

/// Keeps count, and tells what was not taken.
pub(super) struct Tally {
    pub totals: Totals,
    report: Option<Report>,
    taken: Checkpoint,
    bar: ProgressBar,
    /// Whether an export has begun whose end has not come.
    pub unended: bool,
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

fn sentence(totals: &Totals) -> String {
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
    let told =
        totals.created + totals.replaced + totals.unchanged + totals.not_taken + totals.skipped;
    let unanswered = totals.lines.saturating_sub(told);
    if unanswered > 0 {
        text.push_str(&format!(
            ", {unanswered} without an answer, which may have been taken"
        ));
    }
    text.push('\n');
    text
}

impl Tally {
    /// Opens the report, new or of an earlier run, and shows the bar.
    pub(super) fn new(args: &Import, terminal: bool, size: Option<u64>) -> Result<Tally, Failure> {
        let (report, taken) = match (&args.report, &args.resume_from) {
            (Some(path), _) => (Some(Report::create(path)?), Checkpoint::new()),
            (None, Some(path)) => {
                let (report, taken) = Report::resume(path)?;
                (Some(report), taken)
            }
            (None, None) => (None, Checkpoint::new()),
        };
        Ok(Tally {
            totals: Totals::default(),
            report,
            taken,
            bar: progress(terminal, size),
            unended: false,
        })
    }

    /// Takes the bar away and prints the totals.
    pub(super) fn summary(&self, session: &mut Session<'_, '_>) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        if session.look.json {
            return session.console.print_json(&self.totals);
        }
        session.console.print(&sentence(&self.totals))
    }

    /// Takes one line in: returns what is to be sent, or counts what isn't.
    pub(super) fn look_at(
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
        let mark = line.text.as_deref().and_then(import::mark);
        if let Some(mark) = mark {
            self.unended = mark == Mark::Header;
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

    pub(super) fn count(
        &mut self,
        session: &mut Session<'_, '_>,
        record: Record,
    ) -> Result<(), Failure> {
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

    /// Tells something beside the progress.
    pub(super) fn say(&self, session: &mut Session<'_, '_>, text: &str) {
        self.bar.suspend(|| session.console.note(text));
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
