//! Alerts on their way: as JSON to a Kafka topic, and in pipelines to a Redis Stream.

use super::Job;
use super::parse::Reading;
use super::series::{Alert, NAMES};
use anyhow::{Context as _, Result};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

/// So many alerts go to Redis at once.
const PIPELINE: usize = 500;

pub type Kafka = Arc<ThreadedProducer<DefaultProducerContext>>;

pub fn producer(bootstrap: &str) -> Result<Kafka> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("enable.idempotence", "true");
    Ok(Arc::new(config.create()?))
}

/// Waits until everything has arrived.
pub fn flush(producer: &Kafka) -> Result<()> {
    Ok(producer.flush(Duration::from_secs(30))?)
}

#[derive(Serialize)]
struct Line<'a> {
    rule: &'a str,
    state: &'a str,
    sensor: &'a str,
    metric: &'a str,
    value: f64,
    time: i64,
    start: i64,
}

/// One thread's way out.
pub struct Outlet {
    producer: Kafka,
    topic: String,
    redis: redis::Connection,
    stream: String,
    pipeline: redis::Pipeline,
    waiting: usize,
    sent: u64,
    failed: Option<anyhow::Error>,
}

impl Outlet {
    pub fn new(producer: Kafka, job: &Job) -> Result<Self> {
        let redis = redis::Client::open(job.redis.as_str())?.get_connection().context("Redis")?;
        Ok(Self {
            producer,
            topic: job.alerts.clone(),
            redis,
            stream: job.stream.clone(),
            pipeline: redis::Pipeline::new(),
            waiting: 0,
            sent: 0,
            failed: None,
        })
    }
    pub fn sent(&self) -> u64 {
        self.sent
    }

    pub fn take(&mut self, reading: &Reading<'_>, alert: Alert) {
        if let Err(error) = self.send(reading, alert) {
            self.failed.get_or_insert(error);
        }
    }

    fn send(&mut self, reading: &Reading<'_>, alert: Alert) -> Result<()> {
        let line = Line {
            rule: alert.rule,
            state: if alert.firing { "firing" } else { "resolved" },
            sensor: reading.sensor,
            metric: NAMES[reading.metric],
            value: alert.value,
            time: reading.time,
            start: alert.start,
        };
        let json = serde_json::to_string(&line)?;
        let mut record = BaseRecord::to(&self.topic).key(reading.sensor).payload(&json);
        while let Err((error, back)) = self.producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(1));
            record = back;
        }
        let command = self.pipeline.cmd("XADD").arg(&self.stream).arg("*");
        command.arg("rule").arg(line.rule).arg("state").arg(line.state).arg("sensor").arg(line.sensor);
        command.arg("metric").arg(line.metric).arg("value").arg(line.value);
        command.arg("time").arg(line.time).arg("start").arg(line.start).ignore();
        self.waiting += 1;
        self.sent += 1;
        if self.waiting >= PIPELINE { self.pipeline() } else { Ok(()) }
    }

    fn pipeline(&mut self) -> Result<()> {
        if self.waiting > 0 {
            self.pipeline.query::<()>(&mut self.redis)?;
            self.pipeline.clear();
            self.waiting = 0;
        }
        Ok(())
    }

    /// Sends what waits; says what has failed.
    pub fn flush(&mut self) -> Result<()> {
        self.pipeline()?;
        self.failed.take().map_or(Ok(()), Err)
    }
}
