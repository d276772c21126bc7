//! What people read: tables, relative times, and nothing that can steer a terminal.

use std::fmt::Write as _;

use comfy_table::{
    Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table, Width, presets,
};

use crate::refresh::time::UnixTime;

/// How output is to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Whether standard output is a terminal: then tables fit its width.
    pub terminal: bool,
    /// Whether colours may be used.
    pub color: bool,
    /// Whether JSON was asked for.
    pub json: bool,
}

/// Returns whether a character could steer a terminal or hide text: controls (C0, C1, DEL), line
/// separators, and the marks that turn the reading direction around.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Returns `text` with every character that could steer a terminal written as `\u{1b}`.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Returns a JSON text that means the same and holds no character that could steer a terminal.
///
/// Such characters stand only inside strings, or are white space; there JSON has `\u009b` for them.
pub fn escape_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) && !matches!(c, '\n' | '\t' | '\r') {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Returns a length in its two largest units: `4 m 12 s`, `3 d`, `0 s`.
pub fn length(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let Some(first) = UNITS.iter().position(|(size, _)| seconds >= *size) else {
        return "0 s".to_owned();
    };
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, unit) in UNITS.iter().skip(first).take(2) {
        if rest / size > 0 {
            parts.push(format!("{} {unit}", rest / size));
        }
        rest %= size;
    }
    parts.join(" ")
}

/// Returns an RFC 3339 moment as seen from `now`: `in 4 m 12 s`, `3 d ago`, `now`.
///
/// `now` is the daemon's own clock, from the answer's `Date`, so that a reader on a wrong clock isn't misled.
/// Without it, or where `at` can't be read, the moment is shown as it is.
pub fn relative(at: &str, now: Option<UnixTime>) -> String {
    let (Some(at), Some(now)) = (UnixTime::from_rfc3339(at), now) else {
        return escape(at);
    };
    let (ahead, behind) = (at.since(now).as_secs(), now.since(at).as_secs());
    match (ahead, behind) {
        (0, 0) => "now".to_owned(),
        (ahead, 0) => format!("in {}", length(ahead)),
        (_, behind) => format!("{} ago", length(behind)),
    }
}

/// Returns [`relative`], or `-` where there is no moment.
pub fn relative_or_dash(at: Option<&str>, now: Option<UnixTime>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| relative(at, now))
}

/// Returns `2026-11-22T00:00:00Z (in 4 m 12 s)`.
pub fn exact(at: &str, now: Option<UnixTime>) -> String {
    let relative = relative(at, now);
    if relative == escape(at) {
        relative
    } else {
        format!("{} ({relative})", escape(at))
    }
}

/// Returns `text`, or `-` for an empty one.
pub fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Returns `1 grant`, `2 grants`.
pub fn count(n: u64, one: &str) -> String {
    if n == 1 {
        format!("1 {one}")
    } else {
        format!("{n} {one}s")
    }
}

/// Returns a number of bytes in its largest unit: `12 GiB`, `512 KiB`.
pub fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(shift, _)| bytes >> shift > 0);
    unit.map_or_else(
        || format!("{bytes} bytes"),
        |(shift, unit)| format!("{} {unit}", bytes >> shift),
    )
}

/// Adds `mark` and `text` as a line. On a terminal the text is broken at spaces to fit, and goes on below itself.
pub fn fill(out: &mut String, look: Look, mark: &str, text: &str) {
    let width = match look.terminal {
        true => usize::from(width()).max(NARROWEST),
        false => usize::MAX,
    };
    out.push_str(&filled(width, mark, text));
}

/// A terminal that does not say how wide it is.
const WIDTH: u16 = 80;
/// Narrower ones break lines themselves.
const NARROWEST: usize = 40;

/// The terminal's width; one of 0 columns has not been told its own.
fn width() -> u16 {
    let told = Table::new().width();
    told.filter(|width| *width > 0).unwrap_or(WIDTH)
}

fn filled(width: usize, mark: &str, text: &str) -> String {
    let indent = mark.chars().count();
    let mut out = mark.to_owned();
    let mut at = indent;
    for (nth, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if nth > 0 && at + 1 + length > width {
            let _ = write!(out, "\n{:indent$}", "");
            at = indent;
        } else if nth > 0 {
            out.push(' ');
            at += 1;
        }
        out.push_str(word);
        at += length;
    }
    out.push('\n');
    out
}

/// Lays out rows in columns, escaped, each line indented by `indent` and ended by a newline.
///
/// On a terminal it fits the width and colours the states; elsewhere it is plain text whose lines never wrap.
/// An empty `header` prints none.
pub fn table(look: Look, indent: &str, header: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = String::new();
    for line in laid_out(look, header, rows, &[]).lines() {
        let _ = writeln!(out, "{indent}{}", line.trim_end());
    }
    out
}

/// A table that is printed page by page: the header once, and columns that never get narrower.
#[derive(Default)]
pub struct Pages {
    widths: Vec<u16>,
}

impl Pages {
    /// Lays out the next page, as [`table`].
    pub fn next(&mut self, look: Look, header: &[&str], rows: &[Vec<String>]) -> String {
        let header = if self.widths.is_empty() { header } else { &[] };
        let table = laid_out(look, header, rows, &self.widths);
        self.widths.resize(header.len().max(self.widths.len()), 0);
        for (width, now) in self
            .widths
            .iter_mut()
            .zip(table.column_max_content_widths())
        {
            *width = now.max(*width);
        }
        let lines: Vec<String> = table
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        lines.join("\n") + "\n"
    }
}

/// The space between two columns.
const GAP: u16 = 2;

fn laid_out(look: Look, header: &[&str], rows: &[Vec<String>], widths: &[u16]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if look.terminal {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(width());
    } else {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    if !look.terminal || !look.color {
        table.force_no_tty();
    }
    if !header.is_empty() {
        table.set_header(
            header
                .iter()
                .map(|name| Cell::new(name).add_attribute(Attribute::Bold)),
        );
    }
    for row in rows {
        table.add_row(row.iter().map(|text| cell(&escape(text))));
    }
    for (n, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, GAP));
        if let Some(width) = widths.get(n) {
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + GAP)));
        }
    }
    table
}

/// Colours the words that name a state.
fn cell(text: &str) -> Cell {
    let cell = Cell::new(text);
    match text {
        "active" | "running" => cell.fg(Color::Green),
        "needs-authorization" | "stopped" | "not-configured" | "unreachable" => cell.fg(Color::Red),
        "paused" | "cooling-down" | "draining" => cell.fg(Color::Yellow),
        _ => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_show_their_two_largest_units() {
        for (seconds, shown) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 m"),
            (252, "4 m 12 s"),
            (3_600, "1 h"),
            (3_605, "1 h"),
            (90_000, "1 d 1 h"),
            (86_460, "1 d"),
        ] {
            assert_eq!(length(seconds), shown);
        }
    }

    #[test]
    fn moments_are_told_from_the_daemons_now() {
        let now = UnixTime::from_rfc3339("2026-11-22T00:00:00Z");
        assert_eq!(relative("2026-11-22T00:04:12Z", now), "in 4 m 12 s");
        assert_eq!(relative("2026-11-19T00:00:00Z", now), "3 d ago");
        assert_eq!(relative("2026-11-22T00:00:00.4Z", now), "now");
        assert_eq!(
            relative("2026-11-22T00:00:00Z", None),
            "2026-11-22T00:00:00Z"
        );
        assert_eq!(relative("\u{1b}[2J", now), "\\u{1b}[2J");
        assert_eq!(
            exact("2026-11-22T00:00:10Z", now),
            "2026-11-22T00:00:10Z (in 10 s)"
        );
    }

    #[test]
    fn nothing_that_steers_a_terminal_passes() {
        assert_eq!(
            escape("a\u{1b}]0;x\u{7}\nb\u{9b}\u{202e}ü"),
            "a\\u{1b}]0;x\\u{7}\\u{a}b\\u{9b}\\u{202e}ü"
        );
        let json = escape_json("{\"a\":\"\u{9b}\u{202e}\u{7f}\"}");
        assert_eq!(json, r#"{"a":"\u009b\u202e\u007f"}"#);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["a"], "\u{9b}\u{202e}\u{7f}");
    }

    #[test]
    fn a_long_text_goes_on_below_itself() {
        assert_eq!(
            filled(20, "do  ", "mend the disk of state-dir"),
            "do  mend the disk of\n    state-dir\n"
        );
        assert_eq!(filled(usize::MAX, "- ", "a b"), "- a b\n");
        assert_eq!(
            filled(10, "- ", "averyveryverylongword b"),
            "- averyveryverylongword\n  b\n"
        );
        assert_eq!(
            (size(12 << 30), size(2047), size(7)),
            ("12 GiB".into(), "1 KiB".into(), "7 bytes".into())
        );
    }

    #[test]
    fn a_plain_table_never_wraps_and_has_no_trailing_spaces() {
        let long = "x".repeat(300);
        let rows = [
            vec![long.clone(), "1".to_owned()],
            vec!["b\u{1b}".to_owned(), String::new()],
        ];
        let text = table(Look::default(), "  ", &["A", "N"], &rows);
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains(&format!("  {long}  1\n")), "{text}");
        assert!(text.contains("b\\u{1b}\n"));
    }
}
