use super::session::Trouble;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// Makes the disk fail on demand.
#[derive(Default)]
pub(super) struct Faults {
    /// Steps until the one that fails; never, from zero down.
    left: AtomicI64,
    full: AtomicBool,
}

impl Faults {
    pub(super) fn full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    pub(super) fn step(&self) -> Result<(), Trouble> {
        if self.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return Ok(());
        }
        let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_WRITE);
        Err(Trouble::Sqlite(rusqlite::Error::SqliteFailure(
            error,
            Some("fault".into()),
        )))
    }
}
