//! What happened in a simulation, counted.

/// How often each thing happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub sent: u64,
    pub committed: u64,
    pub answered: u64,
    pub refused_readers: u64,
    pub crashes: u64,
    pub lost_rotations: u64,
    pub saved_by_replay: u64,
    pub held: u64,
    pub superseded: u64,
    pub paused: u64,
    pub keys_retired: u64,
    pub released: u64,
    pub restores: u64,
    pub warned: u64,
}

impl Stats {
    pub fn add(&mut self, other: &Stats) {
        for (sum, more) in self.all().into_iter().zip({ *other }.all()) {
            *sum += *more;
        }
    }

    /// Whether every kind of thing that may happen has happened.
    pub fn is_eventful(mut self) -> bool {
        self.all().iter().all(|count| **count > 0)
    }

    fn all(&mut self) -> [&mut u64; 14] {
        [
            &mut self.sent,
            &mut self.committed,
            &mut self.answered,
            &mut self.refused_readers,
            &mut self.crashes,
            &mut self.lost_rotations,
            &mut self.saved_by_replay,
            &mut self.held,
            &mut self.superseded,
            &mut self.paused,
            &mut self.keys_retired,
            &mut self.released,
            &mut self.restores,
            &mut self.warned,
        ]
    }
}
