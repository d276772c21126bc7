//! Benchmarks: the real daemon over its real sockets, each figure beside a yardstick that is measured in the same run.
//!
//! `tests/bench/run` builds and starts this. Rounds alternate between freshd and its yardstick, and what counts is the
//! median of their ratios: a machine's speed, and what else runs on it, goes into both.

mod client;
mod daemon;
mod owned;
mod plot;
mod process;
mod provider;
mod report;
mod rows;
mod stock;
mod yardsticks;

use std::path::PathBuf;
use std::process::ExitCode;

use report::Line;

/// Whatever went wrong; people read it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A tool that is not installed: its row is left out, which is no failure.
#[derive(Debug)]
pub struct Missing(pub &'static str);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{0} is not installed (apt-get install {0})", self.0)
    }
}

impl std::error::Error for Missing {}

/// What every row works with.
pub struct Lab {
    /// Where freshd and freshctl are.
    pub binaries: PathBuf,
    /// Where stores are kept and made.
    pub directory: PathBuf,
    /// Once, with few grants.
    pub small: bool,
}

impl Lab {
    /// The one number in a real run, the other one in a small one.
    pub fn of(&self, full: u64, small: u64) -> u64 {
        if self.small { small } else { full }
    }

    /// How many grants there are.
    pub fn grants(&self) -> u64 {
        self.of(1_000_000, 2_000)
    }

    /// How often freshd and its yardstick take turns.
    pub fn rounds(&self) -> u64 {
        self.of(5, 1)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.first().map(String::as_str) {
        Some("--yardstick") => yardsticks::main(&arguments[1..]).map(|()| true),
        _ => run(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tests/bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the rows that were asked for; false if one of them failed.
fn run(arguments: &[String]) -> Result<bool, Error> {
    let (lab, wanted) = arguments_of(arguments)?;
    let _turn = owned::take(&lab.directory)?;
    raise_file_limit()?;
    let (mut lines, mut left_out, mut good) = (Vec::<Line>::new(), Vec::new(), true);
    report::print_head();
    for (row, measure) in rows::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == row) {
            continue;
        }
        match measure(&lab).and_then(finite) {
            Ok(mut measured) => {
                // With few grants, and without optimization, nothing is a verdict.
                if lab.small {
                    measured.iter_mut().for_each(|line| line.reached = None);
                }
                measured.iter().for_each(report::print);
                lines.extend(measured);
            }
            Err(error) => {
                let missing = error.is::<Missing>();
                good &= missing;
                let what = if missing { "LEFT OUT" } else { "FAILED" };
                println!("{row:>5}  {what}: {error}");
                left_out.push((row.to_string(), error.to_string()));
            }
        }
    }
    let file = lab.directory.join(file_name(&lab, &wanted));
    report::write(&file, lab.small, &lines, &left_out)?;
    println!("written to {}", file.display());
    Ok(good)
}

/// What was divided by nothing was not measured.
fn finite(lines: Vec<Line>) -> Result<Vec<Line>, Error> {
    let details = |line: &Line| line.details.values().all(|value| value.is_finite());
    match lines
        .iter()
        .find(|line| !line.freshd.is_finite() || !details(line))
    {
        Some(line) => Err(format!("{}: nothing was measured", line.what).into()),
        None => Ok(lines),
    }
}

/// What a short run measured does not replace what took an hour.
fn file_name(lab: &Lab, wanted: &[String]) -> String {
    let which = wanted.iter().map(|row| format!("-{row}"));
    let small = if lab.small { "-small" } else { "" };
    format!("results{}{small}.json", which.collect::<String>())
}

fn arguments_of(arguments: &[String]) -> Result<(Lab, Vec<String>), Error> {
    let (mut binaries, mut directory, mut small, mut rows) = (None, None, false, Vec::new());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--binaries" => binaries = arguments.next(),
            "--directory" => directory = arguments.next(),
            "--small" => small = true,
            "--help" | "-h" => return Err(names().into()),
            row if rows::ALL.iter().any(|(name, _)| *name == row) => rows.push(row.to_owned()),
            other => return Err(format!("there is no row {other:?}: {}", names()).into()),
        }
    }
    let (Some(binaries), Some(directory)) = (binaries, directory) else {
        return Err("start it by tests/bench/run".into());
    };
    let lab = Lab {
        binaries: binaries.into(),
        directory: directory.into(),
        small,
    };
    Ok((lab, rows))
}

/// What can be asked for.
fn names() -> String {
    let rows: Vec<&str> = rows::ALL.iter().map(|(name, _)| *name).collect();
    format!("what there is are {}, and --small", rows.join(" "))
}

/// Ten thousand connections are more than the usual limit.
fn raise_file_limit() -> Result<(), Error> {
    use rustix::process::{Resource, Rlimit};
    let files = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        ..files
    };
    rustix::process::setrlimit(Resource::Nofile, most)?;
    Ok(())
}
