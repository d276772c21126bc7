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
    store.fail_nth_write(1);
    activity.note("default", "ann", now);
    while store.write_failure_is_pending() {
        tokio::task::yield_now().await;
    }
    let last = || store.last_activity("default", "ann");
    assert_eq!(last().await, Ok(None));
    store.fail_nth_write(1);
    let later = now + Duration::from_secs(60);
    assert_eq!(activity.flush(later).await, Err(StoreError::Unavailable));
    assert_eq!(activity.flush(later).await, Ok(()));
    assert_eq!(last().await, Ok(Some(now)));
    let seen = activity.seen.lock().unwrap().len();
    assert_eq!(seen, 0, "quiet for long, and written");
}
