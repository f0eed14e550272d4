//! A small language for traces: readings in epochs in, a story of transitions out.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeMap;

use streamgauge_oracle::config::{Condition, Decode, NullPolicy, Rule, Shape, SourceConfig, Stat, Window};
use streamgauge_oracle::{Config, Counts, Line, Outcome, Record, run, total};

/// A second, in microseconds.
pub const S: i64 = 1_000_000;

/// A narrow record as JSON, its time in microseconds.
pub fn json(sensor: &str, seconds: f64, value: f64) -> String {
    let time = (seconds * 1e6) as i64;
    format!(r#"{{"sensor":"{sensor}","metric":"m","time":{time},"value":{value}}}"#)
}

/// The same with an id.
pub fn with_id(id: &str, sensor: &str, seconds: f64, value: f64) -> String {
    json(sensor, seconds, value).replacen('{', &format!(r#"{{"id":"{id}","#), 1)
}

/// A narrow mapping without an id.
pub fn narrow() -> Decode {
    Decode {
        sensor: "/sensor".into(),
        time: "/time".into(),
        id: None,
        shape: Shape::Narrow { metric: "/metric".into(), value: "/value".into(), adjust: BTreeMap::new() },
        zone: None,
        time_unit: Some(streamgauge_oracle::config::TimeUnit::Us),
        null: NullPolicy::Skip,
    }
}

/// Above a limit, on the value.
pub fn above(limit: f64) -> Condition {
    Condition::Threshold { above: true, limit, hysteresis: 0.0, for_us: 0, of: None }
}

/// Above a limit, on a statistic.
pub fn stat_above(limit: f64, stat: Stat, window: Window) -> Condition {
    Condition::Threshold { above: true, limit, hysteresis: 0.0, for_us: 0, of: Some((stat, window)) }
}

/// Records and lines as they come, and the configuration.
#[derive(Clone)]
pub struct Trace {
    pub config: Config,
    pub records: Vec<Record>,
    pub lines: Vec<Line>,
    next: BTreeMap<i32, i64>,
}

impl Trace {
    /// A source `s` with the topic `t`; lateness 10 s, ids remembered for 100 s, skew 300 s; a term of one process.
    pub fn new() -> Trace {
        let config = Config {
            sources: vec![SourceConfig { name: "s".into(), topics: vec!["t".into()], decode: narrow() }],
            allowed_lateness_us: 10 * S,
            dedup: streamgauge_oracle::config::Dedup { window_us: 100 * S, ..Default::default() },
            ..Config::default()
        };
        Trace { config, records: Vec::new(), lines: vec![Line::Term { processes: 1 }], next: BTreeMap::new() }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Config)) -> Trace {
        change(&mut self.config);
        self
    }

    /// Reads ids.
    pub fn ids(self) -> Trace {
        self.with(|config| config.sources[0].decode.id = Some("/id".into()))
    }

    /// A rule on the metric `m`.
    pub fn rule(self, key: &str, condition: Condition) -> Trace {
        self.with(|config| {
            config.rules.push(Rule {
                key: key.into(),
                name: key.split(':').next().unwrap_or(key).into(),
                version: "0badcafe".into(),
                severity: "warning".into(),
                metric: "m".into(),
                selector: Vec::new(),
                condition,
            });
        })
    }

    pub fn line(mut self, line: Line) -> Trace {
        self.lines.push(line);
        self
    }

    pub fn hearing(self, epoch: u64) -> Trace {
        self.line(Line::Hearing { epoch, process: 0 })
    }

    pub fn deaf(self, epoch: u64) -> Trace {
        self.line(Line::Deaf { epoch, process: 0 })
    }

    pub fn end(self, epoch: u64) -> Trace {
        self.line(Line::End { epoch })
    }

    pub fn term(self) -> Trace {
        self.line(Line::Term { processes: 1 })
    }

    /// Payloads of partition 0 in an epoch, with the time stamp 0.
    pub fn epoch<P: AsRef<[u8]>>(self, epoch: u64, payloads: impl IntoIterator<Item = P>) -> Trace {
        let payloads = payloads.into_iter().map(|payload| Some(payload.as_ref().to_vec())).collect();
        self.partition(epoch, 0, Some(0), payloads)
    }

    /// One reading of the sensor `a` in an epoch.
    pub fn reading(self, epoch: u64, seconds: f64, value: f64) -> Trace {
        self.epoch(epoch, [json("a", seconds, value)])
    }

    /// Payloads of a partition in an epoch. Offsets leave gaps.
    pub fn partition(
        mut self,
        epoch: u64,
        partition: i32,
        stamp: Option<i64>,
        payloads: Vec<Option<Vec<u8>>>,
    ) -> Trace {
        let next = self.next.entry(partition).or_insert(7);
        let records = payloads.len() as u64;
        for payload in payloads {
            let offset = *next;
            *next += 3;
            self.records.push(Record {
                source: "s".into(),
                topic: "t".into(),
                partition,
                offset,
                timestamp: stamp,
                payload,
            });
        }
        let next = *next;
        self.line(Line::Range { epoch, source: "s".into(), topic: "t".into(), partition, next, records })
    }

    /// What comes out. The conservation laws hold in every trace.
    pub fn run(&self) -> Outcome {
        let outcome = run(&self.config, &self.records, &self.lines).expect("the trace is possible");
        for partition in &outcome.counts {
            let c = &partition.counts;
            assert_eq!(c.records, c.decoded + c.dead_lettered + c.filtered, "{partition:?}");
            let judged = c.accepted + c.duplicates + c.late + c.future + c.dead_lettered_values;
            assert_eq!(c.readings, judged + c.nulls, "{partition:?}");
        }
        outcome
    }

    /// Each transition as `epoch.n state rule sensor at time = value, from start #ordinal`, times in seconds.
    pub fn story(&self) -> Vec<String> {
        let seconds = |us: i64| us as f64 / 1e6;
        let outcome = self.run();
        let lines = outcome.transitions.iter().map(|t| {
            let state = if t.transition == 0 { "firing" } else { "resolved" };
            let value = t.value.map_or("none".to_string(), |value| value.to_string());
            let (time, start) = (seconds(t.time), seconds(t.start));
            let behind = if t.behind { ", behind" } else { "" };
            let (epoch, n, key, sensor, ordinal) = (t.epoch, t.n, &t.key, &t.sensor, t.ordinal);
            format!("{epoch}.{n} {state} {key} {sensor} at {time} = {value}, from {start} #{ordinal}{behind}")
        });
        lines.collect()
    }

    /// The counts over all partitions.
    pub fn counts(&self) -> Counts {
        total(&self.run().counts)
    }

    /// What became of each archived reading, as `sensor seconds verdict`.
    pub fn archive(&self) -> Vec<String> {
        let outcome = self.run();
        let rows = outcome.archive.iter().map(|row| {
            let verdict = match (row.late, row.future, row.behind) {
                (true, false, false) => "late",
                (false, true, false) => "future",
                (false, false, true) => "behind",
                (false, false, false) => "accepted",
                _ => "contradictory",
            };
            format!("{} {} {verdict}", row.sensor, row.time as f64 / 1e6)
        });
        rows.collect()
    }
}
