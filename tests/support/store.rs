//! The files of a daemon that does not run: changed as time or another program would, and searched.

use std::path::{Path, PathBuf};

use super::Config;

/// Runs SQL on the database of a stopped daemon and returns how many rows it changed.
pub fn change(config: &Config, sql: &str) -> usize {
    let connection =
        rusqlite::Connection::open(config.state_dir().join("freshd.db")).expect("it is stopped");
    let changed = connection.execute(sql, []).expect("the test's SQL is SQL");
    connection.close().expect("nothing is under way");
    changed
}

/// As if the stop had taken so much longer: every mark is that much older.
pub fn age_marks(config: &Config, seconds: i64) {
    let sql = format!(
        "UPDATE marks SET first_sent_at = first_sent_at - {}",
        seconds * 1000
    );
    assert!(change(config, &sql) > 0, "there is no mark to age");
}

/// Returns the files below the state directory in which `needle` occurs.
pub fn files_with(directory: &Path, needle: &[u8]) -> Vec<PathBuf> {
    std::fs::read_dir(directory)
        .expect("the directory is ours")
        .map(|entry| entry.expect("the directory is ours").path())
        .filter(|path| {
            let bytes = std::fs::read(path).expect("the file is ours");
            memchr::memmem::find(&bytes, needle).is_some()
        })
        .collect()
}

/// Opens a copy of a dead daemon's database, so that its own start finds the files as they were left. The copy is gone
/// with the directory.
pub fn copied(config: &Config) -> (tempfile::TempDir, rusqlite::Connection) {
    let copy = tempfile::tempdir().expect("a directory");
    for name in ["freshd.db", "freshd.db-wal"] {
        let file = config.state_dir().join(name);
        if file.exists() {
            std::fs::copy(&file, copy.path().join(name)).expect("both are ours");
        }
    }
    let database = rusqlite::Connection::open(copy.path().join("freshd.db"));
    (copy, database.expect("a database"))
}
