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

/// Some lines, and the error that the last of them ends in.
pub(super) type Batch = (Vec<Line>, io::Result<()>);

/// Reads lines on a thread of its own, so that a slow input holds up no request. What has come is handed over at once, in
/// batches where it comes fast: to hand over each line by itself would cost as much as to read it.
///
/// The thread ends with the input, or at the first batch that nobody wants any more.
pub(super) fn read_lines(input: Box<dyn Read + Send>) -> mpsc::Receiver<Batch> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let mut input = BufReader::with_capacity(1 << 16, input);
        let (mut number, mut end) = (0, 0);
        loop {
            let mut lines = Vec::new();
            let ended = read_batch(&mut input, &mut lines, &mut number, &mut end);
            let last = !matches!(ended, Ok(true));
            let batch = (lines, ended.map(drop));
            if sender.blocking_send(batch).is_err() || last {
                return;
            }
        }
    });
    receiver
}

/// Reads lines until the next one would have to be waited for. Returns whether there may be more.
fn read_batch<R: Read>(
    input: &mut BufReader<R>,
    lines: &mut Vec<Line>,
    number: &mut u64,
    end: &mut u64,
) -> io::Result<bool> {
    let before = *end;
    loop {
        let Some((length, text)) = read_line(input)? else {
            return Ok(false);
        };
        *number += 1;
        *end += length;
        lines.push(Line {
            number: *number,
            end: *end,
            text,
        });
        if *end - before >= BATCH || !input.buffer().contains(&b'\n') {
            return Ok(true);
        }
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
        while let Some((lines, ended)) = batches.blocking_recv() {
            for line in &lines {
                let text = String::from_utf8(line.text.clone().unwrap()).unwrap();
                seen.push((text, line.number, line.end));
            }
            let ending = ended
                .err()
                .map_or(format!("{}", lines.len()), |error| error.to_string());
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
        while let Some((lines, _)) = batches.blocking_recv() {
            assert!(lines.len() as u64 <= BATCH / 1001 + 1, "{}", lines.len());
            count += lines.len();
        }
        assert_eq!(count, 500);
    }
}
