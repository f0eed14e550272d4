//! The epoch log: which offsets each epoch holds, written down before an epoch can have an effect (R1, R2).
//!
//! A term (one run of the cluster) has a log per process: segments of frames (`frame`). A segment begins with a header
//! that names the term, its peers, its configuration and its streams. A worker's `Close` says which ranges its epoch
//! held and through which epoch it is closed; `Control` says what else changes an answer. The term's committed end is
//! the least epoch through which every worker is closed; lines beyond it are void. Of a term that has been followed by
//! another, the lines count that lie before the lengths at which the other read the logs (`terms`).

pub mod frame;
mod read;
#[cfg(test)]
mod tests;
mod writer;

pub use frame::{Frame, Frames, LogEnd};
pub use read::{Known, read_term};
pub use writer::{Durability, EpochLog};

use crate::seam::Fs;
use anyhow::Result;
use operators::Epoch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a worker that ends cleanly is closed through.
pub const FOR_EVER: Epoch = Epoch::MAX;
/// The format of logs that this build writes, and reads.
pub const LOG_VERSION: u16 = 1;

/// Where the logs of a term end, by process.
pub type LogEnds = BTreeMap<u32, LogEnd>;

/// The first frame of a segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The format.
    pub version: u16,
    /// Which run of the cluster.
    pub term: u64,
    /// The process that writes this log.
    pub process: u32,
    /// Which of the log's segments this is.
    pub segment: u32,
    /// The number of processes.
    pub processes: u32,
    /// The number of workers in all processes.
    pub peers: u32,
    /// The hash of the recorded configuration in force.
    pub config: String,
    /// (source, topic) by stream number.
    pub streams: Vec<(String, String)>,
    /// Where each partition stood when the term began: (stream, partition, next offset).
    pub positions: Vec<(u16, u32, i64)>,
    /// Whether a line is on the disk before its epoch has an effect (`durability = "disk"`).
    #[serde(default)]
    pub synced: bool,
}

/// The records of one partition in an epoch: those before `next` that no earlier range holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// The stream, as numbered in the header.
    pub stream: u16,
    /// The partition.
    pub partition: u32,
    /// The offset after the last record.
    pub next: i64,
    /// The number of records, for gaps in offsets are normal.
    pub records: u32,
}

/// A worker has closed an epoch, and is closed through `through`.
#[derive(Clone, Debug, PartialEq)]
pub struct Close {
    /// The worker, among all peers.
    pub worker: u32,
    /// The epoch of the ranges.
    pub epoch: Epoch,
    /// No record of this worker will ever be in an epoch up to this one again.
    pub through: Epoch,
    /// What the epoch holds.
    pub ranges: Vec<Range>,
}

/// Whatever else changes an answer, at its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Control {
    /// A term begins with so many processes, all of them deaf.
    Term {
        /// How many.
        processes: u32,
    },
    /// From here on this process' silence says nothing.
    Deaf {
        /// Which.
        process: u32,
    },
    /// From here on this process hears all of its partitions.
    Hearing {
        /// Which.
        process: u32,
    },
}

/// All that a term has logged.
#[derive(Debug)]
pub struct TermLog {
    /// The term.
    pub term: u64,
    /// Of its first process: peers, processes, configuration, streams.
    pub header: Header,
    /// The last epoch that counts: `None` if nothing was closed, [`FOR_EVER`] after a clean end.
    pub committed: Option<Epoch>,
    /// The oldest and the newest epoch that any line names, void or not.
    pub oldest: Epoch,
    /// See `oldest`.
    pub newest: Epoch,
    /// A checkpoint holds everything below this epoch.
    pub cut: Epoch,
    /// Ranges of committed epochs, by (source, topic), in order of epoch and partition.
    pub ranges: Vec<(Epoch, Range)>,
    /// Control lines of committed epochs, in order.
    pub controls: Vec<(Epoch, Control)>,
    /// How far each process' log was read.
    pub ends: LogEnds,
    /// Where a log ends in what is not whole, and was never said to be on the disk: the machine lost its power.
    pub torn: LogEnds,
}

impl TermLog {
    /// The epoch from which on the next term's beginning holds: time after it was not counted.
    pub fn boundary(&self) -> Epoch {
        match self.committed {
            Some(FOR_EVER) | None => self.newest + 1,
            Some(end) => end + 1,
        }
    }
}

/// The terms in a state directory, ascending.
pub fn terms(fs: &dyn Fs, logs: &Path) -> Result<Vec<u64>> {
    if !fs.exists(logs) {
        return Ok(Vec::new());
    }
    let mut terms: Vec<u64> =
        fs.list(logs)?.iter().filter_map(|p| p.file_name()?.to_str()?.strip_prefix("term-")?.parse().ok()).collect();
    terms.sort_unstable();
    Ok(terms)
}

/// A segment of a process' log.
pub fn segment_path(logs: &Path, term: u64, process: u32, segment: u32) -> PathBuf {
    term_dir(logs, term).join(format!("process-{process}.{segment:06}.log"))
}

/// The directory of a term.
pub fn term_dir(logs: &Path, term: u64) -> PathBuf {
    logs.join(format!("term-{term}"))
}
