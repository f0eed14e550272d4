//! What the workers of one process share: the epoch that is open, who hears, and why to stop.

use crate::epoch_log::EpochLog;
use crate::error::Failure;
use crate::seam::Clock;
use operators::{Epoch, Stream};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// R1: one number for all workers of the process, max(last + 1, process clock), moved on every tick.
pub struct EpochClock {
    clock: Arc<dyn Clock>,
    tick_us: u64,
    /// Epoch time at `start_us` of the monotonic clock.
    base_ms: u64,
    start_us: u64,
    open: AtomicU64,
    next_tick_us: AtomicU64,
    /// Ticks that came more than a second late: after each, the process is deaf until it has caught up.
    late_ticks: AtomicU64,
}

impl EpochClock {
    /// A tick more than this late says that we did not listen meanwhile.
    const LATE_US: u64 = 1_000_000;

    /// Starts above `floor`, the newest epoch in any log. The wall clock is not read again.
    pub fn start(clock: Arc<dyn Clock>, tick_us: u64, floor: Epoch) -> Self {
        let base_ms = clock.wall_ms().max(floor + 1);
        let start_us = clock.monotonic_us();
        Self {
            clock,
            tick_us,
            base_ms,
            start_us,
            open: AtomicU64::new(base_ms),
            next_tick_us: AtomicU64::new(start_us + tick_us),
            late_ticks: AtomicU64::new(0),
        }
    }

    /// The open epoch, after closing it if its tick has come; `full`: or if it is at least a millisecond old.
    pub fn tick(&self, full: bool) -> Epoch {
        let now = self.clock.monotonic_us();
        let due = self.next_tick_us.load(SeqCst);
        let early = full && now + self.tick_us >= due + 1000;
        if (now >= due || early) && self.next_tick_us.compare_exchange(due, now + self.tick_us, SeqCst, SeqCst).is_ok()
        {
            if now > due + Self::LATE_US {
                self.late_ticks.fetch_add(1, SeqCst);
            }
            let time = self.base_ms + (now - self.start_us) / 1000;
            let last = self.open.load(SeqCst);
            self.open.store(time.max(last + 1), SeqCst);
        }
        self.open.load(SeqCst)
    }

    /// How long until the next tick.
    pub fn until_tick(&self) -> Duration {
        Duration::from_micros(self.next_tick_us.load(SeqCst).saturating_sub(self.clock.monotonic_us()).max(100))
    }

    /// How many ticks came too late so far.
    pub fn late_ticks(&self) -> u64 {
        self.late_ticks.load(SeqCst)
    }

    /// Epoch time now, which no epoch need have.
    pub fn now(&self) -> Epoch {
        self.base_ms + (self.clock.monotonic_us() - self.start_us) / 1000
    }
}

/// R7: whether this process hears. Each cause of deafness begins a generation; a worker has heard a generation when
/// each of its partitions has reached the end it had when that began.
#[derive(Default)]
pub struct Hearing {
    generation: AtomicU64,
    heard: Vec<AtomicU64>,
}

impl Hearing {
    /// For so many local workers; the first generation, that of the start, is on.
    pub fn new(workers: usize) -> Self {
        Self { generation: AtomicU64::new(1), heard: (0..workers).map(|_| AtomicU64::new(0)).collect() }
    }
    /// Something kept us from listening.
    pub fn deafen(&self) {
        self.generation.fetch_add(1, SeqCst);
    }
    /// The newest cause.
    pub fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }
    /// A worker's partitions have caught up with this generation.
    pub fn heard(&self, worker: usize, generation: u64) {
        self.heard[worker].fetch_max(generation, SeqCst);
    }
    /// The newest generation that every worker has heard.
    pub fn all_heard(&self) -> u64 {
        self.heard.iter().map(|h| h.load(SeqCst)).min().unwrap_or(0)
    }
}

/// The ends that partitions had after a generation of deafness began.
#[derive(Default)]
pub struct Ends(AtomicU64, Mutex<BTreeMap<(Stream, u32), i64>>);

impl Ends {
    /// The generation that they are of.
    pub fn generation(&self) -> u64 {
        self.0.load(SeqCst)
    }
    /// Asked for after this generation began.
    pub fn publish(&self, generation: u64, ends: BTreeMap<(Stream, u32), i64>) {
        *self.1.lock().unwrap_or_else(PoisonError::into_inner) = ends;
        self.0.store(generation, SeqCst);
    }
    /// All of them.
    pub fn get(&self) -> BTreeMap<(Stream, u32), i64> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Partitions as the watcher of the cluster last saw them: by stream, the first offset of each partition.
#[derive(Default)]
pub struct Discovered {
    version: AtomicU64,
    partitions: Mutex<BTreeMap<(Stream, u32), i64>>,
}

impl Discovered {
    /// A partition that was not there before, and its first offset.
    pub fn add(&self, stream: Stream, partition: u32, first: i64) {
        let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        if partitions.insert((stream, partition), first).is_none() {
            self.version.fetch_add(1, SeqCst);
        }
    }
    /// Whether a partition is known.
    pub fn knows(&self, stream: Stream, partition: u32) -> bool {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&(stream, partition))
    }
    /// All of them, if there are more than at `version`, which is brought up to date.
    pub fn since(&self, version: &mut u64) -> Option<BTreeMap<(Stream, u32), i64>> {
        let now = self.version.load(SeqCst);
        (now != *version).then(|| {
            *version = now;
            self.partitions.lock().unwrap_or_else(PoisonError::into_inner).clone()
        })
    }
}

/// What the workers of one process share.
pub struct Shared {
    /// The open epoch.
    pub epochs: EpochClock,
    /// Where epochs are written down; none while only replaying.
    pub log: Option<Arc<EpochLog>>,
    /// Whether we hear.
    pub hearing: Hearing,
    /// New partitions.
    pub discovered: Discovered,
    /// Asks for a clean end.
    pub stop: Arc<AtomicBool>,
    /// The newest cut that is durable, manifest and all.
    pub committed: AtomicU64,
    /// Workers that have closed their last epoch, and the newest of those.
    pub finished: AtomicUsize,
    /// See `finished`.
    pub last_epoch: AtomicU64,
    /// Ends of partitions, asked for after the newest cause of deafness.
    pub ends: Ends,
    failed: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

impl Shared {
    /// For so many local workers; `stop` is what asks for a clean end.
    pub fn new(epochs: EpochClock, log: Option<Arc<EpochLog>>, workers: usize, stop: Arc<AtomicBool>) -> Self {
        Self {
            epochs,
            log,
            hearing: Hearing::new(workers),
            discovered: Discovered::default(),
            stop,
            committed: AtomicU64::new(0),
            finished: AtomicUsize::new(0),
            last_epoch: AtomicU64::new(0),
            ends: Ends::default(),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }
    /// Something went wrong for good: every worker leaves, and nothing more is written. The first reason counts.
    pub fn fail(&self, failure: Failure) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
        self.failed.store(true, SeqCst);
    }
    /// Whether something went wrong for good.
    pub fn failed(&self) -> bool {
        self.failed.load(SeqCst)
    }
    /// What went wrong.
    pub fn take_failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
