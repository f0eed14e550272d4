//! The whole program with a source in memory: what it spends per reading besides Kafka.

use crate::input::{Recipe, samples};
use crate::stages::job;
use operators::Stream;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use streamgauge::crew::Threads;
use streamgauge::run::{Run, RunOptions};
use streamgauge::seam::{RealClock, RealFs};
use streamgauge::sink::Configured;
use streamgauge::source::origin::{Origin, Wake};
use streamgauge::source::{Record, Source, SourceError};

const PARTITIONS: u32 = 16;

/// A partition's payloads, one behind the other, where each ends, and their time stamps.
#[derive(Default)]
struct Log {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    times: Vec<i64>,
}

struct Memory(Arc<Vec<Log>>);

impl Origin for Memory {
    fn partitions(&self, _: Stream) -> Result<u32, SourceError> {
        Ok(self.0.len() as u32)
    }
    fn watermarks(&self, _: Stream, partition: u32) -> Result<(i64, i64), SourceError> {
        Ok((0, self.0[partition as usize].ends.len() as i64))
    }
    fn begins_at_end(&self, _: Stream) -> bool {
        false
    }
    fn open(&self, _: Wake) -> Result<Box<dyn Source>, SourceError> {
        Ok(Box::new(MemorySource { logs: self.0.clone(), next: BTreeMap::new(), turn: 0 }))
    }
    fn set_up(&self, _: Stream, _: bool) {}
}

struct MemorySource {
    logs: Arc<Vec<Log>>,
    next: BTreeMap<(Stream, u32), usize>,
    turn: usize,
}

impl Source for MemorySource {
    fn assign(&mut self, stream: Stream, partition: u32, offset: i64) -> Result<(), SourceError> {
        self.next.insert((stream, partition), offset as usize);
        Ok(())
    }
    fn hold(&mut self, _: Stream, _: u32) -> Result<(), SourceError> {
        Ok(())
    }
    fn poll(&mut self, limit: usize, each: &mut dyn FnMut(Record<'_>)) -> Result<usize, SourceError> {
        // Runs of a partition, as fetches bring them.
        let mut taken = 0;
        for _ in 0..self.next.len() {
            self.turn += 1;
            let place = self.turn % self.next.len();
            let Some(((stream, partition), next)) = self.next.iter_mut().nth(place) else { break };
            let log = &self.logs[*partition as usize];
            let until = log.ends.len().min(*next + 256).min(*next + limit - taken);
            for n in *next..until {
                let begin = if n == 0 { 0 } else { log.ends[n - 1] };
                let (timestamp, payload) = (Some(log.times[n]), Some(&log.bytes[begin..log.ends[n]]));
                each(Record { stream: *stream, partition: *partition, offset: n as i64, timestamp, payload });
            }
            taken += until - *next;
            *next = until;
            if taken == limit {
                break;
            }
        }
        Ok(taken)
    }
    fn end(&self, _: Stream, partition: u32) -> Option<i64> {
        self.logs.get(partition as usize).map(|log| log.ends.len() as i64)
    }
    fn reached_end(&self, _: Stream, _: u32) -> Option<i64> {
        None
    }
    fn commit(&mut self, _: Stream, _: u32, _: i64) {}
    fn up(&self) -> bool {
        true
    }
}

/// `run [READINGS [SENSORS [WORKERS [RULES_PER_METRIC [archive]]]]]`
pub fn run(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let number = |n: usize, default: usize| arguments.get(n).map_or(Ok(default), |text| text.parse::<usize>());
    let (records, sensors) = (number(0, 2_000_000)?, number(1, 10_000)?);
    let (workers, rules) = (number(2, 2)?, number(3, 5)?);
    let archive = arguments.get(4) == Some(&"archive");
    let recipe = Recipe { records, sensors, partitions: PARTITIONS, interval_us: 9_000_000, duplicates: 5 };
    let mut logs: Vec<Log> = (0..PARTITIONS).map(|_| Log::default()).collect();
    for sample in samples(&recipe) {
        let log = &mut logs[sample.partition as usize];
        log.bytes.extend_from_slice(sample.narrow().as_bytes());
        log.ends.push(log.bytes.len());
        log.times.push(sample.time_us / 1000);
    }
    let folder = tempfile::tempdir()?;
    let loaded = job(folder.path(), rules)?;
    let mut config = loaded.config.clone();
    config.data_dir = folder.path().join("data");
    config.workers = workers;
    // One source is enough.
    config.sources.remove("stations");
    if !archive {
        config.sinks.clear();
    }
    let mut pure = loaded.pure();
    pure.sources.remove("stations");
    let run = Run {
        pure,
        config,
        options: RunOptions { until_end: true, ..RunOptions::default() },
        fs: Arc::new(RealFs),
        clock: Arc::new(RealClock::default()),
        origin: Arc::new(Memory(Arc::new(logs))),
        destinations: Arc::new(Configured),
        crew: Arc::new(Threads),
    };
    let before = crate::stages::cpu_seconds();
    let summary = run.go().map_err(|failure| failure.to_string())?;
    let cpu = crate::stages::cpu_seconds() - before;
    let millions = records as f64 / 1e6;
    println!("{}", serde_json::to_string(&summary)?);
    println!("{:.3} CPU-s per million, {:.0} readings/s", cpu / millions, records as f64 / summary.seconds);
    Ok(())
}
