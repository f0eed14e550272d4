//! The straight-line program: the same job as one would write it by hand, without a framework.
//!
//! A thread reads its partitions and keeps the state of their sensors: a sensor's records lie in one partition, so nothing
//! is exchanged. No epochs, no log, no checkpoint, no metrics, no dead letters kept: what it loses, it loses. It is meant
//! to be good: batches from librdkafka, one lookup a reading, identities as 128 bits, alerts sent in batches.

mod parse;
mod send;
mod series;

use crate::batch::{Batches, share_out};
use anyhow::{Context as _, Result, anyhow};
use hashbrown::HashMap;
pub use parse::Json;
use parse::Parser;
use send::Outlet;
use serde::{Deserialize, Serialize};
use series::{METRICS, Series, Verdict};
/// What is judged, for whoever tells another program the job.
pub mod rules {
    pub use super::series::{DEVIATION_MAX, JUDGED, LIMITS, MEAN_MAX, NAMES};
}

/// What every program of the job prints at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Records read.
    pub records: u64,
    /// Readings accepted.
    pub accepted: u64,
    /// Of those, older than their series' newest.
    pub behind: u64,
    /// Readings dropped because they came twice.
    pub duplicates: u64,
    /// Records that are no readings.
    pub dead_letters: u64,
    /// Alerts, each as it begins and as it ends.
    pub alerts: u64,
}

/// Where to read and where to send.
#[derive(Clone, Debug)]
pub struct Job {
    /// Kafka.
    pub bootstrap: String,
    /// The topic of readings.
    pub topic: String,
    /// How many threads.
    pub threads: usize,
    /// How JSON is parsed.
    pub json: Json,
    /// The topic of alerts.
    pub alerts: String,
    /// Redis.
    pub redis: String,
    /// The stream of alerts.
    pub stream: String,
}

/// Does the job to the end that the topic has at the start.
pub fn run(job: &Job) -> Result<Counts> {
    let producer = send::producer(&job.bootstrap)?;
    let mut threads = Vec::new();
    for batches in share_out(&job.bootstrap, &job.topic, job.threads)? {
        let outlet = Outlet::new(producer.clone(), job)?;
        let parser = Parser::new(job.json)?;
        threads.push(std::thread::spawn(move || consume(batches, parser, outlet)));
    }
    let mut all = Counts::default();
    for thread in threads {
        let counts = thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        all.records += counts.records;
        all.accepted += counts.accepted;
        all.behind += counts.behind;
        all.duplicates += counts.duplicates;
        all.dead_letters += counts.dead_letters;
        all.alerts += counts.alerts;
    }
    send::flush(&producer).context("alerts to Kafka")?;
    Ok(all)
}

fn consume(mut batches: Batches, mut parser: Parser, mut outlet: Outlet) -> Result<Counts> {
    let mut sensors: HashMap<Box<str>, [Option<Box<Series>>; METRICS]> = HashMap::new();
    let mut counts = Counts::default();
    let mut more = true;
    while more {
        more = batches.take(|payload| {
            counts.records += 1;
            let counts = &mut counts;
            let outlet = &mut outlet;
            let read = parser.parse(payload, |reading| {
                let metrics = match sensors.get_mut(reading.sensor) {
                    Some(metrics) => metrics,
                    None => sensors.entry(reading.sensor.into()).or_default(),
                };
                let series = metrics[reading.metric].get_or_insert_default();
                match series.judge(&reading, |alert| outlet.take(&reading, alert)) {
                    Verdict::Duplicate => counts.duplicates += 1,
                    Verdict::Accepted { behind } => {
                        counts.accepted += 1;
                        counts.behind += u64::from(behind);
                    }
                }
            });
            counts.dead_letters += u64::from(read.is_none());
        })?;
        outlet.flush()?;
    }
    counts.alerts = outlet.sent();
    // Were nobody to look at them, the compiler might leave the statistics out.
    let sum: f64 = sensors.values().flatten().flatten().map(|s| s.mean() + s.deviation()).sum();
    std::hint::black_box(sum);
    Ok(counts)
}
