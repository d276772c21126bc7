//! Reads the lines of an import.

use std::io::{self, BufRead, BufReader, Read};

use tokio::sync::mpsc;

use super::import::OBJECT_LIMIT;

/// Lines that are handed over at once are no more than this, in bytes, or one.
const BATCH: u64 = 1 << 16;
/// Batches read ahead of what is sent.
const READ_AHEAD: usize = 2;

/// One line of the input.
pub(super) struct Line {
    pub number: u64,
    /// How far into the input it ends, in bytes.
    pub end: u64,
    /// `None` where it is longer than any token set.
    pub text: Option<Vec<u8>>,
}

/// Lines that came together. An error is the last of all.
pub(super) type Batch = Vec<io::Result<Line>>;

/// Reads lines on a thread of its own, so that a slow input holds up no request. What has come is handed over at once, in
/// batches where it comes fast: to hand over each line by itself would cost as much as to read it.
///
/// The thread ends with the input, or at the first batch that nobody wants any more.
pub(super) fn read_lines(input: Box<dyn Read + Send>) -> mpsc::Receiver<Batch> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let mut lines = Lines {
            input: BufReader::with_capacity(1 << 16, input),
            number: 0,
            end: 0,
        };
        loop {
            let batch = lines.next_batch();
            let last = !matches!(batch.last(), Some(Ok(_)));
            if sender.blocking_send(batch).is_err() || last {
                return;
            }
        }
    });
    receiver
}

/// An input, and how far it was read.
struct Lines<R> {
    input: BufReader<R>,
    number: u64,
    end: u64,
}

impl<R: Read> Lines<R> {
    /// Reads lines until the next one would have to be waited for. At the input's end there is none.
    fn next_batch(&mut self) -> Batch {
        let (mut batch, before) = (Vec::new(), self.end);
        while let Some(line) = self.next() {
            let last = line.is_err();
            batch.push(line);
            let enough = self.end - before >= BATCH;
            if last || enough || !self.input.buffer().contains(&b'\n') {
                break;
            }
        }
        batch
    }

    fn next(&mut self) -> Option<io::Result<Line>> {
        let (length, text) = match read_line(&mut self.input) {
            Ok(line) => line?,
            Err(error) => return Some(Err(error)),
        };
        self.number += 1;
        self.end += length;
        Some(Ok(Line {
            number: self.number,
            end: self.end,
            text,
        }))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its pieces one by one, and then fails.
    struct Pieces(Vec<&'static str>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::Error::other("out of pieces"));
            }
            let piece = self.0.remove(0).as_bytes();
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    fn read(input: impl Read + Send + 'static) -> Vec<(String, u64, u64)> {
        let mut batches = read_lines(Box::new(input));
        let mut seen = Vec::new();
        while let Some(batch) = batches.blocking_recv() {
            let mut ending = batch.len().to_string();
            for line in batch {
                match line {
                    Ok(line) => {
                        let text = String::from_utf8(line.text.unwrap()).unwrap();
                        seen.push((text, line.number, line.end));
                    }
                    Err(error) => ending = error.to_string(),
                }
            }
            seen.push((ending, 0, 0));
        }
        seen
    }

    #[test]
    fn what_has_come_is_handed_over_at_once_and_what_came_before_an_error_too() {
        let pieces = Pieces(vec!["a\nbc\nd", "e\nf", "\ng\n", "h"]);
        let line = |text: &str, number, end| (text.to_owned(), number, end);
        let batch = |text: &str| (text.to_owned(), 0, 0);
        assert_eq!(
            read(pieces),
            [
                line("a\n", 1, 2),
                line("bc\n", 2, 5),
                batch("2"),
                line("de\n", 3, 8),
                batch("1"),
                line("f\n", 4, 10),
                line("g\n", 5, 12),
                batch("2"),
                batch("out of pieces"),
            ]
        );
        assert_eq!(
            read(&b"a\nb"[..]),
            [
                line("a\n", 1, 2),
                batch("1"),
                line("b", 2, 3),
                batch("1"),
                batch("0")
            ]
        );
        assert_eq!(read(io::empty()), [batch("0")]);
    }

    #[test]
    fn a_batch_is_bounded_in_bytes() {
        let long = "x".repeat(1000) + "\n";
        let mut batches = read_lines(Box::new(io::Cursor::new(long.repeat(500))));
        let mut count = 0;
        while let Some(lines) = batches.blocking_recv() {
            assert!(lines.len() as u64 <= BATCH / 1001 + 1, "{}", lines.len());
            count += lines.len();
        }
        assert_eq!(count, 500);
    }
}
