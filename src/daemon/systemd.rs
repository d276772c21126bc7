//! What systemd is told: that we are ready, how we fare in words, and that we make progress.
//!
//! `WATCHDOG=1` goes out only while scheduler and writer both answer, or while a token set is held: a
//! restart would lose what the disk has refused, and mends no disk.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use super::shared::Shared;
use super::view;
use crate::refresh::grant::Standing;
use crate::refresh::time::UnixTime;
use crate::store::{Count, StoreError};

/// `STATUS=` is renewed so often where no watchdog asks for more.
const STATUS_EVERY: Duration = Duration::from_secs(15);

/// Tells systemd. Where there is none, or it does not listen, nothing depends on it.
pub(super) fn notify(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}

/// Tells how the daemon fares, until the task is aborted.
///
/// With a watchdog: four times within its time, and an answer of ours may take half of that.
pub(super) async fn run(shared: Arc<Shared>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(STATUS_EVERY, |time| (time / 4).min(STATUS_EVERY));
    loop {
        let alive = async {
            match watchdog {
                Some(time) => progresses(&shared, time / 2).await,
                None => false,
            }
        };
        // A disk that hangs must not keep the watchdog waiting.
        let words = tokio::time::timeout(every, status(&shared));
        let (alive, words) = tokio::join!(alive, words);
        tell(alive, words.ok().and_then(Result::ok)).await;
        tokio::time::sleep(every).await;
    }
}

/// Tells what there is to tell; a manager that does not listen just then holds up no other task.
async fn tell(alive: bool, words: Option<String>) {
    let told = tokio::task::spawn_blocking(move || {
        if alive {
            notify(&[NotifyState::Watchdog]);
        }
        if let Some(words) = words {
            notify(&[NotifyState::Status(&words)]);
        }
    });
    // It can't panic, and if the runtime ends first there is nobody to tell.
    let _ = told.await;
}

/// Returns whether scheduler and writer answer within `patience`. A disk that refuses writes is an answer.
async fn progresses(shared: &Shared, patience: Duration) -> bool {
    let both = async {
        view::look(shared).await.is_some()
            && !matches!(shared.store.alive().await, Err(StoreError::Closed))
    };
    tokio::time::timeout(patience, both).await.unwrap_or(false) || shared.held.len() > 0
}

async fn status(shared: &Shared) -> Result<String, StoreError> {
    let counts = shared.store.counts().await?;
    let next = view::next_due_at(shared, view::look(shared).await.as_ref()).await?;
    let now = shared.clock.now();
    let mut words = words(&counts, next, now);
    for name in shared.providers.all().keys() {
        // Where nothing is refreshed, "fresh" is soon too kind.
        if let state @ ("stopped" | "paused" | "unreachable") =
            view::provider_state(shared, name, now)
        {
            words.push_str(&format!(", {name} {state}"))
        }
    }
    let held = shared.held.len();
    if held > 0 {
        words.push_str(&format!(", {held} held in memory"));
    }
    if shared.store.failing().is_some() {
        words.push_str(", the store cannot be written");
    }
    Ok(words)
}

/// "312 fresh, 2 need authorization, next in 41 s"
fn words(counts: &[Count], next: Option<UnixTime>, now: UnixTime) -> String {
    let sum = |of: fn(Standing) -> bool| -> u64 {
        let counted = counts.iter().filter(|count| of(count.standing));
        counted.map(|count| count.grants).sum()
    };
    let fresh = sum(|standing| standing == Standing::Active);
    let paused = sum(|standing| matches!(standing, Standing::Paused(_)));
    let dead = sum(|standing| matches!(standing, Standing::NeedsAuthorization(_)));
    let mut parts = vec![format!("{fresh} fresh")];
    if paused > 0 {
        parts.push(format!("{paused} paused"));
    }
    match dead {
        0 => {}
        1 => parts.push("1 needs authorization".to_owned()),
        _ => parts.push(format!("{dead} need authorization")),
    }
    if let Some(next) = next {
        parts.push(match next.since(now).as_secs() {
            0 => "next now".to_owned(),
            seconds @ 1..120 => format!("next in {seconds} s"),
            seconds @ 120..7200 => format!("next in {} min", seconds / 60),
            seconds => format!("next in {} h", seconds / 3600),
        });
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::daemon::steps_tests::Bench;
    use crate::refresh::grant::{NeedsReason, PauseReason};

    fn count(standing: Standing, grants: u64) -> Count {
        Count {
            provider: "hubspot".to_owned(),
            standing,
            grants,
        }
    }

    #[test]
    fn the_status_says_in_words_what_there_is_and_leaves_out_what_there_is_not() {
        let now = UnixTime::from_secs(1_000);
        let after = |seconds: i64| Some(UnixTime::from_secs(1_000 + seconds));
        assert_eq!(words(&[], None, now), "0 fresh");
        let counts = [
            count(Standing::Active, 300),
            count(Standing::Active, 12),
            count(Standing::NeedsAuthorization(NeedsReason::Refused), 2),
        ];
        assert_eq!(
            words(&counts, after(41), now),
            "312 fresh, 2 need authorization, next in 41 s"
        );
        let counts = [
            count(Standing::Active, 1),
            count(Standing::Paused(PauseReason::Inactive), 3),
            count(Standing::Paused(PauseReason::Admin), 1),
            count(Standing::NeedsAuthorization(NeedsReason::Refused), 1),
        ];
        let shown = words(&counts, after(0), now);
        assert_eq!(shown, "1 fresh, 4 paused, 1 needs authorization, next now");
        assert_eq!(words(&[], after(119), now), "0 fresh, next in 119 s");
        assert_eq!(words(&[], after(120), now), "0 fresh, next in 2 min");
        assert_eq!(words(&[], after(7_200), now), "0 fresh, next in 2 h");
    }

    #[tokio::test]
    async fn a_provider_that_refuses_us_is_named_beside_what_is_still_fresh() {
        let bench = Bench::start("").await;
        let fresh = status(bench.shared()).await.unwrap();
        assert_eq!(fresh, "0 fresh");
        bench
            .server
            .answer_with(|_| (401, json!({"error": "invalid_client"})));
        bench.import("ann", json!({"expires_in": 1})).await;
        let named = async || {
            let words = status(bench.shared()).await.unwrap();
            words.ends_with(", acme stopped").then_some(())
        };
        bench.until("its name", named).await;
    }
}
