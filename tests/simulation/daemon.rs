//! The daemon: its own files, with the store, the network, the clock and tokio of the simulation.
//!
//! So what is simulated is their order of steps, and not a copy of it. What is left out is what touches
//! sockets, files and configurations.

#[path = "../../src/daemon/activity.rs"]
mod activity;
#[path = "../../src/daemon/attempt.rs"]
mod attempt;
#[path = "../../src/daemon/bursts.rs"]
mod bursts;
#[path = "../../src/daemon/cache.rs"]
mod cache;
#[path = "../../src/daemon/changes.rs"]
mod changes;
#[path = "../../src/daemon/driver.rs"]
mod driver;
#[path = "../../src/daemon/held.rs"]
mod held;
#[path = "../../src/daemon/outages.rs"]
mod outages;
#[path = "../../src/daemon/owed.rs"]
mod owed;
#[path = "../../src/daemon/providers.rs"]
mod providers;
#[path = "../../src/daemon/reader.rs"]
mod reader;
#[path = "../../src/daemon/revocations.rs"]
mod revocations;
#[path = "../../src/daemon/rotation.rs"]
mod rotation;
#[path = "../../src/daemon/shared.rs"]
mod shared;
#[path = "../../src/daemon/slots.rs"]
mod slots;
#[path = "../../src/daemon/start.rs"]
mod start;
#[path = "../../src/daemon/steps.rs"]
mod steps;
#[path = "../../src/daemon/watch.rs"]
mod watch;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use freshd::local_api::keeper::{Token, TokenRequest};
use freshd::local_api::quotas::Quotas;
use freshd::local_api::types::Problem;
use freshd::refresh::grant::{GrantKey, PauseReason, Standing};
use freshd::refresh::time::UnixTime;
use freshd::refresh::token::TokenSet;
use real_tokio::sync::{mpsc, oneshot};

use crate::executor::Owner;
use crate::network::Client;
use crate::store::{By, Store};
use crate::time::timeout;
use crate::world::World;
use driver::Event;
use providers::{Live, Providers};
use shared::{Shared, lock};

/// The world's clock.
mod clock {
    use std::time::Duration;

    use crate::executor::sim;
    use crate::refresh::time::UnixTime;
    use crate::world::world;

    /// Longer than the daemon's, which looks at the clock every 15 s: here each step of the clock wakes it.
    pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(6 * 3600);
    pub(super) const WATCH_EVERY: Duration = Duration::from_secs(3600);

    #[derive(Clone, Debug)]
    pub(super) struct Clock;

    impl Clock {
        pub(super) fn now(&self) -> UnixTime {
            world().wall()
        }

        pub(super) fn running(&self) -> Duration {
            Duration::from_millis(sim().now())
        }
    }
}

/// Users' names, for the daemon's log.
mod log {
    use crate::refresh::grant::GrantKey;

    pub(super) struct Names;

    impl Names {
        pub(super) fn user(&self, key: &GrantKey) -> String {
            key.user.clone()
        }
    }
}

/// Nobody is an admin here.
mod audit {
    #[derive(Default)]
    pub(super) struct Audit;
}

/// Nobody listens to events.
mod events {
    #[derive(Default)]
    pub(super) struct Live;

    impl Live {
        pub(super) fn refreshed(&self, _: &crate::refresh::grant::Grant) {}
    }
}

/// This store does not move to another host.
mod moving {
    use crate::local_api::types::Problem;

    #[derive(Default)]
    pub(super) struct Moving;

    /// What keeps a move out while a change is made.
    pub(super) struct Open;

    impl Moving {
        pub(super) fn begun(&self) -> bool {
            false
        }

        pub(super) async fn change(&self) -> Result<Open, Problem> {
            Ok(Open)
        }
    }
}

mod keeper {
    use std::sync::Arc;

    #[derive(Clone)]
    pub struct Daemon(pub(super) Arc<super::Shared>);
}

const MIN_TTL: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_secs(10);
const GIVE_UP_REVOCATIONS_AFTER: Duration = Duration::from_secs(7 * 86_400);
/// Twice the longest request deadline, and time for the disk.
const DRAIN_PATIENCE: Duration = Duration::from_secs(70);
const MAX_IN_FLIGHT: usize = 16;

/// One life of the daemon, and what dies with it.
pub struct Daemon {
    pub life: Owner,
    /// Whether it has taken up what it found, and answers.
    ready: Cell<bool>,
    shared: Arc<Shared>,
    keeper: keeper::Daemon,
}

impl Daemon {
    /// Starts a new life from what is on disk.
    pub fn start(world: &Rc<World>, life: Owner) -> Rc<Daemon> {
        let (driver, inbox) = mpsc::unbounded_channel();
        let inactive_after = world.providers.iter().map(|it| it.policy.inactive_after);
        let store = Store::open(world);
        let states = world.durable.borrow().providers.clone();
        let inactive_after = inactive_after.min().unwrap_or_default();
        let shared = Arc::new(Shared {
            quotas: Arc::new(Quotas::new(Arc::new(|| Duration::ZERO))),
            clock: clock::Clock,
            providers: Providers::new(store.clone(), driver.clone(), states),
            slots: Default::default(),
            activity: activity::Activity::new(store.clone(), inactive_after),
            store,
            cache: cache::Cache::new(1 << 20),
            names: log::Names,
            metrics: crate::metrics::Registry::new(Vec::new()),
            audit: Default::default(),
            outages: Default::default(),
            bursts: Default::default(),
            driver,
            live: Default::default(),
            rotation: Default::default(),
            moving: Default::default(),
            known: Default::default(),
            held: Default::default(),
            owed: Default::default(),
            deleting: Default::default(),
            upkeep: Default::default(),
            revocations: Default::default(),
            draining: AtomicBool::new(false),
            started_at: world.wall(),
            config_files: Default::default(),
            reload_error: Default::default(),
        });
        let daemon = Rc::new(Daemon {
            life,
            ready: Cell::new(false),
            keeper: keeper::Daemon(shared.clone()),
            shared,
        });
        let (started, world) = (daemon.clone(), world.clone());
        world.clone().sim.spawn(life, async move {
            let shared = &started.shared;
            let live = world.providers.iter().map(|provider| {
                let live = Live {
                    config: provider.configured(world.broken),
                    client: Client(provider),
                };
                (provider.name.to_owned(), Arc::new(live))
            });
            let live = live.collect();
            start::take_up(shared, &live).await.expect("it can be read");
            rotation::resume(shared);
            shared.providers.configure(live).await;
            start::background(shared, inbox, MAX_IN_FLIGHT, GIVE_UP_REVOCATIONS_AFTER);
            started.ready.set(true);
            world.trouble("", "down", false);
        });
        daemon
    }

    pub fn is_ready(&self) -> bool {
        self.ready.get()
    }

    /// SIGTERM: what is in flight may finish, as long as it takes no longer than the longest request and the disk.
    pub async fn stop(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        let (answer, drained) = oneshot::channel();
        let _ = self.shared.driver.send(Event::Drain(answer));
        let _ = timeout(DRAIN_PATIENCE, drained).await;
        let _ = self.shared.activity.flush(self.shared.clock.now()).await;
    }

    /// Looks at the clock, as it does each 15 s.
    pub fn look(&self) {
        let _ = self.shared.driver.send(Event::Look(oneshot::channel().0));
    }

    /// Reads a grant's token.
    pub async fn token(&self, key: &GrantKey, counts: bool) -> Result<Token, Problem> {
        self.keeper.token_for(&request(key, counts)).await
    }

    /// "The API refused this generation."
    pub async fn refused_by_api(&self, key: &GrantKey, generation: u64) -> Result<Token, Problem> {
        let request = request(key, true);
        self.keeper
            .newer_token_for(&request, Some(generation))
            .await
    }

    /// Notes activity and wakes what absence paused.
    pub async fn activity(&self, user: &str) {
        let now = self.shared.clock.now();
        self.shared.activity.note("default", user, now);
        if let Ok(grants) = self.keeper.grants_of("default", user).await {
            let _ = self.keeper.wake_user(&grants, true).await;
        }
    }

    pub async fn import(&self, key: &GrantKey, tokens: TokenSet, hold: bool) {
        let _ = changes::import(&self.shared, key.clone(), tokens, true, hold).await;
    }

    pub async fn delete(&self, key: &GrantKey) {
        let _ = changes::delete(&self.shared, key.clone(), "uid 0").await;
    }

    /// Tells of a write that came without a slot, as if by another process.
    pub fn wrote(&self, grant: &freshd::refresh::grant::Grant) {
        self.shared.wrote(grant);
    }

    pub async fn pause(&self, key: &GrantKey) {
        let pauses = |standing| {
            let absent = [PauseReason::Inactive, PauseReason::Unused].map(Standing::Paused);
            standing == Standing::Active || absent.contains(&standing)
        };
        let to = Standing::Paused(PauseReason::Admin);
        let _ = changes::restand(&self.shared, key, pauses, to, By::Admin, None, "paused").await;
    }

    /// Resumes a grant by name; a restored one is released by that.
    pub async fn resume(&self, key: &GrantKey) {
        let now = self.shared.clock.now();
        self.shared.activity.note(&key.namespace, &key.user, now);
        let resumes = |standing| matches!(standing, Standing::Paused(_));
        let to = Standing::Active;
        let _ = changes::restand(&self.shared, key, resumes, to, By::Admin, None, "resumed").await;
    }

    pub async fn pause_provider(&self, provider: &str) {
        let _ = self.shared.providers.pause(provider).await;
        self.providers_changed();
    }

    /// Returns whether the disk took it: without that, it is forgotten at a restart.
    pub async fn resume_provider(&self, provider: &str) -> bool {
        let resumed = self.shared.providers.resume(provider).await;
        self.providers_changed();
        resumed.is_ok()
    }

    fn providers_changed(&self) {
        let max_in_flight = None;
        let _ = self
            .shared
            .driver
            .send(Event::ProvidersChanged { max_in_flight });
    }

    pub async fn rotate_key(&self) {
        let _ = self.keeper.begin_rotation().await;
    }

    /// Whether a slot is held: something is between two of its steps.
    pub fn is_busy(&self) -> bool {
        self.shared.slots.lock().slots.held() > 0
    }

    pub fn is_draining(&self) -> bool {
        self.shared.draining()
    }

    pub fn is_deleting(&self, key: &GrantKey) -> bool {
        lock(&self.shared.deleting).contains(key)
    }

    /// The access token that is held for a grant.
    pub fn held(&self, key: &GrantKey) -> Option<String> {
        let held = self.shared.held.find(key)?;
        Some(held.access_token.as_ref()?.expose().to_owned())
    }

    pub fn is_halted(&self, provider: &str) -> bool {
        self.shared.halt(provider).is_some()
    }

    pub fn is_stopped(&self, provider: &str) -> bool {
        matches!(
            self.shared.halt(provider),
            Some(providers::Halt::Stopped(..))
        )
    }

    pub fn not_before(&self, provider: &str) -> Option<UnixTime> {
        self.shared.providers.not_before(provider)
    }
}

fn request(key: &GrantKey, counts_as_activity: bool) -> TokenRequest {
    TokenRequest {
        key: key.clone(),
        min_ttl: MIN_TTL,
        wait: WAIT,
        counts_as_activity,
    }
}
