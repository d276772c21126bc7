//! What `why` says, for each way a grant can fare.

use serde_json::{Value, json};

use super::super::output::Look;
use super::super::why::tell;
use super::run;
use super::server::{Server, grant, ok};
use crate::local_api::types::History;
use crate::refresh::time::UnixTime;

const NOW: &str = "2026-11-22T12:00:00Z";

/// A story of alice at hubspot, and what is said of it.
struct Story(Value);

impl Story {
    fn new(state: &str, reason: &str) -> Story {
        let mut grant = grant("alice", state, reason);
        for (member, value) in [
            ("since", json!("2026-11-22T11:00:00.25Z")),
            ("imported_at", json!("2026-11-20T10:00:00Z")),
            ("expires_at", json!("2026-11-22T12:20:00Z")),
            ("due_at", json!("2026-11-22T12:15:00Z")),
            ("refreshed_at", json!("2026-11-22T11:50:00Z")),
            ("attempted_at", json!("2026-11-22T11:50:00Z")),
            ("has_refresh_token", json!(true)),
            ("generation", json!(5)),
            ("failures", json!(0)),
            ("unused_refreshes", json!(100)),
        ] {
            grant[member] = value;
        }
        Story(json!({
            "grant": grant,
            "provider": {"state": "running", "rotation": "strict"},
            "held": false, "store": "ok", "entries": [],
        }))
    }

    fn with(mut self, pointer: &str, value: Value) -> Story {
        let (parent, member) = pointer.rsplit_once('/').unwrap();
        self.0.pointer_mut(parent).unwrap()[member] = value;
        self
    }

    fn entry(mut self, event: &str, at: &str, members: Value) -> Story {
        let mut entry =
            json!({"event": event, "at": format!("2026-11-{at}Z"), "times": 1, "generation": 5});
        for (member, value) in members.as_object().unwrap() {
            entry[member] = value.clone();
        }
        self.0["entries"].as_array_mut().unwrap().push(entry);
        self
    }

    fn told(&self) -> String {
        let history: History = serde_json::from_value(self.0.clone()).unwrap();
        tell(Look::default(), &history, UnixTime::from_rfc3339(NOW))
    }

    /// Returns what follows the timeline.
    fn cause(&self) -> String {
        let told = self.told();
        told[told.find("\nWhy: ").unwrap() + 1..].to_owned()
    }
}

fn refusal(status: u16, code: &str) -> Value {
    json!({"status": status, "code": code, "presented": "91bc0d4e"})
}

#[test]
fn a_timeline_says_what_happened_in_order() {
    let story = Story::new("needs-authorization", "revoked-or-used-elsewhere")
        .entry("imported", "20T10:00:00.5", json!({"generation": 1, "received": "3f2a11aa"}))
        .entry("refreshed", "20T10:25:00", json!({
            "until": "2026-11-22T09:00:00Z", "times": 412, "generation": 413,
            "presented": "0a0b0c0d", "received": "91bc0d4e",
        }))
        .entry("failed", "22T09:30:00", json!({"until": "2026-11-22T09:34:00Z", "times": 3, "status": 503, "code": "http-503", "presented": "91bc0d4e"}))
        .entry("failed", "22T09:35:00", json!({"code": "connect", "presented": "91bc0d4e"}))
        .entry("unanswered", "22T09:36:00", json!({"code": "unknown-deadline", "presented": "91bc0d4e"}))
        .entry("interrupted", "22T09:40:00", json!({"until": "2026-11-22T10:00:00Z", "presented": "91bc0d4e"}))
        .entry("refreshed", "22T10:00:01", json!({"generation": 414, "presented": "91bc0d4e", "received": "91bc0d4e"}))
        .entry("superseded", "22T10:00:02", json!({"received": "77777777"}))
        .entry("paused", "22T10:01:00", json!({"reason": "admin", "by": "admin"}))
        .entry("resumed", "22T10:02:00", json!({"by": "admin"}))
        .entry("paused", "22T10:03:00", json!({"reason": "inactive", "by": "schedule"}))
        .entry("resumed", "22T10:04:00", json!({"by": "reader"}))
        .entry("replaced", "22T10:05:00", json!({"reason": "held", "received": "44444444"}))
        .entry("failed", "22T10:06:00", refusal(400, "invalid_grant"))
        .entry("needs-authorization", "22T10:06:00", json!({"reason": "revoked-or-used-elsewhere", "by": "schedule"}));
    insta::assert_snapshot!(story.told());
}

#[test]
fn a_long_timeline_begins_with_a_summary() {
    let mut story = Story::new("active", "");
    for nth in 0..30 {
        let at = format!("20T10:{nth:02}:00");
        story = story.entry("refreshed", &at, json!({"times": 10})).entry(
            "failed",
            &at,
            json!({"times": 2, "status": 503, "code": "http-503"}),
        );
    }
    let told = story.told();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(
        lines[2],
        "  2026-11-20T10:00:00Z to 2026-11-20T10:17:00Z  180 refreshes, 36 failures"
    );
    assert_eq!(
        lines[3..]
            .iter()
            .filter(|line| line.starts_with("  2026"))
            .count(),
        24
    );
}

#[test]
fn each_state_has_its_cause_and_a_way_on() {
    let dead = |reason| Story::new("needs-authorization", reason);
    let revoked = || dead("revoked-or-used-elsewhere");
    let refused =
        |story: Story| story.entry("failed", "22T11:00:00", refusal(400, "invalid_grant"));
    let served = "     The access token is served until 2026-11-22T12:20:00Z (in 20 m).\n";
    let at_eleven = "on 2026-11-22T11:00:00Z (1 h ago)";
    let again = "  hint: let the user authorize again";
    let elsewhere = format!(
        "{again}; if it recurs, look for another program that still refreshes this grant\n"
    );
    let gone = ": the user or the provider revoked it, or another program used it.\n";
    let refusal_told = format!(
        "Why: The server refused the refresh token 91bc0d4e with 400 invalid_grant {at_eleven}. "
    );
    let table: Vec<(Story, String)> = vec![
        (
            refused(revoked()),
            format!("{refusal_told}It had been presented once only{gone}{served}{elsewhere}"),
        ),
        (
            refused(revoked().entry("failed", "22T10:59:00", refusal(503, "http-503"))),
            format!(
                "{refusal_told}Every earlier use of it had been answered{gone}{served}{elsewhere}"
            ),
        ),
        (
            refused(revoked().entry(
                "refreshed",
                "22T10:30:00",
                json!({"presented": "91bc0d4e", "received": "91bc0d4e"}),
            )),
            format!(
                "{refusal_told}It had worked before, the last time on 2026-11-22T10:30:00Z (1 h 30 m ago){gone}{served}{elsewhere}"
            ),
        ),
        // The story has been purged.
        (
            revoked(),
            format!(
                "Why: The server refused the refresh token {at_eleven}. No earlier use of it was left without an answer{gone}{served}{elsewhere}"
            ),
        ),
        (
            refused(dead("lost-rotation (probable)").entry(
                "interrupted",
                "22T10:03:04",
                json!({"presented": "91bc0d4e"}),
            )),
            format!(
                "{refusal_told}An earlier request with it, of 2026-11-22T10:03:04Z (1 h 56 m ago), was cut off when freshd ended, \
                 so the server had probably replaced it by one that never arrived: lost-rotation (probable).\n{served}{again}\n"
            ),
        ),
        (
            refused(dead("lost-rotation (probable)").entry(
                "unanswered",
                "22T10:00:00",
                json!({"code": "unknown-connection-lost"}),
            )),
            format!(
                "{refusal_told}An earlier request with it, of 2026-11-22T10:00:00Z (2 h ago), got no whole answer (connection-lost), \
                 so the server had probably replaced it by one that never arrived: lost-rotation (probable).\n{served}{again}\n"
            ),
        ),
        (
            dead("no-refresh-token").with("/grant/expires_at", json!("2026-11-22T11:00:00Z")),
            format!(
                "Why: The access token ended {at_eleven}, and there is no refresh token to renew it with.\n\
                 {again}, with offline access; or import a refresh token\n"
            ),
        ),
        (
            dead("refused").entry("failed", "22T11:00:00", refusal(400, "invalid_request")),
            format!(
                "Why: The server refused the refresh token 91bc0d4e with 400 invalid_request {at_eleven}. It does so without saying why, \
                 for more than a day after the access token has ended, and serves other grants meanwhile.\n{served}  \
                 hint: look at the app's registration at the provider; if all is well there, let the user authorize again\n"
            ),
        ),
        (
            dead("expired").with("/grant/expires_at", json!("2026-11-22T11:00:00Z")),
            format!(
                "Why: The access token ended {at_eleven} before a refresh succeeded, and this provider refreshes a token only while \
                 the old one lives.\n{again}; and look for an outage before it ended\n"
            ),
        ),
        (
            Story::new("active", "")
                .with("/provider/state", json!("unreachable"))
                .with("/provider/since", json!("2026-11-22T11:00:00Z")),
            format!(
                "Why: Provider hubspot is unreachable since 2026-11-22T11:00:00Z (1 h ago): requests for several grants in a row failed, \
                 so only a few are tried.\n{served}  hint: nothing for this user: it goes on by itself; or to try at once: \
                 freshctl resume --provider-wide hubspot\n"
            ),
        ),
        (
            dead("a-reason-of-tomorrow"),
            format!(
                "Why: It needs authorization since 2026-11-22T11:00:00Z (1 h ago): a-reason-of-tomorrow.\n{served}{again}\n"
            ),
        ),
        (
            Story::new("paused", "admin")
                .with("/grant/namespace", json!("crm"))
                .with("/grant/account", json!("work")),
            format!(
                "Why: An admin paused it {at_eleven}.\n{served}  hint: freshctl resume alice hubspot:work --namespace crm\n"
            ),
        ),
        (
            Story::new("paused", "held"),
            format!(
                "Why: It was imported with hold {at_eleven} and waits to be released.\n{served}  \
                 hint: once the old system has stopped refreshing it: freshctl release alice hubspot\n"
            ),
        ),
        (
            Story::new("paused", "quarantined"),
            format!(
                "Why: A sealed value of it did not open {at_eleven}: somebody edited the database, or the disk is at fault.\n{served}  \
                 hint: import it anew with --replace, or let the user authorize again\n"
            ),
        ),
        (
            Story::new("paused", "inactive").with("/grant/due_at", Value::Null),
            format!(
                "Why: The user was away: no read that counts and no activity note came, so it rests since 2026-11-22T11:00:00Z (1 h ago).\n\
                 {served}  hint: nothing: it resumes by itself when the user is back\n"
            ),
        ),
        (
            Story::new("paused", "unused"),
            format!(
                "Why: Nobody read its tokens: 100 refreshes in a row went unused, so it rests since 2026-11-22T11:00:00Z (1 h ago). \
                 So that its refresh token does not die of disuse, it is refreshed on 2026-11-22T12:15:00Z (in 15 m).\n\
                 {served}  hint: nothing: it resumes by itself when the user is back\n"
            ),
        ),
        (
            Story::new("active", "")
                .with("/provider/state", json!("stopped"))
                .with("/provider/reason", json!("invalid_client"))
                .with("/provider/since", json!("2026-11-22T11:00:00Z")),
            format!(
                "Why: Provider hubspot refuses our client, not this user (invalid_client), so it is stopped since 2026-11-22T11:00:00Z \
                 (1 h ago) and none of its grants is refreshed.\n{served}  hint: mend provider.hubspot's client-id or client-secret, \
                 then systemctl reload freshd; or to try as it is: freshctl resume --provider-wide hubspot\n"
            ),
        ),
        (
            Story::new("active", "").with("/provider/state", json!("paused")),
            format!(
                "Why: An admin paused provider hubspot.\n{served}  hint: freshctl resume --provider-wide hubspot\n"
            ),
        ),
        (
            Story::new("active", "").with("/provider/state", json!("not-configured")),
            format!(
                "Why: Provider hubspot is not in the configuration, so nothing of it is refreshed.\n{served}  \
                 hint: put [provider.hubspot] back into the configuration, or revoke the grant\n"
            ),
        ),
        (
            Story::new("active", "")
                .with("/provider/state", json!("cooling-down"))
                .with("/provider/since", json!("2026-11-22T12:00:30Z")),
            format!(
                "Why: Provider hubspot asked for a rest: no request leaves for it until 2026-11-22T12:00:30Z (in 30 s).\n{served}  \
                 hint: nothing: it goes on by itself\n"
            ),
        ),
        // A grant's own trouble comes first.
        (
            Story::new("paused", "admin")
                .with("/provider/state", json!("paused"))
                .with("/store", json!("disk full")),
            format!(
                "Why: An admin paused it {at_eleven}.\n     An admin paused provider hubspot.\n     \
                 The store cannot be written (disk full), so no refresh token that rotates is used.\n{served}  hint: freshctl resume alice hubspot\n"
            ),
        ),
        (
            Story::new("active", "")
                .with("/store", json!("disk full"))
                .with("/held", json!(true)),
            format!(
                "Why: The store cannot be written (disk full), so no refresh token that rotates is used. A newer token set is held in memory and served.\n\
                 {served}  hint: make room, or mend the disk, under daemon.state-dir; do not kill freshd: a stop spills what it holds\n"
            ),
        ),
        (
            Story::new("active", "").with("/grant/has_refresh_token", json!(false)),
            format!(
                "Why: There is no refresh token, so the access token is served to its end and not renewed.\n{served}{again}, \
                 with offline access; or import a refresh token\n"
            ),
        ),
        (
            Story::new("active", "").with(
                "/unanswered",
                json!({"since": "2026-11-22T11:00:00Z", "requests": 1}),
            ),
            format!(
                "Why: A request of 2026-11-22T11:00:00Z (1 h ago) is under way, or was cut off: the server may have replaced the \
                 refresh token. If no grace is left, it is presented again when the access token has ended, on 2026-11-22T12:20:00Z \
                 (in 20 m), and not before: there might be something to lose.\n{served}  hint: nothing yet: the next attempt tells\n"
            ),
        ),
        (
            Story::new("active", "")
                .with(
                    "/unanswered",
                    json!({"since": "2026-11-22T11:00:00Z", "requests": 1}),
                )
                .with("/provider/rotation", json!("overlap"))
                .entry(
                    "unanswered",
                    "22T11:00:10",
                    json!({"code": "unknown-deadline"}),
                ),
            format!(
                "Why: A request of 2026-11-22T11:00:00Z (1 h ago) got no whole answer (deadline): the server may have replaced the \
                 refresh token. It is presented again at the next attempt.\n{served}  hint: nothing yet: the next attempt tells\n"
            ),
        ),
        (
            Story::new("active", "")
                .with("/grant/failures", json!(4))
                .entry("failed", "22T11:40:00", refusal(503, "http-503")),
            format!(
                "Why: The last 4 attempts failed, most recently on 2026-11-22T11:50:00Z (10 m ago): the server answered 503. That is no \
                 verdict on the grant. The next attempt is due on 2026-11-22T12:15:00Z (in 15 m).\n{served}  \
                 hint: nothing for this user: it is tried again by itself; if it lasts, ask the provider\n"
            ),
        ),
        (
            Story::new("active", "")
                .with("/grant/failures", json!(4))
                .entry("failed", "22T11:40:00", refusal(302, "http-302")),
            format!(
                "Why: The last 4 attempts failed, most recently on 2026-11-22T11:50:00Z (10 m ago): the server answered 302. That is no \
                 verdict on the grant. The next attempt is due on 2026-11-22T12:15:00Z (in 15 m).\n{served}  \
                 hint: this looks like the authorization URL, or like an address for people: look at provider.hubspot.token-endpoint, \
                 which must be where token requests are posted; freshctl doctor tries it\n"
            ),
        ),
        (
            Story::new("active", "")
                .with("/grant/failures", json!(4))
                .entry("failed", "22T11:40:00", refusal(200, "html")),
            format!(
                "Why: The last 4 attempts failed, most recently on 2026-11-22T11:50:00Z (10 m ago): the server answered 200 html. That is no \
                 verdict on the grant. The next attempt is due on 2026-11-22T12:15:00Z (in 15 m).\n{served}  \
                 hint: this looks like the authorization URL, or like an address for people: look at provider.hubspot.token-endpoint, \
                 which must be where token requests are posted; freshctl doctor tries it\n"
            ),
        ),
        (
            Story::new("active", "")
                .with("/grant/failures", json!(4))
                .entry("failed", "22T11:40:00", refusal(404, "http-404")),
            format!(
                "Why: The last 4 attempts failed, most recently on 2026-11-22T11:50:00Z (10 m ago): the server answered 404. That is no \
                 verdict on the grant. The next attempt is due on 2026-11-22T12:15:00Z (in 15 m).\n{served}  \
                 hint: look at provider.hubspot.token-endpoint, which must be where token requests are posted; freshctl doctor tries it\n"
            ),
        ),
        // Restored and released, and no request was made since; the mark is the copy's.
        (
            Story::new("active", "")
                .with(
                    "/unanswered",
                    json!({"since": "2026-11-22T09:00:00Z", "requests": 1}),
                )
                .with("/provider/rotation", json!("overlap"))
                .entry(
                    "refreshed",
                    "22T08:00:00",
                    json!({"presented": "91bc0d4e", "received": "0a0b0c0d"}),
                )
                .entry(
                    "restored",
                    "22T09:00:00",
                    json!({"until": "2026-11-22T11:00:00Z", "by": "admin"}),
                )
                .entry("resumed", "22T11:30:00", json!({"by": "admin"})),
            format!(
                "Why: It came back on 2026-11-22T11:00:00Z (1 h ago) with a copy of 2026-11-22T09:00:00Z (3 h ago) and was released on \
                 2026-11-22T11:30:00Z (30 m ago): its refresh token may have been spent since that copy was made. It is presented again \
                 at the next attempt.\n{served}  hint: nothing yet: the next attempt tells\n"
            ),
        ),
        (
            Story::new("active", "")
                .with("/grant/failures", json!(1))
                .entry("failed", "22T11:50:00", json!({"code": "dns"})),
            format!(
                "Why: The last attempt failed, most recently on 2026-11-22T11:50:00Z (10 m ago): the server could not be reached (dns). \
                 That is no verdict on the grant. The next attempt is due on 2026-11-22T12:15:00Z (in 15 m).\n{served}  \
                 hint: freshctl doctor says why the server cannot be reached, and what to mend; it is tried again by itself\n"
            ),
        ),
        (
            Story::new("active", ""),
            format!(
                "Why: All is well: refreshed on 2026-11-22T11:50:00Z (10 m ago); the next refresh is due on 2026-11-22T12:15:00Z (in 15 m).\n\
                 {served}  hint: nothing has to be done\n"
            ),
        ),
    ];
    for (nth, (story, expected)) in table.into_iter().enumerate() {
        assert_eq!(story.cause(), expected, "case {nth}");
    }
}

#[test]
fn nothing_in_a_story_steers_the_terminal() {
    let story = Story::new("needs-authorization", "\u{1b}[2J")
        .entry("\u{1b}[3J", "22T11:00:00", json!({"reason": "\u{9b}"}))
        .with("/provider/state", json!("\u{7}"))
        .with("/grant/user", json!("\u{202e}x"));
    let server = Server::start(move |_| ok(story.0.clone()));
    for args in [&["why", "x", "y"][..], &["why", "x", "y", "--json"]] {
        let ran = run(&server.socket, args, "");
        assert_eq!(ran.code, 0, "{}", ran.err);
        let steers = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!ran.out.contains(steers), "{:?}", ran.out);
    }
}
