//! What comes out: the journal of alert transitions, the archive, dead letters, counts and statistics.

use std::cmp::Ordering;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::Window;

/// Everything that is expected of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// All transitions in order of position, one JSON line each.
    pub journal: Vec<String>,
    /// The same.
    pub transitions: Vec<Transition>,
    /// Accepted, late and future readings, by epoch and within one in log order.
    pub archive: Vec<ArchiveRow>,
    /// Refused records and values, by epoch and within one in log order.
    pub dead_letters: Vec<DeadLetter>,
    /// Per partition that has a range, in log order.
    pub counts: Vec<PartitionCounts>,
    /// Of every live series and configured window, by sensor, metric and the configuration's order of windows.
    pub rolling: Vec<SeriesRolling>,
}

/// One step in the life of an alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// Its position: the epoch ...
    pub epoch: u64,
    /// ... and the number in it, from 1.
    pub n: u32,
    /// Its event time.
    pub time: i64,
    /// What the alert is now.
    pub state: State,
    /// The rule's key; not in the journal.
    pub key: String,
    /// The rule's name.
    pub rule: String,
    /// The rule's severity.
    pub severity: String,
    /// The sensor.
    pub sensor: Arc<str>,
    /// The metric.
    pub metric: Arc<str>,
    /// The value or statistic that decided, if it was one.
    pub value: Option<f64>,
    /// The event time at which the condition first held.
    pub start: i64,
    /// How many episodes of the rule and series had the same start before.
    pub ordinal: u32,
    /// Raised by a reading that was behind.
    pub behind: bool,
    /// The alert's id.
    pub alert: String,
    /// 0 firing, 1 resolved.
    pub transition: u8,
    /// The rule's version.
    pub version: String,
}

/// What an alert is after a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The condition holds.
    Firing,
    /// It holds no more.
    Resolved,
}

/// A reading in the archive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArchiveRow {
    /// The epoch of its record.
    pub epoch: u64,
    /// The source of its record.
    pub source: Arc<str>,
    /// The topic of its record.
    pub topic: Arc<str>,
    /// The partition of its record.
    pub partition: i32,
    /// The offset of its record.
    pub offset: i64,
    /// Which of the readings of its record it is.
    pub index: u16,
    /// The sensor.
    pub sensor: Arc<str>,
    /// The metric.
    pub metric: Arc<str>,
    /// The event time.
    pub time: i64,
    /// The value.
    pub value: f64,
    /// Not judged: too old.
    pub late: bool,
    /// Not judged: too new.
    pub future: bool,
    /// Accepted, but older than its series' clock.
    pub behind: bool,
}

/// A record, or a value in it, that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The source of the record.
    pub source: Arc<str>,
    /// The topic of the record.
    pub topic: Arc<str>,
    /// The partition of the record.
    pub partition: i32,
    /// The offset of the record.
    pub offset: i64,
    /// Which reading of the record it is; none if the record as a whole was refused.
    pub index: Option<u16>,
    /// Why.
    pub reason: Reason,
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the text of docs/semantics.md, which explains them in a table")]
pub enum Reason {
    TooLarge,
    NotJson,
    MissingSensor,
    InvalidSensor,
    MissingTime,
    InvalidTime,
    SkippedTime,
    MissingId,
    InvalidId,
    MissingMetric,
    InvalidMetric,
    MissingValue,
    NullValue,
    InvalidValue,
    OutOfRange,
    TooManySeries,
    Conflict,
    /// Set aside: it brought workers down.
    Bug,
}

impl Reason {
    /// As the rules write it: `too_large`.
    pub fn name(self) -> String {
        serde_json::to_string(&self).unwrap_or_default().trim_matches('"').to_string()
    }
}

/// What became of the records and readings of a partition. Two laws hold: `records` = `decoded` + `dead_lettered` +
/// `filtered`, and `readings` = `accepted` + `duplicates` + `late` + `future` + `dead_lettered_values` + `nulls`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the words of the conservation law")]
pub struct Counts {
    pub records: u64,
    pub decoded: u64,
    pub dead_lettered: u64,
    pub filtered: u64,
    pub readings: u64,
    pub accepted: u64,
    /// Part of `accepted`.
    pub behind: u64,
    pub duplicates: u64,
    /// Part of `duplicates`, or of `dead_lettered_values` where conflicts are dead letters.
    pub conflicting: u64,
    pub late: u64,
    pub future: u64,
    pub dead_lettered_values: u64,
    pub nulls: u64,
}

/// The counts of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionCounts {
    /// The source's name.
    pub source: Arc<str>,
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// Its counts.
    pub counts: Counts,
}

/// The sum over partitions.
pub fn total(counts: &[PartitionCounts]) -> Counts {
    let mut sum = Counts::default();
    for PartitionCounts { counts, .. } in counts {
        let Counts { records, decoded, dead_lettered, filtered, readings, accepted, behind, .. } = counts;
        let Counts { duplicates, conflicting, late, future, dead_lettered_values, nulls, .. } = counts;
        sum.records += records;
        sum.decoded += decoded;
        sum.dead_lettered += dead_lettered;
        sum.filtered += filtered;
        sum.readings += readings;
        sum.accepted += accepted;
        sum.behind += behind;
        sum.duplicates += duplicates;
        sum.conflicting += conflicting;
        sum.late += late;
        sum.future += future;
        sum.dead_lettered_values += dead_lettered_values;
        sum.nulls += nulls;
    }
    sum
}

/// The statistics of a window of a series. Undefined ones are NaN here and null in JSON; equal means equal bits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the statistics of docs/semantics.md")]
pub struct SeriesRolling {
    pub sensor: Arc<str>,
    pub metric: Arc<str>,
    pub window: Window,
    #[serde(with = "null_if_nan")]
    pub count: f64,
    #[serde(with = "null_if_nan")]
    pub mean: f64,
    #[serde(with = "null_if_nan")]
    pub stddev: f64,
    #[serde(with = "null_if_nan")]
    pub min: f64,
    #[serde(with = "null_if_nan")]
    pub max: f64,
    #[serde(with = "null_if_nan")]
    pub rate: f64,
    #[serde(with = "null_if_nan")]
    pub ewma: f64,
}

impl SeriesRolling {
    /// The statistics as bits, in the order of the fields.
    pub fn bits(&self) -> [u64; 7] {
        [self.count, self.mean, self.stddev, self.min, self.max, self.rate, self.ewma].map(f64::to_bits)
    }
}

impl PartialEq for SeriesRolling {
    fn eq(&self, other: &SeriesRolling) -> bool {
        (&self.sensor, &self.metric, self.window, self.bits())
            == (&other.sensor, &other.metric, other.window, other.bits())
    }
}

mod null_if_nan {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(x: &f64, to: S) -> Result<S::Ok, S::Error> {
        x.is_finite().then_some(*x).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
    }
}

/// The id of the alert of an episode.
pub fn alert_id(key: &str, sensor: &str, metric: &str, start: i64, ordinal: u32) -> String {
    let mut bytes = Vec::new();
    for text in [key, sensor, metric] {
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes.extend(start.to_le_bytes());
    bytes.extend(ordinal.to_le_bytes());
    blake3::hash(&bytes).to_hex()[..32].to_string()
}

/// Puts transitions in the order of their positions, and numbers them.
pub fn number(transitions: &mut [Transition]) {
    transitions.sort_by(|a, b| a.epoch.cmp(&b.epoch).then_with(|| within_epoch(a, b)));
    for epoch in transitions.chunk_by_mut(|a, b| a.epoch == b.epoch) {
        for (transition, n) in epoch.iter_mut().zip(1..) {
            transition.n = n;
        }
    }
}

fn within_epoch(a: &Transition, b: &Transition) -> Ordering {
    let place = |t: &Transition| (t.start, t.ordinal, t.transition);
    (a.time, &a.key, &a.sensor, &a.metric).cmp(&(b.time, &b.key, &b.sensor, &b.metric)).then(place(a).cmp(&place(b)))
}

impl Transition {
    /// Its line in the journal.
    pub fn line(&self) -> String {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let value = serde_json::Value::from(self.value); // null for none, and for what is not finite
        let state = match self.state {
            State::Firing => "firing",
            State::Resolved => "resolved",
        };
        format!(
            "{{\"epoch\":{},\"n\":{},\"time\":{},\"state\":\"{state}\",\"rule\":{},\"severity\":{},\"sensor\":{},\
             \"metric\":{},\"value\":{value},\"start\":{},\"ordinal\":{},\"behind\":{},\"alert\":\"{}\",\
             \"transition\":{},\"version\":{}}}",
            self.epoch,
            self.n,
            self.time,
            text(&self.rule),
            text(&self.severity),
            text(&self.sensor),
            text(&self.metric),
            self.start,
            self.ordinal,
            self.behind,
            self.alert,
            self.transition,
            text(&self.version),
        )
    }
}

/// A journal without positions, sorted by series, alert id and transition: what is equal for any epochs, as far as
/// R10's Keyed goes. A line that is none of a journal is kept as it is, and sorts first.
pub fn canonical<L: AsRef<str>>(journal: &[L]) -> Vec<String> {
    #[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
    struct Place {
        sensor: String,
        metric: String,
        alert: String,
        transition: u8,
    }
    let mut lines: Vec<(Option<Place>, String)> = journal
        .iter()
        .map(|line| {
            let line = line.as_ref();
            let place = serde_json::from_str(line).ok();
            // Cut out as text, so that every other byte stays as it is.
            let rest = line.strip_prefix("{\"epoch\":").and_then(|rest| Some(&rest[rest.find("\"time\":")?..]));
            (place, rest.map_or_else(|| line.to_string(), |rest| format!("{{{rest}")))
        })
        .collect();
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}
