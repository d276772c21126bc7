//! Activity that the store refuses.

use super::steps_tests::Bench;
use super::*;
use serde_json::json;

#[tokio::test]
async fn a_note_that_the_store_refused_is_kept_and_written_again() {
    let bench = Bench::start("").await;
    bench.import("ann", json!({})).await;
    let (store, now) = (&bench.shared().store, bench.clock.now());
    let activity = Activity::new(store.clone(), Duration::from_secs(30));
    store.refuse_writes(true);
    activity.note("default", "ann", now);
    // The note is refused before the flush is.
    tokio::task::yield_now().await;
    let later = now + Duration::from_secs(60);
    assert_eq!(activity.flush(later).await, Err(StoreError::Unavailable));
    store.refuse_writes(false);
    let last = || store.last_activity("default", "ann");
    assert_eq!(last().await, Ok(None));
    assert_eq!(activity.flush(later).await, Ok(()));
    assert_eq!(last().await, Ok(Some(now)));
    let seen = activity.seen.lock().unwrap().len();
    assert_eq!(seen, 0, "quiet for long, and written");
}

#[tokio::test]
async fn how_often_activity_is_written_follows_the_configuration() {
    let bench = Bench::start("").await;
    bench.import("ann", json!({})).await;
    let (store, now) = (&bench.shared().store, bench.clock.now());
    let activity = Activity::new(store.clone(), Duration::from_secs(3 * 86_400));
    let noted_is_written = async |at| {
        activity.note("default", "ann", at);
        // The note is written before this is.
        tokio::task::yield_now().await;
        store.note_activity(Vec::new()).await.unwrap();
        store.last_activity("default", "ann").await == Ok(Some(at))
    };
    let second = Duration::from_secs(1);
    assert!(noted_is_written(now).await);
    assert!(!noted_is_written(now + 5 * second).await);
    activity.set_inactive_after(20 * second);
    assert!(noted_is_written(now + 5 * second).await);
    assert!(!noted_is_written(now + 6 * second).await);
    // It comes at once, and not in an hour.
    activity.set_inactive_after(Duration::from_millis(20));
    activity.flush_is_due(Duration::MAX).await;
}
