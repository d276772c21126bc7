//! What becomes of a daemon that has lost a part of itself.

use std::sync::{Mutex, mpsc};
use std::time::Duration;

use serde_json::json;

use super::steps_tests::{Bench, served};

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_lost_its_schedule_says_so_and_stores_what_is_in_flight_before_it_ends() {
    let mut bench = Bench::start("").await;
    let (asked, was_asked) = mpsc::channel();
    let (may_answer, answers) = mpsc::channel::<()>();
    let answers = Mutex::new(answers);
    bench.server.answer_with(move |_| {
        asked.send(()).unwrap();
        // The runtime's timers must go on meanwhile.
        tokio::task::block_in_place(|| answers.lock().unwrap().recv().unwrap());
        served(3600)
    });
    bench.import("ann", json!({"expires_in": 1})).await;
    let in_flight = tokio::task::spawn_blocking(move || was_asked.recv());
    in_flight.await.unwrap().unwrap();

    let mut daemon = bench.handle.take().unwrap();
    let still_whole = tokio::time::timeout(Duration::from_millis(1), daemon.lame()).await;
    assert!(still_whole.is_err(), "nothing has ended yet");
    daemon.background.abort_all();
    daemon.lame().await;
    let slots = daemon.shared.slots.clone();
    let mut stopping = std::pin::pin!(daemon.stop());
    let too_early = tokio::time::timeout(Duration::from_millis(300), &mut stopping).await;
    assert!(too_early.is_err(), "a request is in flight");
    assert_eq!(slots.lock().slots.held(), 1);
    may_answer.send(()).unwrap();
    stopping.await;

    bench.start_again().await;
    assert_eq!(bench.grant("ann").await.generation, 2);
}
