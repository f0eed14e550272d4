//! Reads alerts from a Redis Stream as they come, as a consumer of alerts would, and notes when.

use super::load::Start;
use anyhow::Result;
use redis::streams::{StreamReadOptions, StreamReadReply};
use redis::{Commands as _, Connection, RedisError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

/// Microseconds from when a reading was due to when its alert could be read, by event time of the reading.
pub type Delays = BTreeMap<u64, u64>;

/// A reader at work.
pub struct Reader {
    thread: JoinHandle<Result<Delays>>,
    stop: Arc<AtomicBool>,
    read: Arc<AtomicUsize>,
}

impl Reader {
    /// Reads the stream from its beginning.
    pub fn start(connection: Connection, stream: String, start: Start) -> Self {
        let (stop, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (flag, count) = (stop.clone(), read.clone());
        Self { thread: std::thread::spawn(move || follow(connection, &stream, start, &flag, &count)), stop, read }
    }
    /// How many alerts on values it has read.
    pub fn read(&self) -> usize {
        self.read.load(SeqCst)
    }
    /// Ends it.
    pub fn finish(self) -> Result<Delays> {
        self.stop.store(true, SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
    }
}

fn follow(mut redis: Connection, stream: &str, start: Start, stop: &AtomicBool, count: &AtomicUsize) -> Result<Delays> {
    let options = StreamReadOptions::default().block(200).count(1_000);
    let (mut delays, mut last) = (Delays::new(), "0".to_owned());
    while !stop.load(SeqCst) {
        let reply: Result<Option<StreamReadReply>, RedisError> = redis.xread_options(&[stream], &[&last], &options);
        let Some(reply) = reply? else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let now = start.event_us(start.elapsed_us());
        for entry in reply.keys.into_iter().flat_map(|key| key.ids) {
            let text = |name: &str| entry.get::<String>(name).unwrap_or_default();
            // Rules on statistics begin when a minute's readings say so, not when one reading does.
            if text("state") == "firing" && !text("rule").contains('-') {
                let begun: u64 = text("start").parse()?;
                delays.insert(begun, now.saturating_sub(begun));
                count.store(delays.len(), SeqCst);
            }
            last = entry.id;
        }
    }
    Ok(delays)
}
