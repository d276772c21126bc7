//! Rows 5 and 6: refreshing as fast as it goes, and starting with a big table.

use std::collections::HashSet;
use std::time::Duration;

use freshd::profile::{ClientAuth, Registration};
use freshd::refresh::time::UnixTime;
use freshd::refresh::token::{ClientSecret, RefreshToken};
use freshd::refresh::token_response::Outcome;
use freshd::token_endpoint::{Client, Outbound};
use futures_util::{StreamExt, stream};
use rusqlite::params;
use url::Url;

use super::reads::{IN_FLIGHT, with_stock};
use crate::daemon::Site;
use crate::process::Cost;
use crate::provider::{Hit, Provider};
use crate::report::{Aim, Line, median};
use crate::stock::{self, MAIN};
use crate::yardsticks::raw_refreshes;
use crate::{Error, Lab};

/// Nothing that is waited for here takes longer.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Some grants of the main provider whose tokens live, spread over the table; another phase has others.
pub fn some(grants: u64, count: u64, phase: u64) -> Vec<u64> {
    let living = grants - grants / 10;
    let stride = (living / count).max(1);
    let nths = (0..count).map(|nth| nth * stride + phase % stride);
    nths.filter(|nth| *nth < living && stock::provider(*nth) == MAIN)
        .collect()
}

/// Makes grants due since a minute ago.
pub fn make_due(site: &Site, nths: &[u64]) -> Result<(), Error> {
    make_due_at(site, nths, stock::now_ms() - 60_000)
}

/// Makes grants due at a time, in milliseconds since the epoch.
pub fn make_due_at(site: &Site, nths: &[u64], due_at: i64) -> Result<(), Error> {
    let conn = stock::open(&site.database())?;
    conn.execute_batch("BEGIN IMMEDIATE")?;
    for nth in nths {
        conn.prepare_cached("UPDATE grants SET version = version + 1, due_at = ?2 WHERE id = ?1")?
            .execute(params![row(*nth), due_at])?;
    }
    conn.execute_batch("COMMIT")?;
    stock::checkpoint(&conn)
}

/// Row numbers begin with 1.
pub fn row(nth: u64) -> i64 {
    nth as i64 + 1
}

/// How fast these requests came, without the first and the last of them.
pub fn rate(hits: &[Hit]) -> f64 {
    let (from, to) = (hits.len() / 10, hits.len() - 1 - hits.len() / 50);
    (to - from) as f64 * 1000.0 / (hits[to].at - hits[from].at).max(0.001)
}

/// Waits until all of them have come.
pub fn wait_for(server: &Provider, count: usize) -> Result<(), Error> {
    if !server.wait_for(count, PATIENCE) {
        return Err(format!("{} of {count} requests came", server.count()).into());
    }
    Ok(())
}

/// Takes the requests that came: one for each of these grants, and no other.
pub fn take_one_each(
    server: &Provider,
    nths: impl IntoIterator<Item = u64>,
) -> Result<Vec<Hit>, Error> {
    let hits = server.take_hits();
    let wanted: HashSet<u64> = nths.into_iter().collect();
    let came: HashSet<u64> = hits.iter().map(|hit| hit.nth).collect();
    if came != wanted || hits.len() != wanted.len() {
        let text = format!(
            "{} requests for {} grants, where {} were due",
            hits.len(),
            came.len(),
            wanted.len()
        );
        return Err(text.into());
    }
    Ok(hits)
}

/// How many requests came more than `in_flight` places before or after their own: those that are in flight together may
/// come in any order. First goes what lives, by its `end`; then what has none any more, in any order.
pub fn out_of_order<K: Ord>(
    hits: &[Hit],
    in_flight: usize,
    end: impl Fn(&Hit) -> Option<K>,
) -> usize {
    let mut order: Vec<usize> = (0..hits.len()).collect();
    order.sort_by_key(|came| {
        let end = end(&hits[*came]);
        (end.is_none(), end)
    });
    let places = order.iter().enumerate();
    places
        .filter(|(own, came)| own.abs_diff(**came) > in_flight)
        .count()
}

/// Adds up the generations of grants: by how much it grows is how often they were refreshed.
fn generations(site: &Site, nths: &[u64]) -> Result<i64, Error> {
    let conn = stock::open(&site.database())?;
    let mut sum = 0;
    for nth in nths {
        let sql = "SELECT generation FROM grants WHERE id = ?1";
        sum += conn
            .prepare_cached(sql)?
            .query_row([row(*nth)], |row| row.get::<_, i64>(0))?;
    }
    Ok(sum)
}

/// Milliseconds from a start to READY, of so many grants that are not due.
pub fn start_of(lab: &Lab, grants: u64) -> Result<f64, Error> {
    let (site, setup, _server) = with_stock(lab, "start", grants)?;
    let rounds: Result<Vec<f64>, Error> = (0..lab.rounds())
        .map(|_| ready_after(lab, &site, &setup))
        .collect();
    Ok(median(rounds?))
}

/// So many of freshd's requests and nothing else, by its own client, as many in flight as row 5 has, from as many threads:
/// how many there are in a second. No daemon on this machine refreshes faster that opens a connection for each.
fn requests_alone(server: &Provider, count: u64) -> Result<f64, Error> {
    let client = client(server.port)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    server.take_hits();
    runtime.block_on(async {
        let request = |nth| {
            let client = client.clone();
            tokio::spawn(async move {
                let token = RefreshToken::new(stock::refresh_token(nth, 1));
                client.refresh(&token, UnixTime::EPOCH).await
            })
        };
        let mut outcomes = stream::iter(0..count)
            .map(request)
            .buffer_unordered(IN_FLIGHT);
        while let Some(outcome) = outcomes.next().await {
            let outcome = outcome?;
            if !matches!(outcome, Outcome::Tokens(_)) {
                return Err(format!("a request ended with {}", outcome.name()).into());
            }
        }
        Ok::<(), Error>(())
    })?;
    Ok(rate(&server.take_hits()))
}

/// What freshd itself asks a server with, configured as the daemon is.
pub fn client(port: u16) -> Result<Client, Error> {
    let registration = Registration {
        provider: MAIN.into(),
        token_endpoint: Url::parse(&format!("http://127.0.0.1:{port}/token"))?,
        revocation_endpoint: None,
        client_auth: ClientAuth::Basic,
        client_id: "bench".into(),
        client_secret: Some(ClientSecret::new("the client secret")),
        dead_grant_codes: vec![],
        connect_timeout: Duration::from_secs(10),
        deadline: Duration::from_secs(30),
    };
    Ok(Client::new(registration, &Outbound::default())?)
}

/// Row 5.
pub fn durable(lab: &Lab) -> Result<Vec<Line>, Error> {
    let count = lab.of(20_000, 300);
    let line = durable_at(lab, "5", lab.grants(), count)?;
    let server = Provider::start(Duration::ZERO)?;
    let alone: Result<Vec<f64>, Error> = (0..lab.rounds())
        .map(|_| requests_alone(&server, count))
        .collect();
    Ok(vec![line.detail("requests alone, 1/s", median(alone?))])
}

/// Refreshes, and raw updates, of so many grants in turns.
pub fn durable_at(
    lab: &Lab,
    row_name: &'static str,
    grants: u64,
    count: u64,
) -> Result<Line, Error> {
    let (site, setup, server) = with_stock(lab, row_name, grants)?;
    let (mut rounds, mut ours, mut theirs, mut resident) = (vec![], vec![], vec![], vec![]);
    for round in 0..lab.rounds() {
        let nths = some(grants, count, 2 * round);
        make_due(&site, &nths)?;
        let generations_before = generations(&site, &nths)?;
        server.take_hits();
        let freshd = site.start(lab, &setup)?;
        let before = Cost::default();
        wait_for(&server, nths.len())?;
        let cost = freshd.cost().since(before);
        freshd.stop()?;
        let hits = take_one_each(&server, nths.iter().copied())?;
        let committed = generations(&site, &nths)? - generations_before;
        if committed != nths.len() as i64 {
            return Err(format!("{committed} of {} were refreshed", nths.len()).into());
        }
        let others: Vec<i64> = some(grants, count, 2 * round + 1)
            .into_iter()
            .map(row)
            .collect();
        let raw = raw_refreshes(&site.database(), &others)?;
        rounds.push((rate(&hits), raw.per_second));
        ours.push(cost.cpu.as_secs_f64() * 1e6 / hits.len() as f64);
        theirs.push(raw.cpu_micros);
        resident.push(cost.resident as f64 / f64::from(1 << 20));
    }
    let what = format!("durable refreshes, {grants} grants");
    Ok(Line::of_rounds(row_name, what, "1/s", &rounds)
        .aim(Aim::AtLeast(0.6))
        .detail("cpu us, freshd, its start included", median(ours))
        .detail("cpu us, yardstick", median(theirs))
        .detail("resident MiB", median(resident)))
}

/// Row 6.
pub fn start(lab: &Lab) -> Result<Vec<Line>, Error> {
    let (big, big_setup, server) = with_stock(lab, "6", lab.grants())?;
    let (small, small_setup, _server) = with_stock(lab, "6-small", 1_000)?;
    let mut rounds = Vec::new();
    for _ in 0..lab.rounds() {
        rounds.push((
            ready_after(lab, &big, &big_setup)?,
            ready_after(lab, &small, &small_setup)?,
        ));
    }
    let apart = |what: &str, rounds: &[(f64, f64)]| {
        Line::of_rounds("6", what, "ms", rounds)
            .by_difference()
            .aim(Aim::AtMost(100.0))
    };
    let mut lines = vec![apart("start to READY, nothing due", &rounds)];
    let count = lab.of(100_000, 400);
    let from = lab.grants() - count;
    let nths: Vec<u64> = (from..lab.grants())
        .filter(|nth| stock::provider(*nth) == MAIN)
        .collect();
    make_due(&big, &nths)?;
    server.take_hits();
    let mut rounds = Vec::new();
    let freshd = big.start(lab, &big_setup)?;
    rounds.push((
        freshd.ready_after.as_secs_f64() * 1000.0,
        ready_after(lab, &small, &small_setup)?,
    ));
    wait_for(&server, nths.len())?;
    freshd.stop()?;
    lines.push(apart(&format!("start to READY, {count} overdue"), &rounds));
    let hits = take_one_each(&server, nths)?;
    let raw: Vec<i64> = some(lab.grants(), lab.of(20_000, 300), 3)
        .into_iter()
        .map(row)
        .collect();
    let raw = raw_refreshes(&big.database(), &raw)?;
    let worked_off = [(rate(&hits), raw.per_second)];
    let what = format!("{count} overdue worked off");
    let line = Line::of_rounds("6", what.clone(), "1/s", &worked_off).aim(Aim::AtLeast(0.6));
    // The stock's tokens end one after the other.
    let end = |hit: &Hit| (!stock::has_ended(hit.nth, lab.grants())).then_some(hit.nth);
    let out_of_order = out_of_order(&hits, IN_FLIGHT, end) as f64;
    lines.push(line);
    lines.push(
        Line::new("6", format!("{what}: out of order"), "", out_of_order).aim(Aim::AtMost(0.0)),
    );
    Ok(lines)
}

fn ready_after(lab: &Lab, site: &Site, setup: &crate::daemon::Setup) -> Result<f64, Error> {
    let freshd = site.start(lab, setup)?;
    let took = freshd.ready_after.as_secs_f64() * 1000.0;
    freshd.stop()?;
    Ok(took)
}
