//! One thread writes. It commits in groups, and answers when a group is on disk.
//!
//! A group holds what waits, outcomes first (a rotated refresh token is worth more than
//! anything else here), then marks, then the rest, up to [`GROUP`] entries. While there is a [`COMPANY`]
//! it waits up to [`LINGER`] for more; where a few write now and then, nobody waits. A rest that is never
//! reached can't happen: every outcome and mark belongs to one of a few hundred attempts in
//! flight, and none of those sends another before it is answered.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::hooks::Action;
use tokio::sync::{oneshot, watch};

use super::StoreError;
use super::keyring::SharedKeyring;
use super::session::{Disk, Session, Trouble};
use super::{checkpoint, schema};

/// At most this many entries are committed together: measured, larger groups gain nothing.
const GROUP: usize = 256;
/// A group waits at most this long for company; an fsync takes about as long.
const LINGER: Duration = Duration::from_millis(5);
/// A group as large as this shows that more are coming fast enough to be worth waiting for. On a slow disk they become so
/// large by themselves.
const COMPANY: usize = 16;

/// What goes first into a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// How an attempt ended.
    Outcome,
    /// That an attempt begins.
    Mark,
    /// Everything else.
    Rest,
}

/// One verb that waits to be written, and its caller that waits to be answered.
pub(super) trait Entry: Send {
    /// Does the work, perhaps a second time after what the first did was undone; an error undoes this entry alone.
    fn run(&mut self, session: &Session<'_>) -> Result<(), Trouble>;
    /// Answers, once the group is on disk or known not to be.
    fn answer(self: Box<Self>, group: Result<(), StoreError>);
}

struct Verb<F, T> {
    work: F,
    done: Option<Result<T, StoreError>>,
    caller: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Entry for Verb<F, T>
where
    F: Fn(&Session<'_>) -> Result<T, Trouble> + Send,
    T: Send,
{
    fn run(&mut self, session: &Session<'_>) -> Result<(), Trouble> {
        match (self.work)(session) {
            Ok(value) => {
                self.done = Some(Ok(value));
                Ok(())
            }
            Err(trouble) => {
                self.done = Some(Err(trouble.store_error()));
                Err(trouble)
            }
        }
    }

    fn answer(self: Box<Self>, group: Result<(), StoreError>) {
        let answer = match group {
            Ok(()) => self.done.unwrap_or(Err(StoreError::Unavailable)),
            Err(error) => Err(error),
        };
        // A caller that hung up cancels nothing: the work is done.
        let _ = self.caller.send(answer);
    }
}

#[derive(Default)]
struct Queue {
    outcomes: VecDeque<Box<dyn Entry>>,
    marks: VecDeque<Box<dyn Entry>>,
    rest: VecDeque<Box<dyn Entry>>,
    closed: bool,
}

impl Queue {
    fn len(&self) -> usize {
        self.outcomes.len() + self.marks.len() + self.rest.len()
    }

    fn take(&mut self) -> Vec<Box<dyn Entry>> {
        let mut group = Vec::with_capacity(self.len().min(GROUP));
        for class in [&mut self.outcomes, &mut self.marks, &mut self.rest] {
            let room = GROUP - group.len();
            group.extend(class.drain(..class.len().min(room)));
        }
        group
    }
}

/// What the callers and the writer thread share.
#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    failing: Mutex<Option<String>>,
    /// Changes whenever events have been committed.
    events: watch::Sender<()>,
}

impl Shared {
    /// Keeps and logs whether the store takes writes: one line for each change.
    fn note(&self, written: &Result<(), Trouble>) {
        let mut failing = lock(&self.failing);
        match written {
            Ok(()) => {
                if failing.take().is_some() {
                    tracing::info!("store-writable");
                }
            }
            Err(trouble) => {
                let text = trouble.text();
                if failing.is_none() {
                    tracing::error!(reason = text, "store-unwritable");
                }
                *failing = Some(text);
            }
        }
    }
}

/// The way to the writer thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the writer thread, and with it the one that checkpoints.
    pub(super) fn start(
        conn: Connection,
        checkpoints: Connection,
        keyring: Arc<SharedKeyring>,
        disk: Arc<Disk>,
    ) -> std::io::Result<Writer> {
        let shared = Arc::new(Shared::default());
        // One wish is enough: the checkpoint looks at the whole log.
        let (wishes, wished) = sync_channel(1);
        let checkpoint = checkpoint::start(checkpoints, wished)?;
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let closing = CloseAtExit(&shared);
                    let conn = Work {
                        conn,
                        keyring: &keyring,
                        disk: &disk,
                        shared: &shared,
                    }
                    .run(wishes);
                    // The checkpoint thread ends when nobody can wish any more; then the log can be emptied.
                    let _ = checkpoint.join();
                    if let Err(error) = schema::checkpoint_all(&conn) {
                        tracing::warn!(%error, "checkpoint-failed");
                    }
                    drop(conn);
                    drop(closing);
                }
            })?;
        Ok(Writer {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Queues `work`. The result is there once it is on disk, whether or not anybody waits for it.
    ///
    /// Entries of one class are written in the order of these calls.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        class: Class,
        work: impl Fn(&Session<'_>) -> Result<T, Trouble> + Send + 'static,
    ) -> oneshot::Receiver<Result<T, StoreError>> {
        let (caller, answer) = oneshot::channel();
        let entry = Box::new(Verb {
            work,
            done: None,
            caller,
        });
        let mut queue = lock(&self.shared.queue);
        if queue.closed {
            entry.answer(Err(StoreError::Closed));
            return answer;
        }
        match class {
            Class::Outcome => queue.outcomes.push_back(entry),
            Class::Mark => queue.marks.push_back(entry),
            Class::Rest => queue.rest.push_back(entry),
        }
        self.shared.arrived.notify_one();
        answer
    }

    /// Says that nothing can be written, as if a write had failed for it.
    pub(super) fn tell(&self, trouble: Trouble) {
        self.shared.note(&Err(trouble));
    }

    /// Returns the last write error, if nothing has been committed since.
    pub(super) fn failing(&self) -> Option<String> {
        lock(&self.shared.failing).clone()
    }

    /// Returns how many entries wait for a group.
    pub(super) fn queued(&self) -> usize {
        lock(&self.shared.queue).len()
    }

    /// Returns what changes whenever events have been committed.
    pub(super) fn events_committed(&self) -> watch::Receiver<()> {
        self.shared.events.subscribe()
    }

    /// Writes what is queued, empties the log, and ends the threads. Blocks meanwhile.
    pub(super) fn close(&self) {
        lock(&self.shared.queue).closed = true;
        self.shared.arrived.notify_one();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic has been reported by the panic hook; the queue was closed by `CloseAtExit`.
            let _ = thread.join();
        }
    }
}

/// Nobody may wait for a writer that has ended, by a panic either.
struct CloseAtExit<'a>(&'a Shared);

impl Drop for CloseAtExit<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        queue.closed = true;
        while queue.len() > 0 {
            queue
                .take()
                .into_iter()
                .for_each(|entry| entry.answer(Err(StoreError::Closed)));
        }
    }
}

/// The writer thread's own.
struct Work<'a> {
    conn: Connection,
    keyring: &'a SharedKeyring,
    disk: &'a Disk,
    shared: &'a Shared,
}

impl Work<'_> {
    fn run(mut self, wishes: SyncSender<u64>) -> Connection {
        let wrote = Arc::new(AtomicBool::new(false));
        if let Err(error) = checkpoint::wish_when_long(&mut self.conn, wishes, Arc::clone(&wrote)) {
            tracing::error!(%error, "checkpoint-failed");
        }
        let told = self.watch_events();
        let mut state = State::default();
        while let Some(mut group) = self.next(state.company) {
            state.company = group.len() >= COMPANY;
            let written = self.write(&mut group, &mut state);
            // A commit of nothing is no news of the disk.
            if written.is_err() || wrote.swap(false, Ordering::Relaxed) {
                self.shared.note(&written);
            }
            // What was undone again makes somebody look in vain, and no more.
            if told.swap(false, Ordering::Relaxed) && written.is_ok() {
                self.shared.events.send_replace(());
            }
            let answer = written.map_err(|trouble| trouble.store_error());
            group
                .into_iter()
                .for_each(|entry| entry.answer(answer.clone()));
        }
        // Drops the last sender of wishes.
        let _ = self
            .conn
            .wal_hook(None::<fn(&mut rusqlite::hooks::Wal, i32) -> _>);
        self.conn
    }

    /// Returns what is set when an event is written.
    fn watch_events(&mut self) -> Arc<AtomicBool> {
        let told = Arc::new(AtomicBool::new(false));
        let hook = {
            let told = Arc::clone(&told);
            move |action, _: &str, table: &str, _| {
                if action == Action::SQLITE_INSERT && table == "events" {
                    told.store(true, Ordering::Relaxed);
                }
            }
        };
        if let Err(error) = self.conn.update_hook(Some(hook)) {
            tracing::error!(%error, "events-not-told");
        }
        told
    }

    /// Waits for entries; `None` once the queue is closed and empty.
    fn next(&self, company: bool) -> Option<Vec<Box<dyn Entry>>> {
        let wait = |queue: &mut Queue| queue.len() == 0 && !queue.closed;
        let arrived = &self.shared.arrived;
        let queue = lock(&self.shared.queue);
        let mut queue = arrived
            .wait_while(queue, wait)
            .unwrap_or_else(PoisonError::into_inner);
        if company {
            let more = |queue: &mut Queue| queue.len() < GROUP && !queue.closed;
            queue = arrived
                .wait_timeout_while(queue, LINGER, more)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let group = queue.take();
        (!group.is_empty()).then_some(group)
    }

    /// Commits a group as one transaction.
    fn write(&self, group: &mut [Box<dyn Entry>], state: &mut State) -> Result<(), Trouble> {
        self.disk.check_there()?;
        if state.suspect {
            // After a failed fsync the kernel may call pages clean that never reached the disk.
            // Nothing is durable again before a checkpoint rewrote and synced the database file.
            self.disk.step()?;
            if !schema::checkpoint_all(&self.conn)? {
                return Err(Trouble::Sqlite(busy()));
            }
            state.suspect = false;
        }
        // A transaction that could not be ended is in the way of the next one.
        if !self.conn.is_autocommit() {
            self.roll_back()?;
        }
        let keyring = self.keyring.read();
        let session = Session {
            conn: &self.conn,
            keyring: &keyring,
            disk: self.disk,
        };
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        let mut ran = run_all(&session, group, state.careful);
        if matches!(ran, Ok(Ran::Failed)) && !state.careful {
            self.roll_back()?;
            self.conn.execute_batch("BEGIN IMMEDIATE")?;
            ran = run_all(&session, group, true);
        }
        state.careful = matches!(ran, Ok(Ran::Failed));
        let mut written = ran.map(|_| ());
        if written.is_ok() {
            written = self
                .disk
                .step()
                .and_then(|()| Ok(self.conn.execute_batch("COMMIT")?));
            state.suspect = written.is_err();
        }
        if written.is_err() && !self.conn.is_autocommit() {
            self.roll_back()?;
        }
        written
    }

    fn roll_back(&self) -> Result<(), Trouble> {
        self.disk.step()?;
        Ok(self.conn.execute_batch("ROLLBACK")?)
    }
}

/// What the last groups have shown.
#[derive(Default)]
struct State {
    /// Many write at once.
    company: bool,
    /// A commit failed.
    suspect: bool,
    /// An entry failed, and others may for the same reason.
    careful: bool,
}

/// How the entries of a group fared.
enum Ran {
    /// All did their work.
    Done,
    /// At least one did not. What it had written is undone, if this was done carefully.
    Failed,
}

/// Runs a group's entries. Carefully, each is in a savepoint of its own, so that one that fails undoes nothing else. That
/// takes copies of all pages that it writes to: as long as all goes well there are none, and the first failure is the end.
/// An error is the disk's, and everybody's.
fn run_all(
    session: &Session<'_>,
    group: &mut [Box<dyn Entry>],
    careful: bool,
) -> Result<Ran, Trouble> {
    let mut ran = Ran::Done;
    for entry in group {
        let savepoint = |sql| match careful {
            true => session.conn.prepare_cached(sql)?.execute([]),
            false => Ok(0),
        };
        savepoint("SAVEPOINT entry")?;
        if let Err(trouble) = entry.run(session) {
            if trouble.is_the_disks() || session.conn.is_autocommit() {
                return Err(trouble);
            }
            ran = Ran::Failed;
            if !careful {
                return Ok(ran);
            }
            if !matches!(trouble, Trouble::NoRoom) {
                tracing::error!(reason = trouble.text(), "store-verb-failed");
            }
            savepoint("ROLLBACK TO entry")?;
        }
        savepoint("RELEASE entry")?;
    }
    Ok(ran)
}

fn busy() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
        Some("a reader stood in the way of a checkpoint".into()),
    )
}

/// A poisoned lock guards plain data that no panic leaves half-changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
