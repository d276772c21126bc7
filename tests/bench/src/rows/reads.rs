//! Rows 1 to 3: token reads.

use std::time::Duration;

use crate::client::{Load, Readings, Requests, read, read_apart};
use crate::daemon::{Setup, Site, get};
use crate::provider::Provider;
use crate::report::{Aim, Line, median};
use crate::stock::{self, MAIN, OTHER};
use crate::yardsticks::Server;
use crate::{Error, Lab};

/// Requests at once at each provider of the usual stock.
pub const IN_FLIGHT: usize = 256;

/// Row 1: a hot set that the cache holds.
pub fn hot(lab: &Lab) -> Result<Vec<Line>, Error> {
    against_redis(lab, "1", lab.of(5_000, 100), 1.0)
}

/// Row 2: a hot set of more than the cache holds.
pub fn beyond_the_cache(lab: &Lab) -> Result<Vec<Line>, Error> {
    against_redis(lab, "2", lab.of(100_000, 1_000), 0.4)
}

/// A freshd with the usual stock, both of whose providers have the one server.
pub fn with_stock(lab: &Lab, name: &str, grants: u64) -> Result<(Site, Setup, Provider), Error> {
    let site = Site::new(lab, name)?;
    stock::put(lab, &site, grants)?;
    let server = Provider::start(Duration::ZERO)?;
    let max_in_flight = format!("max-in-flight = {IN_FLIGHT}");
    let setup = Setup::default()
        .with(MAIN, server.port, &max_in_flight)
        .with(OTHER, server.port, &max_in_flight);
    Ok((site, setup, server))
}

/// Grants spread over those whose tokens live.
pub fn spread(grants: u64, count: u64) -> impl Iterator<Item = u64> + Clone {
    let living = grants - grants / 10;
    (0..count).map(move |nth| nth * living / count)
}

/// Reads until all of a hot set has been read.
pub fn warm_up(site: &Site, requests: &Requests) -> Result<(), Error> {
    let load = Load {
        connections: 8,
        count: 6 * requests.each.len() as u64,
        time: Duration::from_secs(60),
        rate: None,
    };
    read(&site.socket(), requests, load)?.all_served()?;
    Ok(())
}

fn against_redis(lab: &Lab, row: &'static str, hot: u64, aim: f64) -> Result<Vec<Line>, Error> {
    let (site, setup, _server) = with_stock(lab, row, lab.grants())?;
    let redis = Server::redis(&site.dir)?;
    let freshd = site.start(lab, &setup.one_thread())?;
    let hot_set = spread(lab.grants(), hot);
    let body = get(&site.socket(), &stock::token_path(0))?;
    let of = |nth| body.replace(&stock::access_token(0, 1), &stock::access_token(nth, 1));
    redis.set(hot_set.clone().map(|nth| (stock::user(nth), of(nth))))?;
    let http = Requests::http(hot_set.clone().map(stock::token_path));
    let keys = Requests::redis(hot_set.map(stock::user));
    warm_up(&site, &http)?;
    let mut lines = Vec::new();
    for connections in [1, 16, 64] {
        let load = Load {
            connections,
            count: lab.of(u64::MAX, 200),
            time: Duration::from_secs(3),
            rate: None,
        };
        let mut rounds = Rounds::default();
        for _ in 0..lab.rounds() {
            let before = freshd.cost();
            let ours = read(&site.socket(), &http, load)?.all_served()?;
            rounds.freshd(ours, freshd.cost().since(before).cpu);
            let before = redis.cost();
            let theirs = read(&redis.socket, &keys, load)?.all_served()?;
            rounds.yardstick(theirs, redis.cost().since(before).cpu);
        }
        let what = format!(
            "reads, {hot} hot of {}, {connections} connections",
            lab.grants()
        );
        lines.extend(rounds.lines(row, &what, aim));
    }
    freshd.stop()?;
    Ok(lines)
}

/// Row 3: one connection for each request.
pub fn one_connection_each(lab: &Lab) -> Result<Vec<Line>, Error> {
    let (site, setup, _server) = with_stock(lab, "3", lab.grants())?;
    let line_server = Server::start("line-server", &site.dir)?;
    let freshd = site.start(lab, &setup.one_thread())?;
    let hot = spread(lab.grants(), lab.of(5_000, 100));
    warm_up(&site, &Requests::http(hot.clone().map(stock::token_path)))?;
    let requests: Vec<Vec<u8>> = hot
        .map(|nth| {
            let path = stock::token_path(nth);
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                .into_bytes()
        })
        .collect();
    let load = Load {
        connections: 1,
        count: lab.of(u64::MAX, 200),
        time: Duration::from_secs(3),
        rate: None,
    };
    let mut rounds = Rounds::default();
    for _ in 0..lab.rounds() {
        let before = freshd.cost();
        let ours = read_apart(&site.socket(), &requests, load)?;
        rounds.freshd(ours, freshd.cost().since(before).cpu);
        let before = line_server.cost();
        let theirs = read_apart(&line_server.socket, &[b"token\n".to_vec()], load)?;
        rounds.yardstick(theirs, line_server.cost().since(before).cpu);
    }
    freshd.stop()?;
    Ok(rounds
        .lines("3", "reads, one connection each", 0.7)
        .into_iter()
        .take(1)
        .collect())
}

/// What both sides did in their rounds.
#[derive(Default)]
struct Rounds {
    ours: Vec<(Readings, f64)>,
    theirs: Vec<(Readings, f64)>,
}

impl Rounds {
    fn freshd(&mut self, readings: Readings, cpu: Duration) {
        let each = cpu.as_secs_f64() * 1e6 / readings.answers as f64;
        self.ours.push((readings, each));
    }

    fn yardstick(&mut self, readings: Readings, cpu: Duration) {
        let each = cpu.as_secs_f64() * 1e6 / readings.answers as f64;
        self.theirs.push((readings, each));
    }

    fn pairs(&self, of: impl Fn(&(Readings, f64)) -> f64) -> Vec<(f64, f64)> {
        let pairs = self.ours.iter().zip(&self.theirs);
        pairs.map(|(ours, theirs)| (of(ours), of(theirs))).collect()
    }

    /// Requests a second, and the latency that 99 of 100 stayed under.
    fn lines(&self, row: &'static str, what: &str, aim: f64) -> Vec<Line> {
        let cpu = self.pairs(|(_, cpu)| *cpu);
        let rate = Line::of_rounds(row, what, "req/s", &self.pairs(|(r, _)| r.per_second()))
            .aim(Aim::AtLeast(aim))
            .detail(
                "cpu us, freshd",
                median(cpu.iter().map(|pair| pair.0).collect()),
            )
            .detail(
                "cpu us, yardstick",
                median(cpu.iter().map(|pair| pair.1).collect()),
            );
        let p99 = Line::of_rounds(
            row,
            format!("{what}: p99"),
            "us",
            &self.pairs(|(r, _)| r.micros(990)),
        )
        .aim(Aim::AtMost(1.0));
        vec![rate, p99]
    }
}
