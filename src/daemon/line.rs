//! An event as one line of text: `refreshed user=anna provider=box`. What a client chose can neither end the line nor
//! begin a field of its own.

use std::fmt::{self, Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{self, FormatTime};
use tracing_subscriber::registry::LookupSpan;

/// An event as it was recorded.
#[derive(Default)]
pub(super) struct Line {
    /// The event's name, or a library's sentence.
    pub(super) message: String,
    /// Names and values, in the order of the code.
    pub(super) fields: Vec<(&'static str, String)>,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            // Where in its source a library logged, by tracing's bridge to the crate log.
            name if name.starts_with("log.") => {}
            name => self.fields.push((name, value.to_owned())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

impl Line {
    pub(super) fn of(event: &Event<'_>) -> Line {
        let mut line = Line::default();
        event.record(&mut line);
        line
    }

    /// Returns the message and the fields. A value that is not plain is in quotes, with escapes.
    pub(super) fn text(&self) -> String {
        let mut text = String::with_capacity(128);
        for c in self.message.chars() {
            match ends_line(c) {
                true => text.extend(c.escape_debug()),
                false => text.push(c),
            }
        }
        for (name, value) in &self.fields {
            let _ = match !value.is_empty() && value.chars().all(plain) {
                true => write!(text, " {name}={value}"),
                false => write!(text, " {name}={value:?}"),
            };
        }
        text
    }
}

/// What stands without quotes: nothing that separates, quotes, escapes, or looks like something else.
fn plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.:/@+,[]".contains(c)
}

/// Whether some reader takes it for the end of a line, or a terminal for an order.
fn ends_line(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// The log's text form: time, level, line.
pub(super) struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        time::SystemTime.format_time(&mut writer)?;
        let level = event.metadata().level();
        writeln!(writer, " {level:>5} {}", Line::of(event).text())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom};
    use std::sync::Mutex;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn logged(log: impl FnOnce()) -> String {
        let mut file = tempfile::tempfile().unwrap();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(Mutex::new(file.try_clone().unwrap()))
            .event_format(Text);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        file.seek(SeekFrom::Start(0)).unwrap();
        std::io::read_to_string(file).unwrap()
    }

    /// The same without its time.
    fn line(log: impl FnOnce()) -> String {
        let text = logged(log);
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{text}");
        rest.to_owned()
    }

    #[test]
    fn a_line_is_time_level_event_and_fields() {
        let said = line(|| {
            tracing::warn!(user = %"anna", retry_at = 5, address = %"[::1]:9464", account = "", "needs-authorization");
        });
        let wanted =
            " WARN needs-authorization user=anna retry_at=5 address=[::1]:9464 account=\"\"\n";
        assert_eq!(said, wanted);
    }

    #[test]
    fn no_value_forges_a_field_or_a_line() {
        let cases = [
            ("42 provider=x reason=y", r#""42 provider=x reason=y""#),
            ("provider=x", r#""provider=x""#),
            (r#"a" provider="x"#, r#""a\" provider=\"x""#),
            (r"a\", r#""a\\""#),
            ("'a'", r#""'a'""#),
            ("a\nINFO deleted user=b", r#""a\nINFO deleted user=b""#),
            ("a\u{85}b", r#""a\u{85}b""#),
            ("a\u{2028}b", r#""a\u{2028}b""#),
            ("a\u{a0}b", r#""a\u{a0}b""#),
            ("a\u{1b}[2Jb", r#""a\u{1b}[2Jb""#),
            ("a\u{202e}b", r#""a\u{202e}b""#),
            ("Jürgen", r#""Jürgen""#),
        ];
        for (user, shown) in cases {
            let said = line(|| tracing::info!(user = %user, provider = "box", "paused"));
            assert_eq!(said, format!(" INFO paused user={shown} provider=box\n"));
        }
    }

    #[test]
    fn a_librarys_sentence_stays_on_its_line() {
        let said =
            line(|| tracing::warn!(target: "hyper::proto", "odd: \"a\"\nINFO deleted\u{1b}[2J"));
        assert_eq!(said, " WARN odd: \"a\"\\nINFO deleted\\u{1b}[2J\n");
    }
}
