//! Small parts by themselves, and the worst that a reader meets.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use freshd::local_api::types::TokenAnswer;
use freshd::refresh::grant::GrantKey;
use freshd::refresh::time::UnixTime;
use freshd::store::{Kek, Options, Store, opens_as_sealed, sealed};

use super::reads::{spread, warm_up, with_stock};
use super::refreshes::{make_due_at, some, wait_for};
use crate::client::{Load, Readings, Requests, read};
use crate::daemon::{get, post};
use crate::report::{Line, median};
use crate::stock::{self, MAIN};
use crate::{Error, Lab};

/// Micro-benchmarks: the median of several batches, in microseconds for each.
pub fn parts(lab: &Lab) -> Result<Vec<Line>, Error> {
    let batch = lab.of(20_000, 200) as usize;
    let line = |what: &str, micros: f64| Line::new("micro", what, "us", micros);
    let token = stock::access_token(1, 1);
    let seal = micros(batch, || {
        black_box(sealed(&token));
    });
    let bytes = sealed(&token);
    let open = micros(batch, || assert!(opens_as_sealed(&bytes)));
    let answer = TokenAnswer {
        access_token: stock::access_token(1, 1),
        token_type: "Bearer".into(),
        expires_in: Some(3000),
        expires_at: Some("2026-11-22T10:01:01.038Z".into()),
        scope: Some("files.read files.write".into()),
        generation: 7,
        user: stock::user(1),
        provider: MAIN.into(),
        account: String::new(),
    };
    let json = micros(batch, || {
        black_box(serde_json::to_vec(&answer).is_ok());
    });
    let (site, _, _) = with_stock(lab, "micro", lab.grants())?;
    let store = Store::open(Options {
        dir: site.state(),
        kek: Kek::read_file(&site.key())?,
        busy_timeout: Duration::from_secs(10),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let now = UnixTime::from_millis(stock::now_ms());
    let mut nth = 0;
    let read_row = micros(batch / 4, || {
        nth = (nth + 7_919) % (lab.grants() * 9 / 10);
        let key = GrantKey {
            namespace: "default".into(),
            user: stock::user(nth),
            provider: stock::provider(nth).into(),
            account: String::new(),
        };
        let found = runtime.block_on(store.readable(&key, now));
        assert!(found.is_ok_and(|found| found.is_some_and(|found| found.access_token.is_some())));
    });
    let far = now + Duration::from_secs(400 * 86_400);
    let rows = lab.of(32_768, 500) as usize;
    let due = micros(5, || {
        let page = runtime.block_on(store.due_within(MAIN, None, far, rows));
        assert!(page.is_ok_and(|page| page.len() == rows));
    });
    runtime.block_on(store.close());
    Ok(vec![
        line("seal 1200 bytes", seal),
        line("open them", open),
        line("answer as JSON", json),
        line(
            "read a row, open its token, by way of a reader's thread",
            read_row,
        ),
        line(&format!("due query, a page of {rows} rows"), due),
    ])
}

fn micros(batch: usize, mut work: impl FnMut()) -> f64 {
    let batches = (0..7).map(|_| {
        let began = Instant::now();
        (0..batch.max(1)).for_each(|_| work());
        began.elapsed().as_secs_f64() * 1e6 / batch.max(1) as f64
    });
    median(batches.collect())
}

/// The worst read while the log is copied into the database, while a backup is made, and while a key is rotated.
pub fn worst_reads(lab: &Lab) -> Result<Vec<Line>, Error> {
    let (site, setup, server) = with_stock(lab, "worst", lab.grants())?;
    let nths = some(lab.grants(), lab.of(60_000, 200), 0);
    // Once all is warm, and somebody reads.
    let due_at = stock::now_ms() + lab.of(8_000, 6_000) as i64;
    make_due_at(&site, &nths, due_at)?;
    let freshd = site.start(lab, &setup)?;
    let requests = Requests::http(spread(lab.grants(), lab.of(5_000, 100)).map(stock::token_path));
    let during = |what: &str, readings: Readings| {
        Line::new(
            "worst",
            format!("worst read {what}"),
            "ms",
            readings.micros(1000) / 1000.0,
        )
        .detail("reads", readings.answers as f64)
        .detail("p99.9 ms", readings.micros(999) / 1000.0)
        .detail("reads/s", readings.per_second())
    };
    warm_up(&site, &requests)?;
    let ahead = u64::try_from(due_at - stock::now_ms()).unwrap_or(0);
    if server.count() > 0 || ahead < 1_500 {
        return Err("the grants were due before all was warm".into());
    }
    let quiet = while_(&site, &requests, || {
        std::thread::sleep(Duration::from_millis(ahead - 1_000));
        Ok(())
    })?;
    let refreshing = while_(&site, &requests, || wait_for(&server, nths.len()))?;
    let copy = site.dir.join("copy.db");
    let backup = while_(&site, &requests, || {
        post(
            &site.admin_socket(),
            "/v1/backup",
            &format!("{{\"path\":{copy:?}}}"),
        )?;
        Ok(())
    })?;
    let _ = std::fs::remove_file(&copy);
    let rotation = while_(&site, &requests, || {
        post(&site.admin_socket(), "/v1/keys/rotate", "")?;
        // Looked at for a minute: a rotation of a million rows goes on for longer, the same all the time.
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(500));
            let status: serde_json::Value =
                serde_json::from_str(&get(&site.admin_socket(), "/v1/status")?)?;
            if status["keys"]["rotation"].is_null() {
                break;
            }
        }
        Ok(())
    })?;
    freshd.stop()?;
    Ok(vec![
        during("with nothing beside it", quiet),
        during(
            "at full rate of refreshes, checkpoints included",
            refreshing,
        ),
        during("during a backup", backup),
        during("during a key rotation", rotation),
    ])
}

/// Reads on four connections, 500 times a second, as long as `work` takes.
fn while_(
    site: &crate::daemon::Site,
    requests: &Requests,
    work: impl FnOnce() -> Result<(), Error>,
) -> Result<Readings, Error> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut all = Readings::default();
            while !over.load(Ordering::Relaxed) {
                let load = Load {
                    connections: 4,
                    count: u64::MAX,
                    time: Duration::from_millis(500),
                    rate: Some(500.0),
                };
                let some = read(&site.socket(), requests, load)?.all_served()?;
                all.answers += some.answers;
                all.seconds += some.seconds;
                all.latencies.extend(some.latencies);
            }
            all.latencies.sort_unstable();
            Ok(all)
        });
        let worked = work();
        over.store(true, Ordering::Relaxed);
        let readings = reader
            .join()
            .unwrap_or_else(|_| Err("the reader panicked".into()));
        worked?;
        readings
    })
}
