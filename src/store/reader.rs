//! A few threads read, each with a connection of its own and one short transaction per verb.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::StoreError;
use super::keyring::SharedKeyring;
use super::session::{Disk, Session, Trouble};
use super::writer::lock;

/// As many as keep a small host's cores busy; a read takes microseconds.
pub(super) const READERS: usize = 3;

type Job = Box<dyn FnOnce(&Session<'_>) + Send>;

/// The way to the reader threads.
pub(super) struct Readers {
    jobs: Mutex<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Readers {
    /// Starts one thread per connection.
    pub(super) fn start(
        conns: Vec<Connection>,
        keyring: &Arc<SharedKeyring>,
        disk: &Arc<Disk>,
    ) -> std::io::Result<Readers> {
        let (jobs, waiting) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        let mut threads = Vec::new();
        for conn in conns {
            let (waiting, keyring, disk) =
                (Arc::clone(&waiting), Arc::clone(keyring), Arc::clone(disk));
            threads.push(
                std::thread::Builder::new()
                    .name("store-reader".into())
                    .spawn(move || serve(&conn, &keyring, &disk, &waiting))?,
            );
        }
        Ok(Readers {
            jobs: Mutex::new(Some(jobs)),
            threads: Mutex::new(threads),
        })
    }

    /// Queues `work` for the next free thread.
    pub(super) fn submit<T: Send + 'static>(
        &self,
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
        // Where nobody reads any more, the dropped job tells its caller.
        if let Some(jobs) = &*lock(&self.jobs) {
            let _ = jobs.send(job);
        }
        answer
    }

    /// Ends the threads after what is queued. Blocks meanwhile.
    pub(super) fn close(&self) {
        lock(&self.jobs).take();
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(conn: &Connection, keyring: &SharedKeyring, disk: &Disk, waiting: &Mutex<Receiver<Job>>) {
    loop {
        // A statement of its own, so that the lock is free before the job runs.
        let job = lock(waiting).recv();
        let Ok(job) = job else { return };
        job(&Session {
            conn,
            keyring: &keyring.read(),
            disk,
        });
    }
}

fn in_transaction<T>(
    session: &Session<'_>,
    work: impl FnOnce(&Session<'_>) -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    session.conn.prepare_cached("BEGIN DEFERRED")?.execute([])?;
    let read = work(session);
    // A transaction left open would keep the log from ever being reused.
    session.conn.execute_batch("ROLLBACK")?;
    read
}
