//! Copies that are made and restored, and keys that are rotated.

use std::rc::Rc;
use std::time::Duration;

use freshd::refresh::grant::{GrantKey, PauseReason, Standing};
use freshd::refresh::time::UnixTime;

use crate::store::{Durable, Keys};
use crate::time::timeout;
use crate::world::World;

/// A rotation waits so long for something to be spilled.
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 86_400);

/// What `freshctl backup` writes.
struct Copy {
    made_at: UnixTime,
    durable: Durable,
    keys: Keys,
}

/// Now and then a copy of some days ago takes the store's place, and whom that puts aside is released by name, or
/// authorizes anew.
pub async fn restores(world: Rc<World>) {
    while world.next(world.knobs.restores).await {
        let copy = Copy {
            made_at: world.wall(),
            durable: world.durable.borrow().clone(),
            keys: world.keys.borrow().clone(),
        };
        let age = world.sim.random(|rng| rng.pick(&[60, 3600, 3 * 86_400]));
        if !world.next(Some(Duration::from_secs(age))).await {
            return;
        }
        if world.sim.chance(0.5) {
            world.ask(|daemon| async move { daemon.stop().await }).await;
        }
        world.crash(Duration::from_secs(60));
        if world.is_up() {
            continue; // it was down, and is coming up just now
        }
        put_in_place(&world, copy);
        let mean = world.sim.random(|rng| rng.pick(&[60, 3600, 86_400]));
        world.while_it_lasts(Duration::from_secs(mean)).await;
        release(&world).await;
    }
}

fn put_in_place(world: &World, copy: Copy) {
    let erased = world.erased.borrow();
    let since = erased.iter().filter(|(at, _)| *at >= copy.made_at);
    let since: Vec<GrantKey> = since.map(|(_, key)| key.clone()).collect();
    let rotates = |name: &str| world.provider(name).policy.rotation.rotates();
    let restored = copy
        .durable
        .restored(copy.made_at, world.wall(), &since, rotates);
    world.witness.borrow_mut().restored(&restored, rotates);
    *world.durable.borrow_mut() = restored;
    *world.keys.borrow_mut() = copy.keys;
    // The old store is moved aside whole.
    world.spill_file.borrow_mut().clear();
    world.limbo.borrow_mut().take();
}

async fn release(world: &Rc<World>) {
    for provider in &world.providers {
        // The copy may be from when an admin had paused it.
        while !resumed(world, provider.name).await {
            world.sim.sleep(Duration::from_secs(30)).await;
        }
    }
    for key in world.keys_of_grants() {
        let waits = |standing| standing == Some(Standing::Paused(PauseReason::Restored));
        while waits(world.standing(&key)) {
            if world.sim.chance(0.4) {
                world.log_in(&key, false).await;
            } else {
                let key = key.clone();
                let asked = world.ask(|daemon| async move { daemon.resume(&key).await });
                asked.await;
            }
            world.sim.sleep(Duration::from_secs(5)).await;
        }
    }
}

async fn resumed(world: &World, provider: &'static str) -> bool {
    let asked = world.ask(|daemon| async move { daemon.resume_provider(provider).await });
    asked.await == Some(true)
}

/// An admin rotates the key; a life of the daemon that ends meanwhile leaves the rest of that to the next one.
pub async fn key_rotations(world: Rc<World>) {
    while world.next(world.knobs.key_rotations).await {
        if world.sim.chance(0.5) {
            // A set that is held has its place in the spill file, under the old key.
            let _ = timeout(LONGEST_WAIT, world.spills.notified()).await;
        }
        world
            .ask(|daemon| async move { daemon.rotate_key().await })
            .await;
    }
}
