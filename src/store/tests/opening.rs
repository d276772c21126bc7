use std::os::unix::fs::PermissionsExt;

use super::*;

fn snapshot(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    files
        .map(|e| {
            (
                e.file_name().into_string().unwrap(),
                std::fs::read(e.path()).unwrap(),
            )
        })
        .collect()
}

/// A state directory as a killed daemon leaves it: with a log, its index and the lock file.
async fn killed() -> (TempDir, Kek) {
    let bench = Bench::new();
    bench.import("anna").await;
    let copy = tempfile::tempdir().unwrap();
    for (name, bytes) in snapshot(bench.dir.path()) {
        std::fs::write(copy.path().join(name), bytes).unwrap();
    }
    let names: Vec<_> = snapshot(copy.path()).into_keys().collect();
    assert_eq!(
        names,
        [
            "freshd.db",
            "freshd.db-shm",
            "freshd.db-wal",
            "keyring",
            "lock",
            "spill"
        ]
    );
    (copy, bench.kek.clone())
}

/// Opens, expects a refusal, and expects every file to be as it was.
fn refused(dir: &Path, kek: &Kek) -> OpenError {
    if let Err(error) = std::fs::File::create_new(dir.join("lock")) {
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    }
    let before = snapshot(dir);
    let error = Store::open(options(dir, kek)).err().expect("a refusal");
    assert!(before == snapshot(dir), "a byte or a file changed: {error}");
    error
}

#[test]
fn a_new_store_is_readable_by_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("a/state");
    let store = Store::open(options(&state, &Kek::generate())).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&state), 0o700);
    let names: Vec<_> = snapshot(&state).into_keys().collect();
    assert_eq!(
        names,
        [
            "freshd.db",
            "freshd.db-shm",
            "freshd.db-wal",
            "keyring",
            "lock",
            "spill"
        ]
    );
    for name in names {
        assert_eq!(mode(&state.join(&name)), 0o600, "{name}");
    }
    drop(store);
}

#[tokio::test]
async fn a_killed_daemons_store_opens_with_its_key_and_has_everything() {
    let (dir, kek) = killed().await;
    let store = Store::open(options(dir.path(), &kek)).unwrap();
    let read = store.readable(&key("anna"), at(0)).await.unwrap().unwrap();
    assert_eq!(read.access_token.unwrap().expose(), "access-anna");
}

#[tokio::test]
async fn a_wrong_key_stops_with_78_and_changes_no_byte() {
    let (dir, _) = killed().await;
    let error = refused(dir.path(), &Kek::generate());
    assert!(matches!(error, OpenError::Key { .. }), "{error}");
    assert_eq!(error.exit_code(), 78);
}

#[tokio::test]
async fn a_missing_keyring_stops_with_78_and_changes_no_byte() {
    let (dir, kek) = killed().await;
    std::fs::remove_file(dir.path().join("keyring")).unwrap();
    let error = refused(dir.path(), &kek);
    assert!(matches!(error, OpenError::NoKeyring { .. }), "{error}");
    assert_eq!(error.exit_code(), 78);
    // The log alone is a database too.
    std::fs::remove_file(dir.path().join("freshd.db")).unwrap();
    assert!(matches!(
        refused(dir.path(), &kek),
        OpenError::NoKeyring { .. }
    ));
}

#[tokio::test]
async fn a_damaged_keyring_stops_with_78_and_changes_no_byte() {
    let (dir, kek) = killed().await;
    let path = dir.path().join("keyring");
    let good = std::fs::read_to_string(&path).unwrap();
    for bad in [
        "",
        "{}",
        "nonsense",
        &good[..good.len() / 2],
        &good.replace("data", ""),
    ] {
        if bad == good {
            continue;
        }
        std::fs::write(&path, bad).unwrap();
        let error = refused(dir.path(), &kek);
        assert!(matches!(error, OpenError::Keyring { .. }), "{error}");
        assert_eq!(error.exit_code(), 78);
    }
}

#[tokio::test]
async fn another_stores_keyring_is_refused_even_under_the_same_key() {
    let (dir, kek) = killed().await;
    let other = tempfile::tempdir().unwrap();
    Store::open(options(other.path(), &kek))
        .unwrap()
        .close()
        .await;
    std::fs::copy(other.path().join("keyring"), dir.path().join("keyring")).unwrap();
    let error = refused(dir.path(), &kek);
    assert!(matches!(error, OpenError::Keyring { .. }), "{error}");
    assert!(error.to_string().contains("another store"), "{error}");
}

#[tokio::test]
async fn a_keyring_without_its_database_is_refused() {
    let (dir, kek) = killed().await;
    std::fs::remove_file(dir.path().join("freshd.db")).unwrap();
    std::fs::remove_file(dir.path().join("freshd.db-wal")).unwrap();
    let error = refused(dir.path(), &kek);
    assert!(matches!(error, OpenError::NoDatabase { .. }), "{error}");
    assert_eq!(error.exit_code(), 78);
}

#[tokio::test]
async fn a_newer_store_is_refused_and_left_as_it_is() {
    let bench = Bench::new();
    bench.import("anna").await;
    bench.store.close().await;
    bench.sql().pragma_update(None, "user_version", 99).unwrap();
    let error = refused(bench.dir.path(), &bench.kek);
    assert!(
        matches!(
            error,
            OpenError::Newer {
                found: 99,
                known: schema::VERSION,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.exit_code(), 78);
}

#[tokio::test]
async fn a_newer_version_that_only_the_log_knows_is_refused_too() {
    let (dir, kek) = killed().await;
    let conn = schema::connect_writer(&dir.path().join("freshd.db"), Duration::ZERO).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(options(dir.path(), &kek)).err().unwrap();
    assert!(
        matches!(error, OpenError::Newer { found: 99, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn other_peoples_files_are_refused() {
    let bench = Bench::new();
    bench.store.close().await;
    let path = bench.dir.path().join("freshd.db");
    for bytes in [
        "",
        "this is a text, and a long one at that: "
            .repeat(50)
            .as_str(),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = refused(bench.dir.path(), &bench.kek);
        assert!(matches!(error, OpenError::NotOurs { .. }), "{error}");
        assert_eq!(error.exit_code(), 78);
    }
}

#[tokio::test]
async fn one_daemon_per_state_directory() {
    let bench = Bench::new();
    let error = Store::open(options(bench.dir.path(), &bench.kek))
        .err()
        .unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert_eq!(error.exit_code(), 75);
    bench.store.close().await;
    Store::open(options(bench.dir.path(), &bench.kek)).unwrap();
}

#[test]
fn a_directory_that_others_may_write_in_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for mode in [0o770, 0o702, 0o1777] {
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let error = refused(dir.path(), &Kek::generate());
        assert!(
            matches!(error, OpenError::Directory { mode: m, .. } if m == mode),
            "{error}"
        );
        assert_eq!(error.exit_code(), 78);
    }
}

#[tokio::test]
async fn a_store_half_made_when_the_power_went_is_made_anew_or_finished() {
    let bench = Bench::new();
    bench.store.close().await;
    let named = |name: &str| bench.dir.path().join(name);
    let open = || Store::open(options(bench.dir.path(), &bench.kek));

    // Before the keyring: nothing of it counts.
    std::fs::remove_file(named("keyring")).unwrap();
    std::fs::rename(named("freshd.db"), named("freshd.db.new")).unwrap();
    std::fs::write(named("keyring.new"), "half a keyr").unwrap();
    let keyring = {
        open().unwrap().close().await;
        std::fs::read(named("keyring")).unwrap()
    };

    // After the keyring, before the database had its name: it gets it.
    std::fs::rename(named("freshd.db"), named("freshd.db.new")).unwrap();
    assert!(matches!(
        refused(bench.dir.path(), &Kek::generate()),
        OpenError::Key { .. }
    ));
    open().unwrap().close().await;
    assert_eq!(std::fs::read(named("keyring")).unwrap(), keyring);
    assert!(named("freshd.db").exists() && !named("freshd.db.new").exists());
}

#[test]
fn refusals_name_the_file_and_what_to_do() {
    let (dir, kek) = (tempfile::tempdir().unwrap(), Kek::generate());
    std::fs::write(dir.path().join("freshd.db"), "x").unwrap();
    let text = refused(dir.path(), &kek).to_string();
    assert!(
        text.contains("freshd.db is there but its keyring"),
        "{text}"
    );
    assert!(text.contains("put the keyring back"), "{text}");
}
