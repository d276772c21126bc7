//! Lines for journald, with native fields (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
//!
//! Ours and not tracing-journald's, because an entry has a `MESSAGE_ID` of its event's own, and because tests speak to a
//! socket of theirs.

use std::fmt::Write as _;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::line::Line;

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// A longer value is cut, and so is a longer line: all of it must fit into one datagram (`net.core.wmem_default` is 208 KiB).
const LONGEST_VALUE: usize = 16 << 10;
const LONGEST_ENTRY: usize = 100 << 10;
/// journald takes no longer name of a field.
const LONGEST_NAME: usize = 64;

/// Sends each event as one entry.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// Finds journald at `path`.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub(super) fn at(path: &Path) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        // journald ignores an empty datagram.
        socket.send_to(&[], path)?;
        let path = path.to_owned();
        Ok(Journal { socket, path })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = Line::of(event);
        let metadata = event.metadata();
        let entry = line.entry(*metadata.level(), metadata.target());
        // Not connected: a journald that was restarted is found again. One that is not there reads, later, what
        // went to our standard error.
        if self.socket.send_to(&entry, &self.path).is_err() {
            eprintln!("{}", line.text());
        }
    }
}

/// Returns the `MESSAGE_ID` of an event: the first 16 bytes, in hexadecimal, of the SHA-256 of `freshd ` and its name. So
/// it is as stable as the name, and there is no second table.
pub(super) fn message_id(event: &str) -> String {
    let digest = Sha256::digest(format!("freshd {event}"));
    digest.iter().take(16).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

impl Line {
    fn entry(&self, level: Level, target: &str) -> Vec<u8> {
        let mut entry = Vec::with_capacity(512);
        put(&mut entry, "PRIORITY", priority(level));
        put(&mut entry, "SYSLOG_IDENTIFIER", "freshd");
        put(&mut entry, "MESSAGE", &self.text());
        // The libraries' messages are sentences, not names.
        let ours = target == super::log::AUDIT || target.split(':').next() == Some("freshd");
        if ours {
            put(&mut entry, "MESSAGE_ID", &message_id(&self.message));
            put(&mut entry, "FRESHD_EVENT", &self.message);
        }
        put(&mut entry, "FRESHD_TARGET", target);
        for (name, value) in &self.fields {
            put(&mut entry, &field_name(name), value);
        }
        entry
    }
}

/// The severities of `syslog(3)`.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

/// `retry_at` becomes `FRESHD_RETRY_AT`.
fn field_name(name: &str) -> String {
    let upper = name.chars().map(|c| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_uppercase(),
        false => '_',
    });
    "FRESHD_".chars().chain(upper).take(LONGEST_NAME).collect()
}

/// Appends one field, with its length: so a line break in a value begins no field.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let mut end = value.len().min(LONGEST_VALUE);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    if entry.len() + end > LONGEST_ENTRY {
        return;
    }
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(end as u64).to_le_bytes());
    entry.extend_from_slice(&value.as_bytes()[..end]);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// What journald would read of a datagram.
    fn fields(mut datagram: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while !datagram.is_empty() {
            let name = datagram.iter().position(|byte| *byte == b'\n').unwrap();
            let (length, rest) = datagram[name + 1..].split_first_chunk::<8>().unwrap();
            let (value, rest) = rest.split_at(u64::from_le_bytes(*length) as usize);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let before = fields.insert(text(&datagram[..name]), text(value));
            assert_eq!(before, None, "each field once");
            assert_eq!(rest[0], b'\n');
            datagram = &rest[1..];
        }
        fields
    }

    /// Logs by `log` to a socket in journald's place and returns the entry.
    fn logged(log: impl FnOnce()) -> BTreeMap<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::at(&path).unwrap();
        let mut datagram = vec![0; 1 << 20];
        assert_eq!(journald.recv(&mut datagram).unwrap(), 0, "the first look");
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), log);
        let length = journald.recv(&mut datagram).unwrap();
        fields(&datagram[..length])
    }

    #[test]
    fn an_entry_has_native_fields_and_its_events_own_id() {
        let entry = logged(|| {
            tracing::warn!(user = %"anna", provider = %"box", retry_at = 5, hint = "sign in again", "needs-authorization");
        });
        let wanted = [
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "freshd"),
            ("FRESHD_EVENT", "needs-authorization"),
            ("FRESHD_USER", "anna"),
            ("FRESHD_PROVIDER", "box"),
            ("FRESHD_RETRY_AT", "5"),
            ("FRESHD_HINT", "sign in again"),
            ("FRESHD_TARGET", "freshd::daemon::journal::tests"),
            // printf 'freshd needs-authorization' | sha256sum | cut -c1-32
            ("MESSAGE_ID", ID),
            (
                "MESSAGE",
                "needs-authorization user=anna provider=box retry_at=5 hint=\"sign in again\"",
            ),
        ];
        let wanted = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(entry, wanted.into());
    }

    /// It must never change.
    const ID: &str = "d6bafcee762b8f8663d3809e91f831d6";

    #[test]
    fn a_librarys_sentence_has_no_id() {
        let entry = logged(|| tracing::warn!(target: "hyper::proto", "something odd"));
        assert_eq!(entry["MESSAGE"], "something odd");
        assert!(!entry.contains_key("MESSAGE_ID") && !entry.contains_key("FRESHD_EVENT"));
    }

    #[test]
    fn a_line_break_in_a_value_begins_no_field() {
        let evil = "a\nFRESHD_PROVIDER=forged\nMESSAGE_ID=0";
        let entry = logged(|| tracing::info!(user = %evil, "paused"));
        assert_eq!(entry["FRESHD_USER"], evil);
        assert!(!entry.contains_key("FRESHD_PROVIDER"));
    }

    #[test]
    fn a_line_that_is_too_long_for_a_datagram_is_cut() {
        let long = "ä".repeat(200_000);
        let entry = logged(|| tracing::error!(error = %long, "reload-refused"));
        assert_eq!(entry["FRESHD_ERROR"].len(), LONGEST_VALUE);
        assert_eq!(entry["FRESHD_EVENT"], "reload-refused");
    }

    #[test]
    fn a_journal_that_is_not_there_is_an_error_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Journal::at(&dir.path().join("none")).is_err());
    }
}
