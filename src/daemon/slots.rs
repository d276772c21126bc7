//! Waiting for a grant's slot: the pure [`Slots`] with wake-ups.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::refresh::grant::GrantKey;
use crate::refresh::slots::{Slots, Ticket};

/// The daemon's slots.
#[derive(Clone, Default)]
pub(super) struct SlotTable(Arc<Mutex<Table>>);

#[derive(Default)]
pub(super) struct Table {
    pub(super) slots: Slots,
    pub(super) wakers: BTreeMap<Ticket, oneshot::Sender<()>>,
}

/// A place in a slot's queue; leaves it when dropped, so that neither a panic nor a caller who went away
/// can block a grant for good.
pub(super) struct Slot {
    table: SlotTable,
    key: GrantKey,
    ticket: Ticket,
}

impl SlotTable {
    /// Waits until nobody else changes this grant's tokens.
    pub(super) async fn acquire(&self, key: &GrantKey) -> Slot {
        let (slot, granted) = {
            let mut table = self.lock();
            let (ticket, held) = table.slots.join(key);
            let granted = (!held).then(|| {
                let (waker, granted) = oneshot::channel();
                table.wakers.insert(ticket, waker);
                granted
            });
            let slot = Slot {
                table: self.clone(),
                key: key.clone(),
                ticket,
            };
            (slot, granted)
        };
        if let Some(granted) = granted {
            // The sender lives in the table until it is used: an error can't come before the grant.
            let _ = granted.await;
        }
        slot
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        table.wakers.remove(&self.ticket);
        if let Some(next) = table.slots.leave(&self.key, self.ticket)
            && let Some(waker) = table.wakers.remove(&next)
        {
            // A waiter that has gone leaves the queue by its own drop.
            let _ = waker.send(());
        }
    }
}
