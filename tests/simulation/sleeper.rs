//! A process that can be paused, as by SIGSTOP: at any turn, and before any call of the disk.
//!
//! Its threads wait where they are, with all that they have open, until it is told to go on. Whoever tells it waits
//! meanwhile: there is always one process that does something.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Another process goes on for a while, when this one has got so far.
pub struct Wake {
    pub at: u64,
    pub whom: Arc<Sleeper>,
    pub points: u64,
}

#[derive(Default)]
struct State {
    /// Turns and calls of the disk so far.
    points: u64,
    /// It is paused there, or later: not before it has a term. A slow starter is no zombie.
    pauses_at: Option<u64>,
    has_term: bool,
    paused: bool,
    /// Points when it was paused first.
    woken_at: Option<u64>,
    /// Nobody waits for it any more: it has ended, or is to end.
    over: bool,
    wakes: Vec<Wake>,
}

/// For one life of the program.
#[derive(Default)]
pub struct Sleeper {
    state: Mutex<State>,
    changed: Condvar,
}

impl Sleeper {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It begins paused.
    pub fn holds(&self) {
        self.state().paused = true;
    }
    /// Others that go on while this one is in the middle of something.
    pub fn wakes(&self, wakes: Vec<Wake>) {
        self.state().wakes = wakes;
    }
    /// The process has created the folder of its term.
    pub fn has_term(&self) {
        self.state().has_term = true;
    }
    /// Points since it was woken up; none where it was not.
    pub fn since_woken(&self) -> Option<u64> {
        let state = self.state();
        state.woken_at.map(|at| state.points - at)
    }
    /// Whether nobody waits for it any more.
    pub fn over(&self) -> bool {
        self.state().over
    }

    /// Where a process may be paused, and others go on.
    pub fn point(&self) {
        let mut state = self.state();
        if state.over {
            return;
        }
        state.points += 1;
        let points = state.points;
        let due: Vec<Wake> = state.wakes.extract_if(.., |wake| wake.at <= points).collect();
        drop(state);
        for wake in due {
            let _ = wake.whom.go_on(wake.points);
        }
        let mut state = self.state();
        if state.has_term && state.pauses_at.is_some_and(|at| points >= at) {
            state.paused = true;
            self.changed.notify_all();
            self.wait(state);
        }
    }

    /// The process begins, as soon as it is to.
    pub fn begins(&self) {
        self.wait(self.state());
    }

    fn wait(&self, mut state: MutexGuard<'_, State>) {
        while state.paused {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets it go on for so many points, at least. False: it has ended.
    pub fn go_on(&self, points: u64) -> bool {
        let mut state = self.state();
        if state.paused && state.points > 0 {
            let now = state.points;
            state.woken_at.get_or_insert(now);
        }
        state.pauses_at = Some(state.points + points);
        state.paused = false;
        self.changed.notify_all();
        while !state.paused && !state.over {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.over
    }

    /// Nobody waits for it any more: where it is paused, it goes to its end at once.
    pub fn leave(&self) {
        let mut state = self.state();
        (state.over, state.paused) = (true, false);
        self.changed.notify_all();
    }
}
