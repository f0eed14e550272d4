//! Partitions in memory, handed out in seeded morsels: what stands in for Kafka where Kafka is not the subject.

use operators::Stream;
use std::collections::BTreeMap;
use std::sync::Arc;
use streamgauge::source::origin::{Origin, Wake};
use streamgauge::source::{Record, Source, SourceError};

/// A record of a partition; its offset is its own, for gaps are normal.
#[derive(Clone, Debug)]
pub struct MemoryRecord {
    pub offset: i64,
    pub timestamp: Option<i64>,
    pub payload: Option<Vec<u8>>,
}

/// By stream and partition, in order of offset.
pub type Partitions = BTreeMap<(Stream, u32), Vec<MemoryRecord>>;

/// The whole of it, and how it is handed out.
#[derive(Clone)]
pub struct Memory {
    pub partitions: Arc<Partitions>,
    pub seed: u64,
    /// The most records in one go.
    pub morsel: usize,
}

impl Origin for Memory {
    fn partitions(&self, stream: Stream) -> Result<u32, SourceError> {
        Ok(self.partitions.keys().filter(|(s, _)| *s == stream).map(|(_, p)| p + 1).max().unwrap_or(0))
    }
    fn watermarks(&self, stream: Stream, partition: u32) -> Result<(i64, i64), SourceError> {
        let records = self.partitions.get(&(stream, partition));
        let low = records.and_then(|r| r.first()).map_or(0, |r| r.offset);
        let high = records.and_then(|r| r.last()).map_or(0, |r| r.offset + 1);
        Ok((low, high))
    }
    fn begins_at_end(&self, _: Stream) -> bool {
        false
    }
    fn open(&self, _: Wake) -> Result<Box<dyn Source>, SourceError> {
        let random = fastrand::Rng::with_seed(self.seed);
        Ok(Box::new(MemorySource { memory: self.clone(), random, next: BTreeMap::new() }))
    }
    fn set_up(&self, _: Stream, _: bool) {}
}

struct MemorySource {
    memory: Memory,
    random: fastrand::Rng,
    /// By partition: the place of the next record.
    next: BTreeMap<(Stream, u32), usize>,
}

impl Source for MemorySource {
    fn assign(&mut self, stream: Stream, partition: u32, offset: i64) -> Result<(), SourceError> {
        let records = self.memory.partitions.get(&(stream, partition));
        let place = records.map_or(0, |r| r.partition_point(|record| record.offset < offset));
        self.next.insert((stream, partition), place);
        Ok(())
    }
    fn hold(&mut self, stream: Stream, partition: u32) -> Result<(), SourceError> {
        self.next.remove(&(stream, partition));
        Ok(())
    }
    fn poll(&mut self, limit: usize, each: &mut dyn FnMut(Record<'_>)) -> Result<usize, SourceError> {
        let open: Vec<(Stream, u32)> = self
            .next
            .iter()
            .filter(|(key, place)| self.memory.partitions.get(key).is_some_and(|r| **place < r.len()))
            .map(|(key, _)| *key)
            .collect();
        let Some(&key) = self.random.choice(&open) else { return Ok(0) };
        let place = self.next.entry(key).or_default();
        let count = self.random.usize(0..=self.memory.morsel.min(limit));
        let mut taken = 0;
        for record in self.memory.partitions[&key].iter().skip(*place).take(count) {
            each(Record {
                stream: key.0,
                partition: key.1,
                offset: record.offset,
                timestamp: record.timestamp,
                payload: record.payload.as_deref(),
            });
            taken += 1;
        }
        *place += taken;
        Ok(taken.max(1))
    }
    fn end(&self, stream: Stream, partition: u32) -> Option<i64> {
        self.memory.watermarks(stream, partition).ok().map(|(_, high)| high)
    }
    fn reached_end(&self, _: Stream, _: u32) -> Option<i64> {
        None
    }
    fn commit(&mut self, _: Stream, _: u32, _: i64) {}
    fn up(&self) -> bool {
        true
    }
}
