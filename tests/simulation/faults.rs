//! What goes wrong: servers, power, clocks and disks.

use std::rc::Rc;
use std::time::Duration;

use crate::network::{Provider, Weather};
use crate::store::Disk;
use crate::world::World;

pub async fn weather_changes(world: Rc<World>, provider: &'static Provider) {
    while world.next(world.knobs.weather).await {
        let weather = world.sim.random(|rng| {
            rng.pick(&[
                Weather::Down,
                Weather::Down,
                Weather::Errors,
                Weather::TooMany,
                Weather::Odd,
                Weather::Slow,
                Weather::BadClient,
            ])
        });
        world.set_weather(provider.name, weather);
        let means: &[u64] = match weather {
            // Only a refusal that goes on for days is one that may be believed.
            Weather::Odd => &[600, 43_200, 259_200],
            _ => &[30, 600, 7200, 43_200],
        };
        let mean = world.sim.random(|rng| rng.pick(means));
        world.while_it_lasts(Duration::from_secs(mean)).await;
        world.set_weather(provider.name, Weather::Fine);
    }
}

pub async fn crashes(world: Rc<World>) {
    while world.next(world.knobs.crashes).await {
        let down = world.downtime();
        world.crash(down);
    }
}

/// SIGTERM: what is in flight may finish, as long as it takes no longer than the longest request and the disk.
pub async fn stops(world: Rc<World>) {
    while world.next(world.knobs.stops).await {
        world.ask(|daemon| async move { daemon.stop().await }).await;
        let down = world.downtime();
        world.crash(down);
    }
}

pub async fn clock_steps(world: Rc<World>) {
    while world.next(world.knobs.clock_steps).await {
        let by = world.sim.random(|rng| {
            let by = rng.pick(&[2_000, 60_000, 3_600_000, 8 * 3_600_000]);
            if rng.chance(0.5) { by } else { -by }
        });
        world.step_clock(by);
    }
}

pub async fn disk_fails(world: Rc<World>) {
    while world.next(world.knobs.disk).await {
        let disk = world
            .sim
            .random(|rng| rng.pick(&[Disk::Full, Disk::Failing]));
        if world.sim.chance(0.7) {
            world.key_under_way().await; // or hardly a token set would find it so
        }
        world.disk.set(disk);
        let fails = disk == Disk::Failing;
        if fails {
            world.witness.borrow_mut().failing_until = u64::MAX;
        }
        world.trouble("", "disk", true);
        let mean = world.sim.random(|rng| rng.pick(&[1, 60, 3600]));
        world.while_it_lasts(Duration::from_secs(mean)).await;
        world.disk.set(Disk::Sound);
        if fails {
            world.witness.borrow_mut().failing_until = world.sim.now();
        }
        world.trouble("", "disk", false);
    }
}
