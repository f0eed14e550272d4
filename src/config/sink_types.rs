//! The settings of the sinks: one struct each, in one closed enum.

use super::types::Properties;
use super::values::{Interval, Secret, Size, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where alerts or readings go. The key `type` names the variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(tag = "type")]
pub enum SinkSettings {
    /// Alerts as lines on standard output.
    Stdout(StdoutSink),
    /// Alerts to a Redis Stream: each transition once, in order.
    RedisStream(RedisStreamSink),
    /// The newest reading of every sensor in Redis, by event time.
    RedisLast(RedisLastSink),
    /// Readings to RedisTimeSeries.
    RedisTimeseries(RedisTimeseriesSink),
    /// Readings to Parquet files on this machine.
    Parquet(ParquetSink),
    /// Alerts to a Kafka topic.
    Kafka(KafkaSink),
}

impl SinkSettings {
    /// As the key `type` writes it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Stdout(_) => "stdout",
            Self::RedisStream(_) => "redis_stream",
            Self::RedisLast(_) => "redis_last",
            Self::RedisTimeseries(_) => "redis_timeseries",
            Self::Parquet(_) => "parquet",
            Self::Kafka(_) => "kafka",
        }
    }
    /// Whether it takes readings rather than alerts.
    pub fn wants_rows(&self) -> bool {
        matches!(self, Self::RedisLast(_) | Self::RedisTimeseries(_) | Self::Parquet(_))
    }
    /// How its lane behaves.
    pub fn lane(&self) -> LaneSettings {
        let (when_full, capacity, memory) = match self {
            Self::Stdout(s) => (s.when_full, s.capacity, s.memory),
            Self::RedisStream(s) => (s.when_full, s.capacity, s.memory),
            Self::RedisLast(s) => (s.when_full, s.capacity, s.memory),
            Self::RedisTimeseries(s) => (s.when_full, s.capacity, s.memory),
            Self::Parquet(s) => (s.when_full, s.capacity, s.memory),
            Self::Kafka(s) => (s.when_full, s.capacity, s.memory),
        };
        LaneSettings { when_full, capacity, memory }
    }
}

/// How a lane behaves when its destination is slow: the same three keys in every sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneSettings {
    /// What happens once `capacity` is used up.
    pub when_full: WhenFull,
    /// How much may wait in all.
    pub capacity: Size,
    /// How much of it may wait in memory.
    pub memory: Size,
}

/// What happens when a sink's lane is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Reading pauses until there is room: nothing is lost, everything waits.
    #[default]
    Pause,
    /// What finds no room is set aside in `data_dir/shed`, and the rest goes on.
    DeadLetter,
}

fn capacity() -> Size {
    Size::mib(1024)
}
fn memory() -> Size {
    Size::mib(32)
}

/// Alerts as lines on standard output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StdoutSink {
    /// How a line looks.
    #[serde(default)]
    pub format: StdoutFormat,
    /// What happens when more waits for this sink than `capacity`.
    #[serde(default)]
    pub when_full: WhenFull,
    /// How much may wait for this sink, in memory and in segment files together.
    #[serde(default = "capacity")]
    pub capacity: Size,
    /// How much of it may wait in memory before it overflows into segment files.
    #[serde(default = "memory")]
    pub memory: Size,
}

/// How a line on standard output looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StdoutFormat {
    /// For people.
    #[default]
    Text,
    /// The journal's line, for programs.
    Json,
}

/// Alerts to a Redis Stream: each transition once, in order, under the entry id `epoch-n`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisStreamSink {
    /// `redis://[user:password@]host:port[/database]`, or `unix:///path`.
    pub url: Url,
    /// The password, where it should not stand in `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// The stream's key.
    #[serde(default = "alerts_key")]
    pub key: String,
    /// The stream is trimmed to about so many entries. Left out: never trimmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maxlen: Option<u64>,
    /// What happens when more waits for this sink than `capacity`.
    #[serde(default)]
    pub when_full: WhenFull,
    /// How much may wait for this sink, in memory and in segment files together.
    #[serde(default = "capacity")]
    pub capacity: Size,
    /// How much of it may wait in memory before it overflows into segment files.
    #[serde(default = "memory")]
    pub memory: Size,
}

fn alerts_key() -> String {
    "alerts".into()
}

/// The newest reading of every sensor in Redis: a hash per sensor, set only if newer by event time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisLastSink {
    /// `redis://[user:password@]host:port[/database]`, or `unix:///path`.
    pub url: Url,
    /// The password, where it should not stand in `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// What stands before the sensor's name in the key.
    #[serde(default = "last_prefix")]
    pub prefix: String,
    /// What happens when more waits for this sink than `capacity`.
    #[serde(default)]
    pub when_full: WhenFull,
    /// How much may wait for this sink, in memory and in segment files together.
    #[serde(default = "capacity")]
    pub capacity: Size,
    /// How much of it may wait in memory before it overflows into segment files.
    #[serde(default = "memory")]
    pub memory: Size,
}

fn last_prefix() -> String {
    "last:".into()
}

/// Readings to RedisTimeSeries (Redis 8, or Redis with that module): one value per series and millisecond.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisTimeseriesSink {
    /// `redis://[user:password@]host:port[/database]`, or `unix:///path`.
    pub url: Url,
    /// The password, where it should not stand in `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// The key of a series, with `{sensor}` and `{metric}`.
    #[serde(default = "timeseries_key")]
    pub key: String,
    /// Labels of the inventory that each series gets, beside `sensor` and `metric`.
    #[serde(default)]
    pub labels: Vec<String>,
    /// How long Redis keeps a value. Left out: for ever. What is older when it arrives is counted, and not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Interval>,
    /// What happens when more waits for this sink than `capacity`.
    #[serde(default)]
    pub when_full: WhenFull,
    /// How much may wait for this sink, in memory and in segment files together.
    #[serde(default = "capacity")]
    pub capacity: Size,
    /// How much of it may wait in memory before it overflows into segment files.
    #[serde(default = "memory")]
    pub memory: Size,
}

fn timeseries_key() -> String {
    "ts:{sensor}:{metric}".into()
}

/// Readings to Parquet files on this machine: complete files only, each reading once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParquetSink {
    /// The directory. A path is relative to the working directory.
    pub path: PathBuf,
    /// What happens when more waits for this sink than `capacity`.
    #[serde(default)]
    pub when_full: WhenFull,
    /// How much may wait for this sink, in memory and in segment files together.
    #[serde(default = "capacity")]
    pub capacity: Size,
    /// How much of it may wait in memory before it overflows into segment files.
    #[serde(default = "memory")]
    pub memory: Size,
}

/// Alerts to a Kafka topic, keyed by sensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSink {
    /// Where to find the cluster: `host:port`, several separated by commas.
    pub bootstrap_servers: String,
    /// The topic.
    pub topic: String,
    /// Settings of librdkafka, passed on by name. Those that streamgauge owns are refused, with the reason.
    #[serde(default)]
    pub properties: Properties,
    /// What happens when more waits for this sink than `capacity`.
    #[serde(default)]
    pub when_full: WhenFull,
    /// How much may wait for this sink, in memory and in segment files together.
    #[serde(default = "capacity")]
    pub capacity: Size,
    /// How much of it may wait in memory before it overflows into segment files.
    #[serde(default = "memory")]
    pub memory: Size,
}
