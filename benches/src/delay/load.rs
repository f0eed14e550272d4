//! Sends a schedule to Kafka, each reading when it is due.

use super::schedule::{Schedule, mix};
use crate::straight::rules;
use anyhow::Result;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::xxh3_64;

/// A moment on the wall clock, and the same on the monotonic one: event times never jump.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    instant: Instant,
    wall_us: u64,
}

impl Start {
    /// Now.
    pub fn now() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), wall_us: wall.as_micros() as u64 }
    }
    /// Microseconds since then.
    pub fn elapsed_us(&self) -> u64 {
        self.instant.elapsed().as_micros() as u64
    }
    /// Event time, microseconds since 1970, so many microseconds after the start.
    pub fn event_us(&self, after_us: u64) -> u64 {
        self.wall_us + after_us
    }
}

/// How late the sender itself was, at worst, in microseconds.
pub struct Sent {
    pub behind_us: u64,
}

/// Sends everything; returns when all of it has arrived.
pub fn send(
    bootstrap: &str,
    (topic, partitions): (&str, i32),
    schedule: &Schedule,
    linger_ms: u32,
    start: Start,
) -> Result<Sent> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("linger.ms", linger_ms.to_string());
    config.set("enable.idempotence", "true").set("delivery.report.only.error", "true");
    config.set("queue.buffering.max.messages", "2000000");
    let producer: BaseProducer = config.create()?;
    let sensors: Vec<(String, i32)> = (0..schedule.sensors)
        .map(|n| {
            let name = format!("s-{:05}", n + 1);
            let partition = (xxh3_64(name.as_bytes()) % partitions as u64) as i32;
            (name, partition)
        })
        .collect();
    let (mut n, mut text, mut behind_us) = (0, Vec::new(), 0);
    while n < schedule.readings() {
        let now = start.elapsed_us();
        let due = schedule.due_by(now);
        if due > n {
            behind_us = behind_us.max(now - schedule.due_us(n).min(now));
        }
        while n < due {
            let (sensor, partition) = &sensors[schedule.sensor(n) as usize];
            message(&mut text, schedule, n, sensor, start.event_us(schedule.due_us(n)))?;
            let mut record = BaseRecord::to(topic).partition(*partition).key(sensor).payload(&text);
            while let Err((error, back)) = producer.send(record) {
                if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                    return Err(error.into());
                }
                producer.poll(Duration::from_millis(1));
                record = back;
            }
            n += 1;
        }
        producer.poll(Duration::ZERO);
        // Not before the next reading is due; at most a thousand times a second.
        let wait = schedule.due_us(n).saturating_sub(start.elapsed_us()).max(1_000);
        std::thread::sleep(Duration::from_micros(wait.min(20_000)));
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(Sent { behind_us })
}

/// The job's message. The id ends in the event time, so that another reader need not parse anything else.
fn message(text: &mut Vec<u8>, schedule: &Schedule, n: u64, sensor: &str, event_us: u64) -> Result<()> {
    let (hi, metric) = (mix(n), rules::NAMES[schedule.metric(n)]);
    text.clear();
    let time = jiff::Timestamp::from_microsecond(event_us as i64)?;
    write!(
        text,
        "{{\"unique_reading_id\":\"{:08x}-{:04x}-4{:03x}-{event_us:016x}\",\"sensor_id\":\"{sensor}\",\"type\":\"{metric}\",\
         \"value\":{:.2},\"timestamp\":\"{time:.6}\"}}",
        hi >> 32,
        (hi >> 16) & 0xffff,
        hi & 0xfff,
        schedule.value(n),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_the_jobs_and_says_when_it_was_due() {
        let schedule = Schedule { rate: 1_000, length: Duration::from_secs(1), sensors: 10, beyond_one_in: 5 };
        let mut text = Vec::new();
        message(&mut text, &schedule, 3, "s-00004", 1_735_689_601_500_123).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["timestamp"], "2025-01-01T00:00:01.500123Z");
        let id = json["unique_reading_id"].as_str().unwrap();
        assert_eq!(u64::from_str_radix(&id[id.len() - 16..], 16).unwrap(), 1_735_689_601_500_123);
        assert_eq!((json["type"].as_str(), json["sensor_id"].as_str()), (Some("pm10"), Some("s-00004")));
        assert!(json["value"].as_f64().is_some());
    }
}
