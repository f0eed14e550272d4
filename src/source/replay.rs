//! What a worker reads again: the ranges that the log gives to its partitions, and the control lines between them.

use super::{Record, Source, SourceError};
use crate::epoch_log::{Control, Range};
use operators::{Epoch, Stream};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// A line of the log that is replayed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Line {
    /// Records of an epoch.
    Range(Range),
    /// What else changes an answer.
    Control(Control),
}

/// A record that came before it was wanted.
pub struct Early {
    /// Its offset.
    pub offset: i64,
    timestamp: Option<i64>,
    payload: Option<Box<[u8]>>,
}

/// Records that have been read but belong to a later line, by partition.
#[derive(Default)]
pub struct EarlyRecords {
    partitions: BTreeMap<(Stream, u32), VecDeque<Early>>,
}

impl EarlyRecords {
    /// Reads more.
    pub fn poll(&mut self, source: &mut dyn Source, limit: usize) -> Result<usize, SourceError> {
        source.poll(limit, &mut |record| {
            self.partitions.entry((record.stream, record.partition)).or_default().push_back(Early {
                offset: record.offset,
                timestamp: record.timestamp,
                payload: record.payload.map(Into::into),
            });
        })
    }

    /// Whether the whole of a range is here.
    ///
    /// # Errors
    /// It never will be: the records that are there are not those that the log counted.
    pub fn holds(&self, range: &Range) -> Result<bool, SourceError> {
        let there = self.partitions.get(&(range.stream, range.partition));
        let wanted = range.records as usize;
        let last = there.and_then(|r| r.get(wanted.checked_sub(1)?));
        match last {
            Some(last) if last.offset == range.next - 1 => Ok(true),
            None if there.and_then(|r| r.back()).is_none_or(|newest| newest.offset < range.next - 1) => Ok(false),
            _ => {
                let found = there.map_or(0, |r| r.iter().filter(|e| e.offset < range.next).count());
                Err(SourceError::Fatal(format!(
                    "partition {}: the epoch log counted {} records before offset {}, and now there are {found}; records \
                     that were read have been removed or changed",
                    range.partition, range.records, range.next
                )))
            }
        }
    }

    /// Takes the first `count` records of a partition.
    pub fn take(&mut self, stream: Stream, partition: u32, count: usize, each: &mut dyn FnMut(Record<'_>)) {
        if let Some(records) = self.partitions.get_mut(&(stream, partition)) {
            for Early { offset, timestamp, payload } in records.drain(..count.min(records.len())) {
                each(Record { stream, partition, offset, timestamp, payload: payload.as_deref() });
            }
        }
    }

    /// Takes what is left, `limit` at most: after the replay it is simply what comes next.
    pub fn take_rest(&mut self, limit: usize, each: &mut dyn FnMut(Record<'_>)) -> usize {
        let mut taken = 0;
        self.partitions.retain(|_, records| !records.is_empty());
        let keys: Vec<(Stream, u32)> = self.partitions.keys().copied().collect();
        for (stream, partition) in keys {
            let count = self.partitions.get(&(stream, partition)).map_or(0, VecDeque::len).min(limit - taken);
            self.take(stream, partition, count, each);
            taken += count;
        }
        taken
    }

    /// Whether nothing of a partition waits here.
    pub fn has_none(&self, stream: Stream, partition: u32) -> bool {
        self.partitions.get(&(stream, partition)).is_none_or(VecDeque::is_empty)
    }
}

/// A worker's part of the log, in order of epochs.
pub type Script = VecDeque<(Epoch, Line)>;
