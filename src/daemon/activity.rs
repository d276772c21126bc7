//! Who is active, and which token sets were read.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::refresh::grant::GrantId;
use crate::refresh::reading::Readable;
use crate::refresh::time::UnixTime;
use crate::store::{Store, StoreError};

/// By namespace and user; apart, so that a known one is found by names that are only borrowed.
type Users = HashMap<String, HashMap<String, Seen>>;

/// An activity is written when the last written one is this old; the rest stays in memory.
const WRITTEN_EVERY: Duration = Duration::from_secs(60 * 60);

/// Reads of one grant are activity of its user once in so long.
const NOTED_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
pub(super) struct Seen {
    at: UnixTime,
    /// The note that was last given to the store.
    given_at: Option<UnixTime>,
    /// What the store has, as far as this process wrote it.
    written_at: Option<UnixTime>,
}

impl Seen {
    /// Notes an activity. Returns whether it is to be written.
    fn note(&mut self, now: UnixTime, written_every: Duration) -> bool {
        // The clock may have been set back: the newest note rules.
        self.at = now;
        let stale = self
            .given_at
            .is_none_or(|at| now.since(at) >= written_every || at > now);
        if stale {
            self.given_at = Some(now);
        }
        stale
    }
}

fn find<'a>(users: &'a mut Users, namespace: &str, user: &str) -> Option<&'a mut Seen> {
    users.get_mut(namespace)?.get_mut(user)
}

/// Last activity per user, most of it in memory.
pub(super) struct Activity {
    store: Store,
    /// In milliseconds.
    written_every: AtomicU64,
    /// Told when that changes.
    changed: Notify,
    pub(super) seen: Arc<Mutex<Users>>,
    read: Mutex<HashSet<GrantId>>,
    /// Steps of the clock: what it showed before each, and how much of nobody's time it left out.
    steps: Mutex<Vec<(UnixTime, Duration)>>,
}

/// Steps that are remembered; the oldest go first.
const STEPS: usize = 100;

impl Activity {
    /// Makes an empty log for what [`Activity::set_inactive_after`] says of `inactive_after`.
    pub(super) fn new(store: Store, inactive_after: Duration) -> Self {
        let activity = Activity {
            store,
            written_every: AtomicU64::default(),
            changed: Notify::new(),
            seen: Arc::default(),
            read: Mutex::default(),
            steps: Mutex::default(),
        };
        activity.set_inactive_after(inactive_after);
        activity
    }

    /// Says what the shortest `inactive_after` of all providers is: what is written is never older than a tenth of it, so
    /// that a crash makes nobody inactive.
    pub(super) fn set_inactive_after(&self, inactive_after: Duration) {
        let millis = WRITTEN_EVERY.min(inactive_after / 10).as_millis();
        let millis = u64::try_from(millis).expect("an hour at most");
        self.written_every.store(millis.max(1), Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// How old what is written may be.
    fn written_every(&self) -> Duration {
        Duration::from_millis(self.written_every.load(Ordering::Relaxed))
    }

    /// Notes a counted read or an activity note.
    pub(super) fn note(&self, namespace: &str, user: &str, now: UnixTime) {
        let stale = {
            let mut users = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            match find(&mut users, namespace, user) {
                Some(seen) => seen.note(now, self.written_every()),
                None => {
                    let seen = Seen {
                        at: now,
                        given_at: Some(now),
                        written_at: None,
                    };
                    let users = users.entry(namespace.to_owned()).or_default();
                    users.insert(user.to_owned(), seen);
                    true
                }
            }
        };
        if stale {
            let (store, seen) = (self.store.clone(), self.seen.clone());
            let note = (namespace.to_owned(), user.to_owned(), now);
            tokio::spawn(async move {
                // What is not written now, a flush writes.
                if let Err(error) = write_notes(&store, &seen, vec![note]).await {
                    tracing::debug!(%error, "activity-not-written");
                }
            });
        }
    }

    /// Returns a user's last activity.
    pub(super) async fn last(
        &self,
        namespace: &str,
        user: &str,
    ) -> Result<Option<UnixTime>, StoreError> {
        match self.in_memory(namespace, user) {
            Some(at) => Ok(Some(at)),
            None => self.store.last_activity(namespace, user).await,
        }
    }

    /// Returns a user's last activity, if that is in memory still: it rules over what is written.
    pub(super) fn in_memory(&self, namespace: &str, user: &str) -> Option<UnixTime> {
        let mut users = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        find(&mut users, namespace, user).map(|seen| seen.at)
    }

    /// Notes that the clock was set forward: nobody was away for that long. Also after a suspend, in which nobody
    /// could have come. Forgotten at a restart: who is paused for it comes back with the next read.
    pub(super) fn set_forward(&self, before: UnixTime, by: Duration) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if steps.len() >= STEPS {
            steps.remove(0);
        }
        steps.push((before, by));
    }

    /// Notes that the clock was set back to `now`: steps from before are no measure any more, and nobody was here
    /// in the future.
    pub(super) fn set_back(&self, now: UnixTime) {
        let mut users = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for seen in users.values_mut().flat_map(HashMap::values_mut) {
            seen.at = seen.at.min(now);
        }
        drop(users);
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.clear();
    }

    /// Returns a last activity as if the clock had not been set forward since.
    pub(super) fn forgiven(&self, seen_at: UnixTime) -> UnixTime {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.iter().fold(
            seen_at,
            |at, (before, by)| {
                if at <= *before { at + *by } else { at }
            },
        )
    }

    /// Notes that a grant's present token set was read, and if that counts, that its user was active.
    pub(super) fn note_read(&self, readable: &Readable, counts: bool, now: UnixTime) {
        if readable.noted.read() {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            read.insert(readable.grant.id);
        }
        let every = NOTED_EVERY.min(self.written_every() / 100);
        if counts && readable.noted.active(now, every) {
            let key = &readable.grant.key;
            self.note(&key.namespace, &key.user, now);
        }
    }

    /// Returns whether a grant's present token set was read by anybody.
    pub(super) fn is_read(&self, id: GrantId) -> bool {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.contains(&id)
    }

    /// Returns whether the token set that is being replaced was read by anybody, and forgets it.
    pub(super) fn take_read(&self, id: GrantId) -> bool {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.remove(&id)
    }

    /// Writes what is only in memory, and forgets users who have been quiet for long. What the store refuses is
    /// kept, and written by the next flush.
    pub(super) async fn flush(&self, now: UnixTime) -> Result<(), StoreError> {
        let unwritten: Vec<_> = {
            let users = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let all = users.iter().flat_map(|(namespace, users)| {
                users
                    .iter()
                    .map(move |(user, seen)| (namespace, user, seen))
            });
            all.filter(|(_, _, seen)| seen.written_at != Some(seen.at))
                .map(|(namespace, user, seen)| (namespace.clone(), user.clone(), seen.at))
                .collect()
        };
        if !unwritten.is_empty() {
            write_notes(&self.store, &self.seen, unwritten).await?;
        }
        let written_every = self.written_every();
        let mut users = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|_, users| {
            users.retain(|_, seen| {
                now.since(seen.at) < written_every || seen.written_at != Some(seen.at)
            });
            !users.is_empty()
        });
        Ok(())
    }

    /// Returns when it is time for [`Activity::flush`], `at_most` after now.
    pub(super) async fn flush_is_due(&self, at_most: Duration) {
        loop {
            tokio::select! {
                biased; // or the same seed would not be the same simulation
                () = tokio::time::sleep(self.written_every().min(at_most)) => return,
                () = self.changed.notified() => {}
            }
        }
    }
}

/// Writes notes, and remembers that they are written.
async fn write_notes(
    store: &Store,
    seen: &Mutex<Users>,
    notes: Vec<(String, String, UnixTime)>,
) -> Result<(), StoreError> {
    store.note_activity(notes.clone()).await?;
    let mut users = seen.lock().unwrap_or_else(PoisonError::into_inner);
    for (namespace, user, at) in notes {
        if let Some(seen) = find(&mut users, &namespace, &user) {
            (seen.given_at, seen.written_at) = (Some(at), Some(at));
        }
    }
    Ok(())
}
