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
///
/// While one partition is waited for, the others would go on filling memory: beyond `limit` bytes they are held, and read
/// on from where they stood once they are wanted, or once there is room.
pub struct EarlyRecords {
    partitions: BTreeMap<(Stream, u32), Waiting>,
    bytes: u64,
    limit: u64,
}

#[derive(Default)]
struct Waiting {
    records: VecDeque<Early>,
    /// The offset after the last record that was read.
    next: i64,
    held: bool,
}

impl Early {
    fn bytes(&self) -> u64 {
        (size_of::<Early>() + self.payload.as_ref().map_or(0, |payload| payload.len())) as u64
    }
}

impl EarlyRecords {
    /// That holds partitions which nobody waits for beyond so many bytes.
    pub fn new(limit: u64) -> Self {
        Self { partitions: BTreeMap::new(), bytes: 0, limit }
    }

    /// Reads more, for want of records of this partition.
    pub fn poll(
        &mut self,
        source: &mut dyn Source,
        awaited: (Stream, u32),
        limit: usize,
    ) -> Result<usize, SourceError> {
        let room = self.bytes <= self.limit / 2;
        self.release(source, |key| room || key == awaited)?;
        let Self { partitions, bytes, .. } = self;
        let taken = source.poll(limit, &mut |record| {
            let waiting = partitions.entry((record.stream, record.partition)).or_default();
            // What a source had already handed out when it was told to hold, and hands out once more.
            if record.offset < waiting.next {
                return;
            }
            waiting.next = record.offset + 1;
            let early =
                Early { offset: record.offset, timestamp: record.timestamp, payload: record.payload.map(Into::into) };
            *bytes += early.bytes();
            waiting.records.push_back(early);
        })?;
        if self.bytes > self.limit {
            for (key, waiting) in &mut self.partitions {
                if *key != awaited && !waiting.held {
                    source.hold(key.0, key.1)?;
                    waiting.held = true;
                }
            }
        }
        Ok(taken)
    }

    /// Reads on in the partitions that are held.
    pub fn release_all(&mut self, source: &mut dyn Source) -> Result<(), SourceError> {
        self.release(source, |_| true)
    }

    fn release(&mut self, source: &mut dyn Source, which: impl Fn((Stream, u32)) -> bool) -> Result<(), SourceError> {
        for (key, waiting) in &mut self.partitions {
            if waiting.held && which(*key) {
                source.assign(key.0, key.1, waiting.next)?;
                waiting.held = false;
            }
        }
        Ok(())
    }

    /// Whether the whole of a range is here.
    ///
    /// # Errors
    /// It never will be: the records that are there are not those that the log counted.
    pub fn holds(&self, range: &Range) -> Result<bool, SourceError> {
        let there = self.partitions.get(&(range.stream, range.partition)).map(|waiting| &waiting.records);
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
        if let Some(Waiting { records, .. }) = self.partitions.get_mut(&(stream, partition)) {
            for early in records.drain(..count.min(records.len())) {
                self.bytes -= early.bytes();
                let Early { offset, timestamp, payload } = early;
                each(Record { stream, partition, offset, timestamp, payload: payload.as_deref() });
            }
        }
    }

    /// Takes what is left, `limit` at most: after the replay it is simply what comes next.
    pub fn take_rest(&mut self, limit: usize, each: &mut dyn FnMut(Record<'_>)) -> usize {
        let mut taken = 0;
        if self.bytes == 0 {
            return taken;
        }
        let waiting = |(key, waiting): (&(Stream, u32), &Waiting)| (*key, waiting.records.len());
        let lengths: Vec<((Stream, u32), usize)> = self.partitions.iter().map(waiting).collect();
        for ((stream, partition), length) in lengths {
            let count = length.min(limit - taken);
            self.take(stream, partition, count, each);
            taken += count;
        }
        taken
    }

    /// Whether nothing of a partition waits here.
    pub fn has_none(&self, stream: Stream, partition: u32) -> bool {
        self.partitions.get(&(stream, partition)).is_none_or(|waiting| waiting.records.is_empty())
    }
}

/// A worker's part of the log, in order of epochs.
pub type Script = VecDeque<(Epoch, Line)>;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    /// Three partitions of records of 1,000 bytes; the first yields only when nothing else can.
    struct Uneven {
        next: BTreeMap<u32, i64>,
        assigned: BTreeMap<u32, bool>,
        holds: usize,
    }

    impl Source for Uneven {
        fn assign(&mut self, _: Stream, partition: u32, offset: i64) -> Result<(), SourceError> {
            assert_ne!(self.assigned.insert(partition, true), Some(true), "assigned twice");
            self.next.insert(partition, offset);
            Ok(())
        }
        fn hold(&mut self, _: Stream, partition: u32) -> Result<(), SourceError> {
            self.holds += 1;
            assert_eq!(self.assigned.insert(partition, false), Some(true), "held twice");
            Ok(())
        }
        fn poll(&mut self, limit: usize, each: &mut dyn FnMut(Record<'_>)) -> Result<usize, SourceError> {
            let open = self.assigned.iter().rev().find(|(p, assigned)| **assigned && self.next[p] < 1_000);
            let Some((&partition, _)) = open else { return Ok(0) };
            let next = self.next.entry(partition).or_default();
            let count = limit.min(10).min(1_000 - *next as usize);
            for _ in 0..count {
                let payload = vec![partition as u8; 1_000];
                each(Record { stream: 0, partition, offset: *next, timestamp: None, payload: Some(&payload) });
                *next += 1;
            }
            Ok(count)
        }
        fn end(&self, _: Stream, _: u32) -> Option<i64> {
            None
        }
        fn reached_end(&self, _: Stream, _: u32) -> Option<i64> {
            None
        }
        fn commit(&mut self, _: Stream, _: u32, _: i64) {}
        fn up(&self) -> bool {
            true
        }
    }

    #[test]
    fn partitions_that_nobody_waits_for_are_held_and_nothing_of_them_is_lost() {
        let mut source = Uneven { next: BTreeMap::new(), assigned: BTreeMap::new(), holds: 0 };
        (0..3).for_each(|partition| source.assign(0, partition, 0).unwrap());
        let mut early = EarlyRecords::new(100_000);
        let (mut longest, mut taken) = (0, BTreeMap::<u32, Vec<i64>>::new());
        // Ranges of a hundred records, in turn.
        for next in (100..=1_000).step_by(100) {
            for partition in 0..3 {
                let range = Range { stream: 0, partition, next, records: 100 };
                while !early.holds(&range).unwrap() {
                    assert!(early.poll(&mut source, (0, partition), 2_048).unwrap() > 0, "{range:?} never comes");
                    longest = longest.max(early.bytes);
                }
                early.take(0, partition, 100, &mut |record| {
                    assert_eq!(record.payload, Some(&[partition as u8; 1_000][..]));
                    taken.entry(partition).or_default().push(record.offset);
                });
            }
        }
        early.release_all(&mut source).unwrap();
        assert!(source.assigned.values().all(|assigned| *assigned));
        assert_eq!(early.bytes, 0);
        assert!(taken.into_values().all(|offsets| offsets == (0..1_000).collect::<Vec<_>>()));
        assert!(source.holds > 10, "held {} times", source.holds);
        // The limit, and the hundred that were waited for while it was reached.
        assert!(longest < 100_000 + 120 * 1_100, "{longest} bytes");
    }

    #[test]
    fn what_is_left_after_a_replay_comes_next_and_in_order() {
        let mut source = Uneven { next: BTreeMap::new(), assigned: BTreeMap::new(), holds: 0 };
        (0..2).for_each(|partition| source.assign(0, partition, 0).unwrap());
        let mut early = EarlyRecords::new(1 << 20);
        for _ in 0..30 {
            early.poll(&mut source, (0, 0), 10).unwrap();
        }
        assert!(early.has_none(0, 0) && !early.has_none(0, 1));
        let mut offsets = Vec::new();
        while early.take_rest(7, &mut |record| offsets.push(record.offset)) > 0 {}
        assert_eq!(offsets, (0..300).collect::<Vec<_>>());
        assert!(early.has_none(0, 1));
    }
}
