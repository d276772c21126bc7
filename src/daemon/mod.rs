//! The daemon: everything put together, started, reloaded and stopped.
//!
//! Only this module sees all others. [`start()`] opens the store, resumes the schedule and serves the
//! sockets; [`Handle::reload`] swaps configurations; [`Handle::stop`] drains.

mod activity;
#[cfg(test)]
mod activity_tests;
mod attempt;
#[cfg(test)]
mod attempt_tests;
mod audit;
mod backup;
mod bursts;
mod cache;
mod changes;
pub mod clock;
mod condition;
mod driver;
mod events;
mod export;
mod held;
mod import;
mod in_force;
mod journal;
mod keeper;
#[cfg(test)]
mod lame_tests;
mod line;
pub mod log;
mod maintenance;
mod metrics_listener;
mod moving;
mod outages;
mod owed;
mod providers;
#[cfg(test)]
mod providers_tests;
mod reader;
mod reload;
mod renewal;
mod revocations;
mod rotation;
mod scrape;
pub mod service;
mod shared;
mod slots;
#[cfg(test)]
mod slots_tests;
mod sockets;
mod start;
mod steps;
#[cfg(test)]
mod steps_tests;
mod systemd;
mod view;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::config::{Config, ConfigError};
use crate::local_api::quotas::Quotas;
use crate::local_api::rules::SharedRules;
use crate::local_api::server::Access;
use crate::metrics::Registry;
use crate::store::rekey::{self, PUT_KEY_BACK};
use crate::store::{Kek, KeyError, OpenError, Options, Store, StoreError};

use self::activity::Activity;
use self::cache::Cache;
use self::clock::Clock;
use self::driver::Event;
use self::in_force::InForce;
use self::maintenance::Maintenance;
use self::providers::Providers;
use self::shared::{Known, Shared, lock};
use self::sockets::Sockets;

pub use self::reload::ApplyError;
pub use self::sockets::SocketError;

/// How long the store waits for a lock that another process holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Beyond the longest request deadline, a drain waits this long for the disk.
const DISK_WAIT: Duration = Duration::from_secs(10);
/// Requests in flight on the sockets get this long at the end of a drain.
const SOCKET_PATIENCE: Duration = Duration::from_secs(2);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The key can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There is no key, and none may be made.
    #[error("{missing}; {todo}")]
    NoKey {
        /// Which.
        missing: KeyError,
        /// What to do about it.
        todo: String,
    },
    /// The store could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The configuration can't run.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A socket could not be served.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The store opened but can't be read or written.
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
}

impl StartError {
    /// Returns the exit code (sysexits): 78 for configuration and key, 75 for what may pass, 77 for permission.
    pub fn exit_code(&self) -> u8 {
        match self {
            StartError::Key(_) | StartError::NoKey { .. } | StartError::Apply(_) => 78,
            StartError::Open(error) => error.exit_code(),
            StartError::Socket(error) => match error.source.kind() {
                std::io::ErrorKind::PermissionDenied => 77,
                std::io::ErrorKind::InvalidInput => 78,
                _ => 75,
            },
            StartError::Store(_) => 75,
        }
    }
}

/// A running daemon.
pub struct Handle {
    shared: Arc<Shared>,
    config: Mutex<Config>,
    rules: SharedRules,
    sockets: tokio::sync::Mutex<Sockets>,
    maintenance: Maintenance,
    background: JoinSet<()>,
}

/// Sockets that systemd passed, by path.
pub type Passed = Vec<(PathBuf, std::os::unix::net::UnixListener)>;

/// Starts the daemon. When this returns, the sockets answer and the schedule runs.
///
/// A socket in `passed` is used in place of one that would be bound at its path.
///
/// # Errors
///
/// See [`StartError`]. With a wrong or missing key nothing has been changed (I9).
pub async fn start(config: Config, passed: Passed) -> Result<Handle, StartError> {
    start_with(config, passed, Clock::system()).await
}

async fn start_with(config: Config, passed: Passed, clock: Clock) -> Result<Handle, StartError> {
    let live = reload::clients(&config)?;
    let store = open_store(&config).await?;
    let (driver, inbox) = mpsc::unbounded_channel();
    let states = store.provider_states().await?;
    let providers = Providers::new(store.clone(), driver.clone(), states);
    let nightly = config.maintenance.backup.as_ref();
    let running = clock.clone();
    let shared = Arc::new(Shared {
        quotas: Arc::new(Quotas::new(Arc::new(move || running.running()))),
        started_at: clock.now(),
        clock,
        providers,
        slots: Default::default(),
        activity: Activity::new(store.clone(), Duration::MAX),
        cache: Cache::new(config.daemon.cache_bytes),
        metrics: Registry::new(scrape::reasons()),
        names: log::Names::new(config.daemon.log_users, store.clone()),
        driver,
        live: Default::default(),
        held: Default::default(),
        owed: Default::default(),
        deleting: Mutex::default(),
        outages: Mutex::default(),
        bursts: Mutex::default(),
        audit: Default::default(),
        upkeep: Default::default(),
        rotation: Default::default(),
        moving: Default::default(),
        known: Known {
            nightly: nightly.map(|backup| (backup.dir.clone(), backup.cron.clone())),
            allow_export: config.daemon.allow_export,
            ..Known::default()
        },
        revocations: Default::default(),
        draining: AtomicBool::new(false),
        config_files: Mutex::default(),
        reload_error: Mutex::default(),
        store,
    });
    start::take_up(&shared, &live).await?;
    rotation::resume(&shared);
    in_force::tell_at_start(&shared, &config).await?;
    reload::apply(&shared, &config, live).await;
    let rules: SharedRules = Arc::new(ArcSwap::from_pointee(reload::rules(&shared, &config)));
    let keeper = Arc::new(keeper::Daemon(shared.clone()));
    let access = Access {
        rules: rules.clone(),
        quotas: shared.quotas.clone(),
    };
    let mut sockets = Sockets::new(keeper, access, passed);
    sockets.serve(&config)?;
    let scrapes = match config.daemon.metrics_listen {
        None => None,
        Some(address) => Some(bind_metrics(address).await?),
    };
    let give_up_after = Duration::from_secs(u64::from(config.daemon.revocation_days) * 86_400);
    let maintenance = Maintenance::start(&shared, &config.maintenance, give_up_after);
    let mut background = start::background(&shared, inbox, config.max_in_flight, give_up_after);
    background.spawn(log::tell_counts(shared.clone()));
    if let Some(listener) = scrapes {
        background.spawn(metrics_listener::run(shared.clone(), listener));
    }
    Ok(Handle {
        shared,
        config: Mutex::new(config),
        rules,
        sockets: tokio::sync::Mutex::new(sockets),
        maintenance,
        background,
    })
}

async fn bind_metrics(address: SocketAddr) -> Result<TcpListener, SocketError> {
    let bound = metrics_listener::bind(address).await;
    bound.map_err(|source| SocketError {
        path: format!("daemon.metrics-listen {address}").into(),
        source,
    })
}

async fn open_store(config: &Config) -> Result<Store, StartError> {
    let kek = find_key(config)?;
    let options = Options {
        dir: config.daemon.state_dir.clone(),
        kek,
        busy_timeout: BUSY_TIMEOUT,
    };
    // Opening may migrate, and waits for the disk.
    match tokio::task::spawn_blocking(move || Store::open(options)).await {
        Ok(opened) => Ok(opened?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// The systemd credential `freshd.key`, else the key file. A key is made only where the configuration
/// allows it, and never beside a store that exists.
fn find_key(config: &Config) -> Result<Kek, StartError> {
    if let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY")
        && let Some(kek) = Kek::from_systemd_credential(&PathBuf::from(directory))?
    {
        return Ok(kek);
    }
    let file = &config.daemon.key_file;
    let store_exists = rekey::has_store(&config.daemon.state_dir);
    if config.daemon.make_key && !file.exists() && !store_exists {
        let kek = Kek::generate();
        kek.write_new(file)?;
        tracing::info!(file = %file.display(), "key-made");
        return Ok(kek);
    }
    Kek::read_file(file).map_err(|error| match error {
        missing @ KeyError::Missing { .. } => StartError::NoKey {
            missing,
            todo: match store_exists {
                true => format!(
                    "only it opens the store in {}: {PUT_KEY_BACK}",
                    config.daemon.state_dir.display()
                ),
                false => format!("`freshctl key generate {}` makes one", file.display()),
            },
        },
        error => error.into(),
    })
}

impl Handle {
    /// Takes a new configuration, whole or not at all. What was fixed at the start stays as it was, and is told.
    pub async fn reload(&self, config: Result<Config, Vec<ConfigError>>) {
        let refused = match config {
            Err(errors) => Some(reload::in_one_line(&errors)),
            Ok(config) => self.swap(config).await.err(),
        };
        if let Some(error) = &refused {
            tracing::error!(
                %error,
                hint = "the old configuration goes on; mend it and reload",
                "reload-refused"
            );
        }
        *lock(&self.shared.reload_error) = refused;
    }

    async fn swap(&self, config: Config) -> Result<(), String> {
        let live = reload::clients(&config).map_err(|error| error.to_string())?;
        let fixed = reload::fixed_at_start(&lock(&self.config), &config);
        // Sockets first: they are what can still fail, and an unused one does no harm.
        {
            let running = lock(&self.config).daemon.clone();
            let mut sockets = self.sockets.lock().await;
            let with_old_daemon = Config {
                daemon: running,
                ..config.clone()
            };
            sockets
                .serve(&with_old_daemon)
                .map_err(|error| format!("{error}: {}", error.source))?;
        }
        self.rules
            .store(Arc::new(reload::rules(&self.shared, &config)));
        reload::apply(&self.shared, &config, live).await;
        tracing::info!(
            providers = config.providers.len(),
            apps = config.apps.len(),
            "reloaded"
        );
        for key in fixed {
            tracing::warn!(key, "needs-restart");
        }
        let mut current = lock(&self.config);
        let before = InForce::of(&current);
        *current = Config {
            daemon: current.daemon.clone(),
            maintenance: current.maintenance.clone(),
            ..config
        };
        if let Some(changed) = InForce::of(&current).reloaded(&before) {
            let shared = self.shared.clone();
            // Widened, used, narrowed and widened again: each time counts.
            tokio::spawn(async move { audit::tell_now(&shared, changed).await });
        }
        Ok(())
    }

    /// Waits for what must not happen: that one of the loops that run as long as the daemon does has ended.
    ///
    /// A daemon without its schedule, or that no longer revokes, looks alive and keeps nothing of its promise:
    /// only a new life mends it.
    pub async fn lame(&mut self) {
        match self.background.join_next().await {
            Some(_) => tracing::error!(
                hint = "a bug: the panic is told above; the daemon stops, losing nothing, to be started again",
                "loop-ended"
            ),
            None => std::future::pending().await,
        }
    }

    /// Drains and ends: no new attempts, flights in progress finish and commit, then the sockets close.
    pub async fn stop(mut self) {
        let shared = &self.shared;
        shared.draining.store(true, Ordering::Relaxed);
        let patience = self.drain_patience();
        let (answer, drained) = oneshot::channel();
        let _ = shared.driver.send(Event::Drain(answer));
        if !self.drained(drained, patience).await {
            tracing::error!(
                held = shared.held.len(),
                hint = "held sets that were spilled are taken up at the next start; nothing else was in flight longer than its deadline",
                "drain-incomplete"
            );
        }
        self.sockets.into_inner().stop(SOCKET_PATIENCE).await;
        self.maintenance.stop().await;
        // A backup that an admin asked for ends by itself, and leaves no half of it; a rotation after a few rows.
        drop(shared.upkeep.lock().await);
        self.background.shutdown().await;
        if let Err(error) = shared.activity.flush(shared.clock.now()).await {
            tracing::warn!(%error, "activity-not-written");
        }
        audit::tell_repeats(shared, true).await;
        log::tell_the_rest(shared);
        shared.store.close().await;
        tracing::info!("stopped");
    }

    /// Waits until nothing is in flight. Where nothing but held sets is left, they get [`DISK_WAIT`]: they
    /// are in the spill file.
    async fn drained(&self, drained: oneshot::Receiver<()>, patience: Duration) -> bool {
        let only_held = async {
            let mut looks = 0;
            while looks < DISK_WAIT.as_secs() {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let look = view::look(&self.shared).await;
                let only = look.is_some_and(|look| look.in_flight <= self.shared.held.len());
                looks = if only { looks + 1 } else { 0 };
            }
        };
        let finished = async {
            if drained.await.is_err() {
                // Without a driver nobody counts attempts; each has its grant's slot until its outcome is on disk.
                while self.shared.slots.lock().slots.held() > 0 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        tokio::select! {
            () = finished => true,
            () = only_held => false,
            () = tokio::time::sleep(patience) => false,
        }
    }

    /// Twice the longest request deadline, and time for the disk.
    fn drain_patience(&self) -> Duration {
        let deadlines = lock(&self.config)
            .providers
            .values()
            .map(|provider| provider.registration.deadline)
            .max();
        deadlines.unwrap_or_default() * 2 + DISK_WAIT
    }
}
