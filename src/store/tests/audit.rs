use super::*;
use crate::store::{AuditFilter, AuditNote};

fn note(action: &str, user: &str, seconds: i64) -> AuditNote {
    AuditNote {
        action: action.into(),
        by: "uid 7".into(),
        user: user.into(),
        detail: "box".into(),
        first_at: at(seconds),
        last_at: at(seconds),
        times: 1,
    }
}

/// The seconds of the notes that a filter finds, the newest first.
async fn found(store: &Store, filter: AuditFilter, limit: usize) -> Vec<u64> {
    let notes = store.notes(filter, limit).await.unwrap();
    let seconds = notes
        .iter()
        .map(|(_, note)| note.last_at.since(at(0)).as_secs());
    seconds.collect()
}

#[tokio::test]
async fn notes_come_newest_first_page_by_page_and_by_what_is_asked_for() {
    let bench = Bench::new();
    let store = &bench.store;
    let anna = store.audit_name("default", "anna");
    for (action, user, seconds) in [("read", &*anna, 1), ("refused", "", 2), ("read", "u-1", 3)] {
        store.note(note(action, user, seconds)).await.unwrap();
    }
    let page = store.notes(AuditFilter::default(), 2).await.unwrap();
    assert_eq!(page[0].1, note("read", "u-1", 3));
    let rest = AuditFilter {
        before: Some(page[1].0),
        ..AuditFilter::default()
    };
    assert_eq!(found(store, rest, 9).await, [1]);
    let reads = AuditFilter {
        action: Some("read".into()),
        ..AuditFilter::default()
    };
    assert_eq!(found(store, reads, 9).await, [3, 1]);
    let about = AuditFilter {
        user: Some(anna),
        ..AuditFilter::default()
    };
    assert_eq!(found(store, about, 9).await, [1]);
}

#[tokio::test]
async fn a_users_name_in_a_note_is_a_hash_that_differs_between_users_namespaces_and_stores() {
    let (bench, other) = (Bench::new(), Bench::new());
    let name = bench.store.audit_name("default", "anna");
    assert!(
        name.starts_with("u-") && name.len() == 18 && !name.contains("anna"),
        "{name}"
    );
    assert_eq!(name, bench.store.audit_name("default", "anna"));
    for other in [
        bench.store.audit_name("default", "bert"),
        bench.store.audit_name("crm", "anna"),
        other.store.audit_name("default", "anna"),
    ] {
        assert_ne!(name, other);
    }
}

#[tokio::test]
async fn old_notes_are_purged_and_the_others_stay() {
    let bench = Bench::new();
    let store = &bench.store;
    for seconds in 1..=1200 {
        store.note(note("read", "", seconds)).await.unwrap();
    }
    assert_eq!(store.purge_notes(at(1101)).await.unwrap(), 1100);
    assert_eq!(found(store, AuditFilter::default(), 2000).await.len(), 100);
    assert_eq!(store.purge_notes(at(1101)).await.unwrap(), 0);
}

#[tokio::test]
async fn beyond_the_most_the_oldest_notes_go() {
    let bench = Bench::new();
    let store = &bench.store;
    store.note(note("read", "", 1)).await.unwrap();
    bench.edit("UPDATE sqlite_sequence SET seq = 99999 WHERE name = 'audit'");
    store.note(note("read", "", 2)).await.unwrap();
    assert_eq!(found(store, AuditFilter::default(), 9).await, [2, 1]);
    store.note(note("read", "", 3)).await.unwrap();
    assert_eq!(found(store, AuditFilter::default(), 9).await, [3, 2]);
}
