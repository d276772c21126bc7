//! How rough a seed's world is, and which providers are in it.

use std::time::Duration;

use freshd::refresh::pacing::Pace;
use freshd::refresh::policy::{Mode, Policy, Rotation};

use crate::network::Provider;
use crate::rng::Rng;
use crate::server::Class;

const DAY: Duration = Duration::from_secs(86_400);

/// How rough this seed's world is. What is `None` or zero does not happen at all.
#[derive(Debug)]
pub struct Knobs {
    /// The share of requests whose answer never comes.
    pub lost_answers: f64,
    /// The chance of a crash after each step of the daemon while an attempt is under way.
    pub crash_per_step: f64,
    pub crashes: Option<Duration>,
    pub stops: Option<Duration>,
    pub weather: Option<Duration>,
    pub clock_steps: Option<Duration>,
    pub disk: Option<Duration>,
    pub admin: Option<Duration>,
    pub restores: Option<Duration>,
    pub key_rotations: Option<Duration>,
    pub churn: Option<Duration>,
    pub revoked_by_user: Option<Duration>,
    pub api_refusals: Option<Duration>,
    /// Imports and deletes come without a slot, as if by another process: the store has to withstand that by itself.
    pub no_slots: bool,
}

impl Knobs {
    pub fn draw(rng: &mut Rng) -> Knobs {
        let mut mean = |share: f64, hours: &[u64]| {
            let mean = rng.pick(hours);
            rng.chance(share).then(|| Duration::from_secs(mean * 3600))
        };
        let no_slots = mean(0.1, &[12]);
        Knobs {
            churn: no_slots.or(mean(0.4, &[12, 72])),
            no_slots: no_slots.is_some(),
            crashes: mean(0.5, &[3, 24, 120]),
            stops: mean(0.5, &[12, 72]),
            weather: mean(0.6, &[4, 24, 120]),
            clock_steps: mean(0.25, &[24, 120]),
            disk: mean(0.5, &[3, 12, 72]),
            admin: mean(0.4, &[12, 72]),
            restores: mean(0.15, &[72, 240]),
            key_rotations: mean(0.3, &[6, 72]),
            revoked_by_user: mean(0.3, &[120]),
            api_refusals: mean(0.4, &[1, 12]),
            lost_answers: rng.pick(&[0.0, 0.0, 0.002, 0.02, 0.1]),
            crash_per_step: rng.pick(&[0.0, 0.0, 1e-4, 1e-3, 4e-3]),
        }
    }
}

pub fn provider(name: &'static str, rng: &mut Rng) -> Provider {
    let secs = Duration::from_secs;
    let grace = secs(rng.pick(&[20, 30, 60]));
    let rotation = rng.pick(&[
        Rotation::None,
        Rotation::Overlap,
        Rotation::Grace(grace),
        Rotation::Grace(grace),
        Rotation::Strict,
        Rotation::Strict,
        Rotation::Periodic,
        Rotation::Unknown,
    ]);
    let deadline = match rotation {
        Rotation::Grace(grace) => grace / 2,
        _ => secs(rng.pick(&[10, 30])),
    };
    // A grace is for those who may ask within it.
    let pace = match rotation {
        Rotation::Grace(_) => Pace {
            max_in_flight: 8,
            rate: rng.pick(&[None, Some(10.0)]),
        },
        _ => Pace {
            max_in_flight: rng.pick(&[1, 4]),
            rate: rng.pick(&[None, Some(0.5), Some(10.0)]),
        },
    };
    let says_lifetime = rng.chance(0.9);
    let lifetime = secs(rng.pick(&[60, 600, 1800, 3600, 3600, 21_600, 86_400]));
    let idle = rng.chance(0.4).then(|| DAY * rng.pick(&[2, 20, 60]) as u32);
    Provider {
        name,
        policy: Policy {
            margin: secs(rng.pick(&[10, 60, 300])),
            floor: secs(1),
            rotation,
            inactive_after: secs(rng.pick(&[3600, 86_400, 259_200])),
            max_unused_refreshes: rng.pick(&[5, 100]),
            default_lifetime: (!says_lifetime).then_some(lifetime),
            refresh_token_idle_lifetime: idle,
            keep_alive: true,
            mode: rng.pick(&[
                Mode::Scheduled,
                Mode::Scheduled,
                Mode::Scheduled,
                Mode::OnDemand,
            ]),
            refresh_not_before: rng.chance(0.1).then_some(lifetime / 2),
            refresh_while_alive: false,
            refuse_after: DAY,
            refresh_token_warning: DAY * 7,
        },
        pace,
        deadline,
        lifetime,
        says_lifetime,
        says_end: rng
            .chance(0.4)
            .then(|| rng.pick(&[lifetime / 2, DAY * 2, DAY * 30])),
        revokes: rng.chance(0.6),
    }
}

/// What the server really does, where the policy is right about it, or says that nobody knows.
pub fn class_of(policy: &Policy, rng: &mut Rng) -> Class {
    match policy.rotation {
        Rotation::None => Class::None,
        Rotation::Overlap => Class::Overlap,
        Rotation::Grace(grace) => Class::Grace(grace, rng.pick(&[1, u32::MAX])),
        Rotation::Strict => Class::Strict,
        Rotation::Periodic => Class::Periodic,
        Rotation::Unknown => {
            rng.pick(&[Class::None, Class::Overlap, Class::Strict, Class::Periodic])
        }
    }
}
