//! Kafka: partitions assigned by offset, records taken in batches.
//!
//! `rd_kafka_consume_batch_queue` costs a little more than half of what `BaseConsumer::poll` does per record (0.33-0.40
//! against 0.55-0.70 CPU-s per million), and that is the largest share of all a reading costs; the safe wrapper has no
//! batches. It is the one place of this program with `unsafe`: foreign calls, which Miri cannot run.

use super::{Record, Source, SourceError};
use crate::config::{KafkaSource as Settings, Properties};
use operators::Stream;
use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The most records that are taken from librdkafka at once.
const BATCH: usize = 2048;

/// What librdkafka says of itself, kept for the sentence in which we fail.
#[derive(Default)]
pub struct Said(Mutex<Option<String>>);

impl Said {
    /// The last thing that went wrong.
    pub fn last(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    fn say(&self, what: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.to_owned());
    }
}

/// The context of our clients: librdkafka's words go to the log, and the last one is remembered.
#[derive(Clone, Default)]
pub struct Context(Arc<Said>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if level as u32 <= RDKafkaLogLevel::Error as u32 {
            self.0.say(message);
        }
        tracing::debug!(facility, message, "librdkafka");
    }
    fn error(&self, error: KafkaError, reason: &str) {
        self.0.say(reason);
        tracing::debug!(%error, reason, "librdkafka");
    }
}
impl ConsumerContext for Context {}

/// The client configuration that every connection of a source shares.
pub fn client_config(bootstrap_servers: &str, properties: &Properties) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", "streamgauge");
    // The delay after a fetch queue was full: its default of a second makes a consumer that keeps up stutter.
    config.set("fetch.queue.backoff.ms", "10");
    config.set("fetch.wait.max.ms", "100");
    config.set("socket.keepalive.enable", "true");
    config.set("reconnect.backoff.max.ms", "5000");
    for (name, value) in properties {
        config.set(name, value.expose());
    }
    config.set("bootstrap.servers", bootstrap_servers);
    config
}

/// A connection that only asks: partitions, offsets, whether the cluster is there.
pub struct Asking {
    consumer: BaseConsumer<Context>,
    said: Arc<Said>,
    bootstrap: String,
}

impl Asking {
    /// Connects lazily.
    pub fn new(settings: &Settings) -> Result<Self, SourceError> {
        let context = Context::default();
        let said = context.0.clone();
        let consumer = client_config(&settings.bootstrap_servers, &settings.properties)
            .set("group.id", &settings.group_id)
            .create_with_context(context)
            .map_err(|e| SourceError::Fatal(sentence(&e)))?;
        Ok(Self { consumer, said, bootstrap: settings.bootstrap_servers.clone() })
    }

    fn client(&self) -> &Client<Context> {
        self.consumer.client()
    }

    /// What went wrong, in a sentence.
    fn explain(&self, what: &str, error: &KafkaError) -> SourceError {
        // Error callbacks are delivered by polling.
        let _ = self.consumer.poll(Duration::ZERO);
        let said = self.said.last().map_or(String::new(), |s| format!(" ({s})"));
        SourceError::Unavailable(format!("{}: {what}: {}{said}", self.bootstrap, sentence(error)))
    }

    /// The partitions of a topic. Fails if the cluster does not answer in time or does not know the topic.
    pub fn partitions(&self, topic: &str, timeout: Duration) -> Result<u32, SourceError> {
        let metadata = self
            .client()
            .fetch_metadata(Some(topic), timeout)
            .map_err(|e| self.explain("cannot be reached or refuses us", &e))?;
        let found = metadata.topics().iter().find(|t| t.name() == topic);
        match found {
            Some(t) if t.error().is_none() && !t.partitions().is_empty() => Ok(t.partitions().len() as u32),
            _ => {
                let mut names: Vec<String> = self
                    .client()
                    .fetch_metadata(None, timeout)
                    .map(|m| m.topics().iter().map(|t| t.name().to_owned()).collect())
                    .unwrap_or_default();
                names.retain(|n| !n.starts_with("__"));
                names.sort_by_key(|n| std::cmp::Reverse((strsim::jaro(n, topic) * 1000.0) as u32));
                let hint = match names.first() {
                    Some(name) => format!("; did you mean `{name}`?"),
                    None => "; it has no topics yet".to_owned(),
                };
                Err(SourceError::Fatal(format!("{} has no topic `{topic}`{hint}", self.bootstrap)))
            }
        }
    }

    /// The oldest and the next offset of a partition.
    pub fn watermarks(&self, topic: &str, partition: u32, timeout: Duration) -> Result<(i64, i64), SourceError> {
        self.client()
            .fetch_watermarks(topic, partition as i32, timeout)
            .map_err(|e| self.explain(&format!("offsets of {topic}/{partition}"), &e))
    }
}

fn sentence(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown) => {
            "no broker can be reached".into()
        }
        Some(RDKafkaErrorCode::OperationTimedOut | RDKafkaErrorCode::TimedOutQueue) => "no answer in time".into(),
        Some(RDKafkaErrorCode::Authentication) => "authentication failed".into(),
        Some(code) => code.to_string(),
        None => error.to_string(),
    }
}

/// One worker's consumer of one configured source.
pub struct KafkaSource {
    queue: BatchQueue,
    streams: BTreeMap<String, Stream>,
    topics: HashMap<Stream, String>,
    /// The end of a partition as its consumer has met it.
    reached: HashMap<(Stream, u32), i64>,
    up: Arc<AtomicBool>,
    /// Whether records that come wake the worker.
    rouses: Arc<AtomicBool>,
}

impl KafkaSource {
    /// A consumer of the topics with these stream numbers, which fetches so many bytes ahead. `wake` is called, from a thread of librdkafka's, when records
    /// have come; `up` is kept by whoever watches the cluster.
    pub fn new(
        settings: &Settings,
        topics: &[(String, Stream)],
        ahead: u64,
        up: Arc<AtomicBool>,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Self, SourceError> {
        let mut config = client_config(&settings.bootstrap_servers, &settings.properties);
        // Bounded memory per worker; a checkpoint's replay refills it in milliseconds. Who sets it knows better.
        for (name, value) in [("queued.max.messages.kbytes", ahead >> 10), ("fetch.max.bytes", ahead)] {
            if !settings.properties.contains_key(name) {
                config.set(name, value.to_string());
            }
        }
        let mut consumer: BaseConsumer<Context> = config
            .set("group.id", &settings.group_id)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .create_with_context(Context::default())
            .map_err(|e| SourceError::Fatal(sentence(&e)))?;
        let rouses = Arc::new(AtomicBool::new(true));
        let asked = rouses.clone();
        consumer.set_nonempty_callback(move || {
            if asked.load(SeqCst) {
                wake();
            }
        });
        let streams = topics.iter().cloned().collect();
        let topics = topics.iter().map(|(topic, stream)| (*stream, topic.clone())).collect();
        Ok(Self { queue: BatchQueue::new(consumer), streams, topics, reached: HashMap::new(), up, rouses })
    }
}

impl Source for KafkaSource {
    fn assign(&mut self, stream: Stream, partition: u32, offset: i64) -> Result<(), SourceError> {
        let Some(topic) = self.topics.get(&stream) else { return Ok(()) };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition as i32, Offset::Offset(offset))
            .and_then(|()| self.queue.consumer.incremental_assign(&list))
            .map_err(|e| SourceError::Fatal(format!("{topic}/{partition}: cannot be assigned: {}", sentence(&e))))
    }

    fn hold(&mut self, stream: Stream, partition: u32) -> Result<(), SourceError> {
        let Some(topic) = self.topics.get(&stream) else { return Ok(()) };
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition as i32);
        self.queue
            .consumer
            .incremental_unassign(&list)
            .map_err(|e| SourceError::Fatal(format!("{topic}/{partition}: cannot be held: {}", sentence(&e))))
    }

    fn poll(&mut self, limit: usize, each: &mut dyn FnMut(Record<'_>)) -> Result<usize, SourceError> {
        let Self { queue, streams, reached, .. } = self;
        let mut failure = None;
        let mut of_topic = None;
        let taken = queue.take(limit, |message| {
            let stream = match of_topic {
                Some((topic, stream)) if topic == message.topic => stream,
                _ => {
                    let Some(&stream) = streams.get(message.topic()) else { return };
                    of_topic = Some((message.topic, stream));
                    stream
                }
            };
            let partition = message.partition as u32;
            match message.result {
                Ok((timestamp, payload)) => {
                    each(Record { stream, partition, offset: message.offset, timestamp, payload });
                }
                Err(RDKafkaErrorCode::PartitionEOF) => {
                    reached.insert((stream, partition), message.offset);
                }
                Err(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                    failure = Some(SourceError::Fatal(format!(
                        "{}/{partition}: the next record to read is no longer there; the topic's retention has \
                         removed it, or the topic was made anew",
                        message.topic()
                    )));
                }
                Err(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::UnknownTopicOrPartition) => {
                    failure = Some(SourceError::Unavailable(format!(
                        "{}/{partition}: {}",
                        message.topic(),
                        message.result.err().map_or_else(String::new, |e| e.to_string())
                    )));
                }
                // Transport errors and the like: librdkafka goes on by itself.
                Err(error) => tracing::debug!(topic = message.topic(), partition, %error, "kafka: passing error"),
            }
        });
        failure.map_or(Ok(taken), Err)
    }

    fn end(&self, stream: Stream, partition: u32) -> Option<i64> {
        self.topics.get(&stream).and_then(|topic| self.queue.end(topic, partition as i32))
    }

    fn reached_end(&self, stream: Stream, partition: u32) -> Option<i64> {
        self.reached.get(&(stream, partition)).copied()
    }

    fn commit(&mut self, stream: Stream, partition: u32, next: i64) {
        let Some(topic) = self.topics.get(&stream) else { return };
        let mut list = TopicPartitionList::new();
        let committed = list
            .add_partition_offset(topic, partition as i32, Offset::Offset(next))
            .and_then(|()| self.queue.consumer.commit(&list, CommitMode::Async));
        if let Err(error) = committed {
            tracing::debug!(topic, partition, %error, "kafka: offset was not committed; only lag tools miss it");
        }
    }

    fn up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// librdkafka tells of records once, when there were none before: who turns this on looks once more.
    fn rouse(&mut self, on: bool) -> bool {
        self.rouses.store(on, SeqCst);
        true
    }
}

/// A message, borrowed from librdkafka's buffer.
struct Message<'a> {
    /// Tells topics apart without their names.
    topic: *mut rdkafka_sys::rd_kafka_topic_t,
    partition: i32,
    offset: i64,
    result: Result<(Option<i64>, Option<&'a [u8]>), RDKafkaErrorCode>,
}

#[allow(unsafe_code)]
impl Message<'_> {
    /// The topic's name, which is looked at once for a run of messages.
    fn topic(&self) -> &str {
        if self.topic.is_null() {
            return "";
        }
        // SAFETY: the message has not been given back, so its topic is alive; the name is a string that ends in NUL and
        // lives as long as the topic.
        unsafe { std::ffi::CStr::from_ptr(rdkafka_sys::rd_kafka_topic_name(self.topic)) }.to_str().unwrap_or("")
    }
}

/// A consumer and its queue; the queue goes first.
struct BatchQueue {
    queue: *mut rdkafka_sys::rd_kafka_queue_t,
    buffer: Vec<*mut rdkafka_sys::rd_kafka_message_t>,
    consumer: BaseConsumer<Context>,
}

#[allow(unsafe_code)]
impl BatchQueue {
    fn new(consumer: BaseConsumer<Context>) -> Self {
        // SAFETY: the client is alive; the returned reference is ours until `drop` gives it back.
        let queue = unsafe { rdkafka_sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        Self { queue, buffer: vec![std::ptr::null_mut(); BATCH], consumer }
    }

    /// Hands over at most `limit` messages that are there, without waiting; they are given back after each call.
    fn take(&mut self, limit: usize, mut each: impl FnMut(Message<'_>)) -> usize {
        let limit = limit.min(self.buffer.len());
        // SAFETY: the queue is alive and the buffer has room for `limit` pointers.
        let taken =
            unsafe { rdkafka_sys::rd_kafka_consume_batch_queue(self.queue, 0, self.buffer.as_mut_ptr(), limit) };
        let taken = usize::try_from(taken).unwrap_or(0);
        for &message in &self.buffer[..taken] {
            // SAFETY: librdkafka handed us `taken` valid messages, ours until destroyed below; the payload has `len`
            // bytes.
            unsafe {
                let m = &*message;
                let result = if m.err == rdkafka_sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                    let mut kind = rdkafka_sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
                    let timestamp = rdkafka_sys::rd_kafka_message_timestamp(message, &mut kind);
                    let payload = (!m.payload.is_null())
                        .then(|| std::slice::from_raw_parts(m.payload.cast::<u8>().cast_const(), m.len));
                    Ok(((timestamp >= 0).then_some(timestamp), payload))
                } else {
                    Err(RDKafkaErrorCode::from(m.err))
                };
                each(Message { topic: m.rkt, partition: m.partition, offset: m.offset, result });
                rdkafka_sys::rd_kafka_message_destroy(message);
            }
        }
        taken
    }

    /// The partition's end as of the last fetch.
    fn end(&self, topic: &str, partition: i32) -> Option<i64> {
        let topic = std::ffi::CString::new(topic).ok()?;
        let (mut low, mut high) = (-1, -1);
        // SAFETY: the client is alive, the name ends in NUL, and the two numbers outlive the call.
        let error = unsafe {
            rdkafka_sys::rd_kafka_get_watermark_offsets(
                self.consumer.client().native_ptr(),
                topic.as_ptr(),
                partition,
                &mut low,
                &mut high,
            )
        };
        (error == rdkafka_sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
    }
}

#[allow(unsafe_code)]
impl Drop for BatchQueue {
    fn drop(&mut self) {
        // SAFETY: the reference from `rd_kafka_queue_get_consumer`, given back once; the consumer is dropped after it.
        unsafe { rdkafka_sys::rd_kafka_queue_destroy(self.queue) };
    }
}
