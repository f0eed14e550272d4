//! Every setting there is: the doc comments are the manual, `docs/configuration.md` and the JSON schema are made of them.
//!
//! How a file becomes these types is in `load`; what makes a well-formed configuration wrong is in `validate`.

use super::values::{Interval, OneOrMany, Pointer, Secret, Size};
use crate::memory::Memory;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

pub use super::rule_types::{Levels, Limits, Missing, Of, RuleSettings, Severity, When, WindowText};
pub use super::sink_types::{
    KafkaSink, LaneSettings, ParquetSink, RedisLastSink, RedisStreamSink, RedisTimeseriesSink, SinkSettings,
    StdoutFormat, StdoutSink, WhenFull,
};

/// The configuration of one streamgauge: where readings come from, what they mean, what is judged, where alerts go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where checkpoints, the epoch log, the lanes of the sinks, dead letters and the journal lie. One directory belongs
    /// to one running streamgauge; losing it loses its memory.
    pub data_dir: PathBuf,
    /// A CSV file of sensors and their labels, with the header `sensor,site,type,...`: rules select by these labels. A
    /// path is relative to the configuration file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory: Option<PathBuf>,
    /// How many worker threads each process has. Changes the speed, never an answer; take one per free core.
    #[schemars(range(min = 1, max = 1024))]
    pub workers: usize,
    /// How much a process may hold in memory of what is on its way: records fetched, readings under way, lanes of sinks.
    /// Lanes whose `memory` is more in sum get their share of it. Beyond it reading pauses. State comes on top: what series,
    /// identities and windows take.
    pub memory: Size,
    /// The page, the API, metrics and health.
    pub server: ServerSettings,
    /// How several processes find each other.
    pub mesh: MeshSettings,
    /// Which readings are too old or too new to be judged.
    pub event_time: EventTime,
    /// When a reading counts as the same reading sent again.
    pub dedup: Dedup,
    /// Rolling statistics that are kept for every series.
    pub rolling: RollingSettings,
    /// Limits that keep memory bounded; they may change answers, so they are part of the recorded configuration.
    pub limits: LimitSettings,
    /// How the input is cut into epochs, and how durable the epoch log is.
    pub epochs: Epochs,
    /// How often the state is saved.
    pub checkpoint: Checkpoint,
    /// The live views behind page and API.
    pub views: Views,
    /// Where readings come from, by name; at least one. The name is part of each reading's place in the log order.
    pub sources: BTreeMap<String, SourceSettings>,
    /// What is judged, by name. The name is part of each alert's id: renaming a rule ends its alerts.
    pub rules: BTreeMap<String, RuleSettings>,
    /// Where alerts and readings go, by name. The journal in `data_dir` is always written.
    pub sinks: BTreeMap<String, SinkSettings>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "streamgauge-data".into(),
            inventory: None,
            workers: 1,
            memory: Size::mib(1024),
            server: ServerSettings::default(),
            mesh: MeshSettings::default(),
            event_time: EventTime::default(),
            dedup: Dedup::default(),
            rolling: RollingSettings::default(),
            limits: LimitSettings::default(),
            epochs: Epochs::default(),
            checkpoint: Checkpoint::default(),
            views: Views::default(),
            sources: BTreeMap::new(),
            rules: BTreeMap::new(),
            sinks: BTreeMap::new(),
        }
    }
}

impl Config {
    /// `memory`, divided.
    pub fn divided(&self) -> Memory {
        Memory::of(self.memory.bytes(), self.workers, self.sources.len())
    }
}

/// The page, the API, metrics and health: one listener per process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// Where `/`, `/api/v1/...`, `/metrics`, `/healthz` and `/readyz` are served. Process p of several adds p to the
    /// port. There is no login: keep it on loopback, or behind something that has one.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self { listen: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7070).into() }
    }
}

/// How several processes find each other, and when one counts as lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MeshSettings {
    /// A file with a secret of at least 16 bytes that all processes hold, readable by its owner alone: the same file on
    /// each host, or a copy. Left out, processes on one machine take one that lies in `data_dir`, and addresses that other
    /// machines could reach are refused. A path is relative to the configuration file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// How long a process waits at its start until all others have come.
    pub join_timeout: Interval,
    /// How long another process may be silent before it counts as lost. One that dies is noticed at once; this is for one
    /// that is cut off or frozen.
    pub silence: Interval,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self { secret_file: None, join_timeout: Interval::seconds(60), silence: Interval::seconds(10) }
    }
}

/// Which readings are too old or too new to be judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EventTime {
    /// How far behind the newest reading of its series a reading may be and still count. Longer loses fewer stragglers
    /// and keeps windows and episodes longer. At most `dedup.window`.
    pub allowed_lateness: Interval,
    /// How far ahead of its partition's record time stamps an event time may be. What is further ahead is archived and
    /// flagged `future`, and moves no clock: a device with a wrong clock harms itself only.
    pub max_clock_skew: Interval,
}

impl Default for EventTime {
    fn default() -> Self {
        Self { allowed_lateness: Interval::seconds(30), max_clock_skew: Interval::minutes(5) }
    }
}

/// When a reading counts as the same reading sent again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dedup {
    /// What makes two readings of a series the same one. Left out: `id` where the source's decode names an id, otherwise
    /// `series_time`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<DedupKey>,
    /// How long an identity is remembered, in event time of its series. Longer catches later copies and costs about 40
    /// bytes per reading held.
    pub window: Interval,
    /// What becomes of a reading with a known identity but another value or event time.
    pub on_conflict: OnConflict,
}

impl Default for Dedup {
    fn default() -> Self {
        Self { key: None, window: Interval::minutes(10), on_conflict: OnConflict::First }
    }
}

/// What makes two readings of a series the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DedupKey {
    /// The id that the decode mapping names.
    Id,
    /// The event time.
    SeriesTime,
    /// The bytes of the whole message.
    Hash,
}

/// What becomes of a reading with a known identity but another value or event time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// The first one counts; this one is a duplicate, and counted as conflicting.
    #[default]
    First,
    /// It is set aside as a dead letter.
    DeadLetter,
}

/// Rolling statistics that are kept for every series: count, mean, standard deviation, minimum, maximum, rate, EWMA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RollingSettings {
    /// Windows over the last stretch of event time, such as `["60s", "1h"]`. Rules may name more.
    pub windows: Vec<Interval>,
    /// Windows over the last so many readings, such as `[100]`.
    pub last: Vec<u32>,
}

/// Limits that keep memory bounded. They hold per key group, so that the number of workers changes no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// How many series may be live. Each of the 4,096 key groups holds twice its share; what would be one more is a dead
    /// letter `too_many_series`.
    pub max_series: u32,
    /// After how much counted silence a series is forgotten, but for its clock and its firing alerts.
    pub series_ttl: Interval,
    /// The largest message that is decoded; a larger one is a dead letter `too_large`.
    pub max_record_bytes: Size,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self { max_series: 10_000_000, series_ttl: Interval::days(7), max_record_bytes: Size::mib(1) }
    }
}

/// How the input is cut into epochs, and how durable the epoch log is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Epochs {
    /// How often an epoch is closed, from `1ms` to `1s`. Shorter brings alerts sooner and costs more per reading.
    pub tick: Interval,
    /// What "written down" means for the epoch log.
    pub durability: Durability,
    /// How long the epoch log is kept, so that `run --replay` can run it again: a term's log goes after streamgauge has run
    /// for so long since its end, by its own epochs, for wall clocks jump. Never less than the newest checkpoint needs.
    pub retention: Interval,
}

impl Default for Epochs {
    fn default() -> Self {
        Self { tick: Interval::millis(20), durability: Durability::Process, retention: Interval::days(7) }
    }
}

/// What "written down" means for the epoch log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Handed to the operating system: survives the end of the process, kill -9 included.
    #[default]
    Process,
    /// Synced to the disk: survives the end of the machine, and delays each epoch by one sync.
    Disk,
}

/// How often the state is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// How often, in epoch time. Longer means less writing, and more to read again after a crash.
    pub interval: Interval,
    /// How many are kept, from 1 to 3.
    pub keep: u32,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { interval: Interval::seconds(30), keep: 3 }
    }
}

/// The live views behind page and API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Views {
    /// How often the last values are brought up to date; `"0s"` turns them off.
    pub last_values: Interval,
}

impl Default for Views {
    fn default() -> Self {
        Self { last_values: Interval::seconds(1) }
    }
}

/// Where readings come from. The key `type` names the variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(tag = "type")]
pub enum SourceSettings {
    /// Topics of a Kafka cluster.
    Kafka(KafkaSource),
}

impl SourceSettings {
    /// Its topics.
    pub fn topics(&self) -> &[String] {
        match self {
            Self::Kafka(kafka) => &kafka.topics,
        }
    }
    /// How its records become readings.
    pub fn decode(&self) -> &Decode {
        match self {
            Self::Kafka(kafka) => &kafka.decode,
        }
    }
}

/// Topics of a Kafka cluster. Partitions are assigned by offset, never by group rebalancing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSource {
    /// Where to find the cluster: `host:port`, several separated by commas.
    pub bootstrap_servers: String,
    /// The topics to read; all their partitions, new ones as they appear.
    #[schemars(length(min = 1))]
    pub topics: Vec<String>,
    /// The group that offsets are committed to, so that people's lag tools see us. Positions live in the checkpoint, not
    /// here.
    #[serde(default = "default_group_id")]
    pub group_id: String,
    /// Where to begin when no checkpoint says otherwise.
    #[serde(default)]
    pub auto_offset_reset: AutoOffsetReset,
    /// Settings of librdkafka, passed on by name, such as `"security.protocol" = "SASL_SSL"`. Those that streamgauge owns
    /// are refused, with the reason.
    #[serde(default)]
    pub properties: Properties,
    /// How a message becomes readings.
    pub decode: Decode,
}

fn default_group_id() -> String {
    "streamgauge".into()
}

/// Settings of librdkafka by name. Any of them may be a secret, so none is shown.
pub type Properties = BTreeMap<String, Secret>;

/// Where to begin when no checkpoint says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AutoOffsetReset {
    /// At the oldest record that is there.
    #[default]
    Earliest,
    /// At the end, as it is at the first start.
    Latest,
}

/// How a JSON message becomes readings. Narrow: `metric` and `value`, one reading a message. Wide: `metrics.<name>`, one
/// reading for each of the named fields that is present. Paths are JSON Pointers (`/pm/10`); a bare `a` means `/a`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Decode {
    /// Where the message carries an id of its own: duplicates are then found by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Pointer>,
    /// Where the sensor's name is: text or a whole number, at most 256 bytes.
    pub sensor: Pointer,
    /// Where the event time is: a number since 1970, RFC 3339, or a local time if `zone` says whose.
    pub time: Pointer,
    /// Narrow: where the metric's name is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Pointer>,
    /// Narrow: where the value is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Pointer>,
    /// Wide: for each metric, where its value is and what to do to it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, Field>,
    /// Narrow: what to do to the values of single metrics.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, Scaling>,
    /// The zone of local times that name none, such as `Europe/Berlin`. An ambiguous time takes the earlier instant; one
    /// that the clock skipped is a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The unit of numeric times. Left out, whole numbers are told apart by magnitude, which is certain from 2001 to 2286.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_unit: Option<TimeUnit>,
    /// What becomes of a value that is present but null.
    #[serde(default)]
    pub null: NullPolicy,
}

impl Decode {
    /// Whether one message holds one reading per mapped field, rather than one.
    pub fn is_wide(&self) -> bool {
        !self.metrics.is_empty()
    }
}

/// One field of a wide message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// Where the value is.
    pub path: Pointer,
    /// The unit after scaling, for people: shown and archived, never computed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The value is multiplied by this first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// This is added second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<f64>,
    /// The lowest and highest value that can be true, after scaling; what lies outside is a dead letter `out_of_range`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<[f64; 2]>,
}

/// What to do to the values of one metric of a narrow source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Scaling {
    /// The unit after scaling, for people: shown and archived, never computed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The value is multiplied by this first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// This is added second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<f64>,
    /// The lowest and highest value that can be true, after scaling; what lies outside is a dead letter `out_of_range`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid: Option<[f64; 2]>,
}

/// The unit of numeric times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// What becomes of a value that is present but null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NullPolicy {
    /// It is skipped, and counted.
    #[default]
    Skip,
    /// It is a dead letter `null_value`.
    DeadLetter,
}

/// What labels a series must have: for each label a glob or a list of them.
pub type Match = BTreeMap<String, OneOrMany>;
