//! `audit`: who read, who was refused, what was changed about freshd itself.

use super::Session;
use super::args::Audit;
use super::client::Call;
use super::failure::{Exit, Failure};
use super::output::escape;
use crate::local_api::types::{AuditList, AuditView};

/// Prints the newest notes, oldest first, one a line.
pub(super) async fn audit(session: &mut Session<'_, '_>, args: &Audit) -> Result<Exit, Failure> {
    let mut call = Call::get("/v1/audit").query("limit", &args.limit.to_string());
    let filters = [("action", &args.action), ("user", &args.user)];
    for (name, value) in filters {
        if let Some(value) = value {
            call = call.query(name, value);
        }
    }
    let answer = session.client.send(&call).await?;
    if session.look.json {
        session.console.print_body(&answer.body)?;
        return Ok(Exit::Ok);
    }
    let list: AuditList = answer.read()?;
    for entry in list.entries.iter().rev() {
        session.console.print(&format!("{}\n", shown(entry)))?;
    }
    if list.next_cursor.is_some() {
        session
            .console
            .note("there are older ones; a higher --limit shows them");
    }
    Ok(Exit::Ok)
}

/// Returns `2026-11-22T10:00:00Z read by uid 0: acme (user u-0123456789abcdef)`.
fn shown(entry: &AuditView) -> String {
    let mut text = format!("{} {} by {}", entry.at, entry.action, entry.by);
    if !entry.detail.is_empty() {
        text.push_str(&format!(": {}", entry.detail));
    }
    if !entry.user.is_empty() {
        text.push_str(&format!(" (user {})", entry.user));
    }
    if let Some(until) = &entry.until {
        text.push_str(&format!(", {} times until {until}", entry.times));
    } else if entry.times > 1 {
        text.push_str(&format!(", {} times", entry.times));
    }
    escape(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_one_line_that_steers_no_terminal() {
        let mut entry = AuditView {
            id: 1,
            at: "2026-11-22T10:00:00Z".into(),
            until: None,
            times: 1,
            action: "read".into(),
            by: "uid 0".into(),
            user: "u-0123456789abcdef".into(),
            detail: "acme\u{1b}".into(),
        };
        let expected = "2026-11-22T10:00:00Z read by uid 0: acme\\u{1b} (user u-0123456789abcdef)";
        assert_eq!(shown(&entry), expected);
        entry.user.clear();
        entry.detail.clear();
        (entry.times, entry.until) = (7, Some("2026-11-22T10:09:00Z".into()));
        let expected = "2026-11-22T10:00:00Z read by uid 0, 7 times until 2026-11-22T10:09:00Z";
        assert_eq!(shown(&entry), expected);
    }
}
