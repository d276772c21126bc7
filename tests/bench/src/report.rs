//! What was measured, as a table for people and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::{Error, process};

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

impl Aim {
    fn is_reached(self, value: f64) -> bool {
        match self {
            Aim::AtLeast(aim) => value >= aim,
            Aim::AtMost(aim) => value <= aim,
        }
    }
}

impl std::fmt::Display for Aim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Aim::AtLeast(aim) => write!(f, ">= {aim}"),
            Aim::AtMost(aim) => write!(f, "<= {aim}"),
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The row of the README's table.
    pub row: &'static str,
    pub what: String,
    /// What `freshd` and `yardstick` are measured in.
    pub unit: &'static str,
    /// The median of all rounds.
    pub freshd: f64,
    pub yardstick: Option<f64>,
    /// freshd by yardstick: the median of the rounds' ratios.
    pub ratio: Option<f64>,
    /// freshd less yardstick, where that is what counts: the median of the rounds' differences.
    pub difference: Option<f64>,
    /// freshd and yardstick in each round.
    pub rounds: Vec<(f64, f64)>,
    pub aim: Option<Aim>,
    pub reached: Option<bool>,
    /// The load average when it was measured.
    pub load: f64,
    /// Beside the figure.
    pub details: BTreeMap<String, f64>,
}

impl Line {
    pub fn new(
        row: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        freshd: f64,
    ) -> Line {
        Line {
            row,
            what: what.into(),
            unit,
            freshd,
            yardstick: None,
            ratio: None,
            difference: None,
            rounds: Vec::new(),
            aim: None,
            reached: None,
            load: process::load(),
            details: BTreeMap::new(),
        }
    }

    /// Makes a line of rounds that alternated between freshd and its yardstick.
    pub fn of_rounds(
        row: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        rounds: &[(f64, f64)],
    ) -> Line {
        let ratios = rounds.iter().map(|(freshd, yardstick)| freshd / yardstick);
        let ratio = median(ratios.collect());
        let mut line = Line::new(
            row,
            what,
            unit,
            median(rounds.iter().map(|r| r.0).collect()),
        );
        line.yardstick = Some(median(rounds.iter().map(|r| r.1).collect()));
        line.ratio = Some(ratio);
        line.rounds = rounds.to_vec();
        line
    }

    /// The difference of the rounds is what counts, and not the ratio.
    pub fn by_difference(mut self) -> Line {
        self.ratio = None;
        self.difference = Some(median(self.rounds.iter().map(|r| r.0 - r.1).collect()));
        self
    }

    /// The aim is one for the ratio or the difference where there is one, and else for the figure.
    pub fn aim(mut self, aim: Aim) -> Line {
        let figure = self.ratio.or(self.difference).unwrap_or(self.freshd);
        self.aim = Some(aim);
        self.reached = Some(aim.is_reached(figure));
        self
    }

    pub fn detail(mut self, name: &str, value: f64) -> Line {
        self.details.insert(name.into(), value);
        self
    }
}

/// The middle of an odd number of values; the upper middle of an even one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The largest of them, and 0 of none.
pub fn most(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, f64::max)
}

#[derive(Serialize)]
struct Results<'a> {
    at_unix: i64,
    /// What `git describe` says of the source.
    source: String,
    small: bool,
    optimized: bool,
    cpu: String,
    cores: usize,
    kernel: String,
    memory_mib: u64,
    lines: &'a [Line],
    left_out: &'a [(String, String)],
}

/// Writes all as JSON.
pub fn write(
    file: &Path,
    small: bool,
    lines: &[Line],
    left_out: &[(String, String)],
) -> Result<(), Error> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let (cpus, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let kib = value(&memory, "MemTotal").split(' ').next().map(str::parse);
    let results = Results {
        at_unix: crate::stock::now_ms() / 1000,
        source: std::env::var("FRESHD_BENCH_SOURCE").unwrap_or_default(),
        small,
        optimized: !cfg!(debug_assertions),
        cpu: value(&cpus, "model name"),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        memory_mib: kib.and_then(Result::ok).unwrap_or(0u64) / 1024,
        lines,
        left_out,
    };
    // All of it or nothing: the file that is there may have taken an hour.
    let new = file.with_extension("new");
    std::fs::write(&new, serde_json::to_string_pretty(&results)? + "\n")?;
    std::fs::rename(&new, file)?;
    Ok(())
}

/// Prints one line of the table.
pub fn print(line: &Line) {
    let optional = |value: Option<f64>| value.map_or("-".to_owned(), short);
    let difference = line.difference.map(|more| format!("{more:+.1}"));
    let reached = match line.reached {
        None => "",
        Some(true) => "reached",
        Some(false) => "NOT REACHED",
    };
    println!(
        "{:>5}  {:<58} {:>9} {:>9} {:<10} {:>7}  {:<9} {:<11} load {:.1}",
        line.row,
        line.what,
        short(line.freshd),
        optional(line.yardstick),
        line.unit,
        difference.unwrap_or_else(|| optional(line.ratio)),
        line.aim.map_or(String::new(), |aim| aim.to_string()),
        reached,
        line.load,
    );
    for (name, value) in &line.details {
        println!("         {name}: {}", short(*value));
    }
}

/// Prints what is above the table.
pub fn print_head() {
    println!(
        "{:>5}  {:<58} {:>9} {:>9} {:<10} {:>7}  {:<9}",
        "row",
        "what",
        "freshd",
        "yardstick",
        "unit",
        "ratio",
        "aim (of the ratio or difference, if there is one)"
    );
}

fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
