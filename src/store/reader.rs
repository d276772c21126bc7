//! A few threads read, each with a connection of its own and one short transaction per verb.
//!
//! Reads that callers ask for may come in floods; the schedule's and an admin's come before them, and one thread does
//! nothing else.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::StoreError;
use super::keyring::SharedKeyring;
use super::session::{Disk, Session, Trouble};
use super::writer::lock;

/// As many as keep a small host's cores busy; a read takes microseconds. The first is not for callers.
pub(super) const READERS: usize = 3;

/// Who wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// Whoever asks for a grant or a user.
    Caller,
    /// The schedule, an attempt, an admin.
    Daemon,
}

type Job = Box<dyn FnOnce(&Session<'_>) + Send>;

#[derive(Default)]
struct Queue {
    callers: VecDeque<Job>,
    daemon: VecDeque<Job>,
    closed: bool,
    reserved: Sleepers,
    others: Sleepers,
}

/// The threads of one kind that sleep.
#[derive(Clone, Copy, Default)]
struct Sleepers {
    asleep: usize,
    /// How many of them are being woken.
    called: usize,
}

impl Sleepers {
    /// How many sleep on if nobody wakes them.
    fn idle(self) -> usize {
        self.asleep.saturating_sub(self.called)
    }
}

impl Queue {
    /// Returns whether it is the reserved thread that is to be woken for what was just queued; `None` if all that could do
    /// it are awake. Never fewer: one that is awake may be held up by the disk. It counts as called.
    fn call_for(&mut self, whom: For) -> Option<bool> {
        let reserved = whom == For::Daemon && self.reserved.idle() > 0;
        let sleepers = self.sleepers(reserved);
        (sleepers.idle() > 0).then(|| {
            sleepers.called += 1;
            reserved
        })
    }

    fn sleepers(&mut self, reserved: bool) -> &mut Sleepers {
        match reserved {
            true => &mut self.reserved,
            false => &mut self.others,
        }
    }

    /// Returns the next job for a thread; `reserved` is the one that does nothing for callers.
    fn next(&mut self, reserved: bool) -> Option<Job> {
        match self.daemon.pop_front() {
            None if !reserved => self.callers.pop_front(),
            job => job,
        }
    }
}

/// What waits, and how the threads learn of it.
#[derive(Default)]
struct Waiting {
    queue: Mutex<Queue>,
    /// For the thread that does nothing for callers.
    reserved: Condvar,
    /// For the others.
    arrived: Condvar,
}

impl Waiting {
    fn arrived(&self, reserved: bool) -> &Condvar {
        match reserved {
            true => &self.reserved,
            false => &self.arrived,
        }
    }
}

/// The way to the reader threads.
pub(super) struct Readers {
    waiting: Arc<Waiting>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Readers {
    /// Starts one thread per connection.
    pub(super) fn start(
        conns: Vec<Connection>,
        keyring: &Arc<SharedKeyring>,
        disk: &Arc<Disk>,
    ) -> std::io::Result<Readers> {
        let waiting = Arc::new(Waiting::default());
        let mut threads = Vec::new();
        for (nth, conn) in conns.into_iter().enumerate() {
            let (waiting, keyring, disk) =
                (Arc::clone(&waiting), Arc::clone(keyring), Arc::clone(disk));
            threads.push(
                std::thread::Builder::new()
                    .name("store-reader".into())
                    .spawn(move || serve(&conn, &keyring, &disk, &waiting, nth == 0))?,
            );
        }
        Ok(Readers {
            waiting,
            threads: Mutex::new(threads),
        })
    }

    /// Queues `work` for the next free thread.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        whom: For,
        work: impl FnOnce(&Session<'_>) -> Result<T, Trouble> + Send + 'static,
    ) -> oneshot::Receiver<Result<T, StoreError>> {
        let (caller, answer) = oneshot::channel();
        let job: Job = Box::new(move |session| {
            let read = in_transaction(session, work);
            if let Err(trouble) = &read {
                tracing::error!(reason = trouble.text(), "store-unreadable");
            }
            let _ = caller.send(read.map_err(|trouble| trouble.store_error()));
        });
        let mut queue = lock(&self.waiting.queue);
        // Where nobody reads any more, the dropped job tells its caller.
        if !queue.closed {
            match whom {
                For::Caller => queue.callers.push_back(job),
                For::Daemon => queue.daemon.push_back(job),
            }
            let wake = queue.call_for(whom);
            drop(queue);
            if let Some(reserved) = wake {
                self.waiting.arrived(reserved).notify_one();
            }
        }
        answer
    }

    /// Ends the threads after what is queued. Blocks meanwhile.
    pub(super) fn close(&self) {
        lock(&self.waiting.queue).closed = true;
        self.waiting.reserved.notify_all();
        self.waiting.arrived.notify_all();
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(
    conn: &Connection,
    keyring: &SharedKeyring,
    disk: &Disk,
    waiting: &Waiting,
    reserved: bool,
) {
    let mut queue = lock(&waiting.queue);
    loop {
        if let Some(job) = queue.next(reserved) {
            drop(queue);
            job(&Session {
                conn,
                keyring: &keyring.read(),
                disk,
            });
            queue = lock(&waiting.queue);
        } else if queue.closed {
            return;
        } else {
            queue.sleepers(reserved).asleep += 1;
            let woken = waiting.arrived(reserved).wait(queue);
            queue = woken.unwrap_or_else(PoisonError::into_inner);
            let sleepers = queue.sleepers(reserved);
            sleepers.asleep -= 1;
            sleepers.called = sleepers.called.saturating_sub(1);
        }
    }
}

fn in_transaction<T>(
    session: &Session<'_>,
    work: impl FnOnce(&Session<'_>) -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    session.conn.prepare_cached("BEGIN DEFERRED")?.execute([])?;
    let read = work(session);
    // A transaction left open would keep the log from ever being reused.
    session.conn.prepare_cached("ROLLBACK")?.execute([])?;
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_reads_come_first_and_one_thread_does_nothing_else() {
        let mut queue = Queue::default();
        let job = || -> Job { Box::new(|_| ()) };
        queue.callers.extend([job(), job()]);
        assert!(queue.next(true).is_none());
        queue.daemon.extend([job(), job()]);
        let left = |queue: &Queue| (queue.callers.len(), queue.daemon.len());
        assert!(queue.next(true).is_some());
        assert_eq!(left(&queue), (2, 1));
        assert!(queue.next(false).is_some());
        assert_eq!(left(&queue), (2, 0));
        assert!(queue.next(true).is_none());
        assert!(queue.next(false).is_some());
        assert_eq!(left(&queue), (1, 0));
    }

    #[test]
    fn one_thread_is_woken_for_each_job_while_any_sleeps() {
        let mut queue = Queue::default();
        let job = || -> Job { Box::new(|_| ()) };
        (queue.reserved.asleep, queue.others.asleep) = (1, READERS - 1);
        let caller = |queue: &mut Queue| {
            queue.callers.push_back(job());
            queue.call_for(For::Caller)
        };
        let woken: Vec<_> = (0..3).map(|_| caller(&mut queue)).collect();
        let other = Some(false);
        assert_eq!(woken, [other, other, None]);
        assert_eq!(queue.call_for(For::Daemon), Some(true));
        assert_eq!(queue.call_for(For::Daemon), None, "all are called");
        // One of the others was woken, did all of it, and sleeps again.
        queue.callers.clear();
        queue.others.called = 1;
        assert_eq!(queue.call_for(For::Daemon), other, "the first is busy");
        assert_eq!(queue.call_for(For::Daemon), None);
    }
}
