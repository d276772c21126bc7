//! Copies of the store.

use std::os::unix::fs::MetadataExt;

use rusqlite::Connection;

use super::*;
use crate::refresh::grant::PauseReason;
use crate::store::backup::{APPLICATION_ID, BackupError};
use crate::store::nightly_name;

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn read(path: &Path) -> Connection {
    schema::connect_immutable(path).unwrap()
}

#[tokio::test]
async fn a_copy_is_one_private_file_with_every_row_and_the_wrapped_keyring() {
    let bench = Bench::new();
    for user in ["anna", "bert"] {
        bench.import(user).await;
    }
    let gone = bench.import("carl").await;
    bench.store.delete(&gone.key, at(1), true).await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("copy");

    let made = bench.store.backup(&path, at(5)).await.unwrap();

    assert_eq!((made.grants, made.revocations, made.quarantined), (2, 1, 0));
    assert_eq!(files(out.path()), ["copy"]);
    let meta = path.metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.len()), (0o600, made.bytes));
    let copy = read(&path);
    let rows = |sql: &str| copy.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(rows("SELECT count(*) FROM grants"), 2);
    assert_eq!(rows("SELECT made_at FROM backup"), at(5).as_millis());
    assert_eq!(rows("PRAGMA application_id"), APPLICATION_ID);
    let keyring: String = copy
        .query_row("SELECT keyring FROM backup", [], |row| row.get(0))
        .unwrap();
    assert_eq!(
        keyring,
        std::fs::read_to_string(bench.dir.path().join("keyring")).unwrap()
    );
    let bytes = std::fs::read(&path).unwrap();
    for secret in ["access-anna", "refresh-anna", "refresh-carl"] {
        assert!(memchr::memmem::find(&bytes, secret.as_bytes()).is_none());
    }
}

#[tokio::test]
async fn no_daemon_runs_on_a_copy() {
    let bench = Bench::new();
    bench.import("anna").await;
    let other = tempfile::tempdir().unwrap();
    let path = other.path().join("freshd.db");
    bench.store.backup(&path, at(5)).await.unwrap();
    std::fs::copy(
        bench.dir.path().join("keyring"),
        other.path().join("keyring"),
    )
    .unwrap();
    let refused = Store::open(options(other.path(), &bench.kek)).err();
    assert!(matches!(refused, Some(OpenError::NotOurs { .. })));
}

#[tokio::test]
async fn a_file_that_is_there_is_never_overwritten() {
    let bench = Bench::new();
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("copy");
    std::fs::write(&path, "mine").unwrap();
    let refused = bench.store.backup(&path, at(5)).await;
    assert!(matches!(refused, Err(BackupError::Exists { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    assert_eq!(files(out.path()), ["copy"]);
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_told_and_a_left_over_is_replaced() {
    let bench = Bench::new();
    let out = tempfile::tempdir().unwrap();
    let refused = bench.store.backup(&out.path().join("no/copy"), at(5)).await;
    assert!(
        matches!(refused, Err(BackupError::CannotCreate { .. })),
        "{refused:?}"
    );
    // A crash left this one.
    std::fs::write(out.path().join("copy.freshd-unfinished"), "half").unwrap();
    let path = out.path().join("copy");
    bench.store.backup(&path, at(5)).await.unwrap();
    assert_eq!(files(out.path()), ["copy"]);
}

#[tokio::test]
async fn a_token_that_does_not_open_is_quarantined_and_the_copy_is_made() {
    let bench = Bench::new();
    let anna = bench.import("anna").await;
    bench.import("bert").await;
    bench.edit("UPDATE grants SET refresh_token = x'00' WHERE user = 'anna'");
    let out = tempfile::tempdir().unwrap();
    let first = bench.store.backup(&out.path().join("1"), at(5)).await;
    assert_eq!(first.unwrap().quarantined, 1);
    let anna = bench.store.grant(&anna.key).await.unwrap().unwrap();
    assert_eq!(anna.standing, Standing::Paused(PauseReason::Quarantined));
    let again = bench.store.backup(&out.path().join("2"), at(6)).await;
    assert_eq!(again.unwrap().quarantined, 1);
}

#[tokio::test]
async fn a_copy_whose_counters_do_not_count_it_gets_no_name() {
    let bench = Bench::new();
    bench.import("anna").await;
    bench.edit("UPDATE counters SET grants = grants + 1");
    let out = tempfile::tempdir().unwrap();
    let refused = bench.store.backup(&out.path().join("copy"), at(5)).await;
    assert!(
        matches!(refused, Err(BackupError::Check { .. })),
        "{refused:?}"
    );
    assert_eq!(files(out.path()), [""; 0]);
}

#[tokio::test]
async fn only_old_nightly_copies_of_this_store_are_removed() {
    let (bench, other) = (Bench::new(), Bench::new());
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    for day in 0..4 {
        let name = nightly_name(at(day * 86_400));
        bench.store.backup(&path(&name), at(0)).await.unwrap();
    }
    let strange = nightly_name(at(-86_400));
    other.store.backup(&path(&strange), at(0)).await.unwrap();
    std::fs::write(path("freshd-20200101T000000Z.backup"), "not a copy").unwrap();
    bench.store.backup(&path("mine"), at(0)).await.unwrap();

    let removed = bench.store.remove_old_backups(out.path(), 2).await.unwrap();

    assert_eq!(removed, 2);
    let mut stay = vec![
        "freshd-20200101T000000Z.backup".to_owned(),
        strange,
        nightly_name(at(2 * 86_400)),
        nightly_name(at(3 * 86_400)),
        "mine".to_owned(),
    ];
    stay.sort();
    assert_eq!(files(out.path()), stay);
}

#[tokio::test]
async fn the_newest_copy_is_found_whoever_made_it_and_no_other_stores() {
    let (bench, other) = (Bench::new(), Bench::new());
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    let newest = || async {
        let newest = bench.store.newest_copies(out.path()).await.unwrap();
        (newest.nightly, newest.any)
    };
    assert_eq!(newest().await, (None, None));
    bench.store.backup(&path("mine"), at(500)).await.unwrap();
    other.store.backup(&path("another"), at(900)).await.unwrap();
    std::fs::write(path("no-copy"), "words").unwrap();
    assert_eq!(newest().await, (None, Some(at(500))));
    let night = path(&nightly_name(at(300)));
    bench.store.backup(&night, at(300)).await.unwrap();
    assert_eq!(newest().await, (Some(at(300)), Some(at(500))));
    let night = path(&nightly_name(at(700)));
    bench.store.backup(&night, at(700)).await.unwrap();
    assert_eq!(newest().await, (Some(at(700)), Some(at(700))));
    let gone = bench.store.newest_copies(&path("none")).await.unwrap();
    assert_eq!((gone.nightly, gone.any), (None, None));
}

#[test]
fn a_nightly_name_says_when() {
    assert_eq!(
        nightly_name(UnixTime::from_millis(1_769_828_400_123)),
        "freshd-20260131T030000Z.backup"
    );
    assert_eq!(
        nightly_name(at(0)).len(),
        "freshd-20260131T030000Z.backup".len()
    );
}

#[tokio::test]
async fn no_copy_takes_a_name_in_the_state_directory_that_freshd_uses() {
    let bench = Bench::new();
    let dir = bench.dir.path();
    for name in [
        "restoring",
        "freshd.db.new",
        "freshd.db-journal",
        "keyring.new",
        "restore.new",
        "moved",
    ] {
        let made = bench.store.backup(&dir.join(name), at(5)).await;
        assert!(
            matches!(made, Err(BackupError::Reserved { .. })),
            "{name}: {made:?}"
        );
        assert!(!dir.join(name).exists(), "{name}");
    }
    // By whatever way there.
    let around = dir
        .join("..")
        .join(dir.file_name().unwrap())
        .join("restoring");
    let made = bench.store.backup(&around, at(5)).await;
    assert!(
        matches!(made, Err(BackupError::Reserved { .. })),
        "{made:?}"
    );
    let elsewhere = tempfile::tempdir().unwrap();
    for path in [elsewhere.path().join("restoring"), dir.join("a-copy")] {
        bench.store.backup(&path, at(5)).await.unwrap();
    }
}
