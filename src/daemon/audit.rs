//! Audit: who read, who was refused, what was changed about freshd itself. In the log, and in a table of their own.
//!
//! The same by the same is told at once the first time, and then together with its count, once an interval: so neither
//! an admin's loop nor a flood of strangers fills log or table.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::changes::store_problem;
use super::keeper::Daemon;
use super::log::AUDIT;
use super::shared::{Shared, lock};
use crate::local_api::keeper::{AuditRequest, Audited};
use crate::local_api::problem;
use crate::local_api::types::{AuditList, AuditView, Problem};
use crate::refresh::time::UnixTime;
use crate::store::{AuditFilter, AuditNote};

/// The same by the same is told once in so long.
const INTERVAL: Duration = Duration::from_secs(600);
/// So many strangers are told apart in an interval; further ones are counted together.
const STRANGERS: usize = 64;
/// So many different things are remembered; further ones are told each time.
const REMEMBERED: usize = 4096;

/// What was told lately.
#[derive(Default)]
pub(super) struct Audit(Mutex<Recent>);

/// The repeats of something that was told.
struct Repeats {
    until: Duration,
    times: u64,
    first_at: UnixTime,
    last_at: UnixTime,
}

/// What was told in this interval, and how often it came again. Pure.
#[derive(Default)]
struct Recent(BTreeMap<Audited, Repeats>);

impl Recent {
    /// Takes what happened. Returns it if it is to be told now: it is new in this interval.
    fn take(&mut self, mut what: Audited, at: UnixTime, now: Duration) -> Option<Audited> {
        if what.action == Audited::REFUSED && !self.0.contains_key(&what) {
            let refused = self.0.keys().filter(|told| told.action == what.action);
            if refused.count() >= STRANGERS {
                what.by = "others".to_owned();
                what.detail.clear();
            }
        }
        if let Some(repeats) = self.0.get_mut(&what) {
            if repeats.times == 0 {
                repeats.first_at = at;
            }
            repeats.times += 1;
            repeats.last_at = at;
            return None;
        }
        if self.0.len() < REMEMBERED {
            let repeats = Repeats {
                until: now + INTERVAL,
                times: 0,
                first_at: at,
                last_at: at,
            };
            self.0.insert(what.clone(), repeats);
        }
        Some(what)
    }

    /// Ends the intervals that are over at `now` and returns what was repeated in them.
    fn due(&mut self, now: Duration) -> Vec<(Audited, Repeats)> {
        let over = std::mem::take(&mut self.0);
        let (over, on): (BTreeMap<_, _>, BTreeMap<_, _>) = over
            .into_iter()
            .partition(|(_, repeats)| repeats.until <= now);
        self.0 = on;
        let repeated = over.into_iter().filter(|(_, repeats)| repeats.times > 0);
        repeated.collect()
    }
}

/// Tells what happened, unless it was told lately; then it is counted.
pub(super) fn tell(shared: &Arc<Shared>, what: Audited) {
    let (at, now) = (shared.clock.now(), shared.clock.running());
    let Some(what) = lock(&shared.audit.0).take(what, at, now) else {
        return;
    };
    let note = told(shared, what, 1, at, at);
    let shared = shared.clone();
    tokio::spawn(async move { keep(&shared, note).await });
}

/// Tells what happened, also if the same was told just now, and returns when that is on disk or can't be.
pub(super) async fn tell_now(shared: &Shared, what: Audited) {
    let at = shared.clock.now();
    let note = told(shared, what, 1, at, at);
    keep(shared, note).await;
}

/// Tells what was repeated in the intervals that are over; with `all`, in those that are not as well.
pub(super) async fn tell_repeats(shared: &Shared, all: bool) {
    let now = match all {
        true => Duration::MAX,
        false => shared.clock.running(),
    };
    let due = lock(&shared.audit.0).due(now);
    for (what, repeats) in due {
        let note = told(
            shared,
            what,
            repeats.times,
            repeats.first_at,
            repeats.last_at,
        );
        keep(shared, note).await;
    }
}

/// Logs a line and returns its note.
fn told(
    shared: &Shared,
    what: Audited,
    times: u64,
    first_at: UnixTime,
    last_at: UnixTime,
) -> AuditNote {
    let Audited {
        action,
        by,
        user,
        detail,
    } = what;
    let shown = user
        .as_ref()
        .map(|(namespace, user)| shared.names.of(namespace, user));
    tracing::info!(
        target: AUDIT, action, by, user = shown.as_ref().map(tracing::field::display), detail, times,
        "audit"
    );
    let name = |(namespace, user): (String, String)| shared.store.audit_name(&namespace, &user);
    AuditNote {
        action: action.to_owned(),
        by,
        user: user.map(name).unwrap_or_default(),
        detail,
        first_at,
        last_at,
        times,
    }
}

async fn keep(shared: &Shared, note: AuditNote) {
    let action = note.action.clone();
    if let Err(error) = shared.store.note(note).await {
        // The line above stays.
        tracing::warn!(action, %error, "audit-not-written");
    }
}

impl Daemon {
    /// Lists notes, the newest first.
    pub(super) async fn notes(&self, request: AuditRequest) -> Result<AuditList, Problem> {
        let store = &self.0.store;
        let before = match &request.cursor {
            None => None,
            Some(cursor) => Some(cursor.parse().map_err(|_| {
                problem::bad_request("cursor must be the next_cursor of an earlier page")
            })?),
        };
        let user = request
            .user
            .map(|user| store.audit_name(&request.namespace, &user));
        let action = request.action;
        let filter = AuditFilter {
            action,
            user,
            before,
        };
        let mut notes = store
            .notes(filter, request.limit + 1)
            .await
            .map_err(store_problem)?;
        let more = notes.len() > request.limit;
        notes.truncate(request.limit);
        let next_cursor = notes.last().filter(|_| more).map(|(id, _)| id.to_string());
        Ok(AuditList {
            entries: notes.into_iter().map(view).collect(),
            next_cursor,
        })
    }
}

fn view((id, note): (u64, AuditNote)) -> AuditView {
    AuditView {
        id,
        at: note.first_at.rfc3339(),
        until: (note.last_at != note.first_at).then(|| note.last_at.rfc3339()),
        times: note.times,
        action: note.action,
        by: note.by,
        user: note.user,
        detail: note.detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: UnixTime = UnixTime::from_secs(5);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn refused(uid: usize) -> Audited {
        Audited {
            action: Audited::REFUSED,
            by: format!("uid {uid}"),
            user: None,
            detail: "shared socket".into(),
        }
    }

    #[test]
    fn the_same_again_is_counted_and_told_once_when_its_interval_is_over() {
        let mut recent = Recent::default();
        assert!(recent.take(refused(1), AT, at(0)).is_some());
        for second in 0..500 {
            assert!(
                recent
                    .take(refused(1), AT + at(second), at(second))
                    .is_none()
            );
        }
        assert!(recent.take(refused(2), AT, at(3)).is_some(), "another");
        assert!(recent.due(at(599)).is_empty());
        let due = recent.due(at(600));
        assert_eq!(due.len(), 1);
        assert_eq!((due[0].0.by.as_str(), due[0].1.times), ("uid 1", 500));
        assert_eq!((due[0].1.first_at, due[0].1.last_at), (AT, AT + at(499)));
        assert!(
            recent.take(refused(1), AT, at(601)).is_some(),
            "a new interval"
        );
        assert!(recent.due(at(9999)).is_empty(), "nothing was repeated");
        assert!(recent.0.is_empty());
    }

    #[test]
    fn a_flood_of_ever_new_strangers_is_counted_together() {
        let mut recent = Recent::default();
        let told = (0..10_000).filter(|uid| recent.take(refused(*uid), AT, at(0)).is_some());
        assert_eq!(told.count(), STRANGERS + 1);
        let due = recent.due(at(600));
        assert_eq!(due.len(), 1);
        let counted = due[0].1.times as usize;
        assert_eq!(
            (due[0].0.by.as_str(), counted),
            ("others", 10_000 - STRANGERS - 1)
        );
    }

    #[test]
    fn a_full_memory_forgets_nothing_and_tells_each() {
        let mut recent = Recent::default();
        let read = |user: usize| Audited {
            action: Audited::READ,
            by: "uid 0".into(),
            user: Some(("default".into(), user.to_string())),
            detail: "box".into(),
        };
        let told = (0..10_000).filter(|user| recent.take(read(*user), AT, at(0)).is_some());
        assert_eq!(told.count(), 10_000);
        assert_eq!(recent.0.len(), REMEMBERED);
    }
}
