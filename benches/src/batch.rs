//! librdkafka's batch consumer and nothing above it: what every program here reads Kafka with.
//!
//! It is a second copy of the calls in `src/source/kafka.rs` on purpose: the floor must not move with the product.

use anyhow::{Context as _, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka_sys::rd_kafka_resp_err_t as Code;
use std::time::Duration;

/// The most records that are taken at once.
const BATCH: usize = 2048;
/// How long librdkafka waits for a batch to fill, in milliseconds.
const WAIT_MS: i32 = 10;
/// How long the broker has to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The partitions of one thread, and where they end.
pub struct Batches {
    queue: *mut rdkafka_sys::rd_kafka_queue_t,
    buffer: Vec<*mut rdkafka_sys::rd_kafka_message_t>,
    _consumer: BaseConsumer,
    /// By partition: records that are left until the end as it was at the start; none for other threads' partitions.
    ends: Vec<Option<i64>>,
    open: usize,
}

// SAFETY: librdkafka's queues may be used from any thread, and the buffer's pointers are used within one call only.
#[allow(unsafe_code)]
unsafe impl Send for Batches {}

/// A consumer for each of so many threads, all partitions shared out among them, from the beginning.
pub fn share_out(bootstrap: &str, topic: &str, threads: usize) -> Result<Vec<Batches>> {
    (0..threads).map(|thread| Batches::open(bootstrap, topic, thread, threads)).collect()
}

impl Batches {
    fn open(bootstrap: &str, topic: &str, thread: usize, threads: usize) -> Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", "streamgauge-bench")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // As streamgauge sets them; with librdkafka's own, a consumer that keeps up stutters.
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.wait.max.ms", "100")
            .set("queued.max.messages.kbytes", "32768")
            .create()?;
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
        let partitions = metadata.topics().first().map_or(0, |t| t.partitions().len());
        let (mut list, mut ends, mut open) = (TopicPartitionList::new(), vec![None; partitions], 0);
        for partition in (thread..partitions).step_by(threads) {
            let (low, high) = consumer.fetch_watermarks(topic, partition as i32, PATIENCE)?;
            ends[partition] = Some(high);
            open += usize::from(low < high);
            list.add_partition_offset(topic, partition as i32, Offset::Offset(low))?;
        }
        consumer.assign(&list).context("assign")?;
        // SAFETY: the client is alive; the returned reference is ours until `drop` gives it back.
        #[allow(unsafe_code)]
        let queue = unsafe { rdkafka_sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        Ok(Self { queue, buffer: vec![std::ptr::null_mut(); BATCH], _consumer: consumer, ends, open })
    }

    /// Hands over what has come; false when every partition has reached its end.
    #[allow(unsafe_code)]
    pub fn take(&mut self, mut each: impl FnMut(&[u8])) -> Result<bool> {
        // SAFETY: the queue is alive and the buffer has room for so many pointers.
        let taken = unsafe {
            let (buffer, room) = (self.buffer.as_mut_ptr(), self.buffer.len());
            rdkafka_sys::rd_kafka_consume_batch_queue(self.queue, WAIT_MS, buffer, room)
        };
        let mut failed = None;
        for &message in &self.buffer[..usize::try_from(taken).unwrap_or(0)] {
            // SAFETY: `taken` valid messages, ours until destroyed; a payload has `len` bytes.
            unsafe {
                let m = &*message;
                match m.err {
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR => {
                        if !m.payload.is_null() {
                            each(std::slice::from_raw_parts(m.payload.cast::<u8>().cast_const(), m.len));
                        }
                        let end = self.ends.get(m.partition as usize).copied().flatten();
                        self.open -= usize::from(end == Some(m.offset + 1));
                    }
                    error => failed = Some(error),
                }
                rdkafka_sys::rd_kafka_message_destroy(message);
            }
        }
        if let Some(error) = failed {
            bail!("the consumer was told {error:?}");
        }
        Ok(self.open > 0)
    }
}

#[allow(unsafe_code)]
impl Drop for Batches {
    fn drop(&mut self) {
        // SAFETY: the reference from `rd_kafka_queue_get_consumer`, given back once; the consumer goes after it.
        unsafe { rdkafka_sys::rd_kafka_queue_destroy(self.queue) };
    }
}
