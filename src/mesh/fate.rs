//! What is known of the other processes' ends. One that is lost ends this one, too: nothing could be complete any more.

use crate::error::Failure;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How far a peer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// Its workers work, as far as is known.
    Working,
    /// Its workers have ended in order.
    Finished,
    /// It has written all that it had to write, and says goodbye.
    Left,
    /// It has ended before its time, or cannot be reached.
    Lost,
}

type Told = Box<dyn Fn(&Failure) + Send>;

struct Inner {
    peers: Vec<Peer>,
    failure: Option<Failure>,
    told: Vec<Told>,
}

/// The ends of all processes, as far as this one knows.
pub struct Fate {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Fate {
    /// All of so many processes work.
    pub fn new(processes: usize) -> Self {
        let inner = Inner { peers: vec![Peer::Working; processes], failure: None, told: Vec::new() };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer's workers have ended in order.
    pub fn finished(&self, peer: usize) {
        let mut inner = self.lock();
        if inner.peers[peer] == Peer::Working {
            inner.peers[peer] = Peer::Finished;
        }
        self.changed.notify_all();
    }

    /// The peer has said goodbye.
    pub fn left(&self, peer: usize) {
        let mut inner = self.lock();
        if inner.peers[peer] != Peer::Lost {
            inner.peers[peer] = Peer::Left;
        }
        self.changed.notify_all();
    }

    /// The peer's connection ended: a loss, unless it has said goodbye.
    pub fn closed(&self, peer: usize, failure: impl FnOnce() -> Failure) {
        let mut inner = self.lock();
        if inner.peers[peer] == Peer::Left {
            return;
        }
        inner.peers[peer] = Peer::Lost;
        // The first loss is the cause of the others.
        if inner.failure.is_none() {
            let failure = failure();
            inner.told.iter().for_each(|tell| tell(&failure));
            inner.failure = Some(failure);
        }
        self.changed.notify_all();
    }

    /// Tells of the first loss, also if it has been.
    pub fn on_loss(&self, tell: Told) {
        let mut inner = self.lock();
        if let Some(failure) = &inner.failure {
            tell(failure);
        }
        inner.told.push(tell);
    }

    /// The first loss.
    pub fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    /// Waits until it is known how the peer's workers ended, so long at most: whether they ended in order, if known.
    pub fn wait(&self, peer: usize, patience: Duration) -> Option<bool> {
        let end = Instant::now() + patience;
        let mut inner = self.lock();
        loop {
            match inner.peers[peer] {
                Peer::Finished | Peer::Left => return Some(true),
                Peer::Lost => return Some(false),
                Peer::Working => {}
            }
            let left = end.checked_duration_since(Instant::now())?;
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
