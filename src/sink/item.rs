//! What lanes carry: the alerts of an epoch, or a worker's readings of an epoch; shared by all lanes, copied by none.

use super::segment::{Get, Put};
use operators::{Alert, Epoch, Judged, SeriesName, SeriesNo, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// Where an alert transition stands among all of them: epoch, and number within it from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The epoch.
    pub epoch: Epoch,
    /// The number within the epoch.
    pub n: u32,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.epoch, self.n)
    }
}

/// What a lane carries.
pub trait Item: Clone + Send + Sync + Sized + 'static {
    /// Its epoch.
    fn epoch(&self) -> Epoch;
    /// The position of its last entry, where entries have positions.
    fn last(&self) -> Option<Position>;
    /// Its entries.
    fn count(&self) -> u64;
    /// About what it takes in memory.
    fn bytes(&self) -> u64;
    /// Appends its bytes, complete in themselves: readable in another run.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads them back; none if they are not what `encode` writes.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

/// An alert transition and its number within its epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalEntry {
    /// From 1.
    pub n: u32,
    /// The transition.
    pub alert: Alert,
}

/// All alert transitions of an epoch, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertBatch {
    /// The epoch.
    pub epoch: Epoch,
    /// At least one.
    pub alerts: Vec<JournalEntry>,
}

/// An `AlertBatch` on its way through lanes.
#[derive(Clone, Debug, PartialEq)]
pub struct Alerts(pub Arc<AlertBatch>);

impl Item for Alerts {
    fn epoch(&self) -> Epoch {
        self.0.epoch
    }
    fn last(&self) -> Option<Position> {
        self.0.alerts.last().map(|entry| Position { epoch: self.0.epoch, n: entry.n })
    }
    fn count(&self) -> u64 {
        self.0.alerts.len() as u64
    }
    fn bytes(&self) -> u64 {
        let text = |a: &Alert| a.sensor.len() + a.metric.len() + a.rule.len() + a.version.len() + a.severity.len();
        self.0.alerts.iter().map(|entry| 256 + text(&entry.alert) as u64).sum()
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.0.epoch);
        out.put_u32(self.0.alerts.len() as u32);
        for entry in &self.0.alerts {
            out.put_u32(entry.n);
            super::line::encode(&entry.alert, out);
        }
    }
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let epoch = bytes.get_u64()?;
        let count = bytes.get_count(8)?;
        let mut alerts = Vec::with_capacity(count);
        for _ in 0..count {
            alerts.push(JournalEntry { n: bytes.get_u32()?, alert: super::line::decode(bytes)? });
        }
        bytes.is_empty().then(|| Self(Arc::new(AlertBatch { epoch, alerts })))
    }
}

/// What one worker keeps of an epoch, in log order.
#[derive(Clone, Debug, PartialEq)]
pub struct RowBatch {
    /// The epoch.
    pub epoch: Epoch,
    /// The worker, counted within this process.
    pub worker: usize,
    /// The series that this worker has not named before.
    pub names: Vec<(SeriesNo, SeriesName)>,
    /// The readings, accepted or flagged; their series are this worker's numbers.
    pub rows: Vec<Judged>,
    /// By stream number: the source and the topic.
    pub streams: Arc<Vec<(String, String)>>,
}

/// A `RowBatch` on its way through lanes, with the names of its series.
#[derive(Clone)]
pub struct Rows {
    /// The batch; its `names` are in the table.
    pub batch: Arc<RowBatch>,
    /// The names of the batch's series.
    pub names: Arc<NameTable>,
}

/// The worker of a batch that was read back from a segment file: its numbers are its own.
pub const READ_BACK: usize = usize::MAX;

const ROW_BYTES: usize = 37;

impl Item for Rows {
    fn epoch(&self) -> Epoch {
        self.batch.epoch
    }
    fn last(&self) -> Option<Position> {
        None
    }
    fn count(&self) -> u64 {
        self.batch.rows.len() as u64
    }
    fn bytes(&self) -> u64 {
        (self.batch.rows.len() * size_of::<Judged>() + 128) as u64
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.batch.epoch);
        out.put_u32(self.batch.streams.len() as u32);
        for (source, topic) in self.batch.streams.iter() {
            out.put_str(source);
            out.put_str(topic);
        }
        let mut numbers: HashMap<SeriesNo, u32> = HashMap::new();
        let mut names = Vec::new();
        for row in &self.batch.rows {
            numbers.entry(row.series).or_insert_with(|| {
                names.push(row.series);
                names.len() as u32 - 1
            });
        }
        out.put_u32(names.len() as u32);
        for series in names {
            let name = self.names.name(series);
            out.put_str(name.map_or("", |name| &name.sensor));
            out.put_str(name.map_or("", |name| &name.metric));
        }
        out.put_u32(self.batch.rows.len() as u32);
        for row in &self.batch.rows {
            out.put_u64(row.time as u64);
            out.put_u64(row.value.to_bits());
            out.put_u64(row.offset as u64);
            out.put_u32(numbers[&row.series]);
            out.put_u32(row.partition);
            out.put_u32(u32::from(row.stream) << 16 | u32::from(row.index));
            out.push(match row.verdict {
                Verdict::Accepted => 0,
                Verdict::Behind => 1,
                Verdict::Late => 2,
                Verdict::Future => 3,
            });
        }
    }
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let epoch = bytes.get_u64()?;
        let mut streams = Vec::new();
        for _ in 0..bytes.get_count(8)? {
            streams.push((bytes.get_str()?.to_owned(), bytes.get_str()?.to_owned()));
        }
        let names = NameTable::default();
        let series = bytes.get_count(8)?;
        for no in 0..series {
            names.set(no as u32, SeriesName { sensor: bytes.get_str()?.into(), metric: bytes.get_str()?.into() });
        }
        let count = bytes.get_count(ROW_BYTES)?;
        let mut rows = Vec::with_capacity(count);
        for _ in 0..count {
            let (time, value, offset) = (bytes.get_u64()? as i64, f64::from_bits(bytes.get_u64()?), bytes.get_u64()?);
            let (series_no, partition, place) = (bytes.get_u32()?, bytes.get_u32()?, bytes.get_u32()?);
            let verdict = match bytes.get_u8()? {
                0 => Verdict::Accepted,
                1 => Verdict::Behind,
                2 => Verdict::Late,
                3 => Verdict::Future,
                _ => return None,
            };
            let (stream, index) = ((place >> 16) as u16, place as u16);
            if series_no as usize >= series || usize::from(stream) >= streams.len() {
                return None;
            }
            rows.push(Judged {
                time,
                value,
                offset: offset as i64,
                series: series_no,
                partition,
                stream,
                index,
                verdict,
            });
        }
        let batch = RowBatch { epoch, worker: READ_BACK, names: Vec::new(), rows, streams: Arc::new(streams) };
        bytes.is_empty().then(|| Self { batch: Arc::new(batch), names: Arc::new(names) })
    }
}

/// The names of one worker's series by number: it only grows, so that the worker writes while lanes read, without a lock.
pub struct NameTable {
    /// Chunk k holds 1024 · 2^k names.
    chunks: [OnceLock<Box<[OnceLock<SeriesName>]>>; 23],
}

impl Default for NameTable {
    fn default() -> Self {
        Self { chunks: [const { OnceLock::new() }; 23] }
    }
}

impl NameTable {
    fn place(no: SeriesNo) -> (usize, usize) {
        let shifted = u64::from(no) + 1024;
        let chunk = 53 - shifted.leading_zeros() as usize;
        (chunk, (shifted - (1024 << chunk)) as usize)
    }
    /// Names a series; a name stays.
    pub fn set(&self, no: SeriesNo, name: SeriesName) {
        let (chunk, at) = Self::place(no);
        let chunk = self.chunks[chunk].get_or_init(|| (0..1024_usize << chunk).map(|_| OnceLock::new()).collect());
        let _ = chunk[at].set(name);
    }
    /// The name of a series that has been named.
    pub fn name(&self, no: SeriesNo) -> Option<&SeriesName> {
        let (chunk, at) = Self::place(no);
        self.chunks[chunk].get()?[at].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(no: u32) -> SeriesName {
        SeriesName { sensor: format!("s-{no}").into(), metric: "temperature".into() }
    }

    #[test]
    fn names_are_found_by_number_over_many_chunks() {
        let table = NameTable::default();
        let numbers = [0, 1, 1023, 1024, 1025, 3071, 3072, 100_000];
        for no in numbers {
            assert!(table.name(no).is_none());
            table.set(no, name(no));
        }
        for no in numbers {
            assert_eq!(table.name(no), Some(&name(no)));
        }
        assert_eq!(NameTable::place(u32::MAX), (22, 1023));
    }

    #[test]
    fn rows_read_back_are_the_rows_with_their_names() {
        let names = Arc::new(NameTable::default());
        for no in [7, 9000] {
            names.set(no, name(no));
        }
        let row = |series, time, verdict| Judged {
            time,
            value: time as f64 / 3.0,
            offset: time * 7,
            series,
            partition: 3,
            stream: 1,
            index: 2,
            verdict,
        };
        let rows = vec![row(9000, -5, Verdict::Late), row(7, 6, Verdict::Accepted), row(9000, 7, Verdict::Future)];
        let streams = Arc::new(vec![("a".into(), "t".into()), ("b".into(), "u".into())]);
        let batch = RowBatch { epoch: 12, worker: 0, names: Vec::new(), rows, streams };
        let mut bytes = Vec::new();
        Rows { batch: Arc::new(batch.clone()), names }.encode(&mut bytes);
        let back = Rows::decode(&bytes).expect("readable");
        assert_eq!(back.batch.streams, batch.streams);
        for (was, is) in batch.rows.iter().zip(&back.batch.rows) {
            assert_eq!(back.names.name(is.series), Some(&name(was.series)));
            assert_eq!(Judged { series: was.series, ..*is }, *was);
        }
        for end in 0..bytes.len() {
            assert!(Rows::decode(&bytes[..end]).is_none(), "cut at {end}");
        }
    }
}
