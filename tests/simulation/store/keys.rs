//! Which key opens what, and the spill file, whose records no page of the table holds.

use super::{Disk, Durable, Store, StoreError, TokenCommit, linger};
use crate::world::world;

/// A value whose key is gone would be lost.
pub fn opens(key: u32, what: &str) {
    let world = world();
    if !world.keys.borrow().open(key) {
        let what = format!("{what} is sealed with key {key}, which was retired");
        world.witness.borrow_mut().broken(what);
    }
}

impl Store {
    pub async fn spill(&self, commit: TokenCommit) -> Result<(), StoreError> {
        world().witness.borrow_mut().stats.held += 1;
        linger().await;
        let done = {
            let world = world();
            let done = world.disk.get() != Disk::Failing || world.sim.chance(0.5);
            if done {
                let key = world.keys.borrow().current;
                world.witness.borrow_mut().spills(&commit);
                world.spill_file.borrow_mut().push((key, commit));
            }
            done
        };
        linger().await;
        done.then_some(()).ok_or(StoreError::Unavailable)
    }

    pub async fn spilled(&self) -> Result<Vec<TokenCommit>, StoreError> {
        linger().await;
        let spilled = world().spill_file.borrow().clone();
        let open = spilled.into_iter().map(|(key, set)| {
            opens(key, "a spilled set");
            set
        });
        Ok(open.collect())
    }

    pub async fn clear_spill(&self) -> Result<(), StoreError> {
        linger().await;
        let world = world();
        if world.disk.get() == Disk::Failing && world.sim.chance(0.5) {
            return Err(StoreError::Unavailable);
        }
        world.spill_file.borrow_mut().clear();
        Ok(())
    }

    /// Seals one page's worth of values with the current key, each if it still is what it was: a row whose tokens
    /// were replaced meanwhile has the new key already. Returns whether anything is left under another one.
    pub async fn reseal_some(&self) -> Result<bool, StoreError> {
        self.write(|world, durable: &mut Durable| {
            let key = world.keys.borrow().current;
            let rows = durable.rows.values_mut().map(|row| &mut row.key);
            let jobs = durable.revocations.values_mut().map(|job| &mut job.key);
            let mut old = rows.chain(jobs).filter(|at| **at != key);
            for at in old.by_ref().take(2) {
                *at = key;
            }
            Ok(old.next().is_some())
        })
        .await
    }

    /// Retires every key but the current one, if nothing is sealed with another. The write itself is the barrier:
    /// what was queued before it is written, and the one after it takes the new key.
    pub async fn retire_keys(&self) -> Result<bool, StoreError> {
        self.write(|world, durable| {
            let current = world.keys.borrow().current;
            let rows = durable.rows.values().map(|row| row.key);
            let jobs = durable.revocations.values().map(|job| job.key);
            let spill = world.spill_file.borrow();
            let mut used = rows.chain(jobs).chain(spill.iter().map(|(key, _)| *key));
            let unused = used.all(|key| key == current);
            if unused && !world.witness.borrow().rehearsal {
                world.keys.borrow_mut().oldest = current;
            }
            Ok(unused)
        })
        .await
    }
}
