//! Simulated months of the daemon at rotating authorization servers, with everything that can go wrong.
//!
//! What decides is the core (`freshd::refresh`), and what acts is the daemon's own files, compiled here with a store, a
//! network, a clock and a tokio whose every interleaving a seed decides. The witness knows the truth and checks I1 to
//! I5 at each step, and that no grant is lost by our fault, none starves and none storms.
//!
//! ```text
//! SEED=17 cargo test --test simulation one_seed -- --nocapture       what one seed does
//! SIM_TRACE=1                                                        all that is witnessed, and the daemon's own log
//! SIM_SEEDS=100000 cargo test --release --test simulation many_seeds a long run
//! SIM_HOURS=8 cargo test --release --test simulation many_seeds      a night
//! SIM_FIRST=1000000                                                  begins at another seed
//! ```

// The daemon's files say `tokio::spawn`, `rand::random` and `crate::refresh`, and find these.
extern crate self as rand;
extern crate self as tokio;
extern crate tokio as real_tokio;

mod callers;
#[allow(
    dead_code,
    reason = "its files, some of whose items only the rest of the daemon uses"
)]
mod daemon;
mod executor;
mod faults;
mod knobs;
mod life;
mod network;
mod people;
mod rng;
mod runtime;
mod server;
mod stats;
mod store;
mod upkeep;
mod witness;
mod world;

use real_tokio::{select, sync};
pub(crate) use runtime::{spawn, task, time};

use freshd::{local_api, metrics, profile, refresh};
use network as token_endpoint;

/// Stands for `rand::random`. The tests of the daemon's files run without a simulation.
pub fn random() -> u64 {
    executor::running().map_or(0, |sim| sim.random(|rng| rng.next()))
}

use std::time::{Duration, Instant};

use life::live;
use stats::Stats;
use world::Break;

/// As many seeds as a run of all tests has time for: under a minute of one core without optimization.
const SEEDS: u64 = 80;
const YEAR: f64 = 365.25 * 86_400_000.0;

#[expect(
    clippy::disallowed_methods,
    reason = "simulated years per minute of real time"
)]
fn now() -> Instant {
    Instant::now()
}

fn from_env(name: &str) -> Option<f64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is {text:?} but must be a number")))
}

fn reproduction(seed: u64) -> String {
    format!("SEED={seed} cargo test --test simulation one_seed -- --nocapture")
}

/// Names the seed where the core itself panics.
struct Panicking(u64);

impl Drop for Panicking {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", reproduction(self.0));
        }
    }
}

#[test]
fn many_seeds_of_simulated_months_break_no_promise() {
    let began = now();
    let hours = from_env("SIM_HOURS").map(|hours| Duration::from_secs_f64(hours * 3600.0));
    let seeds = from_env("SIM_SEEDS").map_or(SEEDS, |seeds| seeds as u64);
    let first = from_env("SIM_FIRST").map_or(0, |first| first as u64);
    let (mut stats, mut length, mut run) = (Stats::default(), 0.0, 0);
    for seed in first.. {
        let enough = hours.map_or(run >= seeds, |hours| began.elapsed() >= hours);
        if enough {
            break;
        }
        let guard = Panicking(seed);
        let told = live(seed, None);
        drop(guard);
        if let Some(what) = told.violation {
            panic!("{what}\n{}", reproduction(seed));
        }
        stats.add(&told.stats);
        length += told.length as f64;
        run += 1;
    }
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let years = length / YEAR;
    println!(
        "{run} seeds, {years:.1} simulated years, {:.1} a minute",
        years / minutes
    );
    println!("{stats:#?}");
    // A simulation in which nothing happens shows nothing.
    assert!(
        hours.is_some() || run < SEEDS || stats.is_eventful(),
        "{stats:#?}"
    );
}

#[test]
fn one_seed() {
    let seed = from_env("SEED").map_or(1, |seed| seed as u64);
    let guard = Panicking(seed);
    let told = live(seed, None);
    drop(guard);
    println!("{:.2} simulated days", told.length as f64 / 86_400_000.0);
    println!("{:#?}", told.stats);
    if let Some(what) = told.violation {
        panic!("{what}\n{}", reproduction(seed));
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in 0..3 {
        let (one, other) = (live(seed, None), live(seed, None));
        assert_eq!(format!("{:?}", one.stats), format!("{:?}", other.stats));
        assert_eq!(one.length, other.length);
    }
}

/// A witness that never complains proves nothing.
#[test]
fn what_is_broken_on_purpose_is_noticed() {
    for (broken, words) in [
        (Break::NoMark, ["superseded", "labelled"]),
        (Break::ReplayAtOnce, ["superseded", "lost"]),
        (Break::NoCas, ["I3", "I3"]),
        (Break::NoFloor, ["floor", "floor"]),
    ] {
        let began = now();
        let noticed = (0..500).find_map(|seed| {
            let what = live(seed, Some(broken)).violation?;
            Some((seed, what))
        });
        let (seed, what) = noticed.unwrap_or_else(|| panic!("{broken:?} is not noticed"));
        println!(
            "{broken:?}: seed {seed}, {:.1} s: {what}",
            began.elapsed().as_secs_f64()
        );
        assert!(
            words.iter().any(|word| what.contains(word)),
            "{broken:?} is noticed as something else: {what}"
        );
    }
}
