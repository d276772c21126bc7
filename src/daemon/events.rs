//! What happens to grants, for whoever listens.
//!
//! What is kept is read from the store, page by page, whenever it says that something was committed: so a listener is
//! told of nothing that a crash undoes, and one that is slow is behind and nothing else. Refreshes are told live only; who is
//! too slow for them misses some.

use std::sync::Arc;

use futures_util::stream;
use tokio::sync::{broadcast, watch};

use super::changes::store_problem;
use super::keeper::Daemon;
use super::shared::Shared;
use crate::local_api::keeper::{EventStream, Events};
use crate::local_api::types::{EventView, Problem};
use crate::refresh::grant::Grant;
use crate::refresh::time::UnixTime;
use crate::store::KeptEvent;

/// So many kept events are read at once.
const PAGE: usize = 100;
/// So many refreshes wait for a listener; the oldest go first.
const LIVE: usize = 256;

/// Tells of refreshes.
pub(super) struct Live(broadcast::Sender<Arc<EventView>>);

impl Default for Live {
    fn default() -> Self {
        Live(broadcast::Sender::new(LIVE))
    }
}

impl Live {
    /// Returns how many listen.
    pub(super) fn listeners(&self) -> usize {
        self.0.receiver_count()
    }

    /// Tells that a grant has a new token set.
    pub(super) fn refreshed(&self, grant: &Grant) {
        if self.0.receiver_count() == 0 {
            return;
        }
        // Nobody listens any more: then nobody misses it.
        let _ = self.0.send(Arc::new(EventView {
            id: None,
            event: "refreshed".to_owned(),
            at: grant.refreshed_at.unwrap_or_default().rfc3339(),
            namespace: grant.key.namespace.clone(),
            user: Some(grant.key.user.clone()),
            provider: grant.key.provider.clone(),
            account: grant.key.account.clone(),
            reason: String::new(),
            expires_at: None,
            generation: grant.generation,
        }));
    }
}

impl Daemon {
    /// Follows events from after the one numbered `after`, or from now on.
    pub(super) async fn follow(&self, after: Option<u64>) -> Result<EventStream, Problem> {
        let store = &self.0.store;
        // Before the first look, so that nothing falls between.
        let (committed, live) = (store.events_committed(), self.0.live.0.subscribe());
        let position = match after {
            Some(after) => after,
            None => store.last_event().await.map_err(store_problem)?,
        };
        let mut follower = Follower {
            shared: self.0.clone(),
            committed,
            live,
            position,
            caught_up: false,
        };
        let first = follower.look().await.map_err(store_problem)?;
        let later = stream::unfold(follower, Follower::next);
        let first = stream::once(async { first });
        Ok(Box::pin(stream::StreamExt::chain(first, later)))
    }
}

/// One listener's place in what happens.
struct Follower {
    shared: Arc<Shared>,
    committed: watch::Receiver<()>,
    live: broadcast::Receiver<Arc<EventView>>,
    position: u64,
    caught_up: bool,
}

impl Follower {
    async fn next(mut self) -> Option<(Events, Self)> {
        loop {
            if !self.caught_up {
                let events = self.look().await.ok()?;
                if !events.events.is_empty() || events.missing {
                    return Some((events, self));
                }
            }
            tokio::select! {
                biased;
                committed = self.committed.changed() => {
                    committed.ok()?;
                    self.caught_up = false;
                }
                refreshed = self.live.recv() => match refreshed {
                    Ok(event) => {
                        let events = Events {
                            from: self.position,
                            events: vec![Arc::unwrap_or_clone(event)],
                            position: self.position,
                            caught_up: true,
                            ..Events::default()
                        };
                        return Some((events, self));
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            }
        }
    }

    /// Reads what follows the position, and goes there.
    async fn look(&mut self) -> Result<Events, crate::store::StoreError> {
        let from = self.position;
        let page = self.shared.store.events_after(from, PAGE).await?;
        self.position = page.end;
        self.caught_up = !page.more;
        Ok(Events {
            missing: !page.complete,
            from,
            events: page.events.into_iter().map(view).collect(),
            position: page.end,
            caught_up: self.caught_up,
        })
    }
}

fn view(event: KeptEvent) -> EventView {
    let (user, account) = event.who.unzip();
    EventView {
        id: Some(event.id),
        event: event.kind.name().to_owned(),
        at: event.at.rfc3339(),
        namespace: event.namespace,
        user,
        provider: event.provider,
        account: account.unwrap_or_default(),
        reason: event.reason,
        expires_at: event.expires_at.map(UnixTime::rfc3339),
        generation: event.generation,
    }
}
