//! Who works when: in the program threads of the machine, in the simulation one at a time, as a seed says.
//!
//! Beside the workers there are parts: the checkpointer, the lanes, the dead letters. Each is a state machine with an
//! inbox, and `turn` is all that ever drives it.

use crate::seam::Clock;
use std::io;
use std::time::Duration;
use timely::worker::Worker;

/// A part of the program that works beside the workers.
pub trait Part: Send {
    /// Does the next thing, after waiting for it as long as `patience`; with none it only looks. False: it was the last.
    fn turn(&mut self, patience: Duration) -> bool;
}

/// Works on parts, and says when a worker may go on.
pub trait Crew: Send + Sync {
    /// Works on a part until its last turn.
    fn start(&self, name: &str, part: Box<dyn Part>) -> io::Result<Working>;
    /// Lets the others work for a moment.
    fn pause(&self);
    /// A worker begins its life. What this returns ends with it.
    fn enter(&self, worker: &Worker) -> Box<dyn Turns>;
}

/// A worker's turns.
pub trait Turns {
    /// Lets the worker do what there is to do, or wait for it. False: it is to leave.
    fn step(&mut self, worker: &mut Worker) -> bool;
}

/// A part that is being worked on.
pub struct Working(Box<dyn FnOnce() -> bool + Send + Sync>);

impl Working {
    /// `join` waits for the last turn, and says whether it came without a panic.
    pub fn new(join: impl FnOnce() -> bool + Send + Sync + 'static) -> Self {
        Self(Box::new(join))
    }
    /// Waits for the last turn. False: the part panicked.
    pub fn join(self) -> bool {
        (self.0)()
    }
}

/// Waits until there is something to see, `patience` at most.
pub fn await_seen<T>(
    crew: &dyn Crew,
    clock: &dyn Clock,
    patience: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    let deadline = clock.monotonic_us() + patience.as_micros() as u64;
    loop {
        let seen = look();
        if seen.is_some() || clock.monotonic_us() >= deadline {
            return seen;
        }
        crew.pause();
    }
}

/// A thread of the machine for each part.
pub struct Threads;

/// How long a part on a thread waits in one turn.
const PATIENCE: Duration = Duration::from_secs(1);

impl Crew for Threads {
    fn start(&self, name: &str, mut part: Box<dyn Part>) -> io::Result<Working> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || while part.turn(PATIENCE) {})?;
        Ok(Working::new(move || thread.join().is_ok()))
    }
    fn pause(&self) {
        std::thread::sleep(Duration::from_millis(2));
    }
    fn enter(&self, _: &Worker) -> Box<dyn Turns> {
        Box::new(Unbidden)
    }
}

/// Turns whenever there is something to do.
struct Unbidden;

impl Turns for Unbidden {
    fn step(&mut self, worker: &mut Worker) -> bool {
        worker.step_or_park(Some(Duration::from_millis(100)));
        true
    }
}
