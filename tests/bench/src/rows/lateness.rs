//! Rows 9, 10 and 14: how late a refresh is.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::reads::spread;
use super::refreshes::{PATIENCE, wait_for};
use crate::client::{Load, Requests, read};
use crate::daemon::{Setup, Site};
use crate::provider::{Hit, Provider};
use crate::report::{Aim, Line, median};
use crate::stock::{self, Due, MAIN, OTHER};
use crate::{Error, Lab};

/// From the writing of due times to the first of them: freshd starts meanwhile.
const AHEAD_MS: i64 = 4_000;

/// Milliseconds from due time to request, in ascending order.
struct Lateness(Vec<f64>);

impl Lateness {
    fn of(hits: &[Hit], dues: &[Due]) -> Lateness {
        let due_at: std::collections::HashMap<u64, i64> =
            dues.iter().map(|due| (due.nth, due.due_at)).collect();
        let late = |hit: &Hit| Some(hit.at - *due_at.get(&hit.nth)? as f64);
        let mut all: Vec<f64> = hits.iter().filter_map(late).collect();
        all.sort_unstable_by(f64::total_cmp);
        Lateness(all)
    }

    fn per_mille(&self, per_mille: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let at = (self.0.len() * per_mille / 1000).min(last);
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// So many grants of one provider whose tokens live, spread over the table.
fn of_provider(lab: &Lab, name: &str, count: u64) -> Vec<u64> {
    if name == OTHER {
        let fifties = lab.grants() * 9 / 10 / 50;
        return (0..count)
            .map(|nth| nth * fifties / count * 50 + 49)
            .collect();
    }
    let spread = spread(lab.grants(), (count * 11 / 10).min(lab.grants() * 9 / 10));
    let wanted = |nth: &u64| stock::provider(*nth) == name;
    spread.filter(wanted).take(count as usize).collect()
}

/// Row 9: hourly grants become due one after the other, while others read.
pub fn steady(lab: &Lab) -> Result<Vec<Line>, Error> {
    let site = Site::new(lab, "9")?;
    stock::put(lab, &site, lab.grants())?;
    let server = Provider::start(Duration::from_millis(150))?;
    // 278 a second that take 150 ms are 42 at once: more than the default of 32.
    let setup = Setup::default().with(MAIN, server.port, "max-in-flight = 128");
    let setup = setup.with(OTHER, server.port, "");
    let seconds = lab.of(90, 3);
    let each_ms = 3_600_000.0 / 1_000_000.0;
    let count = (seconds as f64 * 1000.0 / each_ms) as u64;
    let count = count.min(lab.grants() / 2);
    let from = stock::now_ms() + lab.of(15_000, AHEAD_MS as u64) as i64;
    let dues: Vec<Due> = of_provider(lab, MAIN, count)
        .into_iter()
        .zip(0..)
        .map(|(nth, place)| Due {
            nth,
            due_at: from + (f64::from(place) * each_ms) as i64,
            // An hourly token is due five minutes before its end.
            expires_at: from + (f64::from(place) * each_ms) as i64 + 300_000,
        })
        .collect();
    stock::put_due(&site, &dues)?;
    let freshd = site.start(lab, &setup)?;
    let paths = dues.iter().map(|due| stock::token_path(due.nth));
    let requests = Requests::http(paths);
    let load = Load {
        connections: 16,
        count: u64::MAX,
        time: until(from + (dues.len() as f64 * each_ms) as i64),
        rate: Some(2_000.0),
    };
    let before = freshd.cost();
    let readings = read(&site.socket(), &requests, load)?.all_served()?;
    wait_for(&server, dues.len())?;
    let cost = freshd.cost().since(before);
    freshd.stop()?;
    let late = Lateness::of(&server.take_hits(), &dues);
    let what = "278 a second due, 2000 reads/s, server 150 ms: ";
    Ok(vec![
        Line::new("9", format!("{what}late, p50"), "ms", late.per_mille(500))
            .aim(Aim::AtMost(50.0)),
        Line::new("9", format!("{what}late, p99.9"), "ms", late.per_mille(999))
            .aim(Aim::AtMost(1000.0))
            .detail("reads/s", readings.per_second())
            .detail("read p99 us", readings.micros(990))
            .detail("read at most ms", readings.micros(1000) / 1000.0)
            .detail(
                "processor, % of one",
                cost.cpu.as_secs_f64() / readings.seconds * 100.0,
            ),
        Line::new(
            "9",
            "readers who got less than their min_ttl",
            "",
            readings.short_lived as f64,
        )
        .aim(Aim::AtMost(0.0)),
    ])
}

fn until(at_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(at_ms - stock::now_ms()).unwrap_or(0))
}

/// Row 10: a burst at a provider with a limit, beside another provider.
pub fn burst(lab: &Lab) -> Result<Vec<Line>, Error> {
    let quiet = burst_of(lab, 0)?;
    let loud = burst_of(lab, lab.of(20_000, 300))?;
    let mut beside = Line::new("10", "the other provider's lateness, p99", "ms", loud.other)
        .detail("median", loud.other_median);
    beside.yardstick = Some(quiet.other);
    beside.ratio = Some(loud.other / quiet.other);
    Ok(vec![
        Line::new("10", "share of the limit used", "", loud.used).aim(Aim::AtLeast(0.95)),
        Line::new(
            "10",
            "requests out of DESIGN.md's order",
            "",
            loud.out_of_order,
        )
        .aim(Aim::AtMost(0.0)),
        Line::new(
            "10",
            "grants that expired and could be saved",
            "",
            loud.lost,
        )
        .aim(Aim::AtMost(0.0)),
        beside.aim(Aim::AtMost(1.5)),
    ])
}

#[derive(Default)]
struct Burst {
    used: f64,
    out_of_order: f64,
    lost: f64,
    other: f64,
    other_median: f64,
}

/// Requests a second that the limited provider takes.
const LIMIT: f64 = 500.0;

fn burst_of(lab: &Lab, count: u64) -> Result<Burst, Error> {
    let site = Site::new(lab, "10")?;
    stock::put(lab, &site, lab.grants())?;
    let server = Provider::start(Duration::from_millis(20))?;
    let other_server = Provider::start(Duration::from_millis(20))?;
    let setup = Setup::default().with(MAIN, server.port, "rate = \"500/s\"");
    let setup = setup.with(OTHER, other_server.port, "");
    let from = stock::now_ms() + lab.of(10_000, AHEAD_MS as u64) as i64;
    // The last tenth has ended already; the others end one after the other, a second after their turn would come.
    let living = count - count / 10;
    let dues: Vec<Due> = of_provider(lab, MAIN, count)
        .into_iter()
        .zip(0..)
        .map(|(nth, place)| Due {
            nth,
            due_at: from + (place % 1000) as i64,
            expires_at: if place < living {
                from + 5_000 + (place as f64 * 1000.0 / LIMIT * 1.1) as i64
            } else {
                from - 60_000
            },
        })
        .collect();
    let seconds = lab.of(40, 3);
    let others: Vec<Due> = of_provider(lab, OTHER, (seconds * 20).min(lab.grants() / 100))
        .into_iter()
        .zip(0..)
        .map(|(nth, place)| Due {
            nth,
            due_at: from + place * 50,
            expires_at: from + place * 50 + 300_000,
        })
        .collect();
    stock::put_due(&site, &dues)?;
    stock::put_due(&site, &others)?;
    let freshd = site.start(lab, &setup)?;
    wait_for(&other_server, others.len())?;
    wait_for(&server, dues.len())?;
    freshd.stop()?;
    let late = Lateness::of(&other_server.take_hits(), &others);
    let mut burst = Burst {
        other: late.per_mille(990),
        other_median: late.per_mille(500),
        ..Burst::default()
    };
    let hits = server.take_hits();
    if let (Some(first), Some(last)) = (hits.first(), hits.last()) {
        let ends: std::collections::HashMap<u64, i64> =
            dues.iter().map(|due| (due.nth, due.expires_at)).collect();
        let end = |hit: &&Hit| ends[&hit.nth];
        let rate = (hits.len() - 1) as f64 * 1000.0 / (last.at - first.at);
        burst.used = rate / LIMIT;
        let savable = hits.iter().filter(|hit| end(hit) > from + 1000);
        burst.lost = savable.filter(|hit| (end(hit) as f64) < hit.at).count() as f64;
        // Those that were in flight together may come in any order.
        let early = hits[..living as usize]
            .iter()
            .filter(|hit| end(hit) <= from);
        burst.out_of_order = early.count().saturating_sub(32) as f64;
    }
    Ok(burst)
}

/// Row 14: the same burst without a limit, and as one job per grant in tokio-cron-scheduler.
pub fn beside_a_calendar(lab: &Lab) -> Result<Vec<Line>, Error> {
    let count = lab.of(10_000, 200);
    let site = Site::new(lab, "14")?;
    stock::put(lab, &site, lab.grants())?;
    let server = Provider::start(Duration::ZERO)?;
    let more = "max-in-flight = 256";
    let setup = Setup::default()
        .with(MAIN, server.port, more)
        .with(OTHER, server.port, more);
    let from = stock::now_ms() + lab.of(8_000, AHEAD_MS as u64) as i64;
    let dues: Vec<Due> = of_provider(lab, MAIN, count)
        .into_iter()
        .zip(0..)
        .map(|(nth, place)| Due {
            nth,
            due_at: from + place % 1000,
            expires_at: from + 300_000,
        })
        .collect();
    stock::put_due(&site, &dues)?;
    let freshd = site.start(lab, &setup)?;
    let idle = freshd.cost().resident;
    let came = server.wait_for(dues.len(), PATIENCE);
    let resident = freshd.cost().resident;
    freshd.stop()?;
    let hits = server.take_hits();
    let lost = dues.len() - hits.len();
    let late = Lateness::of(&hits, &dues);
    let calendar = calendar(count)?;
    let line = |what: &str, unit, ours: f64, theirs: f64| {
        let mut line = Line::new(
            "14",
            format!("{count} due in one second: {what}"),
            unit,
            ours,
        );
        line.yardstick = Some(theirs);
        line
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    if !came {
        return Err("freshd lost grants".into());
    }
    Ok(vec![
        line("lost", "", lost as f64, calendar.lost),
        line("late, median", "ms", late.per_mille(500), calendar.median),
        line("late, at most", "ms", late.per_mille(1000), calendar.most),
        line(
            "memory more",
            "MiB",
            mib(resident.saturating_sub(idle)),
            calendar.mib,
        ),
    ])
}

/// What became of the jobs.
struct Calendar {
    lost: f64,
    median: f64,
    most: f64,
    mib: f64,
}

/// Runs the jobs in a process of their own.
fn calendar(count: u64) -> Result<Calendar, Error> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--yardstick", "calendar", &count.to_string()])
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    match numbers[..] {
        [lost, median, most, mib] => Ok(Calendar {
            lost,
            median,
            most,
            mib,
        }),
        _ => Err(format!("the calendar said {text:?}").into()),
    }
}

/// The process of [`calendar`]: one job for each grant, all due in the same second.
pub fn calendar_main(count: u64) -> Result<(), Error> {
    use std::sync::{Arc, Mutex};
    use tokio_cron_scheduler::{Job, JobScheduler};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ran: Arc<Mutex<Vec<f64>>> = Arc::default();
    let before = crate::process::Cost::of_ourselves().resident;
    runtime.block_on(async {
        let calendar = JobScheduler::new().await?;
        // Adding takes microseconds for each; the due time is well after that.
        let ahead = Duration::from_secs(2) + Duration::from_micros(200) * count as u32;
        let due = Instant::now() + ahead;
        for nth in 0..count {
            let ran = Arc::clone(&ran);
            let after = due.saturating_duration_since(Instant::now());
            let due = due + Duration::from_millis(nth % 1000);
            let job = Job::new_one_shot(after + Duration::from_millis(nth % 1000), move |_, _| {
                let late = Instant::now().saturating_duration_since(due);
                if let Ok(mut ran) = ran.lock() {
                    ran.push(late.as_secs_f64() * 1000.0);
                }
            })?;
            calendar.add(job).await?;
        }
        calendar.start().await?;
        let over = due + Duration::from_secs(15);
        tokio::time::sleep(over.saturating_duration_since(Instant::now())).await;
        Ok::<_, Error>(())
    })?;
    let after = crate::process::Cost::of_ourselves().resident;
    let ran = ran.lock().map(|ran| ran.clone()).unwrap_or_default();
    let most = ran.iter().copied().fold(0.0, f64::max);
    let mib = after.saturating_sub(before) as f64 / f64::from(1 << 20);
    println!(
        "{} {} {most} {mib}",
        count as usize - ran.len(),
        median(ran)
    );
    Ok(())
}
