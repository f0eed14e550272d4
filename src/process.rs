//! What the workers of one process share: the epoch that is open, who hears, and why to stop.

use crate::epoch_log::EpochLog;
use crate::error::Failure;
use crate::outage::Disk;
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
        Self::at(clock, tick_us, base_ms)
    }

    /// Starts as one of several processes: where process 0's wall clock showed `wall_ms`, epoch time was `epoch`, for all.
    /// `ahead_ms` says how far process 0's wall clock is ahead of ours. The wall clock is not read again.
    pub fn joined(
        clock: Arc<dyn Clock>,
        tick_us: u64,
        floor: Epoch,
        (wall_ms, epoch): (u64, Epoch),
        ahead_ms: i64,
    ) -> Self {
        let since = i128::from(clock.wall_ms()) + i128::from(ahead_ms) - i128::from(wall_ms);
        let base_ms = (i128::from(epoch) + since.max(0)).min(i128::from(u64::MAX >> 1)) as u64;
        Self::at(clock, tick_us, base_ms.max(floor + 1))
    }

    fn at(clock: Arc<dyn Clock>, tick_us: u64, base_ms: Epoch) -> Self {
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
            // In one step: a worker that is interrupted here must not move it back behind another's tick.
            let _ = self.open.fetch_update(SeqCst, SeqCst, |last| Some(time.max(last + 1)));
        }
        self.open.load(SeqCst)
    }

    /// How long until the next tick.
    pub fn until_tick(&self) -> Duration {
        Duration::from_micros(self.next_tick_us.load(SeqCst).saturating_sub(self.clock.monotonic_us()).max(100))
    }

    /// How long this run has lasted so far, milliseconds.
    pub fn ran_ms(&self) -> u64 {
        (self.clock.monotonic_us() - self.start_us) / 1000
    }

    /// How many ticks came too late so far.
    pub fn late_ticks(&self) -> u64 {
        self.late_ticks.load(SeqCst)
    }

    /// Microseconds since some moment of this process, for figures.
    pub fn monotonic_us(&self) -> u64 {
        self.clock.monotonic_us()
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
    /// How the disk of the data directory is doing.
    pub disk: Arc<Disk>,
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
    pub fn new(
        epochs: EpochClock,
        log: Option<Arc<EpochLog>>,
        disk: Arc<Disk>,
        workers: usize,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self {
            epochs,
            log,
            disk,
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
    /// Whether every worker of this process has closed its last epoch, and that is written down.
    pub fn all_finished(&self) -> bool {
        let closed = self.finished.load(SeqCst) >= self.hearing.heard.len();
        closed && self.log.as_ref().is_none_or(|log| log.all_durable())
    }
    /// Whether the epoch log takes nothing now: then no epoch is closed.
    pub fn log_holds(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.holds())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A host: its wall clock is ahead of true time, and shows what it shows.
    struct Host {
        ahead_ms: i64,
        true_ms: Arc<AtomicU64>,
    }

    impl Clock for Host {
        fn wall_ms(&self) -> u64 {
            self.true_ms.load(SeqCst).saturating_add_signed(self.ahead_ms)
        }
        fn monotonic_us(&self) -> u64 {
            self.true_ms.load(SeqCst) * 1000
        }
    }

    #[test]
    fn joined_processes_have_one_clock_that_of_the_fastest_whenever_each_starts() {
        for (aheads, floor) in
            [([0, 0, 0], 0), ([0, 800, -150], 0), ([300, 0, 900], 0), ([0, 800, 0], 2_000_000_000_000)]
        {
            let true_ms = Arc::new(AtomicU64::new(1_700_000_000_000));
            let fastest = aheads.iter().max().expect("some");
            // As the plan has it: process 0's wall clock, and the highest process clock of that moment.
            let wall = true_ms.load(SeqCst).saturating_add_signed(aheads[0]);
            let joined = (wall, (wall.saturating_add_signed(fastest - aheads[0])).max(floor + 1));
            let clocks: Vec<EpochClock> = (aheads.iter())
                .map(|ahead_ms| {
                    // Each takes its time to load the checkpoint.
                    true_ms.fetch_add(700, SeqCst);
                    let host = Host { ahead_ms: *ahead_ms, true_ms: true_ms.clone() };
                    EpochClock::joined(Arc::new(host), 20_000, floor, joined, aheads[0] - ahead_ms)
                })
                .collect();
            true_ms.fetch_add(40, SeqCst);
            let now: Vec<Epoch> = clocks.iter().map(EpochClock::now).collect();
            assert_eq!(now, vec![joined.1 + 3 * 700 + 40; 3], "{aheads:?} {floor}");
            assert!(clocks.iter().all(|clock| clock.tick(false) > floor));
        }
    }
}
