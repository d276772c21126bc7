//! What the demo shows: one line for each thing that happened, for a person to watch.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::sync::Notify;

/// What a line means to the one who watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Goes on as it should.
    Plain,
    /// freshd did something worth seeing.
    Good,
    /// The world changed: somebody left, somebody revoked.
    Notice,
    /// Not as told.
    Bad,
}

impl Mood {
    fn colour(self) -> &'static str {
        match self {
            Mood::Plain => "",
            Mood::Good => "\x1b[32m",
            Mood::Notice => "\x1b[33m",
            Mood::Bad => "\x1b[1;31m",
        }
    }
}

/// The terminal, or whatever stands in its place.
pub struct Screen {
    colour: bool,
    gone: Notify,
}

impl Screen {
    /// Takes standard output: in colour on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    pub fn standard() -> Screen {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Screen {
            colour: io::stdout().is_terminal() && !no_color,
            gone: Notify::new(),
        }
    }

    /// Shows what happened to `user` after `elapsed`.
    pub fn event(&self, elapsed: Duration, user: &str, mood: Mood, text: &str) {
        self.text(&event_line(self.colour, elapsed, user, mood, text));
    }

    /// Shows `text` as it is, on lines of its own.
    pub fn text(&self, text: &str) {
        let mut out = io::stdout().lock();
        // println! would panic when the reader has left (`freshd demo | head`).
        if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
            self.gone.notify_one();
        }
    }

    /// Waits until nobody can see it any more.
    pub async fn gone(&self) {
        self.gone.notified().await;
    }
}

fn event_line(colour: bool, elapsed: Duration, user: &str, mood: Mood, text: &str) -> String {
    let seconds = elapsed.as_secs_f64();
    match mood.colour() {
        paint if colour && !paint.is_empty() => {
            format!("{seconds:6.1}s  {user:<5} {paint}{text}\x1b[0m")
        }
        _ => format!("{seconds:6.1}s  {user:<5} {text}"),
    }
}

/// Returns `text` as one word for a shell.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_time_the_user_and_the_event_and_colour_only_where_wanted() {
        let at = Duration::from_millis(15_240);
        let plain = "  15.2s  ann   refreshed";
        assert_eq!(event_line(false, at, "ann", Mood::Good, "refreshed"), plain);
        assert_eq!(event_line(true, at, "ann", Mood::Plain, "refreshed"), plain);
        let green = event_line(true, at, "ann", Mood::Good, "refreshed");
        assert_eq!(green, "  15.2s  ann   \x1b[32mrefreshed\x1b[0m");
    }

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        assert_eq!(
            shell_word("/tmp/freshd-demo-a_B9/x.sock"),
            "/tmp/freshd-demo-a_B9/x.sock"
        );
        assert_eq!(shell_word("/tmp/it's here"), "'/tmp/it'\\''s here'");
        assert_eq!(shell_word(""), "''");
    }
}
