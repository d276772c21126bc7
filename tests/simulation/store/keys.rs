//! Which key opens what, and the spill file, whose records no page of the table holds.

use freshd::refresh::time::UnixTime;

use super::{
    Disk, Keys, Page, Place, Retired, RotationError, Store, StoreError, TokenCommit, linger,
};
use crate::world::world;

/// A value whose key is gone would be lost.
pub fn opens(key: u32, what: &str) {
    let world = world();
    if !is_open(&world.keys.borrow(), key) {
        let what = format!("{what} is sealed with key {key}, which was retired");
        world.witness.borrow_mut().broken(what);
    }
}

fn is_open(keys: &Keys, key: u32) -> bool {
    key == keys.current || keys.old.contains(&key)
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
                world.spills.notify_waiters();
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

    pub fn keys(&self) -> Keys {
        world().keys.borrow().clone()
    }

    pub async fn begin_rotation(&self) -> Result<u32, RotationError> {
        linger().await;
        if !self.keys().old.is_empty() {
            return Err(RotationError::UnderWay);
        }
        let world = world();
        let mut keys = world.keys.borrow_mut();
        keys.old = vec![keys.current];
        keys.current += 1;
        Ok(keys.current)
    }

    pub async fn rows_to_reseal(&self) -> Result<u64, StoreError> {
        let current = self.keys().current;
        self.read(|durable| durable.keys().filter(|key| *key != current).count() as u64)
            .await
    }

    /// Seals the next two rows with the current key.
    pub async fn reseal(&self, place: Place, _: UnixTime) -> Result<Page, StoreError> {
        let current = self.keys().current;
        let left = self.read(|durable| durable.keys().any(|key| key != current));
        if !left.await? {
            return Ok(Page {
                next: None,
                rows: 0,
            });
        }
        let rows = self.write(|_, durable| {
            let rows = durable.rows.values_mut().map(|row| &mut row.key);
            let jobs = durable.revocations.values_mut().map(|job| &mut job.key);
            let old = rows.chain(jobs).filter(|at| **at != current);
            Ok(old.take(2).map(|at| *at = current).count() as u64)
        });
        Ok(Page {
            rows: rows.await?,
            next: Some(place),
        })
    }

    /// Retires the old keys, if nothing is sealed with them: as `src/store/rotation.rs`, by what is committed.
    pub async fn retire_keys(&self) -> Result<Retired, RotationError> {
        let current = self.keys().current;
        let rows = self.read(|durable| durable.keys().filter(|key| *key != current).count());
        let rows = rows.await? as u64;
        let world = world();
        let spilled = world.spill_file.borrow();
        let spilled = spilled.iter().filter(|(key, _)| *key != current).count() as u64;
        if rows > 0 || spilled > 0 {
            return Ok(Retired::InUse { rows, spilled });
        }
        world.keys.borrow_mut().old.clear();
        // A write that failed, and came back sealed with it, would be quarantined; nobody was told that it is there.
        world.limbo.borrow_mut().take();
        world.witness.borrow_mut().stats.keys_retired += 1;
        Ok(Retired::Done { unopenable: 0 })
    }
}
