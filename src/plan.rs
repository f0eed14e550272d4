//! What a run begins with: the checkpoint to go on from, what the logs say to read again, and from where.
//!
//! Process 0 makes the plan; every worker of every process gets it, and it is all that they need to agree on.

use crate::checkpoint::{self, Name, Newest, Piece, Position, Restored};
use crate::dead_lane;
use crate::epoch_log::{self, Control, FOR_EVER, Known, LogEnd, LogEnds, TermLog};
use crate::error::Failure;
use crate::seam::{Fs, make_dir, replace_by};
use crate::sink::{JOURNAL, LaneState, segment};
use crate::source::replay::Line;
use crate::terms::{History, Manifest, Place};
use anyhow::Context;
use operators::{Epoch, Stream};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
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
    /// What workers had in hand when they panicked.
    pub panics: PathBuf,
}

impl Layout {
    /// Everything in one data directory.
    pub fn new(data: PathBuf) -> Self {
        let state = data.join("state");
        let [logs, checkpoints, configs, panics] =
            ["epochs", "checkpoints", "config", "panics"].map(|name| state.join(name));
        Self { data, logs, checkpoints, configs, panics }
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
    /// The run of the cluster that this is: what sinks are told, and files are named after.
    pub lane_term: u64,
    /// Where the logs of `term` ended, if they are only replayed.
    pub log_ends: Vec<(u32, LogEnd)>,
    /// No alert of earlier runs can have left with an epoch above this one; none where there was no earlier run.
    pub sent_through: Option<Epoch>,
    /// Records that are dead letters wherever they lie.
    pub set_aside: Vec<Place>,
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
    /// Several processes: what process 0's wall clock showed, and the epoch time of that moment (R1).
    pub joined: Option<(u64, Epoch)>,
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

    /// The records set aside of streams that are configured.
    pub fn set_aside(&self) -> BTreeSet<(Stream, u32, i64)> {
        let place = |place: &Place| {
            let stream = self.streams.iter().position(|(s, t)| *s == place.source && *t == place.topic)?;
            Some((stream as Stream, place.partition, place.offset))
        };
        self.set_aside.iter().filter_map(place).collect()
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
    /// Newer ones that are damaged, and how.
    pub damaged: Vec<(PathBuf, String)>,
    /// The terms after it (its own as far as it goes on), in order.
    pub terms: Vec<TermLog>,
    /// What counts of terms.
    pub history: History,
    /// Records that are dead letters wherever they lie.
    pub set_aside: Vec<Place>,
    /// Every term that counts, and where its logs end.
    pub ends: BTreeMap<u64, LogEnds>,
    /// The newest epoch that any log or checkpoint names.
    pub floor: Epoch,
    /// No alert can have left with an epoch above this one.
    pub sent_through: Option<Epoch>,
    /// Logs that a machine without power left torn.
    pub torn: Vec<Torn>,
}

/// Where a log ends in what the disk did not have yet, as far as anybody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Whose log.
    pub term: u64,
    /// Of which process.
    pub process: u32,
    /// The end of what is whole.
    pub end: LogEnd,
    /// Whether nothing had an effect before the disk had it: then nothing is lost.
    pub synced: bool,
}

impl Past {
    /// The manifest of a term that goes on from here.
    pub fn manifest(&self, term: u64) -> Manifest {
        let checkpoint = self.restored.as_ref().and_then(|r| Some(r.dir.file_name()?.to_str()?.to_owned()));
        let (terms, set_aside) = (self.ends.clone(), self.set_aside.clone());
        Manifest { version: crate::terms::MANIFEST_VERSION, term, checkpoint, terms, set_aside }
    }
}

/// Reads what terms before `before` left; all of them, where it is none.
pub fn past(fs: &dyn Fs, layout: &Layout, before: Option<u64>) -> Result<Past, Failure> {
    read_past(fs, layout, before).map_err(|e| Failure::of_state(&e))
}

fn read_past(fs: &dyn Fs, layout: &Layout, before: Option<u64>) -> anyhow::Result<Past> {
    let history = History::read(fs, &layout.logs, before)?;
    let known = history.manifest.as_ref().map_or(0, |manifest| manifest.term);
    for dir in checkpoint::list(fs, &layout.checkpoints)?.iter().filter(|dir| checkpoint::is_complete(fs, dir)) {
        if let Some(name) = Name::of(dir).filter(|name| name.writer > known) {
            anyhow::bail!(
                "{}: term {} wrote it, and its folder in {} is gone, or its manifest: which lines count is not known",
                dir.display(),
                name.writer,
                layout.logs.display()
            );
        }
    }
    let counts = |r: &Restored| history.counts(r.name(), &r.logs());
    let Newest { restored, damaged } =
        checkpoint::find(fs, &layout.checkpoints, counts, |restored| whole(fs, layout, restored))?;
    let (cut_term, cut) = restored.as_ref().map_or((0, 0), |r| (r.manifest.term, r.manifest.cut));
    // What is known of logs: the checkpoint was written when they had grown so far. Of a damaged one that may be legible.
    let mut marks: BTreeMap<u64, Vec<(u32, LogEnd)>> = BTreeMap::new();
    if let Some(restored) = &restored {
        marks.entry(cut_term).or_default().extend(restored.logs());
    }
    for (name, ends) in damaged.iter().filter_map(|(dir, _)| checkpoint::marks(fs, dir)) {
        if history.counts(name, &ends) {
            marks.entry(name.term).or_default().extend(ends);
        }
    }
    let mut all = history.all.clone();
    if restored.is_some() && !all.contains(&cut_term) {
        all.push(cut_term);
        all.sort_unstable();
    }
    let mut ends = history.manifest.as_ref().map_or_else(BTreeMap::new, |m| m.terms.clone());
    ends.retain(|term, _| all.contains(term) || *term >= cut_term);
    let (mut terms, mut torn) = (Vec::new(), Vec::new());
    let mut floor = if cut == FOR_EVER { 0 } else { cut };
    let mut sent_through = restored.as_ref().map(|_| floor);
    for term in all {
        // The checkpoint's own term names the epochs that new ones must lie above, also where nothing of it is replayed.
        if term < cut_term {
            continue;
        }
        let known = Known { ends: history.ends(term), marks: marks.remove(&term).unwrap_or_default() };
        let log = epoch_log::read_term(fs, &layout.logs, term, &known)?;
        if history.manifest.as_ref().is_some_and(|m| m.term == term || m.terms.contains_key(&term)) {
            ends.insert(term, log.as_ref().map_or_else(LogEnds::new, |log| log.ends.clone()));
        }
        let Some(mut log) = log else { continue };
        torn.extend(log.torn.iter().map(|(process, end)| Torn {
            term,
            process: *process,
            end: *end,
            synced: log.header.synced,
        }));
        floor = floor.max(log.newest);
        sent_through = sent_through.max(Some(log.committed.map_or(0, |_| log.boundary())));
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
    let set_aside = history.manifest.as_ref().map_or_else(Vec::new, |m| m.set_aside.clone());
    Ok(Past { restored, damaged, terms, history, set_aside, ends, floor, sent_through, torn })
}

/// Makes the logs of terms that no manifest names yet durable as they were read: what a new term says of them must hold
/// after a power cut, too, and their own process may have died before the disk had all of them.
///
/// They are written anew. Syncing them would prove nothing where their process died of a sync that failed: the system
/// then shows bytes that it has given up on, and takes them for written.
///
/// By a file that has the name of the term that begins, for their own process may be alive, and writing beside its log.
pub fn settle(fs: &dyn Fs, layout: &Layout, past: &Past, begins: u64) -> anyhow::Result<()> {
    let named = past.history.manifest.iter().flat_map(|manifest| manifest.terms.keys()).collect::<BTreeSet<_>>();
    let last = past.restored.as_ref().map(Restored::name);
    // A checkpoint at the end of a term was written after the disk had all of its log.
    let settled = |term: &u64| named.contains(term) || last.is_some_and(|l| l.term == *term && l.cut == FOR_EVER);
    for (term, ends) in past.ends.iter().filter(|(term, _)| !settled(term)) {
        for (process, end) in ends {
            let path = epoch_log::segment_path(&layout.logs, *term, *process, end.segment);
            if fs.exists(&path) {
                let mut bytes = fs.read(&path)?;
                bytes.truncate(end.length as usize);
                let beside = path.with_extension(format!("of-{begins}.tmp"));
                let settled = replace_by(fs, &path, &beside, |file| file.write_all(&bytes));
                settled.with_context(|| path.display().to_string())?;
            }
        }
    }
    Ok(())
}

/// Whether all that a checkpoint refers to is there: what waits in lanes, and the journal.
fn whole(fs: &dyn Fs, layout: &Layout, restored: &Restored) -> anyhow::Result<()> {
    for lane in restored.processes.iter().flat_map(|(meta, _)| &meta.lanes) {
        if lane["sink"] == dead_lane::NAME {
            continue;
        }
        let state: LaneState = serde_json::from_value(lane.clone())?;
        for listed in &state.segments {
            segment::check(fs, &layout.data.join("lanes"), listed)
                .with_context(|| format!("segment file {} of sink {}", listed.name, state.sink))?;
        }
        if let (JOURNAL, Some(length)) = (state.sink.as_str(), state.length) {
            let path = layout.data.join("journal.jsonl");
            let found = if fs.exists(&path) { fs.len(&path)? } else { 0 };
            anyhow::ensure!(
                found >= length,
                "{}: {found} bytes, but the checkpoint knows of {length}; the file was cut or replaced",
                path.display()
            );
        }
    }
    Ok(())
}

/// The epoch of the journal's last line, if that is one that no epoch log has: then logs have lost lines that had an
/// effect. A process that was replaced and still has the journal may have written it, and says nothing about logs.
pub fn journal_beyond(fs: &dyn Fs, layout: &Layout, past: &Past) -> anyhow::Result<Option<Epoch>> {
    let path = layout.data.join("journal.jsonl");
    let Some(through) = past.sent_through.filter(|_| fs.exists(&path)) else { return Ok(None) };
    if !fs.append(&path)?.try_lock()? {
        return Ok(None);
    }
    let lanes = past.restored.iter().flat_map(|r| &r.processes).flat_map(|(meta, _)| &meta.lanes);
    let known = lanes.filter(|lane| lane["sink"] == JOURNAL).filter_map(|lane| lane["length"].as_u64()).max();
    let beyond = fs.read_from(&path, known.unwrap_or(0))?;
    let whole = beyond.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |end| &beyond[..end]);
    let last = whole.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let line: serde_json::Value = serde_json::from_slice(last).unwrap_or_default();
    Ok(line["epoch"].as_u64().filter(|epoch| *epoch > through))
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
    make_dir(fs, &layout.checkpoints)?;
    let name = Name { term, cut: 0, writer: term };
    checkpoint::write_process(fs, &layout.checkpoints, (name, 0), Vec::new(), &pieces)?;
    checkpoint::commit(fs, &layout.checkpoints, name, (1, 1, config))
}
