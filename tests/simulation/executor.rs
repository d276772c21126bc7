//! Virtual time: tasks that sleep and wait for each other, woken in an order that the seed decides.
//!
//! What is due at the same millisecond runs in random order, and everything that takes time takes a random one,
//! so each seed is another interleaving, and the same seed is the same one again.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::rng::Rng;

type TaskId = u64;
type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Who a task belongs to: the world, or one life of the daemon.
pub type Owner = u32;
pub const WORLD: Owner = 0;

thread_local! {
    static SIM: RefCell<Option<Sim>> = const { RefCell::new(None) };
}

/// The simulation of this thread.
pub fn sim() -> Sim {
    running().expect("a simulation runs")
}

/// The same, if there is one.
pub fn running() -> Option<Sim> {
    SIM.with_borrow(Option::clone)
}

#[derive(Clone)]
pub struct Sim(Rc<Core>);

struct Core {
    /// True time, which no clock step changes, in milliseconds.
    now: Cell<u64>,
    rng: RefCell<Rng>,
    queue: RefCell<BinaryHeap<Reverse<(u64, u64, TaskId)>>>,
    tasks: RefCell<BTreeMap<TaskId, Task>>,
    current: Cell<(TaskId, Owner)>,
    spawned: Cell<TaskId>,
}

struct Task {
    owner: Owner,
    /// Absent while it runs.
    work: Option<Work>,
    waker: Waker,
    /// Whether it is in the queue for now, because somebody woke it.
    woken: bool,
}

/// Wakes a task of the simulation that runs.
struct Bell(TaskId);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        sim().ring(self.0);
    }
}

impl Sim {
    /// Makes a simulation, which is this thread's from now on.
    pub fn new(seed: u64) -> Sim {
        let sim = Sim(Rc::new(Core {
            now: Cell::new(0),
            rng: RefCell::new(Rng::new(seed)),
            queue: RefCell::default(),
            tasks: RefCell::default(),
            current: Cell::new((0, WORLD)),
            spawned: Cell::new(0),
        }));
        SIM.set(Some(sim.clone()));
        sim
    }

    /// True time in milliseconds since the simulation began.
    pub fn now(&self) -> u64 {
        self.0.now.get()
    }

    pub fn random<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.0.rng.borrow_mut())
    }

    pub fn chance(&self, probability: f64) -> bool {
        probability > 0.0 && self.random(|rng| rng.chance(probability))
    }

    pub fn spawn(&self, owner: Owner, work: impl Future<Output = ()> + 'static) {
        let id = self.0.spawned.get() + 1;
        self.0.spawned.set(id);
        let task = Task {
            owner,
            work: Some(Box::pin(work)),
            waker: Waker::from(Arc::new(Bell(id))),
            woken: false,
        };
        self.0.tasks.borrow_mut().insert(id, task);
        self.ring(id);
    }

    /// Whose task runs now.
    pub fn owner(&self) -> Owner {
        self.0.current.get().1
    }

    /// Runs the next task that is due at or before `until`. Returns whose it was.
    pub fn step(&self, until: u64) -> Option<Owner> {
        loop {
            let next = self.0.queue.borrow().peek().map(|Reverse(next)| *next);
            let (at, _, id) = next.filter(|(at, ..)| *at <= until)?;
            self.0.queue.borrow_mut().pop();
            let taken = match self.0.tasks.borrow_mut().get_mut(&id) {
                Some(task) => {
                    task.woken = false;
                    let work = task.work.take();
                    work.map(|work| (task.owner, work, task.waker.clone()))
                }
                // Ended, or killed.
                None => None,
            };
            let Some((owner, mut work, waker)) = taken else {
                continue;
            };
            self.0.now.set(self.now().max(at));
            self.0.current.set((id, owner));
            let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
            if polled.is_ready() {
                self.0.tasks.borrow_mut().remove(&id);
            } else if let Some(task) = self.0.tasks.borrow_mut().get_mut(&id) {
                task.work = Some(work);
            }
            return Some(owner);
        }
    }

    /// Drops all tasks of `owner` where they stand.
    pub fn kill(&self, owner: Owner) {
        let mut killed = Vec::new();
        self.0.tasks.borrow_mut().retain(|_, task| {
            let dies = task.owner == owner;
            if dies {
                killed.extend(task.work.take());
            }
            !dies
        });
        drop(killed);
    }

    /// Lets time pass to `until`, if nothing happens before.
    pub fn pass(&self, until: u64) {
        self.0.now.set(self.now().max(until));
    }

    pub fn sleep(&self, length: Duration) -> Sleep {
        let length = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        Sleep {
            until: self.now().saturating_add(length),
            asleep: false,
        }
    }

    fn ring(&self, id: TaskId) {
        let awake = match self.0.tasks.borrow_mut().get_mut(&id) {
            Some(task) => std::mem::replace(&mut task.woken, true),
            None => true,
        };
        if !awake {
            self.at(self.now(), id);
        }
    }

    fn at(&self, at: u64, id: TaskId) {
        let tiebreak = self.random(Rng::next);
        self.0.queue.borrow_mut().push(Reverse((at, tiebreak, id)));
    }
}

pub struct Sleep {
    until: u64,
    asleep: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let sim = sim();
        // Each sleep is at least one turn of the others.
        if self.asleep && sim.now() >= self.until {
            return Poll::Ready(());
        }
        if !self.asleep {
            self.asleep = true;
            sim.at(self.until, sim.0.current.get().0);
        }
        Poll::Pending
    }
}
