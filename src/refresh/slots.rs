//! Slots: each grant's one place for whatever changes its tokens (I1).
//!
//! An attempt, an import or a delete holds the slot from before it reads the
//! grant until after its write is on disk. The others wait in order.

use std::collections::{BTreeMap, VecDeque};

use super::grant::GrantKey;

/// Names one holder or waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Who holds and who waits for each grant's slot. A grant nobody holds takes no memory.
#[derive(Debug, Default)]
pub struct Slots {
    /// The front of each queue is the holder; no queue here is empty.
    queues: BTreeMap<GrantKey, VecDeque<Ticket>>,
    next: u64,
}

impl Slots {
    /// Joins the queue for `key`. Returns the ticket, and whether it holds the slot already.
    pub fn join(&mut self, key: &GrantKey) -> (Ticket, bool) {
        let ticket = Ticket(self.next);
        self.next += 1;
        let queue = self.queues.entry(key.clone()).or_default();
        queue.push_back(ticket);
        (ticket, queue.len() == 1)
    }

    /// Gives up `ticket`, held or waiting. Returns who holds the slot now, if that has changed.
    ///
    /// Leaving twice does nothing.
    pub fn leave(&mut self, key: &GrantKey, ticket: Ticket) -> Option<Ticket> {
        let queue = self.queues.get_mut(key)?;
        let position = queue.iter().position(|t| *t == ticket)?;
        queue.remove(position);
        if queue.is_empty() {
            self.queues.remove(key);
            return None;
        }
        (position == 0).then(|| queue.front().copied()).flatten()
    }

    /// Returns how many grants' slots are held.
    pub fn held(&self) -> usize {
        self.queues.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(user: &str) -> GrantKey {
        GrantKey {
            namespace: "default".into(),
            user: user.into(),
            provider: "box".into(),
            account: String::new(),
        }
    }

    #[test]
    fn one_holder_at_a_time_in_order_of_arrival() {
        let mut slots = Slots::default();
        let (first, held) = slots.join(&key("ann"));
        assert!(held);
        let (second, held) = slots.join(&key("ann"));
        assert!(!held);
        let (third, _) = slots.join(&key("ann"));
        assert!(slots.join(&key("bob")).1, "another grant's slot is its own");
        assert_eq!(slots.leave(&key("ann"), second), None, "a waiter left");
        assert_eq!(slots.leave(&key("ann"), first), Some(third));
        assert_eq!(slots.leave(&key("ann"), first), None, "leaving twice");
        assert_eq!(slots.leave(&key("ann"), third), None);
        assert_eq!(slots.held(), 1);
    }
}
