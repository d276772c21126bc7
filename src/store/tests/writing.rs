use std::sync::Mutex as StdMutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::refresh::grant::PauseReason;

/// Holds the writer thread inside a verb until the sender is used or dropped.
fn hold_writer(store: &Store) -> (Sender<()>, Receiver<()>) {
    let (release, released) = channel();
    let (entered, holding) = channel();
    drop(store.inner.writer.submit(Class::Rest, move |_| {
        entered.send(()).unwrap();
        let _ = released.recv();
        Ok(())
    }));
    (release, holding)
}

/// Polls a verb once, so that it is queued; it does not finish by that.
fn submits(verb: std::pin::Pin<&mut impl Future>) {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(verb.poll(&mut context).is_pending());
}

#[tokio::test]
async fn outcomes_are_written_before_marks_and_marks_before_the_rest() {
    let bench = Bench::new();
    let (release, holding) = hold_writer(&bench.store);
    holding.recv().unwrap();
    let order = Arc::new(StdMutex::new(Vec::new()));
    let mut answers = Vec::new();
    use Class::{Mark, Outcome, Rest};
    for (class, nth) in [
        (Rest, 1),
        (Mark, 1),
        (Outcome, 1),
        (Rest, 2),
        (Mark, 2),
        (Outcome, 2),
    ] {
        let order = Arc::clone(&order);
        answers.push(bench.store.inner.writer.submit(class, move |_| {
            order.lock().unwrap().push((class, nth));
            Ok(())
        }));
    }
    release.send(()).unwrap();
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    let expected = [
        (Outcome, 1),
        (Outcome, 2),
        (Mark, 1),
        (Mark, 2),
        (Rest, 1),
        (Rest, 2),
    ];
    assert_eq!(*order.lock().unwrap(), expected);
}

#[tokio::test]
async fn what_waits_is_committed_together_up_to_256_entries() {
    let bench = Bench::new();
    let (release, holding) = hold_writer(&bench.store);
    holding.recv().unwrap();
    // An entry sees what its group wrote before it; another connection sees committed groups only.
    let (path, seen) = (
        bench.dir.path().join("freshd.db"),
        Arc::new(StdMutex::new(Vec::new())),
    );
    let mut answers = Vec::new();
    for nth in 0..600 {
        let (path, seen) = (path.clone(), Arc::clone(&seen));
        answers.push(
            bench
                .store
                .inner
                .writer
                .submit(Class::Rest, move |session| {
                    session.write(
                        "INSERT INTO activity VALUES ('n', ?1, 1)",
                        [nth.to_string()],
                    )?;
                    if nth % 100 == 99 {
                        let other = schema::connect_reader(&path, Duration::ZERO)?;
                        let sql = "SELECT count(*) FROM activity";
                        let count: i64 = other.query_row(sql, [], |row| row.get(0))?;
                        seen.lock().unwrap().push(count);
                    }
                    Ok(())
                }),
        );
    }
    release.send(()).unwrap();
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    assert_eq!(*seen.lock().unwrap(), [0, 0, 256, 256, 256, 512]);
}

#[tokio::test]
async fn an_answer_means_that_another_process_sees_it() {
    let bench = Bench::new();
    let other = bench.sql();
    for nth in 1..=20 {
        bench.import(&format!("u{nth}")).await;
        let count: i64 = other
            .query_row("SELECT count(*) FROM grants", [], |r| r.get(0))
            .unwrap();
        assert_eq!(count, nth);
    }
}

#[tokio::test]
async fn a_failing_entry_does_not_spoil_its_group() {
    let bench = Bench::new();
    let (release, holding) = hold_writer(&bench.store);
    holding.recv().unwrap();
    // Two groups and a bit. The first is begun without savepoints, the second, after a failure, with them.
    let is_bad = |nth: usize| [10, 300].contains(&nth);
    let sql = "INSERT INTO activity VALUES ('n', ?1, 1)";
    let answers: Vec<_> = (0..600)
        .map(|nth| {
            bench
                .store
                .inner
                .writer
                .submit(Class::Rest, move |session| {
                    session.write(sql, [nth.to_string()])?;
                    if is_bad(nth) {
                        // The one before is there already.
                        session.write(sql, [(nth - 1).to_string()])?;
                    }
                    Ok(())
                })
        })
        .collect();
    release.send(()).unwrap();
    for (nth, answer) in answers.into_iter().enumerate() {
        let expected = match is_bad(nth) {
            true => Err(StoreError::Damaged),
            false => Ok(()),
        };
        assert_eq!(answer.await.unwrap(), expected, "{nth}");
        let noted = bench.store.last_activity("n", &nth.to_string()).await;
        assert_eq!(noted.unwrap().is_some(), !is_bad(nth), "{nth}");
    }
}

#[tokio::test]
async fn a_caller_that_hangs_up_cancels_nothing() {
    let bench = Bench::new();
    let (release, holding) = hold_writer(&bench.store);
    holding.recv().unwrap();
    {
        let mut verb = Box::pin(bench.store.import(import("anna")));
        submits(verb.as_mut());
    }
    drop(release);
    // Entries of one class keep their order, so this one comes after.
    bench.import("bert").await;
    assert!(bench.store.grant(&key("anna")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_lock_that_another_process_holds_is_waited_for() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    let other = bench.sql();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let store = bench.store.clone();
    let verb = tokio::spawn(async move { store.commit_tokens(commit(&grant, "second")).await });
    // Readers are not held up meanwhile.
    assert_eq!(
        bench
            .store
            .grant(&key("anna"))
            .await
            .unwrap()
            .unwrap()
            .generation,
        1
    );
    assert!(!verb.is_finished());
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(applied(verb.await.unwrap()).generation, 2);
}

#[tokio::test]
async fn a_lock_held_for_too_long_is_a_temporary_failure() {
    let (dir, kek) = (tempfile::tempdir().unwrap(), Kek::generate());
    let options = Options {
        busy_timeout: Duration::from_millis(20),
        ..options(dir.path(), &kek)
    };
    let bench = Bench {
        store: Store::open(options).unwrap(),
        dir,
        kek,
    };
    let other = bench.sql();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = bench.store.import(import("anna")).await.unwrap_err();
    assert_eq!(error, StoreError::Unavailable);
    assert!(error.is_temporary());
    assert!(bench.store.failing().unwrap().contains("locked"));
    other.execute_batch("ROLLBACK").unwrap();
    bench.import("anna").await;
    assert_eq!(bench.store.failing(), None);
}

#[tokio::test]
async fn no_attempt_begins_where_its_token_set_might_not_fit() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    bench.faults().set_full(true);
    let error = bench
        .store
        .begin_attempt(grant.id, 1, None, at(1))
        .await
        .unwrap_err();
    assert_eq!(error, StoreError::NoSpace);
    assert!(error.is_temporary());
    assert!(bench.store.failing().is_some());
    assert!(bench.dump()["marks"].is_empty());
    // What is under way may still be stored.
    applied(bench.store.commit_tokens(commit(&grant, "second")).await);
    bench.faults().set_full(false);
    assert_eq!(bench.store.failing(), None);
    applied(bench.store.begin_attempt(grant.id, 2, None, at(1)).await);
}

#[tokio::test]
async fn a_full_disk_refuses_a_token_set_whole_and_takes_it_later() {
    let bench = Bench::new();
    let grant = bench.import("anna").await;
    // SQLite's own limit gives its own answer to a full disk, the rollback included.
    let pages = |pages: u32| {
        bench
            .store
            .inner
            .writer
            .submit(Class::Rest, move |session| {
                let sql = format!("PRAGMA max_page_count = {pages}");
                session
                    .conn
                    .query_row(&sql, [], |_| Ok(()))
                    .map_err(Into::into)
            })
    };
    pages(1).await.unwrap().unwrap();
    let before = bench.dump();
    let large = TokenSet {
        access_token: Some(AccessToken::new("x".repeat(400_000))),
        ..tokens("second")
    };
    let set = TokenCommit {
        tokens: Arc::new(large),
        ..commit(&grant, "")
    };
    let error = bench.store.commit_tokens(set.clone()).await.unwrap_err();
    assert_eq!(error, StoreError::Unavailable);
    assert!(bench.store.failing().unwrap().contains("full"));
    assert_eq!(bench.dump(), before);
    pages(1_000_000).await.unwrap().unwrap();
    assert_eq!(applied(bench.store.commit_tokens(set).await).generation, 2);
    assert_eq!(bench.store.failing(), None);
}

/// One of everything that writes; each verb is called again after a failure.
async fn everything(bench: &Bench) -> u32 {
    let store = &bench.store;
    let mut failures = 0;
    macro_rules! until_done {
        ($verb:expr) => {{
            let before = bench.dump();
            match $verb.await {
                Ok(done) => done,
                Err(error) => {
                    assert_eq!(error, StoreError::Unavailable);
                    assert_eq!(bench.dump(), before, "half-written: {}", stringify!($verb));
                    assert!(store.failing().unwrap().contains("injected"));
                    failures += 1;
                    let done = $verb.await.expect("the fault comes once");
                    assert_eq!(store.failing(), None);
                    done
                }
            }
        }};
    }
    until_done!(store.import(import("anna")));
    until_done!(store.import(import("bert")));
    let grant = store.grant(&key("anna")).await.unwrap().unwrap();
    until_done!(store.begin_attempt(grant.id, 1, None, at(1)));
    until_done!(store.record_failure(grant.id, 1, failure("http-503")));
    until_done!(store.begin_attempt(grant.id, 1, None, at(2)));
    let committed = until_done!(store.commit_tokens(commit(&grant, "second")));
    assert!(
        matches!(committed, Cas::Applied(_)),
        "a retried commit does not lose to itself"
    );
    assert_eq!(
        until_done!(store.commit_tokens(commit(&grant, "late"))),
        Cas::Lost
    );
    until_done!(store.begin_attempt(grant.id, 2, None, at(3)));
    let paused = Standing::Paused(PauseReason::Admin);
    until_done!(store.set_standing(grant.id, paused, None, By::Admin, at(3)));
    until_done!(store.set_due(grant.id, 2, Some(at(4))));
    until_done!(store.import(replacing("anna", "third")));
    until_done!(store.reschedule("hubspot", None, 9, Box::new(|_| Some(at(77)))));
    until_done!(store.note_activity(vec![("default".into(), "anna".into(), at(4))]));
    until_done!(store.set_provider_state("hubspot", ProviderState::default()));
    until_done!(store.delete(&key("anna"), at(5), true));
    let job = store
        .revocations_due("hubspot", at(5), 9)
        .await
        .unwrap()
        .pop()
        .unwrap()
        .id;
    until_done!(store.revocation_later(job, at(6)));
    until_done!(store.revocation_done(job));
    until_done!(store.purge(at(9), at(9), at(9)));
    until_done!(store.purge_events(at(9)));
    failures
}

#[tokio::test]
async fn whichever_write_fails_nothing_is_half_written_and_a_second_try_succeeds() {
    let undisturbed = Bench::new();
    assert_eq!(everything(&undisturbed).await, 0);
    let expected = shape(&undisturbed);
    let mut nth = 1;
    loop {
        let bench = Bench::new();
        bench.faults().fail_nth(nth);
        let failures = everything(&bench).await;
        assert_eq!(shape(&bench), expected, "fault {nth}");
        if bench.faults().is_pending() {
            break;
        }
        assert_eq!(failures, 1, "fault {nth}");
        nth += 1;
    }
    assert!(nth > 50, "there are more writes than {nth}");
}

/// A dump without what is random: sealed values, fingerprints.
fn shape(bench: &Bench) -> Vec<String> {
    let mut shape = Vec::new();
    for (table, rows) in bench.dump() {
        for row in rows {
            let plain = row.iter().filter(|value| !matches!(value, Value::Blob(_)));
            shape.push(format!("{table} {:?}", plain.collect::<Vec<_>>()));
        }
    }
    shape.sort();
    shape
}

#[tokio::test]
async fn the_log_is_checkpointed_by_its_size_while_commits_go_on() {
    let bench = Bench::new();
    bench
        .sql()
        .execute_batch("CREATE TABLE scratch (id INTEGER PRIMARY KEY, b BLOB)")
        .unwrap();
    let log = bench.dir.path().join("freshd.db-wal");
    let mut long = 0;
    // Many times what it takes, so that a machine whose checkpoints come late passes too.
    let mut used_again = false;
    for _ in 0..20_000 {
        let sql = "INSERT OR REPLACE INTO scratch VALUES (1, zeroblob(200000))";
        let written = bench
            .store
            .write(Class::Outcome, move |session| session.write(sql, []));
        assert_eq!(written.await.unwrap(), 1);
        let was = std::mem::replace(&mut long, log.metadata().unwrap().len());
        used_again = was == long;
        if used_again {
            break;
        }
    }
    assert!(used_again, "{long}: the log is used again");
    assert!(
        long > 3_000_000,
        "{long}: no checkpoint before the log is long"
    );
}

#[tokio::test]
async fn closing_writes_what_is_queued_and_refuses_what_comes_later() {
    let bench = Bench::new();
    let (release, holding) = hold_writer(&bench.store);
    holding.recv().unwrap();
    let mut queued = Box::pin(bench.store.import(import("anna")));
    submits(queued.as_mut());
    let store = bench.store.clone();
    let closing = tokio::spawn(async move { store.close().await });
    release.send(()).unwrap();
    assert!(matches!(queued.await.unwrap(), Imported::Created(_)));
    closing.await.unwrap();
    assert_eq!(
        bench.store.import(import("bert")).await,
        Err(StoreError::Closed)
    );
    assert_eq!(
        bench.store.grant(&key("anna")).await,
        Err(StoreError::Closed)
    );
    assert!(!StoreError::Closed.is_temporary());
    let log = bench.dir.path().join("freshd.db-wal");
    assert!(
        log.metadata().map_or(true, |meta| meta.len() == 0),
        "the log is empty"
    );
    bench.store.close().await;
    let bench = bench.reopen().await;
    assert!(bench.store.grant(&key("anna")).await.unwrap().is_some());
}

#[tokio::test]
async fn nobody_waits_for_a_writer_that_panicked() {
    let bench = Bench::new();
    let (release, holding) = hold_writer(&bench.store);
    holding.recv().unwrap();
    let fatal = bench
        .store
        .inner
        .writer
        .submit::<()>(Class::Rest, |_| panic!("on purpose"));
    let waiting = bench.store.inner.writer.submit(Class::Rest, |_| Ok(()));
    release.send(()).unwrap();
    assert_eq!(answered(fatal).await, Err(StoreError::Closed));
    assert_eq!(answered(waiting).await, Err(StoreError::Closed));
    assert_eq!(bench.store.optimize().await, Err(StoreError::Closed));
}

#[tokio::test]
async fn a_transaction_that_could_not_be_rolled_back_is_in_nobodys_way() {
    let bench = Bench::new();
    bench.import("anna").await;
    let before = bench.dump();
    // The write, and the rollback after it.
    bench.faults().fail_from(1, 2);
    let failed = bench.store.import(import("bert")).await;
    assert!(matches!(failed, Err(StoreError::Unavailable)));
    assert_eq!(bench.dump(), before);

    bench.import("cleo").await;
    assert!(bench.store.grant(&key("bert")).await.unwrap().is_none());
    assert!(bench.store.grant(&key("cleo")).await.unwrap().is_some());
    assert_eq!(bench.store.failing(), None);
}

#[tokio::test]
async fn only_a_commit_that_wrote_something_shows_that_the_disk_takes_writes_again() {
    let bench = Bench::new();
    bench.import("anna").await;
    let store = &bench.store;
    bench.faults().fail_from(1, 1);
    assert_eq!(
        store.import(import("bert")).await,
        Err(StoreError::Unavailable)
    );
    let nothing = store.write(Class::Rest, |_| Ok(())).await;
    assert_eq!(nothing, Ok(()));
    assert!(store.failing().is_some());

    bench.faults().fail_from(1, 1);
    assert_eq!(store.alive().await, Err(StoreError::Unavailable));
    assert!(store.failing().is_some());
    assert_eq!(store.alive().await, Ok(()));
    assert_eq!(store.failing(), None);
}

#[tokio::test]
async fn what_is_deleted_or_replaced_under_a_running_store_takes_nothing_until_it_is_back() {
    for name in ["freshd.db", "lock"] {
        let bench = Bench::new();
        let store = &bench.store;
        let anna = bench.import("anna").await;
        applied(store.begin_attempt(anna.id, 1, None, at(90)).await);
        let (file, away) = (bench.dir.path().join(name), bench.dir.path().join("away"));
        std::fs::rename(&file, &away).unwrap();
        if name == "lock" {
            std::fs::write(&file, "another").unwrap();
        }

        assert_eq!(store.alive().await, Err(StoreError::Gone), "{name}");
        let marked = store.begin_attempt(anna.id, 1, None, at(91)).await;
        assert_eq!(marked, Err(StoreError::Gone), "{name}");
        let imported = store.import(import("bert")).await;
        assert_eq!(imported.err(), Some(StoreError::Gone), "{name}");
        let said = store.failing().unwrap();
        assert!(said.contains(file.to_str().unwrap()), "{said}");
        let committed = store.commit_tokens(commit(&anna, "second")).await;
        assert_eq!(committed, Err(StoreError::Gone), "{name}: held meanwhile");

        std::fs::rename(&away, &file).unwrap();
        bench.import("bert").await;
        assert_eq!(store.failing(), None, "{name}");
        applied(store.commit_tokens(commit(&anna, "second")).await);
    }
}
