//! What became of each line of an import: a file that is a checkpoint too.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::failure::{Exit, Failure};
use super::tally::Place;

/// What became of one line. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The line's number, from 1.
    pub line: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Absent where the line has none that can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `provider`, or `provider:account`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// `created`, `replaced`, `unchanged` or `not-taken`.
    pub result: String,
    /// The problem's type; `malformed` where the line was not sent.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A report that is being written. Each record is in the file when [`Report::add`] returns.
pub(super) struct Report {
    file: File,
    path: PathBuf,
}

/// Whose line was taken, by its number.
pub(super) type Checkpoint = HashMap<u64, Place>;

impl Report {
    /// Makes a new report of mode 0600: it names users.
    pub(super) fn create(path: &Path) -> Result<Report, Failure> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let file = file.map_err(|error| {
            let failure = Failure::new(
                Exit::CannotCreate,
                format!("cannot create {}: {error}", path.display()),
            );
            if error.kind() == io::ErrorKind::AlreadyExists {
                return failure.hint("--resume-from goes on where that report ends");
            }
            failure
        })?;
        Ok(Report {
            file,
            path: path.to_owned(),
        })
    }

    /// Reads what an earlier run took, and opens its report to add to it.
    pub(super) fn resume(path: &Path) -> Result<(Report, Checkpoint), Failure> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(path)
            .map_err(|error| {
                Failure::new(
                    Exit::NoInput,
                    format!("cannot open {}: {error}", path.display()),
                )
            })?;
        let taken = checkpoint(&file, path)?;
        if !ends_a_line(&mut file).map_err(|error| broken(path, &error))? {
            // A run that was killed may have left half a record.
            file.write_all(b"\n")
                .map_err(|error| broken(path, &error))?;
        }
        Ok((
            Report {
                file,
                path: path.to_owned(),
            },
            taken,
        ))
    }

    /// Adds a record.
    pub(super) fn add(&mut self, record: &Record) -> Result<(), Failure> {
        let mut text = serde_json::to_vec(record).expect("our own shapes serialize");
        text.push(b'\n');
        self.file.write_all(&text).map_err(|error| {
            Failure::new(
                Exit::Io,
                format!("cannot write {}: {error}", self.path.display()),
            )
        })
    }
}

fn broken(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Io, format!("cannot read {}: {error}", path.display()))
}

/// Reads which lines were taken. A later record of a line wins; half a record is passed over, other text refused.
fn checkpoint(file: &File, path: &Path) -> Result<Checkpoint, Failure> {
    let mut taken = Checkpoint::new();
    let mut reader = BufReader::new(file);
    let (mut number, mut text) = (0, Vec::new());
    loop {
        text.clear();
        if reader
            .read_until(b'\n', &mut text)
            .map_err(|error| broken(path, &error))?
            == 0
        {
            return Ok(taken);
        }
        number += 1;
        match serde_json::from_slice::<Record>(text.trim_ascii_end()) {
            Ok(Record {
                line,
                namespace,
                user: Some(user),
                provider: Some(provider),
                result,
                ..
            }) if result != "not-taken" => {
                taken.insert(line, (namespace, user, provider));
            }
            Ok(record) => {
                taken.remove(&record.line);
            }
            Err(error) if error.is_eof() => {}
            Err(_) => {
                let message = format!("{} line {number} is no record of an import", path.display());
                return Err(Failure::new(Exit::Data, message)
                    .hint("--resume-from wants a file that --report wrote"));
            }
        }
    }
}

fn ends_a_line(file: &mut File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(line: u64, result: &str) -> Record {
        Record {
            line,
            namespace: None,
            user: Some(format!("u{line}")),
            provider: Some("p".to_owned()),
            result: result.to_owned(),
            kind: None,
            detail: None,
        }
    }

    #[test]
    fn a_report_is_taken_up_again_after_half_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report");
        let mut report = Report::create(&path).unwrap();
        report.add(&record(1, "created")).unwrap();
        report.add(&record(2, "not-taken")).unwrap();
        report
            .file
            .write_all(br#"{"line":3,"user":"u3","pro"#)
            .unwrap();
        drop(report);
        let (mut report, taken) = Report::resume(&path).unwrap();
        assert_eq!(taken.keys().collect::<Vec<_>>(), [&1]);
        report.add(&record(2, "created")).unwrap();
        drop(report);
        let (_, taken) = Report::resume(&path).unwrap();
        let mut lines: Vec<u64> = taken.into_keys().collect();
        lines.sort_unstable();
        assert_eq!(lines, [1, 2]);
    }

    #[test]
    fn an_earlier_report_is_not_overwritten_and_other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report");
        std::fs::write(&path, "name,token\n").unwrap();
        let Err(Failure::Told { exit, .. }) = Report::create(&path) else {
            panic!("overwritten")
        };
        assert_eq!(exit, Exit::CannotCreate);
        let Err(Failure::Told { exit, .. }) = Report::resume(&path) else {
            panic!("taken")
        };
        assert_eq!(exit, Exit::Data);
    }
}
