//! The conservation law: what goes into an epoch comes out of it, counted where it happens, none by subtraction.
//!
//! For every partition and completed epoch: records = decoded + dead-lettered + filtered, and readings fanned out of
//! decoded records = accepted + duplicates + late + future + dead-lettered values + nulls skipped.

use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// Counts of one partition; of one epoch on its way to the ledger, of all epochs in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Records read.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Records that were decoded.
    pub decoded: u64,
    /// Records that were refused, whole.
    pub dead_lettered: u64,
    /// Records without a payload.
    pub filtered: u64,
    /// Values that decoded records fanned out into.
    pub readings: u64,
    /// Readings accepted, those behind among them.
    pub accepted: u64,
    /// Readings accepted although older than their series' clock.
    pub behind: u64,
    /// Readings dropped because they had been accepted before.
    pub duplicates: u64,
    /// Readings with a known identity but another value or time.
    pub conflicting: u64,
    /// Readings archived but not judged: too old.
    pub late: u64,
    /// Readings archived but not judged: too new.
    pub future: u64,
    /// Values refused.
    pub dead_lettered_values: u64,
    /// Values that were null, and skipped.
    pub nulls: u64,
}

impl Counts {
    /// Records in, less all that became of them.
    pub fn records_imbalance(&self) -> i64 {
        self.records as i64 - (self.decoded + self.dead_lettered + self.filtered) as i64
    }
    /// Readings in, less all that became of them.
    pub fn readings_imbalance(&self) -> i64 {
        let out = self.accepted + self.duplicates + self.late + self.future + self.dead_lettered_values + self.nulls;
        self.readings as i64 - out as i64
    }
    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.decoded += other.decoded;
        self.dead_lettered += other.dead_lettered;
        self.filtered += other.filtered;
        self.readings += other.readings;
        self.accepted += other.accepted;
        self.behind += other.behind;
        self.duplicates += other.duplicates;
        self.conflicting += other.conflicting;
        self.late += other.late;
        self.future += other.future;
        self.dead_lettered_values += other.dead_lettered_values;
        self.nulls += other.nulls;
    }
}
