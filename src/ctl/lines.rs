//! Reads the lines of an import.

use std::io::{self, BufRead, BufReader, Read};

use tokio::sync::mpsc;

use super::import::OBJECT_LIMIT;

/// Lines read ahead of what is sent.
const READ_AHEAD: usize = 64;

/// One line of the input.
pub(super) struct Line {
    pub number: u64,
    /// How far into the input it ends, in bytes.
    pub end: u64,
    /// `None` where it is longer than any token set.
    pub text: Option<Vec<u8>>,
}

/// Reads lines on a thread of its own, so that a slow input holds up no request.
///
/// The thread ends with the input, or at the first line that nobody wants any more.
pub(super) fn read_lines(input: Box<dyn Read + Send>) -> mpsc::Receiver<io::Result<Line>> {
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
