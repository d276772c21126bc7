//! Rows 7 and 8: memory, and what freshd costs while nothing happens.

use std::time::Duration;

use super::reads::{spread, warm_up, with_stock};
use super::refreshes::{make_due, some};
use crate::client::Requests;
use crate::report::{Aim, Line};
use crate::stock;
use crate::{Error, Lab};

/// Row 7.
pub fn memory(lab: &Lab) -> Result<Vec<Line>, Error> {
    let (idle, busy) = resident(lab, lab.grants())?;
    let (idle_small, busy_small) = resident(lab, 1_000)?;
    let line = |what: &str, big: f64, small: f64, most: f64| {
        let mut line = Line::new("7", what, "MiB", big).detail("MiB more", big - small);
        line.yardstick = Some(small);
        line.aim = Some(Aim::AtMost(most));
        line.reached = Some(big - small <= most);
        line
    };
    Ok(vec![
        line("resident, idle after row 1's reads", idle, idle_small, 32.0),
        line(
            "resident at most, refreshing at full rate",
            busy,
            busy_small,
            96.0,
        ),
    ])
}

/// Resident MiB after reads, and the most while refreshing.
pub fn resident(lab: &Lab, grants: u64) -> Result<(f64, f64), Error> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (site, setup, server) = with_stock(lab, "7", grants)?;
    let freshd = site.start(lab, &setup)?;
    let hot = spread(grants, lab.of(5_000, 100).min(grants / 2));
    warm_up(&site, &Requests::http(hot.map(stock::token_path)))?;
    std::thread::sleep(Duration::from_secs(1));
    let idle = mib(freshd.cost().resident);
    freshd.stop()?;
    let nths = some(grants, lab.of(30_000, 200).min(grants / 2), 0);
    make_due(&site, &nths)?;
    server.take_hits();
    let freshd = site.start(lab, &setup)?;
    let mut most = 0;
    while !server.wait_for(nths.len(), Duration::from_millis(20)) {
        most = most.max(freshd.cost().resident);
    }
    most = most.max(freshd.cost().resident);
    freshd.stop()?;
    Ok((idle, mib(most)))
}

/// Row 8.
pub fn nothing_due(lab: &Lab) -> Result<Vec<Line>, Error> {
    let (site, setup, _server) = with_stock(lab, "8", lab.grants())?;
    let freshd = site.start(lab, &setup)?;
    // What the start has left behind.
    std::thread::sleep(Duration::from_secs(lab.of(10, 1)));
    let before = freshd.cost();
    let seconds = lab.of(60, 2);
    std::thread::sleep(Duration::from_secs(seconds));
    let cost = freshd.cost().since(before);
    freshd.stop()?;
    let seconds = seconds as f64;
    let share = cost.cpu.as_secs_f64() / seconds * 100.0;
    let wakeups = cost.wakeups as f64 / seconds;
    Ok(vec![
        Line::new("8", "idle: processor", "% of one", share).aim(Aim::AtMost(0.05)),
        Line::new("8", "idle: wake-ups", "1/s", wakeups).aim(Aim::AtMost(3.0)),
    ])
}
