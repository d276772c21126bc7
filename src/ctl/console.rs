//! What a command reads from and writes to, passed in so that tests need no process.

use std::ffi::OsString;
use std::io::{Read, Write};

use super::failure::Failure;
use super::output::{escape, escape_json};
use serde::Serialize;

/// The process around a command.
pub struct Console<'a> {
    /// Standard input. Owned, because an import reads it on a thread of its own.
    pub stdin: Box<dyn Read + Send>,
    /// Standard output: what was asked for.
    pub stdout: &'a mut dyn Write,
    /// Standard error: everything else.
    pub stderr: &'a mut dyn Write,
    /// Which of them are terminals.
    pub terminals: Terminals,
    /// Environment variables.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// Whether the effective user is root.
    pub root: bool,
}

/// Which streams are terminals, and what else there is to know of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terminals {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Standard output is none, but a file that other users may read.
    pub stdout_is_readable: bool,
}

impl Console<'_> {
    /// Writes to standard output, as it is.
    ///
    /// # Errors
    /// Where the reader hung up, or the output cannot be written.
    pub fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.stdout
            .write_all(text.as_bytes())
            .map_err(Failure::output)
    }

    /// Writes a JSON body that came from the daemon to standard output, on a line of its own.
    ///
    /// # Errors
    /// As [`Console::print`].
    pub fn print_body(&mut self, body: &[u8]) -> Result<(), Failure> {
        let text = escape_json(&String::from_utf8_lossy(body));
        self.print(&format!("{}\n", text.trim_end()))
    }

    /// Writes `value` as JSON to standard output, on a line of its own.
    ///
    /// # Errors
    /// As [`Console::print`].
    pub fn print_json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).expect("our own shapes serialize");
        self.print_body(text.as_bytes())
    }

    /// Tells something on standard error, control characters escaped. A closed standard error stops nothing.
    pub fn note(&mut self, text: &str) {
        let _ = writeln!(self.stderr, "freshctl: {}", escape(text));
    }

    /// Tells why the command stopped, line by line, and returns its exit code.
    pub fn tell(&mut self, failure: &Failure) -> u8 {
        let Failure::Told { exit, message, .. } = failure else {
            return 0;
        };
        for line in message.lines() {
            self.note(line);
        }
        for line in failure.next().lines() {
            let _ = writeln!(self.stderr, "  hint: {}", escape(line));
        }
        *exit as u8
    }
}
