//! Where alerts and readings go: one lane per sink and process, between the workers and a destination (DESIGN.md, idea 5).
//!
//! A worker pushes what an epoch made to all lanes, shared and without waiting (`LaneHandle`). `lane` decides what is
//! written when, what overflows to disk, and what a checkpoint must know; `driver` does it; each destination is one file
//! with a `Sink`. A new sink is its file, a variant of `SinkSettings`, and an arm here. What each promises is
//! docs/delivery.md.

mod driver;
mod item;
mod journal;
mod kafka;
pub mod lane;
mod lanes;
pub mod line;
mod parquet;
mod redis;
mod redis_last;
mod redis_stream;
mod redis_timeseries;
pub mod segment;
mod stdout;
#[cfg(test)]
pub(crate) mod test_fs;

pub use self::parquet::{ParquetArchive, look as look_at_dir};
pub use item::{AlertBatch, Alerts, Item, JournalEntry, NameTable, Position, READ_BACK, RowBatch, Rows};
pub use journal::{JOURNAL, Journal};
pub use lanes::{
    Configured, Destinations, DrainReport, Labels, LaneContext, LaneHandle, Lanes, Opening, Shed, Shedding, verify,
};
pub use redis_stream::RedisStream;
pub use redis_timeseries::RedisTimeseries;
pub use stdout::Stdout;

use operators::Epoch;
use segment::SegmentRef;
use serde::{Deserialize, Serialize};
use std::future::Future;

/// A destination. Its lane drives it, one call at a time; it may be given the same batch again.
pub trait Sink: Send + 'static {
    /// What it takes.
    type Item: Item;

    /// What the lane must know about it.
    fn traits(&self) -> Traits;
    /// Connects anew and announces the term: after this the destination refuses older ones, if it can.
    fn connect(&mut self, term: u64) -> impl Future<Output = Result<(), StartError>> + Send;
    /// Where the destination stands, if it can tell: it has everything up to here.
    fn position(&mut self) -> impl Future<Output = Result<Option<Position>, SinkError>> + Send {
        async { Ok(None) }
    }
    /// Writes batches in their order. After an error some of it may have been written.
    fn write(&mut self, batch: &[Self::Item]) -> impl Future<Output = Result<Written, SinkError>> + Send;
    /// Whether the connection still stands.
    fn probe(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send {
        async { Ok(()) }
    }
    /// Makes everything written durable, as the destination's part of the checkpoint at this cut (`in_checkpoint` only).
    fn take_cut(&mut self, _cut: Epoch) -> impl Future<Output = Result<Held, SinkError>> + Send {
        async { Ok(Held::default()) }
    }
    /// The checkpoint at this cut is durable: shows what belongs to it (`in_checkpoint` only).
    fn commit(&mut self, _cut: Epoch) -> impl Future<Output = Result<(), SinkError>> + Send {
        async { Ok(()) }
    }
}

/// What a lane must know about its sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// The destination is files of this machine that the checkpoint names: what it was given is either in the checkpoint
    /// or made again by replay, and nothing of it waits in segment files.
    pub in_checkpoint: bool,
    /// For so long after its acknowledgement the destination may forget something by crashing, microseconds.
    pub forgets_us: u64,
    /// Entries in one write, at most (a larger batch goes alone).
    pub batch_entries: u64,
    /// Bytes in one write, at most (a larger batch goes alone).
    pub batch_bytes: u64,
}

/// What became of a write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Entries that the destination has now.
    pub entries: u64,
    /// Entries that it refused for good, by reason.
    pub refused: Vec<(&'static str, u64)>,
    /// Readings that took the place of another one of their series and millisecond.
    pub collisions: u64,
}

/// What can go wrong with a destination: a variant for each thing that a lane can do then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// Passing: wait and repeat.
    #[error("{0}")]
    Unavailable(String),
    /// Final for this batch: count it, say so and go on.
    #[error("{0}")]
    Refused(String),
    /// Somebody else writes there, so that positions mean nothing any more: write nothing, and say so.
    #[error("{0}")]
    Foreign(String),
}

/// Why a sink cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No answer from there.
    #[error("{0}")]
    Unreachable(String),
    /// An answer, but we may not.
    #[error("{0}")]
    Denied(String),
    /// Somebody else writes there.
    #[error("{0}")]
    Foreign(String),
    /// The configuration asks for what cannot be.
    #[error("{0}")]
    Settings(String),
    /// Files of ours.
    #[error("{0}")]
    Io(String),
    /// What a checkpoint lists is damaged or gone.
    #[error("{0}")]
    Corrupt(String),
}

impl StartError {
    /// What the disk says: some of it is about the path or our rights, for people to mend; the rest may pass.
    pub fn of_disk(what: String, error: &std::io::Error) -> Self {
        use std::io::ErrorKind::{
            AlreadyExists, IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem,
        };
        match error.kind() {
            AlreadyExists | IsADirectory | NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem => {
                Self::Io(what)
            }
            _ => Self::Unreachable(what),
        }
    }
}

/// What a destination that is part of the checkpoint has made durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Files that the checkpoint lists, to be shown once it is durable.
    pub files: Vec<FileRef>,
    /// The length of the one file.
    pub length: Option<u64>,
}

/// A finished file that waits for its checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// Its name, once it is shown.
    pub name: String,
    /// Its bytes.
    pub length: u64,
    /// Its rows.
    pub rows: u64,
}

/// What a run makes again though an archive may have shown it: newer checkpoints than the one restored had listed it, and
/// they are damaged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MadeAgain {
    /// The first epoch that is made again; `Epoch::MAX` where none is.
    pub from: Epoch,
    /// The damaged checkpoints: (the term that wrote it, its cut).
    pub damaged: Vec<(u64, Epoch)>,
}

impl MadeAgain {
    /// Whether a file of a term is meant whose rows are all of epochs below one. It may have been shown by a later cut than
    /// its own, because that was never completed. In an archive that is older than the data directory numbers of terms
    /// repeat, but epochs, being times, do not.
    pub fn covers(&self, term: u64, below: Epoch) -> bool {
        below > self.from && self.damaged.iter().any(|(writer, through)| *writer == term && below <= *through)
    }
}

/// What a checkpoint keeps of a lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneState {
    /// The sink.
    pub sink: String,
    /// The process.
    pub process: usize,
    /// The term that wrote this.
    pub term: u64,
    /// The checkpoint's cut.
    pub cut: Epoch,
    /// Up to where the destination had acknowledged, where entries have positions.
    pub acknowledged: Option<Position>,
    /// Segment files with what it may lack, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<SegmentRef>,
    /// Finished files to be shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileRef>,
    /// The journal's length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}
