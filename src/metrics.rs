//! What Prometheus is told: one table makes the families, their documentation and their test.
//!
//! No sensor is ever a label; label values come from the configuration or from a closed list. Counters and histograms
//! are added to once per batch (`SourceMetrics`), never per reading.

use prometheus::core::Collector;
use prometheus::local::LocalHistogram;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

/// The edges of every histogram, in seconds; 50 ms and 1 s are what we promise, so they are among them.
pub const EDGES: [f64; 15] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was built from, where the build knew it.
pub const REVISION: &str = match option_env!("STREAMGAUGE_COMMIT") {
    Some(revision) => revision,
    None => "unknown",
};

/// A family: its name, its kind (counter, gauge, histogram), its labels, its help.
pub type Documented = (&'static str, &'static str, &'static [&'static str], &'static str);

/// A kind of family that the table below can name.
trait Family: Collector + Clone + Sized + 'static {
    const KIND: &'static str;
    fn build(opts: Opts, labels: &[&str]) -> prometheus::Result<Self>;
}

/// Implements `Family` for types that are made from `Opts`, with or without labels.
macro_rules! family {
    ($kind:literal, $plain:ident, $labelled:ident, $opts:expr) => {
        impl Family for $plain {
            const KIND: &'static str = $kind;
            fn build(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
                $plain::with_opts($opts(opts))
            }
        }
        impl Family for $labelled {
            const KIND: &'static str = $kind;
            fn build(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
                $labelled::new($opts(opts), labels)
            }
        }
    };
}
family!("counter", IntCounter, IntCounterVec, std::convert::identity);
family!("gauge", IntGauge, IntGaugeVec, std::convert::identity);
family!("gauge", Gauge, GaugeVec, std::convert::identity);
family!("histogram", Histogram, HistogramVec, |opts| HistogramOpts::from(opts).buckets(EDGES.to_vec()));

/// Makes the struct, its documentation and its constructor from one table.
macro_rules! families {
    ($($field:ident: $type:ident [$($label:literal),*] $help:literal;)*) => {
        /// All families, by name without the prefix `streamgauge_`.
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $field: $type,)*
        }

        /// The families, in the order in which a reading meets what they count.
        pub const DOCUMENTED: &[Documented] = &[
            $((concat!("streamgauge_", stringify!($field)), <$type as Family>::KIND, &[$($label),*], $help),)*
        ];

        impl Metrics {
            /// Makes all families in a registry of their own, with the process's own figures beside them.
            pub fn new() -> Result<Arc<Self>, prometheus::Error> {
                let registry = Registry::new();
                let metrics = Self {
                    $($field: {
                        let opts = Opts::new(concat!("streamgauge_", stringify!($field)), $help);
                        let family = <$type as Family>::build(opts, &[$($label),*])?;
                        registry.register(Box::new(family.clone()))?;
                        family
                    },)*
                    registry,
                };
                #[cfg(target_os = "linux")]
                metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
                metrics.build_info.with_label_values(&[VERSION, REVISION]).set(1);
                Ok(Arc::new(metrics))
            }
        }
    };
}

families! {
    source_records_total: IntCounterVec ["source", "topic", "partition"] "Records read from the source.";
    source_bytes_total: IntCounterVec ["source"] "Payload bytes read from the source.";
    source_lag_records: IntGaugeVec ["source", "topic", "partition"] "Records between the next offset to read and the end of the partition.";
    source_lag_seconds: GaugeVec ["source", "topic", "partition"] "Age of the newest record read while more are waiting; 0 at the end of the partition.";
    source_up: IntGaugeVec ["source"] "Whether the source can be reached (1) or not (0).";
    readings_total: IntCounterVec ["source", "outcome"] "Readings by outcome: accepted, duplicate, late, future, dead_letter, null.";
    readings_behind_total: IntCounterVec ["source"] "Readings accepted although older than the newest of their series; part of accepted.";
    dead_letters_total: IntCounterVec ["source", "reason"] "Records and values refused, by reason.";
    dead_letters_removed_total: IntCounter [] "Dead letters removed from the store because it had reached its size.";
    conservation_imbalance: IntGaugeVec ["ledger", "source", "topic", "partition"] "What went in less all outcomes, in the ledger of records and of readings; anything but zero is a defect.";
    dedup_conflicts_total: IntCounterVec ["source"] "Repeated identities that carried another value or time.";
    clock_skewed_readings_total: IntCounterVec ["source"] "Readings with an event time beyond max_clock_skew.";
    event_time_delay_seconds: HistogramVec ["source"] "Epoch less event time, per reading.";
    epochs_total: IntCounter [] "Steps in which epochs were completed: one for each epoch that holds records, one for up to a second of empty ones.";
    epoch_duration_seconds: Histogram [] "Time from the seal of an epoch to its completion.";
    epoch_lag_seconds: Gauge [] "Age of the oldest epoch that is not complete.";
    epochs_in_flight: IntGauge [] "Epochs sealed and not complete.";
    epoch_log_commit_seconds: Histogram [] "Time to append an epoch to the epoch log, as durable as configured.";
    operator_state_bytes: IntGaugeVec ["operator"] "Memory held by an operator's state.";
    operator_state_keys: IntGaugeVec ["operator"] "Entries in an operator's state: identities, window entries, series.";
    rule_series: IntGaugeVec ["rule"] "Series that a rule watches now.";
    alerts: IntGaugeVec ["rule", "severity", "state"] "Alerts now, by state: firing.";
    alert_changes_total: IntCounterVec ["rule", "severity", "state"] "Changes of alerts, by the state they changed to: firing, resolved.";
    alert_delay_seconds: HistogramVec ["sink"] "Epoch of an alert's change to the sink's acknowledgement of it.";
    sink_records_total: IntCounterVec ["sink"] "Records that the sink has acknowledged.";
    sink_refused_total: IntCounterVec ["sink", "reason"] "Records that the sink has refused for good.";
    sink_retries_total: IntCounterVec ["sink", "reason"] "Writes tried again.";
    sink_collisions_total: IntCounterVec ["sink"] "Readings that took the place of another one of the same series and millisecond.";
    sink_write_duration_seconds: HistogramVec ["sink"] "Duration of one batch's write.";
    sink_lag_seconds: GaugeVec ["sink"] "Age of the oldest batch not acknowledged.";
    sink_queue_items: IntGaugeVec ["sink"] "Records waiting in the sink's lane, in memory and on disk.";
    sink_spill_bytes: IntGaugeVec ["sink"] "Bytes waiting on disk for the sink.";
    sink_up: IntGaugeVec ["sink"] "Whether the last write went through (1) or not (0).";
    checkpoint_duration_seconds: Histogram [] "Duration of a checkpoint, from its cut to its manifest.";
    checkpoint_cut_seconds: HistogramVec ["operator"] "Time that a worker spent on saving an operator's state for a checkpoint, at a time.";
    checkpoint_stall_seconds: Histogram [] "Time for which a worker did nothing but save its state, at a time: at a checkpoint's cut, and in the ticks after it.";
    checkpoint_size_bytes: IntGauge [] "Size of this process's part of the newest checkpoint.";
    checkpoint_last_success_timestamp_seconds: Gauge [] "When the newest checkpoint was complete, seconds since 1970.";
    checkpoints_damaged_total: IntCounter [] "Checkpoints found damaged at the start; an older one was used.";
    disk_up: IntGaugeVec ["what"] "Whether the disk of data_dir took what was last written (1) or not (0): epoch_log, checkpoint, term, dead_letters, shed, journal.";
    disk_errors_total: IntCounterVec ["what"] "Errors of the disk of data_dir while running, by what was being written; each was waited out.";
    mesh_refused_total: IntCounterVec ["reason"] "Connections to the port for other processes that were not let in.";
    build_info: IntGaugeVec ["version", "revision"] "One, with the version in its labels.";
}

impl Metrics {
    /// All families that have a value, in the text format of Prometheus.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => {
                tracing::error!(%error, "metrics not rendered");
                String::new()
            }
        }
    }

    /// The families as they stand, for `/api/v1/status`.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// A source's counters, looked up once: adding to them hashes and locks nothing.
    pub fn source(self: &Arc<Self>, source: &str) -> SourceMetrics {
        let outcome = |outcome| self.readings_total.with_label_values(&[source, outcome]);
        SourceMetrics {
            source: source.to_owned(),
            bytes: self.source_bytes_total.with_label_values(&[source]),
            accepted: outcome("accepted"),
            duplicates: outcome("duplicate"),
            late: outcome("late"),
            future: outcome("future"),
            dead_letters: outcome("dead_letter"),
            nulls: outcome("null"),
            behind: self.readings_behind_total.with_label_values(&[source]),
            conflicting: self.dedup_conflicts_total.with_label_values(&[source]),
            skewed: self.clock_skewed_readings_total.with_label_values(&[source]),
            delay: self.event_time_delay_seconds.with_label_values(&[source]).local(),
            reasons: BTreeMap::new(),
            metrics: Arc::clone(self),
        }
    }

    /// A partition's counter and gauges, looked up once.
    pub fn partition(&self, source: &str, topic: &str, partition: u32) -> PartitionMetrics {
        let partition = partition.to_string();
        let labels = [source, topic, partition.as_str()];
        let ledger = |ledger| self.conservation_imbalance.with_label_values(&[ledger, source, topic, &partition]);
        PartitionMetrics {
            records: self.source_records_total.with_label_values(&labels),
            lag_records: self.source_lag_records.with_label_values(&labels),
            lag_seconds: self.source_lag_seconds.with_label_values(&labels),
            records_imbalance: ledger("records"),
            readings_imbalance: ledger("readings"),
        }
    }
}

/// What happened to the readings of a batch, or of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadingCounts {
    /// Accepted, those that are behind included.
    pub accepted: u64,
    /// Accepted and behind.
    pub behind: u64,
    /// Duplicates, the conflicting ones included.
    pub duplicates: u64,
    /// Same identity, other value or time.
    pub conflicting: u64,
    /// Late.
    pub late: u64,
    /// In the future.
    pub future: u64,
    /// Dead-lettered values.
    pub dead_letters: u64,
    /// Nulls skipped.
    pub nulls: u64,
}

/// One worker's handles on a source's families; owned by that worker.
pub struct SourceMetrics {
    source: String,
    bytes: IntCounter,
    accepted: IntCounter,
    duplicates: IntCounter,
    late: IntCounter,
    future: IntCounter,
    dead_letters: IntCounter,
    nulls: IntCounter,
    behind: IntCounter,
    conflicting: IntCounter,
    skewed: IntCounter,
    delay: LocalHistogram,
    reasons: BTreeMap<&'static str, IntCounter>,
    metrics: Arc<Metrics>,
}

impl SourceMetrics {
    /// Adds a batch's outcomes.
    pub fn readings(&self, counts: &ReadingCounts) {
        for (counter, by) in [
            (&self.accepted, counts.accepted),
            (&self.duplicates, counts.duplicates),
            (&self.late, counts.late),
            (&self.future, counts.future),
            (&self.dead_letters, counts.dead_letters),
            (&self.nulls, counts.nulls),
            (&self.behind, counts.behind),
            (&self.conflicting, counts.conflicting),
            (&self.skewed, counts.future),
        ] {
            if by > 0 {
                counter.inc_by(by);
            }
        }
    }

    /// Adds a batch's payload bytes.
    pub fn bytes(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    /// Counts dead letters of one reason.
    pub fn dead_letters(&mut self, reason: &'static str, count: u64) {
        let (family, source) = (&self.metrics.dead_letters_total, self.source.as_str());
        self.reasons.entry(reason).or_insert_with(|| family.with_label_values(&[source, reason])).inc_by(count);
    }

    /// Notes a reading's delay, on this worker alone; a reading from the future counts as no delay.
    #[inline]
    pub fn delay(&self, epoch_ms: u64, event_time_us: i64) {
        let delay_us = (epoch_ms as i64).saturating_mul(1000).saturating_sub(event_time_us);
        self.delay.observe(delay_us.max(0) as f64 * 1e-6);
    }

    /// Hands the noted delays over; once per batch.
    pub fn flush(&self) {
        self.delay.flush();
    }
}

/// The handles on a partition's families.
#[derive(Clone)]
pub struct PartitionMetrics {
    /// Records read.
    pub records: IntCounter,
    /// Records not read yet.
    pub lag_records: IntGauge,
    /// How long they have waited.
    pub lag_seconds: Gauge,
    /// Records in less records out; zero.
    pub records_imbalance: IntGauge,
    /// Readings in less readings out; zero.
    pub readings_imbalance: IntGauge,
}

/// docs/metrics.md.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Metrics\n\n<!-- generated from the table in src/metrics.rs; do not edit -->\n\n\
         `GET /metrics` in the text format of Prometheus; each process serves its own, on the configured port plus its\n\
         index. Times are seconds, sizes bytes. No sensor is a label; label values come from the configuration or from a\n\
         closed list, so the number of series is bounded by the configuration. Each family sums sensibly over its labels\n\
         and over processes. A family with labels appears with its first value.\n\n\
         | name | kind | labels | meaning |\n|---|---|---|---|\n",
    );
    for (name, kind, labels, help) in DOCUMENTED {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(page, "| `{name}` | {kind} | {labels} | {help} |");
    }
    let edges = EDGES.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
    let _ = write!(
        page,
        "\nHistograms have the edges {edges} s.\n\nBeside them, on Linux: `process_cpu_seconds_total`, \
         `process_resident_memory_bytes`,\n`process_virtual_memory_bytes`, `process_open_fds`, `process_max_fds`, \
         `process_threads`,\n`process_start_time_seconds`.\n"
    );
    page
}

#[cfg(test)]
mod tests;
