//! A plain consumer beside the pipeline: how old a reading is when Kafka hands it out. What is slow before us shows here.

use super::load::Start;
use anyhow::Result;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

/// A consumer at work.
pub struct Direct {
    thread: JoinHandle<Result<Vec<(u64, u64)>>>,
    stop: Arc<AtomicBool>,
}

impl Direct {
    /// Reads the topic from its beginning, with these settings of librdkafka.
    pub fn start(
        bootstrap: &str,
        (topic, partitions): (&str, i32),
        settings: &[(String, String)],
        start: Start,
    ) -> Result<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("group.id", "streamgauge-bench-direct");
        config.set("enable.auto.commit", "false");
        for (name, value) in settings {
            config.set(name, value);
        }
        let consumer: BaseConsumer = config.create()?;
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&list)?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut delays = Vec::new();
            while !flag.load(SeqCst) {
                let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
                let now = start.event_us(start.elapsed_us());
                delays.extend(message?.payload().and_then(due).map(|due| (due, now.saturating_sub(due))));
            }
            Ok(delays)
        });
        Ok(Self { thread, stop })
    }
    /// Ends it: the delays in microseconds of the readings that were due from `warm` on.
    pub fn finish(self, warm: u64) -> Result<Vec<u64>> {
        self.stop.store(true, SeqCst);
        let all = self.thread.join().map_err(|_| anyhow::anyhow!("the consumer panicked"))??;
        Ok(all.into_iter().filter(|(due, _)| *due >= warm).map(|(_, delay)| delay).collect())
    }
}

/// When a reading was due: the end of its id.
fn due(payload: &[u8]) -> Option<u64> {
    let from = b"{\"unique_reading_id\":\"00000000-0000-4000-".len();
    u64::from_str_radix(std::str::from_utf8(payload.get(from..from + 16)?).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moment_is_found_in_the_id() {
        let text = b"{\"unique_reading_id\":\"0badcafe-1234-4abc-00062aa19e3f8b3b\",\"sensor_id\":\"s-00001\"}";
        assert_eq!(due(text), Some(0x0006_2aa1_9e3f_8b3b));
        assert_eq!(due(b"{}"), None);
    }
}
