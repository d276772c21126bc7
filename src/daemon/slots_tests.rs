//! Slots that are waited for.

use super::slots::SlotTable;
use crate::refresh::grant::GrantKey;

fn key() -> GrantKey {
    GrantKey {
        namespace: "default".into(),
        user: "ann".into(),
        provider: "box".into(),
        account: String::new(),
    }
}

#[tokio::test]
async fn the_next_in_line_holds_the_slot_when_the_holder_leaves() {
    let table = SlotTable::default();
    let first = table.acquire(&key()).await;
    let waiting = tokio::spawn({
        let table = table.clone();
        async move { table.acquire(&key()).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(first);
    drop(waiting.await.unwrap());
    drop(table.acquire(&key()).await);
}

#[tokio::test]
async fn a_waiter_that_gives_up_blocks_nobody() {
    let table = SlotTable::default();
    let first = table.acquire(&key()).await;
    let given_up = tokio::spawn({
        let table = table.clone();
        async move { table.acquire(&key()).await }
    });
    tokio::task::yield_now().await;
    given_up.abort();
    assert!(given_up.await.is_err());
    drop(first);
    drop(table.acquire(&key()).await);
    assert_eq!(table.lock().slots.held(), 0);
    assert!(table.lock().wakers.is_empty());
}
