//! Users who come and go, apps that import and delete, and admins.

use std::rc::Rc;
use std::time::Duration;

use freshd::refresh::grant::{GrantKey, PauseReason, Standing};

use crate::callers::Answer;
use crate::executor::WORLD;
use crate::network::{Provider, Weather};
use crate::server::Ending;
use crate::world::World;

const HOUR: Duration = Duration::from_secs(3600);

pub async fn user_comes_and_goes(world: Rc<World>, user: String) {
    let keys: Vec<GrantKey> = world
        .providers
        .iter()
        .map(|p| world.key(&user, p.name))
        .collect();
    for key in &keys {
        if world.sim.chance(0.8) {
            world.log_in(key, false).await;
        }
    }
    let every = world.sim.random(|rng| rng.pick(&[120, 1800, 14_400]));
    let stays = world
        .sim
        .random(|rng| HOUR * rng.pick(&[4, 48, 240]) as u32);
    let away = world
        .sim
        .random(|rng| HOUR * rng.pick(&[12, 96, 720]) as u32);
    loop {
        let leaves_at =
            world.sim.now() + world.sim.random(|rng| rng.about(stays)).as_millis() as u64;
        while world.sim.now() < leaves_at || world.is_calm() {
            let pause = Duration::from_secs(if world.is_calm() { 300 } else { every });
            let pause = world.sim.random(|rng| rng.about(pause));
            world.sim.sleep(pause).await;
            let key = world.sim.random(|rng| rng.pick(&keys));
            let answer = world.read_token(&key, true).await;
            let needs = match answer {
                Some(Answer::NeedsAuthorization) => true,
                Some(Answer::NoSuchGrant) => world.sim.chance(0.05),
                _ => false,
            };
            if needs && world.sim.chance(0.5) {
                world.log_in(&key, false).await;
            }
        }
        world.while_it_lasts(away).await;
        if world.sim.chance(0.2) {
            let user = user.clone();
            world
                .ask(|daemon| async move { daemon.activity(&user).await })
                .await;
        }
    }
}

/// Reads everything once a day, which keeps nobody awake.
pub async fn nightly_job(world: Rc<World>, user: String) {
    loop {
        world.sim.sleep(24 * HOUR).await;
        for provider in &world.providers {
            world
                .read_token(&world.key(&user, provider.name), false)
                .await;
        }
    }
}

/// An admin mends the credentials of a provider that stopped, and resumes it.
pub async fn stops_are_mended(world: Rc<World>, provider: &'static Provider) {
    loop {
        world.sim.sleep(HOUR / 4).await;
        let stopped = world.with_daemon(|daemon| daemon.is_stopped(provider.name));
        if stopped == Some(true) && world.weather(provider.name) == Weather::Fine {
            world.trouble(provider.name, "stopped", true);
            world
                .ask(|daemon| async move { daemon.resume_provider(provider.name).await })
                .await;
            world.trouble(provider.name, "stopped", false);
        }
    }
}

pub async fn admin(world: Rc<World>) {
    while world.next(world.knobs.admin).await {
        let key = world.any_key();
        let provider = world.provider(&key.provider).name;
        let whole = world.sim.chance(0.3);
        world.trouble(provider, "admin", true);
        let paused = key.clone();
        world
            .ask(|daemon| async move {
                match whole {
                    true => daemon.pause_provider(provider).await,
                    false => daemon.pause(&paused).await,
                }
            })
            .await;
        let mean = world.sim.random(|rng| rng.pick(&[1, 600, 86_400]));
        world.while_it_lasts(Duration::from_secs(mean)).await;
        loop {
            let resumed = key.clone();
            let done = world.ask(|daemon| async move {
                let done = daemon.resume_provider(provider).await;
                daemon.resume(&resumed).await;
                done
            });
            let done = done.await == Some(true);
            let paused = Standing::Paused(PauseReason::Admin);
            let row = world
                .durable
                .borrow()
                .find(&key)
                .map(|row| row.grant.standing);
            if done && row != Some(paused) {
                break;
            }
            world.sim.sleep(Duration::from_secs(30)).await;
        }
        world.trouble(provider, "admin", false);
    }
}

/// Apps delete grants and bring new ones, held ones and old ones.
pub async fn churn(world: Rc<World>) {
    while world.next(world.knobs.churn).await {
        let key = match world.sim.chance(0.7) {
            true => world.key_under_way().await,
            false => world.any_key(),
        };
        match world.sim.random(|rng| rng.below(5)) {
            0 | 1 => {
                let deleted = key.clone();
                world.delete(deleted).await;
                world.while_it_lasts(HOUR).await;
                world.log_in(&key, false).await;
            }
            2 => {
                world.log_in(&key, true).await;
                world.while_it_lasts(HOUR).await;
                world
                    .ask(|daemon| async move { daemon.resume(&key).await })
                    .await;
            }
            3 => {
                // What the app still has of before: the same refresh token, which changes nothing.
                let row = world.durable.borrow().find(&key).cloned();
                let Some(row) = row else { continue };
                let mut tokens = world.authorize(&key.provider);
                tokens.refresh_token = row.refresh_token;
                tokens.access_token = row.access_token;
                world.import(&key, tokens, false).await;
            }
            _ => world.log_in(&key, false).await,
        }
    }
}

pub async fn users_revoke(world: Rc<World>) {
    while world.next(world.knobs.revoked_by_user).await {
        let key = world.any_key();
        let row = world.durable.borrow().find(&key).cloned();
        if let Some(token) = row.and_then(|row| row.refresh_token) {
            let mut servers = world.servers.borrow_mut();
            if let Some(server) = servers.get_mut(key.provider.as_str()) {
                server.end(token.expose(), Ending::ByUser);
            }
        }
    }
}

/// An API refuses a token that still lives, as often as it is asked with it, by several callers at once.
pub async fn api_refuses(world: Rc<World>) {
    while world.next(world.knobs.api_refusals).await {
        let key = world.any_key();
        for _ in 0..world.sim.random(|rng| 1 + rng.below(4)) {
            let Some(Answer::Token(generation)) = world.read_token(&key, true).await else {
                break;
            };
            for _ in 0..world.sim.random(|rng| rng.below(3)) {
                let (world, key) = (world.clone(), key.clone());
                world.clone().sim.spawn(WORLD, async move {
                    world.refused_by_api(&key, generation).await;
                });
            }
            world.refused_by_api(&key, generation).await;
        }
    }
}
