//! Records and values that were refused, kept with their bytes, place and reason: `data_dir/dead-letters/`.
//!
//! Each process writes segments of its own, JSON lines in the order of epochs. A checkpoint holds the position up to
//! which everything before its cut is durable; a restart cuts back to there, and replay writes the rest again: each
//! dead letter is stored once. Beyond 16 segments of 64 MiB the oldest goes, which is said and counted.

mod cmd;

pub use cmd::{Args, run};

use crate::decode::Reason;
use crate::metrics::Metrics;
use crate::seam::{Fs, make_dir, replace};
use crate::tail::{Open, Tail, UNSURE_MAX};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More of a record than this is not kept.
pub const PAYLOAD_MAX: usize = 64 << 10;

/// A record, or a value of it, that was refused. One line of a segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The source's name.
    pub source: Arc<str>,
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: i64,
    /// Which of the record's values; none for the whole record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u16>,
    /// The epoch in which it was read.
    pub epoch: u64,
    /// Why.
    pub reason: Reason,
    /// What was refused, where it was a value that had been decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<RefusedReading>,
    /// How many bytes the record has; 0 where they were no longer at hand.
    pub size: u64,
    /// Its first bytes, `PAYLOAD_MAX` at most.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub bytes: Vec<u8>,
}

/// A decoded value that was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefusedReading {
    /// The sensor.
    pub sensor: Arc<str>,
    /// The metric.
    pub metric: Arc<str>,
    /// The event time, microseconds since 1970.
    pub time: i64,
    /// The value; none if it is none.
    pub value: Option<f64>,
}

impl DeadLetter {
    /// Keeps the payload's beginning, and all of its size.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.size = payload.len() as u64;
        self.bytes = payload[..payload.len().min(PAYLOAD_MAX)].to_vec();
        self
    }

    /// A refused record, for now without its bytes.
    pub fn new((source, topic): (Arc<str>, Arc<str>), partition: u32, offset: i64, epoch: u64, reason: Reason) -> Self {
        let (index, reading, size, bytes) = (None, None, 0, Vec::new());
        Self { source, topic, partition, offset, index, epoch, reason, reading, size, bytes }
    }
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    BASE64_STANDARD.decode(&*text).map_err(serde::de::Error::custom)
}

/// Where a process's dead letters end: this many bytes of this segment, and all segments before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The segment.
    pub segment: u64,
    /// Its bytes.
    pub length: u64,
}

/// How much is kept, for each process.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A segment's size.
    pub segment_bytes: u64,
    /// How many there may be.
    pub segments: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, segments: 16 }
    }
}

/// So much is gathered before it is written.
const BUFFER_BYTES: usize = 256 << 10;

/// The writer of one process.
pub struct DeadLetters {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    process: usize,
    limits: Limits,
    metrics: Arc<Metrics>,
    /// Which segment is written, and its end.
    segment: u64,
    tail: Tail,
    /// Whether files were made that the directory may not have durably.
    new_files: bool,
    /// Lines not written yet.
    buffer: Vec<u8>,
}

impl DeadLetters {
    /// Opens the store of process `process` at what the checkpoint restored. Without a position, what is there stays (it
    /// is of a state that was lost) and a new segment begins; so checkpoint 0 holds `sync()`'s position too.
    pub fn open(
        fs: Arc<dyn Fs>,
        dir: &Path,
        process: usize,
        restored: Option<Position>,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        Self::open_with(fs, dir, process, restored, metrics, Limits::default())
    }

    /// The same with other limits.
    pub fn open_with(
        fs: Arc<dyn Fs>,
        dir: &Path,
        process: usize,
        restored: Option<Position>,
        metrics: Arc<Metrics>,
        limits: Limits,
    ) -> io::Result<Self> {
        make_dir(&*fs, dir)?;
        let written = match restored {
            Some(position) => cut_back(&*fs, dir, process, position)?,
            None => {
                let newest = segments(&*fs, dir, process)?.last().map_or(0, |(segment, _)| segment + 1);
                Position { segment: newest, length: 0 }
            }
        };
        let dir = dir.to_owned();
        Ok(Self {
            fs,
            dir,
            process,
            limits,
            metrics,
            segment: written.segment,
            tail: Tail::new(written.length),
            new_files: false,
            buffer: Vec::with_capacity(BUFFER_BYTES),
        })
    }

    /// Adds a dead letter. After an error it is kept in memory: `flush` again before appending more.
    pub fn append(&mut self, letter: &DeadLetter) -> io::Result<()> {
        let start = self.buffer.len();
        if let Err(error) = serde_json::to_writer(&mut self.buffer, letter) {
            self.buffer.truncate(start);
            return Err(error.into());
        }
        self.buffer.push(b'\n');
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    /// Hands over to the system what was gathered: it survives the end of this process.
    pub fn flush(&mut self) -> io::Result<()> {
        let length = self.tail.length();
        if self.buffer.is_empty() {
            return Ok(());
        }
        if length > 0 && length + self.buffer.len() as u64 > self.limits.segment_bytes {
            self.rotate()?;
        }
        if self.tail.unsure() > UNSURE_MAX {
            self.with_tail(|tail, open| tail.sync(open))?;
        }
        let buffer = std::mem::take(&mut self.buffer);
        let appended = self.with_tail(|tail, open| tail.append(&buffer, open));
        self.buffer = buffer;
        appended?;
        self.buffer.clear();
        Ok(())
    }

    /// Makes everything durable, for a checkpoint to hold where it ends.
    pub fn sync(&mut self) -> io::Result<Position> {
        self.flush()?;
        self.with_tail(|tail, open| tail.sync(open))?;
        if self.new_files {
            self.fs.sync_dir(&self.dir)?;
            self.new_files = false;
        }
        Ok(Position { segment: self.segment, length: self.tail.length() })
    }

    /// Where it is written.
    pub fn path(&self) -> PathBuf {
        path(&self.dir, self.process, self.segment)
    }

    fn with_tail(&mut self, act: impl FnOnce(&mut Tail, Open<'_>) -> io::Result<()>) -> io::Result<()> {
        let path = self.path();
        let Self { fs, tail, new_files, .. } = self;
        act(tail, &mut |length| {
            let exists = fs.exists(&path);
            let mut file = if exists {
                fs.append(&path)?
            } else {
                *new_files = true;
                fs.create(&path)?
            };
            if file.try_lock()? {
                if exists {
                    file.truncate(length)?;
                }
                return Ok(file);
            }
            if length > 0 {
                return Err(io::Error::other("another streamgauge has the segment; this one has been replaced"));
            }
            // Nothing of ours: one that has been replaced made it, and still has it.
            fs.remove(&path)?;
            *new_files = true;
            let mut file = fs.create(&path)?;
            let ours = file.try_lock()?;
            ours.then_some(file).ok_or_else(|| io::Error::other("another streamgauge has the segment"))
        })
    }

    /// Begins a new segment, after which no position points into the old one but those of older checkpoints.
    fn rotate(&mut self) -> io::Result<()> {
        self.with_tail(|tail, open| tail.sync(open))?;
        self.segment += 1;
        self.tail = Tail::new(0);
        let kept = segments(&*self.fs, &self.dir, self.process)?;
        let surplus = (kept.len() + 1).saturating_sub(self.limits.segments);
        for (segment, path) in kept.iter().take(surplus) {
            let letters = self.fs.read(path)?.iter().filter(|byte| **byte == b'\n').count() as u64;
            self.fs.remove(path)?;
            self.metrics.dead_letters_removed_total.inc_by(letters);
            tracing::warn!(segment, letters, "oldest dead letters removed, their store is full");
        }
        Ok(())
    }
}

/// Cuts the store of process `process` back to what the checkpoint knows, and says where to go on. Called by `open`; and
/// for each process that is no more, whose records replay gives to others.
pub fn cut_back(fs: &dyn Fs, dir: &Path, process: usize, position: Position) -> io::Result<Position> {
    let mut found = None;
    for (segment, path) in segments(fs, dir, process)? {
        if segment > position.segment {
            fs.remove(&path)?;
        } else if segment == position.segment {
            found = Some(path);
        }
    }
    let length = match &found {
        Some(path) => fs.len(path)?,
        None => 0,
    };
    match found {
        Some(path) if length >= position.length && length > 0 => {
            let mut file = fs.append(&path)?;
            if file.try_lock()? {
                file.truncate(position.length)?;
            } else {
                // A process that was replaced may still be alive: what it writes goes into a file without a name.
                let mut bytes = fs.read(&path)?;
                bytes.truncate(position.length as usize);
                replace(fs, &path, &bytes)?;
            }
        }
        _ if length == position.length => (),
        // Removed as the oldest since the checkpoint, or by someone: what it held is not coming back.
        _ => {
            let Position { segment, length: expected } = position;
            tracing::warn!(process, segment, length, expected, "dead letters shorter than the checkpoint knows");
            return Ok(Position { segment: segment + 1, length: 0 });
        }
    }
    if fs.exists(dir) {
        fs.sync_dir(dir)?;
    }
    Ok(position)
}

/// Where the last dead letter that lies below this epoch ends in the store of a process; none if there is no store.
///
/// For a store that the checkpoint restored knows nothing of: its process came later, and what it wrote since is written
/// again. What a machine without power left torn there goes with it.
pub fn end_below(fs: &dyn Fs, dir: &Path, process: usize, epoch: u64) -> io::Result<Option<Position>> {
    #[derive(Deserialize)]
    struct Line {
        epoch: u64,
    }
    let mut end = None;
    for (segment, path) in segments(fs, dir, process)? {
        let mut length = 0;
        end.get_or_insert(Position { segment, length });
        for line in fs.read(&path)?.split_inclusive(|byte| *byte == b'\n') {
            length += line.len() as u64;
            if serde_json::from_slice::<Line>(line).is_ok_and(|line| line.epoch < epoch) {
                end = Some(Position { segment, length });
            }
        }
    }
    Ok(end)
}

/// The processes that have a store, in ascending order.
pub fn processes(fs: &dyn Fs, dir: &Path) -> io::Result<BTreeSet<usize>> {
    let files = if fs.exists(dir) { fs.list(dir)? } else { Vec::new() };
    Ok(files.iter().filter_map(|path| Some(parse(path)?.0)).collect())
}

fn path(dir: &Path, process: usize, segment: u64) -> PathBuf {
    dir.join(format!("{process:04}-{segment:010}.jsonl"))
}

/// A process's segments, the oldest first.
fn segments(fs: &dyn Fs, dir: &Path, process: usize) -> io::Result<Vec<(u64, PathBuf)>> {
    if !fs.exists(dir) {
        return Ok(Vec::new());
    }
    let of_process = |path: PathBuf| {
        let (of, segment) = parse(&path)?;
        (of == process).then_some((segment, path))
    };
    let mut segments: Vec<_> = fs.list(dir)?.into_iter().filter_map(of_process).collect();
    segments.sort_unstable();
    Ok(segments)
}

/// The process and number of a segment; none for another file.
fn parse(path: &Path) -> Option<(usize, u64)> {
    let (process, segment) = path.file_name()?.to_str()?.strip_suffix(".jsonl")?.split_once('-')?;
    Some((process.parse().ok()?, segment.parse().ok()?))
}

#[cfg(test)]
mod tests;
