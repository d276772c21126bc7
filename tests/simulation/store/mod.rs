//! A model of the store: what is durable, and the verbs of `src/store/` on it.
//!
//! Each verb takes a while, is committed at one instant, and answers a while later; a crash before that instant
//! loses it whole, a crash after it loses only the answer.

mod durable;
mod keys;
mod verbs;

use std::time::Duration;

pub use freshd::store::{
    Attemptable, By, Cas, Failure, Import, Imported, Keys, Page, Place, ProviderState, Restamper,
    Retired, RevocationId, RevocationJob, RotationError, StoreError, TokenCommit,
};

pub use durable::{Durable, Row};

use freshd::refresh::time::UnixTime;

use crate::executor::sim;
use crate::rng::Rng;
use crate::world::{World, world};

/// The store of the world that runs, as one life of the daemon has opened it.
#[derive(Clone)]
pub struct Store {
    written_at: Option<UnixTime>,
}

/// What the disk does with writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    Sound,
    /// No room: no mark is taken, and nothing else either.
    Full,
    /// There is room, but writes fail, some of them only after they have reached the disk.
    Failing,
}

fn latency(rng: &mut Rng) -> Duration {
    if rng.chance(0.01) {
        rng.millis(0, 900)
    } else {
        rng.millis(0, 6)
    }
}

async fn linger() {
    let length = sim().random(latency);
    crate::time::sleep(length).await;
}

impl Store {
    pub fn open(world: &World) -> Store {
        Store {
            written_at: world.durable.borrow().written_at,
        }
    }

    pub(crate) async fn read<T>(&self, read: impl FnOnce(&Durable) -> T) -> Result<T, StoreError> {
        linger().await;
        let read = read(&world().durable.borrow());
        linger().await;
        Ok(read)
    }

    pub(crate) async fn write<T>(
        &self,
        write: impl FnOnce(&World, &mut Durable) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        linger().await;
        let written = commit(&world(), write);
        linger().await;
        written
    }
}

fn commit<T>(
    world: &World,
    write: impl FnOnce(&World, &mut Durable) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    match world.disk.get() {
        Disk::Sound => {
            world.limbo.borrow_mut().take();
            let mut durable = world.durable.borrow_mut();
            durable.written_at = Some(world.wall());
            write(world, &mut durable)
        }
        Disk::Full => Err(StoreError::Unavailable),
        Disk::Failing => {
            // The write may be in the log although it failed, and then a crash brings it back.
            if world.sim.chance(0.3) {
                let mut limbo = world.durable.borrow().clone();
                limbo.written_at = Some(world.wall());
                world.witness.borrow_mut().rehearsal = true;
                let written = write(world, &mut limbo);
                world.witness.borrow_mut().rehearsal = false;
                if written.is_ok() {
                    *world.limbo.borrow_mut() = Some(limbo);
                }
            }
            Err(StoreError::Unavailable)
        }
    }
}
