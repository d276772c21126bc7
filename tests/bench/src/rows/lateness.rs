//! Rows 9 and 10: how late a refresh is.

use std::collections::HashMap;
use std::time::Duration;

use super::reads::spread;
use super::refreshes::{out_of_order, take_one_each, wait_for};
use crate::client::{Load, Requests, read};
use crate::daemon::{Setup, Site};
use crate::provider::{Hit, Provider};
use crate::report::{Aim, Line, median, most};
use crate::stock::{self, Due, MAIN, OTHER};
use crate::{Error, Lab};

/// From the writing of due times to the first of them: freshd starts meanwhile.
pub const AHEAD_MS: i64 = 4_000;

/// What a reader wants a token to live at least, where it says nothing.
const MIN_TTL_MS: i64 = 10_000;

/// Milliseconds from due time to request, in ascending order.
pub struct Lateness(Vec<f64>);

impl Lateness {
    pub fn of(hits: &[Hit], dues: &[Due]) -> Lateness {
        let due_at: HashMap<u64, i64> = dues.iter().map(|due| (due.nth, due.due_at)).collect();
        let late = |hit: &Hit| Some(hit.at - *due_at.get(&hit.nth)? as f64);
        let mut all: Vec<f64> = hits.iter().filter_map(late).collect();
        all.sort_unstable_by(f64::total_cmp);
        Lateness(all)
    }

    pub fn per_mille(&self, per_mille: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let at = (self.0.len() * per_mille / 1000).min(last);
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// So many grants of one provider whose tokens live, spread over the table.
pub fn of_provider(lab: &Lab, name: &str, count: u64) -> Vec<u64> {
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
            // Not five minutes, as an hourly token has: who reads one that is not refreshed soon gets too little.
            expires_at: from + (f64::from(place) * each_ms) as i64 + MIN_TTL_MS + 3_000,
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
    let hits = take_one_each(&server, dues.iter().map(|due| due.nth))?;
    let late = Lateness::of(&hits, &dues);
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
    let (mut loud, mut lateness) = (Vec::new(), Vec::new());
    for _ in 0..lab.of(3, 1) {
        let quiet = burst_of(lab, 0)?;
        let burst = burst_of(lab, lab.of(20_000, 300))?;
        lateness.push((burst.other, quiet.other));
        loud.push(burst);
    }
    // The middle one, and the worst one where one is too many.
    let line = |what: &str, of: fn(&Burst) -> f64| {
        Line::new("10", what, "", median(loud.iter().map(of).collect()))
    };
    let worst =
        |what: &str, of: fn(&Burst) -> f64| Line::new("10", what, "", most(loud.iter().map(of)));
    Ok(vec![
        line("share of the limit used", |burst| burst.used).aim(Aim::AtLeast(0.95)),
        worst("requests in any one second, of the limit", |burst| {
            burst.most
        })
        .aim(Aim::AtMost(1.05)),
        worst("requests out of order", |burst| burst.out_of_order).aim(Aim::AtMost(0.0)),
        worst("grants that expired and could be saved", |burst| burst.lost).aim(Aim::AtMost(0.0)),
        Line::of_rounds("10", "the other provider's lateness, p99", "ms", &lateness)
            .aim(Aim::AtMost(1.5)),
    ])
}

#[derive(Default)]
struct Burst {
    /// The rate from the due time on, by the limit.
    used: f64,
    /// The most requests in a second, by the limit.
    most: f64,
    out_of_order: f64,
    lost: f64,
    /// The other provider's lateness in milliseconds: 99 of 100 stayed under it.
    other: f64,
}

/// Requests at once at a provider that is not configured otherwise.
const IN_FLIGHT_DEFAULT: usize = 32;

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
    let other_hits = take_one_each(&other_server, others.iter().map(|due| due.nth))?;
    let hits = take_one_each(&server, dues.iter().map(|due| due.nth))?;
    let mut burst = burst_seen(&hits, &dues, from);
    burst.other = Lateness::of(&other_hits, &others).per_mille(990);
    Ok(burst)
}

fn burst_seen(hits: &[Hit], dues: &[Due], from: i64) -> Burst {
    let Some(last) = hits.last() else {
        return Burst::default();
    };
    let ends: HashMap<u64, i64> = dues.iter().map(|due| (due.nth, due.expires_at)).collect();
    let end = |hit: &Hit| ends[&hit.nth];
    let seconds = (last.at - from as f64) / 1000.0;
    // How many came in the second up to each of them.
    let mut first = 0;
    let in_second = hits.iter().enumerate().map(|(nth, hit)| {
        while hits[first].at <= hit.at - 1000.0 {
            first += 1;
        }
        nth + 1 - first
    });
    let most = in_second.max().unwrap_or(0);
    let lost = |hit: &&Hit| end(hit) > from && (end(hit) as f64) < hit.at;
    // In the first second they become due one after the other.
    let all_due = hits.partition_point(|hit| hit.at < from as f64 + 1000.0);
    let living_end = |hit: &Hit| Some(end(hit)).filter(|end| *end > from);
    Burst {
        used: hits.len() as f64 / seconds / LIMIT,
        most: most as f64 / LIMIT,
        out_of_order: out_of_order(&hits[all_due..], IN_FLIGHT_DEFAULT, living_end) as f64,
        lost: hits.iter().filter(lost).count() as f64,
        other: 0.0,
    }
}
