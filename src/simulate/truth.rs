//! What was sent: counted as each message is handed out, not worked out afterwards.

use super::Plant;
use super::encode::Field;
use super::faults::{Fault, FaultKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a message is spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Bytes that are no JSON.
    Garbage,
    /// A message cut short.
    Truncated,
    /// A value that reads "ERR". The record decodes; the value does not.
    ErrValue,
    /// A message without one of its fields.
    MissingField,
}

impl Malformed {
    /// All of them.
    pub const ALL: [Malformed; 4] = [Self::Garbage, Self::Truncated, Self::ErrValue, Self::MissingField];
}

/// How many messages of each kind were spoiled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MalformedCounts {
    /// Bytes that are no JSON.
    pub garbage: u64,
    /// Cut short.
    pub truncated: u64,
    /// With a value that reads "ERR".
    pub err_value: u64,
    /// Without one of their fields.
    pub missing_field: u64,
}

impl MalformedCounts {
    /// All of them together.
    pub fn total(&self) -> u64 {
        self.garbage + self.truncated + self.err_value + self.missing_field
    }
}

/// What becomes of the readings, by the rules in docs/semantics.md, 3.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// With this `event_time.allowed_lateness`, in seconds ...
    pub allowed_lateness_s: f64,
    /// ... and this `dedup.window`, in seconds; a `max_clock_skew` of less than a day.
    pub dedup_window_s: f64,
    /// Accepted, those behind included.
    pub accepted: u64,
    /// Accepted, but older than their series' clock.
    pub behind: u64,
    /// Duplicates.
    pub duplicates: u64,
    /// Late.
    pub late: u64,
    /// In the future: of a skewed clock.
    pub future: u64,
}

/// Readings beyond a metric's limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Breaching {
    /// The limit.
    pub limit: f64,
    /// Whether beyond it is above, or below.
    pub above: bool,
    /// Different readings beyond it, those of skewed clocks not counted.
    pub readings: u64,
}

/// The truth about a plant's messages, as far as they have been handed out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Truth {
    /// The plant's seed.
    pub seed: u64,
    /// Messages sent: those that are well, their copies and the spoiled ones.
    pub records: u64,
    /// Readings in them: unique + duplicates.
    pub readings: u64,
    /// Different readings.
    pub unique: u64,
    /// Readings sent a second time.
    pub duplicates: u64,
    /// Different readings sent after a newer one of their series (skewed clocks apart).
    pub out_of_order: u64,
    /// Spoiled messages.
    pub malformed: MalformedCounts,
    /// Records that cannot be decoded, and why.
    pub dead_letters: BTreeMap<String, u64>,
    /// Values of decoded records that are refused, and why.
    pub dead_values: BTreeMap<String, u64>,
    /// What becomes of the readings.
    pub outcome: Outcome,
    /// Readings beyond each metric's limit.
    pub breaching: BTreeMap<String, Breaching>,
    /// The faults planted, in order.
    pub faults: Vec<Fault>,
    /// Readings beyond their limit by the plant's share `beyond`, up to 10,000 of them.
    pub beyond: Vec<Fault>,
    /// Different readings of each series, as `sensor/metric`, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<BTreeMap<String, u64>>,
    /// The clocks of the series: the newest event time accepted, by sensor and metric.
    #[serde(skip)]
    clocks: Vec<i64>,
    #[serde(skip)]
    per_series: Vec<u64>,
    #[serde(skip)]
    breaches: Vec<u64>,
    #[serde(skip)]
    last_sent_ms: i64,
}

/// `beyond` lists no more than this.
const BEYOND_MAX: usize = 10_000;

impl Truth {
    pub(super) fn new(plant: &Plant) -> Self {
        let series = plant.sensors as usize * plant.metrics.len();
        Self {
            seed: plant.seed,
            records: 0,
            readings: 0,
            unique: 0,
            duplicates: 0,
            out_of_order: 0,
            malformed: MalformedCounts::default(),
            dead_letters: BTreeMap::new(),
            dead_values: BTreeMap::new(),
            outcome: Outcome {
                allowed_lateness_s: plant.judged.allowed_lateness_ms as f64 / 1e3,
                dedup_window_s: plant.judged.dedup_window_ms as f64 / 1e3,
                ..Outcome::default()
            },
            breaching: BTreeMap::new(),
            faults: Vec::new(),
            beyond: Vec::new(),
            series: None,
            clocks: vec![i64::MIN; series],
            per_series: if plant.per_series { vec![0; series] } else { Vec::new() },
            breaches: vec![0; plant.metrics.len()],
            last_sent_ms: plant.start_ms,
        }
    }
    /// When the last message was sent, by the plant's time.
    pub fn last_sent_ms(&self) -> i64 {
        self.last_sent_ms
    }

    pub(super) fn record(&mut self, at_ms: i64) {
        self.records += 1;
        self.last_sent_ms = at_ms;
    }
    pub(super) fn malformed(&mut self, kind: Malformed, missing: Option<Field>) {
        let (count, reason) = match kind {
            Malformed::Garbage => (&mut self.malformed.garbage, "not_json"),
            Malformed::Truncated => (&mut self.malformed.truncated, "not_json"),
            Malformed::MissingField => (&mut self.malformed.missing_field, missing.map_or("", Field::reason)),
            Malformed::ErrValue => (&mut self.malformed.err_value, "invalid_value"),
        };
        *count += 1;
        let letters = if kind == Malformed::ErrValue { &mut self.dead_values } else { &mut self.dead_letters };
        *letters.entry(reason.into()).or_default() += 1;
    }
    /// One reading was sent, perhaps as a copy (of one that was accepted, or was not). Says whether it is accepted.
    pub(super) fn reading(
        &mut self,
        plant: &Plant,
        sensor: u32,
        m: u8,
        event_ms: i64,
        copy_of: Option<bool>,
        skewed: bool,
    ) -> bool {
        self.readings += 1;
        *if copy_of.is_some() { &mut self.duplicates } else { &mut self.unique } += 1;
        let n = sensor as usize * plant.metrics.len() + usize::from(m);
        if copy_of.is_none() && plant.per_series {
            self.per_series[n] += 1;
        }
        if skewed {
            self.outcome.future += 1;
            return false;
        }
        let clock = self.clocks[n];
        if copy_of.is_none() && event_ms < clock {
            self.out_of_order += 1;
        }
        if copy_of == Some(true) && event_ms >= clock.saturating_sub(plant.judged.dedup_window_ms) {
            self.outcome.duplicates += 1;
            return false;
        }
        if event_ms < clock.saturating_sub(plant.judged.allowed_lateness_ms) {
            self.outcome.late += 1;
            return false;
        }
        self.outcome.accepted += 1;
        self.outcome.behind += u64::from(event_ms < clock);
        self.clocks[n] = clock.max(event_ms);
        true
    }
    /// The value of a reading that was sent for the first time.
    pub(super) fn value(
        &mut self,
        plant: &Plant,
        sensor: u32,
        m: u8,
        value: i32,
        event_ms: i64,
        (fault, skewed): (Option<u32>, bool),
    ) {
        let metric = plant.metrics[usize::from(m)];
        let breaches = metric.breaches(value) && !skewed;
        self.breaches[usize::from(m)] += u64::from(breaches);
        if let Some(fault) = fault.and_then(|n| self.faults.get_mut(n as usize)) {
            // A wide message bears the mark on one of its metrics.
            if fault.metric.as_deref().is_none_or(|name| name == metric.name) {
                fault.readings += 1;
                return;
            }
        }
        if breaches && self.beyond.len() < BEYOND_MAX {
            self.beyond.push(Fault {
                kind: FaultKind::Beyond,
                sensor: sensor_text(sensor),
                metric: Some(metric.name.into()),
                from: event_ms * 1_000,
                to: event_ms * 1_000 + 1,
                readings: 1,
            });
        }
    }
    pub(super) fn planted(
        &mut self,
        kind: FaultKind,
        sensor: u32,
        metric: Option<&str>,
        from_ms: i64,
        to_ms: i64,
    ) -> u32 {
        self.faults.push(Fault {
            kind,
            sensor: sensor_text(sensor),
            metric: metric.map(Into::into),
            from: from_ms * 1_000,
            to: to_ms * 1_000,
            readings: 0,
        });
        self.faults.len() as u32 - 1
    }
    pub(super) fn swallowed(&mut self, fault: u32) {
        if let Some(fault) = self.faults.get_mut(fault as usize) {
            fault.readings += 1;
        }
    }
    /// Makes up the lists that are kept by number while messages are made.
    pub(super) fn finish(mut self, plant: &Plant) -> Self {
        for (metric, readings) in plant.metrics.iter().zip(&self.breaches) {
            let breaching = Breaching { limit: metric.limit_value(), above: metric.above, readings: *readings };
            self.breaching.insert(metric.name.into(), breaching);
        }
        if plant.per_series {
            let metrics = plant.metrics.len();
            let measured = (0..plant.sensors).flat_map(|s| plant.metrics_of(s).map(move |m| (s, m)));
            let series = measured
                .map(|(s, m)| {
                    let name = format!("{}/{}", sensor_text(s), plant.metrics[m].name);
                    (name, self.per_series[s as usize * metrics + m])
                })
                .collect();
            self.series = Some(series);
        }
        self
    }
}

/// A sensor's name.
pub(super) fn sensor_text(sensor: u32) -> String {
    format!("s-{:05}", sensor + 1)
}
