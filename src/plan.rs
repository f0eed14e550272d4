//! What a run begins with: the checkpoint to go on from, what the logs say to read again, and from where.
//!
//! Process 0 makes the plan; every worker of every process gets it, and it is all that they need to agree on.

use crate::checkpoint::{self, Piece, Position, Restored};
use crate::epoch_log::{self, Control, FOR_EVER, TermLog};
use crate::error::Failure;
use crate::seam::Fs;
use crate::source::replay::Line;
use operators::{Epoch, Stream};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where a partition is read from: stream, partition, next offset, T of R4.
pub type Start = (Stream, u32, i64, Option<i64>);

/// Where a run's files lie.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Layout {
    /// The data directory: lanes, journal, dead letters.
    pub data: PathBuf,
    /// Epoch logs, a directory per term.
    pub logs: PathBuf,
    /// Checkpoints.
    pub checkpoints: PathBuf,
    /// Recorded configurations.
    pub configs: PathBuf,
}

impl Layout {
    /// Everything in one data directory.
    pub fn new(data: PathBuf) -> Self {
        let state = data.join("state");
        Self { data, logs: state.join("epochs"), checkpoints: state.join("checkpoints"), configs: state.join("config") }
    }
    /// Replays the logs of `self` into another data directory.
    pub fn replaying_into(&self, data: PathBuf) -> Self {
        Self { logs: self.logs.clone(), configs: self.configs.clone(), ..Self::new(data) }
    }
}

/// What every worker agrees on before the first epoch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// This run; for a replay, the term whose end it reaches.
    pub term: u64,
    /// What sinks are told, and files are named after.
    pub lane_term: u64,
    /// The newest term that has a directory.
    pub newest_term: u64,
    /// Positions of topics that are not configured now: kept for when they are again.
    pub carried: Vec<Position>,
    /// The hash of the configuration in force.
    pub config: String,
    /// The checkpoint to go on from.
    pub checkpoint: Option<PathBuf>,
    /// (source, topic) by stream.
    pub streams: Vec<(String, String)>,
    /// What to read again, in order of epochs.
    pub script: Vec<(Epoch, Line)>,
    /// Whether to go on with what is new.
    pub live: bool,
    /// The newest epoch that any log names: new ones lie above.
    pub floor: Epoch,
    /// Where to read on: (stream, partition, next offset, T).
    pub positions: Vec<Start>,
    /// The end of each partition now.
    pub ends: BTreeMap<String, i64>,
}

impl Plan {
    /// The ends by partition.
    pub fn end_map(&self) -> BTreeMap<(Stream, u32), i64> {
        let parse = |(key, end): (&String, &i64)| {
            let (stream, partition) = key.split_once('/')?;
            Some(((stream.parse().ok()?, partition.parse().ok()?), *end))
        };
        self.ends.iter().filter_map(parse).collect()
    }

    /// Where reading ends, as far as it is known: the ends now, or where the log's last range ends.
    pub fn goals(&self) -> BTreeMap<(Stream, u32), i64> {
        let mut goals = self.end_map();
        for (_, line) in &self.script {
            if let Line::Range(range) = line {
                let goal = goals.entry((range.stream, range.partition)).or_insert(range.next);
                *goal = (*goal).max(range.next);
            }
        }
        goals
    }
}

/// What the logs and checkpoints in a state directory come to.
pub struct Past {
    /// The newest good checkpoint.
    pub restored: Option<Restored>,
    /// The terms after it (its own as far as it goes on), in order.
    pub terms: Vec<TermLog>,
    /// The newest term that has a directory.
    pub newest_term: u64,
    /// The newest epoch that any log or checkpoint names.
    pub floor: Epoch,
}

/// Reads what earlier runs left.
pub fn past(fs: &dyn Fs, layout: &Layout) -> Result<Past, Failure> {
    let corrupt = |e: anyhow::Error| Failure::state(format!("{e:#}"));
    let restored = checkpoint::newest(fs, &layout.checkpoints).map_err(corrupt)?;
    let (cut_term, cut) = restored.as_ref().map_or((0, 0), |r| (r.manifest.term, r.manifest.cut));
    let all = epoch_log::terms(fs, &layout.logs).map_err(corrupt)?;
    let newest_term = all.last().copied().unwrap_or(0).max(cut_term);
    let mut terms = Vec::new();
    let mut floor = if cut == FOR_EVER { 0 } else { cut };
    for term in all {
        // The checkpoint's own term names the epochs that new ones must lie above, also where nothing of it is replayed.
        if term < cut_term {
            continue;
        }
        let Some(mut log) = epoch_log::read_term(fs, &layout.logs, term).map_err(corrupt)? else { continue };
        floor = floor.max(log.newest);
        if term == cut_term {
            if cut == FOR_EVER {
                continue;
            }
            log.cut = cut;
            log.ranges.retain(|(epoch, _)| *epoch >= cut);
            log.controls.retain(|(epoch, _)| *epoch >= cut);
        }
        terms.push(log);
    }
    Ok(Past { restored, terms, newest_term, floor })
}

/// The lines to replay of consecutive terms, with streams numbered as they are now.
pub fn script(terms: &[TermLog], streams: &[(String, String)]) -> Result<Vec<(Epoch, Line)>, Failure> {
    let mut script = Vec::new();
    for log in terms {
        let mut numbers = Vec::new();
        for name in &log.header.streams {
            numbers.push(streams.iter().position(|s| s == name));
        }
        for (epoch, range) in &log.ranges {
            let Some(Some(stream)) = numbers.get(usize::from(range.stream)) else {
                return Err(Failure::state(format!(
                    "the epoch log of term {} names a topic that its configuration does not have",
                    log.term
                )));
            };
            let mut range = *range;
            range.stream = *stream as Stream;
            script.push((*epoch, Line::Range(range)));
        }
        script.extend(log.controls.iter().map(|(epoch, control)| (*epoch, Line::Control(*control))));
        // The end of a term: what came after it was not heard. A term in which nothing was closed heard nothing.
        if log.committed.is_none() {
            continue;
        }
        let boundary = log.boundary().max(log.cut);
        script.extend((0..log.header.processes).map(|process| (boundary, Line::Control(Control::Deaf { process }))));
    }
    // Ranges of one epoch keep their order; control lines go before them.
    script.sort_by_key(|(epoch, line)| (*epoch, matches!(line, Line::Range(_))));
    Ok(script)
}

/// Where to read on after a checkpoint: (stream, partition, next offset, T) of the streams that are configured now.
pub fn positions(restored: &Restored, streams: &[(String, String)]) -> Vec<Start> {
    let place = |p: &Position| {
        let stream = streams.iter().position(|(s, t)| *s == p.source && *t == p.topic)?;
        Some((stream as Stream, p.partition, p.next, p.time))
    };
    restored.positions().filter_map(place).collect()
}

/// The positions of a checkpoint that belong to no stream that is configured now.
pub fn unknown_positions(restored: &Restored, streams: &[(String, String)]) -> Vec<Position> {
    let known = |p: &&Position| streams.iter().any(|(s, t)| *s == p.source && *t == p.topic);
    restored.positions().filter(|p| !known(p)).cloned().collect()
}

/// Writes checkpoint 0: nothing but where each partition begins, before the first record.
pub fn write_first(
    fs: &dyn Fs,
    layout: &Layout,
    term: u64,
    config: &str,
    streams: &[(String, String)],
    positions: &[Start],
) -> anyhow::Result<()> {
    let positions = positions.iter().map(|(stream, partition, next, time)| {
        let (source, topic) = streams[usize::from(*stream)].clone();
        Position { source, topic, partition: *partition, next: *next, time: *time }
    });
    let pieces = vec![Piece::Positions(positions.collect())];
    fs.create_dir(&layout.checkpoints)?;
    checkpoint::write_process(fs, &layout.checkpoints, (term, 0, 0), pieces)?;
    checkpoint::commit(fs, &layout.checkpoints, term, 0, (1, 1, config))
}
