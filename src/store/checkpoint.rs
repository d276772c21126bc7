//! Checkpoints by the log's size, on a thread of their own: no commit waits for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread::JoinHandle;

use rusqlite::Connection;

use super::schema;

/// A log of this many pages (4 MiB) is copied into the database.
const LONG: u64 = 1_000;
/// A log of this many pages (64 MiB) has never been free of readers; the next checkpoint waits for them.
const TOO_LONG: u64 = 16_000;

/// Makes the writer's commits wish for a checkpoint when the log is long, and sets `wrote` when one of them
/// has put something into the log: a commit of nothing asks nothing of the disk.
pub(super) fn wish_when_long(
    writer: &mut Connection,
    wishes: SyncSender<u64>,
    wrote: Arc<AtomicBool>,
) -> rusqlite::Result<()> {
    writer.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages: i32| {
        wrote.store(true, Ordering::Relaxed);
        let pages = u64::try_from(pages).unwrap_or(0);
        if pages >= LONG {
            // A full channel already holds such a wish.
            let _ = wishes.try_send(pages);
        }
        Ok(())
    }))
}

/// Starts the thread. It ends when the last sender of wishes is gone.
pub(super) fn start(conn: Connection, wished: Receiver<u64>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("store-checkpoint".into())
        .spawn(move || {
            for pages in wished {
                let done = if pages >= TOO_LONG {
                    schema::checkpoint_all(&conn).map(drop)
                } else {
                    conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
                };
                if let Err(error) = done {
                    // The log keeps everything; the next commit wishes again.
                    tracing::warn!(%error, "checkpoint-failed");
                }
            }
        })
}
