//! streamgauge's rules, implemented a second time: slowly, and from `docs/semantics.md` alone.
//!
//! The function is (epoch log, records, configuration) -> (journal, archive, counts, statistics). The program computes
//! it with workers, exchanges, checkpoints and restarts; [`run`] computes it in one loop over the epochs. A test that
//! holds the two against each other needs nothing but equality.
//!
//! Reading order: [`log`] says which records are in which epoch and which time is counted; [`decode`] makes readings
//! of records; [`judge`] takes them one by one, [`rolling`] and [`rules`] below it; [`journal`] numbers what came out.
//!
//! # Where the text leaves a choice
//! The reading taken here, in the order of the sections of `docs/semantics.md`:
//! - (2) A *whole number* is one written without fraction and exponent, of any length; as a sensor, id or metric it is
//!   the text as written. As a time one that does not fit an i64 is taken as an f64, as if it had an exponent.
//! - (2) An escaped lone surrogate (`"\ud800"`) names no character: the record is `not_json`, wherever it stands.
//! - (2) Where only one of scale and offset is configured, the other is 1 or 0 and is applied, too (it turns -0 into 0).
//! - (2) "Years -9999 to 9999" is what jiff's `Timestamp` can hold, for numbers as for strings. Zones are jiff's
//!   bundled ones, never the machine's.
//! - (2) `dedup.key = "id"` with a source that names no id is an error.
//! - (3) All sensors of an epoch are taken in one log order, which decides who finds room under `max_series`. The
//!   limit of a group is `max_series * 2 / 4096`, rounded up at the end.
//! - (3) A reading of a forgotten series at or below its clock is late even when its key group is full.
//! - (3, 4) An accepted reading that is not behind *moves* c, also when its event time equals c: silence starts again.
//! - (4) Within one second deadlines are met first, then series are forgotten. A forgotten series keeps the deadline
//!   of a firing alert on a window, but raises no `missing` any more; its ended episodes are forgotten with it.
//! - (4) Lines beyond a term's `End` are void. A term without `End` ends at its greatest epoch. Seconds between two
//!   terms are looked at, too: what was due when the first one ended fires at the first whole second after it.
//! - (4) The last second looked at is the last one <= the last complete epoch + 1: all epochs before it are complete.
//!   If it is that epoch + 1, its transitions are in the journal although its own readings are still to come.
//! - (6) An undefined statistic changes nothing, also for a pending alert.
//! - (6) Both transitions of a behind alert carry the reading's value.

pub mod config;
pub mod decode;
pub mod journal;
pub mod json;
pub mod judge;
pub mod log;
pub mod rolling;
pub mod rules;
pub mod time;

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use config::Config;
pub use journal::{ArchiveRow, Counts, DeadLetter, Outcome, PartitionCounts, Reason, SeriesRolling, State, Transition};
pub use journal::{canonical, total};
pub use log::Line;

/// The bytes at a partition and offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The configuration's name of the source.
    pub source: Arc<str>,
    /// The topic within the source.
    pub topic: Arc<str>,
    /// The partition within the topic.
    pub partition: i32,
    /// The place within the partition.
    pub offset: i64,
    /// The record's time stamp in milliseconds, where it has one.
    pub timestamp: Option<i64>,
    /// The bytes; none for a tombstone. Base64 in JSON.
    #[serde(with = "base64_bytes")]
    pub payload: Option<Vec<u8>>,
}

/// A partition of a topic of a source. Ordered as the log is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Partition {
    /// The configuration's name of the source.
    pub source: Arc<str>,
    /// The topic within the source.
    pub topic: Arc<str>,
    /// The number of the partition.
    pub partition: i32,
}

impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.source, self.topic, self.partition)
    }
}

/// What is expected of these records (in any order), this epoch log and this configuration.
///
/// An error says what is impossible about the input: a range that does not hold the records it counts, a line of an
/// earlier epoch than its term, an unknown zone.
///
/// ```
/// use streamgauge_oracle::{Config, Line, Outcome, run};
/// let outcome: Outcome = run(&Config::default(), &[], &[Line::Term { processes: 1 }])?;
/// assert!(outcome.journal.is_empty());
/// # Ok::<(), String>(())
/// ```
pub fn run(config: &Config, records: &[Record], lines: &[Line]) -> Result<Outcome, String> {
    let mut partitions: HashMap<(&str, &str, i32), Vec<&Record>> = HashMap::new();
    for record in records {
        partitions.entry((&record.source, &record.topic, record.partition)).or_default().push(record);
    }
    let mut in_order = BTreeMap::new();
    for ((source, topic, partition), mut records) in partitions {
        records.sort_by_key(|record| record.offset);
        in_order.insert(Partition { source: source.into(), topic: topic.into(), partition }, records);
    }
    run_partitions(config, in_order, lines)
}

/// As [`run`], but draws the records of each partition, in the order of their offsets, only when an epoch needs them.
pub fn run_partitions<I>(config: &Config, records: BTreeMap<Partition, I>, lines: &[Line]) -> Result<Outcome, String>
where
    I: IntoIterator,
    I::Item: Borrow<Record>,
{
    config.check()?;
    let log = log::EpochLog::of(lines)?;
    let mut records: BTreeMap<Partition, _> =
        records.into_iter().map(|(partition, records)| (partition, records.into_iter().peekable())).collect();
    let mut judge = judge::Judge::of(config, &log.counted)?;
    for (&epoch, ranges) in &log.epochs {
        judge.whole_seconds(epoch);
        for (partition, range) in ranges {
            let records = records
                .get_mut(partition)
                .ok_or_else(|| format!("epoch {epoch}: a range of {partition}, which has no records"))?;
            let mut count = 0;
            while let Some(record) = records.next_if(|record| record.borrow().offset < range.next) {
                let place = (partition.clone(), record.borrow().offset);
                if log.set_aside.contains(&place) {
                    judge.set_aside(epoch, partition, record.borrow());
                } else {
                    judge.record(epoch, partition, record.borrow())?;
                }
                count += 1;
            }
            if count != range.records {
                return Err(format!(
                    "epoch {epoch}: the range of {partition} up to {} counts {} records, but there are {count}",
                    range.next, range.records
                ));
            }
        }
        judge.epoch_done(epoch);
    }
    judge.whole_seconds(log.end.saturating_add(1));
    Ok(judge.outcome())
}

mod base64_bytes {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        bytes.as_ref().map(|bytes| STANDARD.encode(bytes)).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| STANDARD.decode(text).map_err(D::Error::custom)).transpose()
    }
}
