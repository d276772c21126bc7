//! Rotations of the data key.

use super::*;
use crate::refresh::grant::PauseReason;
use crate::store::keyring::Keyring;

const QUARANTINED: Standing = Standing::Paused(PauseReason::Quarantined);

async fn reseal_all(store: &Store) -> u64 {
    let (mut place, mut rows) = (Some(Place::default()), 0);
    while let Some(here) = place {
        let page = store.reseal(here, at(500)).await.unwrap();
        (place, rows) = (page.next, rows + page.rows);
    }
    rows
}

async fn rotate(store: &Store) -> Retired {
    store.begin_rotation().await.unwrap();
    reseal_all(store).await;
    store.retire_keys().await.unwrap()
}

async fn expect_tokens(store: &Store, user: &str, name: &str) {
    let read = store.readable(&key(user), at(7)).await.unwrap().unwrap();
    let access = read.access_token.expect("it opens");
    assert_eq!(access.expose(), format!("access-{name}"));
    let attempt = store.attemptable(read.grant.id, at(8)).await.unwrap();
    let refresh = attempt.unwrap().refresh_token.expect("it opens");
    assert_eq!(refresh.expose(), format!("refresh-{name}"));
    assert_eq!(read.grant.standing, Standing::Active);
}

fn keyring_text(bench: &Bench) -> String {
    std::fs::read_to_string(bench.dir.path().join("keyring")).unwrap()
}

/// How many rows each data key has sealed.
fn rows_of(bench: &Bench, key_id: u32) -> i64 {
    let sql = "SELECT (SELECT count(*) FROM grants WHERE key_id = ?1)
        + (SELECT count(*) FROM revocations WHERE key_id = ?1)";
    bench
        .sql()
        .query_row(sql, [key_id], |row| row.get(0))
        .unwrap()
}

#[tokio::test]
async fn a_rotation_seals_everything_anew_and_shreds_what_the_old_key_sealed() {
    let bench = Bench::new();
    let mut users = Vec::new();
    // More than one group.
    for nth in 0..150 {
        let user = format!("user-{nth}");
        bench.import(&user).await;
        users.push(user);
    }
    let gone = bench.import("carl").await;
    bench.store.delete(&gone.key, at(1), true).await.unwrap();
    let before = bench.dump();
    let stolen = bench.sql();
    stolen
        .execute_batch("CREATE TABLE stolen AS SELECT id, key_id, access_token FROM grants")
        .unwrap();

    assert_eq!(bench.store.begin_rotation().await.unwrap(), 2);
    let (current, old) = (2, vec![1]);
    assert_eq!(bench.store.keys(), Keys { current, old });
    assert_eq!(bench.store.rows_to_reseal().await.unwrap(), 151);
    // New writes take the new key at once, and old values still open.
    bench.import("dora").await;
    assert_eq!(rows_of(&bench, 2), 1);
    expect_tokens(&bench.store, "user-0", "user-0").await;
    assert_eq!(reseal_all(&bench.store).await, 151);
    assert_eq!((rows_of(&bench, 1), rows_of(&bench, 2)), (0, 152));
    let retired = bench.store.retire_keys().await.unwrap();
    assert_eq!(retired, Retired::Done { unopenable: 0 });
    let (current, old) = (2, vec![]);
    assert_eq!(bench.store.keys(), Keys { current, old });

    let bench = bench.reopen().await;
    for user in users.iter().map(String::as_str).chain(["dora"]) {
        expect_tokens(&bench.store, user, user).await;
    }
    assert_eq!(waiting_revocations(&bench.store).await.len(), 1);
    // Nothing else has changed, versions and stories included.
    let after = bench.dump();
    for table in ["history", "activity", "providers", "marks"] {
        assert!(after[table].starts_with(&before[table]), "{table}");
    }
    let plain = |rows: &[Vec<Value>]| -> Vec<Vec<Value>> {
        let sealed = 21..24;
        let columns = |row: &Vec<Value>| {
            let all = row.iter().enumerate();
            all.filter(|(nth, _)| !sealed.contains(nth))
                .map(|(_, value)| value.clone())
                .collect()
        };
        rows.iter().map(columns).collect()
    };
    assert!(plain(&after["grants"]).starts_with(&plain(&before["grants"])));

    // Old bytes open neither under their old key id nor under the new one.
    for key_id in [1, 2] {
        bench.edit(&format!(
            "UPDATE grants SET key_id = {key_id}, access_token =
                (SELECT access_token FROM stolen WHERE stolen.id = grants.id) WHERE user = 'user-1'"
        ));
        let read = bench.store.readable(&key("user-1"), at(7)).await.unwrap();
        assert!(read.unwrap().access_token.is_none());
    }
}

#[tokio::test]
async fn a_second_rotation_does_not_begin_while_one_is_under_way_nor_after_a_restart() {
    let bench = Bench::new();
    bench.import("anna").await;
    bench.store.begin_rotation().await.unwrap();
    let again = bench.store.begin_rotation().await;
    assert!(matches!(again, Err(RotationError::UnderWay)));
    let bench = bench.reopen().await;
    assert_eq!(bench.store.keys().old, [1]);
    let again = bench.store.begin_rotation().await;
    assert!(matches!(again, Err(RotationError::UnderWay)));
    reseal_all(&bench.store).await;
    bench.store.retire_keys().await.unwrap();
    assert_eq!(rotate(&bench.store).await, Retired::Done { unopenable: 0 });
    assert_eq!(bench.store.keys().current, 3);
    expect_tokens(&bench.store, "anna", "anna").await;
}

#[tokio::test]
async fn a_key_that_a_row_or_a_spilled_set_needs_is_not_retired() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    bench.store.spill(commit(&grant, "spilled")).await.unwrap();
    bench.store.begin_rotation().await.unwrap();
    let used = |rows, spilled| Retired::InUse { rows, spilled };
    assert_eq!(bench.store.retire_keys().await.unwrap(), used(1, 1));
    reseal_all(&bench.store).await;
    assert_eq!(bench.store.retire_keys().await.unwrap(), used(0, 1));
    // What is spilled from now on is sealed with the new key.
    bench.store.spill(commit(&grant, "later")).await.unwrap();
    assert_eq!(bench.store.retire_keys().await.unwrap(), used(0, 1));
    bench.store.clear_spill().await.unwrap();
    bench.store.spill(commit(&grant, "later")).await.unwrap();
    let retired = bench.store.retire_keys().await.unwrap();
    assert_eq!(retired, Retired::Done { unopenable: 0 });
    let bench = bench.reopen().await;
    assert_eq!(bench.store.spilled().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_does_not_open_is_told_and_left_and_does_not_keep_the_old_key() {
    let bench = Bench::new();
    for user in ["anna", "bert", "carl", "dora"] {
        bench.import(user).await;
    }
    bench.edit("UPDATE grants SET scope = 'more' WHERE user = 'anna'");
    bench.edit("UPDATE grants SET refresh_token = x'0102' WHERE user = 'bert'");
    bench.edit("UPDATE grants SET key_id = 77 WHERE user = 'carl'");
    let sealed = |user: &str| -> (i64, Vec<u8>, Vec<u8>) {
        let sql = "SELECT key_id, access_token, refresh_token FROM grants WHERE user = ?1";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        bench.sql().query_row(sql, [user], read).unwrap()
    };
    let (anna, carl) = (sealed("anna"), sealed("carl"));
    assert_eq!(rotate(&bench.store).await, Retired::Done { unopenable: 2 });
    assert_eq!(
        (sealed("anna"), sealed("carl")),
        (anna, carl),
        "byte for byte"
    );
    assert_eq!((sealed("bert").0, sealed("bert").2), (2, vec![1, 2]));
    for user in ["anna", "bert", "carl"] {
        let grant = bench.store.grant(&key(user)).await.unwrap().unwrap();
        assert_eq!(grant.standing, QUARANTINED, "{user}");
    }
    // I4: what opens of a quarantined grant is served.
    let bert = bench.store.readable(&key("bert"), at(7)).await.unwrap();
    assert_eq!(bert.unwrap().access_token.unwrap().expose(), "access-bert");
    expect_tokens(&bench.store, "dora", "dora").await;
    // An import heals it as ever.
    bench.store.import(replacing("anna", "anna")).await.unwrap();
    expect_tokens(&bench.store, "anna", "anna").await;
}

#[tokio::test]
async fn a_refresh_token_of_before_a_rotation_is_still_known() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    applied(bench.store.commit_tokens(commit(&grant, "second")).await);
    rotate(&bench.store).await;
    let bench = bench.reopen().await;
    for name in ["anna", "second"] {
        let again = bench.store.import(replacing("anna", name)).await.unwrap();
        assert!(matches!(again, Imported::Unchanged(_)), "{name}: {again:?}");
    }
}

#[tokio::test]
async fn an_attempt_that_began_before_a_rotation_commits_after_it() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    applied(bench.store.begin_attempt(grant.id, 1, None, at(10)).await);
    rotate(&bench.store).await;
    let after = applied(bench.store.commit_tokens(commit(&grant, "second")).await);
    assert_eq!(after.generation, 2);
    expect_tokens(&bench.store, "anna", "second").await;
}

#[tokio::test]
async fn a_write_that_fails_at_any_step_loses_nothing_and_the_rotation_goes_on() {
    for nth in 1.. {
        let bench = Bench::new();
        for user in ["anna", "bert"] {
            bench.import(user).await;
        }
        bench.store.begin_rotation().await.unwrap();
        bench.faults().fail_nth(nth);
        let failed = bench.store.reseal(Place::default(), at(500)).await.is_err();
        assert_eq!(failed, !bench.faults().is_pending());
        bench.faults().fail_nth(0);
        for user in ["anna", "bert"] {
            expect_tokens(&bench.store, user, user).await;
        }
        let bench = bench.reopen().await;
        reseal_all(&bench.store).await;
        let retired = bench.store.retire_keys().await.unwrap();
        assert_eq!(retired, Retired::Done { unopenable: 0 });
        for user in ["anna", "bert"] {
            expect_tokens(&bench.store, user, user).await;
        }
        if !failed {
            assert!(nth > 3, "two rows and a commit");
            return;
        }
    }
}

#[tokio::test]
async fn a_keyring_that_cannot_be_written_leaves_the_old_key_in_use() {
    let bench = Bench::new();
    bench.import("anna").await;
    let before = keyring_text(&bench);
    // A directory in the way of the unnamed file.
    let in_the_way = bench.dir.path().join("keyring.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let refused = bench.store.begin_rotation().await;
    assert!(matches!(refused, Err(RotationError::Keyring { .. })));
    assert_eq!(
        (bench.store.keys().current, keyring_text(&bench)),
        (1, before)
    );
    expect_tokens(&bench.store, "anna", "anna").await;

    std::fs::remove_dir(&in_the_way).unwrap();
    bench.store.begin_rotation().await.unwrap();
    reseal_all(&bench.store).await;
    std::fs::create_dir(&in_the_way).unwrap();
    assert!(bench.store.retire_keys().await.is_err());
    assert_eq!(bench.store.keys().old, [1]);
    std::fs::remove_dir(&in_the_way).unwrap();
    let retired = bench.store.retire_keys().await.unwrap();
    assert_eq!(retired, Retired::Done { unopenable: 0 });
    expect_tokens(&bench.store, "anna", "anna").await;
}

#[tokio::test]
async fn a_copy_of_before_a_rotation_opens_with_its_own_keyring() {
    let bench = Bench::new();
    bench.import("anna").await;
    let copy = bench.dir.path().join("copy");
    bench.store.backup(&copy, at(5)).await.unwrap();
    rotate(&bench.store).await;
    let conn = schema::connect_immutable(&copy).unwrap();
    let text: String = conn
        .query_row("SELECT keyring FROM backup", [], |row| row.get(0))
        .unwrap();
    let keyring = Keyring::unlock(&bench.kek, text.as_bytes()).unwrap();
    assert_eq!((keyring.current(), keyring.old_keys()), (1, vec![]));
}

#[tokio::test]
async fn a_reader_of_an_older_snapshot_still_opens_what_it_has_read() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    bench.store.begin_rotation().await.unwrap();
    let (began, has_begun) = std::sync::mpsc::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let reading = tokio::spawn({
        let store = bench.store.clone();
        async move {
            let read = store.read(move |session| {
                // The snapshot is taken here, and the value read after the rotation from it.
                let grant = rows::by_id(session, grant.id)?.unwrap();
                began.send(()).unwrap();
                may_go_on.recv().unwrap();
                rows::open(session, &grant, seal::Purpose::Access)
            });
            read.await.unwrap().secret()
        }
    });
    let wait = move || has_begun.recv().unwrap();
    tokio::task::spawn_blocking(wait).await.unwrap();
    reseal_all(&bench.store).await;
    let retiring = tokio::spawn({
        let store = bench.store.clone();
        async move { store.retire_keys().await.unwrap() }
    });
    // The file comes first, then the keys in use.
    while keyring_text(&bench).contains("\"id\": 1") {
        tokio::task::yield_now().await;
    }
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    go_on.send(()).unwrap();
    let secret = reading.await.unwrap().expect("it opens");
    assert_eq!(*secret, "access-anna");
    assert_eq!(retiring.await.unwrap(), Retired::Done { unopenable: 0 });
    assert_eq!(bench.store.keys().old, [0; 0]);
}
