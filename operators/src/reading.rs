//! A reading on its way, and what the first keyed operator makes of it.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The number of a stream, a (source, topic) of the configuration, in order of their names.
pub type Stream = u16;
/// A series' number on the worker that owns it: dense, never stored, never compared between workers.
pub type SeriesNo = u32;
/// Milliseconds since 1970: the timely timestamp, and the only time below the sources.
pub type Epoch = u64;

/// What tells a series from every other: the bytes of its names, as received.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SeriesName {
    /// The sensor, at most 256 bytes.
    pub sensor: Arc<str>,
    /// The metric, at most 64 bytes.
    pub metric: Arc<str>,
}

/// One finite value of one series at one event time, as a source's worker sends it to the worker that owns the sensor.
///
/// A source's worker numbers the series it meets; the first reading of a number carries the name, so that no name is
/// hashed or copied again (`Dictionary::resolve`). 64 bytes: one cache line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reading {
    /// Event time, microseconds since 1970.
    pub time: i64,
    /// The value; finite.
    pub value: f64,
    /// What makes it the same reading when it is sent twice (docs/semantics.md, "Identity").
    pub identity: u128,
    /// The record's offset.
    pub offset: i64,
    /// The name of `series`, the first time that this sender uses the number.
    pub name: Option<Box<SeriesName>>,
    /// The record's partition.
    pub partition: u32,
    /// The sender's number of the series; after `resolve`, the receiver's.
    pub series: SeriesNo,
    /// The record's stream.
    pub stream: Stream,
    /// Which reading of its record this is.
    pub index: u16,
    /// The sensor's key group.
    pub group: u16,
    /// The worker that decoded it, below 32,768; the top bit says that the event time is in the future (R4).
    sender: u16,
}

impl Reading {
    const FUTURE: u16 = 1 << 15;

    /// Says who sends it, and whether its event time lies beyond its partition's time and the allowed skew.
    pub fn stamp(&mut self, sender: usize, future: bool) {
        debug_assert!(sender < usize::from(Self::FUTURE));
        self.sender = sender as u16 | if future { Self::FUTURE } else { 0 };
    }
    /// The worker that decoded it.
    pub fn sender(&self) -> usize {
        usize::from(self.sender & !Self::FUTURE)
    }
    /// Whether its event time lies in the future.
    pub fn future(&self) -> bool {
        self.sender & Self::FUTURE != 0
    }
    /// A reading of series `series` (the sender's number); `stamp` it before sending.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        (stream, partition, offset, index): (Stream, u32, i64, u16),
        (series, group): (SeriesNo, u16),
        name: Option<Box<SeriesName>>,
        (time, value, identity): (i64, f64, u128),
    ) -> Self {
        Self { time, value, identity, offset, name, partition, series, stream, index, group, sender: 0 }
    }
}

/// A reading that has been judged and is worth keeping: accepted, or archived and flagged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Event time, microseconds since 1970.
    pub time: i64,
    /// The value.
    pub value: f64,
    /// The record's offset.
    pub offset: i64,
    /// The series, by this worker's number.
    pub series: SeriesNo,
    /// The record's partition.
    pub partition: u32,
    /// The record's stream.
    pub stream: Stream,
    /// Which reading of its record this is.
    pub index: u16,
    /// What was found.
    pub verdict: Verdict,
}

/// What the judge found of a reading that is archived. Duplicates and refused values go no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Accepted, at or after its series' clock.
    Accepted,
    /// Accepted, before its series' clock (R6).
    Behind,
    /// Too far before its series' clock: archived, not judged.
    Late,
    /// Beyond its partition's time and the allowed skew: archived, not judged.
    Future,
}

/// What one worker's operators hand on, in order: one epoch's readings, or what happens to series at that epoch.
///
/// Applied in the order of the fields.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The epoch.
    pub epoch: Epoch,
    /// From this epoch on, epoch time is counted (`true`) or not (R7).
    pub counting: Option<bool>,
    /// Series that are forgotten at this epoch, but for their clocks.
    pub forgotten: Vec<SeriesNo>,
    /// Series met for the first time in this epoch (or restored).
    pub created: Vec<SeriesNo>,
    /// The readings in log order.
    pub readings: Vec<Judged>,
    /// Statistics that rules ask for: for each accepted reading that is not behind, those of its metric's plan.
    pub features: Vec<f64>,
}
