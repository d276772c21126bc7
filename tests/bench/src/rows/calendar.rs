//! Row 14: one job for each grant in a scheduler of jobs, beside freshd.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use freshd::refresh::time::UnixTime;
use freshd::refresh::token::RefreshToken;
use tokio_cron_scheduler::{Job, JobScheduler};

use super::lateness::{AHEAD_MS, Lateness, of_provider};
use super::reads::with_stock;
use super::refreshes::{client, take_one_each, wait_for};
use crate::owned::Owned;
use crate::process::Cost;
use crate::provider::{Hit, Provider};
use crate::report::Line;
use crate::stock::{self, Due, MAIN};
use crate::{Error, Lab};

/// What happened to grants that all were due in one second.
struct Outcome {
    lost: f64,
    median: f64,
    most: f64,
    mib: f64,
}

impl Outcome {
    fn of(hits: &[Hit], dues: &[Due], more_bytes: u64) -> Outcome {
        let came: HashSet<u64> = hits.iter().map(|hit| hit.nth).collect();
        let late = Lateness::of(hits, dues);
        Outcome {
            lost: (dues.len() - came.len()) as f64,
            median: late.per_mille(500),
            most: late.per_mille(1000),
            mib: more_bytes as f64 / f64::from(1 << 20),
        }
    }
}

/// Row 14. The scheduler's jobs make freshd's own requests, but keep nothing; by its default, which drops what does not
/// fit into its channel of 200, and with a channel that all of them fit into.
pub fn beside_freshd(lab: &Lab) -> Result<Vec<Line>, Error> {
    let count = lab.of(10_000, 200);
    let ours = freshd(lab, count)?;
    let server = Provider::start(Duration::ZERO)?;
    let usual = calendar(&server, count, 200)?;
    let roomy = calendar(&server, count, 2 * count)?;
    let line = |what: &str, unit, of: fn(&Outcome) -> f64| {
        let what = format!("{count} due in one second: {what}");
        let mut line = Line::new("14", what, unit, of(&ours));
        line.yardstick = Some(of(&usual));
        line.detail("one job each, with a channel for all", of(&roomy))
    };
    Ok(vec![
        line("lost", "", |outcome| outcome.lost),
        line("late, median", "ms", |outcome| outcome.median),
        line("late, at most", "ms", |outcome| outcome.most),
        line("memory more", "MiB", |outcome| outcome.mib),
    ])
}

/// The grants' due times, a thousandth of them in each millisecond of a second.
fn dues(nths: impl IntoIterator<Item = u64>, from: i64) -> Vec<Due> {
    let due = |(nth, place): (u64, i64)| Due {
        nth,
        due_at: from + place % 1000,
        expires_at: from + 300_000,
    };
    nths.into_iter().zip(0..).map(due).collect()
}

fn freshd(lab: &Lab, count: u64) -> Result<Outcome, Error> {
    let (site, setup, server) = with_stock(lab, "14", lab.grants())?;
    let from = stock::now_ms() + lab.of(8_000, AHEAD_MS as u64) as i64;
    let dues = dues(of_provider(lab, MAIN, count), from);
    stock::put_due(&site, &dues)?;
    let freshd = site.start(lab, &setup)?;
    let idle = freshd.cost().resident;
    wait_for(&server, dues.len())?;
    let resident = freshd.cost().resident;
    freshd.stop()?;
    let hits = take_one_each(&server, dues.iter().map(|due| due.nth))?;
    Ok(Outcome::of(&hits, &dues, resident.saturating_sub(idle)))
}

/// Runs the jobs in a process of their own.
fn calendar(server: &Provider, count: u64, channel: u64) -> Result<Outcome, Error> {
    // Adding takes microseconds for each; the due time is well after that.
    let from = stock::now_ms() + 3_000 + count as i64 / 2;
    let numbers = [u64::from(server.port), count, channel, from as u64];
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--yardstick", "calendar"])
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = Owned::spawn(&mut command)?;
    let patience = Duration::from_secs(60) + Duration::from_micros(500) * count as u32;
    let status = child.wait(patience)?;
    let pipe = child.0.stdout.take().ok_or("no output")?;
    let bytes = std::io::read_to_string(pipe)?.trim().parse();
    match (status.success(), bytes) {
        (true, Ok(bytes)) => Ok(Outcome::of(
            &server.take_hits(),
            &dues(0..count, from),
            bytes,
        )),
        _ => Err(format!("the calendar ended with {status}").into()),
    }
}

/// The process of [`calendar`]: prints how many bytes more it had in the end.
pub fn main(arguments: &[String]) -> Result<(), Error> {
    let numbers: Result<Vec<u64>, _> = arguments.iter().map(|text| text.parse()).collect();
    let [port, count, channel, from] = numbers?[..] else {
        return Err("a port, a count, a channel's size and a time".into());
    };
    let client = client(u16::try_from(port)?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let before = Cost::of_ourselves().resident;
    runtime.block_on(async {
        let calendar = JobScheduler::new_with_channel_size(usize::try_from(channel)?).await?;
        let ahead = u64::try_from(from as i64 - stock::now_ms())?;
        let due = Instant::now() + Duration::from_millis(ahead);
        for nth in 0..count {
            let after = due + Duration::from_millis(nth % 1000) - Instant::now();
            let client = client.clone();
            let job = Job::new_one_shot_async(after, move |_, _| {
                let client = client.clone();
                Box::pin(async move {
                    let token = RefreshToken::new(stock::refresh_token(nth, 1));
                    let _ = client.refresh(&token, UnixTime::EPOCH).await;
                })
            })?;
            calendar.add(job).await?;
        }
        if Instant::now() > due {
            return Err("the jobs were not added in time".into());
        }
        calendar.start().await?;
        let over = due + Duration::from_secs(15);
        tokio::time::sleep_until(over.into()).await;
        Ok::<_, Error>(())
    })?;
    let after = Cost::of_ourselves().resident;
    println!("{}", after.saturating_sub(before));
    Ok(())
}
