//! The world around the daemon: true time and the wall clock, the disk, the servers, and who is alive.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use freshd::refresh::grant::{Grant, GrantKey, NeedsReason, Standing};
use freshd::refresh::time::UnixTime;
use freshd::refresh::token::{AccessToken, RefreshToken, TokenSet};
use freshd::refresh::token_response::Outcome;

use crate::daemon::Daemon;
use crate::executor::{Owner, Sim, WORLD};
use crate::knobs::{Knobs, class_of, provider};
use crate::network::{Provider, Weather};
use crate::server::{Ending, Server, Verdict};
use crate::store::{By, Disk, Durable, Keys, Row, TokenCommit};
use crate::witness::Witness;

thread_local! {
    static THE_WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// The world of this thread.
pub fn world() -> Rc<World> {
    THE_WORLD.with_borrow(|world| world.clone().expect("a world is there"))
}

const START: i64 = 1_790_000_000_000;

/// What is broken on purpose, to see whether the witness notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// No mark is written before a request leaves.
    NoMark,
    /// A refresh token of unknown fate is presented again at once, whatever the server thinks of that.
    ReplayAtOnce,
    /// A token set is committed over whatever is there.
    NoCas,
    /// Attempts follow each other without a pause.
    NoFloor,
}

pub struct World {
    pub sim: Sim,
    pub witness: RefCell<Witness>,
    pub durable: RefCell<Durable>,
    /// What a write that failed may yet have left on the disk.
    pub limbo: RefCell<Option<Durable>>,
    pub disk: Cell<Disk>,
    /// The spill file, whose space is allocated: sets, each with the key that sealed it.
    pub spill_file: RefCell<Vec<(u32, TokenCommit)>>,
    pub keys: RefCell<Keys>,
    /// The journal of erasures.
    pub erased: RefCell<Vec<(UnixTime, GrantKey)>>,
    pub servers: RefCell<BTreeMap<&'static str, Server>>,
    pub providers: Vec<&'static Provider>,
    pub users: Vec<String>,
    pub knobs: Knobs,
    pub broken: Option<Break>,
    pub daemon: RefCell<Option<Rc<Daemon>>>,
    /// Rings when a request leaves.
    pub departures: real_tokio::sync::Notify,
    /// Rings when a set is spilled.
    pub spills: real_tokio::sync::Notify,
    /// From here on nothing goes wrong any more.
    pub calm_at: u64,
    weather: RefCell<BTreeMap<&'static str, Weather>>,
    lives: Cell<Owner>,
    /// What the wall clock is ahead of true time, in milliseconds.
    ahead: Cell<i64>,
}

const NAMES: [&str; 3] = ["box", "google", "hubspot"];
const DAY: Duration = Duration::from_secs(86_400);
/// A seed makes about so many refreshes; its world lasts as long as that takes, up to three months.
const REFRESHES: u64 = 1_500;

impl World {
    pub fn new(seed: u64, broken: Option<Break>) -> Rc<World> {
        let sim = Sim::new(seed);
        let (knobs, providers, users) = sim.random(|rng| {
            let count = 1 + rng.below(3);
            let providers: Vec<&'static Provider> = NAMES[..count as usize]
                .iter()
                .map(|name| &*Box::leak(Box::new(provider(name, rng))))
                .collect();
            (Knobs::draw(rng), providers, 1 + rng.below(4))
        });
        let users: Vec<String> = (0..users).map(|n| format!("user-{n}")).collect();
        let servers = providers.iter().enumerate().map(|(nth, provider)| {
            let class = sim.random(|rng| class_of(&provider.policy, rng));
            let idle = provider.policy.refresh_token_idle_lifetime;
            (provider.name, Server::new(class, idle, nth))
        });
        let servers: BTreeMap<&'static str, Server> = servers.collect();
        let per_day: f64 = providers
            .iter()
            .map(|p| 86_400.0 / p.lifetime.as_secs_f64())
            .sum();
        let days = (REFRESHES as f64 / (per_day * users.len() as f64)).clamp(1.0, 90.0);
        let world = Rc::new(World {
            sim,
            witness: RefCell::default(),
            durable: RefCell::default(),
            limbo: RefCell::default(),
            disk: Cell::new(Disk::Sound),
            spill_file: RefCell::default(),
            keys: RefCell::new(Keys {
                current: 1,
                old: Vec::new(),
            }),
            erased: RefCell::default(),
            servers: RefCell::new(servers),
            weather: RefCell::default(),
            providers,
            users,
            knobs,
            broken,
            daemon: RefCell::default(),
            departures: Default::default(),
            spills: Default::default(),
            calm_at: DAY.mul_f64(days).as_millis() as u64,
            lives: Cell::new(WORLD),
            ahead: Cell::new(0),
        });
        THE_WORLD.set(Some(world.clone()));
        world
    }

    /// The wall clock, which is all the daemon knows of time.
    pub fn wall(&self) -> UnixTime {
        UnixTime::from_millis(START + self.sim.now() as i64 + self.ahead.get())
    }

    pub fn provider(&self, name: &str) -> &'static Provider {
        let provider = self.providers.iter().find(|provider| provider.name == name);
        provider.expect("a provider of this world")
    }

    pub fn key(&self, user: &str, provider: &str) -> GrantKey {
        GrantKey {
            namespace: "default".to_owned(),
            user: user.to_owned(),
            provider: provider.to_owned(),
            account: String::new(),
        }
    }

    pub fn keys(&self) -> Vec<GrantKey> {
        let of = |user: &String| {
            let keys = self
                .providers
                .iter()
                .map(|provider| self.key(user, provider.name));
            keys.collect::<Vec<_>>()
        };
        self.users.iter().flat_map(of).collect()
    }

    pub fn weather(&self, provider: &str) -> Weather {
        self.weather
            .borrow()
            .get(provider)
            .copied()
            .unwrap_or(Weather::Fine)
    }

    pub fn set_weather(&self, provider: &'static str, weather: Weather) {
        self.weather.borrow_mut().insert(provider, weather);
        self.trouble(provider, "weather", weather != Weather::Fine);
    }

    /// Something begins, or ceases, to stand in the way of a provider's grants; of all, where it has no name.
    pub fn trouble(&self, provider: &'static str, cause: &'static str, begins: bool) {
        let (mut witness, now) = (self.witness.borrow_mut(), self.sim.now());
        if begins {
            witness.trouble_begins(provider, cause, now);
        } else {
            witness.trouble_ends(provider, cause, now);
        }
    }

    /// A request with this refresh token is about to leave. Returns the grant it is for, if that still has it.
    pub fn presents(&self, provider: &Provider, token: &RefreshToken) -> Option<Grant> {
        let durable = self.durable.borrow();
        let rows = durable.rows.values();
        let row = rows.filter(|row| row.refresh_token.as_ref() == Some(token));
        let grant = row.map(|row| row.grant.clone()).next();
        let daemon = self.daemon.borrow();
        let held = grant.as_ref().is_some_and(|grant| {
            let daemon = daemon.as_ref();
            daemon.is_some_and(|daemon| daemon.held(&grant.key).is_some())
        });
        // An import without a slot may come between an attempt's steps, and its grant is due at once.
        let floor = match self.knobs.no_slots {
            true => 0,
            false => provider.policy.floor.as_millis() as u64,
        };
        let now = self.sim.now();
        let mut witness = self.witness.borrow_mut();
        witness.sends(grant.as_ref(), token, floor, held, now);
        self.departures.notify_waiters();
        grant
    }

    /// The daemon has an answer, or has none and waits no longer.
    pub fn ends(&self, token: &RefreshToken, outcome: &Outcome) {
        let now = self.sim.now();
        self.witness.borrow_mut().outcome(token, outcome, now);
    }

    /// A refresh token that left at `left_at` reaches its server. That a grace ends on the way is nobody's fault.
    pub fn present(
        &self,
        provider: &str,
        token: &RefreshToken,
        left_at: u64,
        nothing_left: bool,
    ) -> Verdict {
        let (now, replaces) = (self.sim.now(), self.sim.chance(0.2));
        let mut servers = self.servers.borrow_mut();
        let server = servers.get_mut(provider).expect("a server");
        if server.is_superseded(token.expose(), left_at) {
            self.witness
                .borrow_mut()
                .replay(token, nothing_left, server.class);
        }
        server.present(token.expose(), now, replaces)
    }

    /// A grant is about to need authorization, because of what its server said.
    pub fn witness_verdict(&self, row: &Row, reason: NeedsReason) {
        let Some(token) = &row.refresh_token else {
            return;
        };
        let servers = self.servers.borrow();
        let server = &servers[row.grant.key.provider.as_str()];
        let ending = server.ending(token.expose());
        let mut witness = self.witness.borrow_mut();
        if reason == NeedsReason::Refused {
            let served_ago = self.sim.now() - server.served_at;
            return witness.believes_refusals(&row.grant, served_ago);
        }
        witness.verdict(&row.grant, token, reason, (server.class, ending));
    }

    /// A standing is about to change.
    pub fn witness_standing(&self, grant: &Grant, to: Standing, by: By) {
        let mut witness = self.witness.borrow_mut();
        match to {
            Standing::NeedsAuthorization(_)
                if grant.has_refresh_token || grant.lives(self.wall()) =>
            {
                witness.broken(format!("I5: {:?} needs authorization unasked", grant.id));
            }
            Standing::Paused(_) if by == By::Schedule => witness.stats.paused += 1,
            Standing::Active if by == By::Admin => witness.released(grant.id),
            _ => {}
        }
    }

    /// A revocation reaches its server, if it does.
    pub fn revokes(&self, provider: &str, token: &str) -> bool {
        if self.weather(provider) != Weather::Fine {
            return false;
        }
        let mut servers = self.servers.borrow_mut();
        let server = servers.get_mut(provider).expect("a server");
        server.end(token, Ending::ByDaemon);
        true
    }

    /// A user authorizes: the token set that the app imports.
    pub fn authorize(&self, provider: &str) -> TokenSet {
        let mut servers = self.servers.borrow_mut();
        let server = servers.get_mut(provider).expect("a server");
        let (access_token, refresh_token) = server.authorize(self.sim.now());
        let now = self.wall();
        TokenSet {
            access_token: Some(AccessToken::new(access_token)),
            token_type: "Bearer".to_owned(),
            expires_at: Some(now + self.provider(provider).lifetime),
            obtained_at: now,
            refresh_token: Some(RefreshToken::new(refresh_token)),
            refresh_token_end: None,
            scope: None,
        }
    }

    pub fn start(self: &Rc<Self>) {
        self.lives.set(self.lives.get() + 1);
        let daemon = Daemon::start(self, self.lives.get());
        *self.daemon.borrow_mut() = Some(daemon);
    }

    /// kill -9, or the end of a stop; `down` later the daemon starts again.
    pub fn crash(self: &Rc<Self>, down: Duration) {
        if self.daemon.borrow_mut().take().is_none() {
            return;
        }
        self.sim.kill(self.lives.get());
        if let Some(limbo) = self.limbo.borrow_mut().take()
            && self.sim.chance(0.5)
        {
            *self.durable.borrow_mut() = limbo;
        }
        let now = self.sim.now();
        self.witness
            .borrow_mut()
            .crashed(&self.durable.borrow(), now);
        self.trouble("", "down", true);
        let left = Duration::from_millis(self.calm_at.saturating_sub(now));
        let down = down.min(left.max(Duration::from_secs(1)));
        let world = self.clone();
        self.sim.spawn(WORLD, async move {
            world.sim.sleep(down).await;
            world.start();
        });
    }

    /// The wall clock steps; the daemon looks at it within 15 s.
    pub fn step_clock(self: &Rc<Self>, by: i64) {
        self.ahead.set(self.ahead.get() + by);
        let now = Some(self.sim.now());
        self.witness.borrow_mut().stepped_at = now;
        self.trouble("", "clock", true);
        let world = self.clone();
        let life = self.lives.get();
        self.sim.spawn(WORLD, async move {
            let wait = world.sim.random(|rng| rng.secs(0, 15));
            world.sim.sleep(wait).await;
            let up = world.daemon.borrow().clone();
            if up.as_ref().is_none_or(|daemon| daemon.life != life) && by < 0 {
                // Nobody can know how long ago anything was.
                for server in world.servers.borrow_mut().values_mut() {
                    server.served_at = (server.served_at + by.unsigned_abs()).min(world.sim.now());
                }
            }
            if let Some(daemon) = up {
                daemon.look();
            }
            world.trouble("", "clock", false);
        });
    }

    /// Asks the daemon something. `None` if it is down, or dies meanwhile.
    pub async fn ask<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        question: impl FnOnce(Rc<Daemon>) -> F,
    ) -> Option<T> {
        let daemon = self.daemon.borrow().clone();
        let daemon = daemon.filter(|daemon| daemon.is_ready())?;
        let (answer, answered) = real_tokio::sync::oneshot::channel();
        let question = question(daemon.clone());
        self.sim.spawn(daemon.life, async move {
            let _ = answer.send(question.await);
        });
        drop(daemon);
        answered.await.ok()
    }

    pub fn is_up(&self) -> bool {
        self.daemon.borrow().is_some()
    }

    /// Every grant there is.
    pub fn keys_of_grants(&self) -> Vec<GrantKey> {
        self.durable.borrow().ids.keys().cloned().collect()
    }

    pub fn standing(&self, key: &GrantKey) -> Option<Standing> {
        let durable = self.durable.borrow();
        durable.find(key).map(|row| row.grant.standing)
    }

    /// Looks at the daemon, if it is up.
    pub fn with_daemon<T>(&self, look: impl FnOnce(&Daemon) -> T) -> Option<T> {
        self.daemon.borrow().as_deref().map(look)
    }
}
