//! The part of the configuration that answers depend on, in a form of the oracle's own.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::decode::pointer_tokens;
use crate::time::zone_of;

/// Everything an answer depends on besides records and epoch log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where records come from, and what they look like.
    pub sources: Vec<SourceConfig>,
    /// A larger payload is a dead letter.
    pub max_record_bytes: usize,
    /// How far behind its series' clock a reading may be.
    pub allowed_lateness_us: i64,
    /// How far ahead of its partition's T a reading may be.
    pub max_clock_skew_us: i64,
    /// What is a duplicate.
    pub dedup: Dedup,
    /// The number of live series that the limit per key group is made of.
    pub max_series: u64,
    /// The counted silence after which a series is forgotten.
    pub series_ttl_ms: u64,
    /// The windows of every series, in the order of [`crate::Outcome::rolling`].
    pub windows: Vec<Window>,
    /// One per rule and level.
    pub rules: Vec<Rule>,
    /// Sensor -> label -> value, for selectors.
    pub labels: BTreeMap<String, BTreeMap<String, String>>,
    /// Whether [`crate::Outcome::archive`] is filled; a run over millions may not want its rows.
    pub archive: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            sources: Vec::new(),
            max_record_bytes: 1 << 20,
            allowed_lateness_us: 30_000_000,
            max_clock_skew_us: 300_000_000,
            dedup: Dedup::default(),
            max_series: 10_000_000,
            series_ttl_ms: 7 * 24 * 3_600_000,
            windows: Vec::new(),
            rules: Vec::new(),
            labels: BTreeMap::new(),
            archive: true,
        }
    }
}

/// A source and its topics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Its name in the configuration.
    pub name: String,
    /// Its topics, each a stream.
    pub topics: Vec<String>,
    /// How its records are read.
    pub decode: Decode,
}

/// Where in a JSON record things are. Every place is a JSON pointer (RFC 6901).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decode {
    /// The sensor's name.
    pub sensor: String,
    /// The event time.
    pub time: String,
    /// The record's own identity, where it has one.
    #[serde(default)]
    pub id: Option<String>,
    /// Metric and value.
    pub shape: Shape,
    /// The zone of local times.
    #[serde(default)]
    pub zone: Option<String>,
    /// The unit of times that are numbers; by magnitude without it.
    #[serde(default)]
    pub time_unit: Option<TimeUnit>,
    /// What becomes of a value that is null.
    #[serde(default)]
    pub null: NullPolicy,
}

/// One reading in a record, or one per mapped field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Shape {
    /// The record names its metric.
    Narrow {
        /// Where the metric's name is.
        metric: String,
        /// Where the value is.
        value: String,
        /// Metric -> how its values are adjusted.
        #[serde(default)]
        adjust: BTreeMap<String, Adjust>,
    },
    /// The mapping names the metrics.
    Wide {
        /// Metric -> its field.
        fields: BTreeMap<String, Field>,
    },
}

/// A mapped field of a wide record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// Where it is.
    pub pointer: String,
    /// How its values are adjusted.
    #[serde(default)]
    pub adjust: Adjust,
}

/// What happens to a number before it is a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adjust {
    /// Multiplied first.
    pub scale: Option<f64>,
    /// Added then.
    pub offset: Option<f64>,
    /// The least and the greatest value that is in range.
    pub valid: Option<(f64, f64)>,
}

/// The unit of a time that is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeUnit {
    /// Seconds.
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Nanoseconds.
    Ns,
}

/// What becomes of a value that is present and null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NullPolicy {
    /// Counted, and that is all.
    #[default]
    Skip,
    /// A dead-lettered value.
    DeadLetter,
}

/// What is a duplicate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dedup {
    /// What identifies a reading within its series. None: the id where the source names one, else the time.
    pub key: Option<DedupKey>,
    /// How far before the series' clock identities are remembered.
    pub window_us: i64,
    /// What becomes of a reading with a known identity and another time or value.
    pub on_conflict: OnConflict,
}

impl Default for Dedup {
    fn default() -> Dedup {
        Dedup { key: None, window_us: 600_000_000, on_conflict: OnConflict::First }
    }
}

/// What identifies a reading within its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DedupKey {
    /// The id the record carries.
    Id,
    /// Its event time.
    SeriesTime,
    /// The bytes of its record.
    Hash,
}

/// What becomes of a reading with a known identity and another time or value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// A duplicate like any other: the first one counted.
    #[default]
    First,
    /// A dead-lettered value.
    DeadLetter,
}

/// The newest part of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Window {
    /// The readings of the last so many microseconds.
    Time {
        /// Its length.
        us: i64,
    },
    /// The last so many readings.
    Count {
        /// Their number.
        n: u64,
    },
}

/// A condition with its parameters, on the series of one metric that a selector takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// `name` or `name:level`; what alert ids are made of.
    pub key: String,
    /// What the journal shows.
    pub name: String,
    /// The hash of its parameters, as it stands in the journal.
    pub version: String,
    /// As it stands in the journal.
    pub severity: String,
    /// The metric, by its exact name.
    pub metric: String,
    /// All of them must take the sensor.
    #[serde(default)]
    pub selector: Vec<Selector>,
    /// What is looked for.
    pub condition: Condition,
}

/// Patterns for one label. `*` stands for any text; a pattern that starts with `!` excludes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// A label, or `sensor` for the sensor's own name.
    pub label: String,
    /// Taken if one of those without `!` matches (or there is none) and none with `!` does.
    pub patterns: Vec<String>,
}

/// What a rule looks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Condition {
    /// A value, or a statistic of a window, beyond a limit.
    Threshold {
        /// Beyond is above the limit, or else below.
        above: bool,
        /// The limit itself is not beyond.
        limit: f64,
        /// How far back inside the limit a firing alert clears.
        #[serde(default)]
        hysteresis: f64,
        /// How long it must be beyond.
        #[serde(default)]
        for_us: i64,
        /// The statistic and its window; none is the reading's own value.
        #[serde(default)]
        of: Option<(Stat, Window)>,
    },
    /// A series without news.
    Missing {
        /// For how long.
        after_us: i64,
    },
}

/// A statistic of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stat {
    /// The number of readings.
    Count,
    /// Their mean.
    Mean,
    /// Their sample standard deviation.
    Stddev,
    /// The least, by total order.
    Min,
    /// The greatest, by total order.
    Max,
    /// The change per second, from the oldest to the newest.
    Rate,
    /// The exponentially weighted moving average.
    Ewma,
}

impl Config {
    /// An error for what has no meaning.
    pub fn check(&self) -> Result<(), String> {
        for (what, us) in [
            ("allowed_lateness_us", self.allowed_lateness_us),
            ("max_clock_skew_us", self.max_clock_skew_us),
            ("dedup.window_us", self.dedup.window_us),
        ] {
            require(us >= 0, || format!("{what} is negative"))?;
        }
        let mut streams = BTreeSet::new();
        for source in &self.sources {
            source.check(self.dedup.key).map_err(|e| format!("source {}: {e}", source.name))?;
            for topic in &source.topics {
                require(streams.insert((&source.name, topic)), || {
                    format!("the stream ({}, {topic}) is there twice", source.name)
                })?;
            }
        }
        for &window in &self.windows {
            check_window(window)?;
        }
        let mut keys = BTreeSet::new();
        for rule in &self.rules {
            require(keys.insert(&rule.key), || format!("the rule key {} is there twice", rule.key))?;
            rule.check().map_err(|e| format!("rule {}: {e}", rule.key))?;
        }
        Ok(())
    }
}

impl SourceConfig {
    fn check(&self, key: Option<DedupKey>) -> Result<(), String> {
        let decode = &self.decode;
        require(key != Some(DedupKey::Id) || decode.id.is_some(), || {
            "dedup.key is the id, but the mapping names none".into()
        })?;
        for pointer in [&decode.sensor, &decode.time].into_iter().chain(&decode.id) {
            pointer_tokens(pointer)?;
        }
        match &decode.shape {
            Shape::Narrow { metric, value, .. } => {
                pointer_tokens(metric)?;
                pointer_tokens(value)?;
            }
            Shape::Wide { fields } => {
                for field in fields.values() {
                    pointer_tokens(&field.pointer)?;
                }
            }
        }
        decode.zone.as_deref().map(zone_of).transpose()?;
        Ok(())
    }
}

impl Rule {
    fn check(&self) -> Result<(), String> {
        match self.condition {
            Condition::Threshold { limit, hysteresis, for_us, of, .. } => {
                require(limit.is_finite(), || "the limit is not finite".into())?;
                require(hysteresis.is_finite() && hysteresis >= 0.0, || {
                    "the hysteresis is not finite and >= 0".into()
                })?;
                require(for_us >= 0, || "for is negative".into())?;
                of.map(|(_, window)| check_window(window)).transpose()?;
                Ok(())
            }
            Condition::Missing { after_us } => require(after_us > 0, || "after is not positive".into()),
        }
    }
}

fn check_window(window: Window) -> Result<(), String> {
    let empty = matches!(window, Window::Time { us } if us <= 0) || window == Window::Count { n: 0 };
    require(!empty, || format!("the window {window:?} holds nothing"))
}

fn require(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
