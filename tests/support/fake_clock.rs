//! The wall clock of a daemon, set by the test: libfaketime stands between it and the system's.

use std::path::{Path, PathBuf};

use super::Config;

/// Where Debian puts the library for programs with threads; `None` where it is not installed, and says so.
pub fn libfaketime() -> Option<PathBuf> {
    let machine = format!("/usr/lib/{}-linux-gnu/faketime", std::env::consts::ARCH);
    let found = [machine.as_str(), "/usr/lib/faketime", "/usr/lib64/faketime"]
        .into_iter()
        .map(|directory| Path::new(directory).join("libfaketimeMT.so.1"))
        .find(|library| library.exists());
    if found.is_none() {
        eprintln!("SKIPPED: there is no libfaketime; as root: apt-get install libfaketime");
    }
    found
}

/// Puts a daemon's clock into our hands; it shows the system's time until it is set.
pub fn take(config: Config, library: &Path) -> Config {
    set(&config, 0);
    let file = file(&config);
    config
        .environment("LD_PRELOAD", library.to_str().expect("ASCII"))
        .environment("FAKETIME_TIMESTAMP_FILE", file.to_str().expect("ASCII"))
        .environment("FAKETIME_NO_CACHE", "1")
        .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .environment("NO_FAKE_STAT", "1")
}

/// Sets the daemon's clock to so many seconds from the system's.
pub fn set(config: &Config, seconds: i64) {
    let file = file(config);
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{seconds:+}\n")).expect("the directory is ours");
    std::fs::rename(new, file).expect("the directory is ours");
}

fn file(config: &Config) -> PathBuf {
    config.path().join("clock")
}
