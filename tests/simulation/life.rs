//! One seed's life, from its beginning to its end or its first broken promise.

use std::rc::Rc;
use std::time::Duration;

use freshd::refresh::grant::{Grant, GrantKey, Standing};
use freshd::refresh::policy::Mode;
use freshd::refresh::time::UnixTime;

use crate::daemon::Daemon;
use crate::executor::WORLD;
use crate::faults::{clock_steps, crashes, disk_fails, stops, weather_changes};
use crate::people::stops_are_mended;
use crate::people::{admin, api_refuses, churn, nightly_job, user_comes_and_goes, users_revoke};
use crate::stats::Stats;
use crate::time::timeout;
use crate::upkeep::{key_rotations, restores};
use crate::witness::LATEST;
use crate::world::{Break, World};

const HOUR: Duration = Duration::from_secs(3600);
/// After the last fault everything has to be well again within this: the longest backoff is an hour, and a strict
/// server's token of unknown fate waits for the end of its access token.
const CALM: Duration = Duration::from_secs(3 * 3600);

pub struct Told {
    pub stats: Stats,
    /// The simulated time, in milliseconds.
    pub length: u64,
    pub violation: Option<String>,
}

/// Lives one seed's world to its end, or to its first broken promise.
pub fn live(seed: u64, broken: Option<Break>) -> Told {
    let world = World::new(seed, broken);
    if std::env::var_os("SIM_TRACE").is_some() {
        world.witness.borrow_mut().talks = true;
        // The same for all worlds of this process.
        let _ = tracing_subscriber::fmt()
            .with_env_filter("simulation=debug")
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .without_time()
            .try_init();
        eprintln!("{:?}", world.knobs);
        for provider in &world.providers {
            eprintln!(
                "{} {:?} {:?}",
                provider.name, provider.policy, provider.pace
            );
        }
    }
    begin(&world);
    let end = world.calm_at + CALM.as_millis() as u64;
    while world.witness.borrow().violation.is_none() {
        let Some(owner) = world.sim.step(end) else {
            world.sim.pass(end);
            break;
        };
        let chance = world.knobs.crash_per_step;
        if owner != WORLD && chance > 0.0 && world.is_busy() && world.sim.chance(chance) {
            let down = world.downtime();
            world.crash(down);
        }
    }
    world.judge_the_end();
    // Tasks hold the world, and the world holds them.
    world.crash(CALM);
    world.sim.kill(WORLD);
    let witness = world.witness.borrow();
    Told {
        stats: witness.stats,
        length: world.sim.now(),
        violation: witness
            .violation
            .clone()
            .map(|what| format!("{what}, at {}", world.wall())),
    }
}

fn begin(world: &Rc<World>) {
    world.start();
    for user in world.users.clone() {
        world
            .sim
            .spawn(WORLD, user_comes_and_goes(world.clone(), user.clone()));
        world.sim.spawn(WORLD, nightly_job(world.clone(), user));
    }
    for provider in world.providers.iter().copied() {
        world
            .sim
            .spawn(WORLD, weather_changes(world.clone(), provider));
        world
            .sim
            .spawn(WORLD, stops_are_mended(world.clone(), provider));
    }
    world.sim.spawn(WORLD, crashes(world.clone()));
    world.sim.spawn(WORLD, stops(world.clone()));
    world.sim.spawn(WORLD, clock_steps(world.clone()));
    world.sim.spawn(WORLD, disk_fails(world.clone()));
    world.sim.spawn(WORLD, admin(world.clone()));
    world.sim.spawn(WORLD, churn(world.clone()));
    world.sim.spawn(WORLD, users_revoke(world.clone()));
    world.sim.spawn(WORLD, api_refuses(world.clone()));
    world.sim.spawn(WORLD, restores(world.clone()));
    world.sim.spawn(WORLD, key_rotations(world.clone()));
    world.sim.spawn(WORLD, watch(world.clone()));
}

impl World {
    fn is_busy(&self) -> bool {
        self.sim.now() < self.calm_at && self.with_daemon(Daemon::is_busy) == Some(true)
    }

    pub fn downtime(&self) -> Duration {
        self.sim.random(|rng| match rng.below(10) {
            0 => rng.secs(60, 12 * 3600),
            1..=3 => rng.secs(5, 60),
            _ => rng.millis(1000, 4000),
        })
    }

    /// Waits for about `mean`. Returns whether things still go wrong then.
    pub async fn next(&self, mean: Option<Duration>) -> bool {
        let Some(mean) = mean else { return false };
        let wait = self.sim.random(|rng| rng.about(mean));
        self.sim.sleep(wait).await;
        self.sim.now() < self.calm_at
    }

    /// Waits for about `mean`, but not beyond the beginning of the calm.
    pub async fn while_it_lasts(&self, mean: Duration) {
        let left = Duration::from_millis(self.calm_at.saturating_sub(self.sim.now()));
        let wait = self.sim.random(|rng| rng.about(mean)).min(left);
        self.sim.sleep(wait).await;
    }

    pub fn any_key(&self) -> GrantKey {
        self.sim.random(|rng| rng.pick(&self.keys()))
    }

    /// Waits until a request is out, and returns its grant: whatever comes now comes between its steps.
    pub async fn key_under_way(&self) -> GrantKey {
        let _ = timeout(HOUR, self.departures.notified()).await;
        let pause = self.sim.random(|rng| rng.millis(0, 400));
        self.sim.sleep(pause).await;
        if let Some(id) = self.witness.borrow().out()
            && let Some(row) = self.durable.borrow().rows.get(&id)
        {
            return row.grant.key.clone();
        }
        self.any_key()
    }

    pub fn is_calm(&self) -> bool {
        self.sim.now() >= self.calm_at
    }

    /// Nothing stands in the way for hours: everybody who can be helped has a living token.
    fn judge_the_end(&self) {
        let mut witness = self.witness.borrow_mut();
        if witness.violation.is_some() {
            return;
        }
        let lost_lately = self.knobs.lost_answers > 0.0;
        for row in self.durable.borrow().rows.values() {
            let grant = &row.grant;
            // A user who came back only now is being served.
            let since = grant.expires_at().map(|at| at.max(grant.standing_since));
            let ended = since.map_or(Duration::ZERO, |since| self.wall().since(since));
            let allowed = Duration::from_millis(if lost_lately { 10 * LATEST } else { LATEST });
            let policy = &self.provider(&grant.key.provider).policy;
            let scheduled = policy.mode == Mode::Scheduled;
            if grant.standing == Standing::Active && scheduled && ended > allowed {
                let what = format!("{:?} has no living token at the end: {grant:?}", grant.id);
                witness.broken(what);
            }
        }
    }
}

/// Looks every few minutes whether a grant is due and nothing happens although nothing stands in the way.
async fn watch(world: Rc<World>) {
    loop {
        world.sim.sleep(Duration::from_secs(300)).await;
        let Some(daemon) = world.daemon.borrow().clone() else {
            continue;
        };
        let (now, wall) = (world.sim.now(), world.wall());
        let mut witness = world.witness.borrow_mut();
        let sound_since = witness.clear_since("").unwrap_or(now);
        let dropped = witness.dropped_before(now.saturating_sub(LATEST).min(sound_since));
        if let Some(presented) = dropped.filter(|_| now - sound_since > LATEST) {
            let what = format!("I3: the set that {presented} brought is dropped");
            witness.broken(what);
        }
        for row in world.durable.borrow().rows.values() {
            let grant = &row.grant;
            let provider = grant.key.provider.as_str();
            if now - sound_since > LATEST && is_ahead(grant, wall) {
                witness.broken(format!(
                    "{:?} has stamps from the future: {grant:?}",
                    grant.id
                ));
            }
            let scheduled = world.provider(provider).policy.mode == Mode::Scheduled;
            if scheduled && world.knobs.clock_steps.is_none() && is_given_up(grant, wall) {
                witness.broken(format!("{:?} is tried no more: {grant:?}", grant.id));
            }
            let (Some(due_at), Some(clear_since)) = (grant.due_at, witness.clear_since(provider))
            else {
                continue;
            };
            if daemon.is_draining() || daemon.is_halted(provider) {
                continue;
            }
            // One that was resumed just now was not due before.
            let due_at = due_at
                .max(grant.standing_since)
                .max(daemon.not_before(provider).unwrap_or(due_at));
            let late = wall.since(due_at).as_millis() as u64;
            let out = witness.out_since(grant.id);
            let begun = out.map_or(u64::MAX, |at| now - at);
            if late.min(now - clear_since).min(begun) > LATEST {
                witness.broken(format!(
                    "{:?} starves: due {} s ago: {grant:?}",
                    grant.id,
                    late / 1000
                ));
            }
        }
    }
}

fn is_ahead(grant: &Grant, wall: UnixTime) -> bool {
    let obtained_at = grant.access.as_ref().map(|access| access.obtained_at);
    let newest = obtained_at.max(grant.attempted_at);
    newest.is_some_and(|at| at.since(wall) > Duration::from_secs(2))
}

/// Whether an active grant that fails waits for longer than the longest backoff, and its token ends before that.
fn is_given_up(grant: &Grant, wall: UnixTime) -> bool {
    let latest = grant.expires_at().max(Some(wall + 2 * HOUR));
    grant.standing == Standing::Active && grant.failures > 0 && grant.due_at > latest
}
