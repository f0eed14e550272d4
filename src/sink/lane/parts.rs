//! What a lane is made of: what it is told and says, and its queues.

use crate::config::WhenFull;
use crate::sink::segment::SegmentRef;
use crate::sink::{Held, Item, LaneState, Position, SinkError, Traits};
use operators::Epoch;
use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

/// What a lane is told when it is made.
pub struct Settings {
    /// The sink's name.
    pub sink: String,
    /// This process.
    pub process: usize,
    /// This run of the cluster.
    pub term: u64,
    /// Workers of this process.
    pub workers: usize,
    /// Checkpoints that may be restored: the newest, and older copies in case it is damaged.
    pub keep: usize,
    /// Bytes that may wait in all.
    pub capacity: u64,
    /// Bytes of these that may wait in memory.
    pub memory: u64,
    /// What happens then.
    pub when_full: WhenFull,
    /// What the sink is like.
    pub traits: Traits,
    /// Where segment files lie.
    pub dir: PathBuf,
    /// Segments that the checkpoint lists for other processes, whatever their names: one that was no more has left them.
    pub elsewhere: Arc<BTreeSet<String>>,
    /// The newest epoch that runs before this one have written down; 0 where there were none. They cannot have sent
    /// anything beyond it.
    pub written: Epoch,
    /// Of the back-off, and of nothing else.
    pub seed: u64,
}

/// What happened.
#[derive(Debug)]
pub enum Event<T> {
    /// A batch arrives.
    Push(T),
    /// A worker has pushed everything below the cut, and nothing at or above it.
    Cut(usize, Epoch),
    /// A worker will push nothing more.
    End(usize),
    /// The sink is connected; where the destination stands, if it can tell.
    Connected(Option<Position>),
    /// What the lane asked for has been done: written, or probed.
    Done,
    /// It could not be done.
    Failed(SinkError),
    /// The destination has made everything below the cut durable.
    CutTaken(Epoch, Held),
    /// The checkpoint at this cut is durable.
    Committed(Epoch),
    /// No more waiting for the destination: keep what is left for the next start.
    GiveUp,
    /// Time has passed.
    Tick,
}

/// What is to be done. At most one of `Connect`, `Write`, `Probe`, `TakeCut` and `Commit` is under way at a time.
#[derive(Debug)]
pub enum Action<T> {
    /// Connect, announce the term, and ask where the destination stands.
    Connect,
    /// Write these batches, in order.
    Write(Vec<T>),
    /// See whether the connection still stands.
    Probe,
    /// Make everything written durable, as the destination's part of the checkpoint at this cut.
    TakeCut(Epoch),
    /// The checkpoint at this cut is durable: show what belongs to it.
    Commit(Epoch),
    /// Hand this to the checkpoint.
    Report(LaneState),
    /// There is no room for this batch: set it aside as dead letters.
    Shed(T),
    /// All workers have ended and nothing waits, but so many entries that were given up.
    Drained(u64),
}

#[derive(Debug, PartialEq)]
pub(super) enum Link {
    Down {
        retry_at: u64,
    },
    Connecting,
    Idle,
    Writing,
    Probing,
    Cutting,
    Committing(Epoch),
    /// Not to be mended by waiting.
    Stopped,
    /// Somebody else writes there. What waits goes on waiting, until a person has decided.
    Foreign,
}

pub(super) struct Waiting<T> {
    pub item: T,
    pub since: u64,
}

/// A queue that knows its size.
pub(super) struct Queue<T> {
    pub items: VecDeque<Waiting<T>>,
    pub bytes: u64,
    pub count: u64,
}

impl<T: Item> Queue<T> {
    pub fn new() -> Self {
        Self { items: VecDeque::new(), bytes: 0, count: 0 }
    }
    pub fn push_back(&mut self, waiting: Waiting<T>) {
        self.bytes += waiting.item.bytes();
        self.count += waiting.item.count();
        self.items.push_back(waiting);
    }
    pub fn push_front(&mut self, waiting: Waiting<T>) {
        self.bytes += waiting.item.bytes();
        self.count += waiting.item.count();
        self.items.push_front(waiting);
    }
    pub fn pop_front(&mut self) -> Option<Waiting<T>> {
        let waiting = self.items.pop_front()?;
        self.bytes -= waiting.item.bytes();
        self.count -= waiting.item.count();
        Some(waiting)
    }
    pub fn pop_back(&mut self) -> Option<Waiting<T>> {
        let waiting = self.items.pop_back()?;
        self.bytes -= waiting.item.bytes();
        self.count -= waiting.item.count();
        Some(waiting)
    }
    pub fn below(&self, cut: Epoch) -> impl Iterator<Item = &T> {
        self.items.iter().map(|w| &w.item).filter(move |item| item.epoch() < cut)
    }
}

pub(super) struct Spilled {
    pub segment: SegmentRef,
    pub count: u64,
    pub since: u64,
    pub synced: bool,
    /// Whether a sync was tried, and failed.
    pub sync_tried: bool,
}

/// What a checkpoint refers to.
pub(super) struct Kept {
    pub cut: Epoch,
    pub names: Vec<String>,
    pub committed: bool,
}

/// How a lane is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Entries that wait, wherever.
    pub waiting: u64,
    /// Bytes that wait in memory.
    pub memory: u64,
    /// Bytes that wait in segment files.
    pub spilled: u64,
    /// Since when the oldest waits, microseconds of the monotonic clock.
    pub oldest: Option<u64>,
    /// Whether the destination answered last.
    pub up: bool,
    /// Writes and connections tried again.
    pub retries: u64,
    /// Entries refused for good as whole batches.
    pub refused: u64,
}
