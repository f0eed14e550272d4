//! A plant of simulated sensors: the same seed makes the same bytes, and the truth about them is known.
//!
//! Readings are made in order of event time, one *slot* after the other. A slot is sent when it happens, or delayed
//! (disorder), or spoiled (malformed), or swallowed (a silent sensor); some are sent a second time. What is yet to be
//! sent waits in a heap by its moment of sending, so that a plant of any length needs memory only for the delays.
//!
//! Integers throughout, no libm and no hash map: the bytes depend on nothing but the `Plant`. Values are hundredths.

mod encode;
pub mod faults;
pub mod signal;
pub mod truth;

use encode::Encoder;
use faults::{Active, FaultKind, FaultPlan, Planner};
use signal::{METRICS_MAX, Metric};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
pub use truth::{Malformed, Truth};
use xxhash_rust::xxh3::xxh3_64;

/// A sensor whose clock is skewed is this far ahead.
pub const SKEW_MS: i64 = 86_400_000;

/// What to simulate. All of it is part of the answer: two equal plants send equal bytes.
#[derive(Clone, Debug)]
pub struct Plant {
    /// Where all chance comes from.
    pub seed: u64,
    /// How many sensors; each reports every metric.
    pub sensors: u32,
    /// What they measure.
    pub metrics: Vec<Metric>,
    /// How many readings to make, duplicates not counted; none: endless.
    pub readings: Option<u64>,
    /// Readings per second of event time, all sensors together.
    pub rate: u64,
    /// The event time of the first reading, milliseconds since 1970.
    pub start_ms: i64,
    /// How many partitions to spread them over.
    pub partitions: u32,
    /// Which share of the readings is sent twice, and within what time.
    pub duplicates: Share,
    /// Which share of the readings is sent late, and by how much at most.
    pub disorder: Share,
    /// Which share of the messages is malformed.
    pub malformed: f64,
    /// Which share of the readings lies beyond its metric's limit.
    pub beyond: f64,
    /// Whether a message carries all metrics of its sensor, or one reading.
    pub wide: bool,
    /// Whether a sensor measures one of the metrics (they take turns), or all of them.
    pub one_metric: bool,
    /// Which share of the messages is the first sensor's alone; 0: no more than any other's.
    pub hot: f64,
    /// Whether messages have no key and go to the partitions in turn; else all of a sensor's go to one.
    pub unkeyed: bool,
    /// The faults to plant.
    pub faults: Option<FaultPlan>,
    /// What the truth about accepted, late and duplicate readings assumes of the configuration.
    pub judged: JudgedBy,
    /// Whether the truth lists every series.
    pub per_series: bool,
}

/// A share of the readings, and the time within which it happens to them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// From 0 to 1.
    pub share: f64,
    /// At most this much later.
    pub within_ms: i64,
}

/// The part of a configuration that decides what becomes of a reading.
#[derive(Clone, Copy, Debug)]
pub struct JudgedBy {
    /// `event_time.allowed_lateness`.
    pub allowed_lateness_ms: i64,
    /// `dedup.window`.
    pub dedup_window_ms: i64,
}

impl Default for Plant {
    fn default() -> Self {
        Self {
            seed: 7,
            sensors: 200,
            metrics: Metric::SIX.to_vec(),
            readings: None,
            rate: 1_000,
            start_ms: 1_700_000_000_000,
            partitions: 8,
            duplicates: Share { share: 0.05, within_ms: 60_000 },
            disorder: Share { share: 0.01, within_ms: 10_000 },
            malformed: 0.001,
            beyond: 0.005,
            wide: false,
            one_metric: false,
            hot: 0.0,
            unkeyed: false,
            faults: None,
            judged: JudgedBy { allowed_lateness_ms: 30_000, dedup_window_ms: 600_000 },
            per_series: false,
        }
    }
}

impl Plant {
    /// Messages per round, in which every series is read once.
    fn slots_per_round(&self) -> u64 {
        u64::from(self.sensors) * self.slots_per_sensor()
    }
    /// Messages per round of one sensor.
    fn slots_per_sensor(&self) -> u64 {
        if self.wide || self.one_metric { 1 } else { self.metrics.len() as u64 }
    }
    /// How many of the first so many slots are the hot sensor's; they are spread evenly.
    fn hot_slots(&self, slots: u64) -> u64 {
        (u128::from(slots) * (self.hot * 1e6) as u128 / 1_000_000) as u64
    }
    /// Whose slot it is, and of which metric; none: of all.
    fn slot_of(&self, slot: u64) -> (u32, Option<u8>) {
        let hot = self.hot_slots(slot);
        let is_hot = self.hot_slots(slot + 1) > hot;
        let (sensor, round) = if is_hot {
            (0, hot)
        } else {
            // Who has slots of its own does not also take turns: its times would meet.
            let first = u64::from(self.hot > 0.0);
            let (others, slot) = (u64::from(self.sensors) - first, slot - hot);
            ((first + slot % others) as u32, slot / others)
        };
        let metrics = self.metrics.len() as u64;
        let turn = if self.one_metric { u64::from(sensor) } else { round };
        (sensor, (!self.wide).then(|| (turn % metrics) as u8))
    }
    /// The metrics of a sensor.
    fn metrics_of(&self, sensor: u32) -> std::ops::Range<usize> {
        let metrics = self.metrics.len();
        if self.one_metric { sensor as usize % metrics..sensor as usize % metrics + 1 } else { 0..metrics }
    }
    /// Readings in one message.
    fn readings_per_slot(&self) -> u64 {
        if self.wide { self.metrics.len() as u64 } else { 1 }
    }
    /// Event time of so many messages, in milliseconds. Exact for any rate, so that it does not drift.
    fn slots_ms(&self, slots: u64) -> i64 {
        (u128::from(slots) * u128::from(self.readings_per_slot()) * 1_000 / u128::from(self.rate.max(1))) as i64
    }
    /// Event time between two readings of one series, in milliseconds.
    pub fn interval_ms(&self) -> i64 {
        self.slots_ms(self.slots_per_round())
    }
    /// The same for the hot sensor's series, at the least.
    fn hot_interval_ms(&self) -> i64 {
        if self.hot > 0.0 { self.slots_ms((1.0 / self.hot) as u64 * self.slots_per_sensor()) } else { i64::MAX }
    }
    /// Event time from the first reading to the last, in milliseconds, if it ends (silences make it a little longer).
    pub fn span_ms(&self) -> Option<i64> {
        Some(self.slots_ms(self.readings? / self.readings_per_slot().max(1)))
    }
    /// Why it cannot be simulated, if so.
    pub fn check(&self) -> Result<(), String> {
        let shares = [
            ("duplicates", self.duplicates.share),
            ("disorder", self.disorder.share),
            ("malformed", self.malformed),
            ("beyond", self.beyond),
            ("hot", self.hot),
        ];
        for (name, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("{name} is a share of the readings, from 0 to 1 (0.05 is 5 %), not {share}"));
            }
        }
        if self.hot > 0.0 && self.sensors < 2 {
            return Err("a hot sensor is one among others: take two sensors at least".into());
        }
        if self.sensors == 0 || self.metrics.is_empty() || self.rate == 0 || self.partitions == 0 {
            return Err("a plant needs at least one sensor, metric, partition and reading per second".into());
        }
        if self.metrics.len() > METRICS_MAX {
            return Err(format!("at most {METRICS_MAX} metrics, each once"));
        }
        if self.wide && self.one_metric {
            return Err("a wide message carries all metrics of its sensor; one metric each is for narrow ones".into());
        }
        // Times are written in milliseconds, and a series' times must differ: they may be its readings' identity.
        if self.interval_ms().min(self.hot_interval_ms()) < 1 {
            return Err(format!(
                "{} sensors cannot make {} readings/s whose times differ by a millisecond; take more sensors or a \
                 lower rate",
                self.sensors, self.rate
            ));
        }
        Ok(())
    }
    /// The partition of a sensor's messages.
    pub fn partition_of(&self, sensor: &[u8]) -> u32 {
        (xxh3_64(sensor) % u64::from(self.partitions)) as u32
    }
}

/// A message to send, borrowed from the simulator's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Where it goes.
    pub partition: u32,
    /// When it is sent, by the plant's time, milliseconds since 1970; never decreasing.
    pub timestamp_ms: i64,
    /// The sensor; none where messages are not keyed.
    pub key: Option<&'a [u8]>,
    /// The JSON, or what has become of it.
    pub payload: &'a [u8],
}

/// A message that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedMessage {
    /// Where it goes.
    pub partition: u32,
    /// When it is sent, milliseconds since 1970.
    pub timestamp_ms: i64,
    /// The sensor; none where messages are not keyed.
    pub key: Option<Vec<u8>>,
    /// The bytes.
    pub payload: Vec<u8>,
}

/// How a message comes out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Make {
    Well,
    Spoiled(Malformed),
}

/// A message that has been decided and not been sent. Ordered by its moment of sending, then as decided.
struct Pending {
    at_ms: i64,
    seq: u64,
    /// What its reading's id is made of.
    slot: u64,
    event_ms: i64,
    sensor: u32,
    /// The fault whose mark it bears.
    fault: Option<u32>,
    /// In hundredths, by number of metric; a narrow message uses one.
    values: [i32; METRICS_MAX],
    /// Its one metric; a wide message has them all.
    metric: Option<u8>,
    /// The metrics whose reading the series accepted when it was first sent, as bits.
    accepted: u8,
    copy: bool,
    make: Make,
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}
impl Eq for Pending {}
impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.seq).cmp(&(other.at_ms, other.seq))
    }
}

/// Chances in 2^64, so that a roll is one comparison.
struct Odds {
    duplicate: u64,
    delay: u64,
    malformed: u64,
    beyond: u64,
}

fn odds(share: f64) -> u64 {
    // Saturates: a share of 1 is (but for one roll in 2^64) always.
    (share * 2f64.powi(64)) as u64
}

struct Sensor {
    name: Box<[u8]>,
    partition: u32,
    active: Option<Active>,
}

/// Sends a plant's messages, in order, and keeps the truth about those it has handed out.
pub struct Simulator {
    plant: Plant,
    odds: Odds,
    rng: fastrand::Rng,
    sensors: Vec<Sensor>,
    planner: Option<Planner>,
    /// The next slot, and how many messages have been decided.
    slot: u64,
    made: u64,
    /// How many to decide.
    limit: u64,
    pending: BinaryHeap<Reverse<Pending>>,
    seq: u64,
    sent: u64,
    encoder: Encoder,
    truth: Truth,
}

impl Simulator {
    /// A plant at its beginning; refuses one that cannot be.
    pub fn new(plant: Plant) -> Result<Self, String> {
        plant.check()?;
        let sensors = (0..plant.sensors)
            .map(|n| {
                let name = truth::sensor_text(n).into_bytes().into_boxed_slice();
                let partition = plant.partition_of(&name);
                Sensor { name, partition, active: None }
            })
            .collect();
        let odds = Odds {
            duplicate: odds(plant.duplicates.share),
            delay: odds(plant.disorder.share),
            malformed: odds(plant.malformed),
            beyond: odds(plant.beyond),
        };
        let limit = plant.readings.map_or(u64::MAX, |n| n.div_ceil(plant.readings_per_slot()));
        Ok(Self {
            odds,
            rng: fastrand::Rng::with_seed(plant.seed),
            sensors,
            planner: plant.faults.clone().map(|plan| Planner::new(plan, &plant)),
            slot: 0,
            made: 0,
            limit,
            pending: BinaryHeap::new(),
            seq: 0,
            sent: 0,
            encoder: Encoder::new(plant.seed, &plant.metrics),
            truth: Truth::new(&plant),
            plant,
        })
    }

    /// The plant.
    pub fn plant(&self) -> &Plant {
        &self.plant
    }
    /// The truth about what `next_message` has handed out.
    pub fn truth(&self) -> &Truth {
        &self.truth
    }
    /// Consumes it for its truth, with the lists in it made up.
    pub fn into_truth(self) -> Truth {
        self.truth.finish(&self.plant)
    }
    /// The messages as an iterator that owns them, for tests and files.
    pub fn messages(&mut self) -> impl Iterator<Item = OwnedMessage> + '_ {
        std::iter::from_fn(move || {
            self.next_message().map(|m| OwnedMessage {
                partition: m.partition,
                timestamp_ms: m.timestamp_ms,
                key: m.key.map(<[u8]>::to_vec),
                payload: m.payload.to_vec(),
            })
        })
    }

    /// When the next message is due at the earliest, by the plant's time; none at its end.
    pub fn next_at(&self) -> Option<i64> {
        let waiting = self.pending.peek().map(|Reverse(p)| p.at_ms);
        let slot = (self.made < self.limit).then(|| self.slot_ms(self.slot));
        match (waiting, slot) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The next message in order of sending.
    pub fn next_message(&mut self) -> Option<Message<'_>> {
        loop {
            let slot_ms = (self.made < self.limit).then(|| self.slot_ms(self.slot));
            let due = match (self.pending.peek(), slot_ms) {
                (Some(Reverse(p)), Some(slot_ms)) => p.at_ms <= slot_ms,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => return None,
            };
            let next = if due { self.pending.pop().map(|Reverse(p)| p) } else { self.take_slot() };
            if let Some(next) = next {
                return Some(self.send(next));
            }
        }
    }

    fn slot_ms(&self, slot: u64) -> i64 {
        self.plant.start_ms + self.plant.slots_ms(slot)
    }

    /// Decides the next slot: none if nothing is sent now.
    fn take_slot(&mut self) -> Option<Pending> {
        let slot = self.slot;
        self.slot += 1;
        let event_ms = self.slot_ms(slot);
        if let Some(planner) = &mut self.planner
            && planner.due(event_ms)
        {
            planner.plant(event_ms, &mut self.rng, &self.plant, &mut self.truth, &mut self.sensors);
        }
        let (sensor, metric) = self.plant.slot_of(slot);
        let state = &mut self.sensors[sensor as usize];
        if state.active.is_some_and(|a| event_ms >= a.to_ms) {
            state.active = None;
        }
        let active = state.active.filter(|a| a.metric.is_none() || metric.is_none() || a.metric == metric);
        if let Some(Active { kind: FaultKind::Silence, index, .. }) = active {
            self.truth.swallowed(index);
            return None;
        }
        self.made += 1;
        let make = if self.rng.u64(..) < self.odds.malformed {
            Make::Spoiled(Malformed::ALL[self.rng.usize(..Malformed::ALL.len())])
        } else {
            Make::Well
        };
        let mut values = [0; METRICS_MAX];
        let range = metric.map_or(0..self.plant.metrics.len(), |m| usize::from(m)..usize::from(m) + 1);
        for m in range {
            let hit = active.filter(|a| a.metric.is_none_or(|one| usize::from(one) == m));
            values[m] = self.value(sensor, m, event_ms, hit);
        }
        let seq = self.next_seq();
        let skew = if matches!(active, Some(Active { kind: FaultKind::SkewedClock, .. })) { SKEW_MS } else { 0 };
        let mut pending = Pending {
            at_ms: event_ms,
            seq,
            slot,
            event_ms: event_ms + skew,
            sensor,
            fault: active.map(|a| a.index),
            values,
            metric,
            accepted: 0,
            copy: false,
            make,
        };
        if make == Make::Well && self.rng.u64(..) < self.odds.delay && self.plant.disorder.within_ms > 0 {
            pending.at_ms += self.rng.i64(1..=self.plant.disorder.within_ms);
            self.pending.push(Reverse(pending));
            return None;
        }
        Some(pending)
    }

    /// One value in hundredths. An undisturbed one is never beyond its metric's limit.
    fn value(&mut self, sensor: u32, m: usize, event_ms: i64, fault: Option<Active>) -> i32 {
        let metric = self.plant.metrics[m];
        let series = u64::from(sensor) * METRICS_MAX as u64 + m as u64;
        let calm = metric.calm(self.plant.seed, series, event_ms, &mut self.rng);
        match fault {
            Some(Active { kind: FaultKind::Spike, .. }) => metric.past_limit(10, 30, &mut self.rng),
            Some(Active { kind: FaultKind::Stuck, from_ms, .. }) => {
                // The same draw each time: what it read when it got stuck.
                metric.calm(self.plant.seed, series, from_ms, &mut fastrand::Rng::with_seed(series))
            }
            Some(Active { kind: FaultKind::Drift, from_ms, to_ms, .. }) => {
                let target = i64::from(metric.limit) * if metric.above { 21 } else { 19 } / 20;
                let (gone, length) = (event_ms - from_ms, (to_ms - from_ms).max(1));
                calm + ((target - i64::from(calm)) * gone / length) as i32
            }
            _ if self.rng.u64(..) < self.odds.beyond => metric.past_limit(0, 10, &mut self.rng),
            _ => calm,
        }
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    fn send(&mut self, mut p: Pending) -> Message<'_> {
        let metrics = p.metric.map_or(0..self.plant.metrics.len() as u8, |m| m..m + 1);
        // The value that reads "ERR", where that is how it is spoiled.
        let err = match p.make {
            Make::Spoiled(Malformed::ErrValue) => Some(metrics.start + self.rng.u8(..metrics.len() as u8)),
            _ => None,
        };
        self.encoder.message(&p, &self.sensors[p.sensor as usize].name, metrics.clone(), err, &mut self.rng);
        self.truth.record(p.at_ms);
        match p.make {
            Make::Spoiled(kind) => self.truth.malformed(kind, self.encoder.missing()),
            Make::Well => {}
        }
        if p.make == Make::Well || (err.is_some() && self.plant.wide) {
            for m in metrics.filter(|m| Some(*m) != err) {
                let first = p.accepted & (1 << m) != 0;
                let skewed = p.event_ms > p.at_ms;
                let accepted =
                    self.truth.reading(&self.plant, p.sensor, m, p.event_ms, p.copy.then_some(first), skewed);
                p.accepted |= u8::from(accepted) << m;
                if !p.copy {
                    self.truth.value(&self.plant, p.sensor, m, p.values[usize::from(m)], p.event_ms, (p.fault, skewed));
                }
            }
        }
        let partition = if self.plant.unkeyed {
            (self.sent % u64::from(self.plant.partitions)) as u32
        } else {
            self.sensors[p.sensor as usize].partition
        };
        self.sent += 1;
        let (sensor, timestamp_ms) = (p.sensor as usize, p.at_ms);
        let again = !p.copy && p.make == Make::Well && self.plant.duplicates.within_ms > 0;
        if again && self.rng.u64(..) < self.odds.duplicate {
            let at_ms = p.at_ms + self.rng.i64(1..=self.plant.duplicates.within_ms);
            let seq = self.next_seq();
            self.pending.push(Reverse(Pending { at_ms, seq, copy: true, ..p }));
        }
        let key = (!self.plant.unkeyed).then_some(&*self.sensors[sensor].name);
        Message { partition, timestamp_ms, key, payload: self.encoder.bytes() }
    }
}

#[cfg(test)]
mod tests;
