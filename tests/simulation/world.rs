//! The world around one life of the program: its time, its records, and what befalls it.

use crate::clocks::JUMPS_AFTER_US;
use crate::destinations::Destinations;
use crate::disk::Disk;
use crate::memory::Partitions;
use crate::sleeper::Sleeper;
use fastrand::Rng;
use operators::Stream;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use streamgauge::seam::Clock;
use streamgauge::server::readiness::{Readiness, reason};
use streamgauge::source::origin::{Origin, Wake};
use streamgauge::source::{Record, Source, SourceError};

/// What may befall a life.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    /// It is over after so many turns.
    pub crash_after: Option<u64>,
    /// It is over so many turns after it was first seen to wait for the disk.
    pub crash_in_outage: Option<u64>,
    /// It is asked to stop at this time.
    pub stop_at: Option<u64>,
    /// Of 10,000 turns, so many bring an outage of the source.
    pub outages: u32,
    /// Of 10,000 turns, so many find the disk full for a while.
    pub full: u32,
    /// Of 10,000 turns, so many kill a destination.
    pub deaths: u32,
    /// Of 10,000 turns, so many are followed by a pause of seconds.
    pub pauses: u32,
    /// The time that a turn takes, at most.
    pub pace_us: u64,
}

struct Events {
    rng: Rng,
    turns: u64,
    full_until: u64,
    seen: Seen,
}

/// What a look at the readiness after each turn has shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Calls of the disk when the workers had started.
    pub started: Option<u64>,
    /// Since which turn it was not ready because of the disk.
    pub not_ready: Option<u64>,
    /// Whether it is so now.
    pub not_ready_now: bool,
}

pub struct World {
    now: Arc<AtomicU64>,
    /// What time went on by for this process alone, after it was left to its end.
    alone: AtomicU64,
    pub disk: Disk,
    sleeper: Arc<Sleeper>,
    pub destinations: Arc<Destinations>,
    fate: Fate,
    readiness: Arc<Readiness>,
    events: Mutex<Events>,
    /// Until when the source is away.
    away_until: AtomicU64,
    pub stop: Arc<AtomicBool>,
    /// By worker: what wakes its sources.
    wakes: Mutex<BTreeMap<usize, Vec<Wake>>>,
    entered: AtomicU64,
}

impl World {
    pub fn new(now: Arc<AtomicU64>, disk: Disk, destinations: Arc<Destinations>, fate: Fate, seed: u64) -> Arc<Self> {
        let events = Events { rng: Rng::with_seed(seed), turns: 0, full_until: 0, seen: Seen::default() };
        Arc::new(Self {
            now,
            alone: AtomicU64::new(0),
            sleeper: disk.sleeper(),
            disk,
            destinations,
            fate,
            readiness: Arc::default(),
            events: Mutex::new(events),
            away_until: AtomicU64::new(0),
            stop: Arc::new(AtomicBool::new(false)),
            wakes: Mutex::new(BTreeMap::new()),
            entered: AtomicU64::new(0),
        })
    }

    pub fn now(&self) -> u64 {
        self.now.load(SeqCst) + self.alone.load(SeqCst)
    }
    pub fn advance(&self, us: u64) {
        let time = if self.sleeper.over() { &self.alone } else { &*self.now };
        time.fetch_add(us, SeqCst);
    }
    pub fn over(&self) -> bool {
        self.disk.dead()
    }
    /// What the program says of itself.
    pub fn readiness(&self) -> Arc<Readiness> {
        self.readiness.clone()
    }
    pub fn seen(&self) -> Seen {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).seen
    }
    pub fn turns(&self) -> u64 {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).turns
    }

    /// Before a turn: time goes on, things happen. False: this life is over.
    pub fn turn(&self) -> bool {
        if !self.over() {
            self.sleeper.point();
        }
        if self.sleeper.over() {
            return !self.over();
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let events = &mut *events;
        events.turns += 1;
        let problems = self.readiness.problems();
        if problems.iter().all(|problem| problem.reason != reason::STARTING) {
            events.seen.started.get_or_insert(self.disk.calls());
        }
        events.seen.not_ready_now = problems.iter().any(|problem| problem.reason == reason::DISK);
        if events.seen.not_ready_now {
            events.seen.not_ready.get_or_insert(events.turns);
        }
        self.advance(events.rng.u64(0..=self.fate.pace_us));
        let now = self.now();
        // What else befalls the world is its successor's.
        let woken = self.sleeper.since_woken().is_some();
        let mut happens = |of_10_000: u32| !woken && of_10_000 > 0 && events.rng.u32(0..10_000) < of_10_000;
        if happens(self.fate.pauses) {
            self.advance(2_500_000);
        }
        let (away, full, dies) = (happens(self.fate.outages), happens(self.fate.full), happens(self.fate.deaths));
        if away {
            self.away_until.store(now + events.rng.u64(0..4_000_000), SeqCst);
        }
        if full {
            events.full_until = now + events.rng.u64(0..5_000_000);
        }
        self.disk.set_full(now < events.full_until);
        if dies {
            self.destinations.die(now, now + events.rng.u64(0..3_000_000));
        }
        if self.fate.stop_at.is_some_and(|at| now >= at) {
            self.stop.store(true, SeqCst);
        }
        let in_outage = events.seen.not_ready.zip(self.fate.crash_in_outage);
        if self.fate.crash_after.is_some_and(|turns| events.turns >= turns)
            || in_outage.is_some_and(|(since, turns)| events.turns >= since + turns)
        {
            self.disk.kill();
        }
        assert!(events.turns < 3_000_000, "this life has no end");
        !self.over()
    }

    pub fn enter(&self, worker: usize) {
        self.entered.store(worker as u64, SeqCst);
    }

    /// What a timer would do: the source looks on every turn of its worker.
    pub fn wake(&self, worker: usize) {
        let wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.get(&worker).into_iter().flatten().for_each(|wake| wake());
    }
}

/// Time: the monotonic clock is the world's, the wall clock says what it likes at the start of a life.
pub struct SimClock {
    pub world: Arc<World>,
    pub began: u64,
    pub wall_ms: u64,
    /// The machine's clocks may be fast.
    pub rate: u64,
    /// What the wall clock shows from some moment in the middle of the life on.
    pub jumps_to: Option<u64>,
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        let lasted_us = self.world.now() - self.began;
        let jumped = self.jumps_to.filter(|_| lasted_us > JUMPS_AFTER_US);
        jumped.unwrap_or(self.wall_ms) + lasted_us / 1000 * self.rate
    }
    fn monotonic_us(&self) -> u64 {
        self.world.now() * self.rate
    }
}

/// Records that arrive in time.
#[derive(Clone)]
pub struct Arriving {
    pub world: Arc<World>,
    pub partitions: Arc<Partitions>,
    /// By partition and record: when it is there.
    pub arrivals: Arc<BTreeMap<(Stream, u32), Vec<u64>>>,
    /// The most records in one go.
    pub morsel: usize,
    pub seed: u64,
    /// Of 100 polls, so many come back empty or fail.
    pub idle: u32,
}

impl Arriving {
    fn there(&self, key: (Stream, u32)) -> usize {
        let now = self.world.now();
        self.arrivals.get(&key).map_or(0, |arrivals| arrivals.partition_point(|at| *at <= now))
    }
    fn up(&self) -> bool {
        self.world.now() >= self.world.away_until.load(SeqCst)
    }
    fn ask(&self) -> Result<(), SourceError> {
        if self.up() { Ok(()) } else { Err(SourceError::Unavailable("the simulated broker is away".into())) }
    }
    fn first(&self, key: (Stream, u32)) -> i64 {
        self.partitions.get(&key).and_then(|r| r.first()).map_or(0, |r| r.offset)
    }
    fn end(&self, key: (Stream, u32)) -> i64 {
        let there = self.there(key);
        let newest = self.partitions.get(&key).and_then(|r| r.get(there.checked_sub(1)?));
        newest.map_or_else(|| self.first(key), |r| r.offset + 1)
    }
}

impl Origin for Arriving {
    fn partitions(&self, stream: Stream) -> Result<u32, SourceError> {
        self.ask()?;
        Ok(self.partitions.keys().filter(|(s, _)| *s == stream).map(|(_, p)| p + 1).max().unwrap_or(0))
    }
    fn watermarks(&self, stream: Stream, partition: u32) -> Result<(i64, i64), SourceError> {
        self.ask()?;
        Ok((self.first((stream, partition)), self.end((stream, partition))))
    }
    fn begins_at_end(&self, _: Stream) -> bool {
        false
    }
    fn open(&self, wake: Wake) -> Result<Box<dyn Source>, SourceError> {
        let worker = self.world.entered.load(SeqCst);
        let mut wakes = self.world.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        // A stretch that follows another has workers of its own.
        wakes.insert(worker as usize, vec![wake]);
        let rng = Rng::with_seed(self.seed ^ worker << 32);
        Ok(Box::new(ArrivingSource { origin: self.clone(), rng, next: BTreeMap::new() }))
    }
    fn set_up(&self, _: Stream, _: bool) {}
}

struct ArrivingSource {
    origin: Arriving,
    rng: Rng,
    /// By partition: the place of the next record.
    next: BTreeMap<(Stream, u32), usize>,
}

impl Source for ArrivingSource {
    fn assign(&mut self, stream: Stream, partition: u32, offset: i64) -> Result<(), SourceError> {
        let records = self.origin.partitions.get(&(stream, partition));
        let place = records.map_or(0, |r| r.partition_point(|record| record.offset < offset));
        self.next.insert((stream, partition), place);
        Ok(())
    }
    fn hold(&mut self, stream: Stream, partition: u32) -> Result<(), SourceError> {
        self.next.remove(&(stream, partition));
        Ok(())
    }
    fn poll(&mut self, limit: usize, each: &mut dyn FnMut(Record<'_>)) -> Result<usize, SourceError> {
        if self.rng.u32(0..100) < self.origin.idle {
            return if self.rng.bool() { Ok(0) } else { Err(SourceError::Unavailable("a simulated time-out".into())) };
        }
        if !self.origin.up() {
            return Ok(0);
        }
        let open: Vec<(Stream, u32)> =
            self.next.iter().filter(|(key, place)| **place < self.origin.there(**key)).map(|(key, _)| *key).collect();
        let Some(&key) = self.rng.choice(&open) else { return Ok(0) };
        let (place, there) = (self.next[&key], self.origin.there(key));
        let count = self.rng.usize(1..=self.origin.morsel.min(limit).max(1)).min(there - place);
        for record in &self.origin.partitions[&key][place..place + count] {
            each(Record {
                stream: key.0,
                partition: key.1,
                offset: record.offset,
                timestamp: record.timestamp,
                payload: record.payload.as_deref(),
            });
        }
        self.next.insert(key, place + count);
        Ok(count)
    }
    fn end(&self, stream: Stream, partition: u32) -> Option<i64> {
        self.origin.up().then(|| self.origin.end((stream, partition)))
    }
    fn reached_end(&self, _: Stream, _: u32) -> Option<i64> {
        None
    }
    fn commit(&mut self, _: Stream, _: u32, _: i64) {}
    fn up(&self) -> bool {
        self.origin.up()
    }
}
