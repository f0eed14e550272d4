//! Readings to RedisTimeSeries: effectively once, one value per series and millisecond.
//!
//! A value is set at its millisecond, the last one given stands (ON_DUPLICATE LAST): sending again changes nothing. Two
//! readings of one series within a millisecond are one value there: counted as a collision. What is older than the
//! retention is refused by the module: counted, neither an error nor tried again. Readings in the future are left out:
//! retention is measured from the newest value, so one bad clock would empty a series.

use super::redis::{FORGETS_US, Link};
use super::*;
use crate::config::RedisTimeseriesSink;
use ::redis::{Cmd, RedisError, Value, cmd};
use operators::{Judged, SeriesName, Verdict};
use std::collections::BTreeSet;
use std::io::Write;

/// Values in one command: enough to spare the overhead, few enough not to hold up the server.
const VALUES_AT_ONCE: usize = 500;

/// An archive of time series.
pub struct RedisTimeseries {
    link: Link,
    key: Template,
    names: Vec<String>,
    retention_ms: u64,
    labels: Labels,
    /// By worker and series: the newest value sent, to see collisions. 32 bytes each.
    newest: Vec<Vec<Newest>>,
    /// Whether it has been said that something else has the key of a series.
    said_taken: bool,
}

#[derive(Clone, Copy, Default, PartialEq)]
struct Newest {
    ms: i64,
    place: Option<(u16, u32, i64, u16)>,
}

/// A value on its way.
#[derive(Clone, Copy)]
struct Sample<'a> {
    name: &'a SeriesName,
    ms: i64,
    value: f64,
}

/// What the module said to a value.
enum Answer {
    Set,
    NoSuchKey,
    TooOld,
    OtherPolicy,
}

impl RedisTimeseries {
    /// By its settings, not connected yet.
    pub fn new(settings: &RedisTimeseriesSink, labels: Labels) -> Result<Self, StartError> {
        Ok(Self {
            link: Link::new(&settings.url, settings.password.as_ref())?,
            key: Template::new(&settings.key),
            names: settings.labels.clone(),
            retention_ms: settings.retention.map_or(0, |retention| retention.ms()),
            labels,
            newest: Vec::new(),
            said_taken: false,
        })
    }

    /// Connects, and sees whether the module is there.
    async fn open(&mut self) -> Result<String, StartError> {
        let server = self.link.look().await?;
        let known = match self.link.get() {
            Ok(connection) => cmd("TS.QUERYINDEX").arg("streamgauge=probe").query_async::<Value>(connection).await,
            Err(error) => return Err(StartError::Unreachable(error.to_string())),
        };
        match known {
            Ok(_) => Ok(server),
            Err(error) if error.to_string().contains("unknown command") => Err(StartError::Settings(format!(
                "{server} does not know TS.ADD (no TimeSeries module); Redis 8 has it built in; or archive with \
                 type = \"parquet\"; `redis_stream` and `redis_last` work as they are"
            ))),
            Err(error) => Err(self.link.start_error(&error)),
        }
    }

    /// Sends values in their order, and hands back what was said to each.
    async fn add(&mut self, samples: &[Sample<'_>], one_by_one: bool) -> Result<Vec<Answer>, SinkError> {
        let mut pipeline = ::redis::pipe();
        let (mut key, mut number) = (Vec::new(), Vec::new());
        let mut commands = 0;
        for chunk in samples.chunks(if one_by_one { 1 } else { VALUES_AT_ONCE }) {
            let mut command = cmd(if one_by_one { "TS.ADD" } else { "TS.MADD" });
            for sample in chunk {
                self.key.write(sample.name, &mut key);
                number.clear();
                let _ = serde_json::to_writer(&mut number, &sample.value);
                command.arg(&key[..]).arg(sample.ms).arg(&number[..]);
            }
            if one_by_one {
                command.arg("ON_DUPLICATE").arg("LAST");
            }
            pipeline.add_command(command);
            commands += 1;
        }
        let mut answers = Vec::with_capacity(samples.len());
        for value in self.send(&pipeline, commands).await? {
            match value {
                Value::Array(values) => {
                    for value in values {
                        answers.push(self.answer(value)?);
                    }
                }
                value => answers.push(self.answer(value)?),
            }
        }
        if answers.len() != samples.len() {
            let (sent, answered) = (samples.len(), answers.len());
            return Err(SinkError::Unavailable(format!("TS.MADD answered {answered} of {sent} values")));
        }
        Ok(answers)
    }

    async fn send(&mut self, pipeline: &::redis::Pipeline, commands: usize) -> Result<Vec<Value>, SinkError> {
        let answers = self.link.get()?.send_packed_commands(pipeline, 0, commands).await;
        answers.map_err(|error| self.link.failed(&error))
    }

    fn answer(&mut self, value: Value) -> Result<Answer, SinkError> {
        let Value::ServerError(error) = value else { return Ok(Answer::Set) };
        let text = error.details().unwrap_or_default();
        // TS.MADD says the second one also of a key that is not there (module 1.12); TS.CREATE then tells them apart.
        if text.contains("key does not exist") || text.contains("not a TSDB key") {
            Ok(Answer::NoSuchKey)
        } else if text.contains("older than retention") {
            Ok(Answer::TooOld)
        } else if text.contains("DUPLICATE_POLICY") {
            Ok(Answer::OtherPolicy)
        } else {
            Err(self.link.failed(&RedisError::from(error)))
        }
    }

    /// Creates what is missing, with its labels; hands back those whose key was there all the same.
    async fn create<'a>(&mut self, missing: &BTreeSet<&'a SeriesName>) -> Result<BTreeSet<&'a SeriesName>, SinkError> {
        let mut pipeline = ::redis::pipe();
        let mut key = Vec::new();
        for name in missing {
            self.key.write(name, &mut key);
            let mut create: Cmd = cmd("TS.CREATE");
            create.arg(&key[..]).arg("RETENTION").arg(self.retention_ms).arg("DUPLICATE_POLICY").arg("LAST");
            create.arg("LABELS").arg("sensor").arg(&*name.sensor).arg("metric").arg(&*name.metric);
            for label in &self.names {
                if let Some(value) = (self.labels)(&name.sensor, label).filter(|value| !value.is_empty()) {
                    create.arg(label).arg(value);
                }
            }
            pipeline.add_command(create);
        }
        let mut there = BTreeSet::new();
        for (value, name) in self.send(&pipeline, missing.len()).await?.into_iter().zip(missing) {
            if let Value::ServerError(error) = value {
                if !error.details().unwrap_or_default().contains("already exists") {
                    return Err(self.link.failed(&RedisError::from(error)));
                }
                there.insert(*name);
            }
        }
        Ok(there)
    }

    /// Writes them all; how many were older than the retention, and how many have no series because something else has
    /// its key.
    async fn archive(&mut self, samples: &[Sample<'_>]) -> Result<(u64, u64), SinkError> {
        let (mut too_old, mut key_taken) = (0, 0);
        let mut again = Vec::new();
        let mut stubborn = Vec::new();
        for (answer, sample) in self.add(samples, false).await?.into_iter().zip(samples) {
            match answer {
                Answer::Set => {}
                Answer::TooOld => too_old += 1,
                Answer::NoSuchKey => again.push(*sample),
                Answer::OtherPolicy => stubborn.push(*sample),
            }
        }
        if !again.is_empty() {
            let there = self.create(&again.iter().map(|sample| sample.name).collect()).await?;
            for (answer, sample) in self.add(&again, false).await?.into_iter().zip(&again) {
                match answer {
                    Answer::Set => {}
                    Answer::TooOld => too_old += 1,
                    Answer::OtherPolicy => stubborn.push(*sample),
                    Answer::NoSuchKey if there.contains(sample.name) => {
                        key_taken += 1;
                        if !std::mem::replace(&mut self.said_taken, true) {
                            let SeriesName { sensor, metric } = sample.name;
                            tracing::warn!(%sensor, %metric, "the key of a series holds something else; its values are left out");
                        }
                    }
                    // Taken away again at this moment: another try will make it anew.
                    Answer::NoSuchKey => return Err(SinkError::Unavailable("a series vanished while written".into())),
                }
            }
        }
        // Series that somebody else made with another policy: only one by one can it be overruled.
        if !stubborn.is_empty() {
            too_old += self.add(&stubborn, true).await?.iter().filter(|answer| matches!(answer, Answer::TooOld)).count()
                as u64;
        }
        Ok((too_old, key_taken))
    }
}

/// What `check` shows.
pub async fn look(settings: &RedisTimeseriesSink) -> Result<String, StartError> {
    let mut sink = RedisTimeseries::new(settings, std::sync::Arc::new(|_, _| None))?;
    Ok(format!("{}, with TimeSeries", sink.open().await?))
}

impl Sink for RedisTimeseries {
    type Item = Rows;

    fn traits(&self) -> Traits {
        Traits { in_checkpoint: false, forgets_us: FORGETS_US, batch_entries: 20_000, batch_bytes: 4 << 20 }
    }

    async fn connect(&mut self, _term: u64) -> Result<(), StartError> {
        self.open().await.map(drop)
    }

    async fn write(&mut self, batch: &[Rows]) -> Result<Written, SinkError> {
        let (mut future, mut unnamed, mut before_1970, mut collisions) = (0, 0, 0, 0);
        let mut samples = Vec::with_capacity(batch.iter().map(|rows| rows.batch.rows.len()).sum());
        // What to put back where the write fails, so that the next try sees the same collisions.
        let mut undo = Vec::new();
        for rows in batch {
            for row in &rows.batch.rows {
                let ms = row.time.div_euclid(1000);
                match rows.names.name(row.series) {
                    _ if row.verdict == Verdict::Future => future += 1,
                    _ if ms < 0 => before_1970 += 1,
                    None => unnamed += 1,
                    Some(name) => {
                        collisions += u64::from(collides(&mut self.newest, rows.batch.worker, row, ms, &mut undo));
                        samples.push(Sample { name, ms, value: row.value });
                    }
                }
            }
        }
        match self.archive(&samples).await {
            Ok((too_old, key_taken)) => {
                let refused = [
                    ("older_than_retention", too_old),
                    ("key_taken", key_taken),
                    ("future", future),
                    ("before_1970", before_1970),
                    ("unnamed", unnamed),
                ];
                Ok(Written {
                    entries: samples.len() as u64 - too_old - key_taken,
                    refused: refused.into_iter().filter(|(_, count)| *count > 0).collect(),
                    collisions,
                })
            }
            Err(error) => {
                for (worker, series, newest) in undo.into_iter().rev() {
                    self.newest[worker][series] = newest;
                }
                Err(error)
            }
        }
    }

    async fn probe(&mut self) -> Result<(), SinkError> {
        self.link.probe().await
    }
}

/// Whether another reading of the series has this millisecond: seen against the newest one sent.
fn collides(
    table: &mut Vec<Vec<Newest>>,
    worker: usize,
    row: &Judged,
    ms: i64,
    undo: &mut Vec<(usize, usize, Newest)>,
) -> bool {
    if worker == READ_BACK {
        return false; // its numbers are its own
    }
    let series = row.series as usize;
    if table.len() <= worker {
        table.resize_with(worker + 1, Vec::new);
    }
    if table[worker].len() <= series {
        table[worker].resize(series + 1, Newest::default());
    }
    let place = Some((row.stream, row.partition, row.offset, row.index));
    let known = table[worker][series];
    if known.place.is_some() && known.ms == ms && known.place != place {
        undo.push((worker, series, known));
        table[worker][series] = Newest { ms, place };
        return true;
    }
    if known.place.is_none() || ms > known.ms {
        undo.push((worker, series, known));
        table[worker][series] = Newest { ms, place };
    }
    false
}

/// A key with `{sensor}` and `{metric}` in it.
struct Template {
    parts: Vec<Part>,
}

enum Part {
    Text(String),
    Sensor,
    Metric,
}

impl Template {
    fn new(text: &str) -> Self {
        let mut parts = Vec::new();
        for (i, piece) in text.split("{sensor}").enumerate() {
            if i > 0 {
                parts.push(Part::Sensor);
            }
            for (j, piece) in piece.split("{metric}").enumerate() {
                if j > 0 {
                    parts.push(Part::Metric);
                }
                parts.push(Part::Text(piece.to_owned()));
            }
        }
        Self { parts }
    }

    fn write(&self, name: &SeriesName, key: &mut Vec<u8>) {
        key.clear();
        for part in &self.parts {
            let text = match part {
                Part::Text(text) => text,
                Part::Sensor => &*name.sensor,
                Part::Metric => &*name.metric,
            };
            let _ = key.write_all(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_takes_its_names_where_the_template_says() {
        let name = SeriesName { sensor: "b-17".into(), metric: "pm10".into() };
        for (template, key) in [
            ("ts:{sensor}:{metric}", "ts:b-17:pm10"),
            ("{metric}", "pm10"),
            ("x", "x"),
            ("{sensor}{sensor}/{metric}.", "b-17b-17/pm10."),
        ] {
            let mut written = Vec::new();
            Template::new(template).write(&name, &mut written);
            assert_eq!(String::from_utf8(written).unwrap(), key);
        }
    }

    #[test]
    fn a_collision_is_another_reading_in_the_same_millisecond() {
        let mut table = Vec::new();
        let mut undo = Vec::new();
        let mut collides = |series, offset, ms| {
            let row = Judged {
                time: ms * 1000,
                value: 0.0,
                offset,
                series,
                partition: 0,
                stream: 0,
                index: 0,
                verdict: Verdict::Accepted,
            };
            collides(&mut table, 1, &row, ms, &mut undo)
        };
        assert!(!collides(3, 1, 5));
        assert!(collides(3, 2, 5), "another one");
        assert!(!collides(3, 2, 5), "the same one again");
        assert!(!collides(4, 3, 5), "another series");
        assert!(!collides(3, 4, 4), "behind");
        assert!(!collides(3, 5, 6));
        assert!(collides(3, 6, 6));
    }
}
