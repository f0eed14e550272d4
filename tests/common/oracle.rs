//! From what the program writes down to what the oracle reads.

use oracle::config::{
    Condition, Config, Decode, Dedup, NullPolicy, OnConflict, Rule, Selector, Shape, SourceConfig, Stat, Window,
};
use oracle::{Line, Outcome};
use std::path::Path;
use streamgauge::config::{self, Pure, Resolved};
use streamgauge::plan::Layout;
use streamgauge::seam::{Fs, RealFs};

/// The oracle's configuration for ours. Narrow sources without adjustments, and rules that name their metric.
pub fn config(pure: &Pure) -> Config {
    let resolved = Resolved::new(pure);
    let window = |w: &operators::Window| match *w {
        operators::Window::Time { us } => Window::Time { us },
        operators::Window::Count { n } => Window::Count { n: u64::from(n) },
    };
    let rule = |rule: &config::ResolvedRule| {
        let metric = rule.metric.clone().expect("a rule of a metric");
        let matches = &pure.rules[&rule.spec.name].matches;
        let condition = match &rule.spec.condition {
            operators::Condition::Missing(missing) => Condition::Missing { after_us: missing.after_us },
            operators::Condition::Threshold(t) => Condition::Threshold {
                above: t.above,
                limit: t.limit,
                hysteresis: t.hysteresis,
                for_us: t.for_us,
                of: t.feature.map(|feature| {
                    let (number, stat) = resolved.plan.features(&metric)[feature];
                    (statistic(stat), window(&resolved.windows[number]))
                }),
            },
        };
        Rule {
            key: rule.spec.key.clone(),
            name: rule.spec.name.clone(),
            version: rule.spec.version.clone(),
            severity: rule.spec.severity.clone(),
            metric,
            selector: matches
                .iter()
                .map(|(label, p)| Selector { label: label.clone(), patterns: p.0.clone() })
                .collect(),
            condition,
        }
    };
    let source = |(name, source): (&String, &config::PureSource)| {
        let decode = &source.decode;
        SourceConfig {
            name: name.clone(),
            topics: source.topics.clone(),
            decode: Decode {
                sensor: decode.sensor.as_str().to_owned(),
                time: decode.time.as_str().to_owned(),
                id: decode.id.as_ref().map(|id| id.as_str().to_owned()),
                shape: Shape::Narrow {
                    metric: decode.metric.as_ref().expect("a narrow source").as_str().to_owned(),
                    value: decode.value.as_ref().expect("a narrow source").as_str().to_owned(),
                    adjust: Default::default(),
                },
                zone: decode.zone.clone(),
                time_unit: None,
                null: NullPolicy::Skip,
            },
        }
    };
    Config {
        sources: pure.sources.iter().map(source).collect(),
        max_record_bytes: pure.limits.max_record_bytes.bytes() as usize,
        allowed_lateness_us: pure.event_time.allowed_lateness.us(),
        max_clock_skew_us: pure.event_time.max_clock_skew.us(),
        dedup: Dedup {
            key: None,
            window_us: pure.dedup.window.us(),
            on_conflict: match pure.dedup.on_conflict {
                config::OnConflict::First => OnConflict::First,
                config::OnConflict::DeadLetter => OnConflict::DeadLetter,
            },
        },
        max_series: u64::from(pure.limits.max_series),
        series_ttl_ms: (pure.limits.series_ttl.us() / 1000) as u64,
        windows: resolved.windows.iter().map(window).collect(),
        rules: resolved.rules.iter().map(rule).collect(),
        labels: pure.inventory.clone(),
        archive: true,
    }
}

fn statistic(stat: operators::Stat) -> Stat {
    match stat {
        operators::Stat::Count => Stat::Count,
        operators::Stat::Mean => Stat::Mean,
        operators::Stat::Stddev => Stat::Stddev,
        operators::Stat::Min => Stat::Min,
        operators::Stat::Max => Stat::Max,
        operators::Stat::Rate => Stat::Rate,
        operators::Stat::Ewma => Stat::Ewma,
    }
}

/// What a run's summary must say, by name, if the oracle is right.
pub fn counts(outcome: &Outcome) -> [(&'static str, u64); 9] {
    let counts = oracle::total(&outcome.counts);
    [
        ("records", counts.records),
        ("accepted", counts.accepted),
        ("behind", counts.behind),
        ("duplicates", counts.duplicates),
        ("late", counts.late),
        ("future", counts.future),
        ("dead_letters", counts.dead_lettered + counts.dead_lettered_values),
        ("alerts", outcome.journal.len() as u64),
        ("imbalance", 0),
    ]
}

/// The epoch log of a data directory.
pub fn lines(data_dir: &Path) -> Vec<Line> {
    lines_in(&RealFs, data_dir)
}

/// The epoch log of a data directory of some file system.
pub fn lines_in(fs: &dyn Fs, data_dir: &Path) -> Vec<Line> {
    let lines = streamgauge::state_cmd::epoch_lines(fs, &Layout::new(data_dir.to_owned())).expect("an epoch log");
    lines.into_iter().map(|line| serde_json::from_value(line).expect("a line of the epoch log")).collect()
}
