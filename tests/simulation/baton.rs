//! Who works when: one worker or part at a time, as the seed says.
//!
//! Workers are real timely workers on threads of their own; whoever has the baton works, everybody else waits. Parts
//! have no thread: whoever passes the baton on gives them their turns. Time stands still within a turn.

use crate::hash;
use crate::world::World;
use fastrand::Rng;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use streamgauge::crew::{Crew, Part, Turns, Working};
use timely::worker::Worker;

struct State {
    rng: Rng,
    parts: Vec<Option<Box<dyn Part>>>,
    /// Workers that are in; none for one that has left.
    workers: Vec<bool>,
    entered: usize,
    turn: Option<usize>,
    trace: u64,
    /// A part that panicked.
    panicked: bool,
}

/// For one life of the program.
pub struct Baton {
    state: Mutex<State>,
    passed: Condvar,
    pub world: Arc<World>,
}

impl Baton {
    pub fn new(seed: u64, world: Arc<World>) -> Arc<Self> {
        let state = State {
            rng: Rng::with_seed(seed),
            parts: Vec::new(),
            workers: Vec::new(),
            entered: 0,
            turn: None,
            trace: 0,
            panicked: false,
        };
        Arc::new(Self { state: Mutex::new(state), passed: Condvar::new(), world })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A hash over who had which turn, when.
    pub fn trace(&self) -> u64 {
        self.state().trace
    }
    pub fn panicked(&self) -> bool {
        self.state().panicked
    }
    /// Lets go of parts that are left: they hold what the life held.
    pub fn clear(&self) {
        let parts = std::mem::take(&mut self.state().parts);
        drop(parts);
    }

    /// Gives turns until it is a worker's; with no worker left, one turn.
    fn pass(&self, state: &mut State) {
        loop {
            if !self.world.turn() {
                state.turn = None;
                break;
            }
            let workers: Vec<usize> = (0..state.workers.len()).filter(|w| state.workers[*w]).collect();
            let parts: Vec<usize> = (0..state.parts.len()).filter(|p| state.parts[*p].is_some()).collect();
            // Workers have more to do.
            let lot = state.rng.usize(0..(workers.len() * 3 + parts.len()).max(1));
            let who = if lot < workers.len() * 3 { workers[lot / 3] } else { 100 + lot - workers.len() * 3 };
            for number in [who as u64, self.world.now()] {
                state.trace = hash(state.trace, &number.to_le_bytes());
            }
            if who < 100 {
                state.turn = Some(who);
                break;
            }
            if let Some(part) = parts.get(who - 100).copied()
                && let Some(mut working) = state.parts[part].take()
            {
                match catch_unwind(AssertUnwindSafe(|| (working.turn(Duration::ZERO), working))) {
                    Ok((true, working)) => state.parts[part] = Some(working),
                    Ok((false, _)) => {}
                    Err(_) => state.panicked = true,
                }
            }
            if workers.is_empty() {
                break;
            }
        }
        self.passed.notify_all();
    }

    /// Waits for a worker's turn. False: this life is over.
    fn wait(&self, mut state: MutexGuard<'_, State>, worker: usize) -> bool {
        while state.turn != Some(worker) {
            if self.world.over() {
                return false;
            }
            state = self.passed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

/// The crew that a run is given.
pub struct OneAtATime(pub Arc<Baton>);

impl Crew for OneAtATime {
    fn start(&self, _: &str, part: Box<dyn Part>) -> io::Result<Working> {
        let mut state = self.0.state();
        let number = state.parts.len();
        state.parts.push(Some(part));
        let baton = self.0.clone();
        Ok(Working::new(move || {
            loop {
                let mut state = baton.state();
                if state.parts.get(number).is_none_or(Option::is_none) || baton.world.over() {
                    return !state.panicked;
                }
                baton.pass(&mut state);
            }
        }))
    }

    fn pause(&self) {
        if self.0.world.over() {
            // Nobody works any more; whoever waits is to wait in vain.
            self.0.world.advance(1_000_000);
            return;
        }
        let mut state = self.0.state();
        self.0.pass(&mut state);
    }

    fn enter(&self, worker: &Worker) -> Box<dyn Turns> {
        let (index, peers) = (worker.index(), worker.peers());
        let mut state = self.0.state();
        if state.entered == 0 {
            state.workers = vec![true; peers];
            state.turn = None;
        }
        state.entered += 1;
        if state.entered == peers {
            self.0.pass(&mut state);
        }
        self.0.wait(state, index);
        self.0.world.enter(index);
        Box::new(BatonTurns { baton: self.0.clone(), worker: index })
    }
}

struct BatonTurns {
    baton: Arc<Baton>,
    worker: usize,
}

impl Turns for BatonTurns {
    fn step(&mut self, worker: &mut Worker) -> bool {
        if self.baton.world.over() {
            return false;
        }
        self.baton.world.wake(self.worker);
        worker.step();
        let mut state = self.baton.state();
        self.baton.pass(&mut state);
        self.baton.wait(state, self.worker)
    }
}

impl Drop for BatonTurns {
    fn drop(&mut self) {
        let mut state = self.baton.state();
        state.workers[self.worker] = false;
        if state.workers.iter().all(|there| !there) {
            (state.entered, state.turn) = (0, None);
        } else if state.turn == Some(self.worker) {
            self.baton.pass(&mut state);
        }
    }
}
