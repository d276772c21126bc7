//! What the daemon's tasks share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, oneshot};

use super::activity::Activity;
use super::audit::Audit;
use super::bursts::{Bursts, Kind};
use super::cache::{Cache, Epoch};
use super::clock::Clock;
use super::driver::{Event, Waiter};
use super::events::Live;
use super::held::Held;
use super::log::Names;
use super::moving::Moving;
use super::outages::Outages;
use super::owed::Owed;
use super::providers::{Halt, Providers};
use super::rotation::Progress;
use super::slots::SlotTable;
use crate::local_api::keeper::Token;
use crate::local_api::quotas::Quotas;
use crate::metrics::Registry;
use crate::refresh::grant::{Grant, GrantId, GrantKey};
use crate::refresh::horizon::{Due, Written};
use crate::refresh::reading::Readable;
use crate::refresh::time::UnixTime;
use crate::store::{Store, StoreError};

/// What the daemon's tasks share.
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) store: Store,
    pub(super) providers: Providers,
    pub(super) slots: SlotTable,
    pub(super) activity: Activity,
    pub(super) cache: Cache,
    pub(super) names: Names,
    pub(super) metrics: Registry,
    pub(super) quotas: Arc<Quotas>,
    pub(super) driver: UnboundedSender<Event>,
    pub(super) held: Held,
    pub(super) live: Live,
    pub(super) owed: Owed,
    pub(super) audit: Audit,
    /// Failures that are told together.
    pub(super) outages: Mutex<Outages>,
    /// What befalls many grants at once, told together too.
    pub(super) bursts: Mutex<Bursts>,
    /// Grants whose deletion has been asked for: unreadable at once.
    pub(super) deleting: Mutex<BTreeSet<GrantKey>>,
    /// Whoever works through the whole store: one at a time.
    pub(super) upkeep: tokio::sync::Mutex<()>,
    /// How far a key rotation is, if one is under way.
    pub(super) rotation: Mutex<Progress>,
    pub(super) moving: Moving,
    pub(super) known: Known,
    pub(super) revocations: Notify,
    pub(super) draining: AtomicBool,
    pub(super) started_at: UnixTime,
    pub(super) config_files: Mutex<Vec<String>>,
    pub(super) reload_error: Mutex<Option<String>>,
}

/// What the configuration said at the start, and what status tells and nothing else remembers.
#[derive(Default)]
pub(super) struct Known {
    /// Renewals of providers that are done, by the moment that they were asked for.
    pub(super) renewed: Mutex<BTreeMap<String, UnixTime>>,
    /// Where nightly copies go, and when they are made, as a cron expression.
    pub(super) nightly: Option<(PathBuf, String)>,
    /// Whether every admin may export secrets, and not root alone.
    pub(super) allow_export: bool,
    /// Why the last try since the start made no nightly copy.
    pub(super) no_copy: Mutex<Option<String>>,
}

/// How an attempt that callers waited for has ended.
#[derive(Clone, Debug)]
pub(super) enum Ended {
    /// With a new token.
    Refreshed(Token),
    /// Without one; what the grant is now says why.
    NoToken,
    /// Without a request: floor, backoff or replay allow none before this.
    NotBefore(UnixTime),
}

impl Shared {
    /// Reads a grant with its access token: held, cached, or from the store. Returns the moment as well.
    pub(super) async fn readable(
        &self,
        key: &GrantKey,
    ) -> Result<Option<(Arc<Readable>, UnixTime)>, StoreError> {
        let now = self.clock.now();
        let epoch = match self.in_memory(key, now) {
            Ok(found) => return Ok(found.map(|readable| (readable, now))),
            Err(epoch) => epoch,
        };
        let Some(readable) = self.store.readable(key, now).await? else {
            return Ok(None);
        };
        let readable = Arc::new(readable);
        self.cache.insert(readable.clone(), epoch);
        let now = self.clock.now();
        Ok(Some((as_of(now, readable), now)))
    }

    /// Finds a grant that is held or cached; `None` if it is being deleted. Else returns with what to cache it when it was
    /// read from the store.
    pub(super) fn in_memory(
        &self,
        key: &GrantKey,
        now: UnixTime,
    ) -> Result<Option<Arc<Readable>>, Epoch> {
        if lock(&self.deleting).contains(key) {
            return Ok(None);
        }
        let found = match self.held.find(key) {
            Some(held) => held,
            None => self.cache.find(key)?,
        };
        Ok(Some(as_of(now, found)))
    }

    /// Returns whether a grant's line in the log is written; the others of a burst are counted. `by` is who asked for
    /// it, where the line names somebody.
    pub(super) fn in_full(
        &self,
        event: &'static str,
        provider: &str,
        reason: &'static str,
        by: Option<&str>,
    ) -> bool {
        let kind = Kind {
            event,
            provider: provider.to_owned(),
            reason,
            by: by.map(str::to_owned),
        };
        lock(&self.bursts).in_full(kind, self.clock.running())
    }

    /// Tells cache and schedule what a write made of a grant.
    pub(super) fn wrote(&self, grant: &Grant) {
        self.cache.forget(&grant.key);
        let _ = self.driver.send(Event::Written {
            provider: grant.key.provider.clone(),
            written: written(grant),
        });
    }

    /// Tells cache and schedule that a grant is gone.
    pub(super) fn gone(&self, grant: &Grant) {
        self.cache.forget(&grant.key);
        self.activity.take_read(grant.id);
        self.owed.forget(grant.id);
        let _ = self.driver.send(Event::Written {
            provider: grant.key.provider.clone(),
            written: gone(grant.id),
        });
    }

    /// Asks for a newer token set than `grant` has and returns how that ends; `None` if the daemon ends first.
    ///
    /// The caller waits until `patience`; where it is known that nothing can begin before then, the answer
    /// comes at once.
    pub(super) async fn demand(&self, grant: &Grant, patience: UnixTime) -> Option<Ended> {
        let (answer, ended) = oneshot::channel();
        let event = Event::Demand {
            provider: grant.key.provider.clone(),
            id: grant.id,
            waiter: Waiter {
                seen: grant.generation,
                asked_at: self.clock.now(),
                patience,
                answer,
            },
        };
        self.driver.send(event).ok()?;
        // A set is held before the driver answers its waiters with it. A demand that comes after that
        // would wait for an attempt that ends only when the disk does.
        let held = self.held.find(&grant.key);
        if let Some(held) = held.filter(|held| held.grant.generation > grant.generation)
            && let Some(token) = Token::of(held, self.clock.now())
        {
            return Some(Ended::Refreshed(token));
        }
        ended.await.ok()
    }

    /// Returns why no attempt may be made at a provider, if so.
    pub(super) fn halt(&self, provider: &str) -> Option<Halt> {
        self.providers.halt(provider)
    }

    /// Whether the daemon takes no new attempts: it ends, or its store was moved.
    pub(super) fn draining(&self) -> bool {
        self.ending() || self.moving.begun()
    }

    /// Whether the daemon was told to stop.
    pub(super) fn ending(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// Takes stamps from the future as of now: the clock was set back, and the row is not restamped yet.
fn as_of(now: UnixTime, readable: Arc<Readable>) -> Arc<Readable> {
    match readable.grant.restamped(now, Duration::ZERO) {
        None => readable,
        Some(grant) => Arc::new(Readable::new(grant, readable.access_token.clone())),
    }
}

/// Locks a mutex whose data stays whole whatever panicked while holding it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the schedule is told of a grant as it is now.
pub(super) fn written(grant: &Grant) -> Written {
    let due = grant.due_at.map(|due_at| Due {
        id: grant.id,
        due_at,
        expires_at: grant.expires_at(),
        version: grant.version,
    });
    Written {
        id: grant.id,
        version: grant.version,
        due,
    }
}

/// What the schedule is told of a grant that is gone.
pub(super) fn gone(id: GrantId) -> Written {
    Written {
        id,
        version: u64::MAX,
        due: None,
    }
}
