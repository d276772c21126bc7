//! Rows 7 and 8: memory, and what freshd costs while nothing happens.

use std::time::Duration;

use super::reads::{spread, warm_up, with_stock};
use super::refreshes::{make_due, some};
use crate::client::Requests;
use crate::process::Wakeups;
use crate::report::{Aim, Line, median, most};
use crate::stock;
use crate::{Error, Lab};

/// Row 7.
pub fn memory(lab: &Lab) -> Result<Vec<Line>, Error> {
    let (mut idle, mut busy) = (vec![], vec![]);
    // Less noise than in a rate.
    for _ in 0..lab.of(3, 1) {
        let (big, small) = (resident(lab, lab.grants())?, resident(lab, 1_000)?);
        idle.push((big.0, small.0));
        busy.push((big.1, small.1));
    }
    let (after_reads, refreshing) = (
        "resident, idle after row 1's reads",
        "resident at most, refreshing at full rate",
    );
    Ok(vec![
        Line::of_rounds("7", after_reads, "MiB", &idle)
            .by_difference()
            .aim(Aim::AtMost(32.0)),
        Line::of_rounds("7", refreshing, "MiB", &busy)
            .by_difference()
            .aim(Aim::AtMost(96.0)),
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
    let seconds = lab.of(60, 2);
    let (mut shares, mut wakeups, mut looks) = (vec![], vec![], Wakeups::default());
    for _ in 0..lab.of(3, 1) {
        let (before, woken) = (freshd.cost(), looks.look(&freshd.child.0));
        let mut now = woken;
        for _ in 0..seconds {
            std::thread::sleep(Duration::from_secs(1));
            now = looks.look(&freshd.child.0);
        }
        let cpu = freshd.cost().since(before).cpu;
        shares.push(cpu.as_secs_f64() / seconds as f64 * 100.0);
        wakeups.push((now - woken) as f64 / seconds as f64);
    }
    freshd.stop()?;
    let line = |what: &str, unit, values: Vec<f64>, aim| {
        let most = most(values.iter().copied());
        Line::new("8", what, unit, median(values))
            .aim(Aim::AtMost(aim))
            .detail("most in a minute", most)
    };
    Ok(vec![
        line("idle: processor", "% of one", shares, 0.05),
        line("idle: wake-ups", "1/s", wakeups, 3.0),
    ])
}
