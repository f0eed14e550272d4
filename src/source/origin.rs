//! Where sources come from: Kafka clusters as configured, or whatever a test puts in their place.

use super::kafka::{Asking, KafkaSource};
use super::{Record, Source, SourceError};
use crate::config::{AutoOffsetReset, SourceSettings};
use operators::Stream;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// Called when records have come.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// What can be asked about all streams, and opened once per worker.
pub trait Origin: Send + Sync {
    /// How many partitions a stream has.
    fn partitions(&self, stream: Stream) -> Result<u32, SourceError>;
    /// The oldest and the next offset of a partition.
    fn watermarks(&self, stream: Stream, partition: u32) -> Result<(i64, i64), SourceError>;
    /// Whether a stream that was never read is read from its end rather than from its beginning.
    fn begins_at_end(&self, stream: Stream) -> bool;
    /// A worker's view of all streams.
    fn open(&self, wake: Wake) -> Result<Box<dyn Source>, SourceError>;
    /// Notes whether a stream's cluster answers.
    fn set_up(&self, stream: Stream, up: bool);
}

/// Kafka clusters, as configured.
pub struct KafkaOrigin {
    sources: Vec<Configured>,
    /// By stream: which source, and the topic.
    streams: Vec<(usize, String)>,
    /// Bytes that a consumer may fetch ahead.
    ahead: u64,
}

struct Configured {
    settings: crate::config::KafkaSource,
    asking: Asking,
    up: Arc<AtomicBool>,
    streams: Vec<(String, Stream)>,
}

/// How long a cluster may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

impl KafkaOrigin {
    /// For the configured sources; `streams` are (source, topic), in the order that numbers them. Each consumer, one per
    /// worker and source, may fetch so many bytes ahead.
    pub fn new(
        settings: &BTreeMap<String, SourceSettings>,
        streams: &[(String, String)],
        ahead: u64,
    ) -> Result<Self, SourceError> {
        let mut sources = Vec::new();
        let mut by_stream = BTreeMap::new();
        for (name, SourceSettings::Kafka(settings)) in settings {
            let mine: Vec<(String, Stream)> = streams
                .iter()
                .zip(0..)
                .filter(|((source, _), _)| source == name)
                .map(|((_, topic), stream)| (topic.clone(), stream))
                .collect();
            by_stream.extend(mine.iter().map(|(topic, stream)| (*stream, (sources.len(), topic.clone()))));
            sources.push(Configured {
                settings: settings.clone(),
                asking: Asking::new(settings)?,
                up: Arc::new(AtomicBool::new(true)),
                streams: mine,
            });
        }
        Ok(Self { sources, streams: by_stream.into_values().collect(), ahead })
    }

    fn of(&self, stream: Stream) -> (&Configured, &str) {
        let (source, topic) = &self.streams[usize::from(stream)];
        (&self.sources[*source], topic)
    }
}

impl Origin for KafkaOrigin {
    fn partitions(&self, stream: Stream) -> Result<u32, SourceError> {
        let (source, topic) = self.of(stream);
        source.asking.partitions(topic, TIMEOUT)
    }
    fn watermarks(&self, stream: Stream, partition: u32) -> Result<(i64, i64), SourceError> {
        let (source, topic) = self.of(stream);
        source.asking.watermarks(topic, partition, TIMEOUT)
    }
    fn begins_at_end(&self, stream: Stream) -> bool {
        self.of(stream).0.settings.auto_offset_reset == AutoOffsetReset::Latest
    }
    fn open(&self, wake: Wake) -> Result<Box<dyn Source>, SourceError> {
        let mut sources = Vec::new();
        for source in &self.sources {
            let wake = wake.clone();
            let wake = Box::new(move || wake());
            sources.push(KafkaSource::new(&source.settings, &source.streams, self.ahead, source.up.clone(), wake)?);
        }
        Ok(Box::new(Sources { sources, of_stream: self.streams.iter().map(|(source, _)| *source).collect(), next: 0 }))
    }
    fn set_up(&self, stream: Stream, up: bool) {
        self.of(stream).0.up.store(up, Relaxed);
    }
}

/// Several clusters as one source.
struct Sources {
    sources: Vec<KafkaSource>,
    of_stream: Vec<usize>,
    next: usize,
}

impl Sources {
    fn of(&self, stream: Stream) -> &KafkaSource {
        &self.sources[self.of_stream[usize::from(stream)]]
    }
    fn of_mut(&mut self, stream: Stream) -> &mut KafkaSource {
        &mut self.sources[self.of_stream[usize::from(stream)]]
    }
}

impl Source for Sources {
    fn assign(&mut self, stream: Stream, partition: u32, offset: i64) -> Result<(), SourceError> {
        self.of_mut(stream).assign(stream, partition, offset)
    }
    fn hold(&mut self, stream: Stream, partition: u32) -> Result<(), SourceError> {
        self.of_mut(stream).hold(stream, partition)
    }
    fn poll(&mut self, limit: usize, each: &mut dyn FnMut(Record<'_>)) -> Result<usize, SourceError> {
        // Each takes its turn at being first, so that a busy cluster starves no other.
        let count = self.sources.len();
        let first = self.next;
        self.next = (self.next + 1) % count.max(1);
        let mut taken = 0;
        for n in 0..count {
            taken += self.sources[(first + n) % count].poll(limit - taken, each)?;
            if taken >= limit {
                break;
            }
        }
        Ok(taken)
    }
    fn end(&self, stream: Stream, partition: u32) -> Option<i64> {
        self.of(stream).end(stream, partition)
    }
    fn reached_end(&self, stream: Stream, partition: u32) -> Option<i64> {
        self.of(stream).reached_end(stream, partition)
    }
    fn commit(&mut self, stream: Stream, partition: u32, next: i64) {
        self.of_mut(stream).commit(stream, partition, next);
    }
    fn up(&self) -> bool {
        self.sources.iter().all(KafkaSource::up)
    }
    fn rouse(&mut self, on: bool) -> bool {
        self.sources.iter_mut().for_each(|source| {
            source.rouse(on);
        });
        true
    }
}
