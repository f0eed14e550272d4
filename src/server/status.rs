//! How things stand, in one answer: taken from the metrics, so that there is no second count of anything.

use crate::metrics::{Metrics, REVISION, VERSION};
use crate::server::readiness::{Problem, Readiness};
use prometheus::proto::{Metric, MetricFamily, MetricType};
use serde::Serialize;
use std::collections::BTreeMap;

/// What does not change while the process runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Process {
    /// Its index.
    pub process: usize,
    /// How many there are.
    pub processes: usize,
    /// Workers in this process.
    pub workers: usize,
    /// When it started, milliseconds since 1970.
    pub started_ms: u64,
    /// Which run of the cluster this is.
    pub term: u64,
}

/// `/api/v1/status`. Counts are since the start of the process; those by name are sorted.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The program's version.
    pub version: &'static str,
    /// Its commit.
    pub revision: &'static str,
    /// The process.
    #[serde(flatten)]
    pub process: Process,
    /// Whether it does its work.
    pub ready: bool,
    /// Why not.
    pub problems: Vec<Problem>,
    /// Records read.
    pub records: u64,
    /// Readings by outcome.
    pub readings: BTreeMap<String, u64>,
    /// Dead letters by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// Records not yet read.
    pub lag_records: i64,
    /// The longest that one of them has waited.
    pub lag_seconds: f64,
    /// The age of the oldest epoch that is not complete.
    pub epoch_lag_seconds: f64,
    /// Epochs completed.
    pub epochs: u64,
    /// Mean seconds from the seal of an epoch to its completion.
    pub epoch_duration_seconds_mean: Option<f64>,
    /// Differences in the conservation law, as absolute values added up: zero, or there is a defect.
    pub imbalance: u64,
    /// Alerts by state, then severity.
    pub alerts: BTreeMap<String, BTreeMap<String, i64>>,
    /// Whether each sink's last write went through.
    pub sinks_up: BTreeMap<String, bool>,
    /// When the newest checkpoint was complete, seconds since 1970; none before the first.
    pub checkpoint_time: Option<f64>,
}

impl Status {
    /// As things stand.
    pub fn now(process: &Process, metrics: &Metrics, readiness: &Readiness) -> Self {
        let families = metrics.gather();
        let of = |name: &str| families.iter().find(|family| family.name().strip_prefix("streamgauge_") == Some(name));
        let all = |name: &str| of(name).map_or(&[][..], MetricFamily::get_metric);
        let counts = |name: &str, by: &str| {
            let mut counts = BTreeMap::new();
            for metric in all(name) {
                *counts.entry(label(metric, by)).or_insert(0) += metric.get_counter().get_value() as u64;
            }
            counts
        };
        let total = |name: &str| all(name).iter().map(|metric| metric.get_counter().get_value() as u64).sum();
        let gauges = |name: &str| all(name).iter().map(|metric| metric.get_gauge().get_value());
        let mut alerts: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
        for metric in all("alerts") {
            let by_severity = alerts.entry(label(metric, "state")).or_default();
            *by_severity.entry(label(metric, "severity")).or_default() += metric.get_gauge().get_value() as i64;
        }
        let epochs = of("epoch_duration_seconds").filter(|f| f.get_field_type() == MetricType::HISTOGRAM);
        let epochs = epochs.and_then(|f| f.get_metric().first()).map(Metric::get_histogram);
        let problems = readiness.problems();
        Self {
            version: VERSION,
            revision: REVISION,
            process: process.clone(),
            ready: problems.is_empty(),
            problems,
            records: total("source_records_total"),
            readings: counts("readings_total", "outcome"),
            dead_letters: counts("dead_letters_total", "reason"),
            lag_records: gauges("source_lag_records").sum::<f64>() as i64,
            lag_seconds: gauges("source_lag_seconds").fold(0.0, f64::max),
            epoch_lag_seconds: gauges("epoch_lag_seconds").sum(),
            epochs: total("epochs_total"),
            epoch_duration_seconds_mean: epochs
                .filter(|h| h.get_sample_count() > 0)
                .map(|h| h.get_sample_sum() / h.get_sample_count() as f64),
            imbalance: gauges("conservation_imbalance").map(f64::abs).sum::<f64>() as u64,
            alerts,
            sinks_up: all("sink_up").iter().map(|m| (label(m, "sink"), m.get_gauge().get_value() > 0.0)).collect(),
            checkpoint_time: gauges("checkpoint_last_success_timestamp_seconds").next().filter(|time| *time > 0.0),
        }
    }
}

fn label(metric: &Metric, name: &str) -> String {
    metric.get_label().iter().find(|pair| pair.name() == name).map_or_else(String::new, |pair| pair.value().to_owned())
}
