//! The driver: does what the schedule decides, and arms its one timer.
//!
//! It owns the [`Schedule`] and never waits for a request or a write: pages are
//! read and attempts run in tasks of their own, which report back as events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use super::attempt;
use super::clock::LONGEST_SLEEP;
use super::providers::Halt;
use super::shared::{Ended, Shared};
use super::steps;
use super::watch::Watch;
use crate::refresh::attempt::Cause;
use crate::refresh::grant::GrantId;
use crate::refresh::horizon::{Action, Due, Schedule, Written};
use crate::refresh::time::UnixTime;
use crate::refresh::token_response::Contact;
use crate::store::StoreError;

/// What the driver is told.
pub(super) enum Event {
    /// A caller waits for an attempt at this grant.
    Demand {
        provider: String,
        id: GrantId,
        waiter: Waiter,
    },
    /// This grant can't wait for its turn.
    Urgent { provider: String, id: GrantId },
    /// A write changed a row, or removed it from the schedule.
    Written { provider: String, written: Written },
    /// Callers can be answered, although the attempt still holds its slot: the token set is held.
    Answer {
        provider: String,
        id: GrantId,
        ended: Ended,
    },
    /// An attempt is over.
    Ended {
        provider: String,
        written: Written,
        ended: Ended,
    },
    /// A page was read.
    Page {
        provider: String,
        rows: Result<Vec<Due>, StoreError>,
        until: UnixTime,
        limit: usize,
    },
    /// What a request told about its server's health.
    Contact {
        provider: String,
        id: GrantId,
        contact: Contact,
    },
    /// Providers, their pace, their stops or their cool-downs have changed.
    ProvidersChanged { max_in_flight: Option<usize> },
    /// A provider's due times were recomputed in the table.
    Rescheduled { provider: String },
    /// Somebody wants to know how it goes.
    Look(oneshot::Sender<Look>),
    /// Begin nothing more; answer when nothing is in flight.
    Drain(oneshot::Sender<()>),
}

/// A demand counts for so long whether or not its caller waits.
const WANTED_FOR: Duration = Duration::from_secs(1);

/// A caller who waits for a newer token set than the one it has seen.
pub(super) struct Waiter {
    pub(super) seen: u64,
    pub(super) asked_at: UnixTime,
    /// Until when the caller waits.
    pub(super) patience: UnixTime,
    pub(super) answer: oneshot::Sender<Ended>,
}

/// How the driver fares.
pub(super) struct Look {
    pub(super) in_flight: usize,
    pub(super) in_flight_by_provider: BTreeMap<String, usize>,
    pub(super) next_due_at: Option<UnixTime>,
    pub(super) next_due_by_provider: BTreeMap<String, UnixTime>,
}

/// A page that could not be read is asked for again after this.
const LOAD_RETRY: Duration = Duration::from_secs(1);

struct Driver {
    shared: Arc<Shared>,
    events: UnboundedSender<Event>,
    schedule: Schedule,
    waiters: BTreeMap<GrantId, Vec<Waiter>>,
    /// Demands that floor, backoff or replay have put off.
    put_off: BTreeSet<(UnixTime, String, GrantId)>,
    /// Attempts that have begun and not ended, whatever became of their provider's configuration.
    running: usize,
    watch: Watch,
    drained: Option<oneshot::Sender<()>>,
}

/// Runs until every sender of events is gone.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut inbox: UnboundedReceiver<Event>,
    max_in_flight: usize,
) {
    let mut driver = Driver {
        watch: Watch::new(shared.clock.clone()),
        events: shared.driver.clone(),
        shared,
        schedule: Schedule::new(max_in_flight),
        waiters: BTreeMap::new(),
        put_off: BTreeSet::new(),
        running: 0,
        drained: None,
    };
    driver.providers_changed(None);
    loop {
        driver.notice_step();
        driver.act();
        let sleep = driver.sleep();
        tokio::select! {
            biased; // or the same seed would not be the same simulation
            event = inbox.recv() => match event {
                Some(event) => driver.handle(event),
                None => return,
            },
            () = tokio::time::sleep(sleep) => {}
        }
        // Take what has queued up before deciding again.
        while let Ok(event) = inbox.try_recv() {
            driver.handle(event);
        }
    }
}

impl Driver {
    /// Looks whether the clock was set, or the machine slept; what was put off is asked again then.
    fn notice_step(&mut self) {
        let Some(step) = self.watch.look() else {
            return;
        };
        steps::stepped(&self.shared, step);
        self.providers_changed(None);
        for (_, provider, id) in std::mem::take(&mut self.put_off) {
            self.demand_again(&provider, id);
        }
    }

    fn sleep(&mut self) -> Duration {
        let now = self.shared.clock.now();
        if self.shared.draining() {
            return LONGEST_SLEEP;
        }
        let put_off = self.put_off.first().map(|(at, ..)| *at);
        [self.schedule.poll_timeout(now), put_off]
            .into_iter()
            .flatten()
            .min()
            .map_or(LONGEST_SLEEP, |at| at.since(now).min(LONGEST_SLEEP))
    }

    fn act(&mut self) {
        if self.shared.draining() {
            if self.running == 0
                && let Some(drained) = self.drained.take()
            {
                let _ = drained.send(());
            }
            return;
        }
        let now = self.shared.clock.now();
        while self.put_off.first().is_some_and(|(at, ..)| *at <= now)
            && let Some((_, provider, id)) = self.put_off.pop_first()
        {
            self.demand_again(&provider, id);
        }
        while let Some((provider, action)) = self.schedule.poll_action(now) {
            match action {
                Action::Load {
                    after,
                    until,
                    limit,
                } => self.load(provider, after, until, limit),
                Action::Begin { id, cause } => self.begin(provider, id, cause),
            }
        }
    }

    fn load(
        &self,
        provider: String,
        after: Option<(UnixTime, GrantId)>,
        until: UnixTime,
        limit: usize,
    ) {
        let (shared, events) = (self.shared.clone(), self.events.clone());
        tokio::spawn(async move {
            let rows = shared
                .store
                .due_within(&provider, after, until, limit)
                .await;
            if rows.is_err() {
                tokio::time::sleep(LOAD_RETRY).await;
            }
            let _ = events.send(Event::Page {
                provider,
                rows,
                until,
                limit,
            });
        });
    }

    fn begin(&mut self, provider: String, id: GrantId, cause: Cause) {
        self.running += 1;
        let (shared, events) = (self.shared.clone(), self.events.clone());
        let waiters = self.waiters.get(&id).map(Vec::as_slice).unwrap_or_default();
        let now = self.shared.clock.now();
        // Who demanded it may have gone while the provider's pace held it up. Who did so just now may not wait for it at
        // all, and wants it nevertheless.
        let waiting = waiters
            .iter()
            .filter(|waiter| !waiter.answer.is_closed() || now.since(waiter.asked_at) < WANTED_FOR);
        let seen = waiting.map(|waiter| waiter.seen).max();
        let cause = if seen.is_some() { cause } else { Cause::Due };
        let wanted = attempt::Wanted { id, cause, seen };
        tokio::spawn(async move {
            // An attempt that panics must still end, or its grant would never be tried again.
            let attempt = tokio::spawn(attempt::run(shared.clone(), provider.clone(), wanted));
            let (written, ended) = match attempt.await {
                Ok(done) => done,
                Err(_) => (attempt::after_panic(&shared, id).await, Ended::NoToken),
            };
            let _ = events.send(Event::Ended {
                provider,
                written,
                ended,
            });
        });
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Demand {
                provider,
                id,
                waiter,
            } => self.demand(&provider, id, waiter),
            Event::Urgent { provider, id } => {
                if let Some(horizon) = self.schedule.provider(&provider) {
                    horizon.handle_urgent(id);
                }
            }
            Event::Written { provider, written } => {
                if let Some(horizon) = self.schedule.provider(&provider) {
                    horizon.handle_write(written);
                }
            }
            Event::Answer {
                provider,
                id,
                ended,
            } => self.answer(&provider, id, &ended),
            Event::Ended {
                provider,
                written,
                ended,
            } => {
                self.running -= 1;
                self.schedule.handle_end(&provider, written);
                self.answer(&provider, written.id, &ended);
            }
            Event::Page {
                provider,
                rows,
                until,
                limit,
            } => {
                if let Some(horizon) = self.schedule.provider(&provider) {
                    match rows {
                        Ok(rows) => horizon.handle_page(&rows, until, limit),
                        Err(_) => horizon.handle_load_failure(),
                    }
                }
            }
            Event::Contact {
                provider,
                id,
                contact,
            } => self.contact(&provider, id, contact),
            Event::ProvidersChanged { max_in_flight } => self.providers_changed(max_in_flight),
            Event::Rescheduled { provider } => {
                if let Some(horizon) = self.schedule.provider(&provider) {
                    horizon.reload();
                }
            }
            Event::Look(answer) => {
                let _ = answer.send(self.look());
            }
            Event::Drain(drained) => self.drained = Some(drained),
        }
    }

    fn demand(&mut self, provider: &str, id: GrantId, waiter: Waiter) {
        let refused = self.shared.draining() || self.shared.halt(provider).is_some();
        match self.schedule.provider(provider) {
            Some(horizon) if !refused => {
                horizon.handle_demand(id);
                let waiters = self.waiters.entry(id).or_default();
                // Callers that hang up while an attempt runs (a held set's may for hours) must not pile up.
                if waiters.len() >= 64 && waiters.len().is_power_of_two() {
                    waiters.retain(|waiter| !waiter.answer.is_closed());
                }
                waiters.push(waiter);
            }
            _ => {
                let _ = waiter.answer.send(Ended::NoToken);
            }
        }
    }

    /// Answers who waits for this grant. Who has already seen the token that came (its API refused it while
    /// the attempt was ending) waits for the next one.
    fn answer(&mut self, provider: &str, id: GrantId, ended: &Ended) {
        let waiters = self.waiters.remove(&id).unwrap_or_default();
        for waiter in waiters {
            match ended {
                Ended::Refreshed(token) if token.grant().generation <= waiter.seen => {
                    self.demand(provider, id, waiter);
                }
                Ended::NotBefore(at) if waiter.patience > *at && !waiter.answer.is_closed() => {
                    self.put_off.insert((*at, provider.to_owned(), id));
                    self.waiters.entry(id).or_default().push(waiter);
                }
                _ => {
                    let _ = waiter.answer.send(ended.clone());
                }
            }
        }
    }

    /// Demands what was put off, if somebody still waits for it.
    fn demand_again(&mut self, provider: &str, id: GrantId) {
        for waiter in self.waiters.remove(&id).unwrap_or_default() {
            if !waiter.answer.is_closed() {
                self.demand(provider, id, waiter);
            }
        }
    }

    /// Tells the breaker how a request fared, and everybody what became of the breaker.
    fn contact(&mut self, provider: &str, id: GrantId, contact: Contact) {
        let now = self.shared.clock.now();
        let Some(horizon) = self.schedule.provider(provider) else {
            return;
        };
        let pacer = horizon.pacer();
        let before = pacer.unreachable();
        pacer.handle_contact(id, contact, now, rand::random());
        let after = pacer.unreachable();
        if before == after {
            return;
        }
        match (before, after) {
            (None, Some(_)) => tracing::warn!(
                provider,
                hint = "it gets one request at a time until it answers; tokens are served while they live",
                "provider-unreachable"
            ),
            (Some(open), None) => {
                let after = format!("{:?}", Duration::from_secs(now.since(open.since).as_secs()));
                tracing::info!(provider, after, "provider-recovered");
            }
            _ => {}
        }
        self.shared.providers.set_unreachable(provider, after);
        let (shared, name) = (self.shared.clone(), provider.to_owned());
        tokio::spawn(async move {
            // It rules in memory already.
            let _ = shared.providers.write(&name).await;
        });
        self.fail_impatient(provider);
    }

    /// Answers the callers who wait for an attempt that can't begin before their patience ends.
    fn fail_impatient(&mut self, provider: &str) {
        let Some(not_before) = self.shared.providers.not_before(provider) else {
            return;
        };
        let Some(horizon) = self.schedule.provider(provider) else {
            return;
        };
        for id in horizon.take_demands() {
            let waiters = self.waiters.remove(&id).unwrap_or_default();
            let (patient, impatient): (Vec<_>, Vec<_>) = waiters
                .into_iter()
                .partition(|waiter| waiter.patience >= not_before);
            for waiter in impatient {
                let _ = waiter.answer.send(Ended::NoToken);
            }
            for waiter in patient {
                self.demand(provider, id, waiter);
            }
        }
    }

    /// Brings the schedule in line with the configured providers and what is known of them.
    fn providers_changed(&mut self, max_in_flight: Option<usize>) {
        if let Some(max_in_flight) = max_in_flight {
            self.schedule.set_max_in_flight(max_in_flight);
        }
        let providers = self.shared.providers.all();
        let gone = self
            .schedule
            .retain_providers(|name| providers.contains_key(name));
        for id in gone {
            self.answer("", id, &Ended::NoToken);
        }
        for (name, live) in providers.iter() {
            self.schedule.set_provider(name, live.config.pace);
            let halt = self.shared.halt(name);
            let state = self.shared.providers.state(name).unwrap_or_default();
            if let Some(horizon) = self.schedule.provider(name) {
                let pacer = horizon.pacer();
                pacer.halt(halt.is_some());
                pacer.end_cool_down();
                if let Some(until) = state.cool_down_until {
                    pacer.cool_down(until);
                }
                pacer.set_unreachable(state.unreachable);
            }
            self.fail_impatient(name);
            if matches!(halt, Some(Halt::Stopped(..) | Halt::Paused)) {
                self.fail_waiters(name);
            }
        }
    }

    /// Answers the callers who wait for grants of a provider that is halted and has not begun theirs.
    fn fail_waiters(&mut self, provider: &str) {
        let ids = match self.schedule.provider(provider) {
            Some(horizon) => horizon.take_demands(),
            None => return,
        };
        for id in ids {
            self.answer(provider, id, &Ended::NoToken);
        }
    }

    fn look(&mut self) -> Look {
        let providers = self.shared.providers.all();
        let in_flight_by_provider = providers
            .keys()
            .filter_map(|name| {
                let horizon = self.schedule.provider(name)?;
                Some((name.clone(), horizon.pacer().in_flight()))
            })
            .collect();
        let next_due_by_provider = providers
            .keys()
            .filter_map(|name| {
                let next = self.schedule.provider(name)?.next_due_at()?;
                Some((name.clone(), next))
            })
            .collect();
        Look {
            in_flight: self.running,
            next_due_by_provider,
            in_flight_by_provider,
            next_due_at: self.schedule.next_due_at(),
        }
    }
}
